"""Names, and what ResourceSlices should say."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_device_plugins.config import ConfigError, PluginSettings
from rm_device_plugins.dra import naming, slices
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.vendor import Device, DeviceNode, Discovery, Failure

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
POOL = slices.Pool("npu.example.com", "node-1")
NODE = DeviceNode("/dev/null", "/dev/npu", 1, 3)

Json = dict[str, Any]


def device(index: int, **fields: Any) -> Device:
    return Device(f"id-{index}", index, f"serial-{index}", "NPU", (NODE,), **fields)


def inventory(*devices: Device, shares: int = 1, driver: str = "1.0") -> Inventory:
    found = Inventory(PluginSettings(shares=shares), None)
    found.observe(Discovery(devices, driver=driver))
    return found


def published(found: Inventory, *, with_taints: bool = True) -> list[Json]:
    return slices.published(found, POOL.driver, "NoSchedule", with_taints)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=63))
def test_every_id_gives_a_label(device_id: str) -> None:
    name = naming.device_name(device_id)
    assert LABEL.fullmatch(name)
    assert len(name) <= 63
    assert naming.device_name(device_id) == name


@pytest.mark.parametrize(
    ("first", "second"), [("GPU-1", "gpu-1"), ("a_b", "a.b"), ("a" * 63 + "::0", "a" * 63 + "::1"), ("장치", "裝置")]
)
def test_ids_that_differ_have_names_that_differ(first: str, second: str) -> None:
    assert naming.device_name(first) != naming.device_name(second)


def test_an_id_that_is_a_label_is_its_name() -> None:
    assert naming.device_name("678f1dfe-cf4f-58d5-80c4-7db830220ade") == "678f1dfe-cf4f-58d5-80c4-7db830220ade"
    assert naming.device_name("GPU-8f3a").startswith("gpu-8f3a-")


@pytest.mark.parametrize("name", ["npu.example.com", "npu", "a-b.c", "4090.rm-abstract.io"])
def test_a_drivers_name_is_taken(name: str) -> None:
    assert naming.driver_name(name, "x:Y") == name


@pytest.mark.parametrize("name", ["", "-a", "a.", "A.b", "a_b", "a" * 61, "a..b", "a/b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        naming.driver_name(name, "x:Y")


def test_a_vendor_gives_a_name() -> None:
    assert naming.driver_name(None, "upmem") == "upmem.rm-abstract.io"
    with pytest.raises(ConfigError, match="set RMA_DRA_DRIVER"):
        naming.driver_name(None, "package.module:Vendor")


def test_slices_are_in_order_and_a_long_node_has_room() -> None:
    names = [naming.slice_name("node-1", "npu.example.com", number) for number in (0, 2, 10, 100)]
    assert names == sorted(names)
    assert names[0] == "node-1-npu.example.com-000"
    long = [naming.slice_name("n" * 252 + end, "npu.example.com", 0) for end in "ab"]
    assert all(len(name) <= 253 for name in long)
    assert long[0] != long[1]


def test_what_is_not_known_is_left_out_and_long_texts_are_cut() -> None:
    full = device(3, numa_nodes=(1,), group="card-0", parent="gpu-7", firmware="2.1")
    bare = Device("b", 0, "", "P" * 80, (NODE,), numa_nodes=(0, 1))
    by_name = {each["name"]: each["attributes"] for each in published(inventory(full, bare, driver=""))}
    assert by_name["id-3"] == {
        "uuid": {"string": "id-3"}, "product": {"string": "NPU"}, "serial": {"string": "serial-3"},
        "firmwareVersion": {"string": "2.1"}, "group": {"string": "card-0"}, "parent": {"string": "gpu-7"},
        "index": {"int": 3}, "numaNode": {"int": 1},
    }  # fmt: skip
    assert by_name["b"] == {"uuid": {"string": "b"}, "product": {"string": "P" * 64}, "index": {"int": 0}}


def test_an_unhealthy_device_has_a_taint_or_is_left_out() -> None:
    found = inventory(device(0), device(1, cause="hot", failure=Failure.NEEDS_RESET))
    taint = {"key": "npu.example.com/unhealthy", "value": "NeedsReset", "effect": "NoSchedule"}
    assert [each.get("taints") for each in published(found)] == [None, [taint]]
    assert [each["name"] for each in published(found, with_taints=False)] == ["id-0"]


def test_a_shared_device_is_several() -> None:
    names = [each["name"] for each in published(inventory(device(0), device(1), shares=3))]
    assert len(set(names)) == 6
    assert all(LABEL.fullmatch(name) for name in names)


def stored(wanted: dict[str, list[Json]], generation: int, owner: str = "u", **more: Any) -> dict[str, Json]:
    """The slices as the API server has them."""
    return {
        name: {**made, "metadata": {**made["metadata"], "resourceVersion": "1"}, **more}
        for name in wanted
        for made in (slices.body(POOL, owner, generation, wanted, name, None),)
    }


def wanted_for(count: int) -> dict[str, list[Json]]:
    return slices.wanted_slices(published(inventory(*(device(index) for index in range(count)))), POOL)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (64, [64]), (65, [64, 1]), (200, [64, 64, 64, 8])])
def test_a_slice_has_room_for_taints(count: int, sizes: list[int]) -> None:
    assert [len(devices) for devices in wanted_for(count).values()] == sizes


def test_a_pool_that_is_as_wanted_is_left_alone() -> None:
    wanted = wanted_for(70)
    present = stored(wanted, 4)
    assert slices.up_to_date(present, wanted, "u")
    assert slices.next_generation(present) == 5
    assert slices.up_to_date({}, {}, "u")
    first, second = present
    assert not slices.up_to_date(present, wanted_for(71), "u"), "another device"
    assert not slices.up_to_date({first: present[first]}, wanted, "u"), "a slice is missing"
    assert not slices.up_to_date(present, wanted, "v"), "another node"
    assert not slices.up_to_date({**present, "x": present[first]}, wanted, "u"), "one too many"
    older = stored(wanted, 3)[second]
    assert not slices.up_to_date({**present, second: older}, wanted, "u"), "two generations"
    assert slices.next_generation({second: older, first: present[first]}) == 5


def test_the_time_of_a_taint_is_no_change_and_is_kept() -> None:
    sick = published(inventory(device(0, cause="hot")))
    wanted = {"s": sick}
    present = stored(wanted, 1)["s"]
    present["spec"]["devices"] = [
        {**sick[0], "taints": [{**sick[0]["taints"][0], "timeAdded": "2026-01-01T00:00:00Z"}]}
    ]
    assert slices.up_to_date({"s": present}, wanted, "u")
    written = slices.body(POOL, "u", 2, wanted, "s", present)
    assert written["spec"]["devices"] == present["spec"]["devices"]
    assert written["metadata"]["resourceVersion"] == "1"
    other = [{**sick[0], "taints": [{**sick[0]["taints"][0], "value": "Dead"}]}]
    fresh = slices.body(POOL, "u", 2, {"s": other}, "s", present)
    assert "timeAdded" not in fresh["spec"]["devices"][0]["taints"][0]
    assert slices.tainted(wanted) == {"id-0"}


def test_the_documented_attributes_are_those_that_are_published() -> None:
    text = (Path(__file__).parents[3] / "docs" / "dra.md").read_text()
    listed = re.search(r"Attributes of a device[^.]*\.", text, re.DOTALL)
    assert listed is not None
    full = device(3, numa_nodes=(1,), group="card-0", parent="gpu-7", firmware="2.1")
    assert set(re.findall(r"`(\w+)`", listed.group())) == published(inventory(full))[0]["attributes"].keys()
