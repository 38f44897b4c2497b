"""What every server counts and lets in: no more than its places and its queue hold, and nothing once it ends."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from rm_abstract.serve.errors import ApiError
from rm_abstract.serve.metrics import ServerMetrics


class Admission(ABC):
    """Lets in at most ``capacity`` at a time."""

    def __init__(self, capacity: int, what: str) -> None:
        self._capacity = capacity
        self._what = what
        self.admitted = 0
        """What is being computed or waits, and the rest of requests that are not whole yet."""
        self.running = 0
        """What is being computed."""
        self.waiting = 0
        """What waits for a place in the batch."""
        self.metrics = ServerMetrics()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        """True once it takes no more requests."""

    @property
    @abstractmethod
    def failure(self) -> str:
        """Why it can compute no more; empty while it can."""

    @property
    @abstractmethod
    def max_sequence_length(self) -> int:
        """Tokens that a request may have."""

    @abstractmethod
    async def failed(self) -> None:
        """Wait until the engine has failed for good."""

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    async def drained(self) -> None:
        """Wait until nothing is being computed."""
        await self._idle.wait()

    @contextmanager
    def place(self, count: int) -> Iterator[None]:
        """Places for ``count`` at once. Raises ApiError 429 or 503 where there are none."""
        if self.draining:
            raise ApiError(503, "this server is shutting down", code="shutting_down", headers={"Retry-After": "1"})
        if self.failure:
            raise ApiError(503, f"the engine has failed: {self.failure}", code="engine_failed")
        if self.admitted + count > self._capacity:
            raise ApiError(
                429, f"{self.admitted} {self._what} or wait; no more than {self._capacity} may",
                code="rate_limit_exceeded", headers={"Retry-After": "1"},
            )  # fmt: skip
        self.admitted += count
        self._idle.clear()
        try:
            yield
        finally:
            self.admitted -= count
            if not self.admitted:
                self._idle.set()
