"""Files that are either as they were or as they should be, whenever the process or the machine ends."""

import asyncio
import contextlib
import fcntl
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_LOCK_POLL_SECONDS = 0.01
LOCK_SECONDS = 10.0


class LockedError(Exception):
    """Another instance of the driver holds the lock for longer than it should."""


def write(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replaces the file at once, ``durable`` also where the machine ends. Raises OSError.

    The name that it is written under is nobody else's: two instances share directories during an update, and both may
    be process 1 of their container.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Removes the file; one that is not there is no error."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    _sync_directory(path.parent)


def remove_temporary(directory: Path, prefix: str) -> None:
    """Removes what a write of a file whose name begins with ``prefix`` has left when it was interrupted."""
    for path in directory.glob(f".{prefix}*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Keeps other tasks and other processes out while it is held. Raises LockedError after ``LOCK_SECONDS``."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = asyncio.get_running_loop().time() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if asyncio.get_running_loop().time() > deadline:
                    raise LockedError(f"{path} is held by another instance of the driver") from None
            await asyncio.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
