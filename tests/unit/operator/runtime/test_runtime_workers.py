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
from rm_operator.runtime.controller import SLOW_WORKERS, Watch, Workers, connect
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
        self,
        reconcile: Reconcile,
        *,
        count: int = 4,
        deadline: float = 120,
        aside: int = 64,
        watches: Sequence[Watch] = (),
    ) -> None:
        self.metrics = Metrics()
        self.queue = Queue(self.metrics, jitter=lambda: 0.0)
        self.stores = Stores([Store(CONFIGMAPS), Store(JOBS)])
        self.controller = Scripted(reconcile, watches)
        self.workers = Workers(
            [self.controller],
            self.stores,
            self.queue,
            metrics=self.metrics,
            count=count,
            deadline=deadline,
            aside=aside,
        )

    def known(self, *names: str) -> None:
        for number, name in enumerate(names, 1):
            metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(number)}
            self.stores[CONFIGMAPS].upsert({"apiVersion": "v1", "kind": KIND, "metadata": metadata})

    def results(self) -> dict[str, float]:
        found = {}
        for metric in self.metrics.reconciles.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total") and sample.value:
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
async def test_what_cannot_pass_waits_for_a_change_or_ten_minutes(error: Exception) -> None:
    async with running(Bench(answering(error))) as bench:
        connect([bench.controller], bench.stores, bench.queue)
        bench.known("a")
        await asyncio.sleep(450)
        assert bench.controller.times("a") == [0]
        assert bench.results() == {"terminal": 1}
        bench.known("x", "a")
        await asyncio.sleep(1)
        assert len(bench.controller.times("a")) == 2
        # What refused it may be a policy, which tells nobody when it changes.
        await asyncio.sleep(3600)
        assert 2 + 4 <= len(bench.controller.times("a")) <= 2 + 8


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


class TestIsolation:
    """Objects whose reconciles hang, far more of them than there are workers, cost the others nothing but a start."""

    @staticmethod
    def hanging(seconds: float) -> Reconcile:
        async def reconcile(key: Key) -> float | None:
            if key.name.startswith("hangs"):
                await asyncio.sleep(seconds)
                raise Unreachable("no answer")
            return None

        return reconcile

    @staticmethod
    async def waits(bench: Bench, rounds: int) -> list[float]:
        """Adds a new healthy object each second; how long each waited to be looked at."""
        begun, added = asyncio.get_running_loop().time(), {}
        for number in range(rounds):
            name = f"well{begun:.0f}-{number}"
            added[name] = asyncio.get_running_loop().time()
            bench.queue.add(Key(KIND, "ns", name))
            await asyncio.sleep(1)
        await asyncio.sleep(60)
        return [next(when for called, when in bench.controller.calls if called == name) - added[name] for name in added]

    @pytest.mark.parametrize("hanging", [1, 16, 100, 1000])
    async def test_hanging_objects_do_not_delay_others(self, hanging: int) -> None:
        async with running(Bench(self.hanging(300.0), count=16)) as bench:
            for number in range(hanging):
                bench.queue.add(Key(KIND, "ns", f"hangs{number}"))
            await asyncio.sleep(0.5)
            # Nobody knows yet which of them hang: each has its second with one of the workers, but no more.
            assert max(await self.waits(bench, 60)) <= hanging / 16 + 1
            # From then on they are known.
            assert max(await self.waits(bench, 600)) < 0.01

    async def test_what_is_slow_is_worked_on_all_the_same(self) -> None:
        async with running(Bench(self.hanging(20.0), count=2, aside=8)) as bench:
            names = [f"hangs{number}" for number in range(100)]
            for name in names:
                bench.queue.add(Key(KIND, "ns", name))
            await asyncio.sleep(1800)
            assert all(len(bench.controller.times(name)) >= 2 for name in names)

    async def test_what_has_become_quick_is_one_of_the_others_again(self) -> None:
        slow = True

        async def reconcile(_: Key) -> float | None:
            await asyncio.sleep(5 if slow else 0)
            return None

        async with running(Bench(reconcile, count=2)) as bench:
            bench.queue.add(A)
            await asyncio.sleep(10)
            slow = False
            bench.queue.add(A)
            await asyncio.sleep(1)
            slow = True
            for number in range(50):  # the line of the slow ones is long again
                bench.queue.add(Key(KIND, "ns", f"s{number}"))
            await asyncio.sleep(100)
            for number in range(50):
                bench.queue.add(Key(KIND, "ns", f"s{number}"))
            slow, start = False, asyncio.get_running_loop().time()
            bench.queue.add(A)
            await asyncio.sleep(0.1)
            assert bench.controller.times("a")[-1] == pytest.approx(start, abs=0.01)

    async def test_a_key_is_never_worked_on_twice_at_once_however_slow(self) -> None:
        busy: set[Key] = set()

        async def reconcile(key: Key) -> float | None:
            assert key not in busy
            busy.add(key)
            try:
                await asyncio.sleep(3)
            finally:
                busy.discard(key)
            return None

        async with running(Bench(reconcile, count=2, aside=3)) as bench:
            for _ in range(200):
                for name in "abcdefgh":
                    bench.queue.add(Key(KIND, "ns", name))
                await asyncio.sleep(0.5)
            panics = bench.metrics.registry.get_sample_value(
                "controller_runtime_reconcile_panics_total", {"controller": KIND}
            )
            assert panics == 0

    async def test_the_number_of_slow_ones_in_work_is_bounded(self) -> None:
        in_work, most = 0, 0

        async def reconcile(_: Key) -> float | None:
            nonlocal in_work, most
            in_work += 1
            most = max(most, in_work)
            try:
                await asyncio.sleep(60)
            finally:
                in_work -= 1
            return None

        async with running(Bench(reconcile, count=4, aside=10)) as bench:
            for number in range(500):
                bench.queue.add(Key(KIND, "ns", f"k{number}"))
            await asyncio.sleep(600)
            assert most <= 4 + SLOW_WORKERS + 10
            told = bench.metrics.registry.get_sample_value("rm_operator_slow_reconciles_in_progress")
            assert told is not None
            assert 0 < told <= 10

    async def test_where_everything_is_slow_nothing_is_ended_for_it(self) -> None:
        # An API server that has too much to do: to begin again what was half done would be more of it.
        async def reconcile(_: Key) -> float | None:
            await asyncio.sleep(3)
            return None

        names = [f"k{number}" for number in range(200)]
        async with running(Bench(reconcile, count=8, aside=4)) as bench:
            for name in names:
                bench.queue.add(Key(KIND, "ns", name))
            await asyncio.sleep(600)
            calls = [len(bench.controller.times(name)) for name in names]
        # The first ones are ended: until one of them came to its end, they could as well have been hanging.
        assert sum(calls) <= len(names) + 3 * 8
        assert bench.results()["success"] == len(names)

    async def test_stopping_ends_those_aside_too(self) -> None:
        ended = []

        async def reconcile(key: Key) -> float | None:
            try:
                await asyncio.sleep(1000)
            finally:
                ended.append(key)
            return None

        async with running(Bench(reconcile, count=2)) as bench:
            for name in "abcdef":
                bench.queue.add(Key(KIND, "ns", name))
            await asyncio.sleep(10)
        assert len(ended) == 6


async def test_reconciles_that_wait_for_nothing_leave_everything_else_its_turn() -> None:
    done = 0

    async def reconcile(_: Key) -> float | None:
        nonlocal done
        done += 1
        return None

    bench = Bench(reconcile, count=16)
    for number in range(10_000):
        bench.queue.add(Key(KIND, "ns", str(number)))
    async with running(bench):
        longest, before = 0, 0
        while not bench.queue.idle:
            await asyncio.sleep(0)  # what renews the Lease is as polite
            longest, before = max(longest, done - before), done
    assert done == 10_000
    assert longest <= 16 + SLOW_WORKERS


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


async def test_all_that_there_is_is_in_line_from_the_start_and_whom_it_concerns_is_not_asked() -> None:
    asked = []

    def to_owner(old: Object | None, new: Object | None) -> Iterable[Key]:
        asked.append((old, new))
        return ()

    async with running(Bench(answering(None), watches=[Watch(JOBS, to_owner)])) as bench:
        bench.known("a")
        bench.known("b")
        metadata = {"namespace": "ns", "name": "j", "uid": "j", "resourceVersion": "5"}
        bench.stores[JOBS].upsert({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata})
        connect([bench.controller], bench.stores, bench.queue)
        await asyncio.sleep(1)
        assert (bench.controller.times("a"), bench.controller.times("b")) == ([0], [0])
        assert not asked


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
