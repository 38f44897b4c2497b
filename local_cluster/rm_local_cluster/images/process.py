"""Running the long commands of a build: output into a log, progress now and then, and a useful end when they fail."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import LocalClusterError
from ..logs import last_lines

Progress = Callable[[str], None]

_SECONDS_BETWEEN_REPORTS = 15.0
_SHOWN_ON_FAILURE = 25


def run_logged(
    argv: Sequence[str | Path],
    log: Path,
    *,
    what: str,
    progress: Progress,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    inherit: Sequence[int] = (),
) -> None:
    """Run a command with its output in `log`.

    `what` names the work in progress lines, `inherit` file descriptors that the command gets too. Raises
    LocalClusterError, with the last lines of the log, when the command is missing or fails; an interrupt ends it.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in argv],
                cwd=cwd,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=inherit,
            )
    except FileNotFoundError as error:
        raise LocalClusterError(f"{argv[0]} is not installed; {what} needs it") from error
    try:
        while process.poll() is None:
            try:
                process.wait(_SECONDS_BETWEEN_REPORTS)
            except subprocess.TimeoutExpired:
                progress(f"{what}: {duration(time.monotonic() - started)} so far")
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        raise LocalClusterError(f"{what} failed; the end of {log}:\n{last_lines(log, _SHOWN_ON_FAILURE)}")


def duration(seconds: float) -> str:
    """A time for people: `0.4 s`, `12 s`, `3 min 5 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
