"""Noticing new entries of a directory, by the kernel's inotify, of which Python has no module."""

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from .errors import LocalClusterError

_IN_CREATE = 0x100
_HEADER = struct.Struct("iIII")


class NewEntries:
    """Entries made in a directory since this object was; readable, as `select` has it, when there are some to take."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._directory = directory
        self._descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, bytes(directory), _IN_CREATE) < 0:
            raise LocalClusterError(f"{directory} cannot be watched: {os.strerror(ctypes.get_errno())}")

    def fileno(self) -> int:
        """The file descriptor to wait for."""
        return self._descriptor

    def take(self) -> Iterator[Path]:
        """The entries that were made and not yet taken; they may be gone again."""
        try:
            events = os.read(self._descriptor, 64 * 1024)
        except BlockingIOError:
            return
        while events:
            _, _, _, length = _HEADER.unpack_from(events)
            name = events[_HEADER.size : _HEADER.size + length].rstrip(b"\0")
            events = events[_HEADER.size + length :]
            yield self._directory / os.fsdecode(name)
