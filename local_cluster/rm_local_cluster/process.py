"""Processes that outlive the command that started them, told apart by their start time."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process on this machine; `started` is in clock ticks since the boot that `boot` names, so that a reused id is
    not mistaken.
    """

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has this id now, None when there is none or it has ended."""
        started = _start_ticks(pid)
        return None if started is None else cls(pid, started, _boot())

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that has ended and waits for its parent does not."""
        return self.boot == _boot() and _start_ticks(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def to_json(self) -> str:
        """The process as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_file(cls, path: Path) -> "Process | None":
        """The process that a file names, None when the file is missing or was cut short."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Wait until the condition holds; False when it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything, spaces and parentheses included.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])
