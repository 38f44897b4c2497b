"""What a library prints: line by line to the log, and its last lines for whoever asks what became of it."""

import logging
from collections import deque
from typing import Final

log = logging.getLogger("rm_abstract.native")
_LINES: Final = 10
_WIDTH: Final = 300
_LONGEST: Final = 1 << 16


class LibraryLog:
    """Takes bytes as they come, and keeps little of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._line = b""
        self._last: deque[str] = deque(maxlen=_LINES)

    def feed(self, content: bytes) -> None:
        """Take what was printed."""
        *lines, self._line = (self._line + content).split(b"\n")
        if len(self._line) > _LONGEST:
            lines, self._line = [*lines, self._line], b""
        for line in lines:
            self._say(line)

    def close(self) -> None:
        """Take what had no end of line."""
        line, self._line = self._line, b""
        self._say(line)

    @property
    def last(self) -> str:
        """The last lines, with bars between; empty where there were none."""
        return " | ".join(self._last)

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._last.append(text[:_WIDTH])
            log.debug("%s: %s", self._name, text)
