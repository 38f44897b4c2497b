"""A reader of tars that arrive in pieces, in bounded memory, whatever is in them."""

import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Final

from rm_abstract.core.errors import ArtifactMismatch

_BLOCK: Final = 512
_CHUNK: Final = 1 << 20
_MAX_EXTENSION: Final = 1 << 20
"""Bytes of an extended header, which holds names, and is read into memory."""
_MAX_EXTENSIONS: Final = 8
"""Extended headers before one member."""
_NAMES: Final = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}


class _Stream:
    """Bytes that arrive in pieces."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def pieces(self, count: int) -> Iterator[memoryview]:
        """The next ``count`` bytes. Raises ArtifactMismatch where there are fewer."""
        while count:
            while not self._left:
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise _invalid("it ends in the middle")
                self._left = memoryview(chunk)
            piece, self._left = self._left[:count], self._left[count:]
            count -= len(piece)
            yield piece

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes as one."""
        return b"".join(self.pieces(count))

    def drain(self) -> None:
        """Read to the end, so that whoever produces the pieces gets to check them all."""
        self._left = memoryview(b"")
        for _ in self._chunks:
            pass


Visitor = Callable[[tarfile.TarInfo, Iterator[memoryview]], None]


def walk(chunks: Iterable[bytes], visit: Visitor, *, compressed: bool) -> None:
    """Visit the members of a tar, each with the pieces of its content, of which those not taken are skipped.

    All of ``chunks`` is read, also what follows the tar. Raises ArtifactMismatch where it is no tar, or one that uses
    what no tar of ours needs, such as files with holes.
    """
    stream = _Stream(_decompressed(chunks) if compressed else chunks)
    while (member := _next(stream)) is not None:
        size = member.size if member.isreg() or member.type not in tarfile.SUPPORTED_TYPES else 0
        content = stream.pieces(size)
        visit(member, content)
        for _ in content:
            pass
        stream.read(-size % _BLOCK)
    stream.drain()


def _next(stream: _Stream) -> tarfile.TarInfo | None:
    extended: dict[str, str] = {}
    for _ in range(_MAX_EXTENSIONS + 1):
        header = stream.read(_BLOCK)
        if not any(header):
            return None
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            raise _invalid(str(error)) from None
        if member.size < 0:
            raise _invalid(f"{member.name} has {member.size} bytes")
        if member.type in _NAMES:
            name = _extension(stream, member).partition(b"\0")[0]
            extended.setdefault(_NAMES[member.type], name.decode("utf-8", "surrogateescape"))
        elif member.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            extended.update(_records(_extension(stream, member)))
        elif member.type == tarfile.XGLTYPE:
            _extension(stream, member)  # a comment, as a rule; no name or size can be meant for all members
        else:
            return _extend(member, extended)
    raise _invalid("a member has too many extended headers")


def _extension(stream: _Stream, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_EXTENSION:
        raise _invalid(f"an extended header has {member.size} bytes")
    return stream.read(member.size + -member.size % _BLOCK)[: member.size]


def _records(raw: bytes) -> dict[str, str]:
    """Records ``LENGTH NAME=VALUE\\n``, where the length counts all of the record."""
    found = {}
    while raw:
        length, _, _ = raw.partition(b" ")
        end = int(length) if length.isdigit() and len(length) < len(str(_MAX_EXTENSION)) + 1 else 0
        name, equals, value = raw[len(length) + 1 : end].partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(raw):
            raise _invalid("an extended header cannot be understood")
        found[name.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        raw = raw[end:]
    return found


def _extend(member: tarfile.TarInfo, extended: dict[str, str]) -> tarfile.TarInfo:
    if member.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in extended):
        # A few bytes could stand for any number of zeros.
        raise _invalid(f"{member.name} is a file with holes")
    member.name = extended.get("path", member.name)
    member.linkname = extended.get("linkpath", member.linkname)
    size = extended.get("size", str(member.size))
    if not (size.isascii() and size.isdigit() and len(size) < 20):
        raise _invalid(f"{member.name} has {size[:40]} bytes")
    member.size = int(size)
    return member


def _decompressed(chunks: Iterable[bytes]) -> Generator[bytes]:
    """What gzip compressed, at most a mebibyte at a time."""
    unzip = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            left = chunk
            while left:
                if unzip.eof:  # one that was compressed in several parts
                    unzip = zlib.decompressobj(wbits=31)
                yield unzip.decompress(left, _CHUNK)
                left = unzip.unused_data if unzip.eof else unzip.unconsumed_tail
    except zlib.error as error:
        raise _invalid(f"it is not compressed by gzip: {error}") from None
    if not unzip.eof:
        raise _invalid("it ends in the middle")


def _invalid(why: str) -> ArtifactMismatch:
    return ArtifactMismatch(f"a layer is no valid tar: {why}")
