"""Claims that the kubelet has forgotten, that another instance handles, and that are older than the machine's start."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rm_device_plugins.allocator import Allocator
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.dra.allocation import ClaimError
from rm_device_plugins.dra.api import ApiClient, ApiError
from rm_device_plugins.dra.cdi import Specs
from rm_device_plugins.dra.claims import TAKE_OVER_SECONDS, Claims
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.vendor import Allocation, Device, DeviceNode, Discovery, Vendor

DRIVER, NODE = "npu.example.com", "node-1"
FIRST, SECOND = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"


class Devices(Vendor):
    """One device, whose allocation can be held up."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        self.calls = 0
        self.called = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def discover(self) -> Discovery:
        return Discovery((Device("a", 0, "a", "NPU", (DeviceNode("/dev/null", "/dev/npu0", 1, 3),)),))

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        self.calls += 1
        self.called.set()
        await self.go_on.wait()
        return await super().allocate(devices)


class Api:
    """Who has the device, by the names of claims; others do not exist."""

    def __init__(self) -> None:
        self.uids = {"first": FIRST, "second": SECOND}
        self.down = False

    async def get(self, path: str, name: str) -> dict[str, Any]:
        del path
        if self.down and name == "first":
            raise ApiError("away")
        if name not in self.uids:
            raise ApiError("not found", 404)
        result = {"request": "npu", "driver": DRIVER, "pool": NODE, "device": "a"}
        metadata = {"namespace": "default", "name": name, "uid": self.uids[name]}
        return {"metadata": metadata, "status": {"allocation": {"devices": {"results": [result]}}}}


async def instance(root: Path, api: Api, vendor: Devices, now: Callable[[], float] = time.monotonic) -> Claims:
    inventory = Inventory(PluginSettings(), None)
    inventory.observe(await vendor.discover())
    allocator = Allocator(inventory, vendor, PluginSettings(allocate_timeout_seconds=60), lambda: None)
    specs = Specs(root / "cdi", DRIVER)
    claims = Claims(cast("ApiClient", api), inventory, allocator, root, specs, DRIVER, NODE, now)
    await claims.start()
    return claims


def left(root: Path) -> list[str]:
    return sorted(path.name for name in ("claims", "cdi") for path in (root / name).iterdir())


@pytest.mark.parametrize("then", ["unprepared", "prepared"])
async def test_what_another_instance_did_meanwhile_holds(tmp_path: Path, then: str) -> None:
    """The kubelet gave up on the old instance, whose hook took its time, and went to the new one."""
    slow, quick = Devices({}), Devices({})
    old, new = await instance(tmp_path, Api(), slow), await instance(tmp_path, Api(), quick)
    slow.go_on.clear()
    late = asyncio.ensure_future(old.prepare("default", "first", FIRST))
    await slow.called.wait()
    if then == "unprepared":
        await new.unprepare(FIRST)
    else:
        answer = await new.prepare("default", "first", FIRST)
    slow.go_on.set()
    with pytest.raises(ClaimError, match="in the meantime"):
        await late
    if then == "unprepared":
        assert left(tmp_path) == []
    else:
        assert await old.prepare("default", "first", FIRST) == answer
        assert (slow.calls, quick.calls) == (1, 1), "what one has done is done for both"


async def test_after_a_start_of_the_machine_the_vendor_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = Devices({})
    for boot, calls in (("one", 1), ("one", 1), ("two", 2)):
        (tmp_path / "boot").write_text(boot)
        monkeypatch.setattr("rm_device_plugins.dra.claims._BOOT_ID", tmp_path / "boot")
        await (await instance(tmp_path, Api(), vendor)).prepare("default", "first", FIRST)
        assert vendor.calls == calls


@pytest.mark.parametrize("made_anew", [False, True])
async def test_a_claim_that_is_gone_keeps_its_device_for_a_while(tmp_path: Path, made_anew: bool) -> None:
    now = 1000.0
    api = Api()
    claims = await instance(tmp_path, api, Devices({}), lambda: now)
    await claims.prepare("default", "first", FIRST)

    async def refused() -> str:
        with pytest.raises((ClaimError, ApiError)) as caught:
            await claims.prepare("default", "second", SECOND)
        return str(caught.value)

    assert (await refused()).endswith("the claim default/first, which has it still")
    now += TAKE_OVER_SECONDS
    assert (await refused()).endswith("which has it still"), "the time begins when the claim is gone"
    if made_anew:
        api.uids["first"] = SECOND.replace("2", "3")
    else:
        del api.uids["first"]
    assert (await refused()).endswith("the kubelet has 180 s more to unprepare it")
    now += TAKE_OVER_SECONDS - 1
    assert (await refused()).endswith("the kubelet has 1 s more to unprepare it")
    now += 1
    api.down = True
    assert await refused() == "away", "what cannot be asked is not assumed"
    api.down = False
    ((held, _),) = await claims.prepare("default", "second", SECOND)
    assert held.device == "a"
    assert left(tmp_path) == [f"{SECOND}.json", f"{DRIVER}-device_{SECOND}.json"]
