"""Two plugins of one resource on one node, as processes of their own: the later one yields, whichever it is."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import conformance_plugin_driver
import pytest
import yaml
from rm_device_plugins import kubelet_api, ownership, simulator_tool
from rm_device_plugins.conformance.fake_kubelet import FakeKubelet

RESOURCE = "example.com/npu"
PATIENCE = 60.0
HOLD = 2.0


@dataclass
class Plugin:
    process: asyncio.subprocess.Process
    root: Path
    port: int

    async def get(self, path: str) -> tuple[int, str]:
        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
            except urllib.error.URLError:
                return 0, ""  # it starts

        return await asyncio.to_thread(fetch)

    async def conflict(self) -> str:
        return str(json.loads((await self.get("/rma/v1/report"))[1])["conflict"])

    async def tells_of_a_failure(self) -> bool:
        return "reports it as failed" in (await self.get("/rma/v1/report"))[1]

    def ids(self) -> set[str]:
        return {device["uuid"] for device in simulator_tool.read_status(self.root / "driver")["devices"]}

    async def until_in_conflict(self) -> str:
        """Waits until it says who else has the resource; it is then alive and not ready. Returns its words."""

        async def reported() -> bool:
            status, why = await self.get("/readyz")
            return status == 503 and "somebody else has the resource" in why and bool(await self.conflict())

        await eventually(reported, "it is in conflict")
        assert (await self.get("/healthz"))[0] == 200
        return await self.conflict()

    async def until_alone(self) -> None:
        async def ready() -> bool:
            return (await self.get("/readyz"))[0] == 200 and not await self.conflict()

        await eventually(ready, "it is ready, and in no conflict")

    async def end(self) -> None:
        self.process.terminate()
        await asyncio.wait_for(self.process.wait(), PATIENCE)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                if await condition():
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {PATIENCE:g} s: {what}") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def plugin(
    directory: Path, owner: str, product: str, *, devices: int = 2, resource: str = RESOURCE, hold: float = HOLD
) -> AsyncIterator[Plugin]:
    """The device plugin of the AcceleratorResource ``owner``, over devices of ``product``."""
    root = directory.parent / product
    number = free_port()
    file = directory.parent / f"{owner}-{product}-{number}.yaml"
    settings = {"intervalSeconds": 0.2, "healthyAfter": 2, "takeOverAfterSeconds": hold}
    file.write_text(yaml.safe_dump({"root": str(root), "devices": devices, "product": product, "plugin": settings}))
    options = ["--vendor=simulator", f"--config={file}", f"--plugin-dir={directory}", f"--port={number}"]
    # Another kubelet of this machine knows nothing of these devices.
    options.append(f"--pod-resources={directory}/no-such.sock")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rm_device_plugins", *options,
        env={**os.environ, "RMA_RESOURCE_NAME": resource, "RMA_ACCELERATOR": owner},
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Plugin(process, root, number)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE)


@asynccontextmanager
async def another_vendors(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A plugin in another language, that yields to nobody."""
    state = directory.parent / "vendor"
    binary = await asyncio.to_thread(conformance_plugin_driver.binary)
    if not state.exists():
        await asyncio.to_thread(subprocess.run, [binary, "init", "-state", str(state)], check=True)
    process = await asyncio.create_subprocess_exec(
        binary, "serve", "-state", str(state), "-dir", str(directory), "-resource", RESOURCE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), PATIENCE)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "dp"
    path.mkdir()
    return path


@pytest.fixture
async def kubelet(directory: Path, request: pytest.FixtureRequest) -> AsyncIterator[FakeKubelet]:
    """As of Kubernetes 1.36, or the later behaviour where the test asks for both."""
    async with FakeKubelet(directory, by_socket=getattr(request, "param", False)) as fake:
        yield fake


BOTH = pytest.mark.parametrize("kubelet", [False, True], ids=["kubelet-1.36", "kubelet-by-socket"], indirect=True)


def has(kubelet: FakeKubelet) -> set[str]:
    """Devices that the kubelet gives out."""
    return set(kubelet.resource(RESOURCE).healthy)


async def until_has(kubelet: FakeKubelet, ids: set[str]) -> None:
    await kubelet.until(lambda: has(kubelet) == ids, PATIENCE, f"the kubelet has {sorted(ids)}")


def registrations(kubelet: FakeKubelet, besides: Sequence[str]) -> list[str]:
    return [each.endpoint for each in kubelet.registrations if each.endpoint not in besides]


@BOTH
@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")], ids="-then-".join)
async def test_whoever_comes_later_yields_and_takes_over(
    directory: Path, kubelet: FakeKubelet, order: tuple[str, str]
) -> None:
    """Of two of ours that run for different kinds."""
    first_name, second_name = order
    async with plugin(directory, first_name, f"X{first_name}") as first:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "the first one's devices")
        assert has(kubelet) == first.ids()
        kubelet.watch_low(RESOURCE)
        async with plugin(directory, second_name, f"X{second_name}", devices=3) as second:
            words = await second.until_in_conflict()
            assert any(device in words for device in first.ids())
            simulator_tool.change(second.root, device=0, health="failed")
            await asyncio.sleep(2 * HOLD)  # what yields goes on yielding
            assert await second.until_in_conflict()
            assert len(kubelet.registrations) == 1
            assert kubelet.resource(RESOURCE).low == 2
            assert has(kubelet) == first.ids()
            await first.until_alone()
            simulator_tool.change(second.root, device=0, health="ok")
            await first.end()
            await until_has(kubelet, second.ids())
            await second.until_alone()
            async with plugin(directory, first_name, f"X{first_name}") as again:
                await again.until_in_conflict()
                assert has(kubelet) == second.ids()
            assert len(registrations(kubelet, [kubelet.registrations[0].endpoint])) <= 2


@BOTH
async def test_where_a_vendors_plugin_is_ours_does_not_register(directory: Path, kubelet: FakeKubelet) -> None:
    async with another_vendors(directory) as vendor:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) > 0, PATIENCE, "the vendor's devices")
        theirs, endpoints = has(kubelet), [each.endpoint for each in kubelet.registrations]
        async with plugin(directory, "npu", "X1") as ours:
            words = await ours.until_in_conflict()
            assert any(device in words for device in theirs)
            await asyncio.sleep(2 * HOLD)
            assert registrations(kubelet, endpoints) == []
            vendor.terminate()
            await until_has(kubelet, ours.ids())
            await ours.until_alone()
            assert len(registrations(kubelet, endpoints)) == 1


@BOTH
async def test_a_vendors_plugin_that_comes_later_has_the_devices_and_ours_is_silent(
    directory: Path, kubelet: FakeKubelet
) -> None:
    async with plugin(directory, "npu", "X1") as ours:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "our devices")
        own = [each.endpoint for each in kubelet.registrations]
        for times in (1, 2):
            async with another_vendors(directory):
                await ours.until_in_conflict()
                theirs = has(kubelet)
                assert theirs.isdisjoint(ours.ids())
                # News of ours would take the place of their devices.
                simulator_tool.change(ours.root, device=0, health="failed")
                await eventually(ours.tells_of_a_failure, "it knows")
                await asyncio.sleep(2.0)
                assert has(kubelet) == theirs
                simulator_tool.change(ours.root, device=0, health="ok")
            await ours.until_alone()
            await until_has(kubelet, ours.ids())
            assert await kubelet.admit(RESOURCE, 1)
            mine = [each for each in kubelet.registrations if each.endpoint in own]
            assert len(mine) <= 1 + times


@pytest.mark.parametrize("product", ["X1", "Y7"], ids=["same-devices", "devices-by-other-names"])
async def test_the_surge_of_an_upgrade_is_no_conflict(directory: Path, kubelet: FakeKubelet, product: str) -> None:
    seen: set[str] = set()

    async def note(*plugins: Plugin) -> None:
        for each in plugins:
            seen.add(await each.conflict())

    async with plugin(directory, "npu", "X1") as old:
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "the old one's devices")
        kubelet.watch_low(RESOURCE)
        async with plugin(directory, "npu", product) as new:
            await new.until_alone()
            # What the old one knew is unhealthy, where the new one has it by another name.
            await until_has(kubelet, new.ids())
            for _ in range(10):
                await note(old, new)
                await asyncio.sleep(0.2)
            await old.end()
            for _ in range(10):
                await note(new)
                await asyncio.sleep(0.2)
            await until_has(kubelet, new.ids())
            await new.until_alone()
    assert seen == {""}


async def test_a_stream_that_is_ended_again_and_again_is_another_owners_doing(
    directory: Path, kubelet: FakeKubelet
) -> None:
    async with plugin(directory, "npu", "X1", hold=10.0) as ours:
        for times in range(1, ownership.MAX_LOSSES + 1):
            await kubelet.until(
                lambda: kubelet.allocatable(RESOURCE) == 2 and len(kubelet.registrations) == times,  # noqa: B023
                PATIENCE,
                f"registration {times}",
            )
            await ours.until_alone()
            await asyncio.sleep(1.5)  # the plugin looks at its streams
            await kubelet.resource(RESOURCE).open[0].channel.close()
        assert f"ended our stream {ownership.MAX_LOSSES} times" in await ours.until_in_conflict()
        assert len(kubelet.registrations) == ownership.MAX_LOSSES
        await ours.until_alone()
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "it tries again")
        assert len(kubelet.registrations) == ownership.MAX_LOSSES + 1


async def test_a_kubelet_that_restarts_and_neighbours_that_do_are_no_owners(
    directory: Path, kubelet: FakeKubelet
) -> None:
    other = f"{RESOURCE}-2"
    async with plugin(directory, "npu", "X1") as ours:
        for _ in range(ownership.MAX_LOSSES + 1):
            async with plugin(directory, "other", "Z1", resource=other):
                await kubelet.until(lambda: kubelet.allocatable(other) == 2, PATIENCE, "the neighbour's devices")
                await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "our devices")
                assert await ours.conflict() == ""
                await kubelet.restart()
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "our devices")
        await ours.until_alone()
    assert kubelet_api.KUBELET_SOCKET in os.listdir(directory)


async def test_a_kubelet_that_is_killed_again_and_again_is_no_owner(directory: Path, kubelet: FakeKubelet) -> None:
    async with plugin(directory, "npu", "X1") as ours:
        for _ in range(ownership.MAX_LOSSES + 1):
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "our devices")
            await ours.until_alone()
            await asyncio.sleep(1.5)  # the plugin looks at its streams
            # A process that is killed loses its streams before its listening socket.
            await kubelet.resource(RESOURCE).open[0].channel.close()
            await asyncio.sleep(0.05)
            await kubelet.restart(killed=True)
        await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "our devices")
        assert await ours.conflict() == ""
