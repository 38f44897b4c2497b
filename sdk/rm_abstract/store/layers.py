"""Directory trees as tar layers: the same bytes for the same tree, and extraction that trusts nothing."""

import hashlib
import os
import posixpath
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Final

from rm_api.names import MAX_LAYER_BYTES

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.store.destination import MARKER

_BLOCK: Final = 512
_CHUNK: Final = 1 << 20
_WHITEOUT: Final = ".wh."


@dataclass(frozen=True)
class Entry:
    """A file, directory or link of a tree."""

    path: Path
    header: bytes
    """Tar header, extended headers included."""
    size: int
    """Bytes of content; 0 for anything but a file."""

    @property
    def packed(self) -> int:
        """Bytes that it takes in a tar."""
        return len(self.header) + -(-self.size // _BLOCK) * _BLOCK


@dataclass(frozen=True)
class Layer:
    """Entries that make one tar."""

    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of the tar."""
        return sum(entry.packed for entry in self.entries) + 2 * _BLOCK

    def content(self) -> Iterator[bytes]:
        """The tar in pieces. Raises BadInput where a file has changed its size since it was listed."""
        for entry in self.entries:
            yield entry.header
            if entry.size:
                yield from _content(entry)
        yield bytes(2 * _BLOCK)

    def digest(self) -> str:
        """Digest of the tar; the files are read for it."""
        digest = hashlib.sha256()
        for chunk in self.content():
            digest.update(chunk)
        return "sha256:" + digest.hexdigest()


def file_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _content(entry: Entry) -> Iterator[bytes]:
    left = entry.size
    for chunk in file_chunks(entry.path):
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left:
        raise BadInput(f"{entry.path} changes while it is being pushed")
    yield bytes(-entry.size % _BLOCK)


def pack(root: Path, max_layer_bytes: int = MAX_LAYER_BYTES, *, prefix: str = "") -> list[Layer]:
    """The tree under ``root`` as layers of at most ``max_layer_bytes``: sorted, without times, owners or odd modes.

    In the tars, paths begin with ``prefix``. What a fetch keeps for itself at the root is left out.
    A single file that is larger gets a layer of its own, as a tar member cannot span two. Raises BadInput for links
    that lead out of the tree, and for what is neither file, directory nor link.
    """
    layers: list[Layer] = []
    batch: list[Entry] = []
    size = 2 * _BLOCK
    for entry in _entries(root, prefix):
        if batch and size + entry.packed > max_layer_bytes:
            layers.append(Layer(tuple(batch)))
            batch, size = [], 2 * _BLOCK
        batch.append(entry)
        size += entry.packed
    return [*layers, Layer(tuple(batch))]


def _entries(root: Path, prefix: str) -> Iterator[Entry]:
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).parts):
        inside = path.relative_to(root)
        if inside.parts[0] == MARKER:
            continue
        status = path.lstat()
        member = tarfile.TarInfo(prefix + inside.as_posix())
        if stat.S_ISDIR(status.st_mode):
            member.type, member.mode = tarfile.DIRTYPE, 0o755
        elif stat.S_ISLNK(status.st_mode):
            member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, os.readlink(path)
            _check_link(root, path.parent, member.linkname, BadInput)
        elif stat.S_ISREG(status.st_mode):
            member.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
            member.size = status.st_size
        else:
            raise BadInput(f"{path} is neither a file, a directory nor a link, and cannot be part of an artifact")
        yield Entry(path, member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"), member.size)


class ByteStream(RawIOBase):
    """A readable file over pieces of bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """Fill ``buffer`` with what comes next; 0 at the end."""
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def drain(self) -> None:
        """Read to the end, so that whoever produces the pieces gets to check them all."""
        self._left = memoryview(b"")
        for _ in self._chunks:
            pass


def walk(
    chunks: Iterable[bytes], visit: Callable[[tarfile.TarInfo, tarfile.TarFile], None], *, compressed: bool
) -> None:
    """Visit the members of a tar that arrives in pieces, all of which are read. ArtifactMismatch where it is no tar."""
    stream = ByteStream(chunks)
    try:
        with tarfile.open(fileobj=stream, mode="r|gz" if compressed else "r|", bufsize=_CHUNK) as archive:
            for member in archive:
                visit(member, archive)
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ArtifactMismatch(f"a layer is no valid tar: {error}") from error
    stream.drain()


def extract(
    chunks: Iterable[bytes], root: Path, *, compressed: bool = False, only: Callable[[str], bool] | None = None
) -> None:
    """Unpack a tar into ``root``, which it cannot leave. Raises ArtifactMismatch for anything that tries.

    Only files, directories and links inside of the tree, and of those the paths that ``only`` is true of; owners, times
    and set-id bits are dropped.
    """

    def visit(member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        name = safe_name(member.name)
        if name is not None and (only is None or only(name)):
            _extract_member(member, archive, root, name, safe_name(member.linkname) if member.islnk() else None)

    walk(chunks, visit, compressed=compressed)


def extract_each(chunks: Iterable[bytes], roots: Mapping[str, Path]) -> None:
    """Unpack a tar, each directory at its top into the one that ``roots`` has for its name, as ``extract`` does."""

    def visit(member: tarfile.TarInfo, archive: tarfile.TarFile) -> None:
        top, _, name = (safe_name(member.name) or "").partition("/")
        if top not in roots:
            raise ArtifactMismatch(f"a layer has {member.name}, for which no directory is named")
        linked = safe_name(member.linkname) if member.islnk() else None
        if name:
            _extract_member(member, archive, roots[top], name, linked.removeprefix(f"{top}/") if linked else None)
        elif not member.isdir():
            raise ArtifactMismatch(f"{member.name} in a layer is no directory")

    walk(chunks, visit, compressed=False)


def _extract_member(
    member: tarfile.TarInfo, archive: tarfile.TarFile, root: Path, name: str, linked: str | None
) -> None:
    if posixpath.basename(name).startswith(_WHITEOUT):
        raise ArtifactMismatch(f"a layer deletes files of another ({member.name}), which is not supported")
    parent = _directory(root, posixpath.dirname(name))
    target = parent / posixpath.basename(name)
    if member.isdir():
        _directory(root, name)
    elif member.isfile():
        _unlink(target)
        source = archive.extractfile(member)
        assert source is not None
        with source, target.open("xb") as file:
            shutil.copyfileobj(source, file, _CHUNK)
        target.chmod(0o755 if member.mode & stat.S_IXUSR else 0o644)
    elif member.issym():
        _check_link(root, parent, member.linkname, ArtifactMismatch)
        _unlink(target)
        target.symlink_to(member.linkname)
    elif member.islnk():
        original = root / linked if linked else root
        if not original.is_file() or not original.resolve().is_relative_to(root.resolve()):
            raise ArtifactMismatch(f"{member.name} links to {member.linkname}, which is no file of the layer")
        _unlink(target)
        os.link(original.resolve(), target)
    else:
        raise ArtifactMismatch(f"{member.name} is neither a file, a directory nor a link")


def safe_name(name: str) -> str | None:
    """``name`` as a relative path, or None if it is the root. ArtifactMismatch where it leads out of the tree."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ArtifactMismatch(f"the path {name!r} leads out of the tree")
    return "/".join(parts) or None


def _directory(root: Path, name: str) -> Path:
    path = root / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ArtifactMismatch(f"{name} is both a file and a directory") from None
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise ArtifactMismatch(f"{name} leads out of the tree")
    return real


def _unlink(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        raise ArtifactMismatch(f"{path.name} is both a directory and something else")


def _check_link(root: Path, parent: Path, target: str, error: Callable[[str], Exception]) -> None:
    """Refuse a link that leaves ``root``. ``..`` may only lead a target: after a name it could follow another link."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    depth = len(parent.resolve().relative_to(root.resolve()).parts)
    if target.startswith("/") or ".." in parts[ups:] or ups > depth:
        raise error(f"a link to {target!r} leads out of the tree")
