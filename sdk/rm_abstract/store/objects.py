"""Where things have names and are written as a whole: a directory, or a bucket."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from rm_api.conditions import Reason

from rm_abstract.core.errors import BadInput, SourceUnreachable, Transient
from rm_abstract.http import NotFound
from rm_abstract.s3 import S3
from rm_abstract.store.destination import FULL
from rm_abstract.store.layers import file_chunks
from rm_abstract.store.new_file import file_write
from rm_abstract.store.upload import ATTEMPTS, patiently

Content = Callable[[], Iterable[bytes]]
"""Gives the bytes anew with every call."""
_PART: Final = 32 << 20
"""Bytes of a part of what is large in a bucket; a part is in memory while it is written."""


class Objects(Protocol):
    """Things by name, each of which is there as a whole or not at all. Names are paths with ``/``, and have no ``..``.

    Methods raise NotFound, BadInput (refused), SourceUnreachable, and Transient where there is no room.
    """

    def has(self, name: str) -> bool:
        """True if it is there."""

    def read(self, name: str, size: int | None = None) -> Iterator[bytes]:
        """Its bytes in pieces. ``size`` is how many there are, of what was written as large."""

    def write(self, name: str, content: Content, size: int, digest: str, *, large: bool = False) -> None:
        """Write it, in the place of what was there. Raises BadInput where the content has another size or digest.

        What is ``large`` may be kept in parts.
        """

    def close(self) -> None:
        """Close connections."""


class Directory:
    """A directory, which may be one of a network file system. Whoever else writes the same thing is waited for."""

    def has(self, name: str) -> bool:
        """See the protocol."""
        with _problems(name):
            return Path(name).is_file()

    def read(self, name: str, size: int | None = None) -> Iterator[bytes]:
        """See the protocol."""
        with _problems(name):
            yield from file_chunks(Path(name))

    def write(self, name: str, content: Content, size: int, digest: str, *, large: bool = False) -> None:
        """See the protocol. It is on the disk when this returns."""
        path = Path(name)
        partial = path.with_name(f".{path.name}.partial")
        with _problems(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(partial) as file:
                if large and path.is_file():
                    partial.unlink()
                    return
                try:
                    for chunk in _checked(name, content(), size, digest):
                        file_write(file, chunk)
                    os.fchmod(file, 0o644)
                    os.fsync(file)
                    partial.rename(path)
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def close(self) -> None:
        """See the protocol."""


@contextmanager
def _locked(partial: Path) -> Iterator[int]:
    """The file that is being written, which nobody else has; emptied of what one who was killed has left."""
    while True:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # While it was waited for, it may have been moved to its place, and others may come and go at any moment.
            try:
                if not os.path.samestat(os.fstat(file), partial.stat()):
                    continue
            except FileNotFoundError:
                continue
            os.ftruncate(file, 0)
            yield file
            return
        finally:
            os.close(file)


@contextmanager
def _problems(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"there is no {name}") from None
    except OSError as error:
        if error.errno in FULL:
            raise Transient(
                f"the store at {name} has no room ({error.strerror}); give it more", reason=Reason.STORE_UNREACHABLE
            ) from error
        raise SourceUnreachable(
            f"{name} cannot be used: {error.strerror or error}", reason=Reason.STORE_UNREACHABLE
        ) from error


def _checked(name: str, chunks: Iterable[bytes], size: int, digest: str) -> Iterator[bytes]:
    hashed, count = hashlib.sha256(), 0
    for chunk in chunks:
        hashed.update(chunk)
        count += len(chunk)
        yield chunk
    if count != size or f"sha256:{hashed.hexdigest()}" != digest:
        raise BadInput(f"what is pushed to {name} changes meanwhile")


class Bucket:
    """A bucket. What is large is kept in parts, so that a part of it can be written again alone.

    ``NAME`` is written after its parts ``NAME.parts/00000`` and so on, and holds the number of all bytes.
    """

    def __init__(self, bucket: str, *, part: int = _PART) -> None:
        self._bucket = bucket
        self._part = part
        self._s3 = S3.from_environment(unreachable=Reason.STORE_UNREACHABLE)

    def has(self, name: str) -> bool:
        """See the protocol."""
        try:
            patiently(lambda: self._s3.head(self._bucket, name), ATTEMPTS)
        except NotFound:
            return False
        return True

    def read(self, name: str, size: int | None = None) -> Iterator[bytes]:
        """See the protocol."""
        names = [name] if size is None else [f"{name}.parts/{number:05}" for number in range(-(-size // self._part))]
        for each in names:
            thing = patiently(lambda each=each: self._s3.head(self._bucket, each), ATTEMPTS)  # type: ignore[misc]
            yield from self._s3.download(self._bucket, thing)

    def write(self, name: str, content: Content, size: int, digest: str, *, large: bool = False) -> None:
        """See the protocol."""
        if not large:
            body = b"".join(_checked(name, content(), size, digest))
            self._put(name, body)
            return
        if self.has(name):
            return
        for number, part in enumerate(_parts(_checked(name, content(), size, digest), self._part)):
            self._put_missing(f"{name}.parts/{number:05}", part)
        self._put(name, str(size).encode())

    def _put_missing(self, name: str, body: bytes) -> None:
        try:
            there = patiently(lambda: self._s3.head(self._bucket, name), ATTEMPTS)
        except NotFound:
            pass
        else:
            if there.size == len(body) and there.digest == _sha256(body):
                return
        self._put(name, body)

    def _put(self, name: str, body: bytes) -> None:
        digest = _sha256(body)
        patiently(lambda: self._s3.put(self._bucket, name, body, size=len(body), digest=digest), ATTEMPTS)

    def close(self) -> None:
        """See the protocol."""
        self._s3.close()


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _parts(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in parts of ``size``, of which the last may be smaller. The last comes when all has been read."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) > size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)
