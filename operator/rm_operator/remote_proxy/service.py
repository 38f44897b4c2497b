"""The proxy as two web applications: one for tenants, and one for whoever runs it."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rm_operator.kube.accounts import Accounts, NotAccepted, Reviewer
from rm_operator.kube.errors import ApiError
from rm_operator.remote_proxy.limits import Places, Rate, TooMany
from rm_operator.remote_proxy.upstream import (
    REFUSALS,
    RETRY_SECONDS,
    Endpoint,
    Failure,
    UnusableKey,
    authorization,
    failure_of,
)

logger = logging.getLogger(__name__)

MAX_BODY: Final = 32 << 20
MAX_WAIT_SECONDS: Final = 30.0
"""For a place among the requests that the endpoint takes at the same time."""
CHECK_SECONDS: Final = 30.0
_END_OF_EVENT: Final = b"\r\n\r\n"
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_HANDED_ON: Final = ("Content-Type", "Cache-Control")
"""Headers of an answer that are the client's business; others tell of the account at the provider."""
_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 240, 480)


@dataclass(frozen=True)
class Rules:
    """What may pass."""

    namespaces: frozenset[str]
    models: frozenset[str]
    """By their names at the endpoint."""
    max_concurrency: int | None = None
    requests_per_minute: int | None = None


class Metrics:
    """Series of one proxy."""

    def __init__(self, places: Places) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rma_remote_requests", "Requests by namespace and answer.", ("namespace", "code"), registry=self.registry
        )
        self.seconds = Histogram(
            "rma_remote_request_seconds", "Until an answer was whole.", buckets=_SECONDS, registry=self.registry
        )
        self.refused = Counter("rma_remote_credentials_refused", "Answers that refuse the key.", registry=self.registry)
        running = Gauge("rma_remote_requests_running", "Requests at the endpoint.", registry=self.registry)
        running.set_function(lambda: places.running)
        waiting = Gauge("rma_remote_requests_waiting", "Requests that wait for a place.", registry=self.registry)
        waiting.set_function(lambda: places.waiting)


class Proxy:
    """Hands requests of namespaces that may do so to the endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        rules: Rules,
        reviewer: Reviewer,
        session: aiohttp.ClientSession,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._paths = endpoint.paths
        self._rules = rules
        self._session = session
        self._accounts = Accounts(reviewer, clock)
        self._rate = Rate(rules.requests_per_minute, clock)
        self._places = Places(rules.max_concurrency, min(MAX_WAIT_SECONDS, endpoint.timeout_seconds))
        self._checking: asyncio.Task[None] | None = None
        self.metrics = Metrics(self._places)
        self.refused = asyncio.Event()
        """Set once the endpoint refuses the key whatever is asked."""

    def app(self) -> web.Application:
        """What tenants reach."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._answering])
        app.router.add_get("/v1/models", self._models)
        for path in self._paths:
            app.router.add_post(path, self._pass)
        return app

    def management(self) -> web.Application:
        """What whoever runs it reaches: health and metrics."""
        app = web.Application()
        app.router.add_get("/healthz", _healthy)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def accepts_key(self) -> bool:
        """False where the endpoint refuses the key, or there is none that could be sent.

        True also where it cannot be reached now, or does not list its models: then the first request shows it.
        """
        try:
            headers = authorization(self._endpoint.key())
            async with (
                asyncio.timeout(CHECK_SECONDS),
                self._session.get(self._endpoint.models, headers=headers, allow_redirects=False) as answer,
            ):
                return answer.status not in REFUSALS
        except UnusableKey as error:
            logger.error("%s", error)
            return False
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning("%s cannot be asked yet: %s", self._endpoint.models, type(error).__name__)
            return True

    @web.middleware
    async def _answering(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Counts, and has every refusal the shape that clients of the API know."""
        request["namespace"] = ""
        begun = time.monotonic()
        try:
            answer = await handler(request)
        except Failure as failure:
            answer = _refusal(failure)
        except TooMany as error:
            answer = _refusal(Failure(429, str(error), code="rate_limit_exceeded", retry=str(error.seconds)))
        except web.HTTPRequestEntityTooLarge:
            answer = _refusal(Failure(413, f"the request is larger than {MAX_BODY} bytes", code="request_too_large"))
        except web.HTTPException as error:
            answer = _refusal(Failure(error.status, f"{request.method} {request.path}: {error.reason}"))
        self.metrics.requests.labels(request["namespace"], str(answer.status)).inc()
        self.metrics.seconds.observe(time.monotonic() - begun)
        return answer

    async def _allowed(self, request: web.Request) -> None:
        """Raises Failure for whoever may not use the endpoint."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Failure(401, "send the ServiceAccount token of a serving pod", code="unauthorized")
        try:
            namespace = await self._accounts.namespace(token.strip())
        except NotAccepted as error:
            logger.info("refused a token from %s: %s", request.remote, error)
            raise Failure(401, "the API server does not accept the ServiceAccount token", code="unauthorized") from None
        except ApiError as error:
            logger.warning("the API server does not say whose a token is: %s", error)
            raise Failure(
                503, "the API server does not say whose the token is; come again", retry=str(RETRY_SECONDS)
            ) from None
        if namespace is None or namespace not in self._rules.namespaces:
            logger.info("refused an account of namespace %s", namespace)
            raise Failure(
                403,
                f"namespace {namespace or '(none)'} may not use {self._endpoint.accelerator}; whoever administers it "
                "can add the namespace to its spec.allowedNamespaces",
                code="namespace_not_allowed",
            )
        request["namespace"] = namespace

    async def _models(self, request: web.Request) -> web.StreamResponse:
        await self._allowed(request)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": self._endpoint.accelerator}
                for name in sorted(self._rules.models)]  # fmt: skip
        return web.json_response({"object": "list", "data": data})

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        await self._allowed(request)
        body = _body(await request.read())
        model = body.get("model")
        if not isinstance(model, str) or model not in self._rules.models:
            raise Failure(404, f"{self._endpoint.accelerator} serves no model {model!r}", code="model_not_found")
        self._rate.admit()
        async with self._places.place():
            return await self._ask(request, body)

    async def _ask(self, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        endpoint, answered = self._endpoint, web.StreamResponse()
        try:
            key = endpoint.key()
            # As it was understood here: of two members with one name the endpoint might take the other.
            sent = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
            headers = {"Content-Type": "application/json", **authorization(key)}
            async with self._session.post(
                self._paths[request.path], data=sent, headers=headers, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    if answer.status in REFUSALS:
                        self._doubt_key()
                    raise await failure_of(endpoint, answer, key)
                return await self._hand_on(request, answered, answer)
        except UnusableKey as error:
            self._doubt_key()
            raise Failure(
                502, f"{endpoint.accelerator} has no usable key: {error}", code="credentials_refused"
            ) from None
        except aiohttp.ConnectionTimeoutError:
            failure = Failure(504, f"the endpoint of {endpoint.accelerator} cannot be reached in time", code="timeout")
        except TimeoutError:
            seconds = f"{endpoint.timeout_seconds:g}"
            failure = Failure(
                504, f"the endpoint of {endpoint.accelerator} sent nothing for {seconds} s", code="timeout"
            )
        except _Gone:
            return answered  # the connection to the endpoint is closed with this block, which ends its work
        except (aiohttp.ClientError, OSError) as error:
            logger.warning("%s: %s", endpoint.url, error)
            failure = Failure(
                502,
                f"the endpoint of {endpoint.accelerator} cannot be used: {type(error).__name__}",
                code="endpoint_unreachable",
            )
        if not answered.prepared:
            raise failure
        return await _break_off(request, answered, failure)

    async def _hand_on(
        self, request: web.Request, answered: web.StreamResponse, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        answered.headers.update({name: answer.headers[name] for name in _HANDED_ON if name in answer.headers})
        # What came compressed although it was not to is longer than it said.
        if answer.content_length is not None and "Content-Encoding" not in answer.headers:
            answered.content_length = answer.content_length
        request["tail"] = b""
        async for chunk in answer.content.iter_any():
            with _to_client():
                # A failure before the first byte still has a status of its own.
                if not answered.prepared:
                    await answered.prepare(request)
                request["tail"] = (request["tail"] + chunk)[-len(_END_OF_EVENT) :]
                await answered.write(chunk)
        with _to_client():
            if not answered.prepared:
                await answered.prepare(request)
            await answered.write_eof()
        return answered

    def _doubt_key(self) -> None:
        """One model may be refused, or the key: that is found out once at a time."""
        self.metrics.refused.inc()
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())

    async def _check(self) -> None:
        if not await self.accepts_key():
            self.refused.set()

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = generate_latest(self.metrics.registry)
        return web.Response(body=text, headers={"Content-Type": METRICS_TYPE})


class _Gone(Exception):
    """The client has gone."""


@contextmanager
def _to_client() -> Iterator[None]:
    """A connection that breaks in here is the client's."""
    try:
        yield
    except OSError as error:
        raise _Gone from error


async def _break_off(request: web.Request, answered: web.StreamResponse, failure: Failure) -> web.StreamResponse:
    """Ends an answer that has begun: whole events with the failure as the last one, anything else unfinished."""
    if answered.content_type == "text/event-stream" and request["tail"].replace(b"\r", b"").endswith(b"\n\n"):
        with suppress(OSError):
            await answered.write(f"data: {json.dumps(failure.body())}\n\n".encode())
            await answered.write_eof()
    elif request.transport is not None:
        request.transport.abort()
    return answered


def _body(raw: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Failure(400, f"the request is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise Failure(400, "the request must be a JSON object")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _refusal(failure: Failure) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    if failure.retry is not None:
        headers["Retry-After"] = failure.retry
    if failure.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="ServiceAccount token"'
    return web.json_response(failure.body(), status=failure.status, headers=headers)


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")
