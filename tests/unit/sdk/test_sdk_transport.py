"""How bodies are received, long ones too, from a server that says byte for byte what it is told."""

import gzip
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rm_abstract import http
from rm_abstract.core.errors import SourceUnreachable
from rm_abstract.http import Http
from rm_abstract.transport import LONG, proxies
from rm_api import names
from rm_local_cluster.pki import Authority

SHORT_BODY = b"\r\n\r\n\n\n" + os.urandom(200_000)
LONG_BODY = b"\r\n\r\n\n\n" + os.urandom(LONG)
BODIES = pytest.mark.parametrize("body", [SHORT_BODY, LONG_BODY], ids=["short", "long"])
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass
class Server:
    """Answers request after request with what comes next of ``answers``: what is sent at once, and again after a while.

    After an empty piece the connection is closed; after the last answer nothing is said any more.
    """

    answers: list[Sequence[bytes]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    host: str = ""
    tls: ssl.SSLContext | None = None
    tunnels: bool = False
    """It is a proxy that makes tunnels: they end in itself."""

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.connections += 1
                threading.Thread(target=self._speak, args=(connection,), daemon=True).start()

    def _speak(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tunnels and self._asked(connection):
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if self.tls:
                with self.tls.wrap_socket(connection, server_side=True) as secured:
                    self._answer(secured)
            else:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        while self._asked(connection) and self.answers:
            for piece in self.answers.pop(0):
                if not piece:
                    return
                connection.sendall(piece)
                time.sleep(0.01)

    def _asked(self, connection: socket.socket) -> bool:
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                return False
            head += data
        self.requests.append(head)
        return True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(host=f"127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv(names.ENV_PLAIN_HTTP_HOSTS, f"{server.host},elsewhere.test")
        threading.Thread(target=server.serve, args=(listener,), daemon=True).start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def client(server: Server) -> Iterator[Http]:
    client = Http()
    yield client
    client.close()


def head(body: bytes, *more: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *more, "", ""]).encode()


def chunked(body: bytes) -> bytes:
    size = 300_007
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def received(client: Http, server: Server) -> bytes:
    return b"".join(client.download(f"http://{server.host}/a"))


@BODIES
@pytest.mark.parametrize("cut", [0, 1, 2, 3, -1])
def test_a_body_is_whole_wherever_the_pieces_of_its_answer_end(
    client: Http, server: Server, body: bytes, cut: int
) -> None:
    """So many bytes before or, if negative, after the end of the head."""
    answer, end = head(body) + body, len(head(body))
    server.answers.append([answer[: end - cut], answer[end - cut :]])
    assert received(client, server) == body


@BODIES
def test_a_body_whose_head_comes_byte_by_byte(client: Http, server: Server, body: bytes) -> None:
    start = head(body)
    server.answers.append([*(start[at : at + 1] for at in range(len(start))), body])
    assert received(client, server) == body


@BODIES
def test_a_body_after_interim_answers(client: Http, server: Server, body: bytes) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
    server.answers.append([interim + interim + head(body) + body])
    assert received(client, server) == body


@BODIES
def test_a_body_in_chunks_and_one_that_ends_with_the_connection(client: Http, server: Server, body: bytes) -> None:
    server.answers.append([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body)])
    assert received(client, server) == body
    server.answers.append([b"HTTP/1.1 200 OK\r\n\r\n" + body, b""])
    assert received(client, server) == body


@BODIES
def test_a_body_that_is_compressed(client: Http, server: Server, body: bytes) -> None:
    packed = gzip.compress(body, 0)
    server.answers.append([head(packed, "Content-Encoding: gzip") + packed])
    assert client.request("GET", f"http://{server.host}/a").content == body


def test_a_head_alone_has_no_body(client: Http, server: Server) -> None:
    server.answers.append([head(LONG_BODY)])
    response = client.request("HEAD", f"http://{server.host}/a")
    assert (response.headers["Content-Length"], response.content) == (str(len(LONG_BODY)), b"")


@BODIES
def test_one_that_breaks_goes_on_where_it_broke(client: Http, server: Server, body: bytes) -> None:
    there = len(body) // 3
    rest = f"Content-Range: bytes {there}-{len(body) - 1}/{len(body)}"
    server.answers += [
        [head(body) + body[:there], b""],
        [head(body[there:], rest, status="206 Partial Content") + body[there:]],
    ]
    assert received(client, server) == body
    assert f"range: bytes={there}-".encode() in server.requests[1].lower()


@BODIES
def test_one_that_breaks_and_cannot_go_on_is_not_taken_for_whole(client: Http, server: Server, body: bytes) -> None:
    server.answers += [[head(body) + body[:-1], b""]] + 5 * [[b""]]
    with pytest.raises(SourceUnreachable, match=f"{server.host} does not answer"):
        received(client, server)


@BODIES
def test_one_that_does_not_go_on_is_waited_for_so_long(
    server: Server, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_TIMEOUT", 0.3)
    client = Http()
    server.answers.append([head(body) + body[:-1]])
    began = time.monotonic()
    with pytest.raises(SourceUnreachable, match="timed out"):
        client.request("GET", f"http://{server.host}/a")
    assert 0.3 <= time.monotonic() - began < 10
    client.close()


def test_connections_are_used_again_but_for_those_of_long_bodies(client: Http, server: Server) -> None:
    for body, connections in ((SHORT_BODY, 1), (SHORT_BODY, 1), (LONG_BODY, 1), (SHORT_BODY, 2), (b"", 2), (b"x", 2)):
        server.answers.append([head(body) + body])
        assert received(client, server) == body
        assert server.connections == connections


@BODIES
def test_what_follows_a_body_is_no_part_of_it_nor_of_the_next(client: Http, server: Server, body: bytes) -> None:
    server.answers += [[head(body, "Connection: close") + body + b"more"], [head(b"next") + b"next"]]
    assert received(client, server) == body
    assert received(client, server) == b"next"


def test_one_that_is_not_read_to_its_end(client: Http, server: Server) -> None:
    server.answers += [[head(LONG_BODY) + LONG_BODY], [head(b"next") + b"next"]]
    assert next(client.download(f"http://{server.host}/a"))
    assert received(client, server) == b"next"


@pytest.fixture
def tls(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server with a certificate for elsewhere.test, of an authority that the client is told to believe."""
    authority = Authority(tmp_path, "ca")
    pair = authority.issue("server", "server", hosts=["elsewhere.test"])
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(pair.certificate, pair.key)
    monkeypatch.setenv("AUTHORITY", authority.pair.certificate.read_text())
    return server


@BODIES
def test_over_tls(tls: Server, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.ENV_CONNECT_TO, f"elsewhere.test:5000={tls.host}")
    client = Http(authority=os.environ["AUTHORITY"])
    tls.answers.append([head(body) + body])
    assert b"".join(client.download("https://elsewhere.test:5000/a")) == body
    client.close()


@BODIES
def test_through_a_tunnel_of_a_proxy(tls: Server, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{tls.host}")
    tls.tunnels = True
    client = Http(authority=os.environ["AUTHORITY"])
    tls.answers.append([head(body) + body])
    assert b"".join(client.download("https://elsewhere.test/a")) == body
    client.close()
    tunnel, request = tls.requests
    assert tunnel.startswith(b"CONNECT elsewhere.test:443 HTTP/1.1\r\n")
    assert b"\r\nproxy-authorization: basic bwu6c2vjcmv0\r\n" in tunnel.lower()
    assert request.startswith(b"GET /a HTTP/1.1\r\n")
    assert b"proxy-authorization" not in request.lower()


@BODIES
def test_by_way_of_a_proxy(server: Server, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.host)
    client = Http()
    server.answers.append([head(body) + body])
    assert b"".join(client.download("http://elsewhere.test/a")) == body
    client.close()
    assert server.requests[0].startswith(b"GET http://elsewhere.test/a HTTP/1.1\r\n")


def test_a_host_that_needs_no_proxy_is_reached_without(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8, 127.0.0.0/8")
    client = Http()
    server.answers.append([head(b"x") + b"x"])
    assert received(client, server) == b"x"
    with pytest.raises(SourceUnreachable, match=r"elsewhere\.test does not answer"):
        client.request("GET", "http://elsewhere.test/a")
    client.close()


@pytest.mark.parametrize(
    ("entry", "patterns"),
    [
        ("", []),
        ("example.com", ["all://*example.com"]),
        (".example.com", ["all://*.example.com"]),
        ("*.example.com", ["all://*.example.com"]),
        ("localhost, example.com:8080 ,", ["all://localhost", "all://*example.com:8080"]),
        ("127.0.0.1,10.0.0.0/8", ["all://127.0.0.1", "all://10.0.0.0/8"]),
        ("::1,[::1],fd00::/8,[fd00::]/8", ["all://[::1]", "all://[fd00::]/8"]),
        ("[::1]:8080", ["all://[::1]:8080"]),
        ("https://example.com", ["https://example.com"]),
        ("10.0.0.0/33,a/b", []),
    ],
)
def test_which_hosts_need_no_proxy(entry: str, patterns: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", entry)
    assert proxies() == {"https://": "http://proxy:3128", **dict.fromkeys(patterns)}
    Http().close()
    monkeypatch.setenv("NO_PROXY", f"{entry},*")
    assert proxies() == {}
