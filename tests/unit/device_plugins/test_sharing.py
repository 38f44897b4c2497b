"""Devices that several containers share: what is advertised, preferred, and given."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from rm_device_plugins.allocator import Allocator, RequestError, UnusableError, environment
from rm_device_plugins.config import ConfigError, PluginSettings
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.vendor import Device, DeviceNode, Discovery, Vendor, VendorError


class Idle(Vendor):
    async def discover(self) -> Discovery:
        return Discovery(())


def device(index: int, cause: str = "") -> Device:
    node = DeviceNode("/dev/null", f"/dev/npu{index}", 1, 3)
    return Device(f"id{index}", index, f"S{index}", "P", (node,), cause, (index // 2,))


class Shared:
    def __init__(self, tmp_path: Path, shares: int, *devices: Device) -> None:
        settings = PluginSettings(shares=shares, healthy_after=1)
        settings.check()
        self.inventory = Inventory(settings, tmp_path / "state.json")
        self.inventory.observe(Discovery(devices))
        self.allocator = Allocator(self.inventory, Idle({}), settings, lambda: None)

    def advertised(self) -> dict[str, bool]:
        return {share: healthy for share, healthy, _ in self.inventory.snapshot}

    async def allocate(self, *ids: str) -> str:
        devices, _ = await self.allocator.allocate(ids)
        return environment(devices, driver="1.0")["DEVICE_IDS"]


def test_a_device_is_advertised_as_often_as_it_is_shared(tmp_path: Path) -> None:
    shared = Shared(tmp_path, 3, device(0), device(1))
    assert list(shared.advertised()) == ["id0::0", "id0::1", "id0::2", "id1::0", "id1::1", "id1::2"]
    assert list(Shared(tmp_path / "x", 1, device(0)).advertised()) == ["id0"]


def test_all_shares_of_a_device_fail_and_recover_together(tmp_path: Path) -> None:
    shared = Shared(tmp_path, 2, device(0), device(1))
    shared.inventory.observe(Discovery((device(0, "broken"), device(1))))
    assert shared.advertised() == {"id0::0": False, "id0::1": False, "id1::0": True, "id1::1": True}
    shared.inventory.observe(Discovery((device(0), device(1))))
    assert set(shared.advertised().values()) == {True}


async def test_a_container_is_told_of_the_device_and_not_of_the_share(tmp_path: Path) -> None:
    shared = Shared(tmp_path, 2, device(0), device(1))
    assert await shared.allocate("id0::1") == "id0"
    assert await shared.allocate("id1::0", "id0::0") == "id0,id1"


async def test_one_container_never_gets_a_device_twice(tmp_path: Path) -> None:
    shared = Shared(tmp_path, 2, device(0))
    with pytest.raises(UnusableError, match="one container would get 2 shares of device id0"):
        await shared.allocate("id0::0", "id0::1")


@pytest.mark.parametrize("unknown", ["id0", "id0::2", "id0::x", "id1::0", "id0::0::0"])
async def test_shares_that_do_not_exist_are_refused(tmp_path: Path, unknown: str) -> None:
    with pytest.raises(RequestError, match="there is no device"):
        await Shared(tmp_path, 2, device(0)).allocate(unknown)


@pytest.mark.parametrize(
    ("available", "must", "size", "expected"),
    [
        (["id0::0", "id0::1", "id1::0", "id1::1"], [], 1, ["id0::0"]),
        (["id0::1", "id1::0", "id1::1"], [], 1, ["id1::0"]),
        (["id0::1", "id1::0", "id1::1"], [], 2, ["id0::1", "id1::0"]),
        (["id0::1", "id1::0", "id1::1"], ["id0::1"], 1, ["id0::1"]),
        (["id0::1", "id1::0", "id1::1"], ["id0::1"], 2, ["id0::1", "id1::0"]),
        (["id0::0", "id0::1", "id1::1", "id2::0", "id2::1"], [], 2, ["id0::0", "id2::0"]),
    ],
)
def test_the_least_shared_devices_are_preferred(
    tmp_path: Path, available: Sequence[str], must: Sequence[str], size: int, expected: Sequence[str]
) -> None:
    shared = Shared(tmp_path, 2, device(0), device(1), device(2))
    assert shared.allocator.prefer(available, must, size) == expected


def test_no_set_is_named_where_a_device_would_be_in_it_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be taken"):
        Shared(tmp_path, 2, device(0)).allocator.prefer(["id0::0", "id0::1"], [], 2)


@pytest.mark.parametrize("shares", [0, -1, 65])
def test_a_number_of_shares_that_cannot_be(shares: int) -> None:
    with pytest.raises(ConfigError, match=r"plugin\.shares must be 1 to 64"):
        PluginSettings(shares=shares).check()


@pytest.mark.parametrize(
    ("device_id", "says"), [("i" * 60, "1 to 59 are allowed"), ("a::b", "contains '::', which sets shares apart")]
)
def test_ids_that_leave_no_room_for_shares(device_id: str, says: str) -> None:
    odd = Device(device_id, 0, "S", "P", ())
    with pytest.raises(VendorError, match=says):
        Discovery((odd,)).check(shares=12)
