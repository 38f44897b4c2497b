"""Devices of claims that the kubelet has forgotten."""

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
from rm_device_plugins.vendor import Device, DeviceNode, Discovery, Vendor

DRIVER, NODE = "npu.example.com", "node-1"
FIRST, SECOND = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"


class Devices(Vendor):
    async def discover(self) -> Discovery:
        return Discovery((Device("a", 0, "a", "NPU", (DeviceNode("/dev/null", "/dev/npu0", 1, 3),)),))


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


@pytest.mark.parametrize("made_anew", [False, True])
async def test_a_claim_that_is_gone_keeps_its_device_for_a_while(tmp_path: Path, made_anew: bool) -> None:
    now = 1000.0
    api, vendor = Api(), Devices({})
    inventory = Inventory(PluginSettings(), None)
    inventory.observe(await vendor.discover())
    claims = Claims(
        cast("ApiClient", api), inventory, Allocator(inventory, vendor, PluginSettings(), lambda: None),
        tmp_path, Specs(tmp_path / "cdi", DRIVER), DRIVER, NODE, lambda: now,
    )  # fmt: skip
    await claims.start()
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
    assert [path.name for path in (tmp_path / "claims").iterdir()] == [f"{SECOND}.json"]
    assert [path.name for path in (tmp_path / "cdi").iterdir()] == [f"{DRIVER}-device_{SECOND}.json"]
