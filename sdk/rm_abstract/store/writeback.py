"""Has the kernel write a file to the disk while more of it comes, and not all of it at the end or later."""

import ctypes
import os
from typing import Final

STRIDE: Final = 8 << 20
"""Bytes after which the disk is given something to do."""
_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE: begin, and wait for nothing


class Writeback:
    """Tell it how much has been written into a file, in order; it only hurries what happens anyhow.

    Where the system or the file system does not know how, nothing is done.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begun = self._written = 0

    def wrote(self, count: int) -> None:
        """So many bytes more."""
        self._written += count
        if self._written - self._begun >= STRIDE:
            self.begin()

    def begin(self) -> None:
        """Have everything on its way that has been written."""
        if _sync_file_range is not None and self._written > self._begun:
            _sync_file_range(self._descriptor, self._begun, self._written - self._begun, _WRITE)
        self._begun = self._written


def _found() -> "ctypes._NamedFuncPointer | None":
    if os.name != "posix":
        return None
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range: Final = _found()
