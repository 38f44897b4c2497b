"""Running the commands that the local cluster is made with."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import LocalClusterError


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    stdin: str | None = None,
    timeout: float = 120,
    environment: Mapping[str, str] | None = None,
    stdin_from: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output as text.

    `stdin` is what the command reads, or `stdin_from` a file descriptor that it reads from. Raises LocalClusterError
    when the command is missing, takes longer than `timeout` seconds or, with `check`, fails; the message carries the
    command and the end of what it said.
    """
    command = [str(part) for part in argv]
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command,
            check=False,
            input=stdin,
            stdin=stdin_from,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise LocalClusterError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LocalClusterError(f"`{shown}` did not end within {timeout:g} s") from error
    if check and done.returncode != 0:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-10:])
        raise LocalClusterError(f"`{shown}` ended with {done.returncode}: {said}")
    return done
