"""Bundles between two real registries: complete or not there, whatever happens in between, and never damaged unseen."""

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from registry_server import RunningRegistry, running_registry
from rm_abstract.core.errors import ArtifactMismatch, BadInput, Transient, WorkloadError
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.http import Http
from rm_abstract.sources import resolve_model
from rm_abstract.store import ArtifactStore, bundle, push_model
from rm_abstract.store.backend import Backends
from rm_abstract.store.bundle import Bundle, Contents
from rm_abstract.store.oci_layout import Layout, LayoutWriter, write_tar

KEY = "5" * 64
REPOSITORY = "artifacts/team/a-one"
BLOBS = "blobs/sha256"


@dataclass(frozen=True)
class Given:
    """A model and an artifact where they come from."""

    facts: dict[str, Any]
    """Of the model in the registry."""
    location: str
    model: Path
    """The same model in the volume claim ``models``; each test has its own."""
    built: Path
    hosts: str


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    directory = tmp_path_factory.mktemp("here")
    with running_registry(directory) as registry, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMA_PLAIN_HTTP_HOSTS", registry.host)
        patch.delenv("NETRC", raising=False)
        model, built = directory / "model", directory / "built"
        write_model(model)
        (built / "deep").mkdir(parents=True)
        (built / "model.bin").write_bytes(random.Random(1).randbytes(700_000))
        (built / "deep/more").write_text("more")
        with ArtifactStore(max_layer_bytes=300_000) as store:
            pushed = store.push(BuildArtifact(built, KEY, "fmt"), f"{registry.host}/{REPOSITORY}:v1")
        source = f"oci://{registry.host}/acme/tiny:1"
        push_model(model, source)
        location = f"{registry.host}/{REPOSITORY}@{pushed.digest}"
        yield Given(resolve_model(source), location, model, built, registry.host)


@pytest.fixture
def given(here: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", here.hosts)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("RMA_PVC_DIR", str(tmp_path / "volumes"))
    mine = replace(here, model=tmp_path / "volumes/models/tiny", built=tmp_path / "built")
    shutil.copytree(here.model, mine.model)
    shutil.copytree(here.built, mine.built)
    return mine


@pytest.fixture
def there(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningRegistry]:
    """A registry that has nothing yet."""
    with running_registry(tmp_path) as registry:
        monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", f"{given.hosts},{registry.host}")
        yield registry


def write_model(directory: Path) -> None:
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
        "max_position_embeddings": 128,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    shards = {}
    for number in range(3):
        header = json.dumps(
            {f"w{number}": {"dtype": "BF16", "shape": [1700, 32], "data_offsets": [0, 108800]}}
        ).encode()
        weights = struct.pack("<Q", len(header)) + header + random.Random(number).randbytes(108800)
        (directory / f"model-{number}.safetensors").write_bytes(weights)
        shards[f"w{number}"] = f"model-{number}.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def quiet(_: str) -> None:
    """Nobody waits for it."""


def export(given: Given, directory: Path, source: str | None = None) -> None:
    """A bundle of the model and the artifact."""
    facts = given.facts if source is None else resolve_model(source)
    with LayoutWriter(directory) as writer, Backends() as stores:
        artifact, size = bundle.add_artifact(stores, given.location, KEY, writer, quiet)
        model, model_size = bundle.add_model(facts["source"], facts["revision"], facts["weightsDigest"], writer, quiet)
        contents = Contents(
            "1.0",
            [bundle.Model(facts["source"], facts["revision"], model.digest, model_size)],
            [bundle.Artifact("team", "a-one", KEY, artifact.digest, size, {})],
            [bundle.Deployment("team", "chat", facts, ["a-one"])],
            [bundle.Image("reg.example.com/x:1", "sha256:" + "e" * 64, ["step"])],
        )
        bundle.finish(writer, contents, "kind: X\n", [bundle.named(artifact, REPOSITORY), bundle.named(model, "m/x:1")])


def push_all(there: RunningRegistry, read: Bundle) -> int:
    read.layout.verify()
    with Backends() as stores:
        pushed = read.push(read.contents.models[0].digest, stores, f"{there.host}/models/tiny:1", quiet)
        at = f"{there.host}/{REPOSITORY}:v1"
        return pushed + read.push(read.contents.artifacts[0].digest, stores, at, quiet)


def check_there(given: Given, there: RunningRegistry, read: Bundle, destination: Path) -> None:
    """What came out is what went in."""
    facts = resolve_model(f"oci://{there.host}/models/tiny:1")
    same = ("configDigest", "tensorsDigest", "weightsDigest", "parameters", "architecture")
    assert [facts[name] for name in same] == [given.facts[name] for name in same]
    assert facts["revision"] == read.contents.models[0].digest
    at = f"{there.host}/{REPOSITORY}@{read.contents.artifacts[0].digest}"
    assert given.location.endswith(read.contents.artifacts[0].digest)
    with ArtifactStore() as store:
        store.pull(at, destination, key=KEY)
    assert (destination / "model.bin").read_bytes() == (given.built / "model.bin").read_bytes()
    assert (destination / "deep/more").read_text() == "more"


def is_there(there: RunningRegistry, reference: str) -> bool:
    with ArtifactStore() as store:
        return store.resolve_manifest(f"{there.host}/{reference}") is not None


@pytest.mark.parametrize("source", ["registry", "volume"])
@pytest.mark.parametrize("packed", [False, True], ids=["directory", "tar"])
def test_what_arrives_is_what_was_sent(
    given: Given, there: RunningRegistry, tmp_path: Path, source: str, packed: bool
) -> None:
    path = tmp_path / "bundle"
    export(given, path, None if source == "registry" else "pvc://models/tiny")
    if packed:
        write_tar(path, tmp_path / "bundle.tar")
        path = tmp_path / "bundle.tar"
    read = Bundle(path)
    assert read.objects == b"kind: X\n"
    assert push_all(there, read) == 2
    check_there(given, there, read, tmp_path / "pulled")
    assert push_all(there, read) == 0


def test_the_same_content_is_the_same_bundle_and_what_is_gone_leaves_it(given: Given, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    export(given, path, "pvc://models/tiny")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    export(given, path, "pvc://models/tiny")
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    (given.model / "tokenizer.json").write_text('{"v": 2}')
    export(given, path, "pvc://models/tiny")
    read = Bundle(path)
    blobs = {f"sha256:{file.name}" for file in (path / BLOBS).iterdir()}
    assert blobs == {each.digest for each in read.layout.reachable()}
    assert len(read.layout.manifests()) == 3


def each_time(
    action: Callable[[int], object], watch: Callable[[Callable[[], None]], None], *, step: int = 1
) -> Iterator[int]:
    """Runs ``action(n)`` in a process of its own that kills itself at the n-th event, until one survives.

    ``n`` begins at 1 and grows by ``step``.
    """
    count = 1 - step
    while True:
        count += step
        child = os.fork()
        if child == 0:
            left = count

            def event() -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            code = 1
            try:
                watch(event)
                action(count)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return
        yield count


def at_file_events(event: Callable[[], None]) -> None:
    """Tells of each call that touches the file system, before it is made."""
    touching = {"open", "os.rename", "os.remove", "os.mkdir"}
    sys.addaudithook(lambda name, _: event() if name in touching else None)


def at_requests(event: Callable[[], None]) -> None:
    """Tells of each request to a registry, before it is sent and after it was answered."""
    request = Http.request

    def told(self: Http, *arguments: Any, **options: Any) -> Any:
        event()
        try:
            return request(self, *arguments, **options)
        finally:
            event()

    Http.request = told  # type: ignore[method-assign]


def test_an_export_that_is_killed_leaves_nothing_that_looks_like_a_bundle(given: Given, tmp_path: Path) -> None:
    kills, fresh = 0, tmp_path / "fresh"
    for kills in each_time(
        lambda number: export(given, fresh / str(number), "pvc://models/tiny"), at_file_events, step=3
    ):
        path = fresh / str(kills)
        if not path.exists():
            continue
        if (path / "index.json").exists():
            # Only what nobody needs any more can be left to do.
            Bundle(path).layout.verify()
            continue
        with pytest.raises(BadInput, match=r"is not finished|is no bundle"):
            Bundle(path)
    assert kills > 30


def test_an_export_goes_on_where_it_was_killed(given: Given, there: RunningRegistry, tmp_path: Path) -> None:
    path, seen = tmp_path / "bundle", dict[str, int]()
    for _ in each_time(lambda _: export(given, path, "pvc://models/tiny"), at_file_events):
        for name, inode in seen.items():
            assert (path / BLOBS / name).stat().st_ino == inode, "what was in place was fetched again"
        complete = [
            file for file in (path / BLOBS).glob("*") if file.suffix != ".part" and file.stat().st_size > 50_000
        ]
        seen = {file.name: file.stat().st_ino for file in complete}
    Bundle(path).layout.verify()
    assert push_all(there, Bundle(path)) == 2


def test_a_bundle_that_is_brought_up_to_date_is_the_old_or_the_new_one_at_any_time(
    given: Given, tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    export(given, path, "pvc://models/tiny")
    old = Bundle(path).contents
    (given.model / "model-1.safetensors").write_bytes((given.model / "model-2.safetensors").read_bytes())
    shards = {"w0": "model-0.safetensors", "w2": "model-1.safetensors"}
    (given.model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    found = set()
    for _ in each_time(lambda _: export(given, path, "pvc://models/tiny"), at_file_events, step=2):
        now = Bundle(path)
        now.layout.verify()
        found.add(now.contents == old)
    assert Bundle(path).contents != old
    assert found == {True, False}


def test_an_import_that_is_killed_shows_nothing_that_is_not_complete(
    given: Given, there: RunningRegistry, tmp_path: Path
) -> None:
    export(given, tmp_path / "bundle")
    read = Bundle(tmp_path / "bundle")
    kills = 0
    for kills in each_time(lambda _: push_all(there, Bundle(tmp_path / "bundle")), at_requests, step=3):
        if is_there(there, f"{REPOSITORY}:v1"):
            check_there(given, there, read, tmp_path / f"pulled-{kills}")
        if is_there(there, "models/tiny:1"):
            resolve_model(f"oci://{there.host}/models/tiny:1")
    assert kills > 10
    check_there(given, there, read, tmp_path / "pulled")


@pytest.mark.parametrize("packed", [False, True], ids=["directory", "tar"])
@pytest.mark.parametrize("change", ["flipped", "truncated", "missing"])
def test_damage_is_found_in_each_blob_before_anything_is_pushed(
    given: Given, there: RunningRegistry, tmp_path: Path, change: str, packed: bool
) -> None:
    good = tmp_path / "bundle"
    export(given, good)
    names = sorted(file.name for file in (good / BLOBS).iterdir())
    for name in names:
        file = good / BLOBS / name
        raw = file.read_bytes()
        if change == "missing":
            file.unlink()
        else:
            middle = len(raw) // 2
            flipped = raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]
            file.write_bytes(raw[:-1] if change == "truncated" else flipped)
        path = packed_by_hand(good, tmp_path / "bundle.tar") if packed else good
        with pytest.raises(ArtifactMismatch, match=r"damaged|not complete|cannot be read|no image manifest"):
            push_all(there, Bundle(path))
        file.write_bytes(raw)
    assert not is_there(there, f"{REPOSITORY}:v1")
    assert not is_there(there, "models/tiny:1")
    assert not list(there.storage.rglob("data")), "nothing was uploaded"
    assert push_all(there, Bundle(good)) == 2


def packed_by_hand(directory: Path, target: Path) -> Path:
    """As ``tar -cf TARGET .`` does: with directories, and names that begin with a dot."""
    with tarfile.open(target, "w") as archive:
        archive.add(directory, ".")
    return target


def change_index(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((path / "index.json").read_bytes())
    change(index)
    (path / "index.json").write_text(json.dumps(index))


def test_a_bundle_of_a_later_schema_is_refused_with_the_way_out(given: Given, tmp_path: Path) -> None:
    export(given, tmp_path / "bundle")
    change_index(tmp_path / "bundle", lambda index: index["annotations"].update({bundle.ANNOTATION_SCHEMA: "2"}))
    with pytest.raises(
        BadInput, match="made by a later rm-abstract: its schema is 2, and this version reads 1; use that"
    ):
        Bundle(tmp_path / "bundle")


def empty_tar(path: Path) -> None:
    tarfile.open(path, "w").close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is no bundle: it has no index.json"),
        (lambda path: path.write_bytes(b"x" * 3000), "neither a directory nor a whole tar"),
        (empty_tar, "has no index.json"),
    ],
    ids=["nothing", "empty directory", "other file", "empty tar"],
)
def test_what_is_no_bundle_is_refused(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "bundle")
    with pytest.raises(BadInput, match=said):
        Bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(annotations={}),
        lambda index: index.update(annotations=[1]),
        lambda index: index.pop("manifests"),
        lambda index: index["manifests"].clear(),
        lambda index: index["manifests"].append({"digest": "sha256:../../etc/passwd", "size": 1, "mediaType": "x"}),
        lambda index: index["manifests"].append({"digest": "sha256:" + "0" * 64, "size": -1, "mediaType": "x"}),
        lambda index: index["manifests"].append(index["manifests"][0]),
        lambda index: index["manifests"].pop(),
    ],
    ids=["no annotations", "odd annotations", "no list", "empty", "path", "negative size", "twice", "one less"],
)  # fmt: skip
def test_an_index_that_is_wrong_is_refused(given: Given, tmp_path: Path, change: Callable[[Any], None]) -> None:
    export(given, tmp_path / "bundle")
    change_index(tmp_path / "bundle", change)
    with pytest.raises((ArtifactMismatch, BadInput)):
        Bundle(tmp_path / "bundle")


def test_a_tar_that_is_cut_off_is_refused(given: Given, there: RunningRegistry, tmp_path: Path) -> None:
    export(given, tmp_path / "bundle")
    whole = tmp_path / "bundle.tar"
    write_tar(tmp_path / "bundle", whole)
    raw = whole.read_bytes()
    for size in (0, 100, 5000, len(raw) // 2, len(raw) - 20_000):
        whole.write_bytes(raw[:size])
        with pytest.raises(WorkloadError):
            push_all(there, Bundle(whole))
    assert not list(there.storage.rglob("data"))


def test_a_full_volume_is_said_and_what_is_there_is_used_again(given: Given, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    # The kernel refuses larger files of this process, as a full volume refuses any.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(Transient, match=f"the volume of {path} is full .*make room, and run the same again"):
            export(given, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(BadInput, match="is not finished: run its export once more"):
        Bundle(path)
    export(given, path)
    assert not list((path / BLOBS).glob("*.part"))
    Bundle(path).layout.verify()


def test_two_exports_into_one_directory(given: Given, tmp_path: Path) -> None:
    with (
        LayoutWriter(tmp_path / "bundle"),
        pytest.raises(BadInput, match="is being written by another process"),
        LayoutWriter(tmp_path / "bundle"),
    ):
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    with pytest.raises(BadInput, match="not empty, and is no OCI image layout"), LayoutWriter(tmp_path / "mine"):
        pass


def test_another_model_than_the_one_that_was_resolved(given: Given, tmp_path: Path) -> None:
    facts = resolve_model("pvc://models/tiny")
    (given.model / "tokenizer.json").write_text('{"v": 2}')
    with LayoutWriter(tmp_path / "bundle") as writer:
        with pytest.raises(ArtifactMismatch, match="has changed"):
            bundle.add_model(facts["source"], facts["revision"], facts["weightsDigest"], writer, quiet)
        now = resolve_model("pvc://models/tiny")
        with pytest.raises(ArtifactMismatch, match="the weights of pvc://models/tiny have digest"):
            bundle.add_model(now["source"], now["revision"], "sha256:" + "0" * 64, writer, quiet)
        gone = given.location[:-64] + "0" * 64
        with Backends() as stores:
            with pytest.raises(ArtifactMismatch, match=r"key 5+, not 6+"):
                bundle.add_artifact(stores, given.location, "6" * 64, writer, quiet)
            with pytest.raises(ArtifactMismatch, match="not complete in the store"):
                bundle.add_artifact(stores, gone, KEY, writer, quiet)


def test_an_artifact_of_the_same_key_that_was_built_there_stays(
    given: Given, there: RunningRegistry, tmp_path: Path
) -> None:
    export(given, tmp_path / "bundle")
    (given.built / "model.bin").write_bytes(b"another build of the same")
    with ArtifactStore() as store:
        theirs = store.push(BuildArtifact(given.built, KEY, "fmt"), f"{there.host}/{REPOSITORY}:v1")
    assert push_all(there, Bundle(tmp_path / "bundle")) == 1
    with ArtifactStore() as store:
        assert store.resolve_manifest(f"{there.host}/{REPOSITORY}:v1") == theirs.digest


def test_the_layout_is_what_the_oci_says(given: Given, tmp_path: Path) -> None:
    export(given, tmp_path / "bundle")
    path = tmp_path / "bundle"
    assert json.loads((path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert sorted(each.name for each in path.iterdir()) == ["blobs", "index.json", "oci-layout"]
    index = json.loads((path / "index.json").read_bytes())
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    named = {each["annotations"]["org.opencontainers.image.ref.name"]: each for each in index["manifests"]}
    assert set(named) == {"rm-abstract-bundle", REPOSITORY, "m/x:1"}
    assert named[REPOSITORY]["platform"]["os"] == "linux"
    layout = Layout(path)
    for each in layout.reachable():
        listed = subprocess.run(
            ["sha256sum", path / BLOBS / each.digest.removeprefix("sha256:")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert listed.stdout.split()[0] == each.digest.removeprefix("sha256:")
    assert b"reg.example.com/x:1@sha256:eeee" in layout.read(
        next(
            part
            for part in layout.parts(layout.manifests()[0])
            if part.annotations.get("org.opencontainers.image.title") == "images.txt"
        )
    )
