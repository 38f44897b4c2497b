"""Artifacts in the store: pushed as OCI images, pulled complete or not at all."""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rm_api.conditions import Reason
from rm_api.names import (
    MAX_LAYER_BYTES,
    OCI_ANNOTATION_DRIVERS,
    OCI_ANNOTATION_FORMAT,
    OCI_ANNOTATION_KEY,
    OCI_ANNOTATION_PRODUCTS,
    OCI_ANNOTATION_VERSIONS,
)

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.core.resource import ARTIFACT_FILE, BuildArtifact
from rm_abstract.http import NotFound
from rm_abstract.store.backend import Backends
from rm_abstract.store.destination import MARKER, Destination, room
from rm_abstract.store.image import image, push_image, to_json
from rm_abstract.store.layers import MAX_ENTRIES, Unpacking, pack

_MAX_DESCRIPTION: Final = 256 << 20


@dataclass(frozen=True)
class PushedArtifact:
    """An artifact as it is in the store."""

    digest: str
    size_bytes: int
    """Bytes of its layers."""


class ArtifactStore:
    """Artifacts in OCI registries, directories and buckets; a context manager, which closes the connections.

    Failures to reach one have the reason ``StoreUnreachable``.
    """

    def __init__(self, *, max_layer_bytes: int = MAX_LAYER_BYTES, max_entries: int = MAX_ENTRIES) -> None:
        self._backends = Backends()
        self._max_layer_bytes = max_layer_bytes
        self._max_entries = max_entries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backends.__exit__(kind, error, trace)

    def resolve_manifest(self, reference: str) -> str | None:
        """Digest of the manifest at ``reference``, or None where there is none."""
        backend, source = self._backends.at(reference)
        return backend.resolve(source)

    def push(self, artifact: BuildArtifact, reference: str) -> PushedArtifact:
        """Describe the artifact in its tree, and push it to a tag: layers, config, and the manifest last.

        The same tree gives the same digest. Nothing is visible at the tag until everything is there.
        """
        backend, target = self._backends.at(reference)
        if target.digest:
            raise BadInput(f"an artifact is pushed to a tag, not to the digest in {reference}")
        if not artifact.path.is_dir() or not any(
            path.name not in (ARTIFACT_FILE, MARKER) for path in artifact.path.iterdir()
        ):
            raise BadInput(f"{artifact.path} holds nothing to push", reason=Reason.TOOLCHAIN_FAILED)
        _describe(artifact)
        annotations = {
            OCI_ANNOTATION_KEY: artifact.key,
            OCI_ANNOTATION_FORMAT: artifact.format,
            OCI_ANNOTATION_PRODUCTS: ",".join(artifact.products),
            OCI_ANNOTATION_DRIVERS: ",".join(artifact.drivers),
            OCI_ANNOTATION_VERSIONS: to_json(dict(artifact.versions)).decode(),
        }
        return PushedArtifact(
            *push_image(
                backend, target, pack(artifact.path, self._max_layer_bytes, most=self._max_entries), annotations
            )
        )

    def pull(self, reference: str, destination: Path, *, key: str) -> BuildArtifact:
        """Fetch the artifact that a digest names into ``destination``, complete or not at all.

        Raises ArtifactMismatch where a byte, the image's structure or the key is not what it should be.
        """
        backend, source = self._backends.at(reference)
        if not source.digest:
            raise BadInput(f"{reference} does not name a digest; an artifact is fetched by digest only")
        try:
            manifest = image(backend, source, {OCI_ANNOTATION_KEY: key})
            with Destination(destination) as place:
                with room(place.path, manifest.size, "artifact"):
                    unpacking = Unpacking({"": place.path}, most=self._max_entries)
                    for layer in manifest.layers:
                        unpacking.layer(backend.blob(source, layer))
                description = place.path / ARTIFACT_FILE
                if description.is_file() and description.stat().st_size > _MAX_DESCRIPTION:
                    raise ArtifactMismatch(f"{ARTIFACT_FILE} in {reference} is larger than {_MAX_DESCRIPTION} bytes")
                described = BuildArtifact.read(place.path)
                if described.key != key:
                    raise ArtifactMismatch(f"{ARTIFACT_FILE} in {reference} names key {described.key}, not {key}")
                place.publish(last=ARTIFACT_FILE)
        except NotFound as error:
            raise ArtifactMismatch(
                f"{reference} is not complete in the store: {error}", reason=Reason.ARTIFACT_MISSING
            ) from error
        return BuildArtifact.read(destination)


def _describe(artifact: BuildArtifact) -> None:
    """Write the description, unless it is there: whoever else pushes this tree must not read a half of it."""
    if artifact.description.is_symlink():
        artifact.description.unlink()
    if not artifact.description.exists() or artifact.description.read_bytes() != artifact.text().encode():
        artifact.write()
