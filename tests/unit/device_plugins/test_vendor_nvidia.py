"""The module for NVIDIA's GPUs with NVIDIA's own Python bindings, over a stand-in for the driver's library."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nvml_driver import UNKNOWN, A, B, Driver
from rm_device_plugins.config import ConfigError
from rm_device_plugins.vendors.nvidia import NvidiaVendor
from vendor_process import VendorProcess, causes, troubles


def test_gpus_are_found(start: Callable[..., VendorProcess], tmp_path: Path) -> None:
    found = start().discover()
    assert found.get("driver") == "580.95.05", found
    assert (found["sdk"], found["firmware"], found["parents"]) == ("13.1", "96.00.B1.00.01", {})
    assert found["product"] == "NVIDIA H200"
    first, second = found["devices"]
    assert (first["id"], first["index"], first["serial"], first["numa_nodes"]) == (A, 0, "1650001", [0])
    assert (second["id"], second["index"], second["serial"], second["numa_nodes"]) == (B, 1, B, [1])
    assert [node["container_path"] for node in second["nodes"]] == ["/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"]
    assert second["nodes"][0]["host_path"] == str(tmp_path / "dev/nvidia1")
    assert causes(found) == {A: "", B: ""}


def test_the_driver_asks_for_a_reset_and_later_does_not(start: Callable[..., VendorProcess], driver: Driver) -> None:
    vendor = start()
    vendor.discover()
    driver.xid(1, 79)
    driver.say(B, action=1)
    assert troubles(vendor.discover()) == {B: ("the driver asks for a reset of the GPU after XID 79", "NeedsReset")}
    driver.say(B, action=0)
    assert causes(vendor.discover()) == {A: "", B: ""}


@pytest.mark.parametrize(
    ("action", "trouble"),
    [
        (0, None),
        (1, ("the driver asks for a reset of the GPU", "NeedsReset")),
        (2, ("the driver asks for a restart of the node", "NeedsReset")),
        (3, ("the driver asks for a drain of its peer-to-peer traffic", "Transient")),
        (4, ("the driver asks for a drain and a reset of the GPU", "NeedsReset")),
        (6, ("the driver asks for a reset of its bus", "NeedsReset")),
        (7, ("the driver asks for a restart of the node", "NeedsReset")),
        (5, ("the driver asks for recovery action 5", "Unknown")),
    ],
)
def test_what_the_driver_asks_for(
    start: Callable[..., VendorProcess], driver: Driver, action: int, trouble: tuple[str, str] | None
) -> None:
    driver.say(A, action=action)
    assert troubles(start().discover()).get(A) == trouble


def test_a_gpu_whose_memory_cannot_be_mended_is_dead(start: Callable[..., VendorProcess], driver: Driver) -> None:
    driver.more("remap 0 1", "remap 1 0")
    driver.say(A, action=1)
    found = troubles(start().discover())
    assert found == {A: ("rows of its memory could not be remapped: it has to be replaced", "Dead")}


RESET_48 = ("XID 48: the GPU has to be reset; restart this plugin afterwards", "NeedsReset")


@pytest.mark.parametrize(
    ("xid", "settings", "trouble"),
    [
        (31, {}, None),
        (48, {}, RESET_48),
        (61, {}, ("XID 61", "Transient")),
        (61, {"probationSeconds": 0}, None),
        (48, {"probationSeconds": 0}, RESET_48),
        (61, {"ignoredXids": ["61"]}, None),
    ],
)
def test_drivers_that_tell_of_trouble_by_xids_only(
    start: Callable[..., VendorProcess],
    driver: Driver,
    xid: int,
    settings: dict[str, object],
    trouble: tuple[str, str] | None,
) -> None:
    driver.say(A, action=UNKNOWN)
    driver.say(B, action=UNKNOWN)
    vendor = start(**settings)
    vendor.discover()
    driver.xid(0, xid)
    assert troubles(vendor.discover()) == ({} if trouble is None else {A: trouble})


def test_an_xid_that_needs_a_reset_is_not_hidden_by_a_later_one(
    start: Callable[..., VendorProcess], driver: Driver
) -> None:
    driver.say(A, action=UNKNOWN)
    vendor = start()
    vendor.discover()
    driver.xid(0, 79)
    driver.xid(0, 61)
    assert causes(vendor.discover())[A].startswith("XID 79: ")


def test_a_gpu_that_is_lost_is_unhealthy_and_the_others_are_not(
    start: Callable[..., VendorProcess], driver: Driver
) -> None:
    vendor = start()
    vendor.discover()
    driver.say(A, lost=True)
    assert troubles(vendor.discover()) == {A: ("NVML: GPU is lost", "NeedsReset")}
    driver.say(A, lost=False)
    assert causes(vendor.discover()) == {A: "", B: ""}


def test_a_gpu_that_never_said_who_it_is_makes_the_list_incomplete(
    start: Callable[..., VendorProcess], driver: Driver
) -> None:
    driver.say(A, lost=True)
    assert "GPU 0 cannot be identified: GPU is lost" in start().discover()["error"]


def test_a_device_node_that_is_missing(start: Callable[..., VendorProcess], tmp_path: Path) -> None:
    (tmp_path / "dev/nvidia1").unlink()
    assert causes(start().discover()) == {A: "", B: f"{tmp_path}/dev/nvidia1: No such file or directory"}


def test_without_a_driver_it_says_what_to_do_and_tries_again(
    start: Callable[..., VendorProcess], driver: Driver
) -> None:
    driver.say(init=9)
    vendor = start()
    assert "NVML cannot be started: Driver Not Loaded. The plugin's pod needs" in vendor.discover()["error"]
    driver.say()
    assert causes(vendor.discover()) == {A: "", B: ""}


def test_processes_that_compute_are_told(start: Callable[..., VendorProcess], driver: Driver) -> None:
    driver.more("process 0 812", *(f"process 1 {pid}" for pid in (9, 3, 7, 5, 3, 11)))
    found = {device["id"]: device["out_of_band"] for device in start().discover()["devices"]}
    assert found == {A: "process 812", B: "processes 3, 5, 7, 9 and 1 more"}


@pytest.mark.parametrize(("held", "use"), [(5, ""), (128, ""), (480, "a program that holds memory of it")])
def test_processes_that_are_not_shown_to_the_pod_show_in_the_memory(
    start: Callable[..., VendorProcess], driver: Driver, held: int, use: str
) -> None:
    driver.more(f"memory 0 {held}", "memory 1 9000", "process 1 77")
    found = {device["id"]: device["out_of_band"] for device in start().discover()["devices"]}
    assert found == {A: use, B: "process 77"}


def test_power_is_what_the_boards_with_a_sensor_say(start: Callable[..., VendorProcess], driver: Driver) -> None:
    driver.more("watts 1 345678")
    vendor = start()
    vendor.discover()
    assert vendor.power() == {B: 345.678}
    driver.say(B, lost=True)
    assert vendor.power() == {}


def test_power_that_hangs_harms_no_discovery(driver: Driver) -> None:
    driver.more("watts 0 hang")
    program = """
import asyncio, json, sys
from rm_device_plugins.tool import DeadlineError, bounded
from rm_device_plugins.vendors.nvidia import NvidiaVendor

async def main():
    vendor = NvidiaVendor(json.loads(sys.argv[1]))
    await vendor.prepare()
    try:
        await bounded("power", vendor.power(), 0.5)
    except DeadlineError as error:
        print(error)
    print([device.cause for device in (await vendor.discover()).devices])
    try:
        await vendor.power()
    except Exception as error:
        print(error)

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps(driver.settings)],
        env={**os.environ, **driver.environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.stdout.splitlines() == [
        "power did not end within 0.5 s",
        "['', '']",
        "NVML, for power has not answered an earlier call yet",
    ], ended.stderr


@pytest.mark.parametrize(
    ("inject", "envs", "cdi"),
    [
        ("envvar", {"NVIDIA_VISIBLE_DEVICES": f"{A},{B}"}, []),
        ("cdi", {}, [f"nvidia.com/gpu={A}", f"nvidia.com/gpu={B}"]),
        ("none", {}, []),
    ],
)
def test_allocation(start: Callable[..., VendorProcess], inject: str, envs: dict[str, str], cdi: list[str]) -> None:
    answer = start(inject=inject).allocate(A, B)
    assert (answer["envs"], answer["cdi_devices"]) == (envs, cdi)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"inject": "magic"}, "inject is 'magic'; it must be one of envvar, cdi, none"),
        ({"ignoredXids": ["x"]}, "ignoredXids must be numbers in quotes"),
        ({"probation": 3}, "unknown setting probation"),
        ({"mig": "all"}, "mig is 'all'; it must be one of none, single, mixed"),
        ({"migProfile": "1g.10gb"}, "migProfile is for mig: mixed; with mig: none"),
        ({"mig": "single", "migProfile": "1g.10gb"}, "migProfile is for mig: mixed; with mig: single"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        NvidiaVendor(settings)
