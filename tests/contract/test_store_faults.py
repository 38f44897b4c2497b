"""A registry that is down, full, slow, lies, or breaks off: a result or a reason, and nothing half done."""

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import Fault, FaultyProxy, Headers, faulty_proxy
from registry_server import RunningRegistry, running_registry
from rm_abstract import http
from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable, Transient, WorkloadError
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore, upload
from rm_abstract.store.destination import MARKER
from rm_api.conditions import Reason
from store_support import tree_of

SIZE = 6_000_000


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def proxy(registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setattr(upload, "_FIRST_WAIT", 0.01)
    with faulty_proxy(registry.host) as running:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{running.host},{registry.host}")
        yield running


@pytest.fixture
def repository(proxy: FaultyProxy, tmp_path: Path) -> str:
    return f"{proxy.host}/artifacts/t/{tmp_path.name.replace('_', '-').rstrip('-').lower()}"


@pytest.fixture
def store() -> Iterator[ArtifactStore]:
    with ArtifactStore() as store:
        yield store


@pytest.fixture
def artifact(tmp_path: Path) -> BuildArtifact:
    root = tmp_path / "built"
    root.mkdir()
    (root / "model.bin").write_bytes(os.urandom(SIZE))
    (root / "config.json").write_text("{}")
    return BuildArtifact(root, "k", "f")


def check(store: ArtifactStore, reference: str, artifact: BuildArtifact, tmp_path: Path) -> None:
    store.pull(reference, tmp_path / "checked", key="k")
    assert tree_of(tmp_path / "checked") == tree_of(artifact.path)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("HEAD", "blobs", status=503),
        Fault("POST", "uploads", status=500),
        Fault("PATCH", "uploads", status=502),
        Fault("PATCH", "uploads", cut_answer_after=0, lie=lambda headers, body: (headers, body)),
        Fault("PUT", "uploads", status=503),
        Fault("PUT", "manifests", status=500),
        Fault("PATCH", "uploads", times=3, status=429),
    ],
    ids=lambda fault: f"{fault.method} {fault.path} {fault.status}",
)
def test_a_push_goes_on_after_what_passes(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path, fault: Fault
) -> None:
    proxy.faults.append(Fault(**vars(fault)))
    pushed = store.push(artifact, f"{repository}:v1")
    assert proxy.hits
    check(store, f"{repository}@{pushed.digest}", artifact, tmp_path)


def test_an_upload_goes_on_where_it_broke(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    # More breaks than attempts: each made progress.
    proxy.faults += [Fault("PATCH", "uploads", cut_request_after=800_000) for _ in range(6)]
    pushed = store.push(artifact, f"{repository}:v1")
    assert proxy.hits == 6
    assert proxy.received < 1.5 * SIZE, "what had arrived was sent again"
    check(store, f"{repository}@{pushed.digest}", artifact, tmp_path)


def test_an_upload_of_which_the_registry_knows_nothing_more_begins_anew(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    proxy.faults += [Fault("PATCH", "uploads", cut_request_after=800_000), Fault("GET", "uploads", status=404)]
    pushed = store.push(artifact, f"{repository}:v1")
    assert proxy.hits == 2
    check(store, f"{repository}@{pushed.digest}", artifact, tmp_path)


def test_an_upload_whose_last_answer_is_lost_is_found(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    def lose(_headers: Headers, _body: bytes) -> tuple[Headers, bytes]:
        raise OSError("the connection breaks")

    proxy.faults += [Fault("PUT", "uploads", lie=lose), Fault("PUT", "manifests", lie=lose)]
    pushed = store.push(artifact, f"{repository}:v1")
    assert proxy.hits == 2
    check(store, f"{repository}@{pushed.digest}", artifact, tmp_path)


def test_a_download_goes_on_where_it_broke(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    pushed = store.push(artifact, f"{repository}:v1")
    proxy.faults += [Fault("GET", "blobs", cut_answer_after=700_000) for _ in range(7)]
    check(store, f"{repository}@{pushed.digest}", artifact, tmp_path)
    assert proxy.hits == 7


@pytest.mark.parametrize("status", [500, 503, 507])
@pytest.mark.parametrize("path", ["HEAD blobs", "POST uploads", "PATCH uploads", "PUT uploads", "PUT manifests"])
def test_a_push_to_a_registry_that_stays_broken_ends_with_a_reason(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, path: str, status: int
) -> None:
    method, _, where = path.partition(" ")
    proxy.faults.append(Fault(method, where, times=-1, status=status))
    with pytest.raises(SourceUnreachable) as raised:
        store.push(artifact, f"{repository}:v1")
    assert raised.value.reason is Reason.STORE_UNREACHABLE
    assert str(status) in str(raised.value)
    proxy.faults.clear()
    assert store.resolve_manifest(f"{repository}:v1") is None


def test_a_store_without_room(artifact: BuildArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry, and a directory, on a volume of four mebibytes, for an artifact of six."""
    monkeypatch.setattr(upload, "_FIRST_WAIT", 0.01)
    volume = tmp_path / "registry"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(volume)], check=True)
    try:
        with running_registry(tmp_path) as registry, ArtifactStore() as store:
            monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", registry.host)
            for reference in (f"file://{volume}/a/b:v1", f"{registry.host}/a/b:v1"):
                with pytest.raises(WorkloadError) as raised:
                    store.push(artifact, reference)
                assert (raised.value.reason, raised.value.code.retryable) == (Reason.STORE_UNREACHABLE, True)
                assert "no space left" in str(raised.value).lower()
                assert store.resolve_manifest(reference) is None
            assert not [path for path in volume.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
        # The registry goes on holding the room of what was deleted, until it ends.
        with running_registry(tmp_path) as registry, ArtifactStore() as store:
            monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", registry.host)
            (artifact.path / "model.bin").write_bytes(b"small")
            for reference in (f"file://{volume}/a/b:v1", f"{registry.host}/a/b:v1"):
                pushed = store.push(artifact, reference)
                check(store, f"{reference.rpartition(':')[0]}@{pushed.digest}", artifact, tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(volume)], check=True)


def test_a_destination_without_room(
    store: ArtifactStore, repository: str, artifact: BuildArtifact, proxy: FaultyProxy, tmp_path: Path
) -> None:
    pushed = store.push(artifact, f"{repository}:v1")
    volume = tmp_path / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(volume)], check=True)
    try:
        with pytest.raises(Transient, match="no room for"):
            store.pull(f"{repository}@{pushed.digest}", volume, key="k")
        assert not [path for method, path in proxy.requests if method == "GET" and "/blobs/" in path][1:]
        assert [path.name for path in volume.iterdir()] == [MARKER]
    finally:
        subprocess.run(["umount", "-l", str(volume)], check=True)


def test_a_registry_that_is_slow_is_waited_for(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    (artifact.path / "model.bin").write_bytes(os.urandom(200_000))
    pushed = store.push(artifact, f"{repository}:v1")
    proxy.faults.append(Fault("GET", "blobs", times=-1, wait=0.05))
    check(store, f"{repository}@{pushed.digest}", artifact, tmp_path)


def test_a_registry_that_takes_a_connection_and_says_nothing(
    store: ArtifactStore, artifact: BuildArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(http, "_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", host)
        for action in (
            lambda: store.push(artifact, f"{host}/a:v1"),
            lambda: store.pull(f"{host}/a@sha256:{'0' * 64}", tmp_path / "dest", key="k"),
        ):
            with pytest.raises(SourceUnreachable) as raised:
                action()
            assert raised.value.reason is Reason.STORE_UNREACHABLE


def header(name: str, value: str) -> Callable[[Headers, bytes], tuple[Headers, bytes]]:
    def lie(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        return [(n, v) for n, v in headers if n.lower() != name.lower()] + [(name, value)], body

    return lie


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Headers, bytes], tuple[Headers, bytes]]:
    def lie(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        manifest = json.loads(body)
        change(manifest)
        return headers, json.dumps(manifest).encode()

    return lie


ZERO = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "manifests", lie=edited(lambda manifest: manifest["annotations"].update(more="x"))),
        Fault("GET", "manifests", lie=edited(lambda manifest: manifest["layers"].pop())),
        Fault("GET", "blobs", times=2, lie=lambda headers, body: (headers, body[:-1] + bytes([body[-1] ^ 1]))),
        Fault("GET", "blobs", times=2, lie=lambda headers, body: (headers, body + b"\0")),
        Fault("GET", "blobs", times=2, lie=lambda headers, body: (headers, body[:-1])),
        Fault("GET", "blobs", times=2, lie=lambda headers, body: (headers, b"")),
    ],
    ids=["manifest", "a layer less", "a bit of a blob", "a byte more", "a byte less", "nothing"],
)
def test_a_registry_that_lies_in_a_pull_is_not_believed(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path, fault: Fault
) -> None:
    pushed = store.push(artifact, f"{repository}:v1")
    proxy.faults.append(Fault(**vars(fault)))
    with pytest.raises(ArtifactMismatch):
        store.pull(f"{repository}@{pushed.digest}", tmp_path / "dest", key="k")
    assert proxy.hits
    assert not (tmp_path / "dest").exists() or tree_of(tmp_path / "dest") == {}


def test_the_bytes_of_two_blobs_are_never_joined(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    pushed = store.push(artifact, f"{repository}:v1")
    proxy.faults += [
        Fault("GET", "blobs", times=1),  # the config
        Fault("GET", "blobs", cut_answer_after=700_000),
        Fault("GET", "blobs", lie=lambda headers, body: (headers, b"!" * len(body))),
    ]
    with pytest.raises(ArtifactMismatch):
        store.pull(f"{repository}@{pushed.digest}", tmp_path / "dest", key="k")
    assert tree_of(tmp_path / "dest") == {}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("HEAD", "blobs", lie=header("Content-Length", "7")), "has 7 bytes as"),
        (Fault("PUT", "manifests", lie=header("Docker-Content-Digest", ZERO)), "took the manifest"),
    ],
    ids=["size of a blob", "digest of the manifest"],
)
def test_a_registry_that_lies_in_a_push_is_not_believed(
    proxy: FaultyProxy, store: ArtifactStore, repository: str, artifact: BuildArtifact, fault: Fault, message: str
) -> None:
    store.push(artifact, f"{repository}:v0")
    proxy.faults.append(Fault(**vars(fault)))
    with pytest.raises(ArtifactMismatch, match=message):
        store.push(artifact, f"{repository}:v1")


def test_a_registry_that_says_it_has_what_it_has_not(
    proxy: FaultyProxy, store: ArtifactStore, registry: RunningRegistry, repository: str, artifact: BuildArtifact
) -> None:
    """The registry itself refuses the manifest then; nothing is at the tag."""
    other = artifact.path.parent / "other"
    other.mkdir()
    (other / "x").write_text("x")
    store.push(BuildArtifact(other, "k", "f"), f"{repository}:other")
    proxy.faults.append(Fault("HEAD", "blobs", times=-1, status=200))
    with pytest.raises((BadInput, ArtifactMismatch)):
        store.push(artifact, f"{repository}:v1")
    proxy.faults.clear()
    assert store.resolve_manifest(f"{repository}:v1") is None


def test_a_registry_that_dies_in_the_middle_and_comes_back(
    artifact: BuildArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it receives; the push ends with a reason or a result, and after a restart it succeeds."""
    monkeypatch.setattr(upload, "_FIRST_WAIT", 0.01)
    with running_registry(tmp_path) as registry, faulty_proxy(registry.host) as proxy, ArtifactStore() as store:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", proxy.host)
        proxy.faults.append(Fault("PATCH", "uploads", cut_request_after=SIZE // 2))
        stopped = threading.Event()
        take = proxy.take

        def kill_then_take(method: str, path: str) -> Fault | None:
            if method == "GET" and "uploads" in path and not stopped.is_set():
                stopped.set()
                os.kill(registry.pid, signal.SIGKILL)
            return take(method, path)

        proxy.take = kill_then_take  # type: ignore[method-assign]
        with pytest.raises(SourceUnreachable):
            store.push(artifact, f"{proxy.host}/a/b:v1")
        assert stopped.is_set()
    with running_registry(tmp_path) as registry, ArtifactStore() as store:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", registry.host)
        assert store.resolve_manifest(f"{registry.host}/a/b:v1") is None
        pushed = store.push(artifact, f"{registry.host}/a/b:v1")
        check(store, f"{registry.host}/a/b@{pushed.digest}", artifact, tmp_path)
