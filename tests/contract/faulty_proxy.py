"""A proxy before a real registry that answers in its place, cuts connections, is slow, or lies, as it is told."""

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PIECE = 16 << 10
Headers = list[tuple[str, str]]


@dataclass
class Fault:
    """What goes wrong with requests of a method whose path is like ``path``, as often as ``times`` says."""

    method: str
    path: str
    times: int = 1
    status: int = 0
    """Answered in the registry's place."""
    location: str = ""
    """Where such an answer leads."""
    cut_request_after: int | None = None
    """Bytes of a request's body that reach the registry before the connections break."""
    cut_answer_after: int | None = None
    """Bytes of an answer's body that reach the client before the connections break."""
    wait: float = 0.0
    """Seconds before each piece of an answer."""
    lie: Callable[[Headers, bytes], tuple[Headers, bytes]] | None = None
    """Makes another answer of a registry's."""


@dataclass
class FaultyProxy:
    """The proxy, and what it was asked and did."""

    host: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    """Which parts of something were asked for."""
    credentials: int = 0
    """Requests that came with any."""
    received: int = 0
    """Bytes of bodies of requests that were passed on."""
    hits: int = 0
    """How often something went wrong."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault of a request, one time less from now on."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    self.hits += 1
                    return fault
        return None


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """Start a proxy to the registry at ``target`` (``host:port``)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, *_: object) -> None:
            pass

        def _pass(self) -> None:
            self.close_connection = True
            proxy.credentials += "Authorization" in self.headers
            proxy.ranges += filter(None, [self.headers.get("Range")])
            fault = proxy.take(self.command, self.path)
            if fault and fault.status:
                self._drain()
                where = [("Location", fault.location)] if fault.location else []
                self._answer(fault.status, where, b'{"errors":[{"code":"UNKNOWN","message":"so it was told"}]}')
                return
            upstream = http.client.HTTPConnection(target, timeout=60)
            with suppress(OSError, http.client.HTTPException):
                if self._forward(upstream, fault):
                    self._back(upstream, fault)
            upstream.close()

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815 (the names that the base class looks for)

        def _drain(self) -> None:
            left = int(self.headers.get("Content-Length") or 0)
            while left and (piece := self.rfile.read(min(left, _PIECE))):
                left -= len(piece)

        def _forward(self, upstream: http.client.HTTPConnection, fault: Fault | None) -> bool:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            left = int(self.headers.get("Content-Length") or 0)
            allowed = fault.cut_request_after if fault and fault.cut_request_after is not None else left
            while left:
                piece = self.rfile.read(min(left, _PIECE))
                if not piece:
                    return False
                upstream.send(piece[:allowed])
                proxy.received += len(piece[:allowed])
                left, allowed = left - len(piece), allowed - len(piece)
                if allowed < 0:
                    return False
            return True

        def _back(self, upstream: http.client.HTTPConnection, fault: Fault | None) -> None:
            response = upstream.getresponse()
            headers = [(n, v) for n, v in response.getheaders() if n.lower() not in ("connection", "date", "server")]
            if fault and fault.lie:
                headers, body = fault.lie(headers, response.read())
                self._answer(response.status, headers, body)
                return
            self._head(response.status, headers)
            sent = 0
            while self.command != "HEAD" and (piece := response.read(_PIECE)):
                if fault and fault.wait:
                    time.sleep(fault.wait)
                if fault and fault.cut_answer_after is not None and sent + len(piece) > fault.cut_answer_after:
                    self.wfile.write(piece[: fault.cut_answer_after - sent])
                    return
                self.wfile.write(piece)
                sent += len(piece)

        def _head(self, status: int, headers: Headers) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()

        def _answer(self, status: int, headers: Headers, body: bytes) -> None:
            kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
            size = next((value for name, value in headers if name.lower() == "content-length"), "0")
            self._head(status, [*kept, ("Content-Length", size if self.command == "HEAD" else str(len(body)))])
            if self.command != "HEAD":
                self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # connections that break are what this is for

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = FaultyProxy(f"127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield proxy
        server.shutdown()
