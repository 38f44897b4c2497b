"""A bill of materials in a real registry, attached to the image that it is about."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_server import RunningRegistry, running_registry
from rm_abstract.core.errors import BadInput
from rm_abstract.packaged import sbom
from rm_abstract.store.reference import Reference
from rm_abstract.store.referrers import attach, attach_bill
from rm_abstract.store.registry import Registry, sha256
from rm_local_cluster.errors import LocalClusterError
from rm_local_cluster.images import bills

BILL = b'{"bomFormat":"CycloneDX"}\n'
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def registry(running: RunningRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("RMA_PLAIN_HTTP_HOSTS", running.host)
    client = Registry()
    yield client
    client.close()


def layer(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


@pytest.fixture
def image(registry: Registry, running: RunningRegistry, tmp_path: Path) -> Reference:
    """An image of this test's own, whose bill is neither in its first nor in its last layer."""
    reference = Reference.parse(f"{running.host}/rm-abstract/{tmp_path.name.replace('_', '-')}:t")
    return pushed(registry, reference, [{"a": b"a"}, {"usr/b": b"b", str(sbom.PATH)[1:]: BILL}, {"c": b"c"}])


def pushed(registry: Registry, reference: Reference, layers: list[dict[str, bytes]]) -> Reference:
    blobs = [b"{}", *(layer(files) for files in layers)]
    for blob in blobs:
        registry.put_blob(reference, sha256(blob), len(blob), lambda blob=blob: [blob])
    config, *rest = [{"mediaType": "application/x", "digest": sha256(blob), "size": len(blob)} for blob in blobs]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": rest}
    registry.put_manifest(reference, json.dumps(manifest).encode())
    return reference


def listing(registry: Registry, image: Reference) -> bytes:
    digest = registry.resolve(image)
    assert digest is not None
    return registry.document(image.at(digest.replace(":", "-"))) or b""


def entries(registry: Registry, image: Reference) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(listing(registry, image))["manifests"]
    return found


def test_a_bill_is_found_from_the_images_digest(registry: Registry, image: Reference) -> None:
    attached = attach_bill(registry, image)
    (entry,) = entries(registry, image)
    assert (entry["digest"], entry["artifactType"]) == (attached, sbom.MEDIA_TYPE)
    found = registry.manifest(image.at(attached))
    raw = json.loads(found.body)
    assert (raw["subject"]["digest"], raw["subject"]["mediaType"]) == (registry.resolve(image), MANIFEST)
    assert raw["artifactType"] == sbom.MEDIA_TYPE
    (content,) = found.layers
    assert b"".join(registry.blob(image, content)) == BILL
    assert content.annotations == {"org.opencontainers.image.title": "rm-abstract.cdx.json"}


def test_attaching_again_changes_nothing_and_another_takes_its_place(registry: Registry, image: Reference) -> None:
    first = attach_bill(registry, image)
    before = listing(registry, image)
    assert attach_bill(registry, image) == first
    assert listing(registry, image) == before
    second = attach(registry, image, b"{}", media_type=sbom.MEDIA_TYPE, title="other.json")
    assert [entry["digest"] for entry in entries(registry, image)] == [second]
    assert second != first


def test_what_others_have_attached_stays(registry: Registry, image: Reference) -> None:
    signature = attach(registry, image, b"signed", media_type="application/vnd.example.signature", title="signature")
    bill = attach_bill(registry, image)
    assert [entry["digest"] for entry in entries(registry, image)] == [signature, bill]


def test_what_cannot_be_attached_to_or_from_is_named(
    registry: Registry, running: RunningRegistry, image: Reference
) -> None:
    absent = Reference.parse(f"{running.host}/rm-abstract/absent:t")
    with pytest.raises(BadInput, match=r"there is no image \S+/absent:t to attach x to"):
        attach(registry, absent, BILL, media_type="x/y", title="x")
    bare = pushed(registry, Reference.parse(f"{running.host}/rm-abstract/bare:t"), [{"a": b"a"}])
    with pytest.raises(BadInput, match=r"bare:t holds no /usr/share/sbom/rm-abstract\.cdx\.json"):
        attach_bill(registry, bare)


def test_pushed_images_get_their_bills(
    registry: Registry, running: RunningRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RMA_PLAIN_HTTP_HOSTS")
    names = ("launcher", "runtime")
    images = [
        pushed(registry, Reference.parse(f"{running.host}/rm-abstract/{name}:t"), [{str(sbom.PATH)[1:]: BILL}])
        for name in names
    ]
    # Pods may know the registry by another name; the tag is the same.
    bills.attach(running.host, {name: f"node:5000/rm-abstract/{name}:t" for name in names})
    for image in images:
        assert [entry["artifactType"] for entry in entries(registry, image)] == [sbom.MEDIA_TYPE]
    with pytest.raises(LocalClusterError, match=r"was not attached: .+ has no /v2/rm-abstract/operator/manifests/t"):
        bills.attach(running.host, {"operator": "node:5000/rm-abstract/operator:t"})
