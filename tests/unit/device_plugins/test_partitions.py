"""Partitions of physical devices in the inventory, failures by kind, and what an earlier version kept."""

import json
from pathlib import Path

import pytest
from rm_api.kinds.accelerator_resource import DeviceFailure
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.inventory import MISSING, Inventory
from rm_device_plugins.vendor import Device, DeviceNode, Discovery, Failure, Trouble, common_firmware

RESET = Trouble("the GPU is to be reset", Failure.NEEDS_RESET)


def part(index: int, gpu: str, cause: str = "", failure: Failure = Failure.UNKNOWN) -> Device:
    node = DeviceNode("/dev/null", f"/dev/p{index}", 1, 3)
    return Device(f"id{index}", index, f"S{index}", "P", (node,), cause, failure=failure, parent=gpu)


class Parts:
    def __init__(self, tmp_path: Path, **settings: float) -> None:
        self.inventory = Inventory(PluginSettings(**settings), tmp_path / "state.json")  # type: ignore[arg-type]

    def see(self, *devices: Device, **parents: Trouble) -> str:
        """A letter for each device by index: H or U."""
        self.inventory.observe(Discovery(devices, parents=parents))
        return "".join("H" if entry.healthy else "U" for entry in self.inventory.entries())

    def causes(self) -> list[tuple[str, str]]:
        return [(entry.cause, entry.failure.value) for entry in self.inventory.entries()]


A0, A1, B0 = part(0, "gpuA"), part(1, "gpuA"), part(2, "gpuB")


def test_what_is_wrong_with_the_physical_device_is_wrong_with_all_of_its_partitions(tmp_path: Path) -> None:
    parts = Parts(tmp_path, healthy_after=2)
    assert parts.see(A0, A1, B0) == "HHH"
    assert parts.see(A0, A1, B0, gpuA=RESET) == "UUH"
    assert parts.causes()[:2] == [(RESET.cause, "NeedsReset")] * 2
    assert [parts.see(A0, A1, B0) for _ in range(2)] == ["UUH", "HHH"]


def test_what_is_wrong_with_one_partition_is_its_own_matter(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.see(A0, A1)
    assert parts.see(part(0, "gpuA", "XID 94", Failure.TRANSIENT), A1) == "UH"
    assert parts.causes() == [("XID 94", "Transient"), ("", "Unknown")]


def test_partitions_flip_in_the_same_moment_whatever_was_seen_of_each_before(tmp_path: Path) -> None:
    parts = Parts(tmp_path, unhealthy_after=3, healthy_after=3)
    parts.see(A0, A1)
    parts.see(part(0, "gpuA", "odd"), A1)  # the first one is ahead by one bad observation
    assert [parts.see(A0, A1, gpuA=RESET) for _ in range(2)] == ["HH", "UU"]
    assert [parts.see(A0, A1) for _ in range(3)] == ["UU", "UU", "HH"]


def test_partitions_of_a_device_that_is_lost_cannot_be_listed_and_are_not_missing(tmp_path: Path) -> None:
    parts = Parts(tmp_path, forget_after_seconds=0, healthy_after=1)
    parts.see(A0, A1, B0)
    for _ in range(3):
        assert parts.see(B0, gpuA=RESET) == "UUH"
    assert {cause for cause, _ in parts.causes()[:2]} == {RESET.cause}
    assert parts.see(A0, A1, B0) == "HHH"


def test_partitions_that_are_gone_though_their_device_is_well_are_missing(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.see(A0, A1)
    assert parts.see(A0) == "HU"
    assert parts.causes()[1] == (MISSING, "Unknown")


def test_a_partition_of_a_sick_device_is_sick_from_the_first(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    assert parts.see(A0, gpuA=RESET) == "U"
    assert parts.inventory.failures == {Failure.NEEDS_RESET: 1}


def test_failures_are_counted_when_they_happen_and_not_while_they_last(tmp_path: Path) -> None:
    parts = Parts(tmp_path, healthy_after=1)
    for _ in range(3):
        parts.see(A0, A1, gpuA=RESET)
    parts.see(A0, A1)
    parts.see(part(0, "gpuA", "dead", Failure.DEAD), A1)
    parts.inventory.fail("the tool hangs")
    assert parts.inventory.failures == {Failure.NEEDS_RESET: 2, Failure.DEAD: 1, Failure.UNKNOWN: 1}


def test_what_recovers_is_said_to_and_may_go_on_doing_so(tmp_path: Path) -> None:
    parts = Parts(tmp_path, healthy_after=3)
    parts.see(part(0, "", "dead", Failure.DEAD))
    parts.see(part(0, ""))
    assert parts.causes() == [("recovering: 1 of 3 checks passed", "Transient")]


def test_a_restart_knows_partitions_and_failures_and_versions(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.inventory.observe(
        Discovery((part(0, "gpuA", "x", Failure.DEAD), A1), driver="1", sdk="2", firmware="3", product="4")
    )
    again = Parts(tmp_path)
    again.inventory.load()
    kept = again.inventory
    assert (kept.driver, kept.sdk, kept.firmware, kept.product) == ("1", "2", "3", "4")
    assert [entry.device.parent for entry in kept.entries()] == ["gpuA", "gpuA"]
    assert [entry.device.failure for entry in kept.entries()] == [Failure.DEAD, Failure.UNKNOWN]
    assert again.see(gpuA=RESET) == "UU", "and what they are partitions of, before it can list them"
    assert again.causes() == [(RESET.cause, "NeedsReset")] * 2


def test_what_the_first_version_kept_is_taken_up(tmp_path: Path) -> None:
    old = {
        "id": "id0", "index": 0, "serial": "S0", "product": "P", "cause": "", "numa_nodes": [1], "group": "card",
        "nodes": [{"host_path": "/dev/n", "container_path": "/dev/n", "major": 1, "minor": 3, "permissions": "rw"}],
        "healthy": True, "missing_since": None,
    }  # fmt: skip
    state = {"version": 1, "driver": "1.0", "product": "P", "devices": [old]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    parts = Parts(tmp_path)
    parts.inventory.load()
    assert parts.inventory.driver == "1.0"
    (entry,) = parts.inventory.entries()
    assert (entry.device.group, entry.device.numa_nodes, entry.device.parent) == ("card", (1,), "")
    parts.inventory.observe(Discovery((Device("id0", 0, "S0", "P", ()),)))
    assert entry.healthy, "one good observation is enough for what was healthy"


@pytest.mark.parametrize("failure", ["", "Gone", None])
def test_a_kept_failure_that_is_none_makes_the_file_useless_and_nothing_worse(
    tmp_path: Path, failure: str | None
) -> None:
    parts = Parts(tmp_path)
    parts.see(A0)
    state = json.loads((tmp_path / "state.json").read_text())
    state["devices"][0]["failure"] = failure
    (tmp_path / "state.json").write_text(json.dumps(state))
    again = Parts(tmp_path)
    again.inventory.load()
    assert again.inventory.entries() == []
    assert again.see(A0) == "H"


def test_use_that_comes_and_goes_is_not_written_to_the_disk(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.see(A0)
    before = (tmp_path / "state.json").stat().st_ino
    busy = Device(**{**{n: getattr(A0, n) for n in A0.__slots__}, "out_of_band": "process 17"})
    parts.see(busy)
    assert (tmp_path / "state.json").stat().st_ino == before
    assert parts.inventory.entries()[0].device.out_of_band == "process 17"


def test_the_failures_are_those_of_the_api() -> None:
    assert [failure.value for failure in Failure] == [failure.value for failure in DeviceFailure]


@pytest.mark.parametrize(("versions", "common"), [((), ""), (("1", "1"), "1"), (("1", "2"), "")])
def test_the_firmware_of_devices_that_differ_is_told_of_each_alone(versions: tuple[str, ...], common: str) -> None:
    devices = [Device(str(n), n, "", "", (), firmware=version) for n, version in enumerate(versions)]
    assert common_firmware(devices) == common
