"""Small JSON files that several processes share: each is complete or absent, and what is damaged counts as absent."""

import json
import logging
import os
import zlib
from contextlib import suppress
from typing import Any, Final

_log = logging.getLogger("rm_abstract.plugin")

LIMIT: Final = 500
"""Files in a directory, above which the older half is removed: places come and go, and nobody tells."""
FORMAT: Final = 1
"""Counts changes of what is written; files of another one are not read."""


def default_directory() -> str:
    """Where indexes are kept: ``rm-abstract/plugins`` in the user's cache directory (XDG_CACHE_HOME)."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "rm-abstract", "plugins")


class Store:
    """Named values in a directory. Writers replace whole files, so that readers never see a half; the last one wins."""

    def __init__(self, directory: str = "") -> None:
        self.directory = directory or default_directory()

    def path(self, name: str) -> str:
        """The file of the value ``name``."""
        return os.path.join(self.directory, f"{name}.json")

    def read(self, name: str) -> Any:
        """The value, or None where there is none, or none that can be trusted."""
        try:
            with open(self.path(name), "rb") as file:
                head, _, body = file.read().partition(b"\n")
        except OSError:
            return None
        if head != _head(body):
            _log.debug("%s is damaged or of another version, and made anew", self.path(name))
            return None
        try:
            return json.loads(body)
        except ValueError:
            return None

    def write(self, name: str, value: Any) -> bool:
        """Put the value there; false where the directory cannot be written, which is no failure: it is only a cache."""
        import tempfile  # noqa: PLC0415 (few processes write)

        body = json.dumps(value, separators=(",", ":")).encode()
        temporary = ""
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            self._make_room()
            handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=f".{name}-")
            with os.fdopen(handle, "wb") as file:
                file.write(_head(body) + b"\n" + body)
            os.replace(temporary, self.path(name))
        except OSError as error:
            _log.debug("%s cannot be written: %s", self.path(name), error)
            if temporary:
                with suppress(OSError):
                    os.unlink(temporary)
            return False
        return True

    def _make_room(self) -> None:
        with os.scandir(self.directory) as found:
            paths = [entry.path for entry in found]
        if len(paths) > LIMIT:
            for path in sorted(paths, key=os.path.getmtime)[: LIMIT // 2]:
                with suppress(FileNotFoundError):
                    os.unlink(path)

    def writable(self) -> bool:
        """Whether values can be put there."""
        place = self.directory
        while place and not os.path.exists(place):
            place = os.path.dirname(place)
        return os.access(place, os.W_OK | os.X_OK)


def _head(body: bytes) -> bytes:
    return b"rm-abstract %d %08x" % (FORMAT, zlib.crc32(body))
