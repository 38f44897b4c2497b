"""Runs a vendor's program to its end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from rm_abstract.core.errors import ToolchainFailure

_LOG_LINES: Final = 20
_LOG_BYTES: Final = 64 * 1024
_TERM_SECONDS: Final = 5.0


def search_path(directories: Sequence[str | os.PathLike[str]]) -> str:
    """A search path with these directories before those of the environment.

    Last come the programs of this interpreter's own environment, which need not have been activated.
    """
    usual = os.environ.get("PATH", os.defpath)
    return os.pathsep.join(
        [*(os.path.abspath(directory) for directory in directories), usual, os.path.dirname(sys.executable)]
    )


def run_tool(
    what: str,
    argv: Sequence[str],
    *,
    path: str,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """Run a program without a shell, in a session of its own, and return the last lines of what it wrote.

    Raises ToolchainFailure where it is not installed, ends with an error, or takes more than ``timeout`` seconds; then
    it is ended with whatever it started.
    """
    program = shutil.which(argv[0], path=path)
    if program is None:
        raise ToolchainFailure(f"{what}: {argv[0]} is not installed")
    # Into a file: a pipe stays open as long as anything that the program left running holds it.
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [os.path.abspath(program), *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **(environment or {}), "PATH": path},
                start_new_session=True,
            )
        except OSError as error:
            raise ToolchainFailure(f"{what}: {argv[0]} cannot be started: {error.strerror}") from error
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            raise ToolchainFailure(f"{what}: {argv[0]} was ended after {timeout:g} s: {_tail(log)}") from None
        except BaseException:
            _end(process)
            raise
        if code:
            raise ToolchainFailure(f"{what}: {argv[0]} ended with {code}: {_tail(log)}")
        return _tail(log)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TERM_SECONDS if number is signal.SIGTERM else None)


def _tail(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
    lines = log.read().decode(errors="replace").splitlines()
    return " | ".join(line.rstrip() for line in lines[-_LOG_LINES:])
