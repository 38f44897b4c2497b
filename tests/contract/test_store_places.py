"""The same store in a registry, in a directory and in a bucket: one interface, the same guarantees."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from registry_server import running_registry
from rm_abstract.core.errors import ArtifactMismatch, BadInput, SourceUnreachable, WorkloadError
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore, PushedArtifact, Reference, StageStore
from rm_abstract.store import objects as objects_module
from rm_abstract.store.objects import Directory
from rm_abstract.store.registry import sha256
from rm_api.conditions import Reason
from s3_server import running_s3
from store_support import tree_of

ZERO = "sha256:" + "0" * 64


@dataclass
class Place:
    """Where repositories are, and the files in which what is put there ends up."""

    kind: str
    base: str
    files: Path
    environment: dict[str, str]


@pytest.fixture(scope="module", params=["registry", "file", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "registry":
        with running_registry(directory) as registry:
            yield Place("registry", registry.host, registry.storage, {"RMA_PLAIN_HTTP_HOSTS": registry.host})
    elif request.param == "file":
        (directory / "Store").mkdir()
        yield Place("file", f"file://{directory}/Store", directory / "Store", {})
    else:
        with running_s3(directory) as s3:
            s3.make_bucket("store")
            credentials = s3.credentials_file(directory / "aws")
            environment = {"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "RMA_PLAIN_HTTP_HOSTS": s3.host}
            yield Place("s3", "s3://store/some/prefix", s3.buckets / "store/some/prefix", environment)


@pytest.fixture
def repository(kept: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.delenv("NETRC", raising=False)
    for name, value in kept.environment.items():
        monkeypatch.setenv(name, value)
    return f"{kept.base}/artifacts/t/{tmp_path.name.replace('_', '-').rstrip('-').lower()}"


@pytest.fixture
def artifact(tmp_path: Path) -> BuildArtifact:
    return build(tmp_path / "built")


def build(root: Path, filling: bytes | None = None) -> BuildArtifact:
    (root / "nested/empty").mkdir(parents=True)
    (root / "model.bin").write_bytes(filling or os.urandom(3_000_000))
    (root / "nested/config.json").write_text("{}")
    (root / "link").symlink_to("nested/config.json")
    return BuildArtifact(root, "key-1", "fmt", ("X1",), ("1.4.0",), {"tool": "2.0"})


def test_what_is_pulled_is_what_was_pushed(repository: str, artifact: BuildArtifact, tmp_path: Path) -> None:
    with ArtifactStore(max_layer_bytes=1_000_000) as store:
        assert store.resolve_manifest(f"{repository}:v1") is None
        pushed = store.push(artifact, f"{repository}:v1")
        assert store.resolve_manifest(f"{repository}:v1") == pushed.digest
        assert store.resolve_manifest(f"{repository}@{pushed.digest}") == pushed.digest
        assert store.resolve_manifest(f"{repository}@{ZERO}") is None
        pulled = store.pull(f"{repository}@{pushed.digest}", tmp_path / "dest", key="key-1")
    assert tree_of(tmp_path / "dest") == tree_of(artifact.path)
    assert pulled == BuildArtifact(tmp_path / "dest", "key-1", "fmt", ("X1",), ("1.4.0",), {"tool": "2.0"})


def test_all_places_give_the_same_digest(repository: str, artifact: BuildArtifact, tmp_path: Path) -> None:
    with ArtifactStore() as store:
        assert store.push(artifact, f"{repository}:v1") == store.push(artifact, f"file://{tmp_path}/other:v9")


def test_a_stage(repository: str, artifact: BuildArtifact, tmp_path: Path) -> None:
    with StageStore() as store:
        store.push({"work": artifact.path}, f"{repository}:stage-1", key="k", stage=1)
        store.fetch({"work": tmp_path / "next"}, f"{repository}:stage-1", key="k", stage=1)
    assert tree_of(tmp_path / "next") == tree_of(artifact.path)


def test_what_is_not_there(repository: str, tmp_path: Path) -> None:
    with ArtifactStore() as store, pytest.raises(ArtifactMismatch) as raised:
        store.pull(f"{repository}@{ZERO}", tmp_path / "dest", key="k")
    assert raised.value.reason is Reason.ARTIFACT_MISSING


def test_many_who_push_the_same_at_once_get_one_result(
    repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    results: list[PushedArtifact | Exception] = []
    begin = threading.Barrier(4)
    artifact.write()

    def push() -> None:
        with ArtifactStore(max_layer_bytes=1_000_000) as store:
            begin.wait()
            try:
                results.append(store.push(artifact, f"{repository}:v1"))
            except Exception as error:
                results.append(error)

    threads = [threading.Thread(target=push) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(map(str, results))) == 1, results
    with ArtifactStore() as store:
        digest = store.resolve_manifest(f"{repository}:v1")
        assert isinstance(results[0], PushedArtifact), results
        assert digest == results[0].digest
        store.pull(f"{repository}@{digest}", tmp_path / "dest", key="key-1")
    assert tree_of(tmp_path / "dest") == tree_of(artifact.path)


def test_writers_of_one_file_are_never_in_each_others_way(tmp_path: Path) -> None:
    content, wrong = b"the same", list[Exception]()

    def write() -> None:
        for number in range(200):
            try:
                Directory().write(
                    str(tmp_path / f"{number}"), lambda: [content], len(content), sha256(content), large=True
                )
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {content}
    assert len(list(tmp_path.iterdir())) == 200


def test_two_builds_of_one_key_that_differ_are_both_whole(repository: str, tmp_path: Path) -> None:
    artifacts = [build(tmp_path / name, name.encode() * 500_000) for name in ("one", "two")]
    digests: dict[int, str] = {}
    begin = threading.Barrier(2)

    def push(number: int) -> None:
        with ArtifactStore() as store:
            begin.wait()
            digests[number] = store.push(artifacts[number], f"{repository}:v1").digest

    threads = [threading.Thread(target=push, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ArtifactStore() as store:
        assert store.resolve_manifest(f"{repository}:v1") in digests.values()
        for number, digest in digests.items():
            store.pull(f"{repository}@{digest}", tmp_path / f"dest-{number}", key="key-1")
            assert tree_of(tmp_path / f"dest-{number}") == tree_of(artifacts[number].path)


def test_a_file_that_changes_while_it_is_pushed_leaves_nothing_at_the_tag(
    repository: str, artifact: BuildArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rm_abstract.store import image

    class Changing:
        """A layer whose file changes after its digest was taken."""

        def __init__(self, layer: image.Layer) -> None:
            self.size, self._layer = layer.size, layer

        def digest(self) -> str:
            found = self._layer.digest()
            (artifact.path / "model.bin").write_bytes(b"!" * 3_000_000)
            return found

        def content(self) -> Iterator[bytes]:
            return self._layer.content()

    whole = image.push_image

    def push(backend, target, layers, annotations):  # type: ignore[no-untyped-def]
        return whole(backend, target, map(Changing, layers), annotations)

    monkeypatch.setattr("rm_abstract.store.artifact.push_image", push)
    with ArtifactStore() as store:
        with pytest.raises(BadInput):
            store.push(artifact, f"{repository}:v1")
        assert store.resolve_manifest(f"{repository}:v1") is None
        monkeypatch.undo()


def test_a_damaged_blob_is_found_and_leaves_nothing(
    kept: Place, repository: str, artifact: BuildArtifact, tmp_path: Path
) -> None:
    with ArtifactStore() as store:
        pushed = store.push(artifact, f"{repository}:v1")
        file = max(
            (path for path in kept.files.rglob("*") if path.is_file()),
            key=lambda path: path.stat().st_mtime_ns * (path.stat().st_size > 2_000_000),
        )
        good = file.read_bytes()
        file.write_bytes(good[:1_000_000] + bytes([good[1_000_000] ^ 1]) + good[1_000_001:])
        with pytest.raises(ArtifactMismatch, match="gave other bytes"):
            store.pull(f"{repository}@{pushed.digest}", tmp_path / "dest", key="key-1")
        assert tree_of(tmp_path / "dest") == {}
        file.write_bytes(good)
        store.pull(f"{repository}@{pushed.digest}", tmp_path / "dest", key="key-1")


def test_the_commands(repository: str, artifact: BuildArtifact, tmp_path: Path) -> None:
    def command(*arguments: str) -> dict[str, object]:
        log = tmp_path / "log"
        subprocess.run(
            [sys.executable, "-m", "rm_cli", *arguments], env={**os.environ, "RMA_TERMINATION_LOG": str(log)},
            check=True, capture_output=True,
        )  # fmt: skip
        report: dict[str, object] = json.loads(log.read_text())
        return report

    pushed = command("push", f"--dir={artifact.path}", f"--reference={repository}:v1", "--key=k", "--format=f")
    reference = f"{repository}@{pushed['digest']}"
    fetched = command("fetch", "artifact", f"--reference={reference}", "--key=k", f"--dest={tmp_path / 'dest'}")
    assert (fetched["reason"], fetched["digest"]) == ("Ready", pushed["digest"])
    assert tree_of(tmp_path / "dest") == tree_of(artifact.path)


@pytest.mark.parametrize("kept", ["s3"], indirect=True)
def test_what_is_large_is_in_parts_in_a_bucket_and_goes_on_where_it_ended(
    kept: Place, repository: str, artifact: BuildArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 256 << 10
    monkeypatch.setattr(objects_module, "_PART", part)
    monkeypatch.setattr(objects_module.Bucket.__init__, "__kwdefaults__", {"part": part})
    put, written = objects_module.Bucket._put, []

    def failing(self: objects_module.Bucket, name: str, body: bytes) -> None:
        if len(written) == 5:
            raise SourceUnreachable("the network is gone", reason=Reason.STORE_UNREACHABLE)
        written.append(name)
        put(self, name, body)

    with ArtifactStore() as store:
        monkeypatch.setattr(objects_module.Bucket, "_put", failing)
        with pytest.raises(SourceUnreachable):
            store.push(artifact, f"{repository}:v1")
        assert store.resolve_manifest(f"{repository}:v1") is None
        again: list[str] = []
        monkeypatch.setattr(
            objects_module.Bucket, "_put", lambda self, name, body: (again.append(name), put(self, name, body))[1]
        )
        pushed = store.push(artifact, f"{repository}:v1")
        assert not set(written) & set(again)
        assert (
            sum(".parts/" in name for name in written + again) == 3_000_000 // part + 2
        )  # the last of the layer, and the config
        store.pull(f"{repository}@{pushed.digest}", tmp_path / "dest", key="key-1")
    assert tree_of(tmp_path / "dest") == tree_of(artifact.path)


@pytest.mark.parametrize("kept", ["file"], indirect=True)
def test_a_directory_that_cannot_be_written_or_holds_something_else(
    kept: Place, artifact: BuildArtifact, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with ArtifactStore() as store, pytest.raises(WorkloadError) as raised:
        store.push(artifact, f"file://{tmp_path}/file/repository:v1")
    assert raised.value.reason is Reason.STORE_UNREACHABLE


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("file:///srv/My Store/a/b:v1", ("", "/srv/My Store/a/b", "v1", "", "file")),
        (f"file:///srv/a@{ZERO}", ("", "/srv/a", "", ZERO, "file")),
        ("s3://bucket/pre/fix/a:stage-1", ("bucket", "pre/fix/a", "stage-1", "", "s3")),
        ("host:5000/a/b:v1", ("host:5000", "a/b", "v1", "", "")),
    ],
)
def test_references(text: str, parts: tuple[str, ...]) -> None:
    found = Reference.of_store(text)
    assert (found.host, found.repository, found.tag, found.digest, found.scheme) == parts
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    ["file://host/a:v1", "file:///", "file:///a/../b:v1", "file:///a//b:v1", "file:///a/.:v1", "file:///a:v1:v2",
     "s3:///a:v1", "s3://bucket:v1", "s3://B/a:v1", "s3://bucket/a/../../b:v1", "http://host/a:v1", "file:///a@sha256:0"],
)  # fmt: skip
def test_texts_that_are_no_reference(text: str) -> None:
    with pytest.raises(BadInput, match="is no reference"):
        Reference.of_store(text)
