"""Directories that are filled completely or not at all, also mount points, which cannot be renamed onto."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rm_abstract.core.errors import BadInput, Transient

MARKER: Final = ".rma-fetch"
"""Directory that marks a destination as ours, and in which things are prepared. What is beside it may be replaced."""
FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, a quota, and a limit on the size of files."""


class Destination:
    """A context manager: fill ``path``, then ``publish``; without that, nothing is left but the marker.

    The destination must be absent, empty, or one that was filled in this way before: that one is emptied and filled
    anew, so that a container that is started again gets what it asks for.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._marker = directory / MARKER
        self._last = self._marker / "last"
        self.path = self._marker / "tree"
        """Where to put the content."""

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._marker.is_dir() and any(self._directory.iterdir()):
            raise BadInput(
                f"{self._directory} is not empty, and was not filled by this command; name an empty directory"
            )
        self._marker.mkdir(exist_ok=True)
        # First the one by which readers know that all is there, or what remains would look complete.
        last = os.readlink(self._last) if self._last.is_symlink() else ""
        for entry in sorted(self._directory.iterdir(), key=lambda entry: entry.name != last):
            if entry != self._marker:
                _remove(entry)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        return self

    def publish(self, *, last: str) -> None:
        """Move the content into place; the entry ``last``, by which readers know that it is complete, comes last."""
        self._last.unlink(missing_ok=True)
        self._last.symlink_to(last)  # a note of its name
        for entry in sorted(self.path.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
            entry.rename(self._directory / entry.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Addition:
    """A context manager: fill ``path``, then ``publish``, which adds it to what is in a directory.

    Where the block ends with an error, the directory is as it was, also after ``publish``: so several can be filled
    together. As long as something is being done, the directory has the entry ``.rma-fetch``; what a process that was
    killed has left is undone by the next one that enters.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._marker = directory / MARKER
        self._before = self._marker / "before"
        self._journal = self._marker / "names"
        self.path = self._marker / "tree"
        """Where to put the content."""

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._marker.exists():
            self._undo()
            shutil.rmtree(self._marker)
        self.path.mkdir(parents=True)
        self._before.mkdir()
        return self

    def publish(self) -> None:
        """Move the content into place, and what had its names out of the way."""
        names = sorted(os.listdir(self.path))
        self._journal.write_bytes(b"\0".join(map(os.fsencode, names)))
        for name in names:
            target = self._directory / name
            if os.path.lexists(target):
                target.rename(self._before / name)
            (self.path / name).rename(target)

    def _undo(self) -> None:
        names = self._journal.read_bytes().split(b"\0") if self._journal.exists() else []
        for name in map(os.fsdecode, filter(None, names)):
            target = self._directory / name
            if not os.path.lexists(self.path / name) and os.path.lexists(target):
                target.rename(self.path / name)
            if os.path.lexists(self._before / name):
                (self._before / name).rename(target)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._undo()
        self._journal.unlink(missing_ok=True)
        shutil.rmtree(self._marker)


@contextmanager
def room(path: Path, needed: int | None, what: str) -> Iterator[None]:
    """Say that the volume of ``path`` is too small for ``what`` of ``needed`` bytes, before or when it turns out to be.

    Raises Transient. Where the size is not known, it is None.
    """
    size = "" if needed is None else f" of {needed} bytes"
    full = f"the volume of {path} has no room for the {what}{size}; give it more space"
    free = shutil.disk_usage(path).free
    if needed is not None and needed > free:
        raise Transient(f"{full} ({free} bytes are free)")
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise Transient(f"{full} ({error.strerror})") from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
