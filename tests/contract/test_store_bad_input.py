"""Layers, manifests and trees that nobody should make: refused with a reason, and nothing of them stays."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rm_abstract.core.errors import ArtifactMismatch, BadInput, Transient
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.store import ArtifactStore, Reference
from rm_abstract.store.layers import Unpacking, extract, pack
from rm_abstract.store.registry import Descriptor, sha256
from rm_api import names
from store_support import tree_of


@pytest.fixture
def store() -> Iterator[ArtifactStore]:
    with ArtifactStore(max_entries=50) as store:
        yield store


def header(name: str = "file", size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: Any) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def extended(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("././@PaxHeader", len(records), kind) + padded(records)


def record(name: str, value: str) -> bytes:
    body = f" {name}={value}\n".encode()
    length = len(body) + len(str(len(body) + 3))
    return str(length).encode() + body


END = bytes(1024)
DESCRIPTION = json.dumps({"schema": 1, "key": "k", "format": "f"}).encode()
OURS = header("rma-artifact.json", len(DESCRIPTION)) + padded(DESCRIPTION)
ONE = header("file", 1) + padded(b"x")


def renamed(raw: bytes, field: slice, value: bytes) -> bytes:
    """A header with another field, and the sum that belongs to it."""
    changed = bytearray(raw)
    changed[field] = value.ljust(field.stop - field.start, b"\0")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


SIZE = slice(124, 136)

TARS: dict[str, tuple[bytes, str]] = {
    "larger than the layer": (header("file", 8 << 30) + b"x" * 512 + END, "ends in the middle"),
    "a negative size": (renamed(header("file"), SIZE, b"\xff" * 11 + b"\x80") + END, "bytes"),
    "an absurd size": (extended(record("size", "9" * 30)) + ONE + END, "bytes"),
    "a size that is none": (extended(record("size", "-1")) + ONE + END, "bytes"),
    "a file with holes": (header("holes", 1, tarfile.GNUTYPE_SPARSE) + padded(b"x") + END, "holes"),
    "a file with holes, new style": (extended(record("GNU.sparse.major", "1")) + ONE + END, "holes"),
    "a huge extended header": (header("x", 3 << 20, tarfile.XHDTYPE) + bytes(3 << 20) + END, "extended header has"),
    "a huge long name": (header("x", 3 << 20, tarfile.GNUTYPE_LONGNAME) + bytes(3 << 20) + END, "extended header has"),
    "many extended headers": (extended(record("comment", "x")) * 2000 + ONE + END, "too many extended headers"),
    "an extended header that is none": (extended(b"99 path=x\n") + ONE + END, "cannot be understood"),
    "an extended header without length": (extended(b"path=x\n") + ONE + END, "cannot be understood"),
    "a bad sum": (b"y" + ONE[1:] + END, "no valid tar"),
    "no end": (ONE, "ends in the middle"),
    "a path out of the tree in an extended header": (extended(record("path", "../evil")) + ONE + END, "leads out"),
    "a long path out of the tree": (
        header("x", 8, tarfile.GNUTYPE_LONGNAME) + padded(b"/../evil") + ONE + END, "leads out"
    ),
    "a link out of the tree in an extended header": (
        extended(record("linkpath", "/etc")) + header("l", kind=tarfile.SYMTYPE) + END, "leads out"
    ),
    "the same file twice": (ONE + ONE + END, "twice"),
    "the same file twice, written otherwise": (ONE + header("./file", 1) + padded(b"y") + END, "twice"),
    "the same file twice, by a link": (
        header("d", kind=tarfile.DIRTYPE) + header("d/f") + header("l", kind=tarfile.SYMTYPE, linkname="d")
        + header("l/f") + END, "twice",
    ),
    "a file in the place of a link": (
        header("l", kind=tarfile.SYMTYPE, linkname="rma-artifact.json") + header("l", 1) + padded(b"x") + END, "twice"
    ),
    "a file below a file": (ONE + header("file/below") + END, "both a file and a directory"),
    "too many entries": (b"".join(header(f"f{number}") for number in range(60)) + END, "more than 50 entries"),
    "too many directories": (
        b"".join(header(f"d{number}", kind=tarfile.DIRTYPE) for number in range(60)) + END, "more than 50 entries"
    ),
    "a name that is too long": (extended(record("path", "n" * 300)) + ONE + END, "no file can have"),
    "a path that is too long": (extended(record("path", "/".join(["n" * 90] * 60))) + ONE + END, "no file can have"),
    "a device": (header("npu0", kind=tarfile.BLKTYPE) + END, "neither a file"),
    "a hard link out of the tree": (header("h", kind=tarfile.LNKTYPE, linkname="../../hostname") + END, "leads out"),
    "a hard link to a directory": (
        header("d", kind=tarfile.DIRTYPE) + header("h", kind=tarfile.LNKTYPE, linkname="d") + END,
        "no file of the layer",
    ),
}  # fmt: skip


def push(base: Path, layers: list[bytes], *, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> str:
    """Put an image into a directory by hand, and return the reference to it."""
    from rm_abstract.store.backend import Backends

    with Backends() as backends:
        backend, target = backends.at(f"file://{base}/r:v1")
        descriptors = []
        for raw in layers:
            backend.put_blob(target, sha256(raw), len(raw), lambda raw=raw: [raw])  # type: ignore[misc]
            descriptors.append(Descriptor(names.MEDIA_TYPE_LAYER, sha256(raw), len(raw), {}).to_json())
        config = json.dumps({"rootfs": {"diff_ids": [each["digest"] for each in descriptors]}}).encode()
        backend.put_blob(target, sha256(config), len(config), lambda: [config])
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": names.MEDIA_TYPE_MANIFEST,
            "config": Descriptor(names.MEDIA_TYPE_CONFIG, sha256(config), len(config), {}).to_json(),
            "layers": descriptors,
            "annotations": {names.OCI_ANNOTATION_KEY: "k"},
        }
        change(manifest)
        return str(target.at(backend.put_manifest(target, json.dumps(manifest).encode())))


@pytest.mark.parametrize("name", TARS)
def test_a_layer_that_nobody_should_make(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    raw, message = TARS[name]
    reference = push(tmp_path / "store", [OURS + raw])
    with pytest.raises(ArtifactMismatch, match=message):
        store.pull(reference, tmp_path / "dest", key="k")
    assert tree_of(tmp_path / "dest") == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "store"]


def test_the_same_file_in_two_layers(store: ArtifactStore, tmp_path: Path) -> None:
    reference = push(tmp_path / "store", [OURS + ONE + END, ONE + END])
    with pytest.raises(ArtifactMismatch, match="twice"):
        store.pull(reference, tmp_path / "dest", key="k")
    assert tree_of(tmp_path / "dest") == {}


def test_what_many_small_layers_hold_together_is_counted(store: ArtifactStore, tmp_path: Path) -> None:
    layers = [b"".join(header(f"{n}-{m}") for m in range(10)) + END for n in range(6)]
    with pytest.raises(ArtifactMismatch, match="more than 50 entries"):
        store.pull(push(tmp_path / "store", [OURS + END, *layers]), tmp_path / "dest", key="k")
    assert tree_of(tmp_path / "dest") == {}


def test_an_archive_of_a_common_tool_is_understood(tmp_path: Path) -> None:
    """Each format that Python writes, with names that are long, and with letters beyond ASCII."""
    for number, format_ in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        buffer, root = io.BytesIO(), tmp_path / str(number)
        root.mkdir()
        wanted = {"ünïcode": b"1", "d/" + "n" * 90 + "/" + "m" * 90: b"2" * 5000, "empty": b""}
        with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
            for name, content in wanted.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        for compressed in (False, True):
            raw = gzip.compress(buffer.getvalue()) + gzip.compress(b"") if compressed else buffer.getvalue()
            extract([raw[n : n + 700] for n in range(0, len(raw), 700)], root, compressed=compressed)
            assert {name: (root / name).read_bytes() for name in wanted} == wanted


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-5], lambda raw: b"x" + raw, lambda raw: raw[:50] + b"!" + raw[51:]]
)
def test_gzip_that_is_damaged(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ArtifactMismatch, match="no valid tar"):
        extract([damage(gzip.compress(ONE + os.urandom(500) + END))], tmp_path, compressed=True)


def absurd_layers(manifest: dict[str, Any]) -> None:
    manifest["layers"] *= 20_000


def absurd_size(manifest: dict[str, Any]) -> None:
    manifest["layers"][0]["size"] = 1 << 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (absurd_layers, "no artifact can have"),
        (absurd_size, "no artifact can have"),
        (lambda manifest: manifest["layers"][0].update(size=-1), "not valid"),
        (lambda manifest: manifest["layers"][0].update(size=1.5), "not valid"),
        (lambda manifest: manifest["layers"][0].update(digest="sha256:../../x"), "not valid"),
        (lambda manifest: manifest["layers"][0].update(digest="md5:00"), "not valid"),
        (lambda manifest: manifest.update(layers=[None]), "without mediaType"),
        (lambda manifest: manifest.update(layers={}), "no image manifest"),
        (lambda manifest: manifest.update(annotations=[]), "key None"),
        (lambda manifest: manifest.update(annotations="x"), "no manifest"),
        (lambda manifest: manifest["config"].update(size=1 << 30), "config of type"),
        (lambda manifest: manifest.update(junk="x" * (5 << 20)), "larger than"),
    ],
)
def test_a_manifest_that_nobody_should_make(
    store: ArtifactStore, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    reference = push(tmp_path / "store", [OURS + ONE + END], change=change)
    with pytest.raises(ArtifactMismatch, match=message):
        store.pull(reference, tmp_path / "dest", key="k")
    assert not (tmp_path / "dest").exists() or tree_of(tmp_path / "dest") == {}


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"[" * 100_000, b"\xff"])
def test_a_manifest_that_is_none(store: ArtifactStore, tmp_path: Path, body: bytes) -> None:
    from rm_abstract.store.backend import Backends

    with Backends() as backends:
        backend, target = backends.at(f"file://{tmp_path}/store/r:v1")
        reference = str(target.at(backend.put_manifest(target, body)))
    with pytest.raises(ArtifactMismatch, match=r"no (image )?manifest"):
        store.pull(reference, tmp_path / "dest", key="k")


def test_what_has_no_room_is_not_begun(store: ArtifactStore, tmp_path: Path) -> None:
    def larger_than_the_disk(manifest: dict[str, Any]) -> None:
        manifest["layers"][0]["size"] = 1 << 49

    reference = push(tmp_path / "store", [OURS + ONE + END], change=larger_than_the_disk)
    with pytest.raises(Transient, match="no room"):
        store.pull(reference, tmp_path / "dest", key="k")
    assert tree_of(tmp_path / "dest") == {}


def test_a_tree_that_nobody_could_fetch_is_not_pushed(store: ArtifactStore, tmp_path: Path) -> None:
    cases: dict[str, Callable[[Path], None]] = {
        "neither a file": lambda root: os.mkfifo(root / "pipe"),
        "leads out of the tree": lambda root: (root / "link").symlink_to("/etc/passwd"),
        "layers of images delete": lambda root: (root / ".wh.file").write_text(""),
        "more than 50": lambda root: [(root / str(number)).write_text("") for number in range(60)] and None,
    }
    for message, make in cases.items():
        root = tmp_path / message.replace(" ", "-")
        root.mkdir()
        make(root)
        with pytest.raises(BadInput, match=message):
            store.push(BuildArtifact(root, "k", "f"), f"file://{tmp_path}/store/r:v1")
    assert store.resolve_manifest(f"file://{tmp_path}/store/r:v1") is None


def test_a_description_that_is_a_link_does_not_lead_the_pen_elsewhere(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    (tmp_path / "other").write_text("untouched")
    (tmp_path / "built/rma-artifact.json").symlink_to(tmp_path / "other")
    (tmp_path / "built/model").write_text("x")
    pushed = store.push(BuildArtifact(tmp_path / "built", "k", "f"), f"file://{tmp_path}/store/r:v1")
    assert (tmp_path / "other").read_text() == "untouched"
    store.pull(f"file://{tmp_path}/store/r@{pushed.digest}", tmp_path / "dest", key="k")


def test_what_a_fetch_keeps_for_itself_is_no_part_of_an_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    (tmp_path / "built/model").write_text("x")
    pushed = store.push(BuildArtifact(tmp_path / "built", "k", "f"), f"file://{tmp_path}/store/r:v1")
    store.pull(f"file://{tmp_path}/store/r@{pushed.digest}", tmp_path / "dest", key="k")
    assert store.push(BuildArtifact(tmp_path / "dest", "k", "f"), f"file://{tmp_path}/store/r:v2") == pushed


@pytest.mark.parametrize("name", ["..", "../x", "a/../../b", "/etc", "a//b", ".", "a b", "A", "a%2f..%2fb", "a\n"])
def test_names_of_artifacts_that_lead_elsewhere(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="is no reference"):
        store.resolve_manifest(f"127.0.0.1:1/artifacts/{name}:v1")


def test_a_tree_that_is_packed_can_always_be_unpacked(tmp_path: Path) -> None:
    """The oracle for the reader: names of every length around the limits of the formats, in any bytes."""
    root, copy = tmp_path / "root", tmp_path / "copy"
    root.mkdir()
    copy.mkdir()
    for length in (1, 98, 99, 100, 101, 154, 155, 156, 255):
        (root / ("n" * length)).write_bytes(bytes([length]) * (length * 7))
        (root / ("d" * min(length, 200)) / ("é" * (length // 2))).mkdir(parents=True)
    with open(os.fsencode(root) + b"/\xff\xfe", "wb") as file:
        file.write(b"odd")
    (root / "l").symlink_to("n" * 200)
    unpacking = Unpacking({"": copy})
    for layer in pack(root, 4096):
        unpacking.layer(layer.content())
    assert tree_of(copy) == tree_of(root)


def test_references_cannot_be_used_to_reach_the_tags_of_another(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither a tag nor a digest"):
        Reference.of_store(f"file://{tmp_path}/r:v1").at("../../other/tags/v1")
