"""The queue's promises: once in line, once in work, delays, back-off, and that no key waits for another's failures."""

import asyncio
import random

import pytest
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.queue import Key, Queue, QueueClosed

A, B, C = (Key("ModelDeployment", "ns", name) for name in "abc")

# Time in these tests is the loop's own: it jumps to whatever is due next.
pytestmark = pytest.mark.looptime


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
async def queue() -> Queue:
    return Queue(jitter=lambda: 0.0)


async def test_first_come_first_served(queue: Queue) -> None:
    for key in (B, A, C):
        queue.add(key)
    assert [await queue.get() for _ in range(3)] == [B, A, C]


async def test_a_key_waits_once_however_often_it_is_added(queue: Queue) -> None:
    for key in (A, B, A, A):
        queue.add(key)
    assert len(queue) == 2


async def test_a_key_added_while_in_work_is_worked_on_once_more_and_not_before(queue: Queue) -> None:
    queue.add(A)
    await queue.get()
    queue.add(A)
    queue.add(A)
    assert len(queue) == 0
    queue.done(A)
    assert len(queue) == 1
    await queue.get()
    queue.done(A)
    assert queue.idle


async def test_never_two_workers_on_one_key() -> None:
    queue, rng = Queue(), random.Random(3)
    keys = [Key("K", "ns", str(number)) for number in range(5)]
    busy: set[Key] = set()
    worked = 0

    async def work() -> None:
        nonlocal worked
        while True:
            try:
                key = await queue.get()
            except QueueClosed:
                return
            assert key not in busy
            busy.add(key)
            await asyncio.sleep(rng.random())
            busy.discard(key)
            worked += 1
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for _ in range(500):
        queue.add(rng.choice(keys))
        await asyncio.sleep(rng.random() / 4)
    while not queue.idle:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    queue.close()
    await asyncio.gather(*workers)
    assert worked > 50


async def test_a_delayed_key_comes_when_it_is_due(queue: Queue) -> None:
    queue.add_after(A, 30)
    queue.add_after(B, 10)
    start = now()
    assert (await queue.get(), now() - start) == (B, 10)
    assert (await queue.get(), now() - start) == (A, 30)


@pytest.mark.parametrize(("first", "second"), [(30, 5), (5, 30)])
async def test_of_two_delays_the_earlier_counts(queue: Queue, first: float, second: float) -> None:
    queue.add_after(A, first)
    queue.add_after(A, second)
    start = now()
    await queue.get()
    assert now() - start == 5
    queue.done(A)
    await asyncio.sleep(60)
    assert queue.idle, "the later one came too"


async def test_a_reconcile_that_begins_supersedes_a_delay(queue: Queue) -> None:
    queue.add_after(A, 30)
    queue.add(A)
    await queue.get()
    queue.done(A)
    await asyncio.sleep(60)
    assert queue.idle


async def test_a_delay_asked_for_during_work_is_kept(queue: Queue) -> None:
    queue.add(A)
    start = now()
    await queue.get()
    queue.add_after(A, 7)
    queue.done(A)
    await queue.get()
    assert now() - start == 7


async def test_a_delay_that_ends_during_work_waits_for_its_end(queue: Queue) -> None:
    queue.add(A)
    await queue.get()
    queue.add_after(A, 1)
    await asyncio.sleep(5)
    assert len(queue) == 0
    queue.done(A)
    assert len(queue) == 1


async def test_back_off_doubles_to_five_minutes_and_forgetting_resets_it(queue: Queue) -> None:
    seconds = []
    for _ in range(11):
        seconds.append(queue.retry(A))
        await queue.get()
        queue.done(A)
    assert seconds == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert queue.failures(A) == 11
    queue.forget(A)
    assert queue.retry(A) == 1


async def test_jitter_only_shortens_and_by_a_quarter_at_most() -> None:
    queue = Queue()
    found = [queue.retry(Key("K", "ns", str(number))) for number in range(500)]
    assert min(found) >= 0.75
    assert max(found) <= 1
    assert max(found) - min(found) > 0.2


async def test_thousands_of_failing_keys_delay_a_healthy_one_by_nothing(queue: Queue) -> None:
    for number in range(5000):
        queue.retry(Key("K", "ns", str(number)))
    start = now()
    queue.add(A)
    assert await queue.get() == A
    assert now() == start


async def test_a_change_is_worked_on_at_once_even_in_back_off(queue: Queue) -> None:
    for _ in range(9):
        queue.retry(A)
        await queue.get()
        queue.done(A)
    queue.retry(A)
    start = now()
    queue.add(A)
    await queue.get()
    assert now() == start


async def test_a_cancelled_get_loses_no_key(queue: Queue) -> None:
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add(A)
    waiting[0].cancel()  # after it was woken, before it took the key
    done, _ = await asyncio.wait(waiting[1:], timeout=1, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [A]
    waiting[1].cancel()
    waiting[2].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    queue.add(B)
    assert await queue.get() == B


async def test_closing_ends_every_get_and_takes_nothing_more(queue: Queue) -> None:
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add_after(A, 1)
    queue.close()
    assert all(isinstance(each, QueueClosed) for each in await asyncio.gather(*waiting, return_exceptions=True))
    queue.add(B)
    await asyncio.sleep(5)
    assert len(queue) == 0


async def test_slow_keys_have_a_line_of_their_own_until_they_are_quick(queue: Queue) -> None:
    queue.add(A)
    queue.add(A)
    await queue.get()
    queue.add(A)
    queue.add(B)
    queue.done(A, slow=True)
    assert await queue.get() == B
    waiting = asyncio.create_task(queue.get())
    assert await queue.get(slow=True) == A
    await asyncio.sleep(1)
    assert not waiting.done(), "the slow one is not for this line"
    queue.done(A)
    queue.add(A)
    assert await waiting == A


async def test_metrics_tell_depth_waits_and_retries() -> None:
    metrics = Metrics()
    queue = Queue(metrics, jitter=lambda: 0.0)

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"name": "ModelDeployment", "controller": "ModelDeployment"})

    queue.add(A)
    queue.add(B)
    assert value("workqueue_depth") == 2
    await asyncio.sleep(3)
    await queue.get()
    await asyncio.sleep(2)
    queue.observe_work()
    assert value("workqueue_unfinished_work_seconds") == 2
    assert value("workqueue_longest_running_processor_seconds") == 2
    queue.done(A)
    queue.observe_work()
    assert value("workqueue_depth") == 1
    assert value("workqueue_adds_total") == 2
    assert value("workqueue_queue_duration_seconds_sum") == 3
    assert value("workqueue_work_duration_seconds_sum") == 2
    assert value("workqueue_unfinished_work_seconds") is None
    queue.retry(A)
    assert value("workqueue_retries_total") == 1


async def test_what_is_looked_at_often_leaves_nothing_of_its_delays(queue: Queue) -> None:
    """Each look ends with a delay of hours, and the next one comes long before."""
    for number in range(10_000):
        queue.add(A)
        await queue.get()
        queue.done(A)
        queue.add_after(A, 36_000 + number)
    queue.add_after(B, 50_000)
    assert len(queue._delayed) < 1100
    start = now()
    assert await queue.get() == A
    assert now() - start == 36_000 + 9999
    assert await queue.get() == B
    assert now() - start == 50_000
