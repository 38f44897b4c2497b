"""Fixtures of the SDK's tests."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sdk_support import CONFIG, Request, WebServer, safetensors


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory is one of this test alone."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of 16·32 + 32 = 544 parameters in bfloat16."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    weights = safetensors({"embed.weight": ("BF16", [16, 32], 1024), "norm.weight": ("BF16", [32], 64)})
    (directory / "model.safetensors").write_bytes(weights)
    return directory


@pytest.fixture
def new_web_server() -> Iterator[Callable[[], WebServer]]:
    """Starts web servers."""
    servers = []

    def start() -> WebServer:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: object) -> None:
                pass

            def _do(self) -> None:
                request = Request(self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
                web.requests.append(request)
                answer = web.answer(request)
                self.send_response(answer.status)
                for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body if answer.cut is None else answer.body[: answer.cut])
                    if answer.cut is not None:
                        self.close_connection = True

            do_GET = do_HEAD = _do  # noqa: N815 (the library's names)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        web = WebServer(f"127.0.0.1:{server.server_port}")
        return web

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def web(new_web_server: Callable[[], WebServer], monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """A web server that may be spoken to without TLS."""
    server = new_web_server()
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", server.host)
    monkeypatch.delenv("NETRC", raising=False)
    return server
