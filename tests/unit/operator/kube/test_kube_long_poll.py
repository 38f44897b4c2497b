"""The long poll against servers that hold, that do not, and that answer in every way they should not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from rm_operator.kube import long_poll
from rm_operator.kube.long_poll import LongPoll
from waiting import eventually

MOST = 1000


class Heard:
    """A follower that remembers what it was told."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.unchanged_times = 0
        self.problems: list[str] = []
        self.seconds = 0.0

    def said(self, body: bytes) -> bool:
        news = self.bodies[-1:] != [body]
        self.bodies.append(body)
        return news

    def unchanged(self) -> None:
        self.unchanged_times += 1

    def failed(self, problem: str, seconds: float) -> None:
        self.problems.append(problem)
        self.seconds = seconds


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_SECONDS", "UNHELD_SECONDS", "FIRST_BACKOFF_SECONDS", "MAX_BACKOFF_SECONDS"):
        monkeypatch.setattr(long_poll, name, 0.01)


@asynccontextmanager
async def _raw(answer: Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """A server that reads a request and does ``answer``; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(await reader.readuntil(b"\r\n\r\n"), writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def _following(port: int, path: str = "/r") -> AsyncIterator[Heard]:
    heard = Heard()
    poll = LongPoll("127.0.0.1", port, path, heard, most=MOST)
    poll.start()
    try:
        yield heard
    finally:
        poll.stop()


def _writes(*parts: bytes) -> Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    return answer


async def test_a_server_that_holds_is_asked_once_for_each_change() -> None:
    document, changed, asked = b"one", asyncio.Event(), 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        tag = f'"{document.decode()}"'
        if request.headers.get("If-None-Match") == tag:
            assert request.headers["Prefer"] == "wait=60"
            await changed.wait()
            tag = f'"{document.decode()}"'
        return web.Response(body=document, headers={"ETag": tag})

    app = web.Application()
    app.router.add_get("/r", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with _following(runner.addresses[0][1]) as heard:
            await eventually(lambda: asked == 2, "it waits for a change")
            assert heard.bodies == [b"one"]
            document = b"two"
            changed.set()
            changed.clear()
            await eventually(lambda: asked == 3, "it waits for the next one")
            assert heard.bodies == [b"one", b"two"]
            assert heard.problems == []
    finally:
        changed.set()
        await runner.cleanup()


async def test_a_server_that_does_not_hold_is_not_asked_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_poll, "UNHELD_SECONDS", 3600.0)
    requests: list[bytes] = []

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        requests.append(request)
        head = b'HTTP/1.1 304 Not Modified\r\netag: "a"\r\n\r\n' if b"If-None-Match" in request else b""
        writer.write(head or b'HTTP/1.1 200 OK\r\netag: "a"\r\n\r\nbody')

    async with _raw(answer) as port, _following(port) as heard:
        await eventually(lambda: heard.unchanged_times == 1, "it was told that nothing is new")
        assert heard.bodies == [b"body"]
        assert len(requests) == 2
        assert b"If-None-Match" not in requests[0]
        assert b'If-None-Match: "a"\r\n' in requests[1]
        assert all(request.startswith(b"GET /r HTTP/1.0\r\nHost: 127.0.0.1:") for request in requests)


async def test_nor_one_without_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_poll, "UNHELD_SECONDS", 3600.0)
    async with _raw(_writes(b"HTTP/1.0 200 OK\r\n\r\nbody")) as port, _following(port) as heard:
        await eventually(lambda: heard.bodies == [b"body", b"body"], "the same was said twice")


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody and more",),
        (b"HTTP/1.0 200 OK\r\n\r\nbody",),
        (b"HTTP/1.0 200\r\nTransfer-Encoding: identity\r\n\r\n", b"bo", b"dy"),
        (b"HT", b"TP/1.1 200 OK\r\nContent-Le", b"ngth: 4\r\n\r", b"\nb", b"ody"),
    ],
)
async def test_an_answer_in_any_form_and_in_any_parts(parts: tuple[bytes, ...]) -> None:
    async with _raw(_writes(*parts)) as port, _following(port) as heard:
        await eventually(lambda: heard.bodies != [], "the answer is there")
        assert heard.bodies[0] == b"body"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((), "the connection ended"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbody",), "ended before the answer did"),
        ((b"HTTP/1.1 20",), "ended before the answer did"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n\r\n",), "does not speak HTTP"),
        ((b"x" * 20000,), "does not speak HTTP"),
        ((b"HTTP/1.1 OK 200\r\n\r\n",), "does not speak HTTP"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n",), "Content-Length '-4'"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",), "more than 1000 bytes"),
        ((b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1001), "more than 1000 bytes"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody",), "chunked"),
        ((b"HTTP/1.1 404 Not Found\r\n\r\n",), "it answered 404"),
        ((b"HTTP/1.1 304 Not Modified\r\n\r\n",), "it answered 304"),
        ((b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",), "it answered 302"),
        ((b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",), "it answered 500"),
    ],
)
async def test_what_is_no_answer_is_said_and_asked_again(parts: tuple[bytes, ...], said: str) -> None:
    async with _raw(_writes(*parts)) as port, _following(port) as heard:
        await eventually(lambda: len(heard.problems) > 2, "it failed and was asked again")
        assert said in heard.problems[0]
        assert heard.bodies == []
        assert heard.seconds > 0


async def test_nobody_listens() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with _following(port) as heard:
        await eventually(lambda: len(heard.problems) > 1, "it failed")
        assert heard.problems[0] == "Connection refused"


async def test_a_server_that_says_nothing_is_left_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_poll, "ANSWER_SECONDS", 0.1)
    release = asyncio.Event()

    async def silent(_: bytes, __: asyncio.StreamWriter) -> None:
        await release.wait()

    async with _raw(silent) as port, _following(port) as heard:
        await eventually(lambda: len(heard.problems) > 1, "it was left")
        assert "no answer within" in heard.problems[0]
        release.set()


async def test_after_a_failure_it_is_as_before() -> None:
    answers = [b"", b"HTTP/1.1 500 X\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nbody"]

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answers.pop(0) if len(answers) > 1 else answers[0])

    async with _raw(answer) as port, _following(port) as heard:
        await eventually(lambda: len(heard.bodies) > 1, "it answers")
        assert len(heard.problems) == 2


async def test_who_has_stopped_is_told_nothing() -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbody")

    async with _raw(answer) as port:
        async with _following(port) as heard:
            await asked.wait()
        release.set()
        await asyncio.sleep(0.05)
        assert (heard.bodies, heard.problems) == ([], [])


@pytest.mark.parametrize("address", ["example.com", "", "127.0.0.1:80", "999.1.1.1"])
def test_names_are_not_looked_up(address: str) -> None:
    with pytest.raises(ValueError, match="IPv4 or IPv6"):
        LongPoll(address, 1, "/", Heard(), most=MOST)
