"""The little HTTP that the plugin speaks: its report, probes and metrics, all of them GET.

Whoever wants to know of changes asks for the report with the tag of the one that it has and ``Prefer: wait=SECONDS``,
and gets the next one when there is one. A waiting client costs a connection and nothing else; it is forgotten when it
goes away, and where too many wait, the one that has waited longest is told early that nothing has changed.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from rm_device_plugins.logs import Log

log = Log("http")

REQUEST_SECONDS = 5.0
MAX_REQUEST_BYTES = 16384
MAX_WAIT_SECONDS = 60.0
MAX_WAITERS = 64

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[int, str, bytes]
"""Status, media type, body."""

_WAIT = re.compile(r"wait\s*=\s*(\d{1,9})", re.IGNORECASE)


def json_body(body: object) -> bytes:
    """``body`` as JSON."""
    return json.dumps(body, ensure_ascii=False).encode() + b"\n"


class Document:
    """JSON that changes, with a tag that tells one content from another."""

    def __init__(self, render: Callable[[], object]) -> None:
        self._render = render
        self._waiters: dict[asyncio.Future[None], None] = {}
        self.body = b""
        self.tag = ""

    def refresh(self) -> None:
        """Renders it anew; whoever waits for another content is woken if it is one."""
        body = json_body(self._render())
        if body == self.body:
            return
        self.body = body
        self.tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self.release()

    def release(self) -> None:
        """Wakes all that wait."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    async def changed_from(self, tag: str, seconds: float) -> None:
        """Waits until the content is another one, the time is over, or too many others came after."""
        if self.tag != tag:
            return
        while len(self._waiters) >= MAX_WAITERS:
            first = next(iter(self._waiters))
            del self._waiters[first]
            if not first.done():
                first.set_result(None)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await asyncio.wait({waiter}, timeout=seconds)
        finally:
            self._waiters.pop(waiter, None)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str = ""
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, head: bytes) -> "_Request | None":
        first, *rest = head.decode("latin-1").rstrip().split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return None
        headers: dict[str, str] = {}
        for line in rest:
            name, _, value = line.partition(":")
            key = name.strip().lower()
            headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
        return cls(words[0], words[1].split("?", 1)[0], headers)

    def has(self, tag: str) -> bool:
        """Whether the client says that it has the content with ``tag`` already."""
        known = [each.strip().removeprefix("W/") for each in self.headers.get("if-none-match", "").split(",")]
        return tag in known or "*" in known

    @property
    def wait_seconds(self) -> float:
        """How long the client would wait for a change; 0 where it would not."""
        for preference in re.split("[,;]", self.headers.get("prefer", "")):
            if found := _WAIT.fullmatch(preference.strip()):
                return min(float(found.group(1)), MAX_WAIT_SECONDS)
        return 0.0


class HttpServer:
    """Answers GET and HEAD for a table of paths, and for documents that can be waited for; one request a connection."""

    def __init__(
        self, routes: Mapping[str, Callable[[], Answer]], documents: Mapping[str, Document] | None = None
    ) -> None:
        self._routes = routes
        self._documents = documents or {}
        self._server: asyncio.Server | None = None
        self.port = 0
        """The port that is listened on, once started."""

    async def start(self, port: int) -> None:
        """Listens on all addresses; port 0 takes a free one. Raises OSError if the port is taken."""
        if socket.has_dualstack_ipv6():
            listening = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            listening = socket.create_server(("", port))
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=MAX_REQUEST_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Stops listening, and answers those that wait."""
        if self._server is not None:
            self._server.close()
        for document in self._documents.values():
            document.release()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(REQUEST_SECONDS):
                    request = _Request.parse(await reader.readuntil(b"\r\n\r\n"))
                if request is None or await self._awaited(request, reader):
                    async with asyncio.timeout(REQUEST_SECONDS):
                        writer.write(self._respond(request))
                        await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _awaited(self, request: _Request, reader: asyncio.StreamReader) -> bool:
        """Waits as the client prefers; False if it has gone away meanwhile."""
        document = self._documents.get(request.path)
        if document is None or not request.wait_seconds:
            return True
        self._refresh(request.path, document)
        if not request.has(document.tag):
            return True
        gone = asyncio.ensure_future(_end_of(reader))
        change = asyncio.ensure_future(document.changed_from(document.tag, request.wait_seconds))
        try:
            done, _ = await asyncio.wait({gone, change}, return_when=asyncio.FIRST_COMPLETED)
            return change in done
        finally:
            for task in (gone, change):
                task.cancel()
            await asyncio.gather(gone, change, return_exceptions=True)

    def _refresh(self, path: str, document: Document) -> bool:
        try:
            document.refresh()
        except Exception as error:
            log.error("no answer", path=path, cause=repr(error))
            return False
        return True

    def _respond(self, request: _Request | None) -> bytes:
        extra: list[str] = []
        status, kind, body = 400, TEXT, b"not an HTTP request\n"
        if request is not None:
            document = self._documents.get(request.path)
            if document is not None and request.method in ("GET", "HEAD"):
                status, kind, body = self._document(request, document)
                extra = [f"ETag: {document.tag}"] if status != 500 else []
                if request.wait_seconds:
                    extra.append(f"Preference-Applied: wait={request.wait_seconds:g}")
            else:
                status, kind, body = self._answer(request.method, request.path)
        lines = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"Content-Type: {kind}",
            *([] if status == HTTPStatus.NOT_MODIFIED else [f"Content-Length: {len(body)}"]),
            f"Cache-Control: {'no-cache' if extra else 'no-store'}",
            *extra,
            "Connection: close",
        )
        bare = request is not None and request.method == "HEAD"
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if bare else body)

    def _document(self, request: _Request, document: Document) -> Answer:
        if not self._refresh(request.path, document):
            return 500, TEXT, b"internal error\n"
        if request.has(document.tag):
            return HTTPStatus.NOT_MODIFIED, JSON, b""
        return 200, JSON, document.body

    def _answer(self, method: str, path: str) -> Answer:
        route = self._routes.get(path)
        if route is None and path not in self._documents:
            paths = " ".join(sorted([*self._routes, *self._documents]))
            return 404, TEXT, f"not found; there are {paths}\n".encode()
        if route is None or method not in ("GET", "HEAD"):
            return 405, TEXT, b"only GET\n"
        try:
            return route()
        except Exception as error:
            log.error("no answer", path=path, cause=repr(error))
            return 500, TEXT, b"internal error\n"


async def _end_of(reader: asyncio.StreamReader) -> None:
    """Returns when the client has closed its side; what it says until then is of no interest."""
    with contextlib.suppress(OSError):
        while await reader.read(MAX_REQUEST_BYTES):
            pass
