"""Manifests and blobs in a registry, in a directory or in a bucket, through one interface."""

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from rm_api.conditions import Reason

from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.http import NotFound
from rm_abstract.store.objects import Bucket, Directory, Objects
from rm_abstract.store.reference import DIRECTORY, Reference
from rm_abstract.store.registry import MAX_MANIFEST, Descriptor, Manifest, Registry, sha256, verified
from rm_abstract.store.upload import ATTEMPTS


class Backend(Protocol):
    """Where images are. Methods raise NotFound, BadInput (refused), SourceUnreachable and ArtifactMismatch."""

    def resolve(self, reference: Reference) -> str | None:
        """Digest of the manifest at a reference, or None where there is none."""

    def manifest(self, reference: Reference) -> Manifest:
        """The image manifest at a reference. Bytes and digest agree."""

    def put_manifest(self, reference: Reference, body: bytes) -> str:
        """Put an image manifest at a tag, and return its digest."""

    def blob(self, reference: Reference, blob: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob. The last piece comes only if size and digest are right; ArtifactMismatch otherwise."""

    def put_blob(self, reference: Reference, digest: str, size: int, content: Callable[[], Iterable[bytes]]) -> None:
        """Put a blob, if there is none of this digest. ``content`` gives its bytes anew with every call."""

    def close(self) -> None:
        """Close connections."""


class Repositories:
    """Repositories of things by name: ``blobs/sha256/HEX``, ``manifests/sha256/HEX``, and, last, ``tags/TAG``.

    A tag is a copy of its manifest, so that it is there with all that it names, or not at all.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def resolve(self, reference: Reference) -> str | None:
        """See the protocol."""
        try:
            return sha256(self._read(reference))
        except NotFound:
            return None

    def manifest(self, reference: Reference) -> Manifest:
        """See the protocol."""
        return Manifest.of(self._read(reference), str(reference))

    def _read(self, reference: Reference) -> bytes:
        body = bytearray()
        for chunk in self._objects.read(_manifest(reference)):
            body += chunk
            if len(body) > MAX_MANIFEST:
                raise ArtifactMismatch(f"the manifest of {reference} is larger than {MAX_MANIFEST} bytes")
        if reference.digest and sha256(body) != reference.digest:
            raise ArtifactMismatch(f"{reference} holds another manifest: {sha256(body)}")
        return bytes(body)

    def put_manifest(self, reference: Reference, body: bytes) -> str:
        """See the protocol."""
        digest = sha256(body)
        for name in (_manifest(reference.at(digest)), _manifest(reference)):
            self._objects.write(name, lambda: [body], len(body), digest)
        return digest

    def blob(self, reference: Reference, blob: Descriptor) -> Iterator[bytes]:
        """See the protocol."""
        return verified(self._objects.read(_blob(reference, blob.digest), blob.size), blob, str(reference))

    def put_blob(self, reference: Reference, digest: str, size: int, content: Callable[[], Iterable[bytes]]) -> None:
        """See the protocol."""
        name = _blob(reference, digest)
        if not self._objects.has(name):
            self._objects.write(name, content, size, digest, large=True)

    def close(self) -> None:
        """See the protocol."""
        self._objects.close()


def _blob(reference: Reference, digest: str) -> str:
    return f"{reference.repository}/blobs/{digest.replace(':', '/')}"


def _manifest(reference: Reference) -> str:
    if reference.digest:
        return f"{reference.repository}/manifests/{reference.digest.replace(':', '/')}"
    return f"{reference.repository}/tags/{reference.target}"


class Backends:
    """What references need, opened when it is first needed; a context manager, which closes all.

    Failures to reach one have the reason ``StoreUnreachable``.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Backend] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for backend in self._open.values():
            backend.close()

    def at(self, text: str) -> tuple[Backend, Reference]:
        """The reference in ``text``, and where it is. Raises BadInput."""
        reference = Reference.of_store(text)
        which = (reference.scheme, reference.host if reference.scheme else "")
        if which not in self._open:
            self._open[which] = _opened(reference)
        return self._open[which], reference


def _opened(reference: Reference) -> Backend:
    if not reference.scheme:
        return Registry(unreachable=Reason.STORE_UNREACHABLE, attempts=ATTEMPTS)
    return Repositories(Directory() if reference.scheme == DIRECTORY else Bucket(reference.host))
