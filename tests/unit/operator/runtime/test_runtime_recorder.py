"""Events: posted once, in bounded numbers, and never in the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from rm_operator.kube.errors import ApiError, ServerError
from rm_operator.kube.resources import EVENTS, Resource
from rm_operator.runtime.metrics import Metrics
from rm_operator.runtime.recorder import MAX_PENDING, POSTED_AT_ONCE, POSTED_PER_SECOND, EventRecorder

pytestmark = pytest.mark.looptime


class Sink:
    """Where events are posted to; time is virtual here, so it is no server."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.error: ApiError | None = None
        self.latency = 0.01

    async def create(self, resource: Resource, obj: dict[str, Any], *, field_manager: str) -> dict[str, Any]:
        assert resource == EVENTS
        await asyncio.sleep(self.latency)
        if self.error:
            raise self.error
        self.posted.append(obj)
        return obj


class Recording:
    def __init__(self) -> None:
        self.sink = Sink()
        self.metrics = Metrics()
        self.recorder = EventRecorder(self.sink, instance="pod-1", metrics=self.metrics)  # type: ignore[arg-type]

    def count(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("rm_operator_events_total", {"result": result}) or 0


@asynccontextmanager
async def recording() -> AsyncIterator[Recording]:
    found = Recording()
    task = asyncio.create_task(found.recorder.run())
    try:
        yield found
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


def obj(name: str = "m", namespace: str | None = "ns") -> dict[str, Any]:
    metadata = {"name": name, "uid": f"uid-{name}", **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": "rm-abstract.io/v1alpha1", "kind": "ModelDeployment", "metadata": metadata}


async def test_an_event_says_what_about_whom() -> None:
    async with recording() as found:
        assert found.recorder.emit(obj(), "Warning", "NoDevice", "no device is free", action="Place")
        await asyncio.sleep(1)
    (event,) = found.sink.posted
    assert event["metadata"]["namespace"] == "ns"
    assert event["metadata"]["name"].startswith("m.")
    assert (event["type"], event["reason"], event["note"]) == ("Warning", "NoDevice", "no device is free")
    assert (event["action"], event["reportingInstance"]) == ("Place", "pod-1")
    assert event["regarding"] == {
        "apiVersion": "rm-abstract.io/v1alpha1",
        "kind": "ModelDeployment",
        "namespace": "ns",
        "name": "m",
        "uid": "uid-m",
    }


async def test_the_same_is_said_once_in_two_minutes() -> None:
    async with recording() as found:
        for _ in range(119):
            found.recorder.emit(obj(), "Normal", "Placed", "on npu")
            await asyncio.sleep(1)
        assert len(found.sink.posted) == 1
        await asyncio.sleep(2)
        assert found.recorder.emit(obj(), "Normal", "Placed", "on npu")
        await asyncio.sleep(1)
        assert len(found.sink.posted) == 2


async def test_another_reason_message_or_object_is_something_else() -> None:
    async with recording() as found:
        for which, reason, message in ((obj(), "A", "m"), (obj(), "B", "m"), (obj(), "A", "n"), (obj("o"), "A", "m")):
            assert found.recorder.emit(which, "Normal", reason, message)


async def test_an_object_gets_ten_and_then_one_each_half_minute() -> None:
    async with recording() as found:
        said = [found.recorder.emit(obj(), "Normal", "A", f"message {number}") for number in range(50)]
        assert said.count(True) == 10
        assert found.recorder.emit(obj("other"), "Normal", "A", "message"), "others have their own"
        await asyncio.sleep(61)
        said = [found.recorder.emit(obj(), "Normal", "A", f"later {number}") for number in range(50)]
        assert said.count(True) == 2
        assert found.count("limited") == 40 + 48


async def test_a_server_that_refuses_costs_events_only() -> None:
    async with recording() as found:
        found.sink.error = ServerError(500, "InternalError", "no")
        found.recorder.emit(obj(), "Normal", "A", "lost")
        await asyncio.sleep(1)
        found.sink.error = None
        found.recorder.emit(obj(), "Normal", "A", "kept")
        await asyncio.sleep(1)
        assert [event["note"] for event in found.sink.posted] == ["kept"]
        assert (found.count("failed"), found.count("posted")) == (1, 1)


async def test_a_slow_server_never_blocks_and_the_backlog_is_bounded() -> None:
    async with recording() as found:
        found.sink.latency = 1000
        start = asyncio.get_running_loop().time()
        for kind, most in MAX_PENDING.items():
            said = [found.recorder.emit(obj(f"{kind}{number}"), kind, "A", "m") for number in range(most + 1000)]
            assert said.count(True) == most
        assert asyncio.get_running_loop().time() == start
        assert found.count("dropped") == 2000


async def test_few_are_posted_at_once_and_many_at_a_bounded_rate() -> None:
    async with recording() as found:
        found.sink.latency = 0
        for number in range(POSTED_AT_ONCE):
            found.recorder.emit(obj(f"o{number}"), "Normal", "A", "m")
        await asyncio.sleep(0.01)
        assert len(found.sink.posted) == POSTED_AT_ONCE
        for number in range(1000):
            found.recorder.emit(obj(f"p{number}"), "Normal", "A", "m")
        await asyncio.sleep(10)
        assert len(found.sink.posted) - POSTED_AT_ONCE == pytest.approx(10 * POSTED_PER_SECOND, abs=2)
        await asyncio.sleep(50)
        assert len(found.sink.posted) == POSTED_AT_ONCE + 1000, "nothing is lost"
        assert [event["regarding"]["name"] for event in found.sink.posted[-2:]] == ["p998", "p999"]


async def test_warnings_go_first() -> None:
    async with recording() as found:
        for number in range(1000):
            found.recorder.emit(obj(f"o{number}"), "Normal", "A", "m")
        await asyncio.sleep(5)
        assert found.recorder.emit(obj("w"), "Warning", "B", "look")
        await asyncio.sleep(0.2)
        assert "Warning" in [event["type"] for event in found.sink.posted[-3:]]
        assert len(found.sink.posted) < 500


async def test_an_event_tells_when_it_happened_not_when_it_was_posted() -> None:
    async with recording() as found:
        before = datetime.now(UTC)
        for number in range(1000):
            found.recorder.emit(obj(f"o{number}"), "Normal", "A", "m")
        after = datetime.now(UTC)
        await asyncio.sleep(60)
        times = [datetime.fromisoformat(event["eventTime"]) for event in found.sink.posted]
        assert len(times) == 1000
        assert all(before <= each <= after for each in times)


async def test_the_rest_is_posted_at_the_end_within_its_time() -> None:
    found = Recording()
    for number in range(5):
        found.recorder.emit(obj(), "Normal", "A", f"m{number}")
    await found.recorder.drain(5)
    assert len(found.sink.posted) == 5
    found.recorder.emit(obj(), "Normal", "A", "stuck")
    found.sink.latency = 100
    start = asyncio.get_running_loop().time()
    await found.recorder.drain(5)
    assert asyncio.get_running_loop().time() - start == 5


async def test_memory_is_bounded() -> None:
    async with recording() as found:
        for number in range(50_000):
            found.recorder.emit(obj(f"o{number}"), "Normal", "A", "m")
        assert len(found.recorder._posted) <= 20_000
        assert len(found.recorder._allowances) <= 20_000


@pytest.mark.parametrize("message", ["x" * 5000, "é" * 5000])
async def test_long_messages_and_cluster_scoped_objects_fit(message: str) -> None:
    async with recording() as found:
        found.recorder.emit(obj("n" * 253, None), "Normal", "A", message)
        await asyncio.sleep(1)
    (event,) = found.sink.posted
    assert len(event["note"].encode()) <= 1024
    assert event["metadata"]["namespace"] == "default"
    assert len(event["metadata"]["name"]) <= 253
