"""Trees as tar layers: deterministic, split, and extracted without trust."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.store.layers import Layer, extract, pack
from rm_abstract.store.reference import Reference


def make_tree(root: Path) -> None:
    (root / "a/deep/er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a/deep/er/file").write_bytes(bytes(range(256)) * 5)
    (root / "b").write_bytes(b"b" * 512)
    (root / "zero").write_bytes(b"")
    (root / ("n" * 180)).write_text("a long name")
    (root / "ünïcode").write_text("text")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o700)
    (root / "a/up").symlink_to("../b")


def snapshot(root: Path) -> dict[str, object]:
    return {
        path.relative_to(root).as_posix(): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
            bool(path.lstat().st_mode & stat.S_IXUSR),
        )
        for path in root.rglob("*")
    }


def data(layers: list[Layer]) -> list[bytes]:
    return [b"".join(layer.content()) for layer in layers]


def test_the_same_tree_gives_the_same_bytes_whatever_its_times_and_modes(tmp_path: Path) -> None:
    trees = []
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        make_tree(root)
        trees.append(root)
    os.utime(trees[1] / "b", (0, 0))
    (trees[1] / "b").chmod(0o606)
    assert data(pack(trees[0])) == data(pack(trees[1]))
    (layer,) = pack(trees[0])
    raw = data([layer])[0]
    assert layer.size == len(raw)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


@pytest.mark.parametrize("limit", [1, 2000, 4096, 1 << 20])
def test_layers_together_are_the_tree(tmp_path: Path, limit: int) -> None:
    root, copy = tmp_path / "tree", tmp_path / "copy"
    root.mkdir()
    copy.mkdir()
    make_tree(root)
    layers = pack(root, limit)
    for layer in layers:
        assert layer.size <= limit or len(layer.entries) == 1
        extract(layer.content(), copy)
    assert snapshot(copy) == snapshot(root)


def test_an_empty_tree_is_a_layer(tmp_path: Path) -> None:
    (layer,) = pack(tmp_path)
    assert b"".join(layer.content()) == bytes(1024)


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "b/../../x"])
def test_a_link_out_of_the_tree_is_not_packed(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(BadInput, match="leads out of the tree"):
        pack(tmp_path)


def test_what_is_no_file_is_not_packed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput, match="neither a file"):
        pack(tmp_path)


@pytest.mark.parametrize("change", [b"", b"longer than before"])
def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path, change: bytes) -> None:
    (tmp_path / "f").write_bytes(b"content")
    (layer,) = pack(tmp_path)
    (tmp_path / "f").write_bytes(change)
    with pytest.raises(BadInput, match="changes while"):
        layer.digest()


def tar(*members: tuple[str, bytes, dict[str, object]]) -> bytes:
    """A tar of (name, content, attributes of the member)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content, attributes in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", b"x", {})],
        [("/evil", b"x", {})],
        [("a/../../evil", b"x", {})],
        [("link", b"", {"type": LINK, "linkname": "/tmp"})],
        [("link", b"", {"type": LINK, "linkname": ".."})],
        [("d/link", b"", {"type": LINK, "linkname": "../.."})],
        [("y", b"", {"type": LINK, "linkname": "."}), ("l", b"", {"type": LINK, "linkname": "y/../evil"})],
        [("hard", b"", {"type": HARD, "linkname": "/etc/hostname"})],
        [("hard", b"", {"type": HARD, "linkname": "../outside"})],
        [("dev", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
        [("pipe", b"", {"type": tarfile.FIFOTYPE})],
        [(".wh.file", b"", {})],
        [("f", b"x", {}), ("f/below", b"x", {})],
        [("d", b"", {"type": tarfile.DIRTYPE}), ("d", b"x", {})],
    ],
    ids=lambda members: "+".join(member[0] for member in members),
)
def test_a_tar_cannot_do_what_a_layer_must_not(
    tmp_path: Path, members: list[tuple[str, bytes, dict[str, object]]]
) -> None:
    (tmp_path / "outside").write_text("untouched")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ArtifactMismatch):
        extract([tar(*members)], root)
    assert {path.name for path in tmp_path.iterdir()} == {"outside", "root"}
    assert (tmp_path / "outside").read_text() == "untouched"
    assert not [path for path in root.rglob("*") if path.is_symlink() and not path.resolve().is_relative_to(root)]


def test_files_go_through_links_of_the_tree_but_replace_links_to_files(tmp_path: Path) -> None:
    extract(
        [
            tar(
                ("real/keep", b"1", {}),
                ("alias", b"", {"type": LINK, "linkname": "real"}),
                ("alias/new", b"2", {}),
                ("to-keep", b"", {"type": LINK, "linkname": "real/keep"}),
                ("same", b"", {"type": HARD, "linkname": "real/new"}),
            )
        ],
        tmp_path,
    )
    extract([tar(("to-keep", b"3", {}))], tmp_path)
    contents = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert contents["real/keep"] == b"1"
    assert contents["real/new"] == contents["same"] == b"2"
    assert contents["to-keep"] == b"3"


MANY: list[tuple[str, bytes, dict[str, object]]] = [(f"f{number}", b"%d" % number, {}) for number in range(1000)]


def test_a_link_finds_its_file_however_many_came_before(tmp_path: Path) -> None:
    extract([tar(*MANY, ("hard", b"", {"type": HARD, "linkname": "f999"}))], tmp_path)
    assert (tmp_path / "hard").read_bytes() == b"999"
    assert [(tmp_path / name).read_bytes() for name, *_ in MANY] == [content for _, content, _ in MANY]


def test_a_file_is_no_directory_however_many_came_before(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMismatch, match="both a file and a directory"):
        extract([tar(*MANY, ("f999/below", b"", {}))], tmp_path)


@pytest.mark.parametrize("cut", [100, 600, 1100])
def test_a_tar_that_ends_early_is_an_error(tmp_path: Path, cut: int) -> None:
    raw = tar(("file", b"x" * 1000, {}))
    with pytest.raises(ArtifactMismatch):
        extract([raw[:cut]], tmp_path)


def test_set_id_bits_are_dropped(tmp_path: Path) -> None:
    extract([tar(("su", b"x", {"mode": 0o6755}))], tmp_path)
    assert stat.S_IMODE((tmp_path / "su").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:5000/a/b:v1", ("host:5000", "a/b", "v1", "")),
        ("10.0.0.1:5000/a", ("10.0.0.1:5000", "a", "", "")),
        ("[fd00::1]:5000/a", ("[fd00::1]:5000", "a", "", "")),
        ("reg.io/a_b/c-d.e:v1@sha256:" + "0" * 64, ("reg.io", "a_b/c-d.e", "v1", "sha256:" + "0" * 64)),
    ],
)
def test_references(text: str, expected: tuple[str, str, str, str]) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.tag, reference.digest) == expected


@pytest.mark.parametrize(
    "text", ["", "model", "host/UP", "host/a:", "host/a@sha256:12", "host/../a", "host//a", "http://host/a", "host/a b"]
)
def test_texts_that_are_no_reference(text: str) -> None:
    with pytest.raises(BadInput):
        Reference.parse(text)
