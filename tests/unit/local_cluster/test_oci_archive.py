"""An archive is a valid OCI image layout, holds what it was given, and depends on nothing else."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from rm_local_cluster import oci

FILES = {
    "usr/bin/tool": oci.File(b"\x7fELF tool"),
    "etc/tool/settings": oci.File(b"quiet\n", mode=0o644),
}


def write(path: Path) -> str:
    return oci.write_archive(
        path,
        "registry.example/tool:1",
        FILES,
        entrypoint=["/usr/bin/tool", "run"],
        user="1000:1000",
        environment={"HOME": "/tmp"},
        links={"bin/tool": "/usr/bin/tool"},
    )


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, bytes]:
    write(tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def blob(archive: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    algorithm, _, digest = descriptor["digest"].partition(":")
    content = archive[f"blobs/{algorithm}/{digest}"]
    assert hashlib.new(algorithm, content).hexdigest() == digest
    assert len(content) == descriptor["size"]
    return content


def test_descriptors_lead_from_the_index_to_a_layer_with_the_files(archive: dict[str, bytes]) -> None:
    assert json.loads(archive["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(archive["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "registry.example/tool:1"
    manifest = json.loads(blob(archive, entry))
    config = json.loads(blob(archive, manifest["config"]))
    (layer,) = (blob(archive, descriptor) for descriptor in manifest["layers"])

    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    assert config["config"]["Entrypoint"] == ["/usr/bin/tool", "run"]
    assert config["config"]["User"] == "1000:1000"
    assert config["config"]["Env"] == ["HOME=/tmp"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        members = {member.name: member for member in tar}
        for name, file in FILES.items():
            content = tar.extractfile(name)
            assert content is not None
            assert (content.read(), members[name].mode) == (file.content, file.mode)
    assert members["bin/tool"].linkname == "/usr/bin/tool"
    assert {name for name, member in members.items() if member.isdir()} == {"bin", "etc", "etc/tool", "usr", "usr/bin"}
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}


def test_a_directory_comes_before_what_is_in_it(archive: dict[str, bytes]) -> None:
    (entry,) = json.loads(archive["index.json"])["manifests"]
    (layer,) = json.loads(blob(archive, entry))["layers"]
    with tarfile.open(fileobj=io.BytesIO(blob(archive, layer))) as tar:
        names = tar.getnames()
    for position, name in enumerate(names):
        for parent in Path(name).parents:
            assert str(parent) == "." or str(parent) in names[:position]


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    assert write(first) == write(second)
    assert first.read_bytes() == second.read_bytes()


def test_the_returned_digest_is_the_manifests_and_changes_with_a_file(tmp_path: Path) -> None:
    digest = write(tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        assert json.loads(index.read())["manifests"][0]["digest"] == digest
    other = {**FILES, "usr/bin/tool": oci.File(b"\x7fELF tool, newer")}
    changed = oci.write_archive(tmp_path / "other.tar", "registry.example/tool:1", other, entrypoint=["/usr/bin/tool"])
    assert changed != digest
