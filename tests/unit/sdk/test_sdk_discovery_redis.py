"""The cache that machines share: a real Redis, one that goes away, and one that somebody else has written into."""

import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from discovery_support import fresh_modules, transform, write
from rm_abstract.core.errors import BadInput
from rm_abstract.discovery import cache
from rm_abstract.discovery.cache import RedisFacts
from rm_abstract.discovery.config import DiscoveryConfig
from rm_abstract.discovery.manager import PluginManager, reset_plugin_system
from system_packages import need


class Server:
    """A Redis on a socket of this test."""

    def __init__(self, directory: Path) -> None:
        # A server and its tools are one program, which goes by its name. The tools come without a service.
        need({"redis-check-rdb": "redis-tools"})
        self._directory = directory
        self.url = f"unix://{directory}/redis.sock"
        self.client: Any = redis.Redis.from_url(self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {"port": "0", "unixsocket": "redis.sock", "save": "", "appendonly": "no", "daemonize": "no"}
        argv = ["redis-server", *(word for name, value in settings.items() for word in (f"--{name}", value))]
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                argv, executable=shutil.which("redis-check-rdb"), cwd=self._directory, stdout=log, stderr=log
            )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                assert self.client.ping()
            except redis.ConnectionError:
                assert self._process.poll() is None, (self._directory / "log").read_text()
                time.sleep(0.02)
            else:
                return
        raise AssertionError((self._directory / "log").read_text())

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
        self.client.close()


@pytest.fixture
def server() -> Iterator[Server]:
    # A socket's path has little room.
    with tempfile.TemporaryDirectory(prefix="rma-redis-") as directory:
        server = Server(Path(directory))
        server.start()
        yield server
        server.stop()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    reset_plugin_system()
    with fresh_modules("rm_plugins_"):
        yield
    reset_plugin_system()


class Machine:
    """A machine of its own, with a copy of the modules and no index yet."""

    number = 0

    def __init__(self, directory: Path, url: str) -> None:
        type(self).number += 1
        place = directory / f"machine{self.number}"
        write(place / "modules", {"a.py": transform("A"), "b.py": transform("B"), "none.py": "import rm_abstract\n"})
        paths = (str(place / "modules"),)
        self.manager = PluginManager(
            DiscoveryConfig(paths=paths, frameworks=("rm_abstract",), cache_dir=str(place / "cache"), redis_url=url)
        )
        self.modules = place / "modules"

    def names(self) -> list[str]:
        reset_plugin_system()
        self.manager.clear_cache()
        return [entry.name for entry in self.manager.discover_plugins(types=["transform"])]

    def understood(self) -> int:
        return int(self.manager.get_performance_stats()["files_understood"])


def test_the_second_machine_understands_no_file(server: Server, tmp_path: Path) -> None:
    first = Machine(tmp_path, server.url)
    assert (first.names(), first.understood()) == (["A", "B"], 3)
    keys = server.client.keys("rm-abstract:plugins:*")
    assert len(keys) == 3
    assert all(0 < server.client.ttl(key) <= cache.REDIS_DAYS * 86400 for key in keys)
    assert {json.dumps(json.loads(server.client.get(key)))[:12] for key in keys} <= {"{}", '{"plugins": '}
    assert first.manager.health_check()["redis_available"] is True

    second = Machine(tmp_path, server.url)
    assert (second.names(), second.understood()) == (["A", "B"], 0)
    write(second.modules, {"a.py": transform("Other")})
    assert (second.names(), second.understood()) == (["B", "Other"], 1)
    first.manager.close()
    second.manager.close()


GARBAGE = {
    "noise": b"\x80\x04\x95not json",
    "a pickle": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    "other JSON": b"[1, 2]",
    "another attribute": b'{"plugins": [["transform", "A", "__import__(\'os\')", "", {}]]}',
    "deep": b"[" * 100_000,
    "large": b'{"plugins": [' + b" " * (2 << 20) + b"]}",
}


@pytest.mark.parametrize("value", GARBAGE)
def test_what_somebody_else_wrote_is_ignored_with_a_warning(
    server: Server, tmp_path: Path, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path, server.url)
    machine.names()
    for key in server.client.keys("*"):
        server.client.set(key, GARBAGE[value])
    shutil.rmtree(machine.manager.config.cache_dir)
    again = PluginManager(machine.manager.config)
    with caplog.at_level(logging.WARNING):
        assert [entry.name for entry in again.discover_plugins(types=["transform"])] == ["A", "B"]
    assert again.get_performance_stats()["files_understood"] == 3
    assert caplog.text.count("Redis holds something else under rm-abstract:plugins:") == 3
    again.close()
    machine.manager.close()
    assert not os.path.exists("/tmp/owned")


def test_a_key_of_another_kind_is_no_failure(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(tmp_path, server.url)
    machine.names()
    for key in server.client.keys("*"):
        server.client.delete(key)
        server.client.lpush(key, "x")
    shutil.rmtree(machine.manager.config.cache_dir)
    again = PluginManager(machine.manager.config)
    assert [entry.name for entry in again.discover_plugins(types=["transform"])] == ["A", "B"]
    again.close()
    machine.manager.close()


def test_without_redis_discovery_goes_on_with_one_warning(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(tmp_path, server.url)
    server.stop()
    with caplog.at_level(logging.WARNING):
        assert machine.names() == ["A", "B"]
        write(machine.modules, {"c.py": transform("C")})
        assert machine.names() == ["A", "B", "C"]
    assert caplog.text.count("the shared plugin cache is not used for 60 s, as Redis fails: ConnectionError") == 1
    health = machine.manager.health_check()
    assert (health["status"], health["redis_available"]) == ("degraded", False)
    machine.manager.close()


def test_redis_is_asked_again_after_a_pause(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_REDIS_PAUSE", 0.0)
    machine = Machine(tmp_path, server.url)
    server.stop()
    machine.names()
    assert "Redis fails" in caplog.text
    server.start()
    write(machine.modules, {"c.py": transform("C")})
    assert machine.names() == ["A", "B", "C"]
    assert len(server.client.keys("*")) == 1
    machine.manager.close()


def test_an_address_that_is_none() -> None:
    with pytest.raises(BadInput, match=r"redis_url 'localhost' is none: .*; one looks like redis://host:6379/0"):
        RedisFacts("localhost")


def test_the_package_is_needed_only_for_this(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(BadInput, match="pip install redis"):
        PluginManager(DiscoveryConfig(redis_url="redis://127.0.0.1:1/0"))
    PluginManager(DiscoveryConfig())
