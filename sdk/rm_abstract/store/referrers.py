"""Attaching a document to an image in a registry, where whoever has the image's digest finds it.

It is an artifact whose subject is the image's manifest, listed under the tag that the OCI distribution specification
names for registries without a referrers API; those that have one list it by its subject as well.
"""

import json
import tarfile
from collections.abc import Iterable
from typing import Any, Final, cast

from rm_api.names import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.packaged import sbom
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Registry, sha256

_EMPTY: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_LARGEST_LAYER: Final = 64 << 20
_LARGEST_BILL: Final = 16 << 20


def attach(registry: Registry, image: Reference, document: bytes, *, media_type: str, title: str) -> str:
    """Attach ``document`` to the image, and return the digest of the artifact that holds it.

    It takes the place of what was attached with the same type; whatever else is attached stays. Attaching the same
    again changes nothing. Raises BadInput where there is no such image, ArtifactMismatch where its list is none.
    """
    found = registry.document(image)
    if found is None:
        raise BadInput(f"there is no image {image} to attach {title} to")
    subject = _descriptor(str(json.loads(found).get("mediaType", MEDIA_TYPE_MANIFEST)), found)
    artifact = _encoded(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_MANIFEST,
            "artifactType": media_type,
            "config": _descriptor(_EMPTY_TYPE, _EMPTY),
            "layers": [{**_descriptor(media_type, document), "annotations": {"org.opencontainers.image.title": title}}],
            "subject": subject,
        }
    )
    listing = image.at(str(subject["digest"]).replace(":", "-", 1))
    before = registry.document(listing)
    entry = {**_descriptor(MEDIA_TYPE_MANIFEST, artifact), "artifactType": media_type}
    others = [one for one in _entries(before, listing) if one.get("artifactType") != media_type]
    after = _encoded({"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": [*others, entry]})
    if before != after:
        for blob in (_EMPTY, document):
            registry.put_blob(image, sha256(blob), len(blob), [blob].copy)
        registry.put_manifest(image.at(sha256(artifact)), artifact)
        registry.put_manifest(listing, after, media_type=MEDIA_TYPE_INDEX)
    return sha256(artifact)


def attach_bill(registry: Registry, image: Reference) -> str:
    """Attach the bill of materials that an image holds to it. Raises BadInput where it holds none."""
    return attach(registry, image, _bill(registry, image), media_type=sbom.MEDIA_TYPE, title=sbom.PATH.name)


def _bill(registry: Registry, image: Reference) -> bytes:
    """The file in the image's layers, the last first: the last step of a build writes it."""
    wanted = str(sbom.PATH).lstrip("/")
    for layer in reversed(registry.manifest(image).layers):
        if layer.size > _LARGEST_LAYER:
            continue
        stream = _Stream(registry.blob(image, layer))
        try:
            with tarfile.open(fileobj=cast("Any", stream), mode="r|*") as archive:
                for member in archive:
                    if member.name.removeprefix("./") == wanted and member.size <= _LARGEST_BILL:
                        file = archive.extractfile(member)
                        if file is not None:
                            return file.read()
        except tarfile.TarError as error:
            raise ArtifactMismatch(f"the layer {layer.digest} of {image} is no tar: {error}") from None
    raise BadInput(f"{image} holds no {sbom.PATH}")


class _Stream:
    """The bytes of an iterator, to be read by tarfile."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = b""

    def read(self, size: int) -> bytes:
        while len(self._held) < size and (chunk := next(self._chunks, None)) is not None:
            self._held += chunk
        given, self._held = self._held[:size], self._held[size:]
        return given


def _entries(index: bytes | None, listing: Reference) -> list[dict[str, Any]]:
    if index is None:
        return []
    try:
        return [dict(one) for one in json.loads(index)["manifests"]]
    except (ValueError, KeyError, TypeError):
        raise ArtifactMismatch(f"{listing} is no list of what is attached to an image") from None


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(blob), "size": len(blob)}


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
