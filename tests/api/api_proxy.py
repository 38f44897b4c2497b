"""A proxy before the API server: it sees each request of one operator, and can hold, refuse or lose it."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import yaml
from aiohttp import web
from real_api import ApiServer
from rm_operator.kube.auth import Connection

_HOP = {"host", "connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive"}
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass
class Passing:
    """One request on its way. ``answered`` is set once the client has the whole answer."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)
    status: int = 0
    answered: bool = False

    @property
    def writes(self) -> bool:
        """True for what changes the cluster; Leases and Events are of no account."""
        return self.method in WRITES and "/leases" not in self.path and "/events" not in self.path


class Lost(Exception):
    """Raised by a hook: the connection ends without an answer."""


Hook = Callable[[Passing], Awaitable[None]]


async def _pass(_: Passing) -> None:
    return


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class ApiProxy:
    """Start it with ``async with``. It speaks plain HTTP, and to the server as ``user``.

    ``before`` is awaited before a request is handed on, ``after`` before the answer to it is; what they raise as Lost
    loses the connection there. ``cut`` breaks all connections and refuses new ones until ``mend``.
    """

    def __init__(self, server: ApiServer, user: str = "admin") -> None:
        self._connection = server.connection(user)
        self.before: Hook = _pass
        self.after: Hook = _pass
        self.seen: list[Passing] = []
        self._is_cut = False
        self._open: dict[int, web.Request] = {}

    async def __aenter__(self) -> "ApiProxy":
        self._files = _open_files()
        self._session = self._connection.open_session()
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port: int = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        await self._runner.cleanup()
        # Aborted: a farewell over TLS would go on when the loop has ended.
        if self._session.connector is not None:
            await self._session.connector.close(abort_ssl=True)
        await self._session.close()
        # A request that was broken off on its way says farewell all the same, and nobody but its socket knows.
        for _ in range(100):
            if _open_files() <= self._files:
                break
            await asyncio.sleep(0.01)

    @property
    def connection(self) -> Connection:
        return Connection(f"http://127.0.0.1:{self.port}")

    @property
    def writes(self) -> list[Passing]:
        """What was to change the cluster, without Leases and Events."""
        return [each for each in self.seen if each.writes]

    def kubeconfig(self, path: Any) -> Any:
        """Write a kubeconfig that leads here."""
        cluster = {"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy"}}
        config = {"current-context": "proxy", "contexts": [context], "clusters": [cluster], "users": []}
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **config}))
        return path

    def cut(self) -> None:
        """Break every connection, and refuse what comes."""
        self._is_cut = True
        for request in list(self._open.values()):
            if request.transport is not None:
                request.transport.abort()

    def mend(self) -> None:
        """Let through again."""
        self._is_cut = False

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        passing = Passing(request.method, request.path, request.query)
        self.seen.append(passing)
        self._open[id(request)] = request
        try:
            if self._is_cut:
                raise Lost
            await self.before(passing)
            return await self._hand_on(request, passing, body)
        except (Lost, aiohttp.ClientError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)
        finally:
            del self._open[id(request)]

    async def _hand_on(self, request: web.Request, passing: Passing, body: bytes) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url = f"{self._connection.server}{request.rel_url}"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, timeout=timeout
        ) as answer:
            passing.status = answer.status
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if "watch" in request.query:
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                try:
                    async for chunk in answer.content.iter_any():
                        await response.write(chunk)
                finally:
                    # One that is broken off would be closed with a farewell over TLS, which may outlast the loop.
                    if answer.connection is not None and answer.connection.transport is not None:
                        answer.connection.transport.abort()
                await response.write_eof()
                return response
            content = await answer.read()
            await self.after(passing)
            if self._is_cut:
                raise Lost
            whole = web.Response(status=answer.status, headers=kept, body=content)
            await whole.prepare(request)
            await whole.write_eof()
            passing.answered = request.transport is not None and not request.transport.is_closing()
            return whole
