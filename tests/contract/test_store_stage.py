"""What one Job of a build leaves for the next, against a real registry."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_server import RunningRegistry, running_registry
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore, StageStore
from rm_abstract.store.destination import MARKER
from rm_abstract.store.stage import ANNOTATION_STAGE
from rm_api import names
from rm_api.conditions import Reason
from rm_api.report import Report
from store_support import push_by_hand, tree_of


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def reference(registry: RunningRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", registry.host)
    monkeypatch.delenv("NETRC", raising=False)
    return f"{registry.host}/artifacts/t/{tmp_path.name.replace('_', '-').lower()}:stage-1"


@pytest.fixture
def store(reference: str) -> Iterator[StageStore]:
    with StageStore() as store:
        yield store


@pytest.fixture
def left(tmp_path: Path) -> dict[str, Path]:
    """Directories as the first Job of a build leaves them; the cache is absent, as none was mounted."""
    work, output = tmp_path / "left/work", tmp_path / "left/output"
    (work / "deep/empty").mkdir(parents=True)
    (work / "deep/graph.onnx").write_bytes(os.urandom(200_000))
    (work / "tool").write_text("#!/bin/sh\n")
    (work / "tool").chmod(0o755)
    (work / "graph").symlink_to("deep/graph.onnx")
    output.mkdir()
    (output / "part.bin").write_bytes(b"half")
    return {"work": work, "output": output, "cache": tmp_path / "left/cache"}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Directories of the next Job: mount points, which exist."""
    made = {name: tmp_path / "next" / name for name in ("work", "output", "cache")}
    for path in made.values():
        path.mkdir(parents=True)
    return made


def trees(directories: dict[str, Path]) -> dict[str, Any]:
    return {name: tree_of(path) if path.exists() else {} for name, path in directories.items()}


def test_the_next_job_finds_what_the_first_one_left(
    store: StageStore, reference: str, left: dict[str, Path], places: dict[str, Path]
) -> None:
    pushed = store.push(left, reference, key="k", stage=1)
    assert store.fetch(places, reference, key="k", stage=1) == pushed
    assert trees(places) == trees(left)
    assert os.access(places["work"] / "tool", os.X_OK)
    # Fetched again, as after a restart of the pod's sandbox: what the steps have done to it is undone.
    (places["work"] / "deep/graph.onnx").write_text("changed")
    (places["work"] / "theirs").write_text("stays")
    store.fetch(places, reference, key="k", stage=1)
    assert trees(places) == {**trees(left), "work": {**tree_of(left["work"]), "theirs": (0o644, b"stays")}}


def test_the_same_directories_have_the_same_digest(store: StageStore, reference: str, left: dict[str, Path]) -> None:
    first = store.push(left, reference, key="k", stage=1)
    os.utime(left["work"] / "tool", (0, 0))
    assert store.push(left, reference, key="k", stage=1) == first
    assert store.push(left, reference, key="k", stage=2).digest != first.digest
    assert store.push({**left, "cache": left["output"]}, reference, key="k", stage=1).digest != first.digest


def test_the_manifest_names_key_and_stage(
    store: StageStore, reference: str, registry: RunningRegistry, left: dict[str, Path]
) -> None:
    pushed = store.push(left, reference, key="k", stage=3)
    manifest = json.loads(registry.blob(pushed.digest).read_bytes())
    assert manifest["annotations"] == {names.OCI_ANNOTATION_KEY: "k", ANNOTATION_STAGE: "3"}
    assert {layer["mediaType"] for layer in manifest["layers"]} == {names.MEDIA_TYPE_LAYER}
    assert pushed.size_bytes == sum(layer["size"] for layer in manifest["layers"])


def test_nothing_at_all_is_a_stage_as_well(store: StageStore, reference: str, places: dict[str, Path]) -> None:
    store.push(places, reference, key="k", stage=1)
    store.fetch(places, reference, key="k", stage=1)
    assert trees(places) == {"work": {}, "output": {}, "cache": {}}


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"key": "other", "stage": 1}, "key k, not other"), ({"key": "k", "stage": 2}, "stage 1, not 2")],
)
def test_another_key_or_stage_is_refused(
    store: StageStore,
    reference: str,
    left: dict[str, Path],
    places: dict[str, Path],
    asked: dict[str, Any],
    message: str,
) -> None:
    store.push(left, reference, key="k", stage=1)
    with pytest.raises(ArtifactMismatch, match=message):
        store.fetch(places, reference, **asked)
    assert trees(places) == {"work": {}, "output": {}, "cache": {}}


def test_an_artifact_is_no_stage_and_a_stage_no_artifact(
    store: StageStore, reference: str, left: dict[str, Path], places: dict[str, Path], tmp_path: Path
) -> None:
    with ArtifactStore() as artifacts:
        artifacts.push(BuildArtifact(left["work"], "k", "f"), reference)
        with pytest.raises(ArtifactMismatch, match="stage None, not 1"):
            store.fetch(places, reference, key="k", stage=1)
        digest = store.push(left, reference, key="k", stage=1).digest
        with pytest.raises(ArtifactMismatch, match=r"has no rma-artifact\.json"):
            artifacts.pull(f"{reference.rpartition(':')[0]}@{digest}", tmp_path / "dest", key="k")


def test_a_stage_that_is_not_there(store: StageStore, reference: str, places: dict[str, Path]) -> None:
    with pytest.raises(ArtifactMismatch) as raised:
        store.fetch(places, reference, key="k", stage=1)
    assert raised.value.reason is Reason.ARTIFACT_MISSING


def packed(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """A tar of (name, type, content, target of a link)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, content, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), target
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


FINE = ("work/fine", tarfile.REGTYPE, b"x", "")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (("home/x", tarfile.REGTYPE, b"x", ""), "no directory is named"),
        (("work", tarfile.REGTYPE, b"x", ""), "no directory"),
        (("work/../output/x", tarfile.REGTYPE, b"x", ""), "leads out of the tree"),
        (("work/link", tarfile.SYMTYPE, b"", "../output/part.bin"), "leads out of the tree"),
        (("work/link", tarfile.LNKTYPE, b"", "output/fine"), "no file of the layer"),
        (("work/npu0", tarfile.CHRTYPE, b"", ""), "neither a file"),
    ],
    ids=["another directory", "a file for a directory", "traversal", "link", "hard link", "device"],
)
def test_a_bad_layer_leaves_all_directories_as_they_were(
    store: StageStore,
    reference: str,
    left: dict[str, Path],
    places: dict[str, Path],
    bad: tuple[str, bytes, bytes, str],
    message: str,
) -> None:
    store.push(left, reference, key="k", stage=1)
    store.fetch(places, reference, key="k", stage=1)
    before = trees(places)
    outside = ("output/fine", tarfile.REGTYPE, b"x", "")
    push_by_hand(reference, [packed(outside, FINE, bad)], {names.OCI_ANNOTATION_KEY: "k", ANNOTATION_STAGE: "1"})
    with pytest.raises(ArtifactMismatch, match=message):
        store.fetch(places, reference, key="k", stage=1)
    assert trees(places) == before


def test_a_directory_that_is_not_complete_is_not_pushed(
    store: StageStore, reference: str, left: dict[str, Path]
) -> None:
    (left["work"] / MARKER).mkdir()
    with pytest.raises(BadInput, match="not filled completely"):
        store.push(left, reference, key="k", stage=1)


def test_what_cannot_be_published_in_one_directory_is_published_in_none(
    store: StageStore, reference: str, left: dict[str, Path], places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (places["work"] / "tool").write_text("what was there")
    before = trees(places)
    store.push(left, reference, key="k", stage=1)
    rename, last = Path.rename, places["work"] / "tool"

    def failing(path: Path, target: Path) -> Path:
        if target == last and MARKER in path.parts and path.parent.name == "tree":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space left"):
        store.fetch(places, reference, key="k", stage=1)
    assert trees(places) == before
    assert not any((path / MARKER).exists() for path in places.values())


def command(tmp_path: Path, *arguments: str) -> tuple[int, Report]:
    log = tmp_path / "termination-log"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "rm_cli", "stage", *arguments],
        env={**os.environ, "RMA_TERMINATION_LOG": str(log)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, Report.parse(log.read_text()) if log.exists() else Report(reason=Reason.REPORT_MISSING)


def test_the_commands_as_a_build_calls_them(
    reference: str, left: dict[str, Path], places: dict[str, Path], tmp_path: Path
) -> None:
    def options(directories: dict[str, Path], key: str = "sha256:00ff") -> list[str]:
        named = [f"--dir={name}={path}" for name, path in directories.items()]
        return [f"--reference={reference}", f"--key={key}", "--stage=1", *named]

    code, report = command(tmp_path, "push", *options(left))
    assert (code, report.reason) == (0, Reason.BUILT)
    assert (report.sizeBytes or 0) > 200_000
    fetched, second = command(tmp_path, "fetch", *options(places))
    assert (fetched, second.reason, second.digest) == (0, Reason.READY, report.digest)
    assert trees(places) == trees(left)
    code, report = command(tmp_path, "fetch", *options(places, key="sha256:11"))
    assert (code, report.reason) == (65, Reason.ARTIFACT_MISMATCH)


@pytest.mark.parametrize("directories", [["work"], ["=/x"], ["work=/x", "work=/y"], ["a=/x", "b=/x/../x"], ["../a=/x"]])
def test_directories_that_cannot_be_meant(tmp_path: Path, directories: list[str]) -> None:
    options = [f"--dir={each}" for each in directories]
    code, _ = command(tmp_path, "push", "--reference=h/r:stage-1", "--key=k", "--stage=1", *options)
    assert code == 2
