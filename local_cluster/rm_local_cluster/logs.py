"""Reading the end of a log."""

import os
from pathlib import Path

_READ = 64 * 1024
_CRASH = ("panic: ", "fatal error: ")


def last_lines(log: Path, count: int) -> str:
    """The last `count` lines of a log that may be large or absent; of a Go program that crashed, those from its
    reason on.
    """
    try:
        with log.open("rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - _READ))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"({error})"
    crash = next((number for number, line in enumerate(lines) if line.startswith(_CRASH)), None)
    end = lines[-count:] if crash is None else lines[crash : crash + count]
    return "\n".join(end) or "(nothing)"
