"""``rm-device-plugin --vendor simulator`` as a process, over real device nodes, against a kubelet's device manager."""

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from rm_api.names import ExitCode
from rm_device_plugins import simulator_tool
from rm_device_plugins.conformance.fake_kubelet import FakeKubelet
from rm_device_plugins.kubelet_api import HEALTHY, UNHEALTHY
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb

RESOURCE = "rm-abstract.io/simulated-npu"
PLUGIN = {"intervalSeconds": 0.2, "discoveryTimeoutSeconds": 1, "healthyAfter": 2, "nodeWaitSeconds": 0.1}


@dataclass
class Process:
    process: asyncio.subprocess.Process
    port: int
    lines: list[dict[str, Any]]

    async def report(self) -> dict[str, Any]:
        def fetch() -> dict[str, Any]:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/rma/v1/report", timeout=5) as answer:
                return json.loads(answer.read())  # type: ignore[no-any-return]

        return await asyncio.to_thread(fetch)


def command(directory: Path, config: Path, port: int) -> list[str]:
    options = ["--vendor", "simulator", "--config", str(config), "--plugin-dir", str(directory), "--port", str(port)]
    return [sys.executable, "-m", "rm_device_plugins", *options]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def plugin_process(directory: Path, root: Path, **settings: object) -> AsyncIterator[Process]:
    config = root.parent / "config.yaml"
    config.write_text(yaml.safe_dump({"root": str(root), "devices": 2, "plugin": PLUGIN, **settings}))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *command(directory, config, port),
        env={**os.environ, "RMA_RESOURCE_NAME": RESOURCE},
        stderr=asyncio.subprocess.PIPE,
    )
    running = Process(process, port, [])

    async def read() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            try:
                running.lines.append(json.loads(line))
            except ValueError:
                raise AssertionError(f"a line of the log is no JSON: {line!r}") from None

    reader = asyncio.ensure_future(read())
    try:
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 10)
        await reader


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "dp"
    path.mkdir()
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "simulator"


@pytest.fixture
async def kubelet(directory: Path) -> AsyncIterator[FakeKubelet]:
    async with FakeKubelet(directory) as fake:
        yield fake


def ids(root: Path) -> list[str]:
    return [device["uuid"] for device in simulator_tool.read_status(root / "driver")["devices"]]


async def until_health(kubelet: FakeKubelet, expected: dict[str, str]) -> None:
    def arrived() -> bool:
        snapshots = kubelet.resource(RESOURCE).snapshots
        return bool(snapshots) and snapshots[-1].health == expected

    await kubelet.until(arrived, 30, f"the list {expected}")


async def test_an_allocated_container_finds_a_real_node_and_the_driver(
    directory: Path, root: Path, kubelet: FakeKubelet
) -> None:
    settings = {"devices": 4, "numaNodes": 2, "driver": "2.0.1", "memoryMiB": 8192, "product": "Simulated NPU Y7"}
    async with plugin_process(directory, root, **settings) as plugin:
        await kubelet.until_allocatable(RESOURCE, 4)
        assert list(kubelet.resource(RESOURCE).snapshots[-1].numa.values()) == [(0,), (0,), (1,), (1,)]
        chosen, answer = await kubelet.admit(RESOURCE, 2)
        assert set(chosen) == set(ids(root)[:2])
        assert dict(answer.envs) == {
            "DEVICE_IDS": ",".join(ids(root)[:2]),
            "DEVICE_INDEXES": "0,1",
            "RMA_DEVICE_NODES": "/dev/rma-sim/npu0=1:3,/dev/rma-sim/npu1=1:5",
            "RMA_DEVICE_SERIALS": "SIMY7-0000,SIMY7-0001",
            "RMA_DEVICE_PRODUCT": "Simulated NPU Y7",
            "RMA_DEVICE_DRIVER": "2.0.1",
        }
        for device, pair in zip(answer.devices, ((1, 3), (1, 5)), strict=True):
            node = os.stat(device.host_path)
            assert stat.S_ISCHR(node.st_mode)
            assert (os.major(node.st_rdev), os.minor(node.st_rdev)) == pair
            assert stat.S_IMODE(node.st_mode) == 0o666
            os.close(os.open(device.host_path, os.O_RDWR))
        (mount,) = answer.mounts
        assert (mount.container_path, mount.read_only) == ("/run/rma-simulator", True)
        assert simulator_tool.read_status(Path(mount.host_path))["driver"] == "2.0.1"
        report = await plugin.report()
        assert (report["resource"], report["driver"], report["product"]) == (RESOURCE, "2.0.1", "Simulated NPU Y7")
        assert report["devices"][3] == {
            "id": ids(root)[3],
            "index": 3,
            "serial": "SIMY7-0003",
            "node": str(root / "dev" / "npu3"),
            "health": "Healthy",
            "cause": "",
            "failure": "",
            "firmware": "1.0.0",
            "group": "",
            "parent": "",
            "outOfBand": "",
            "pods": [],
        }


async def test_what_happens_to_the_devices_is_seen_and_passes(
    directory: Path, root: Path, kubelet: FakeKubelet
) -> None:
    async with plugin_process(directory, root) as plugin:
        await kubelet.until_allocatable(RESOURCE, 2)
        first, second = ids(root)
        well = {first: HEALTHY, second: HEALTHY}

        async def changed(expected: dict[str, str], cause: str, **change: Any) -> None:
            simulator_tool.change(root, **change)
            await until_health(kubelet, expected)
            assert cause in {device["id"]: device["cause"] for device in (await plugin.report())["devices"]}[first]

        await changed({**well, first: UNHEALTHY}, "reports it as failed", device=0, health="failed")
        await changed(well, "", device=0, health="ok")
        await changed({**well, first: UNHEALTHY}, "No such file", remove_node=0)
        wanted = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=[first])])
        with pytest.raises(grpc.aio.AioRpcError, match="npu0"):
            await kubelet.client(RESOURCE).allocate(wanted)
        await changed(well, "", restore_node=0)
        # Another card in the slot is another device; the one that was there is gone, and not healthy by silence.
        swapped = {first: UNHEALTHY, simulator_tool._uuid("OTHER-1"): HEALTHY, second: HEALTHY}
        await changed(swapped, "does not list it", device=0, serial="OTHER-1")

        simulator_tool.change(root, driver="9.9.9")
        async with asyncio.timeout(5):
            while (await plugin.report())["driver"] != "9.9.9":
                pass


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("sleep infinity", "did not end within 1 s"),
        ("echo no device found >&2; exit 3", "ended with 3: no device found"),
        ("echo '{\"driver\": '", "makes no sense"),
        ('echo \'{"driver":"1","product":"P","devices":[{"index":0}]}\'', "makes no sense"),
        ("yes | head -c 6000000", "wrote more than"),
    ],
)
async def test_a_status_tool_that_fails_takes_no_device_away(
    directory: Path, root: Path, kubelet: FakeKubelet, tmp_path: Path, script: str, cause: str
) -> None:
    """The tool is the real one behind a script that can be made to fail, as a vendor's own can."""
    tool, broken = tmp_path / "smi", tmp_path / "broken"
    tool.write_text(f'#!/bin/sh\n[ -e {broken} ] && . {broken}\n{sys.executable} {simulator_tool.__file__} "$@"\n')
    tool.chmod(0o755)
    async with plugin_process(directory, root, statusTool=[str(tool)]) as plugin:
        await kubelet.until_allocatable(RESOURCE, 2)
        first, second = ids(root)
        broken.write_text(f"{script}\nexit\n")
        await until_health(kubelet, {first: UNHEALTHY, second: UNHEALTHY})
        assert cause in (await plugin.report())["message"]
        broken.unlink()
        await until_health(kubelet, {first: HEALTHY, second: HEALTHY})
        assert (await plugin.report())["message"] == ""


async def test_a_status_tool_that_hangs_is_killed_with_its_children(
    directory: Path, root: Path, kubelet: FakeKubelet, tmp_path: Path
) -> None:
    tool, child = tmp_path / "smi", tmp_path / "child"
    tool.write_text(f"#!/bin/sh\nsleep infinity &\necho $! > {child}.new\nmv {child}.new {child}\nwait\n")
    tool.chmod(0o755)

    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    async with plugin_process(directory, root, statusTool=[str(tool)]):
        await kubelet.until(child.exists, 30, "the tool runs")
        first = int(child.read_text())
        assert runs(first)
        await kubelet.until(lambda: not runs(first), 30, "the tool's child is killed")


async def test_a_changed_configuration_is_taken_up_while_the_kubelet_listens_on(
    directory: Path, root: Path, kubelet: FakeKubelet
) -> None:
    async with plugin_process(directory, root) as plugin:
        await kubelet.until_allocatable(RESOURCE, 2)
        file = root.parent / "config.yaml"
        good = yaml.safe_load(file.read_text())

        async def says(text: str) -> None:
            async with asyncio.timeout(30):
                while True:
                    if text in (await plugin.report())["message"]:
                        return
                    await asyncio.sleep(0.05)

        file.write_text(yaml.safe_dump({**good, "plugin": {**PLUGIN, "shares": 0}}))
        await says("the changed configuration is not in use: plugin.shares must be 1 to 64")
        assert kubelet.allocatable(RESOURCE) == 2
        file.write_text(yaml.safe_dump({**good, "plugin": {**PLUGIN, "shares": 3}}))
        await kubelet.until_allocatable(RESOURCE, 6)
        assert (await plugin.report())["message"] == ""
        # As a ConfigMap is changed: the name is pointed at another file.
        other = root.parent / "other.yaml"
        other.write_text(yaml.safe_dump({**good, "statusTool": ["/does/not/exist"]}))
        other.replace(file)
        await says("/does/not/exist cannot be run")
        assert kubelet.capacity(RESOURCE) == 2
        assert len(kubelet.registrations) == 1
        assert kubelet.streams(RESOURCE) == 1


async def test_sigterm_removes_its_socket_and_a_killed_one_leaves_no_trace_for_long(
    directory: Path, root: Path, kubelet: FakeKubelet
) -> None:
    def sockets() -> list[str]:
        return sorted(path.name for path in directory.glob("*.sock") if path.name != "kubelet.sock")

    async with plugin_process(directory, root) as plugin:
        await kubelet.until_allocatable(RESOURCE, 2)
        before = ids(root)
        plugin.process.terminate()
        assert await plugin.process.wait() == 0
        assert sockets() == []
    async with plugin_process(directory, root) as plugin:
        await kubelet.until_allocatable(RESOURCE, 2)
        plugin.process.send_signal(signal.SIGKILL)
        await plugin.process.wait()
        assert len(sockets()) == 1
        assert kubelet.capacity(RESOURCE) == 2
    async with plugin_process(directory, root):
        await kubelet.until_allocatable(RESOURCE, 2)
        assert sockets() == [kubelet.registrations[-1].endpoint]
        assert sorted(kubelet.resource(RESOURCE).healthy) == sorted(before), "the same IDs after a restart"


async def test_a_changed_driver_survives_a_restart_of_the_plugin(
    directory: Path, root: Path, kubelet: FakeKubelet
) -> None:
    async with plugin_process(directory, root):
        await kubelet.until_allocatable(RESOURCE, 2)
    simulator_tool.change(root, driver="5.5.5")
    async with plugin_process(directory, root) as plugin:
        await kubelet.until_allocatable(RESOURCE, 2)
        assert (await plugin.report())["driver"] == "5.5.5"
        assert any(line.get("setting") == "driver" and line["level"] == "warning" for line in plugin.lines)


async def test_a_node_without_devices_is_ready(directory: Path, root: Path, kubelet: FakeKubelet) -> None:
    async with plugin_process(directory, root, devices=0) as plugin:
        await kubelet.until(lambda: kubelet.streams(RESOURCE) == 1, 30, "it is registered")
        assert kubelet.capacity(RESOURCE) == 0
        assert (await plugin.report())["devices"] == []


@pytest.mark.parametrize(
    ("resource", "config", "vendor", "says"),
    [
        ("npu", {}, "simulator", "the resource name 'npu' is malformed: it must be domain/name"),
        ("Example.com/npu", {}, "simulator", "not a lower-case DNS domain"),
        ("kubernetes.io/npu", {}, "simulator", "Kubernetes' own"),
        ("", {}, "simulator", "set RMA_RESOURCE_NAME"),
        (RESOURCE, {"device": 2}, "simulator", "unknown setting device; known are root, devices, product"),
        (RESOURCE, {"driver": 1.4}, "simulator", "driver must be a string: write it in quotes, '1.4'"),
        (RESOURCE, {"plugin": {"intervalSeconds": 0}}, "simulator", "plugin.intervalSeconds must be more than 0"),
        (
            RESOURCE,
            {},
            "acme",
            "'acme'; known are furiosa, generic, nvidia, rebellions, simulator, upmem",
        ),
        (RESOURCE, {}, "rm_device_plugins.nowhere:Vendor", "cannot be loaded"),
    ],
)
async def test_what_can_never_work_ends_at_once_with_what_to_change(
    tmp_path: Path, directory: Path, resource: str, config: dict[str, object], vendor: str, says: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    argv = command(directory, file, 0)
    argv[argv.index("simulator")] = vendor
    process = await asyncio.create_subprocess_exec(
        *argv, env={**os.environ, "RMA_RESOURCE_NAME": resource}, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == ExitCode.BAD_INPUT
    assert says in json.loads(errors.splitlines()[-1])["cause"]


async def test_a_port_that_is_taken_is_an_error_that_may_pass(tmp_path: Path, directory: Path, root: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"root": str(root)}))
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        process = await asyncio.create_subprocess_exec(
            *command(directory, file, taken.getsockname()[1]),
            env={**os.environ, "RMA_RESOURCE_NAME": RESOURCE},
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == ExitCode.TRANSIENT
    assert "in use" in json.loads(errors.splitlines()[-1])["cause"]
