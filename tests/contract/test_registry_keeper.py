"""The registry is kept by `rma-launch registry`: garbage is collected while a read-only one serves, and all goes on."""

import asyncio
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from registry_server import registry_program
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore as Pushing
from rm_operator.kube.artifact_store import ArtifactStore
from rm_operator.plan.artifact import Presence
from rma_launch_driver import Binaries

KEY = "1" * 64
MIB = 1024 * 1024


class Kept:
    """A registry under its keeper."""

    def __init__(self, process: "subprocess.Popen[bytes]", host: str, directory: Path) -> None:
        self.process = process
        self.host = host
        self.directory = directory

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in (self.directory / "data").rglob("data"))

    def push(self, repository: str, content: bytes) -> None:
        tree = self.directory / repository.replace("/", "-")
        tree.mkdir()
        (tree / "model.bin").write_bytes(content)
        with Pushing() as pushing:
            pushing.push(BuildArtifact(tree, KEY, "acme"), f"{self.host}/{repository}:v1")

    def until(self, text: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)


@contextmanager
def kept_registry(binaries: Binaries, directory: Path, *flags: str) -> Iterator[Kept]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}}
    common = {"version": 0.1, "log": {"level": "error"}, "http": {"addr": f"127.0.0.1:{port}"}}
    (directory / "config.yml").write_text(yaml.safe_dump({**common, "storage": storage}))
    read_only = {**storage, "maintenance": {"readonly": {"enabled": True}}}
    (directory / "read-only.yml").write_text(yaml.safe_dump({**common, "storage": read_only}))
    argv = [
        binaries.launcher, "registry", f"--config={directory / 'config.yml'}",
        f"--read-only-config={directory / 'read-only.yml'}", *flags, "--", str(registry_program()),
    ]  # fmt: skip
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={"OTEL_TRACES_EXPORTER": "none"})
    try:
        yield Kept(process, f"127.0.0.1:{port}", directory)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture
def kept(binaries: Binaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    with kept_registry(binaries, tmp_path, "--first=6s", "--every=1h") as found:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", found.host)
        yield found


def test_space_comes_back_and_nobody_loses_anything(kept: Kept) -> None:
    async def forget_and_ask() -> None:
        store = ArtifactStore(kept.host, plain_http=True)
        await store.forget("artifacts/ns/gone")
        assert (await store.ask("artifacts/ns/gone")).presence is Presence.ABSENT
        await store.close()

    kept.push("artifacts/ns/gone", b"a" * 8 * MIB)
    kept.push("artifacts/ns/kept", b"b" * MIB)
    asyncio.run(forget_and_ask())
    assert kept.size > 9 * MIB
    kept.until("collected garbage in")
    assert kept.size < 2 * MIB
    # It is writable again, and has what it had.
    kept.push("artifacts/ns/new", b"c" * MIB)
    for name in ("kept", "new"):
        with Pushing() as pulling:
            digest = pulling.resolve_manifest(f"{kept.host}/artifacts/ns/{name}:v1")
            pulling.pull(f"{kept.host}/artifacts/ns/{name}@{digest}", kept.directory / "again" / name, key=KEY)


def test_a_push_waits_for_as_long_as_the_registry_is_read_only(
    binaries: Binaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kept_registry(binaries, tmp_path) as found:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", found.host)
        _wait_until_it_answers(found)
    # The same registry, read-only at first: what follows its collection is that it is writable.
    host = int(found.host.rpartition(":")[2])
    log = (tmp_path / "log2").open("wb")
    environment = {"OTEL_TRACES_EXPORTER": "none"}
    argv = [str(registry_program()), "serve"]
    with (
        log,
        subprocess.Popen([*argv, str(tmp_path / "read-only.yml")], stdout=log, stderr=log, env=environment) as first,
    ):
        _wait_until_it_answers(found)
        pushing = threading.Thread(target=found.push, args=("artifacts/ns/late", b"d" * MIB))
        pushing.start()
        time.sleep(3)
        assert pushing.is_alive(), "it has not given up"
        first.terminate()
    with subprocess.Popen([*argv, str(tmp_path / "config.yml")], env=environment) as second:
        pushing.join(60)
        assert not pushing.is_alive()
        with Pushing() as asking:
            assert asking.resolve_manifest(f"127.0.0.1:{host}/artifacts/ns/late:v1")
        second.terminate()


def _wait_until_it_answers(kept: Kept) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(kept.host.rpartition(":")[2])), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, kept.log
            time.sleep(0.05)
        else:
            return


def test_asked_to_end_it_ends_and_so_does_the_registry(binaries: Binaries, tmp_path: Path) -> None:
    with kept_registry(binaries, tmp_path) as found:
        _wait_until_it_answers(found)
        found.process.send_signal(signal.SIGTERM)
        assert found.process.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(found.host.rpartition(":")[2])), timeout=1)


def test_a_registry_that_ends_by_itself_ends_its_keeper(binaries: Binaries, tmp_path: Path) -> None:
    with kept_registry(binaries, tmp_path) as found:
        (tmp_path / "config.yml").write_text("version: nonsense")
        found.process.send_signal(signal.SIGTERM)
        found.process.wait(30)
    argv = [
        binaries.launcher, "registry", f"--config={tmp_path / 'config.yml'}",
        f"--read-only-config={tmp_path / 'read-only.yml'}", "--", str(registry_program()),
    ]  # fmt: skip
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 75
    assert "the registry ended by itself" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the program to run has to follow after --"),
        (["--", "registry"], "registry needs --config and --read-only-config"),
        (
            ["--config=/etc/hosts", "--read-only-config=/etc/hosts", "--every=0s", "--", "/bin/true"],
            "longer than nothing",
        ),
        (["--config=/etc/hosts", "--read-only-config=/etc/hosts", "--", "/bin/true", "x"], "and nothing else"),
    ],
)
def test_bad_arguments_are_refused(binaries: Binaries, arguments: list[str], said: str) -> None:
    ended = subprocess.run(
        [binaries.launcher, "registry", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 64
    assert said in ended.stderr
