"""Directory trees as tar layers: the same bytes for the same tree, and extraction that trusts nothing."""

import hashlib
import os
import posixpath
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rm_api.names import MAX_LAYER_BYTES

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.store.behind import Behind
from rm_abstract.store.destination import MARKER
from rm_abstract.store.new_file import NewFile
from rm_abstract.store.tar import walk

_BLOCK: Final = 512
_CHUNK: Final = 1 << 20
MAX_ENTRIES: Final = 1_000_000
"""Files, directories and links of an artifact."""
_SMALL: Final = 1 << 16
"""Bytes up to which a file is written by a thread of its own: making a file takes longer than writing so much."""
_SMALL_BEHIND: Final = 256
"""Small files that may wait to be written."""
_WHITEOUT: Final = ".wh."
_MAX_NAME: Final = 255
_MAX_PATH: Final = 3500
"""Bytes of a path in a tree; Linux takes 4,096 with the directory that the tree is in."""


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


def pack(
    root: Path, max_layer_bytes: int = MAX_LAYER_BYTES, *, prefix: str = "", most: int = MAX_ENTRIES
) -> list[Layer]:
    """The tree under ``root`` as layers of at most ``max_layer_bytes``: sorted, without times, owners or odd modes.

    In the tars, paths begin with ``prefix``. What a fetch keeps for itself at the root is left out.
    A single file that is larger gets a layer of its own, as a tar member cannot span two. Raises BadInput for links
    that lead out of the tree, for what is neither file, directory nor link, for names that no layer can have, and for
    more than ``most`` of them all.
    """
    layers: list[Layer] = []
    batch: list[Entry] = []
    size = 2 * _BLOCK
    for count, entry in enumerate(_entries(root, prefix), 1):
        if count > most:
            raise BadInput(f"{root} has more than {most} files, directories and links; pack them into fewer")
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
        if inside.name.startswith(_WHITEOUT):
            raise BadInput(f"{path} has a name by which layers of images delete files; rename it")
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


def extract(
    chunks: Iterable[bytes], root: Path, *, compressed: bool = False, only: Callable[[str], bool] | None = None
) -> None:
    """Unpack one tar into ``root``, which it cannot leave. Raises ArtifactMismatch for anything that tries.

    Only files, directories and links inside of the tree, and of those the paths that ``only`` is true of; owners, times
    and set-id bits are dropped. What is there already is replaced, as in layers of an image.
    """
    Unpacking({"": root}, replace=True).layer(chunks, compressed=compressed, only=only)


class Unpacking:
    """Tars that are unpacked together.

    ``roots`` are directories by the name of the directory in the tars that goes there; one with the name "" takes all.
    Raises ArtifactMismatch where something would lead out of one, is there twice, or is one of more than ``most``.
    """

    def __init__(self, roots: Mapping[str, Path], *, replace: bool = False, most: int = MAX_ENTRIES) -> None:
        self._roots = {name: path.resolve() for name, path in roots.items()}
        self._replace = replace
        self._left = self._most = most
        self._directories: dict[str, Path] = {}
        self._made: set[Path] = set()

    def layer(
        self, chunks: Iterable[bytes], *, compressed: bool = False, only: Callable[[str], bool] | None = None
    ) -> None:
        """Unpack one of them."""
        self._made.clear()
        with Behind("store-files", _SMALL_BEHIND) as small:

            def visit(member: tarfile.TarInfo, content: Iterator[memoryview]) -> None:
                self._left -= 1
                if self._left < 0:
                    raise ArtifactMismatch(f"the layers have more than {self._most} entries")
                name = safe_name(member.name)
                if name is not None and (only is None or only(name)):
                    self._add(member, content, name, small)

            walk(chunks, visit, compressed=compressed)
            small.finish()

    def _add(self, member: tarfile.TarInfo, content: Iterator[memoryview], name: str, small: Behind) -> None:
        root, inside = self._place(name)
        if posixpath.basename(name).startswith(_WHITEOUT):
            raise ArtifactMismatch(f"a layer deletes files of another ({member.name}), which is not supported")
        if any(len(os.fsencode(part)) > _MAX_NAME for part in name.split("/")) or len(os.fsencode(name)) > _MAX_PATH:
            raise ArtifactMismatch(f"a layer has a name that no file can have: {name[:80]}…")
        if member.isdir() or not inside:
            if not member.isdir():
                raise ArtifactMismatch(f"{member.name} in a layer is no directory")
            self._directory(root, inside, small)
            return
        parent = self._directory(root, posixpath.dirname(inside), small)
        target = parent / posixpath.basename(inside)
        if member.isreg():
            self._clear(target)
            mode = 0o755 if member.mode & stat.S_IXUSR else 0o644
            if member.size <= _SMALL:
                small.do(_write, target, (memoryview(b"".join(content)),), member.size, mode)
            else:
                _write(target, content, member.size, mode)
        elif member.issym():
            _check_link(root, parent, member.linkname, ArtifactMismatch)
            self._clear(target)
            target.symlink_to(member.linkname)
        elif member.islnk():
            small.finish()
            original = self._linked(member, root)
            self._clear(target)
            os.link(original, target)
        else:
            raise ArtifactMismatch(f"{member.name} is neither a file, a directory nor a link")

    def _place(self, name: str) -> tuple[Path, str]:
        if "" in self._roots:
            return self._roots[""], name
        top, _, inside = name.partition("/")
        if top not in self._roots:
            raise ArtifactMismatch(f"a layer has {name}, for which no directory is named")
        return self._roots[top], inside

    def _directory(self, root: Path, name: str, small: Behind) -> Path:
        path = root / name
        known = self._directories.get(str(path))
        if known is not None:
            return known
        small.finish()  # one of them may have that name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ArtifactMismatch(f"{name} is both a file and a directory") from None
        real = path.resolve()
        if not real.is_relative_to(root):
            raise ArtifactMismatch(f"{name} leads out of the tree")
        self._directories[str(path)] = real
        return real

    def _clear(self, target: Path) -> None:
        """Make way for something new, if anything is there."""
        if target in self._made or (not self._replace and os.path.lexists(target)):
            raise ArtifactMismatch(f"the layers have {target.name} twice")
        self._made.add(target)
        if not self._replace:
            return
        if target.is_symlink() or target.is_file():
            target.unlink()
            # It may have been a link to a directory, by which others were found.
            self._directories.clear()
        elif target.exists():
            raise ArtifactMismatch(f"{target.name} is both a directory and something else")

    def _linked(self, member: tarfile.TarInfo, root: Path) -> Path:
        linked = safe_name(member.linkname)
        place, inside = self._place(linked) if linked else (root, "")
        original = (place / inside).resolve()
        if place != root or not original.is_file() or not original.is_relative_to(root):
            raise ArtifactMismatch(f"{member.name} links to {member.linkname}, which is no file of the layer")
        return original


def _write(target: Path, content: Iterable[memoryview], size: int, mode: int) -> None:
    with NewFile(target, size, mode) as file:
        for piece in content:
            file.write(piece)


def safe_name(name: str) -> str | None:
    """``name`` as a relative path, or None if it is the root. ArtifactMismatch where it leads out of the tree."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ArtifactMismatch(f"the path {name!r} leads out of the tree")
    return "/".join(parts) or None


def _check_link(root: Path, parent: Path, target: str, error: Callable[[str], Exception]) -> None:
    """Refuse a link that leaves ``root``. ``..`` may only lead a target: after a name it could follow another link."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    depth = len(parent.resolve().relative_to(root.resolve()).parts)
    if target.startswith("/") or ".." in parts[ups:] or ups > depth:
        raise error(f"a link to {target!r} leads out of the tree")
