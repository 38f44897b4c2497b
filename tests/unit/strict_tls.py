"""Whether a client that takes nothing on trust believes a server."""

import socket
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path


def assert_believed(data: Mapping[str, bytes], host: str, directory: Path) -> None:
    """That who believes ``ca.crt`` alone believes that a server with ``tls.crt`` and ``tls.key`` is ``host``."""
    for name in ("tls.crt", "tls.key"):
        (directory / name).write_bytes(data[name])
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    trusting = ssl.create_default_context(cadata=data["ca.crt"].decode())
    # As every client of Python 3.13 is.
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    served, asked = socket.socketpair()

    def serve() -> None:
        with served, serving.wrap_socket(served, server_side=True) as connection:
            connection.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    with asked, trusting.wrap_socket(asked, server_hostname=host) as connection:
        assert connection.recv(5) == b"hello"
    thread.join()
