"""Follows one small document of an HTTP server: asks again and again, and is answered when there is something new.

For thousands of servers at the same time: one connection each, held by the server (RFC 7240, ``Prefer: wait``) for as
long as nothing changes. A general client keeps some 20 KiB for each of them, this one 4. It speaks HTTP/1.0, so that an
answer is what its Content-Length says or what comes until the end, and nothing else.
"""

import asyncio
import os
import random
from ipaddress import ip_address
from typing import Final, Protocol

WAIT_SECONDS: Final = 60
"""How long the server is asked to wait for a change."""
CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = WAIT_SECONDS + 20.0
PAUSE_SECONDS: Final = 1.0
"""Between two questions at least, however often the document changes."""
UNHELD_SECONDS: Final = 15.0
"""Between two questions to a server that answers at once though nothing is new."""
FIRST_BACKOFF_SECONDS: Final = 1.0
MAX_BACKOFF_SECONDS: Final = 60.0
MAX_HEAD_BYTES: Final = 16384

_random: Final = random.Random().random  # noqa: S311 - jitter


class Follower(Protocol):
    """Told what a server answers."""

    def said(self, body: bytes) -> bool:
        """The document is this; returns whether that is news."""
        ...

    def unchanged(self) -> None:
        """The document is as it was said last."""
        ...

    def failed(self, problem: str, seconds: float) -> None:
        """There was no usable answer, nor has there been one for ``seconds``."""
        ...


class LongPoll:
    """One document at ``http://address:port path``, of at most ``most`` bytes, for the running loop's thread.

    ``address`` is an IP address. Raises ValueError for anything else: names are not looked up.
    """

    __slots__ = (
        "_address",
        "_asked_at",
        "_connecting",
        "_etag",
        "_exchange",
        "_failing_since",
        "_failures",
        "_follower",
        "_most",
        "_path",
        "_port",
        "_running",
        "_timer",
    )

    def __init__(self, address: str, port: int, path: str, follower: Follower, *, most: int) -> None:
        self._address = str(ip_address(address))
        self._port = port
        self._path = path
        self._follower = follower
        self._most = most
        self._etag = ""
        self._failures = 0
        self._failing_since: float | None = None
        self._asked_at = 0.0
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._exchange: _Exchange | None = None

    def start(self, after: float = 0.0) -> None:
        """Ask for the first time in ``after`` seconds, and from then on until ``stop``."""
        self._running = True
        self._again(after)

    def stop(self) -> None:
        """Never ask again, and forget the answer that may be on its way. The follower is told nothing more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._exchange is not None:
            self._exchange.drop()
        self._timer = self._connecting = self._exchange = None

    def _again(self, after: float) -> None:
        if self._running:
            self._timer = asyncio.get_running_loop().call_later(after, self._ask)

    def _ask(self) -> None:
        self._timer = None
        self._asked_at = asyncio.get_running_loop().time()
        self._connecting = asyncio.create_task(self._connect(), name="long poll")

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._exchange = exchange = _Exchange(self, self._request(), self._most)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await loop.create_connection(lambda: exchange, self._address, self._port)
        except TimeoutError:
            exchange.fail(f"no connection within {CONNECT_SECONDS:.0f} s")
        except OSError as error:
            exchange.fail(_said(error))
        finally:
            if self._connecting is asyncio.current_task():
                self._connecting = None

    def _request(self) -> bytes:
        host = f"[{self._address}]" if ":" in self._address else self._address
        lines = [f"GET {self._path} HTTP/1.0", f"Host: {host}:{self._port}", "Accept: application/json"]
        if self._etag:
            lines += [f"If-None-Match: {self._etag}", f"Prefer: wait={WAIT_SECONDS}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _answered(self, status: int, etag: str, body: bytes) -> None:
        self._exchange = None
        took = asyncio.get_running_loop().time() - self._asked_at
        if status == 200:
            self._etag = etag
            news = self._follower.said(body)
        elif status == 304 and self._etag:
            news = False
            self._follower.unchanged()
        else:
            self._etag = ""
            self._failed(f"it answered {status}")
            return
        self._failures, self._failing_since = 0, None
        if news:
            self._again(max(0.0, PAUSE_SECONDS - took))
        elif took < UNHELD_SECONDS:
            self._again(UNHELD_SECONDS * (0.75 + _random() / 2) - took)
        else:
            self._again(0.0)

    def _failed(self, problem: str) -> None:
        self._exchange = None
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = self._asked_at
        self._failures += 1
        seconds = min(FIRST_BACKOFF_SECONDS * 2 ** min(self._failures - 1, 10), MAX_BACKOFF_SECONDS)
        self._again(seconds * (0.5 + _random() / 2))
        self._follower.failed(problem, now - self._failing_since)


class _Exchange(asyncio.Protocol):
    """One question and its answer."""

    __slots__ = ("_buffer", "_deadline", "_length", "_most", "_poll", "_request", "_start", "_transport", "_word")

    def __init__(self, poll: LongPoll, request: bytes, most: int) -> None:
        self._poll: LongPoll | None = poll
        self._request = request
        self._most = most
        self._buffer = b""
        self._word: tuple[int, str] | None = None
        """Status and ETag, once the head is there."""
        self._start = 0
        self._length: int | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._poll is None:
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(ANSWER_SECONDS, self.fail, f"no answer within {ANSWER_SECONDS:.0f} s")
        transport.write(self._request)
        self._request = b""

    def data_received(self, data: bytes) -> None:
        if self._poll is None:
            return
        self._buffer += data
        if self._word is None:
            self._read_head()
        if self._word is None or self._poll is None:
            return
        if self._word[0] == 304:
            self._finish(b"")
        elif len(self._buffer) - self._start > self._most or (self._length or 0) > self._most:
            self.fail(f"the answer has more than {self._most} bytes")
        elif self._length is not None and len(self._buffer) - self._start >= self._length:
            self._finish(self._buffer[self._start : self._start + self._length])

    def eof_received(self) -> bool:
        if self._poll is not None:
            if self._word is not None and self._length is None:
                self._finish(self._buffer[self._start :])
            else:
                self.fail("the connection ended before the answer did" if self._buffer else "the connection ended")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail("the connection was lost" if exc is None else _said(exc))

    def fail(self, problem: str) -> None:
        """There is no answer, unless there was one before."""
        poll = self._poll
        if poll is not None:
            self.drop()
            poll._failed(problem)

    def drop(self) -> None:
        """End the exchange; nobody is told."""
        self._poll = None
        self._buffer = b""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, body: bytes) -> None:
        poll, word = self._poll, self._word
        assert poll is not None
        assert word is not None
        self.drop()
        poll._answered(*word, body)

    def _read_head(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self.fail("what answers there does not speak HTTP")
            return
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isascii() or not words[1].isdigit():
            self.fail("what answers there does not speak HTTP")
            return
        etag = ""
        for line in lines:
            name, _, value = line.partition(":")
            name, value = name.strip().lower(), value.strip()
            if name == "etag":
                etag = value
            elif name == "content-length":
                if not value.isascii() or not value.isdigit():
                    self.fail(f"the answer has the Content-Length {value[:64]!r}")
                    return
                self._length = int(value)
            elif name == "transfer-encoding" and value.lower() != "identity":
                self.fail(f"the answer is {value[:64]}, though it was asked for by HTTP/1.0")
                return
        self._word = int(words[1][:4]), etag
        self._start = end + 4


def _said(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else str(error) or type(error).__name__
