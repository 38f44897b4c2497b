"""``rm-device-plugin --observe``: looks at devices of somebody else's plugin, and takes no part."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from device_report_client import PATIENCE, Client, until
from pod_resources_server import PodResourcesServer
from rm_device_plugins import simulator_tool
from rm_device_plugins.config import ConfigError, PluginSettings
from rm_device_plugins.observer import KubeletVendor, Observer
from rm_device_plugins.pod_resources import PodResources
from rm_device_plugins.vendor import Device, DeviceNode, Discovery, Vendor, VendorError

NPU = "vendor.example/npu"
FAST = {
    "intervalSeconds": 0.05,
    "podsIntervalSeconds": 0.05,
    "powerIntervalSeconds": 0.05,
    "healthyAfter": 1,
    "outOfBandAfterSeconds": 0,
}


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[PodResourcesServer]:
    async with PodResourcesServer(tmp_path / "kubelet.sock") as server:
        yield server


@asynccontextmanager
async def observing(kubelet: PodResourcesServer, *arguments: str, **settings: Any) -> AsyncIterator[Client]:
    """The command in a process; the directories that a plugin would need are not there."""
    config = kubelet.path.with_name("config.yaml")
    config.write_text(yaml.safe_dump({"plugin": FAST, **settings}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--observe", "--config", str(config), "--pod-resources", str(kubelet.path), "--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rm_device_plugins", *options, *arguments,
        env={**os.environ, "RMA_RESOURCE_NAME": NPU, "NODE_NAME": "worker-1"},
    )  # fmt: skip
    client = Client(port)
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                assert process.returncode is None, "the observer ended by itself"
                try:
                    await client.get("/healthz")
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        yield client
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0


async def test_what_the_kubelet_knows_is_reported(kubelet: PodResourcesServer) -> None:
    kubelet.offered = {NPU: ["npu-a", "npu-b::0", "npu-b::1"], "other.example/gpu": ["gpu-x"]}
    kubelet.give("serve-0", NPU, ["npu-b::1"], namespace="team", container="engine")
    async with observing(kubelet) as client:
        report = await client.until(lambda report: any(each["pods"] for each in report["devices"]), "the pod")
        assert (report["resource"], report["node"], report["message"], report["conflict"]) == (NPU, "worker-1", "", "")
        assert [(each["id"], each["health"], each["outOfBand"]) for each in report["devices"]] == [
            ("npu-a", "Healthy", ""),
            ("npu-b", "Healthy", ""),
        ]
        assert report["devices"][1]["pods"] == [{"namespace": "team", "name": "serve-0", "container": "engine"}]
        assert await client.series("rma_device_allocated") == {("engine", "npu-b", "team", "serve-0"): 1.0}
        assert (await client.get("/readyz")).status == 200
        assert {path.name for path in kubelet.path.parent.iterdir()} == {"kubelet.sock", "config.yaml"}


async def test_the_devices_are_looked_at_with_the_vendors_module(kubelet: PodResourcesServer, tmp_path: Path) -> None:
    root = tmp_path / "simulator"
    async with observing(kubelet, "--vendor", "simulator", root=str(root), devices=3) as client:
        report = await client.until(lambda report: len(report["devices"]) == 3, "the devices")
        assert (report["driver"], report["firmware"]) == ("1.4.0", "1.0.0")
        first, second, third = (each["id"] for each in report["devices"])
        kubelet.give("by-id", NPU, [first])
        kubelet.give("by-file", NPU, ["npu1"])
        kubelet.give("by-serial", NPU, [report["devices"][2]["serial"]])
        simulator_tool.change(root, device=1, health="failed", failure="NeedsReset", watts=61.5)
        says = lambda report: all(each["pods"] for each in report["devices"]) and report["devices"][1]["cause"]  # noqa: E731
        report = await client.until(says, "pods and the failure")
        assert [each["pods"][0]["name"] for each in report["devices"]] == ["by-id", "by-file", "by-serial"]
        assert [each["failure"] for each in report["devices"]] == ["", "NeedsReset", ""]
        assert set(await client.series("rma_device_healthy")) == {
            (each["id"], "Simulated NPU X1", each["serial"]) for each in report["devices"]
        }
        await client.until_series("rma_device_power_watts", {("main", second, "default", "by-file"): 61.5})
        assert {first, second, third} == {key[1] for key in await client.series("rma_device_allocated")}


async def test_a_kubelet_that_is_away_changes_nothing_but_readiness(kubelet: PodResourcesServer) -> None:
    kubelet.offered = {NPU: ["a"]}
    kubelet.give("serve", NPU, ["a"])
    async with observing(kubelet) as client:
        before = await client.until(lambda report: report["devices"] and report["devices"][0]["pods"], "the pod")
        await kubelet.stop()
        report = await client.until(lambda report: report["message"], "the kubelet is away")
        assert "does not tell which pods have devices" in report["message"]
        assert report["message"].count("UNAVAILABLE") == 1, "it is said once"
        assert report["devices"] == before["devices"]
        answer = await client.get("/readyz")
        assert (answer.status, b"UNAVAILABLE" in answer.body) == (503, True)
        await kubelet.start()
        assert await client.until(lambda report: not report["message"], "it is back") == before


class Clocked:
    """A KubeletVendor whose time a test moves."""

    def __init__(self, path: Path, **settings: object) -> None:
        self.time = 0.0
        self.vendor = KubeletVendor(settings, NPU, PodResources(path), lambda: self.time)

    async def causes(self) -> dict[str, str]:
        return {device.id: device.cause for device in (await self.vendor.discover()).devices}


NOT_OFFERED = "the kubelet does not offer it to pods"


async def test_a_device_that_is_not_offered_for_a_moment_is_well_and_for_long_is_not(
    kubelet: PodResourcesServer,
) -> None:
    clocked = Clocked(kubelet.path, graceSeconds=60)
    kubelet.offered = {NPU: ["a", "b"]}
    assert await clocked.causes() == {"a": "", "b": ""}
    kubelet.offered = {NPU: ["b"]}
    clocked.time = 60
    assert await clocked.causes() == {"a": "", "b": ""}
    clocked.time = 61
    assert await clocked.causes() == {"a": NOT_OFFERED, "b": ""}
    kubelet.offered = {NPU: ["a"]}
    assert await clocked.causes() == {"a": "", "b": ""}


async def test_a_device_that_a_pod_has_is_known_though_it_was_never_offered(kubelet: PodResourcesServer) -> None:
    clocked = Clocked(kubelet.path, graceSeconds=60)
    kubelet.give("serve", NPU, ["a"])
    kubelet.give("serve", "other.example/gpu", ["x"])
    assert await clocked.causes() == {"a": ""}
    clocked.time = 61
    assert await clocked.causes() == {"a": NOT_OFFERED}


async def test_time_without_a_kubelet_does_not_count(kubelet: PodResourcesServer) -> None:
    clocked = Clocked(kubelet.path, graceSeconds=60)
    kubelet.offered = {NPU: ["a"]}
    await clocked.causes()
    await kubelet.stop()
    clocked.time = 3600
    assert await clocked.causes() == {"a": ""}
    kubelet.offered = {}  # its plugin is not back yet
    await kubelet.start()
    clocked.time = 3630
    assert await clocked.causes() == {"a": ""}


async def test_a_kubelet_that_was_never_there_is_a_failed_discovery(tmp_path: Path) -> None:
    with pytest.raises(VendorError, match="does not tell which pods have devices"):
        await Clocked(tmp_path / "none.sock").causes()


def test_settings_of_no_vendor() -> None:
    with pytest.raises(ConfigError, match="unknown setting root; known are graceSeconds"):
        KubeletVendor({"root": "/x"}, NPU, PodResources())


async def test_a_name_that_two_devices_could_mean_is_none_of_them(kubelet: PodResourcesServer) -> None:
    class Twins(Vendor):
        async def discover(self) -> Discovery:
            node = DeviceNode("/dev/null", "/dev/npu", 1, 3)
            twin = Device("a", 0, "S", "P", (node,), out_of_band="a process")
            return Discovery((twin, replace(twin, id="b", index=1)))

    kubelet.give("serve", NPU, ["null"])
    settings = PluginSettings(interval_seconds=0.03, pods_interval_seconds=0.03, out_of_band_after_seconds=0)
    observer = Observer(NPU, settings, Twins({}), 0, PodResources(kubelet.path))
    stop = asyncio.Event()
    task = asyncio.ensure_future(observer.run(stop))
    await until(lambda: not observer.pods.problem and kubelet.calls > 2, "the kubelet has answered")
    report = (await Client(observer.http.port).get()).report
    assert [(each["pods"], each["outOfBand"]) for each in report["devices"]] == [([], ""), ([], "")]
    stop.set()
    await task


@pytest.mark.parametrize("arguments", [[], ["--observe", "--vendor", "none-such"]])
def test_what_is_to_be_looked_at_must_be_said(arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"resourceName: {NPU}\n")
    command = [sys.executable, "-m", "rm_device_plugins", "--config", str(config), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == (64 if arguments else 2)
    assert ("there is no vendor 'none-such'" if arguments else "--vendor is needed") in ended.stderr
