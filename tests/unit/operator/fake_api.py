"""An API server in this process, over real HTTP, that can be told to fail in every way that a real one does.

It keeps objects and their history, lists in pages, watches with bookmarks, and knows nothing of schemas. What a real
one makes of an apply is tested against a real one.
"""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from rm_operator.kube.auth import Connection
from rm_operator.kube.resources import Resource

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
        self.version = 100
        self.bookmark_every: float | None = None
        self.offers_streams = False
        """Whether a watch may begin with everything that there is."""
        self._objects: dict[str, dict[str, Any]] = {}
        self._history: list[tuple[int, str, str, dict[str, Any]]] = []
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
    def watching(self) -> int:
        """How many watches are open."""
        return len(self._watchers)

    def requests(self, method: str, *, watch: bool = False) -> list[Seen]:
        """What arrived, in order."""
        asked = (seen for seen in self.seen if "sendInitialEvents" not in seen.query)
        return [seen for seen in asked if seen.method == method and ("watch" in seen.query) == watch]

    @property
    def streams(self) -> list[Seen]:
        """Watches that were to begin with everything that there is."""
        return [seen for seen in self.seen if "sendInitialEvents" in seen.query]

    def put(self, resource: Resource, namespace: str | None, name: str, **fields: Any) -> dict[str, Any]:
        """Create or change an object, as somebody else would."""
        path = resource.path(namespace, name)
        old = self._objects.get(path)
        self.version += 1
        metadata = {
            "name": name,
            "uid": old["metadata"]["uid"] if old else f"uid-{self.version}",
            **({"namespace": namespace} if namespace else {}),
            **fields.pop("metadata", {}),
            "resourceVersion": str(self.version),
        }
        obj = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **fields}
        self._objects[path] = obj
        self._record("MODIFIED" if old else "ADDED", path, obj)
        return obj

    def remove(self, resource: Resource, namespace: str | None, name: str) -> None:
        """Delete an object."""
        path = resource.path(namespace, name)
        obj = self._objects.pop(path)
        self.version += 1
        gone = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        self._record("DELETED", path, gone)

    def restore(self, version: int) -> None:
        """Go back in time with the objects that are there, as a restore from a backup does."""
        self.version = version
        self._history.clear()
        for obj in self._objects.values():
            obj["metadata"]["resourceVersion"] = str(version)

    def compact(self) -> None:
        """Forget the history: older positions are answered with 410."""
        self._oldest = self.version
        self._history.clear()

    def end_watches(self) -> None:
        """Let all watches end in an orderly way."""
        self.send(None)

    def send(self, line: bytes | None) -> None:
        """Send raw bytes to all watches; None ends them."""
        for watcher in self._watchers:
            watcher.lines.put_nowait(line)

    def send_event(self, kind: str, obj: dict[str, Any]) -> None:
        """Send an event that is not in the history."""
        self.send(orjson.dumps({"type": kind, "object": obj}) + b"\n")

    def freeze(self) -> None:
        """Take connections and requests, and answer none."""
        self._running.clear()

    def thaw(self) -> None:
        """Answer again."""
        self._running.set()

    def _record(self, kind: str, path: str, obj: dict[str, Any]) -> None:
        self._history.append((self.version, kind, path, obj))
        line = orjson.dumps({"type": kind, "object": obj}) + b"\n"
        for watcher in self._watchers:
            if _within(path, watcher.collection) and _matches(obj, watcher.selector):
                watcher.lines.put_nowait(line)

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
            if request.path in self._objects:
                return web.json_response(self._objects[request.path])
            if request.path.rsplit("/", 1)[-1].endswith("s"):
                return self._list(request)
            return status(404, "NotFound", f"{request.path} not found")
        if request.method == "POST":
            return self._create(request, decoded or {})
        if request.method == "PATCH":
            return self._apply(request, decoded or {})
        return self._delete(request, decoded)

    def _list(self, request: web.Request) -> web.Response:
        selector = request.query.get("labelSelector")
        paths = sorted(
            path for path, obj in self._objects.items() if _within(path, request.path) and _matches(obj, selector)
        )
        start, version = 0, self.version
        if token := request.query.get("continue"):
            start, version = (int(part) for part in token.split(":"))
            if version < self._oldest:
                return status(410, "Expired", "The provided continue parameter is too old")
        limit = int(request.query.get("limit", 0)) or len(paths) or 1
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if start + limit < len(paths):
            metadata["continue"] = f"{start + limit}:{version}"
        # As a real server does, leave apiVersion and kind out of the items.
        items = [
            {name: value for name, value in self._objects[path].items() if name not in ("apiVersion", "kind")}
            for path in paths[start : start + limit]
        ]
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if "sendInitialEvents" in request.query:
            if not self.offers_streams:
                return status(422, "Invalid", "sendInitialEvents is forbidden for watch unless WatchList is enabled")
            assert request.query["resourceVersionMatch"] == "NotOlderThan"
        since = int(request.query.get("resourceVersion", self.version))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if since < self._oldest:
            error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return web.Response(body=orjson.dumps({"type": "ERROR", "object": error}) + b"\n")
        watcher = _Watcher(request.path, request.query.get("labelSelector"))
        if "sendInitialEvents" in request.query:
            for path, obj in sorted(self._objects.items()):
                if _within(path, watcher.collection) and _matches(obj, watcher.selector):
                    watcher.lines.put_nowait(orjson.dumps({"type": "ADDED", "object": obj}) + b"\n")
            metadata = {"resourceVersion": str(since), "annotations": {"k8s.io/initial-events-end": "true"}}
            watcher.lines.put_nowait(orjson.dumps({"type": "BOOKMARK", "object": {"metadata": metadata}}) + b"\n")
        for version, kind, path, obj in self._history:
            if version > since and _within(path, watcher.collection) and _matches(obj, watcher.selector):
                watcher.lines.put_nowait(orjson.dumps({"type": kind, "object": obj}) + b"\n")
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
                    line = orjson.dumps({"type": "BOOKMARK", "object": mark}) + b"\n"
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

    def _create(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        path = f"{request.path}/{body['metadata']['name']}"
        if path in self._objects:
            return status(409, "AlreadyExists", f"{path} already exists")
        return web.json_response(self._store(path, body), status=201)

    def _apply(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        path = request.path.removesuffix("/status")
        old = self._objects.get(path)
        wanted = body["metadata"].get("resourceVersion")
        if old is not None and wanted and wanted != old["metadata"]["resourceVersion"]:
            return status(409, "Conflict", "the object has been modified")
        if path != request.path:
            if old is None:
                return status(404, "NotFound", f"{path} not found")
            body = {**old, "status": body["status"]}
        return web.json_response(self._store(path, body), status=200 if old else 201)

    def _delete(self, request: web.Request, options: dict[str, Any] | None) -> web.Response:
        obj = self._objects.get(request.path)
        if obj is None:
            return status(404, "NotFound", f"{request.path} not found")
        for name, value in ((options or {}).get("preconditions") or {}).items():
            if obj["metadata"][name] != value:
                return status(409, "Conflict", f"the {name} in the precondition does not match")
        self.version += 1
        del self._objects[request.path]
        gone = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        self._record("DELETED", request.path, gone)
        return web.json_response({"kind": "Status", "status": "Success"})

    def _store(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        old = self._objects.get(path)
        if old is not None and {**old, **body, "metadata": {**old["metadata"], **body["metadata"]}} == old:
            return old  # as a real server: what changes nothing is no new version
        self.version += 1
        uid = old["metadata"]["uid"] if old else f"uid-{self.version}"
        metadata = {**body["metadata"], "uid": uid, "resourceVersion": str(self.version)}
        obj = {**(old or {}), **body, "metadata": metadata}
        self._objects[path] = obj
        self._record("MODIFIED" if old else "ADDED", path, obj)
        return obj


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
