"""Seeing that a component is up, and that a volume was made: by real sockets, servers and directories."""

import concurrent.futures
import http.server
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rm_local_cluster import LocalClusterError, pki
from rm_local_cluster.probe import complaint
from rm_local_cluster.spec import Probe
from rm_local_cluster.watch import NewEntries


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 500)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def port() -> Iterator[int]:
    yield from serving()


@pytest.fixture
def authority(tmp_path: Path) -> pki.Authority:
    return pki.Authority(tmp_path, "ca")


@pytest.fixture
def secure_port(authority: pki.Authority) -> Iterator[int]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.pair.certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    pair = authority.issue("server", "server", hosts=["127.0.0.1"])
    context.load_cert_chain(pair.certificate, pair.key)
    yield from serving(context)


def test_a_server_that_answers_well_is_up_whatever_proxy_is_set(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert complaint(Probe(url=f"http://127.0.0.1:{port}/readyz")) is None


def test_a_server_that_answers_badly_or_not_at_all_is_not(port: int) -> None:
    assert "500" in (complaint(Probe(url=f"http://127.0.0.1:{port}/livez")) or "")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unused = free.getsockname()[1]
    assert "refused" in (complaint(Probe(url=f"http://127.0.0.1:{unused}/readyz")) or "")


def test_a_secure_server_is_up_for_a_client_that_it_knows(secure_port: int, authority: pki.Authority) -> None:
    client = authority.issue("client", "probe")
    url, ca = f"https://127.0.0.1:{secure_port}/readyz", str(authority.pair.certificate)
    assert complaint(Probe(url=url, authority=ca, certificate=str(client.certificate), key=str(client.key))) is None
    assert complaint(Probe(url=url)) is not None


def test_a_socket_is_up_once_something_accepts(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    assert "No such file" in (complaint(Probe(unix=str(path))) or "")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert "refused" in (complaint(Probe(unix=str(path))) or "")
        server.listen()
        assert complaint(Probe(unix=str(path))) is None


def test_new_entries_are_noticed_once_and_old_ones_never(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    watch = NewEntries(tmp_path)
    assert list(watch.take()) == []
    assert select.select([watch], [], [], 0)[0] == []
    names = ["pvc-1", "a name with spaces", "x" * 200]
    for name in names:
        (tmp_path / name).mkdir()
    assert select.select([watch], [], [], 5)[0] == [watch]
    assert list(watch.take()) == [tmp_path / name for name in names]
    assert list(watch.take()) == []


def test_a_directory_that_is_missing_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match="cannot be watched: No such file"):
        NewEntries(tmp_path / "missing")


class Runtime(grpc.GenericRpcHandler):
    """Answers the kubelet's first question, once it is ready."""

    def __init__(self) -> None:
        self.ready = False

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method != "/runtime.v1.RuntimeService/Version":
            return None
        return grpc.unary_unary_rpc_method_handler(self._version)

    def _version(self, _: bytes, context: grpc.ServicerContext) -> bytes:
        if not self.ready:
            context.abort(grpc.StatusCode.UNAVAILABLE, "server is not initialized yet")
        return b""


def test_a_container_runtime_is_up_when_it_answers_and_not_when_it_accepts(tmp_path: Path) -> None:
    path, runtime = tmp_path / "cri.sock", Runtime()
    assert complaint(Probe(cri=str(path)))
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[runtime])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        assert complaint(Probe(unix=str(path))) is None
        assert "server is not initialized yet" in (complaint(Probe(cri=str(path))) or "")
        runtime.ready = True
        assert complaint(Probe(cri=str(path))) is None
    finally:
        server.stop(None).wait()
