"""Locks between processes: on files, given up by the kernel when their holder ends, however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rm_abstract.core.errors import Transient

_POLL_SECONDS: Final = 0.05


class FileLock:
    """A lock that is held. The file may be deleted by whoever holds the exclusive lock; waiters notice."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(
        cls, path: Path, *, shared: bool = False, wait: bool = True, timeout: float | None = None, create: bool = True
    ) -> "FileLock | None":
        """Take the lock; None where ``wait`` is False and another one has it, or the file is not there to be locked.

        Raises Transient where it was not to be had in ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
            except FileNotFoundError:
                if create:
                    raise
                return None
            try:
                fcntl.flock(descriptor, kind | (0 if wait and deadline is None else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(descriptor)
                if not wait:
                    return None
                if deadline is not None and time.monotonic() >= deadline:
                    raise Transient(f"{path.name} is locked by another process for {timeout:g} s already") from None
                time.sleep(_POLL_SECONDS)
                continue
            except BaseException:
                os.close(descriptor)
                raise
            if _is(path, descriptor):
                return cls(path, descriptor)
            os.close(descriptor)

    def release(self) -> None:
        """Give it up. Harmless where that has been done."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


@contextmanager
def locked(path: Path, *, timeout: float | None = None) -> Iterator[None]:
    """Hold the exclusive lock. Raises Transient where it was not to be had in ``timeout`` seconds."""
    lock = FileLock.take(path, timeout=timeout)
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


def _is(path: Path, descriptor: int) -> bool:
    """True if the file of the descriptor is still the one at the path: a deleted one protects nothing."""
    try:
        there, mine = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
