"""What the HTTP client sends requests by: as httpx2 does, but for how the bytes of a long body are received.

httpcore2 reads 64 KiB at a time, and h11 copies each piece several times over, which takes more of a processor than all
that is done with the bytes. In a body of a known length there is nothing to be parsed, so it is read as it comes.
"""

import ipaddress
import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.request import getproxies

import httpcore2
import httpx2

LONG: Final = 4 << 20
"""Bytes from which on a body is long. Its connection is not used again, as the HTTP library does not see its end."""
_PIECE: Final = 1 << 20
"""Bytes that are read at a time, at most."""
_LARGE: Final = _PIECE >> 2
"""Bytes from which on a piece is handed on. TLS gives 16 KiB at a time, and to hand these on would take longer than to
use them."""
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_ERRORS: Final[dict[type[Exception], type[httpx2.TransportError]]] = {
    getattr(httpcore2, kind.__name__): kind
    for kind in (
        httpx2.ConnectTimeout, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout, httpx2.ConnectError,
        httpx2.ReadError, httpx2.WriteError, httpx2.LocalProtocolError, httpx2.RemoteProtocolError, httpx2.ProxyError,
        httpx2.UnsupportedProtocol,
    )
}  # fmt: skip
"""What httpcore2 raises, which has the names of what httpx2 raises."""


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except tuple(_ERRORS) as error:
        raise _ERRORS[type(error)](str(error)) from error


class _Stream(httpcore2.NetworkStream):
    """A connection on which the head of an answer is read by itself: nothing that follows comes along with its end.

    So whoever is told the head can read the body from here, and knows that it is all here.
    """

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream
        self._held = b""
        self._last = b""
        self._in_head = False

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send. What is received next is the head of an answer."""
        self._in_head, self._last = True, b""
        self._stream.write(buffer, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most ``max_bytes``."""
        data = self._held[:max_bytes] or self._stream.read(max_bytes, timeout)
        self._held = self._held[max_bytes:]
        if not self._in_head:
            return data
        end = _END_OF_HEAD.search(self._last + data)
        if end is None:
            self._last = (self._last + data)[-2:]
            return data
        size = end.end() - len(self._last)
        self._held, self._last = data[size:] + self._held, b""
        return data[:size]

    def end_head(self) -> None:
        """There is no further head: the last one was not that of an interim answer."""
        self._in_head = False

    def body(self, length: int, timeout: float | None) -> Iterator[bytes]:
        """``length`` bytes in large pieces. Where there are fewer, raises RemoteProtocolError after them."""
        left, held, size = length, list[bytes](), 0
        try:
            while left:
                piece = self.read(min(left, _PIECE), timeout)
                if not piece:
                    raise httpcore2.RemoteProtocolError(
                        f"the connection was closed after {length - left} of {length} bytes"
                    )
                left -= len(piece)
                held.append(piece)
                size += len(piece)
                if size >= _LARGE or not left:
                    yield b"".join(held)
                    held, size = [], 0
        except tuple(_ERRORS):
            if held:
                yield b"".join(held)
            raise

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """The connection with TLS on it."""
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """What the connection says of itself."""
        return True if info == "is_readable" and self._held else self._stream.get_extra_info(info)


class _Network(httpcore2.SyncBackend):
    """Makes connections."""

    def connect_tcp(self, *arguments: Any, **named: Any) -> httpcore2.NetworkStream:
        """See the base class."""
        return _Stream(super().connect_tcp(*arguments, **named))


class _Body(httpx2.SyncByteStream):
    """The body of an answer, and the connection that it comes over."""

    def __init__(self, pieces: Iterable[bytes], answer: httpcore2.Response) -> None:
        self._pieces = pieces
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _errors():
            yield from self._pieces

    def close(self) -> None:
        """Give the connection back."""
        with _errors():
            self._answer.close()


class Transport(httpx2.BaseTransport):
    """Sends requests to the hosts of their URLs, or to a proxy."""

    def __init__(self, context: ssl.SSLContext, proxy: str | None = None) -> None:
        by = httpx2.Proxy(proxy) if proxy else None
        self._pool = httpcore2.ConnectionPool(
            ssl_context=context,
            proxy=httpcore2.Proxy(str(by.url), by.raw_auth) if by else None,
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_Network(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """See the base class."""
        url = request.url
        with _errors():
            answer = self._pool.handle_request(
                httpcore2.Request(
                    request.method,
                    httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        pieces, stream = answer.iter_stream(), answer.extensions.get("network_stream")
        if isinstance(stream, _Stream):
            stream.end_head()
            length = _length(request.method, answer)
            if length >= LONG:
                pieces = stream.body(length, request.extensions.get("timeout", {}).get("read"))
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=_Body(pieces, answer), extensions=answer.extensions
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


def _length(method: str, answer: httpcore2.Response) -> int:
    """Bytes of the body, where the head says just that; 0 where it does not, or there may be none."""
    said = [value for name, value in answer.headers if name.lower() in (b"content-length", b"transfer-encoding")]
    if method != "GET" or answer.status not in (200, 206) or len(said) != 1 or not said[0].isdigit():
        return 0
    return int(said[0])


def proxies() -> dict[str, str | None]:
    """The proxies that the environment names, and the hosts that are reached without one (None), by httpx2's patterns.

    What is no host, address or network in NO_PROXY counts for nothing, and ``*`` for all.
    """
    named = getproxies()
    found: dict[str, str | None] = {}
    for scheme in ("http", "https", "all"):
        if proxy := named.get(scheme):
            found[f"{scheme}://"] = proxy if "://" in proxy else f"http://{proxy}"
    for entry in filter(None, (each.strip() for each in named.get("no", "").split(","))):
        if entry == "*":
            return {}
        if pattern := _pattern(entry):
            found[pattern] = None
    return found


def _pattern(entry: str) -> str:
    """An entry of NO_PROXY as a pattern of httpx2, or nothing."""
    try:
        network = ipaddress.ip_network(re.sub(r"^\[(.*)\](?!:)", r"\1", entry), strict=False)
    except ValueError:
        pass
    else:
        address = f"[{network.network_address}]" if network.version == 6 else str(network.network_address)
        return f"all://{address}" + ("" if network.prefixlen == network.max_prefixlen else f"/{network.prefixlen}")
    whole = entry[0] in "*[" or entry.lower() == "localhost"
    pattern = entry if "://" in entry else f"all://{'' if whole else '*'}{entry}"
    try:
        return pattern if not httpx2.URL(pattern).path.strip("/") else ""
    except httpx2.InvalidURL:
        return ""
