"""Files that are made while their content comes: the kernel is told early what is coming, and to begin with it."""

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

STRIDE: Final = 8 << 20
"""Bytes after which the disk is given something to do, and not all of it at the end or later."""
AHEAD: Final = 4 * STRIDE
"""Bytes that are allocated at a time: block by block, as they are written, takes half as long again. No more than
that, as whoever made the layer may have named any size."""
_WORTH: Final = 1 << 20
"""Bytes from which on a file is allocated ahead."""
_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE: begin, and wait for nothing


class NewFile:
    """A context manager that makes a file, where there must be none, and takes its ``size`` bytes in order.

    What the kernel is told only hurries what happens anyhow: where the system or the file system does not know how,
    nothing is done.
    """

    def __init__(self, path: Path, size: int, mode: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        self._size = size
        self._mode = mode
        self._allocated = self._begun = self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._begin()
            os.fchmod(self._descriptor, self._mode)  # whatever the umask is
        finally:
            os.close(self._descriptor)

    def write(self, piece: memoryview) -> None:
        """Write all of ``piece``."""
        if self._written >= self._allocated:
            self._allocate()
        file_write(self._descriptor, piece)
        self._written += len(piece)
        if self._written - self._begun >= STRIDE:
            self._begin()

    def _allocate(self) -> None:
        """Have blocks for what comes next; that there is no room is for who writes to say."""
        count = min(self._size - self._written, AHEAD)
        if _fallocate is not None and count >= _WORTH:
            _fallocate(self._descriptor, 0, self._written, count)
        self._allocated += AHEAD

    def _begin(self) -> None:
        """Have everything on its way that has been written."""
        if _sync_file_range is not None and self._written > self._begun:
            _sync_file_range(self._descriptor, self._begun, self._written - self._begun, _WRITE)
        self._begun = self._written


def file_write(file: int, chunk: bytes | memoryview) -> None:
    """Write all of ``chunk``."""
    left = memoryview(chunk)
    while left:
        left = left[os.write(file, left) :]


def _found(name: str, *arguments: "type[ctypes._SimpleCData[int]]") -> "ctypes._NamedFuncPointer | None":
    """A function of the C library with 64-bit offsets. Python has neither; its ``posix_fallocate`` writes every block
    where a file system cannot allocate."""
    function = getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
    if function is not None:
        function.argtypes = arguments
    return function


_sync_file_range: Final = _found("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_fallocate: Final = _found("fallocate64", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
