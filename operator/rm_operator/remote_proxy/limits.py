"""How often one may ask, and how much at a time."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

MINUTE: Final = 60.0


class TooMany(Exception):
    """A limit is reached; ``seconds`` says when to come again."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = max(1, math.ceil(seconds))


class Rate:
    """At most so many requests in any minute; None for any number."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._most = per_minute
        self._clock = clock
        self._begun: deque[float] = deque()

    def admit(self) -> None:
        """Count a request. Raises TooMany, and does not count it."""
        if self._most is None:
            return
        now = self._clock()
        while self._begun and self._begun[0] <= now - MINUTE:
            self._begun.popleft()
        if len(self._begun) >= self._most:
            raise TooMany(
                f"the endpoint takes {self._most} requests a minute, and has had them", self._begun[0] + MINUTE - now
            )
        self._begun.append(now)


class Places:
    """So many requests at a time, and as many again that wait for a place; None for any number."""

    def __init__(self, most: int | None, wait_seconds: float) -> None:
        self._most = most
        self._wait = wait_seconds
        self._free = None if most is None else asyncio.Semaphore(most)
        self.running = 0
        self.waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for one request. Raises TooMany where there is none within the time that one may wait."""
        if self._free is not None:
            await self._wait_for(self._free)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if self._free is not None:
                self._free.release()

    async def _wait_for(self, free: asyncio.Semaphore) -> None:
        full = TooMany(f"the endpoint takes {self._most} requests at the same time, and has them", 1)
        if free.locked() and self.waiting >= (self._most or 0):
            raise full
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait):
                await free.acquire()
        except TimeoutError:
            raise full from None
        finally:
            self.waiting -= 1
