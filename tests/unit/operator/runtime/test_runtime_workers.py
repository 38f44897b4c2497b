"""What becomes of a reconcile's result, and that one object's trouble is its own."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rm_operator.kube.client import Object
from rm_operator.kube.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotLeader,
    Terminal,
    TooManyRequests,
    Transient,
    Unreachable,
)
from rm_operator.kube.resources import CONFIGMAPS, JOBS
from rm_operator.kube.store import Store, Stores
from rm_operator.runtime.controller import Watch, Workers, connect
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.queue import Key, Queue

pytestmark = pytest.mark.looptime

KIND = "ConfigMap"
A, B = Key(KIND, "ns", "a"), Key(KIND, "ns", "b")

Reconcile = Callable[[Key], Awaitable[float | None]]


class Scripted:
    """A controller that does what a test says, and remembers when it was called."""

    kind = KIND

    def __init__(self, reconcile: Reconcile, watches: Sequence[Watch] = ()) -> None:
        self._reconcile = reconcile
        self.watches = watches
        self.calls: list[tuple[str, float]] = []

    async def reconcile(self, key: Key) -> float | None:
        self.calls.append((key.name, asyncio.get_running_loop().time()))
        return await self._reconcile(key)

    def times(self, name: str) -> list[float]:
        return [round(when, 2) for called, when in self.calls if called == name]


class Bench:
    def __init__(
        self, reconcile: Reconcile, *, count: int = 4, deadline: float = 120, watches: Sequence[Watch] = ()
    ) -> None:
        self.metrics = Metrics()
        self.queue = Queue(self.metrics, jitter=lambda: 0.0)
        self.stores = Stores([Store(CONFIGMAPS), Store(JOBS)])
        self.controller = Scripted(reconcile, watches)
        self.workers = Workers(
            [self.controller], self.stores, self.queue, metrics=self.metrics, count=count, deadline=deadline
        )

    def known(self, *names: str) -> None:
        for number, name in enumerate(names, 1):
            metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(number)}
            self.stores[CONFIGMAPS].upsert({"apiVersion": "v1", "kind": KIND, "metadata": metadata})

    def results(self) -> dict[str, float]:
        found = {}
        for metric in self.metrics.reconciles.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    found[sample.labels["result"]] = sample.value
        return found


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(bench.workers.run())
    try:
        yield bench
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


def answering(result: float | Exception | None) -> Reconcile:
    async def reconcile(_: Key) -> float | None:
        if isinstance(result, Exception):
            raise result
        return result

    return reconcile


async def test_success_is_looked_at_again_after_hours() -> None:
    async with running(Bench(answering(None))) as bench:
        bench.known("a")
        bench.queue.add(A)
        await asyncio.sleep(7 * 3600)
        assert bench.controller.times("a") == [0]
        await asyncio.sleep(6 * 3600)
        assert len(bench.controller.times("a")) == 2
        assert bench.results() == {"success": 2}


async def test_an_object_that_is_gone_is_not() -> None:
    async with running(Bench(answering(None))) as bench:
        bench.queue.add(A)
        await asyncio.sleep(100 * 3600)
        assert bench.controller.times("a") == [0]


async def test_a_reconcile_can_ask_to_be_called_again() -> None:
    async with running(Bench(answering(30.0))) as bench:
        bench.queue.add(A)
        await asyncio.sleep(100)
        assert bench.controller.times("a") == [0, 30, 60, 90]
        assert bench.results() == {"requeue_after": 4}


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (Transient("not yet"), "requeue"),
        (Conflict(409, "Conflict", "changed"), "error"),
        (Forbidden(403, "Forbidden", "no rule"), "error"),
        (Unreachable("away"), "error"),
        (RuntimeError("a defect"), "error"),
        (TimeoutError("some library's own"), "error"),
    ],
)
async def test_what_may_pass_is_tried_with_growing_waits(error: Exception, result: str) -> None:
    async with running(Bench(answering(error))) as bench:
        bench.queue.add(A)
        await asyncio.sleep(16)
        assert bench.controller.times("a") == [0, 1, 3, 7, 15]
        assert bench.results() == {result: 5}


@pytest.mark.parametrize(
    "error", [Transient("busy", retry_after=20), TooManyRequests(429, "TooManyRequests", "busy", retry_after=20)]
)
async def test_a_wait_that_was_asked_for_is_kept(error: Exception) -> None:
    async with running(Bench(answering(error))) as bench:
        bench.queue.add(A)
        await asyncio.sleep(50)
        assert bench.controller.times("a") == [0, 20, 40]


@pytest.mark.parametrize("error", [Terminal("InvalidSpec", "no"), Invalid(422, "Invalid", "no")])
async def test_what_cannot_pass_waits_for_a_change(error: Exception) -> None:
    async with running(Bench(answering(error))) as bench:
        connect([bench.controller], bench.stores, bench.queue)
        bench.known("a")
        await asyncio.sleep(3600)
        assert bench.controller.times("a") == [0]
        assert bench.results() == {"terminal": 1}
        bench.known("x", "a")
        await asyncio.sleep(1)
        assert len(bench.controller.times("a")) == 2


async def test_without_the_lease_nothing_is_tried_again() -> None:
    async with running(Bench(answering(NotLeader("gone")))) as bench:
        bench.queue.add(A)
        await asyncio.sleep(3600)
        assert bench.controller.times("a") == [0]


async def test_success_resets_the_back_off() -> None:
    outcomes: list[Exception | None] = [Transient(), Transient(), Transient(), None, Transient(), Transient()]

    async def reconcile(_: Key) -> float | None:
        if outcomes and (error := outcomes.pop(0)):
            raise error
        return None

    async with running(Bench(reconcile)) as bench:
        bench.queue.add(A)
        await asyncio.sleep(7.5)
        assert bench.controller.times("a") == [0, 1, 3, 7]
        bench.queue.add(A)
        await asyncio.sleep(10)
        assert bench.controller.times("a")[4:] == [7.5, 8.5, 10.5]


async def test_a_reconcile_that_hangs_is_ended_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    async def reconcile(_: Key) -> float | None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(asyncio.get_running_loop().time())
        return None

    async with running(Bench(reconcile, deadline=10)) as bench:
        bench.queue.add(A)
        await asyncio.sleep(25)
        assert bench.controller.times("a") == [0, 11, 23]
        assert [round(when, 2) for when in ended] == [10, 21]
    assert "took longer than 10 s" in caplog.text


async def test_a_slow_object_does_not_delay_others() -> None:
    async def reconcile(key: Key) -> float | None:
        await asyncio.sleep(100 if key == A else 0)
        return None

    async with running(Bench(reconcile, count=2)) as bench:
        bench.queue.add(A)
        for _ in range(5):
            bench.queue.add(B)
            await asyncio.sleep(1)
        assert bench.controller.times("b") == [0, 1, 2, 3, 4]


async def test_failing_objects_do_not_delay_others() -> None:
    async def reconcile(key: Key) -> float | None:
        if key != A:
            raise RuntimeError("a defect")
        return None

    async with running(Bench(reconcile, count=1)) as bench:
        for number in range(1000):
            bench.queue.add(Key(KIND, "ns", f"bad{number}"))
        await asyncio.sleep(30)
        start = asyncio.get_running_loop().time()
        bench.queue.add(A)
        await asyncio.sleep(0.01)
        assert bench.controller.times("a") == [round(start, 2)]


async def test_defects_are_logged_with_their_traceback_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Bench(answering(ZeroDivisionError("a defect")))) as bench:
        bench.queue.add(A)
        await asyncio.sleep(0.5)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "ConfigMap ns/a" in record.getMessage()
    assert (
        bench.metrics.registry.get_sample_value("controller_runtime_reconcile_panics_total", {"controller": KIND}) == 1
    )


async def test_closing_the_queue_lets_reconciles_finish() -> None:
    finished = []

    async def reconcile(key: Key) -> float | None:
        await asyncio.sleep(5)
        finished.append(key)
        return None

    bench = Bench(reconcile)
    task = asyncio.create_task(bench.workers.run())
    bench.queue.add(A)
    await asyncio.sleep(1)
    bench.queue.add(B)
    await asyncio.sleep(1)
    bench.queue.close()
    await asyncio.wait_for(task, 10)
    assert finished == [A, B]


async def test_changes_reach_the_queue_as_the_watches_say() -> None:
    def to_owner(old: Object | None, new: Object | None) -> Iterable[Key]:
        obj: Any = new or old
        yield Key(KIND, obj["metadata"]["namespace"], obj["metadata"]["labels"]["owner"])

    async with running(Bench(answering(None), watches=[Watch(JOBS, to_owner)])) as bench:
        connect([bench.controller], bench.stores, bench.queue)
        metadata = {"namespace": "ns", "name": "j", "uid": "j", "resourceVersion": "5", "labels": {"owner": "a"}}
        bench.stores[JOBS].upsert({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata})
        await asyncio.sleep(1)
        assert bench.controller.times("a") == [0]
        bench.stores[JOBS].remove("ns", "j", uid="j", resource_version="6")
        await asyncio.sleep(1)
        assert bench.controller.times("a") == [0, 1]
        bench.known("b")
        await asyncio.sleep(1)
        assert bench.controller.times("b") == [2]
