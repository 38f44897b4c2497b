"""What a router has seen of each resource, and whether it gets requests."""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import quantiles
from typing import Final

_RECENT: Final = 256
"""Durations that percentiles are taken of."""


class Circuit(StrEnum):
    """Whether a resource gets requests."""

    CLOSED = "closed"
    """It does."""
    OPEN = "open"
    """It failed again and again, and gets none for a while."""
    HALF_OPEN = "half-open"
    """It gets one request at a time, to see whether it works again."""


@dataclass(frozen=True)
class ResourceStatistics:
    """What a router has seen of a resource."""

    requests: int = 0
    """Those that have ended."""
    failures: int = 0
    in_flight: int = 0
    seconds: float = 0.0
    """Of all requests together."""
    p50: float = 0.0
    """Seconds of a request, of the last 256 that succeeded."""
    p95: float = 0.0
    circuit: Circuit = Circuit.CLOSED
    last_error: str = ""


@dataclass
class Record:
    """The same while it changes; its owner locks it."""

    requests: int = 0
    failures: int = 0
    in_flight: int = 0
    seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    in_a_row: int = 0
    open_until: float | None = None
    last_error: str = ""

    def circuit(self, now: float) -> Circuit:
        """Whether it gets requests at this time."""
        if self.open_until is None:
            return Circuit.CLOSED
        return Circuit.OPEN if now < self.open_until else Circuit.HALF_OPEN

    def statistics(self, now: float) -> ResourceStatistics:
        """What it says at this time."""
        recent = list(self.recent)
        cuts = quantiles(recent, n=20, method="inclusive") if len(recent) > 1 else [sum(recent)] * 19
        return ResourceStatistics(
            self.requests,
            self.failures,
            self.in_flight,
            self.seconds,
            cuts[9],
            cuts[18],
            self.circuit(now),
            self.last_error,
        )
