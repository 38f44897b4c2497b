"""What takes minutes, and so is no part of ``make test``: ``make test-slow-devices``.

The whole conformance suite over every vendor's module and over each defect that it must find, and a soak of
``RMA_SOAK_SECONDS`` (300) that is to leave files, threads and memory as they were.
"""

import asyncio
import itertools
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import conformance_plugin_driver as driver
import pytest
import test_conformance_defects as defects
import yaml
from rm_device_plugins import kubelet_api, simulator_faults
from rm_device_plugins.conformance.bench import Plugin
from rm_device_plugins.conformance.fake_kubelet import FakeKubelet
from rm_device_plugins.conformance.launch import CommandLauncher, Instance
from rm_device_plugins.conformance.model import CASES
from test_conformance_vendors import conformance, nvml, surprises

assert nvml  # a fixture, used by what is collected here

SECONDS = float(os.environ.get("RMA_SOAK_SECONDS", "300"))
RESOURCE = "soak.example.com/npu"
DEVICES = 64
STREAMS = 20
WARM_UP = 0.2
"""The part of the time after which everything has happened several times, and nothing should grow any more."""
GROWTH = {"files": 4, "threads": 2, "MiB": 4.0}


async def test_the_whole_suite_over_every_vendors_module(tmp_path: Path) -> None:
    reports = await conformance(tmp_path, list(CASES.values()))
    assert not surprises(reports), surprises(reports)


async def test_each_defect_is_found_by_its_case_and_by_no_other(tmp_path: Path) -> None:
    assert await defects.surprises(tmp_path, whole=True) == {}


@dataclass(frozen=True)
class Held:
    """What the plugin's process holds."""

    files: int
    threads: int
    mib: float

    @classmethod
    def by(cls, pid: int) -> "Held":
        process = Path(f"/proc/{pid}")
        pages = int((process / "statm").read_text().split()[1])
        mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        return cls(len(os.listdir(process / "fd")), len(os.listdir(process / "task")), mib)


async def test_a_plugin_that_has_much_to_do_keeps_nothing_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, config, directory = tmp_path / "npu", tmp_path / "config.yaml", tmp_path / "dp"
    directory.mkdir()
    settings = {"intervalSeconds": 0.2, "healthyAfter": 1}
    config.write_text(yaml.safe_dump({"root": str(root), "devices": DEVICES, "plugin": settings}))
    argv = [sys.executable, "-m", "rm_device_plugins", "--vendor", "simulator", "--config", str(config)]
    argv += ["--plugin-dir", "{socket_dir}", "--port", "{port}"]
    launcher = CommandLauncher(argv, {"RMA_RESOURCE_NAME": "{resource}"})
    async with FakeKubelet(directory) as kubelet:
        instance = await launcher.start(directory, tmp_path, RESOURCE)
        try:
            first, last, rounds = await _soak(kubelet, instance, root)
        finally:
            await instance.kill()
    with capsys.disabled():
        print(f"\n{rounds} rounds in {SECONDS:g} s: {first} → {last}")
    assert last.files - first.files <= GROWTH["files"]
    assert last.threads - first.threads <= GROWTH["threads"]
    assert last.mib - first.mib <= GROWTH["MiB"]


async def _soak(kubelet: FakeKubelet, instance: Instance, root: Path) -> tuple[Held, Held, int]:
    pid = await instance.pid()
    assert pid is not None
    began = time.monotonic()
    first: Held | None = None
    for number in itertools.count(1):
        await kubelet.until_allocatable(RESOURCE, DEVICES, 60)
        await _round(kubelet, root)
        await kubelet.restart(killed=number % 2 == 0)
        await kubelet.until_allocatable(RESOURCE, DEVICES, 60)
        # At the same point of every round: the streams are gone, and the kubelet's is there.
        await asyncio.sleep(1)
        now = time.monotonic() - began
        if first is None and now > WARM_UP * SECONDS:
            first = Held.by(pid)
        if now > SECONDS:
            assert first is not None
            return first, Held.by(pid), number
    raise AssertionError("it counts for ever")


async def _round(kubelet: FakeKubelet, root: Path) -> None:
    """Streams come and go, allocations succeed and fail, a device and the driver's tool fail, and recover."""
    plugin = Plugin(kubelet.directory / kubelet.connected(RESOURCE), driver.GENEROUS)
    device = sorted(kubelet.resource(RESOURCE).healthy)[0]
    try:
        for _ in range(STREAMS):
            async with plugin.watch() as watch:
                await kubelet.until(lambda: bool(watch.snapshots), 60, "a list")
        for known in sorted(kubelet.resource(RESOURCE).healthy):
            await plugin.allocated([known])
        await plugin.not_allocated(["no-such-device"], "a device that does not exist")
    finally:
        await plugin.close()
    for fault, end in (("fail", "recover"), ("remove", "add"), ("tool-fail", "tool-ok"), ("tool-garbage", "tool-ok")):
        await asyncio.to_thread(simulator_faults.inject, root, fault, device)
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) < DEVICES, 60, f"{fault} is noticed")
        await asyncio.to_thread(simulator_faults.inject, root, end, device)
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == DEVICES, 60, f"{end} is noticed")
    assert kubelet_api.HEALTHY in kubelet.resource(RESOURCE).snapshots[-1].health.values()
