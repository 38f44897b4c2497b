"""What each plugin spends: calls, failures, seconds and memory, by plugin and operation."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Final

_STATM: Final = Path("/proc/self/statm")
_LOADING: Final = frozenset({"initialize", "prepare_resource", "create_session"})


def resident_bytes() -> int | None:
    """Memory of this process that is resident now; None where the system does not say."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of them do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0


@dataclass(frozen=True)
class OperationProfile:
    """What one operation of a plugin cost. Times are seconds; percentiles are of the latest calls."""

    calls: int
    errors: int
    """Calls that raised; they are among ``calls``."""
    running: int
    """Calls that have begun and not ended."""
    seconds: float
    """Of all calls together."""
    shortest: float
    longest: float
    p50: float
    p90: float
    p99: float
    memory_bytes: int | None
    """By how much the process grew during calls that load something, at most, whatever other threads did meanwhile.
    None for other operations, and where the system does not say."""

    @property
    def mean(self) -> float:
        """Seconds of a call on average."""
        return self.seconds / self.calls if self.calls else 0.0


@dataclass
class _Record:
    window: int
    calls: int = 0
    errors: int = 0
    running: int = 0
    seconds: float = 0.0
    shortest: float = 0.0
    longest: float = 0.0
    memory: int | None = None
    latest: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.latest = deque(maxlen=self.window)


class PluginProfiler:
    """Collects what plugins spend. Safe to use from any thread, and cheap enough to be on always."""

    def __init__(
        self,
        *,
        window: int = 1024,
        clock: Callable[[], float] = time.perf_counter,
        memory: Callable[[], int | None] = resident_bytes,
    ) -> None:
        """Percentiles are of the latest ``window`` calls; ``clock`` gives seconds, ``memory`` bytes."""
        self._window = window
        self._clock = clock
        self._memory = memory
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], _Record] = {}

    @contextmanager
    def measure(self, plugin: str, operation: str) -> Iterator[None]:
        """Count what runs inside as one call of a plugin's operation."""
        with self._lock:
            record = self._records.setdefault((plugin, operation), _Record(self._window))
            record.running += 1
        before = self._memory() if operation in _LOADING else None
        failed = True
        start = self._clock()
        try:
            yield
            failed = False
        finally:
            spent = self._clock() - start
            after = None if before is None else self._memory()
            with self._lock:
                record.running -= 1
                record.shortest = min(record.shortest, spent) if record.calls else spent
                record.longest = max(record.longest, spent)
                record.calls += 1
                record.errors += failed
                record.seconds += spent
                record.latest.append(spent)
                if before is not None and after is not None:
                    record.memory = max(record.memory or 0, after - before)

    def report(self) -> dict[str, dict[str, OperationProfile]]:
        """What was spent, by plugin and operation, both sorted."""
        with self._lock:
            result: dict[str, dict[str, OperationProfile]] = {}
            for (plugin, operation), r in sorted(self._records.items()):
                p50, p90, p99 = (percentile(r.latest, share) for share in (0.5, 0.9, 0.99))
                profile = OperationProfile(
                    r.calls, r.errors, r.running, r.seconds, r.shortest, r.longest, p50, p90, p99, r.memory
                )
                result.setdefault(plugin, {})[operation] = profile
            return result

    def reset(self) -> None:
        """Begin anew. What runs now is not counted when it ends."""
        with self._lock:
            self._records.clear()
