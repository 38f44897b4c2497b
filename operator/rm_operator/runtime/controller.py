"""Runs reconciles: workers take keys from the queue, errors decide by type what comes next."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from rm_operator.kube.client import Object
from rm_operator.kube.errors import ApiError, NotLeader, Terminal, Transient
from rm_operator.kube.resources import Resource
from rm_operator.kube.store import Stores, key_of
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.queue import Key, Queue, QueueClosed
from rm_operator.runtime.tracing import Tracing

logger = logging.getLogger(__name__)

DEADLINE_SECONDS: Final = 120.0
SLOW_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 10.0
SLOW_WORKERS: Final = 4
MAX_ASIDE: Final = 64
"""Slow reconciles at the same time, beside the workers. Each has one request in flight at most."""
TERMINAL_SECONDS: Final = 600.0
RESYNC_SECONDS: Final = 10 * 3600.0


@dataclass(frozen=True, slots=True)
class Watch:
    """Changes of ``resource`` that concern a controller: ``map(old, new)`` gives the keys to reconcile.

    It is asked of changes after the start only, so it must keep nothing.
    """

    resource: Resource
    map: Callable[[Object | None, Object | None], Iterable[Key]]


class Controller(Protocol):
    """Reconciles the objects of one kind."""

    @property
    def kind(self) -> str:
        """The kind of its keys."""
        ...

    @property
    def watches(self) -> Sequence[Watch]:
        """What beside objects of its own kind concerns it."""
        ...

    async def reconcile(self, key: Key) -> float | None:
        """Bring one object closer to what it should be; returns in how many seconds to look again, if at all.

        It may be called at any time, for any reason, also for an object that is gone. Raises Transient to be called
        again, Terminal where that is of no use until an object changes.
        """
        ...


def connect(controllers: Iterable[Controller], stores: Stores, queue: Queue) -> None:
    """Put the keys of all that there is on ``queue``, and from now on those that changes in ``stores`` concern.

    At a start it is called once the stores are synced: whom each object that came concerns need not be found out then,
    since everybody is in line.
    """
    for controller in controllers:
        store = stores.of_kind(controller.kind)
        for key in store.keys():  # noqa: SIM118 - a store is no mapping
            queue.add(Key(controller.kind, *key))
        store.on_change(_own_key(controller.kind, queue))
        for watch in controller.watches:
            stores[watch.resource].on_change(_mapped(watch, queue))


def _own_key(kind: str, queue: Queue) -> Callable[[Object | None, Object | None], None]:
    def subscriber(old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        if obj is not None:
            queue.add(Key(kind, *key_of(obj)))

    return subscriber


def _mapped(watch: Watch, queue: Queue) -> Callable[[Object | None, Object | None], None]:
    def subscriber(old: Object | None, new: Object | None) -> None:
        for key in watch.map(old, new):
            queue.add(key)

    return subscriber


class Workers:
    """``count`` workers over one queue, shared by all controllers.

    Transient errors, lost races and API errors are retried with back-off; terminal ones are looked at again after a
    change, or after ten minutes, since what refused them may be none of our objects; all else is a defect: logged with
    its traceback, counted, and retried too.

    No object delays another. A reconcile that is not done after a second (a webhook, a registry that does not answer)
    keeps its time, up to ``deadline`` seconds, but its worker is replaced; the next time its key waits in a line of its
    own, with a few workers of its own, until it was quick once. Where ``aside`` reconciles are slow at the same time,
    further ones are ended after their second and retried. Where slow ones come to their end all the same, the API
    server has too much to do and is not asked the same again: further ones have ten seconds. Between two reconciles
    everything else gets its turn.
    """

    def __init__(
        self,
        controllers: Iterable[Controller],
        stores: Stores,
        queue: Queue,
        *,
        metrics: Metrics | None = None,
        tracing: Tracing | None = None,
        count: int = 16,
        deadline: float = DEADLINE_SECONDS,
        aside: int = MAX_ASIDE,
    ) -> None:
        self._controllers = {controller.kind: controller for controller in controllers}
        self._stores = stores
        self._queue = queue
        self._metrics = metrics or Metrics()
        self._tracing = tracing
        self._count = count
        self._deadline = deadline
        self._max_aside = aside
        self._aside = 0
        self._laboured = -PATIENCE_SECONDS
        """When a slow reconcile last came to its end by itself."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._stopping = False

    async def run(self) -> None:
        """Work until cancelled or the queue is closed; on cancellation, reconciles in progress are cancelled too."""
        self._metrics.prepare(self._controllers, workers=self._count)
        for _ in range(self._count):
            self._start(slow=False)
        for _ in range(SLOW_WORKERS):
            self._start(slow=True)
        try:
            while self._tasks:
                await self._ended.wait()
                self._ended.clear()
                for task in [each for each in self._tasks if each.done()]:
                    self._tasks.discard(task)
                    task.result()
        finally:
            self._stopping = True
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _start(self, *, slow: bool) -> None:
        task = asyncio.create_task(self._work(slow=slow), name="slow worker" if slow else "worker")
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._ended.set())

    async def _work(self, *, slow: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                key = await self._queue.get(slow=slow)
            except QueueClosed:
                return
            turn = _Turn(key, slow)
            turn.timer = loop.call_later(SLOW_SECONDS, self._overdue, turn)
            began = loop.time()
            try:
                await self._reconcile(turn)
            finally:
                turn.timer.cancel()
                if turn.overdue and not turn.crowded and loop.time() - began < PATIENCE_SECONDS:
                    self._laboured = loop.time()
                self._queue.done(key, slow=turn.overdue)
                if turn.replaced:
                    self._aside -= 1
                    self._metrics.aside.set(self._aside)
            if turn.replaced:
                return
            # A reconcile that waited for nothing has let nobody else run, and the next one may not either.
            await asyncio.sleep(0)

    def _overdue(self, turn: "_Turn") -> None:
        """Another worker takes over the line that this reconcile's worker has served."""
        if self._stopping:
            return
        turn.overdue = True
        self._metrics.slow.labels(turn.key.kind).inc()
        if self._aside < self._max_aside:
            self._aside += 1
            self._metrics.aside.set(self._aside)
            turn.replaced = True
            self._start(slow=turn.slow)
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._laboured < PATIENCE_SECONDS:
            turn.timer = loop.call_later(PATIENCE_SECONDS - SLOW_SECONDS, self._end, turn)
        else:
            self._end(turn)

    def _end(self, turn: "_Turn") -> None:
        """It has had its time while too many others are slow."""
        if turn.deadline is not None:
            turn.crowded = True
            turn.deadline.reschedule(asyncio.get_running_loop().time())

    async def _reconcile(self, turn: "_Turn") -> None:
        kind, loop = turn.key.kind, asyncio.get_running_loop()
        active = self._metrics.active_workers.labels(kind)
        active.inc()
        started = loop.time()
        try:
            if self._tracing is None:
                result, _ = await self._attempt(turn)
            else:
                obj = self._stores.of_kind(kind).get(turn.key.namespace, turn.key.name)
                with self._tracing.reconcile(turn.key, obj) as span:
                    result, error = await self._attempt(turn)
                    span.ended(result, error)
        finally:
            active.dec()
        self._metrics.reconciles.labels(kind, result).inc()
        self._metrics.reconcile_seconds.labels(kind).observe(loop.time() - started)

    async def _attempt(self, turn: "_Turn") -> tuple[str, Exception | None]:
        """One call of the controller, and what its end means for the key; returns the result and what was raised."""
        key, kind, metrics = turn.key, turn.key.kind, self._metrics
        try:
            async with asyncio.timeout(self._deadline) as turn.deadline:
                after = await self._controllers[kind].reconcile(key)
            return self._succeeded(key, after), None
        except Transient as error:
            self._retry(key, error, error.retry_after)
            return "requeue", error
        except Terminal as error:
            self._give_up(key, error)
            return "terminal", error
        except ApiError as error:
            if error.terminal:
                self._give_up(key, error)
                return "terminal", error
            metrics.reconcile_errors.labels(kind).inc()
            self._retry(key, error, error.retry_after)
            return "error", error
        except NotLeader as error:
            # The process is about to end; the next leader starts from everything.
            logger.info("%s: %s", key, error)
            return "error", error
        except TimeoutError as timeout:
            metrics.reconcile_errors.labels(kind).inc()
            failure = timeout
            if turn.crowded:
                failure = TimeoutError(f"{self._aside} reconciles are slow already, this one starts anew")
            elif turn.deadline is not None and turn.deadline.expired():
                metrics.timeouts.labels(kind).inc()
                logger.error("%s: the reconcile took longer than %.0f s", key, self._deadline)
            self._retry(key, failure, None)
            return "error", failure
        except Exception as error:
            metrics.reconcile_errors.labels(kind).inc()
            metrics.panics.labels(kind).inc()
            logger.exception("%s: the reconcile failed unexpectedly", key)
            self._retry(key, error, None)
            return "error", error

    def _succeeded(self, key: Key, after: float | None) -> str:
        self._queue.forget(key)
        if after is not None:
            self._queue.add_after(key, after)
            return "requeue_after"
        if (key.namespace, key.name) in self._stores.of_kind(key.kind):
            # Should some change ever go unnoticed, it is noticed here.
            self._queue.add_after(key, _jittered(RESYNC_SECONDS))
        return "success"

    def _retry(self, key: Key, error: Exception, after: float | None) -> None:
        if after is None:
            after = self._queue.retry(key)
        else:
            self._queue.add_after(key, after)
        logger.info("%s: again in %.1f s: %s", key, after, error)

    def _give_up(self, key: Key, error: Exception) -> None:
        self._queue.forget(key)
        self._metrics.terminal_errors.labels(key.kind).inc()
        self._queue.add_after(key, _jittered(TERMINAL_SECONDS))
        logger.warning("%s: not tried again until something changes: %s", key, error)


@dataclass(slots=True)
class _Turn:
    """One key in the hands of one worker."""

    key: Key
    slow: bool
    """From which line it was taken."""
    deadline: asyncio.Timeout | None = None
    timer: asyncio.TimerHandle | None = None
    overdue: bool = False
    replaced: bool = False
    """Another worker has taken over from this one."""
    crowded: bool = False
    """It was ended because too many others are slow."""


def _jittered(seconds: float) -> float:
    return seconds * (0.8 + 0.4 * random.random())  # noqa: S311 - jitter
