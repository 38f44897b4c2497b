"""OCI image layouts: content in a directory, or in a tar of it, as a registry would hold it."""

import fcntl
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rm_api.names import MEDIA_TYPE_INDEX

from rm_abstract.core.errors import ArtifactMismatch, BadInput, Transient
from rm_abstract.store.destination import FULL
from rm_abstract.store.reference import DIGEST
from rm_abstract.store.registry import Descriptor, Manifest, sha256, verified

_MARKER: Final = "oci-layout"
_VERSION: Final = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX: Final = "index.json"
_BLOBS: Final = "blobs/sha256"
_PART: Final = ".part"
_JOURNAL: Final = ".fetched.jsonl"
_MAX_DOCUMENT: Final = 256 << 20
_CHUNK: Final = 1 << 20


@contextmanager
def _room(directory: Path) -> Iterator[None]:
    """Say of a volume that is full that it is, and that what is there stays."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise Transient(
                f"the volume of {directory} is full ({error.strerror}): make room, and run the same again; "
                "it goes on where it ended"
            ) from error
        raise


class LayoutWriter:
    """A context manager that fills a layout, whose index comes last: until then it is what it was before, or none.

    What is in place stays, so whoever is killed can begin again and finds it. One writer at a time.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / _BLOBS
        self._lock = -1
        self._journal: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        with _room(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.directory, os.O_RDONLY)
            try:
                self._take()
            except BaseException:
                os.close(self._lock)
                raise
        return self

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{self.directory} is being written by another process") from None
        marker = self.directory / _MARKER
        if not marker.exists() and any(not each.name.endswith(_PART) for each in self.directory.iterdir()):
            raise BadInput(f"{self.directory} is not empty, and is no OCI image layout; name an empty directory")
        if not marker.exists():
            _replace(marker, _VERSION)
        self._blobs.mkdir(parents=True, exist_ok=True)
        for left in (*self.directory.glob(f"*{_PART}"), *self._blobs.glob(f"*{_PART}")):
            left.unlink()
        with suppress(FileNotFoundError):
            for line in (self.directory / _JOURNAL).read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError):  # the last line may be a part of one
                    entry = json.loads(line)
                    self._journal[entry["of"]] = (entry["digest"], entry["size"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def has(self, digest: str, size: int) -> bool:
        """True if a blob is in place."""
        try:
            return _blob(self._blobs, digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def add(self, data: bytes) -> tuple[str, int]:
        """Put ``data`` in place; its digest and size."""
        return self.stream([data], sha256(data), len(data))

    def stream(self, chunks: Iterable[bytes], digest: str = "", size: int | None = None) -> tuple[str, int]:
        """Put bytes in place, and return their digest and size. ArtifactMismatch where these are not what is given."""
        hashed, count = hashlib.sha256(), 0
        part = self._blobs / f"{os.getpid()}{_PART}"
        with _room(self.directory):
            with part.open("wb") as out:
                for chunk in chunks:
                    hashed.update(chunk)
                    count += len(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            found = f"sha256:{hashed.hexdigest()}"
            if (digest and found != digest) or (size is not None and count != size):
                part.unlink()
                raise ArtifactMismatch(f"got {found} of {count} bytes instead of {digest or 'one'} of {size} bytes")
            part.rename(_blob(self._blobs, found))
        return found, count

    def read(self, blob: Descriptor) -> bytes:
        """A small blob that is in place."""
        return _blob(self._blobs, blob.digest).read_bytes()

    def noted(self, of: str) -> tuple[str, int] | None:
        """Digest and size of the blob that was noted under ``of``, if it is in place."""
        found = self._journal.get(of)
        return found if found is not None and self.has(*found) else None

    def note(self, of: str, digest: str, size: int) -> None:
        """Remember what ``of`` turned out to be, for whoever goes on after this process."""
        self._journal[of] = (digest, size)
        with _room(self.directory), (self.directory / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write("\n" + json.dumps({"of": of, "digest": digest, "size": size}) + "\n")

    def finish(self, manifests: Sequence[Mapping[str, Any]], annotations: Mapping[str, str]) -> None:
        """Make ``manifests`` (descriptors with annotations) what the layout holds, and remove what no longer counts."""
        index = {
            "schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": list(manifests),
            "annotations": dict(annotations),
        }  # fmt: skip
        with _room(self.directory):
            _sync(self._blobs)
            _replace(self.directory / _INDEX, json.dumps(index, sort_keys=True, indent=1).encode())
            _sync(self.directory)
        (self.directory / _JOURNAL).unlink(missing_ok=True)
        layout = Layout(self.directory)
        kept = {each.digest.removeprefix("sha256:") for each in layout.reachable()}
        for blob in self._blobs.iterdir():
            if blob.name not in kept:
                blob.unlink()

    def remove(self) -> None:
        """Take the whole layout away."""
        shutil.rmtree(self.directory)


class Layout:
    """A layout in a directory or in a tar. BadInput where there is none, ArtifactMismatch where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = _members(path) if path.is_file() else None
        if not path.exists():
            raise BadInput(f"{path} does not exist")
        self.index = self._index()

    def _index(self) -> dict[str, Any]:
        try:
            body = b"".join(self._file(_INDEX))
        except FileNotFoundError:
            begun = self._members is None and (self.path / _MARKER).exists()
            raise BadInput(
                f"{self.path} is not finished: run its export once more, which goes on where it ended"
                if begun
                else f"{self.path} is no bundle: it has no {_INDEX}"
            ) from None
        try:
            index = json.loads(body)
            manifests = index["manifests"]
            if not isinstance(manifests, list) or not isinstance(index.get("annotations") or {}, dict):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise ArtifactMismatch(f"{self.path} is damaged: its {_INDEX} is no index of an OCI image layout") from None
        return dict(index)

    @property
    def annotations(self) -> dict[str, Any]:
        """Annotations of the index."""
        return dict(self.index.get("annotations") or {})

    def manifests(self) -> list[Descriptor]:
        """What the index lists."""
        return [Descriptor.of(raw) for raw in self.index["manifests"]]

    def manifest(self, descriptor: Descriptor) -> Manifest:
        """An image manifest of the layout."""
        return Manifest.of(self.read(descriptor), f"{self.path} is damaged: {descriptor.digest}")

    def parts(self, manifest: Descriptor) -> list[Descriptor]:
        """Config and layers of a manifest."""
        found = self.manifest(manifest)
        return [found.config, *found.layers]

    def reachable(self) -> list[Descriptor]:
        """Every blob that the index leads to, once."""
        found = {}
        for manifest in self.manifests():
            found[manifest.digest] = manifest
            found.update((part.digest, part) for part in self.parts(manifest))
        return list(found.values())

    def verify(self, progress: Any = None) -> int:
        """Read every byte that the index leads to; how many they are. ArtifactMismatch for the first that is wrong."""
        total = 0
        for blob in self.reachable():
            for chunk in self.chunks(blob):
                total += len(chunk)
            if progress is not None:
                progress(blob)
        return total

    def read(self, blob: Descriptor) -> bytes:
        """A small blob as a whole."""
        if blob.size > _MAX_DOCUMENT:
            raise ArtifactMismatch(f"{self.path}: {blob.digest} has {blob.size} bytes, which cannot be right")
        return b"".join(self.chunks(blob))

    def chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """The bytes of a blob. The last piece comes only if size and digest are right."""
        try:
            yield from verified(
                self._file(f"{_BLOBS}/{blob.digest.removeprefix('sha256:')}"), blob, f"{self.path} is damaged: it"
            )
        except FileNotFoundError:
            raise ArtifactMismatch(f"{self.path} is not complete: {blob.digest} is missing") from None

    def _file(self, name: str) -> Iterator[bytes]:
        if self._members is None:
            with (self.path / name).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
            return
        if name not in self._members:
            raise FileNotFoundError(name)
        start, left = self._members[name]
        with self.path.open("rb") as file:
            file.seek(start)
            while left and (chunk := file.read(min(_CHUNK, left))):
                left -= len(chunk)
                yield chunk


def write_tar(directory: Path, target: Path) -> None:
    """A layout as one file, which appears when it is complete."""
    layout = Layout(directory)
    names = [_MARKER, _INDEX, *sorted(f"{_BLOBS}/{each.digest.removeprefix('sha256:')}" for each in layout.reachable())]
    part = target.with_name(target.name + _PART)
    with _room(target.parent):
        with part.open("wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = (directory / name).stat().st_size
                    member.mode = 0o644
                    with (directory / name).open("rb") as content:
                        archive.addfile(member, content)
            out.flush()
            os.fsync(out.fileno())
        part.rename(target)
        _sync(target.parent)


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Where in a tar its files are: first byte and size by name."""
    try:
        with tarfile.open(path, "r:") as archive:
            return {
                member.name.removeprefix("./"): (member.offset_data, member.size)
                for member in archive
                if member.isreg() and not member.issparse()
            }
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise BadInput(
            f"{path} is no bundle: it is neither a directory nor a whole tar without compression ({error})"
        ) from None


def _blob(blobs: Path, digest: str) -> Path:
    assert DIGEST.fullmatch(digest)
    return blobs / digest.removeprefix("sha256:")


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + _PART)
    with part.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    part.rename(path)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
