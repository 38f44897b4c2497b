"""The keyed work queue: each key at most once in line and once in work, with delays and back-off per key."""

import asyncio
import contextlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from rm_operator.runtime.metrics import Metrics


class Key(NamedTuple):
    """What a reconcile is about; the namespace of a cluster-scoped object is empty."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


FIRST_BACKOFF_SECONDS: Final = 1.0
MAX_BACKOFF_SECONDS: Final = 300.0
_MAX_DOUBLINGS: Final = 20
_SPARE_DELAYED: Final = 1000


class QueueClosed(Exception):
    """The queue was closed and what was in line has been dropped."""


class Queue:
    """Keys to reconcile, first come first served.

    A key that is added while it waits is not added again; one that is added while in work is put in line once, when
    that work is done. Keys with a delay or in back-off wait aside and take no place in line, so a failing key delays
    nobody. Keys whose last work was slow have a line of their own, so they delay nobody either. Every key that ``get``
    returned must be given back with ``done``. For the event loop's thread only.
    """

    def __init__(self, metrics: Metrics | None = None, *, jitter: Callable[[], float] = random.random) -> None:
        self._metrics = metrics or Metrics()
        self._jitter = jitter
        self._lines: dict[bool, deque[Key]] = {False: deque(), True: deque()}
        self._slow: set[Key] = set()
        self._waiting: dict[Key, float] = {}  # in line, or to be put in line when done; since when
        self._working: dict[Key, float] = {}
        self._due: dict[Key, float] = {}
        self._delayed: list[tuple[float, int, Key]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._failures: dict[Key, int] = {}
        self._getters: dict[bool, deque[asyncio.Future[None]]] = {False: deque(), True: deque()}
        self._closed = False

    def __len__(self) -> int:
        """Keys in line, without those in work or delayed."""
        return sum(map(len, self._lines.values()))

    @property
    def idle(self) -> bool:
        """True if nothing is in line or in work; delayed keys do not count."""
        return not self._waiting and not self._working

    def add(self, key: Key) -> None:
        """Put ``key`` in line, unless it is there."""
        if self._closed or key in self._waiting:
            return
        self._metrics.queue_adds.labels(key.kind, key.kind).inc()
        self._waiting[key] = asyncio.get_running_loop().time()
        if key not in self._working:
            self._enqueue(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Put ``key`` in line after ``seconds``, or earlier if it is to be earlier already."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._closed or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._delayed, (due, next(self._order), key))
        if len(self._delayed) > 2 * len(self._due) + _SPARE_DELAYED:
            # Most were superseded long before their time, which may be hours away.
            self._delayed = [each for each in self._delayed if self._due.get(each[2]) == each[0]]
            heapq.heapify(self._delayed)
        self._set_timer(loop)

    def retry(self, key: Key) -> float:
        """Put ``key`` in line after its back-off; returns that in seconds.

        It starts near 1 s, doubles with each call up to 5 min, and is shortened by up to a quarter at random, so that
        keys which failed together do not return together.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = min(failures + 1, _MAX_DOUBLINGS)
        self._metrics.queue_retries.labels(key.kind, key.kind).inc()
        seconds: float = min(FIRST_BACKOFF_SECONDS * 2**failures, MAX_BACKOFF_SECONDS) * (1 - self._jitter() / 4)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Key) -> None:
        """Reset the back-off of ``key``."""
        self._failures.pop(key, None)

    def failures(self, key: Key) -> int:
        """How often ``retry`` was called for ``key`` since it was last forgotten."""
        return self._failures.get(key, 0)

    async def get(self, *, slow: bool = False) -> Key:
        """The next key of the line, or of that of the slow ones; it is then in work. Raises QueueClosed.

        A delayed addition of the key is dropped: the reconcile that begins now decides anew when the next is due.
        """
        loop = asyncio.get_running_loop()
        line, getters = self._lines[slow], self._getters[slow]
        while not line:
            if self._closed:
                raise QueueClosed
            getter = loop.create_future()
            getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter.done() and not getter.cancelled():
                    self._wake(slow)  # hand the wake-up on: this getter will not use it
                else:
                    with contextlib.suppress(ValueError):
                        getters.remove(getter)
                raise
        key = line.popleft()
        now = loop.time()
        self._metrics.queue_depth.labels(key.kind, key.kind).dec()
        self._metrics.queue_seconds.labels(key.kind, key.kind).observe(now - self._waiting.pop(key))
        self._working[key] = now
        self._due.pop(key, None)
        return key

    def done(self, key: Key, *, slow: bool = False) -> None:
        """End the work on ``key``; if it was added meanwhile it goes in line now.

        ``slow`` tells in which line it waits from now on, until it was done without.
        """
        if slow:
            self._slow.add(key)
        else:
            self._slow.discard(key)
        started = self._working.pop(key)
        self._metrics.work_seconds.labels(key.kind, key.kind).observe(asyncio.get_running_loop().time() - started)
        if key in self._waiting and not self._closed:
            self._enqueue(key)

    def close(self) -> None:
        """Drop everything in line and end every ``get``; work in progress is still to be given back."""
        self._closed = True
        for line in self._lines.values():
            for key in line:
                self._metrics.queue_depth.labels(key.kind, key.kind).dec()
            line.clear()
        self._waiting.clear()
        self._due.clear()
        self._delayed.clear()
        if self._timer is not None:
            self._timer.cancel()
        for slow, getters in self._getters.items():
            while getters:
                self._wake(slow)

    def observe_work(self) -> None:
        """Bring the gauges of work in progress up to date; called before metrics are read."""
        now = asyncio.get_running_loop().time()
        ages: dict[str, list[float]] = {}
        for key, started in self._working.items():
            ages.setdefault(key.kind, []).append(now - started)
        self._metrics.unfinished_seconds.clear()
        self._metrics.longest_running_seconds.clear()
        for kind, seconds in ages.items():
            self._metrics.unfinished_seconds.labels(kind, kind).set(sum(seconds))
            self._metrics.longest_running_seconds.labels(kind, kind).set(max(seconds))

    def _enqueue(self, key: Key) -> None:
        slow = key in self._slow
        self._lines[slow].append(key)
        self._metrics.queue_depth.labels(key.kind, key.kind).inc()
        self._wake(slow)

    def _wake(self, slow: bool) -> None:
        getters = self._getters[slow]
        while getters:
            getter = getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            if self._timer.when() <= self._delayed[0][0]:
                return
            self._timer.cancel()
        self._timer = loop.call_at(self._delayed[0][0], self._release)

    def _release(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        while self._delayed and self._delayed[0][0] <= now:
            due, _, key = heapq.heappop(self._delayed)
            # An entry that was superseded by an earlier one, or dropped by get(), is not the key's any more.
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        if self._delayed:
            self._set_timer(loop)
