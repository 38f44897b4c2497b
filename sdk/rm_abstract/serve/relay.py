"""The server of a model that an endpoint outside the cluster serves: requests are handed on as they are.

Of such a model there is neither tokenizer nor weights here: what goes in and out is text, and the endpoint counts the
tokens. The endpoint is reached through the proxy that has its key; what the pod shows there is its own account.
"""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx2
from rm_api.names import SERVE_PORT, ExitCode
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rm_abstract.core.errors import BadInput, WorkloadError
from rm_abstract.serve.app import CLIENT_GONE, check_model, http_error, internal_error, read_body, refuse, unless_gone
from rm_abstract.serve.errors import ApiError
from rm_abstract.serve.main import Server, configuration, failed, write_engine_report
from rm_abstract.serve.metrics import CONTENT_TYPE

CONNECT_SECONDS: Final = 10.0
CONNECT_RETRIES: Final = 2
PATHS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize")
_HANDED_ON: Final = ("content-type", "cache-control", "retry-after")


class Relay:
    """Hands requests for ``served_name`` on to ``model`` of the server at ``url``, which has no ``/v1`` at its end.

    ``token_file`` has the token to show there; it is read for each request, as it is renewed. The server says itself
    when an answer takes too long.
    """

    def __init__(
        self,
        url: str,
        model: str,
        served_name: str,
        *,
        token_file: Path | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._name = served_name
        self._token_file = token_file
        self._created = int(time.time())
        # The environment's proxy is for what leaves the cluster.
        # A proxy that is replaced refuses connections for a moment; a request that was sent is sent only once.
        transport = httpx2.AsyncHTTPTransport(
            verify=True if tls is None else tls,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            retries=CONNECT_RETRIES,
        )
        self._client = httpx2.AsyncClient(
            transport=transport, trust_env=False, timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS)
        )
        self.draining = False
        self.running = 0
        self._answers: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    def application(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._describe_one),
            *(Route(path, partial(self._answer, path), methods=["POST"]) for path in PATHS),
        ]
        handlers: dict[Any, Any] = {ApiError: refuse, HTTPException: http_error, Exception: internal_error}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def drained(self) -> None:
        """Returns when no answer is under way any more."""
        await self._idle.wait()

    async def failed(self) -> None:
        """Never returns: an endpoint that fails may be well for the next request."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _health(self, _request: Request) -> Response:
        return Response(status_code=503 if self.draining else 200)

    async def _metrics(self, _request: Request) -> Response:
        label = self._name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines = [
            "# HELP vllm:num_requests_running Answers that the endpoint is generating.",
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{model_name="{label}"}} {self.running}',
            "# HELP rma_relay_answers_total Answers by status.",
            "# TYPE rma_relay_answers_total counter",
            *(
                f'rma_relay_answers_total{{model_name="{label}",code="{code}"}} {count}'
                for code, count in sorted(self._answers.items())
            ),
        ]
        return Response("\n".join(lines) + "\n", media_type=CONTENT_TYPE)

    def _describe(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": self._created, "owned_by": "rm-abstract"}

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def _describe_one(self, request: Request) -> Response:
        check_model(request.path_params["name"], self._name)
        return JSONResponse(self._describe())

    async def _answer(self, path: str, request: Request) -> Response:
        body = dict(await read_body(request))
        check_model(body.get("model"), self._name)
        if self.draining:
            raise ApiError(503, "the server is about to stop; ask again", headers={"Retry-After": "1"})
        body["model"] = self._model
        async with AsyncExitStack() as stack:
            stack.enter_context(self._under_way())
            answer = await unless_gone(request, self._ask(path, body, stack))
            if answer is None:
                return Response(status_code=CLIENT_GONE)
            self._answers[str(answer.status_code)] += 1
            headers = {name: answer.headers[name] for name in _HANDED_ON if name in answer.headers}
            return _HandedOn(_pieces(answer), answer.status_code, headers, stack.pop_all())

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def _ask(self, path: str, body: dict[str, Any], stack: AsyncExitStack) -> httpx2.Response:
        """The answer, whose content is still to come."""
        headers = {"Accept-Encoding": "identity"}
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {await asyncio.to_thread(_token, self._token_file)}"
        try:
            asked = self._client.build_request("POST", f"{self._url}{path}", json=body, headers=headers)
            answer = await self._client.send(asked, stream=True)
        except (httpx2.TransportError, OSError) as error:
            self._answers["502"] += 1
            raise ApiError(
                502,
                f"the proxy of the endpoint does not answer ({type(error).__name__}); its AcceleratorResource says why",
                code="endpoint_unreachable",
            ) from None
        stack.push_async_callback(answer.aclose)
        return answer


class _HandedOn(StreamingResponse):
    """An answer whose connection to the endpoint ends with it, for whatever reason."""

    def __init__(
        self, pieces: AsyncIterator[bytes], status: int, headers: dict[str, str], stack: AsyncExitStack
    ) -> None:
        super().__init__(pieces, status_code=status, headers={**headers, "X-Accel-Buffering": "no"})
        self._stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)


async def _pieces(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """The content as it comes. One that breaks off is not ended as if it were whole: the error goes on."""
    async for piece in answer.aiter_raw():
        yield piece


def _token(path: Path) -> str:
    return path.read_text("ascii").strip()


def relay(
    url: str, model: str, served_name: str, *, port: int = SERVE_PORT, token_file: Path | None = None, ca: str = ""
) -> ExitCode:
    """Relay until SIGTERM, and return the exit code. What was begun is finished first.

    ``ca`` has certificate authorities as PEM; those of the system without it.
    """

    async def main(tls: ssl.SSLContext | None) -> None:
        relaying = Relay(url, model, served_name, token_file=token_file, tls=tls)
        write_engine_report({"drains": True})
        try:
            await Server(configuration(relaying.application(), port), relaying).serve()
        finally:
            await relaying.close()

    try:
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"{url!r} is no URL of a proxy")
        try:
            tls = ssl.create_default_context(cadata=ca) if ca else None
        except (ValueError, ssl.SSLError) as error:
            raise BadInput(f"the certificate authorities of the proxy are no PEM: {error}") from None
        asyncio.run(main(tls))
    except WorkloadError as error:
        return failed(error, {})
    return ExitCode.OK
