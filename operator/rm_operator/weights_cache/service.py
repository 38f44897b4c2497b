"""The service itself: HEAD, GET (with ranges) and PUT of ``/v1/blobs/sha256:…``, by ServiceAccount tokens."""

import asyncio
import errno
import logging
from collections import Counter
from typing import Final

from aiohttp import web

from rm_operator.kube.accounts import Accounts, NotAccepted, Reviewer
from rm_operator.kube.errors import ApiError
from rm_operator.weights_cache.blobs import Blobs, Full, Wrong, figures, is_name

logger = logging.getLogger(__name__)

_PIECE: Final = 1 << 20
MOST_RECEIVED: Final = 16
"""Blobs that are received at a time. Each takes some pieces of memory, and keeps room that others may want."""
_WAIT_SECONDS: Final = 30
"""For more of a blob."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """Gives and takes blobs."""

    def __init__(self, blobs: Blobs, reviewer: Reviewer, *, wait_seconds: float = _WAIT_SECONDS) -> None:
        self._blobs = blobs
        self._wait = wait_seconds
        self._accounts = Accounts(reviewer)
        self._answers: Counter[str] = Counter()
        self._given = self._receiving = 0

    def app(self) -> web.Application:
        """The service as a web application."""
        app = web.Application()
        app.router.add_get("/v1/blobs/sha256:{name}", self._get)  # and HEAD
        app.router.add_put("/v1/blobs/sha256:{name}", self._put)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", _healthy)
        app.on_response_prepare.append(self._count)
        return app

    async def _get(self, request: web.Request) -> web.StreamResponse:
        try:
            name, namespace = await self._asked(request)
        except _Refused as refused:
            return self._refusal(refused)
        path = self._blobs.find(name, namespace)
        # Whether somebody else has stored it is nobody's business.
        self._answers["miss" if path is None else "hit"] += request.method == "GET"
        if path is None:
            return web.json_response({"message": f"there is no sha256:{name}"}, status=404)
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-store"})

    async def _put(self, request: web.Request) -> web.StreamResponse:
        try:
            name, namespace = await self._asked(request)
            if request.content_length is None:
                raise _Refused(411, "say the size in Content-Length")
            public = request.query.get("public") == "true"
            await self._take(request, name, namespace, request.content_length, public=public)
        except _Refused as refused:
            return self._refusal(refused)
        return web.json_response({}, status=201)

    async def _take(self, request: web.Request, name: str, namespace: str, size: int, *, public: bool) -> None:
        if self._receiving >= MOST_RECEIVED:
            raise _Refused(503, f"{MOST_RECEIVED} blobs are being stored; come again")
        self._receiving += 1
        try:
            with self._blobs.receive(name, namespace, size, public=public) as incoming:
                piece = bytearray()
                while chunk := await asyncio.wait_for(request.content.readany(), self._wait):
                    piece += chunk
                    if len(piece) >= _PIECE:
                        await asyncio.to_thread(incoming.write, bytes(piece))
                        piece.clear()
                await asyncio.to_thread(incoming.write, bytes(piece))
                await asyncio.to_thread(incoming.finish)
                incoming.keep()
        except TimeoutError as error:
            raise _Refused(408, f"nothing more of sha256:{name} came for {self._wait:g} s") from error
        except Full as error:
            raise _Refused(507, f"there is no room for sha256:{name}: {error}") from error
        except Wrong as error:
            raise _Refused(400, f"that is not sha256:{name}: {error}") from error
        except OSError as error:
            if error.errno in _FULL:
                raise _Refused(
                    507, f"there is no room for the {size} bytes of sha256:{name}: {error.strerror}"
                ) from error
            raise
        finally:
            self._receiving -= 1

    async def _asked(self, request: web.Request) -> tuple[str, str]:
        """The blob, and the namespace that asks for it."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _Refused(401, "send a ServiceAccount token as bearer token")
        namespace = await self._namespace(token.strip())
        name = request.match_info["name"]
        if not is_name(name):
            raise _Refused(400, "a blob is named by sha256: and 64 hexadecimal digits")
        return name, namespace

    async def _namespace(self, token: str) -> str:
        try:
            namespace = await self._accounts.namespace(token)
        except NotAccepted as error:
            logger.info("refused a token: %s", error)
            raise _Refused(401, "the API server does not accept the ServiceAccount token") from error
        except ApiError as error:
            logger.warning("the API server does not say whose a token is: %s", error)
            raise _Refused(503, "the API server does not say whose the token is; come again") from error
        if namespace is None:
            raise _Refused(403, "only ServiceAccounts are given anything")
        return namespace

    def _refusal(self, refused: _Refused) -> web.Response:
        self._answers[f"refused_{refused.status}"] += 1
        return web.json_response({"message": str(refused)}, status=refused.status)

    async def _count(self, request: web.Request, response: web.StreamResponse) -> None:
        if request.method == "GET" and isinstance(response, web.FileResponse) and response.status < 300:
            self._given += response.content_length or 0

    async def _metrics(self, _request: web.Request) -> web.Response:
        lines = []
        given = ("rma_weights_cache_given_bytes_total", "counter", "Bytes that pods were given.", self._given)
        for name, kind, help_, value in [*figures(self._blobs), given]:
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}", f"{name} {value}"]
        name = "rma_weights_cache_answers_total"
        lines += [f"# HELP {name} Answers, by what they were.", f"# TYPE {name} counter"]
        lines += [f'{name}{{answer="{answer}"}} {number}' for answer, number in sorted(self._answers.items())]
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")


async def _healthy(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")
