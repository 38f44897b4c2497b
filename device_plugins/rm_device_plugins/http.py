"""The little HTTP that the plugin speaks: its report, probes and metrics, all of them GET."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from http import HTTPStatus

from rm_device_plugins.logs import Log

log = Log("http")

REQUEST_SECONDS = 5.0
MAX_REQUEST_BYTES = 16384

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[int, str, bytes]
"""Status, media type, body."""


def json_answer(status: int, body: object) -> Answer:
    """``body`` as JSON."""
    return status, JSON, json.dumps(body, ensure_ascii=False).encode() + b"\n"


class HttpServer:
    """Answers GET and HEAD for a table of paths; one request a connection."""

    def __init__(self, routes: dict[str, Callable[[], Answer]]) -> None:
        self._routes = routes
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
        """Stops listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(REQUEST_SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._respond(head))
                    await writer.drain()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _respond(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            method, (status, kind, body) = "GET", (400, TEXT, b"not an HTTP request\n")
        else:
            method = words[0]
            status, kind, body = self._answer(method, words[1].split("?", 1)[0])
        lines = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
        )
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else body)

    def _answer(self, method: str, path: str) -> Answer:
        route = self._routes.get(path)
        if route is None:
            return 404, TEXT, f"not found; there are {' '.join(sorted(self._routes))}\n".encode()
        if method not in ("GET", "HEAD"):
            return 405, TEXT, b"only GET\n"
        try:
            return route()
        except Exception as error:
            log.error("no answer", path=path, cause=repr(error))
            return 500, TEXT, b"internal error\n"
