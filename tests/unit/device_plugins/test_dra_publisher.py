"""When slices are written, and when not, against an API that answers as it is told to."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.dra import publisher, slices
from rm_device_plugins.dra.api import ApiClient, ApiError
from rm_device_plugins.dra.publisher import Publisher
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.vendor import Device, DeviceNode, Discovery

Json = dict[str, Any]
POOL = slices.Pool("npu.example.com", "node-1")


class Api:
    """Keeps slices at versions, and tells of them when the test says so."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.version = 0
        self.written: list[Json] = []
        self.conflicts = 0
        self.lists = 0
        self.answer: Json | None = None
        """What a list answers instead of the truth."""
        self.keep: Callable[[Json], None] = lambda body: None
        """Changes what is written, as defaults do."""
        self.events: asyncio.Queue[Json] = asyncio.Queue()

    async def get(self, path: str, name: str) -> Json:
        del path, name
        return {"metadata": {"uid": "u"}}

    async def list(self, path: str, query: Mapping[str, str]) -> Json:
        del path, query
        self.lists += 1
        if self.answer is not None:
            return self.answer
        return {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.objects.values())}

    async def create(self, path: str, body: Json) -> Json:
        del path
        return self._put(body)

    async def replace(self, path: str, body: Json) -> Json:
        del path
        if body["metadata"]["resourceVersion"] != self.objects[body["metadata"]["name"]]["metadata"]["resourceVersion"]:
            self.conflicts += 1
            raise ApiError("conflict", 409)
        return self._put(body)

    def _put(self, body: Json) -> Json:
        made = copy.deepcopy(body)
        self.keep(made)
        self.version += 1
        made["metadata"]["resourceVersion"] = str(self.version)
        self.objects[made["metadata"]["name"]] = made
        self.written.append(made)
        return made

    async def delete(self, path: str, name: str, resource_version: str) -> None:
        del path, resource_version
        del self.objects[name]

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[Json, None]:
        del path, query
        while True:
            yield await self.events.get()


def device(cause: str = "") -> Discovery:
    return Discovery((Device("a", 0, "s", "NPU", (DeviceNode("/dev/null", "/dev/npu0", 1, 3),), cause=cause),))


@pytest.fixture
def inventory(monkeypatch: pytest.MonkeyPatch) -> Inventory:
    monkeypatch.setattr(publisher, "SETTLE_SECONDS", 0.0)
    found = Inventory(PluginSettings(healthy_after=1), None)
    found.observe(device())
    return found


@asynccontextmanager
async def publishing(api: Api, inventory: Inventory) -> AsyncIterator[Publisher]:
    found = Publisher(cast("ApiClient", api), inventory, POOL, "NoSchedule", lambda: True, lambda ok: None)
    task = asyncio.ensure_future(found.run())
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def looked(found: Publisher) -> None:
    """Returns when it has compared the slices with the inventory a few times more."""
    for _ in range(5):
        found.wake()
        await until(lambda: not found._changed.is_set())
        await asyncio.sleep(0.005)


async def test_the_echo_of_an_older_write_is_no_news(inventory: Inventory) -> None:
    api = Api()
    async with publishing(api, inventory) as found:
        await until(lambda: len(api.written) == 1)
        inventory.observe(device("hot"))
        found.wake()
        await until(lambda: len(api.written) == 2)
        for echo in list(api.written):
            api.events.put_nowait({"type": "MODIFIED", "object": echo})
            await until(api.events.empty)
            await looked(found)
        assert (len(api.written), api.conflicts, api.lists) == (2, 0, 1)


async def test_what_the_server_makes_of_a_slice_is_taken_for_it(inventory: Inventory) -> None:
    def keep(body: Json) -> None:
        for each in body["spec"]["devices"]:
            each["attributes"].pop("serial")

    api = Api()
    api.keep = keep
    async with publishing(api, inventory) as found:
        await until(lambda: len(api.written) == 1)
        await looked(found)
        assert len(api.written) == 1
        inventory.observe(device("hot"))
        found.wake()
        await until(lambda: len(api.written) == 2)
        await looked(found)
        assert len(api.written) == 2
        assert slices.tainted({"x": api.written[1]["spec"]["devices"]}) == {"a"}


@pytest.mark.parametrize("answer", [{}, {"metadata": {}}, {"metadata": {"resourceVersion": "1"}, "items": [{}]}])
async def test_an_answer_that_makes_no_sense_is_told_and_passes(inventory: Inventory, answer: Json) -> None:
    api = Api()
    api.answer = answer
    async with publishing(api, inventory) as found:
        await until(lambda: "makes no sense" in found.problem)
        api.answer = None
        await until(lambda: found.problem == "")
        assert len(api.objects) == 1


async def test_somebody_elses_write_at_the_same_time_is_looked_at_again(inventory: Inventory) -> None:
    api = Api()
    async with publishing(api, inventory) as found:
        await until(lambda: len(api.written) == 1)
        (name,) = api.objects
        theirs = copy.deepcopy(api.objects[name])
        theirs["spec"]["devices"] = []
        api._put(theirs)
        inventory.observe(device("hot"))
        found.wake()
        await until(lambda: api.conflicts == 1 and len(api.written) == 3)
        assert slices.tainted({"x": api.objects[name]["spec"]["devices"]}) == {"a"}
        assert found.problem == ""


async def test_no_devices_any_more_is_no_slices(inventory: Inventory) -> None:
    api = Api()
    async with publishing(api, inventory) as found:
        await until(lambda: len(api.objects) == 1)
        inventory.settings = PluginSettings(forget_after_seconds=-1)
        inventory.observe(Discovery(()))
        found.wake()
        await until(lambda: api.objects == {})
