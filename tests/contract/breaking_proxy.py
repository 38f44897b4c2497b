"""A proxy between a client and a real server, whose connections break after so many bytes of answers."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class BreakingProxy:
    """A proxy, and what it did."""

    host: str
    cut_after: int | None = None
    """Bytes that the server may send over one connection before it breaks; None for any number."""
    broken: int = 0
    """Connections that were broken."""


@contextmanager
def breaking_proxy(target: str) -> Iterator[BreakingProxy]:
    """Start a proxy to the server at ``target`` (``host:port``)."""
    host, _, port = target.partition(":")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as server:
                back = threading.Thread(target=self._answers, args=(server,), daemon=True)
                back.start()
                with suppress(OSError):
                    while data := self.request.recv(65536):
                        server.sendall(data)
                    server.shutdown(socket.SHUT_WR)
                back.join()

        def _answers(self, server: socket.socket) -> None:
            sent = 0
            with suppress(OSError):
                while data := server.recv(65536):
                    left = None if proxy.cut_after is None else proxy.cut_after - sent
                    if left is not None and left < len(data):
                        self.request.sendall(data[: max(0, left)])
                        proxy.broken += 1
                        break
                    self.request.sendall(data)
                    sent += len(data)
            for each in (self.request, server):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as listener:
        proxy = BreakingProxy(f"127.0.0.1:{listener.server_address[1]}")
        threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield proxy
        listener.shutdown()
