"""The HTTP face: OpenAI's completions and chat completions, streamed or not."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
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
from rm_abstract.serve.engine import Engine, Piece
from rm_abstract.serve.schema import ApiError, ApiRequest, parse_chat, parse_completion

_MAX_BODY: Final = 32 << 20
_CLIENT_GONE: Final = 499
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

    def choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        body: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
        return {**body, "message": {"role": "assistant", "content": text}} if self.chat else {**body, "text": text}

    def delta(self, index: int, text: str, finish: str | None, *, first: bool = False) -> dict[str, Any]:
        if not self.chat:
            return self.choice(index, text, finish)
        delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else ({"content": text} if text else {})
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


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
        texts: dict[int, str] = {}
        finishes: dict[int, str] = {}
        async for piece in pieces:
            texts[piece.choice] = texts.get(piece.choice, "") + piece.text
            self.usage.completion += piece.tokens
            if piece.finish is not None:
                finishes[piece.choice] = piece.finish
        choices = [self.shape.choice(index, texts[index], finishes[index]) for index in sorted(texts)]
        return self.body(self.shape.whole, choices, usage=self.usage.to_json())

    async def events(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
        """Server-sent events. A failure after the first one can only be told in the stream, as its last event."""
        extra = {"usage": None} if self.request.include_usage else {}
        try:
            if self.shape.chat:
                for index in range(self.request.choices):
                    yield _event(self.body(self.shape.chunk, [self.shape.delta(index, "", None, first=True)], **extra))
            async for piece in pieces:
                self.usage.completion += piece.tokens
                if piece.text or piece.finish is not None:
                    delta = self.shape.delta(piece.choice, piece.text, piece.finish)
                    yield _event(self.body(self.shape.chunk, [delta], **extra))
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

    def __init__(self, engine: Engine, served_name: str) -> None:
        self._engine = engine
        self._name = served_name
        self._created = int(time.time())

    def application(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._model),
            Route("/v1/completions", partial(self._answer, _COMPLETION), methods=["POST"]),
            Route("/v1/chat/completions", partial(self._answer, _CHAT), methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {ApiError: _refuse, HTTPException: _http_error, Exception: _internal_error}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _health(self, _request: Request) -> Response:
        if self._engine.draining or self._engine.session.failure:
            return Response(status_code=503)
        return Response()

    def _describe(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "rm-abstract",
            "max_model_len": self._engine.session.max_sequence_length,
        }

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._describe())

    def _check_model(self, name: Any) -> None:
        if not isinstance(name, str) or not name:
            raise ApiError(400, "model must be the name of a model", param="model")
        if name != self._name:
            raise ApiError(
                404, f"there is no model {name!r} here, only {self._name!r}", param="model", code="model_not_found"
            )

    async def _answer(self, shape: _Shape, request: Request) -> Response:
        body = await _body(request)
        self._check_model(body.get("model"))
        # Tokenizing a long prompt takes milliseconds that other requests must not wait for.
        checked = await run_in_threadpool(shape.parse, body, self._engine.session)
        answer = _Answer(shape, self._name, checked)
        async with AsyncExitStack() as stack:
            pieces = await stack.enter_async_context(self._engine.admit(checked))
            if checked.stream:
                return _EventStream(answer.events(pieces), stack.pop_all())
            result = await _unless_gone(request, answer.whole(pieces))
            return Response(status_code=_CLIENT_GONE) if result is None else JSONResponse(result)


async def _body(request: Request) -> Mapping[str, Any]:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MAX_BODY:
            raise ApiError(413, f"the request is larger than {_MAX_BODY} bytes")
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise ApiError(400, f"the request is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the request must be a JSON object")
    return body


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
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


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}"
    return await _refuse(request, ApiError(error.status_code, detail, headers=error.headers))


async def _internal_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=_CLIENT_GONE)
    return await _refuse(request, ApiError(500, "the server failed on this request; its log says why"))
