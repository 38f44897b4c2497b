"""The HTTP face: OpenAI's completions and chat completions, streamed or not, or its embeddings."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rm_abstract.core.session import Session
from rm_abstract.serve import embeddings
from rm_abstract.serve.embeddings import EmbeddingEngine
from rm_abstract.serve.engine import Engine, Piece
from rm_abstract.serve.errors import ApiError
from rm_abstract.serve.metrics import CONTENT_TYPE
from rm_abstract.serve.schema import ApiRequest, parse_chat, parse_completion
from rm_abstract.serve.scores import Score, of_chat, of_completion

_MAX_BODY: Final = 32 << 20
CLIENT_GONE: Final = 499
"""Status of an answer that nobody reads any more."""
_DONE: Final = "data: [DONE]\n\n"

Parse = Callable[[Mapping[str, Any], Session], ApiRequest]
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Shape:
    """How the answers of one endpoint look."""

    prefix: str
    whole: str
    chunk: str
    parse: Parse
    chat: bool

    def choice(self, index: int, text: str, finish: str | None, scores: Sequence[Score] = ()) -> dict[str, Any]:
        logprobs = of_chat(scores) if self.chat else of_completion(scores)
        body: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        if not self.chat:
            return {**body, "text": text}
        return {**body, "message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, piece: Piece) -> dict[str, Any]:
        if not self.chat:
            return self.choice(piece.choice, piece.text, piece.finish, piece.scores)
        content = {"content": piece.text} if piece.text else {}
        return {
            "index": piece.choice, "delta": content, "logprobs": of_chat(piece.scores), "finish_reason": piece.finish,
        }  # fmt: skip

    def opening(self, index: int, echo: str) -> dict[str, Any]:
        """What comes before the first piece of a streamed answer."""
        if not self.chat:
            return self.choice(index, echo, None)
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


_COMPLETION: Final = _Shape("cmpl", "text_completion", "text_completion", parse_completion, chat=False)
_CHAT: Final = _Shape("chatcmpl", "chat.completion", "chat.completion.chunk", parse_chat, chat=True)


@dataclass
class _Usage:
    prompt: int
    completion: int = 0

    def to_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass
class _Answer:
    """One request being answered."""

    shape: _Shape
    model: str
    request: ApiRequest
    usage: _Usage = field(init=False)
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.usage = _Usage(sum(len(prompt) for prompt in self.request.prompts))
        self.id = f"{self.shape.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def body(self, kind: str, choices: list[dict[str, Any]], **members: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **members,
        }

    async def whole(self, pieces: AsyncIterator[Piece]) -> dict[str, Any]:
        count = len(self.request.prompts) * self.request.choices
        texts, finishes = [[self.echo(index)] for index in range(count)], [""] * count
        scores: list[list[Score]] = [[] for _ in range(count)]
        async for piece in pieces:
            texts[piece.choice].append(piece.text)
            scores[piece.choice].extend(piece.scores)
            self.usage.completion += piece.tokens
            if piece.finish is not None:
                finishes[piece.choice] = piece.finish
        choices = [
            self.shape.choice(index, "".join(texts[index]), finishes[index], scores[index]) for index in range(count)
        ]
        return self.body(self.shape.whole, choices, usage=self.usage.to_json())

    def echo(self, index: int) -> str:
        """What stands before the answer with this number."""
        return self.request.echo[index // self.request.choices] if self.request.echo else ""

    async def events(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
        """Server-sent events. A failure after the first one can only be told in the stream, as its last event."""
        extra = {"usage": None} if self.request.include_usage else {}
        try:
            if self.shape.chat or self.request.echo:
                for index in range(len(self.request.prompts) * self.request.choices):
                    opening = self.shape.opening(index, self.echo(index))
                    yield _event(self.body(self.shape.chunk, [opening], **extra))
            async for piece in pieces:
                self.usage.completion += piece.tokens
                if piece.text or piece.finish is not None or piece.scores:
                    yield _event(self.body(self.shape.chunk, [self.shape.delta(piece)], **extra))
            if self.request.include_usage:
                yield _event(self.body(self.shape.chunk, [], usage=self.usage.to_json()))
            yield _DONE
        except ApiError as error:
            yield _event(error.body())


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


class _EventStream(StreamingResponse):
    """A stream that leaves the engine when it ends, for whatever reason."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


class Api:
    """The application over one engine, which serves one model under one name."""

    def __init__(self, engine: Engine | EmbeddingEngine, served_name: str) -> None:
        self._engine = engine
        self._name = served_name
        self._created = int(time.time())

    def application(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/completions", partial(self._answer, _COMPLETION), methods=["POST"]),
            Route("/v1/chat/completions", partial(self._answer, _CHAT), methods=["POST"]),
            Route("/v1/embeddings", self._embed, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {ApiError: refuse, HTTPException: http_error, Exception: internal_error}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _health(self, _request: Request) -> Response:
        if self._engine.draining or self._engine.failure:
            return Response(status_code=503)
        return Response()

    async def _metrics(self, _request: Request) -> Response:
        engine = self._engine
        text = engine.metrics.exposition(self._name, running=engine.running, waiting=engine.waiting)
        return Response(text, media_type=CONTENT_TYPE)

    def _describe(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "rm-abstract",
            "max_model_len": self._engine.max_sequence_length,
        }

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def _model(self, request: Request) -> Response:
        check_model(request.path_params["name"], self._name)
        return JSONResponse(self._describe())

    async def _embed(self, request: Request) -> Response:
        body = await read_body(request)
        check_model(body.get("model"), self._name)
        engine = self._engine
        if not isinstance(engine, EmbeddingEngine):
            raise self._other(request, "generates text; it has no embeddings")
        checked = await run_in_threadpool(embeddings.parse, body, engine.embedder)
        vectors = await unless_gone(request, engine.embed(checked.prompts))
        if vectors is None:
            return Response(status_code=CLIENT_GONE)
        normalized = engine.embedder.normalized
        return JSONResponse(
            await run_in_threadpool(embeddings.answer, checked, vectors, self._name, normalized=normalized)
        )

    async def _answer(self, shape: _Shape, request: Request) -> Response:
        body = await read_body(request)
        check_model(body.get("model"), self._name)
        engine = self._engine
        if not isinstance(engine, Engine):
            raise self._other(request, "computes embeddings; it generates no text")
        # Tokenizing a long prompt takes milliseconds that other requests must not wait for.
        checked = await run_in_threadpool(shape.parse, body, engine.session)
        answer = _Answer(shape, self._name, checked)
        async with AsyncExitStack() as stack:
            pieces = await stack.enter_async_context(engine.admit(checked))
            if checked.stream:
                return _EventStream(answer.events(pieces), stack.pop_all())
            result = await unless_gone(request, answer.whole(pieces))
            return Response(status_code=CLIENT_GONE) if result is None else JSONResponse(result)

    def _other(self, request: Request, does: str) -> ApiError:
        """What is asked is not for this kind of model. Not found, as for any path that is not served."""
        message = f"{request.url.path} is not for this model: {self._name} {does}"
        return ApiError(404, message, param="model", code="unsupported_model")


def check_model(name: Any, served: str) -> None:
    """Raises ApiError where a request is not for the model that is served."""
    if not isinstance(name, str) or not name:
        raise ApiError(400, "model must be the name of a model", param="model")
    if name != served:
        raise ApiError(404, f"there is no model {name!r} here, only {served!r}", param="model", code="model_not_found")


async def read_body(request: Request) -> Mapping[str, Any]:
    """The JSON object that was sent. Raises ApiError."""
    raw, size = bytearray(), 0
    async for chunk in request.stream():
        # A client that sends what was refused hears nothing but a broken connection; a little more is read for that.
        size += len(chunk)
        if size > 2 * _MAX_BODY:
            break
        if size <= _MAX_BODY:
            raw += chunk
    if size > _MAX_BODY:
        raise ApiError(413, f"the request is larger than {_MAX_BODY} bytes", code="request_too_large")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ApiError(400, f"the request is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the request must be a JSON object")
    return body


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of ``work``, or None where the client has gone meanwhile; then ``work`` is cancelled."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def refuse(_request: Request, error: Exception) -> Response:
    """The answer to an ApiError."""
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def http_error(request: Request, error: Exception) -> Response:
    """The answer to a path or method that is not there."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    code = {404: "unknown_url", 405: "method_not_supported"}.get(error.status_code)
    return await refuse(request, ApiError(error.status_code, detail, code=code, headers=error.headers))


async def internal_error(request: Request, error: Exception) -> Response:
    """The answer where the server failed; none where the client has gone."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    return await refuse(request, ApiError(500, "the server failed on this request; its log says why"))
