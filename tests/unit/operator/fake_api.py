"""An API server in this process, over real HTTP, that can be told to fail in every way that a real one does.

Behind it is an API in memory, which knows nothing of schemas; this is the wire: lists, watches with bookmarks, errors.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from memory_api import MemoryApi, Object
from rm_operator.kube.auth import Connection
from rm_operator.kube.errors import ApiError
from rm_operator.kube.resources import Resource, resource_of

Interceptor = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Seen:
    """A request that arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass(eq=False)
class _Watcher:
    collection: str
    selector: str | None
    lines: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)

    def sees(self, obj: Object) -> bool:
        return _within(_path(obj), self.collection) and _matches(obj, self.selector)


def status(code: int, reason: str = "", message: str = "", **details: Any) -> web.Response:
    """An error as the API server words it."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    body |= {"reason": reason, "message": message}
    return web.json_response(body | ({"details": details} if details else {}), status=code)


class FakeApi:
    """Start it with ``async with``."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.intercept: Interceptor | None = None
        """Asked before each request; what it returns is the answer."""
        self.memory = MemoryApi()
        self.memory.version = 100
        self.bookmark_every: float | None = None
        self._told = 0
        """So many of the changes that the memory keeps were sent to watches."""
        self._oldest = 0
        self._watchers: set[_Watcher] = set()
        self._running = asyncio.Event()
        self._running.set()

    async def __aenter__(self) -> "FakeApi":
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port: int = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.set()
        self.end_watches()
        await self._runner.cleanup()

    @property
    def connection(self) -> Connection:
        return Connection(f"http://127.0.0.1:{self.port}")

    @property
    def version(self) -> int:
        """The newest resourceVersion there is."""
        return self.memory.version

    @property
    def watching(self) -> int:
        """How many watches are open."""
        return len(self._watchers)

    def requests(self, method: str, *, watch: bool = False) -> list[Seen]:
        """What arrived, in order."""
        return [seen for seen in self.seen if seen.method == method and ("watch" in seen.query) == watch]

    def put(self, resource: Resource, namespace: str | None, name: str, **fields: Any) -> dict[str, Any]:
        """Create or change an object, as somebody else would."""
        where = {"namespace": namespace} if namespace else {}
        metadata = {**where, "name": name, **fields.pop("metadata", {})}
        obj = self.memory.put(
            {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **fields}
        )
        self._tell()
        return obj

    def remove(self, resource: Resource, namespace: str | None, name: str) -> None:
        """Delete an object."""
        self.memory.remove((resource.kind, namespace or "", name))
        self._tell()

    def restore(self, version: int) -> None:
        """Go back in time with the objects that are there, as a restore from a backup does."""
        memory = self.memory
        memory.version = version
        self._forget()
        for key, obj in memory.objects.items():
            memory.objects[key] = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version)}}

    def compact(self) -> None:
        """Forget the history: older positions are answered with 410."""
        self._oldest = self.version
        self._forget()

    def end_watches(self) -> None:
        """Let all watches end in an orderly way."""
        self.send(None)

    def send(self, line: bytes | None) -> None:
        """Send raw bytes to all watches; None ends them."""
        for watcher in self._watchers:
            watcher.lines.put_nowait(line)

    def send_event(self, kind: str, obj: dict[str, Any]) -> None:
        """Send an event that is not in the history."""
        self.send(_line(kind, obj))

    def freeze(self) -> None:
        """Take connections and requests, and answer none."""
        self._running.clear()

    def thaw(self) -> None:
        """Answer again."""
        self._running.set()

    def _forget(self) -> None:
        self.memory.changes.clear()
        self._told = 0

    def _tell(self) -> None:
        """Send to watches what has changed since."""
        changes = self.memory.changes
        for kind, obj in changes[self._told :]:
            for watcher in self._watchers:
                if watcher.sees(obj):
                    watcher.lines.put_nowait(_line(kind, obj))
        self._told = len(changes)

    def _at(self, path: str) -> Object | None:
        return next((obj for obj in self.memory.objects.values() if _path(obj) == path), None)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        decoded = orjson.loads(body) if body else None
        self.seen.append(Seen(request.method, request.path, dict(request.query), dict(request.headers), decoded))
        await self._running.wait()
        if self.intercept is not None and (answer := await self.intercept(request)) is not None:
            return answer
        if request.method == "GET":
            if "watch" in request.query:
                return await self._watch(request)
            if (found := self._at(request.path)) is not None:
                return web.json_response(found)
            if request.path.rsplit("/", 1)[-1].endswith("s"):
                return self._list(request)
            return status(404, "NotFound", f"{request.path} not found")
        try:
            return self._write(request, decoded or {})
        except ApiError as error:
            return status(error.status, error.reason, error.message)
        finally:
            self._tell()

    def _list(self, request: web.Request) -> web.Response:
        selector = request.query.get("labelSelector")
        found = self._found(request.path, selector)
        metadata = {"resourceVersion": str(self.version)}
        # As a real server does, leave apiVersion and kind out of the items.
        items = [{name: value for name, value in obj.items() if name not in ("apiVersion", "kind")} for obj in found]
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion", self.version))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if since < self._oldest:
            error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return web.Response(body=_line("ERROR", error))
        watcher = _Watcher(request.path, request.query.get("labelSelector"))
        for kind, obj in self.memory.changes:
            if int(obj["metadata"]["resourceVersion"]) > since and watcher.sees(obj):
                watcher.lines.put_nowait(_line(kind, obj))
        self._watchers.add(watcher)
        try:
            await response.prepare(request)
            while True:
                line: bytes | None
                try:
                    async with asyncio.timeout(self.bookmark_every):
                        line = await watcher.lines.get()
                except TimeoutError:
                    mark = {"kind": "x", "metadata": {"resourceVersion": str(self.version)}}
                    line = _line("BOOKMARK", mark)
                await self._running.wait()
                if line is None:
                    break
                await response.write(line)
        except ConnectionError:
            pass
        finally:
            self._watchers.discard(watcher)
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    def _found(self, collection: str, selector: str | None) -> list[Object]:
        """Objects of a collection in the order of their paths."""
        wanted = _Watcher(collection, selector)
        return sorted(filter(wanted.sees, self.memory.objects.values()), key=_path)

    def _write(self, request: web.Request, body: Object) -> web.Response:
        if request.method == "POST":
            return web.json_response(self.memory.create(body), status=201)
        if request.method == "PATCH":
            path = request.path.removesuffix("/status")
            known = self._at(path) is not None
            subresource = None if path == request.path else "status"
            answer = self.memory.patch(body, request.query["fieldManager"], subresource)
            return web.json_response(answer, status=200 if known else 201)
        obj = self._at(request.path)
        if obj is None:
            return status(404, "NotFound", f"{request.path} not found")
        metadata, meant = obj["metadata"], body.get("preconditions") or {}
        key = (obj["kind"], metadata.get("namespace", ""), metadata["name"])
        self.memory.remove(key, uid=meant.get("uid"), resource_version=meant.get("resourceVersion"))
        return web.json_response({"kind": "Status", "status": "Success"})


def _line(kind: str, obj: Object) -> bytes:
    return orjson.dumps({"type": kind, "object": obj}) + b"\n"


def _path(obj: Object) -> str:
    return resource_of(obj).path(obj["metadata"].get("namespace"), obj["metadata"]["name"])


def _within(path: str, collection: str) -> bool:
    """True if the object at ``path`` is in ``collection``, of one namespace or of all."""
    return collection + "/" in (
        path[: len(collection) + 1],
        re.sub(r"/namespaces/[^/]+", "", path)[: len(collection) + 1],
    )


def _matches(obj: dict[str, Any], selector: str | None) -> bool:
    if not selector:
        return True
    name, _, value = selector.partition("=")
    return (obj["metadata"].get("labels") or {}).get(name) == value
