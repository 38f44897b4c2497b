"""Learning that nothing has changed below some directories, without looking at every file."""

import errno
import logging
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

_log = logging.getLogger("rm_abstract.plugin")

# <sys/inotify.h>: anything that may change a directory's files, and the directory's own end.
_CHANGES: Final = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_ONLY_DIRECTORIES: Final = 0x01000000
_BUFFER: Final = 65536


class Watch:
    """The kernel's word on changes in directories (inotify); where it gives none, everything may have changed.

    It says nothing of changes that other machines make to a shared file system.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        # The lock keeps one thread from reading a descriptor that another has closed, and that is a third one's by now.
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._descriptor = -1
        self._directories: frozenset[str] = frozenset()
        self._events = 1
        self._verified = 0

    def start(self, directories: Iterable[str]) -> None:
        """Watch these directories from now on, instead of those before; nothing counts as verified then.

        After a change the same ones are watched anew: a directory may be another one of the same name by now.
        """
        import ctypes  # noqa: PLC0415 (many processes ask for plugins once)

        def checked(result: int) -> int:
            if result < 0:
                number = ctypes.get_errno() or errno.EIO
                raise OSError(number, os.strerror(number))
            return result

        wanted = frozenset(directories)
        with self._lock:
            if wanted == self._directories and self.quiet():
                return
            self.close()
            self._directories = wanted
            self._events += 1
            try:
                library: Any = ctypes.CDLL(None, use_errno=True)
                self._descriptor = checked(library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
                for path in map(os.fsencode, wanted):
                    checked(library.inotify_add_watch(self._descriptor, path, _CHANGES | _ONLY_DIRECTORIES))
            except (OSError, AttributeError) as error:
                # No such call here, no watches left for this user, or a directory that has just gone.
                _log.debug("directories are not watched but looked at: %s", error)
                self.close()

    def quiet(self) -> bool:
        """True if it is certain that nothing has changed since the last ``verified``."""
        return self.events() == self._verified and self._descriptor >= 0

    def events(self) -> int:
        """Counts changes so far; hand it to ``verified`` once what was there at this moment was looked at."""
        if self._owner != os.getpid():
            # The descriptor is shared with the process that this one was forked from, which needs its events.
            self._begin()
        with self._lock:
            if self._descriptor >= 0:
                try:
                    os.read(self._descriptor, _BUFFER)
                    self._events += 1
                except BlockingIOError:
                    pass
                except OSError:
                    self.close()
            return self._events

    def verified(self, events: int) -> None:
        """What there was when ``events`` were counted is known."""
        with self._lock:
            self._verified = max(self._verified, events)

    def close(self) -> None:
        """Watch nothing any more."""
        with self._lock:
            if self._descriptor >= 0:
                with suppress(OSError):
                    os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()
