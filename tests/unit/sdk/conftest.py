"""Fixtures of the SDK's tests."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sdk_support import CONFIG, WebServer, running_web_server, safetensors


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
    with ExitStack() as servers:
        yield lambda: servers.enter_context(running_web_server())


@pytest.fixture
def web(new_web_server: Callable[[], WebServer], monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """A web server that may be spoken to without TLS."""
    server = new_web_server()
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", server.host)
    monkeypatch.delenv("NETRC", raising=False)
    return server
