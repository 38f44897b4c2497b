"""The client of the Kubernetes API against servers that do not behave."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rm_device_plugins.config import ConfigError
from rm_device_plugins.dra import api
from rm_device_plugins.dra.api import ApiClient, ApiError, Server
from rm_local_cluster.pki import Authority

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A service account's directory, and what a server needs to be the one that it trusts."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory, "ca")
    pair = authority.issue("server", "kube-apiserver", hosts=["127.0.0.1"])
    (directory / "ca.crt").write_bytes(authority.pair.certificate.read_bytes())
    (directory / "token").write_text("first\n")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return directory, context


@asynccontextmanager
async def serving(tls: tuple[Path, ssl.SSLContext], handler: Handler) -> AsyncIterator[ApiClient]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls[1])
    async with server:
        yield ApiClient(Server("127.0.0.1", server.sockets[0].getsockname()[1], tls[0]), "tests")


def answering(*parts: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()

    return handle


def chunked(*chunks: bytes) -> bytes:
    body = b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in (*chunks, b""))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}trailing',
        b'HTTP/1.1 200 OK\r\n\r\n{"a":1}',
        chunked(b'{"a', b'":1}'),
        b'HTTP/1.1 201\r\ncontent-length: 7\r\nX: y\r\n\r\n{"a":1}',
    ],
)
async def test_an_answer_is_read_however_it_is_framed(tls: tuple[Path, ssl.SSLContext], answer: bytes) -> None:
    async with serving(tls, answering(answer)) as client:
        assert await client.get("/x", "y") == {"a": 1}
    async with serving(tls, answering(*(answer[at : at + 1] for at in range(len(answer))))) as client:
        assert await client.get("/x", "y") == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "says", "status"),
    [
        (b"", "0 bytes read", 0),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP/1.1", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "1 bytes read on a total of 9", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}", "invalid literal", 0),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{", "bytes read", 0),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "invalid literal", 0),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "limit", 0),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "more than 100 headers", 0),
        (b"HTTP/1.1 200 OK\r\n\r\n", "Expecting value", 0),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "no object", 0),
        (b"HTTP/1.1 200 OK\r\n\r\n\x80", "decode", 0),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n" + json.dumps({"message": "no rights"}).encode(), "403: no rights", 403),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>proxy</html>", "502: <html>proxy</html>", 502),
    ],
)
async def test_an_answer_that_is_none_is_an_api_error(
    tls: tuple[Path, ssl.SSLContext], answer: bytes, says: str, status: int
) -> None:
    async with serving(tls, answering(answer)) as client:
        with pytest.raises(ApiError, match=says) as caught:
            await client.get("/x", "y")
        assert caught.value.status == status


async def test_an_endless_answer_is_cut_off(tls: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_MAX_BODY", 1000)
    async with serving(tls, answering(b"HTTP/1.1 200 OK\r\n\r\n", *[b" " * 500] * 10)) as client:
        with pytest.raises(ApiError, match="longer than 1000 bytes"):
            await client.get("/x", "y")


async def test_a_server_that_says_nothing_is_given_up(
    tls: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "REQUEST_SECONDS", 0.5)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        await reader.read()

    async with serving(tls, silent) as client:
        with pytest.raises(ApiError, match="did not answer in time"):
            await client.get("/x", "y")


async def test_nobody_listens() -> None:
    client = ApiClient(Server("127.0.0.1", 9, Path("/does/not/exist")), "tests")
    with pytest.raises(ApiError, match="No such file"):
        await client.get("/x", "y")


async def test_a_request_is_what_the_server_needs(tls: tuple[Path, ssl.SSLContext]) -> None:
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        seen.append(head + await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n{}")
        await writer.drain()

    async with serving(tls, note) as client:
        await client.get(api.claims("name space"), "a/b?c")
        (tls[0] / "token").write_text("second")
        await client.create("/x", {"a": "장치"})
        await client.delete("/x", "y", "7")
    assert seen[0].startswith(b"GET /apis/resource.k8s.io/v1/namespaces/name%20space/resourceclaims/a%2Fb%3Fc HTTP/1.1")
    assert b"\r\nAuthorization: Bearer first\r\n" in seen[0]
    assert b"\r\nAuthorization: Bearer second\r\n" in seen[1]
    assert json.loads(seen[1].partition(b"\r\n\r\n")[2]) == {"a": "장치"}
    assert json.loads(seen[2].partition(b"\r\n\r\n")[2])["preconditions"] == {"resourceVersion": "7"}


async def told(client: ApiClient) -> list[dict[str, Any]]:
    async with aclosing(client.watch("/x", {"resourceVersion": "1"})) as stream:
        return [event async for event in stream]


async def test_events_come_as_they_are_told(tls: tuple[Path, ssl.SSLContext]) -> None:
    events: list[dict[str, Any]] = [{"type": "ADDED", "object": {"n": "장치"}}, {"type": "DELETED", "object": {}}]
    text = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in events)
    async with serving(tls, answering(chunked(*(text[at : at + 7] for at in range(0, len(text), 7))))) as client:
        assert await told(client) == events


@pytest.mark.parametrize(
    ("answer", "says", "status"),
    [
        (chunked(b'{"type":"ERROR","object":{"code":410,"message":"too old"}}\n'), "410: too old", 410),
        (chunked(b"nonsense\n"), "Expecting value", 0),
        (chunked(b"[]\n"), "broke off", 0),
        (chunked(b"{}\n"), "broke off", 0),
        (chunked(b'{"type":"ADDED"}\n'), "broke off", 0),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "broke off", 0),
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\n{}", "429", 429),
    ],
)
async def test_a_watch_that_is_none_is_an_api_error(
    tls: tuple[Path, ssl.SSLContext], answer: bytes, says: str, status: int
) -> None:
    async with serving(tls, answering(answer)) as client:
        with pytest.raises(ApiError, match=says) as caught:
            await told(client)
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("host", "says"), [("", "do not name an API server"), ("127.0.0.1", "needs a service account")]
)
def test_a_pod_without_what_it_needs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, says: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    with pytest.raises(ConfigError, match=says):
        Server.in_cluster(tmp_path)
