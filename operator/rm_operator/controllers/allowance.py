"""How often something may be done: in bursts, and at a rate."""

from datetime import datetime


class Allowance:
    """At most ``most`` at once, and then ``per_second``. Knows no clock: it is told the time."""

    def __init__(self, *, most: float, per_second: float) -> None:
        self._most = most
        self._per_second = per_second
        self._left = most
        self._at: datetime | None = None

    def left(self, now: datetime) -> int:
        """How many may be done now."""
        if self._at is not None:
            passed = max(0.0, (now - self._at).total_seconds())
            self._left = min(self._most, self._left + passed * self._per_second)
        self._at = now
        return int(self._left)

    def take(self, number: int) -> None:
        """So many were done."""
        self._left -= number
