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

logger = logging.getLogger(__name__)

DEADLINE_SECONDS: Final = 120.0
RESYNC_SECONDS: Final = 10 * 3600.0


@dataclass(frozen=True, slots=True)
class Watch:
    """Changes of ``resource`` that concern a controller: ``map(old, new)`` gives the keys to reconcile."""

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
    """From now on, have changes in ``stores`` put the keys that they concern on ``queue``."""
    for controller in controllers:
        stores.of_kind(controller.kind).on_change(_own_key(controller.kind, queue))
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

    Transient errors, lost races and API errors are retried with back-off; terminal ones wait for a change; all else
    is a defect: logged with its traceback, counted, and retried too. A reconcile that takes longer than ``deadline``
    seconds is ended and retried, so that it cannot hold its worker for ever.
    """

    def __init__(
        self,
        controllers: Iterable[Controller],
        stores: Stores,
        queue: Queue,
        *,
        metrics: Metrics | None = None,
        count: int = 16,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self._controllers = {controller.kind: controller for controller in controllers}
        self._stores = stores
        self._queue = queue
        self._metrics = metrics or Metrics()
        self._count = count
        self._deadline = deadline

    async def run(self) -> None:
        """Work until cancelled or the queue is closed; on cancellation, reconciles in progress are cancelled too."""
        for kind in self._controllers:
            self._metrics.max_workers.labels(kind).set(self._count)
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                group.create_task(self._work(), name=f"worker {number}")

    async def _work(self) -> None:
        while True:
            try:
                key = await self._queue.get()
            except QueueClosed:
                return
            try:
                await self._reconcile(key)
            finally:
                self._queue.done(key)

    async def _reconcile(self, key: Key) -> None:
        metrics, loop = self._metrics, asyncio.get_running_loop()
        metrics.active_workers.labels(key.kind).inc()
        started = loop.time()
        try:
            async with asyncio.timeout(self._deadline) as deadline:
                after = await self._controllers[key.kind].reconcile(key)
            result = self._succeeded(key, after)
        except Transient as error:
            result = "requeue"
            self._retry(key, error, error.retry_after)
        except Terminal as error:
            result = "terminal"
            self._give_up(key, error)
        except ApiError as error:
            if error.terminal:
                result = "terminal"
                self._give_up(key, error)
            else:
                result = "error"
                metrics.reconcile_errors.labels(key.kind).inc()
                self._retry(key, error, error.retry_after)
        except NotLeader as error:
            # The process is about to end; the next leader starts from everything.
            result = "error"
            logger.info("%s: %s", key, error)
        except TimeoutError as error:
            result = "error"
            metrics.reconcile_errors.labels(key.kind).inc()
            if deadline.expired():
                logger.error("%s: the reconcile took longer than %.0f s", key, self._deadline)
            self._retry(key, error, None)
        except Exception as error:
            result = "error"
            metrics.reconcile_errors.labels(key.kind).inc()
            metrics.panics.labels(key.kind).inc()
            logger.exception("%s: the reconcile failed unexpectedly", key)
            self._retry(key, error, None)
        finally:
            metrics.active_workers.labels(key.kind).dec()
        metrics.reconciles.labels(key.kind, result).inc()
        metrics.reconcile_seconds.labels(key.kind).observe(loop.time() - started)

    def _succeeded(self, key: Key, after: float | None) -> str:
        self._queue.forget(key)
        if after is not None:
            self._queue.add_after(key, after)
            return "requeue_after"
        if self._stores.of_kind(key.kind).get(key.namespace, key.name) is not None:
            # Should some change ever go unnoticed, it is noticed here.
            self._queue.add_after(key, RESYNC_SECONDS * (0.8 + 0.4 * random.random()))  # noqa: S311 - jitter
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
        logger.warning("%s: not tried again until something changes: %s", key, error)
