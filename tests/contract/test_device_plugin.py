"""The device plugin framework against a kubelet's device manager: registration, streams, health, allocation, life."""

import asyncio
import json
import re
import socket
import stat
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import grpc
import grpc.aio
import pytest
from rm_device_plugins import kubelet_api, registration
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.conformance.fake_kubelet import FakeKubelet
from rm_device_plugins.kubelet_api import HEALTHY, UNHEALTHY
from rm_device_plugins.plugin import DevicePlugin
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb
from rm_device_plugins.service import COALESCE_SECONDS
from rm_device_plugins.vendor import Allocation, Device, DeviceNode, Discovery, Failure, Mount, Vendor, VendorError

RESOURCE = "example.com/npu"
PATIENCE = 30.0
FAST = PluginSettings(
    interval_seconds=0.03,
    discovery_timeout_seconds=1.0,
    healthy_after=2,
    allocate_timeout_seconds=0.5,
    node_wait_seconds=0.2,
)


def device(index: int, **changes: object) -> Device:
    node = DeviceNode("/dev/null", f"/dev/npu{index}", 1, 3)
    made = Device(f"uuid-{index}", index, f"SN{index}", "Test NPU", (node,), numa_nodes=(index // 2,))
    return replace(made, **changes)  # type: ignore[arg-type]


class ScriptedVendor(Vendor):
    """Says what a test wrote on it."""

    def __init__(self, *devices: Device) -> None:
        super().__init__({})
        self.devices = list(devices)
        self.error: Exception | None = None
        self.hang = asyncio.Event()
        self.hang.set()
        self.discoveries = 0
        self.turn = asyncio.Event()
        self.allocate_seconds: dict[str, float] = {}
        self.allocate_error: Exception | None = None
        self.busy: dict[str, int] = defaultdict(int)
        self.most_busy: dict[str, int] = defaultdict(int)
        self.started: list[str] = []

    async def discover(self) -> Discovery:
        self.discoveries += 1
        self.turn.set()
        self.turn = asyncio.Event()
        await self.hang.wait()
        if self.error:
            raise self.error
        return Discovery(tuple(self.devices), driver="7.1", product="Test NPU")

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        if self.allocate_error:
            raise self.allocate_error
        groups = {each.group or each.id for each in devices}
        for group in groups:
            self.busy[group] += 1
            self.most_busy[group] = max(self.most_busy[group], self.busy[group])
        try:
            await asyncio.sleep(max(self.allocate_seconds.get(each.id, 0) for each in devices))
        finally:
            for group in groups:
                self.busy[group] -= 1
        return Allocation(
            envs={"VENDOR": "yes"},
            mounts=(Mount("/opt/driver", "/opt/driver"),),
            annotations={"a": "b"},
            cdi_devices=("example.com/npu=0",),
        )


class PreStartVendor(ScriptedVendor):
    pre_start_required = True

    async def pre_start(self, devices: Sequence[Device]) -> None:
        self.started += [each.id for each in devices]


@dataclass
class Running:
    plugin: DevicePlugin
    vendor: ScriptedVendor
    stop: asyncio.Event
    task: "asyncio.Task[None]"

    async def ended(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 10)

    async def rounds(self, count: int) -> None:
        """Waits for ``count`` further discoveries."""
        for _ in range(count):
            await asyncio.wait_for(self.vendor.turn.wait(), 5)

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.plugin.http.port}{path}"

        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return await asyncio.to_thread(fetch)

    def sockets(self) -> list[str]:
        return plugin_sockets(self.plugin.registrar._directory)


def plugin_sockets(directory: Path) -> list[str]:
    names = [path.name for path in directory.iterdir() if stat.S_ISSOCK(path.stat().st_mode)]
    return sorted(name for name in names if name != kubelet_api.KUBELET_SOCKET)


@asynccontextmanager
async def running(directory: Path, vendor: ScriptedVendor, settings: PluginSettings = FAST) -> AsyncIterator[Running]:
    plugin = DevicePlugin(RESOURCE, settings, vendor, directory, port=0)
    stop = asyncio.Event()
    run = Running(plugin, vendor, stop, asyncio.ensure_future(plugin.run(stop)))
    try:
        yield run
        assert stop.is_set() or not run.task.done(), "the plugin ended by itself"
    finally:
        await run.ended()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "dp"
    path.mkdir()
    return path


@pytest.fixture
async def kubelet(directory: Path) -> AsyncIterator[FakeKubelet]:
    async with FakeKubelet(directory) as fake:
        yield fake


async def refused(call: object, code: grpc.StatusCode) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.code() == code, caught.value.details()
    return str(caught.value.details())


def allocation(*ids: str) -> pb.AllocateRequest:
    return pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])


class TestRegistration:
    async def test_serves_before_it_registers_with_a_unique_short_name(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        async with running(directory, ScriptedVendor(device(0), device(1))) as run:
            # The kubelet connects back inside Register, so that it was accepted shows that the socket was served.
            await kubelet.until_allocatable(RESOURCE, 2)
            request = kubelet.registrations[0]
            assert len(kubelet.registrations) == 1
            assert (request.version, request.resource_name) == ("v1beta1", RESOURCE)
            assert re.fullmatch(r"example\.com_npu-[0-9a-f]{8}\.sock", request.endpoint)
            assert request.options.get_preferred_allocation_available
            assert not request.options.pre_start_required
            assert run.sockets() == [request.endpoint]
            assert (await run.get("/readyz"))[0] == 200

    async def test_waits_for_a_kubelet_that_is_not_there(self, directory: Path) -> None:
        async with running(directory, ScriptedVendor(device(0))) as run:
            await run.rounds(3)
            code, reason = await run.get("/readyz")
            assert code == 503
            assert "kubelet is not running" in reason
            assert (await run.get("/healthz"))[0] == 200
            async with FakeKubelet(directory) as kubelet:  # whose start removes the plugin's socket, too
                await kubelet.until_allocatable(RESOURCE, 1)

    @pytest.mark.parametrize("killed", [False, True])
    async def test_is_registered_again_after_a_kubelet_restart(
        self, directory: Path, kubelet: FakeKubelet, killed: bool
    ) -> None:
        async with running(directory, ScriptedVendor(device(0), device(1))):
            for _ in range(3):
                await kubelet.until_allocatable(RESOURCE, 2)
                await kubelet.restart(killed=killed)
                assert kubelet.capacity(RESOURCE) == 0
                await kubelet.until_allocatable(RESOURCE, 2)

    async def test_a_new_kubelet_socket_alone_is_enough_and_a_strangers_stream_is_no_registration(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        async with running(directory, ScriptedVendor(device(0))) as run:
            await kubelet.until_allocatable(RESOURCE, 1)
            (name,) = run.sockets()
            async with kubelet_api.channel(str(directory / name)) as channel:
                stranger = kubelet_api.DevicePluginClient(channel).list_and_watch(pb.Empty())
                await anext(aiter(stranger))
                await kubelet.restart(wipe=False)
                await kubelet.until_allocatable(RESOURCE, 1)
                assert run.sockets() == [name]

    async def test_a_new_kubelet_is_not_made_to_wait_for_the_old_ones_refusals(
        self, directory: Path, kubelet: FakeKubelet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registration, "BACKOFF_FIRST_SECONDS", 60)
        monkeypatch.setattr(registration, "BACKOFF_MAX_SECONDS", 60)
        kubelet.refuse = lambda request: "not now"
        async with running(directory, ScriptedVendor(device(0))) as run:
            await kubelet.until(lambda: "not now" in run.plugin.registrar.problem, PATIENCE, "the refusal")
            kubelet.refuse = lambda request: ""
            await kubelet.restart(wipe=False)
            await kubelet.until_allocatable(RESOURCE, 1)

    async def test_survives_a_kubelet_that_is_long_away(self, directory: Path, kubelet: FakeKubelet) -> None:
        async with running(directory, ScriptedVendor(device(0))) as run:
            await kubelet.until_allocatable(RESOURCE, 1)
            await kubelet.stop(killed=True)
            await kubelet.until(lambda: bool(run.plugin.registrar.problem), PATIENCE, "the loss is known")
            await run.rounds(20)
            assert (await run.get("/readyz"))[0] == 503
            await kubelet.start()
            await kubelet.until_allocatable(RESOURCE, 1)

    async def test_a_dropped_stream_is_registered_again_though_the_socket_is_the_same(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        async with running(directory, ScriptedVendor(device(0))):
            await kubelet.until_allocatable(RESOURCE, 1)
            await kubelet.resource(RESOURCE).open[0].channel.close()
            await kubelet.until(lambda: len(kubelet.registrations) == 2, PATIENCE, "a second registration")
            await kubelet.until_allocatable(RESOURCE, 1)

    async def test_refusals_are_retried_with_growing_pauses(
        self, directory: Path, kubelet: FakeKubelet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registration, "POLL_SECONDS", 0.02)
        at: list[float] = []

        def refuse(request: pb.RegisterRequest) -> str:
            at.append(time.monotonic())
            return "try later" if len(at) <= 4 else ""

        kubelet.refuse = refuse
        async with running(directory, ScriptedVendor(device(0))) as run:
            await kubelet.until(lambda: len(at) == 2, PATIENCE, "two attempts")
            assert "try later" in (await run.get("/readyz"))[1]
            await kubelet.until_allocatable(RESOURCE, 1, 10)
            pauses = [later - earlier for earlier, later in pairwise(at)]
            first = registration.BACKOFF_FIRST_SECONDS
            for step, pause in enumerate(pauses):
                assert pause >= first * 2**step / 2, (step, pauses)
            assert sum(pauses) < 4 * first * 2**4
            text = (await run.get("/metrics"))[1]
            assert f'rma_device_plugin_registrations_total{{resource="{RESOURCE}",result="error"}} 4.0' in text

    async def test_a_register_that_never_answers_is_given_up_and_repeated(
        self, directory: Path, kubelet: FakeKubelet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registration, "REGISTER_TIMEOUT_SECONDS", 0.3)
        kubelet.hold = asyncio.Event()
        async with running(directory, ScriptedVendor(device(0))) as run:
            await kubelet.until(lambda: "DEADLINE_EXCEEDED" in run.plugin.registrar.problem, PATIENCE, "the deadline")
            kubelet.hold.set()
            kubelet.hold = None
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1, PATIENCE, "the device")
            await kubelet.until(lambda: not run.plugin.registrar.problem, PATIENCE, "it is registered")

    async def test_a_restart_in_the_middle_of_the_first_registration_leaves_one_stream(self, directory: Path) -> None:
        async with running(directory, ScriptedVendor(device(0))) as run, FakeKubelet(directory) as kubelet:
            await kubelet.until(lambda: bool(kubelet.registrations), PATIENCE, "the first registration")
            await kubelet.restart()
            await kubelet.until_allocatable(RESOURCE, 1)
            registrations = len(kubelet.registrations)
            await run.rounds(40)  # more than two looks at the sockets
            assert kubelet.streams(RESOURCE) == 1
            assert len(kubelet.registrations) == registrations

    @pytest.mark.parametrize("by_socket", [False, True])
    async def test_its_own_socket_alone_is_removed(self, directory: Path, by_socket: bool) -> None:
        async with (
            FakeKubelet(directory, by_socket=by_socket) as kubelet,
            running(directory, ScriptedVendor(device(0))) as run,
        ):
            await kubelet.until_allocatable(RESOURCE, 1)
            (lost,) = run.sockets()
            kubelet.watch_low(RESOURCE)
            (directory / lost).unlink()
            await kubelet.until(lambda: kubelet.connected(RESOURCE) not in ("", lost), PATIENCE, "another socket")
            await run.rounds(40)  # more than two looks at the sockets
            assert kubelet.resource(RESOURCE).low == 1, "no dip: the old stream was kept"
            assert run.sockets() == [kubelet.connected(RESOURCE)] != [lost]
            assert (await kubelet.admit(RESOURCE, 1))[0] == ["uuid-0"]
            await kubelet.restart()
            await kubelet.until_allocatable(RESOURCE, 1)
            await kubelet.until(lambda: not run.plugin.registrar._replaced, PATIENCE, "the old server is closed")

    async def test_it_removes_its_socket_and_those_that_nobody_serves_and_no_other(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        kept = ["example.com_npu-00000001.sock", "example.com_other-00000002.sock", "vendor.sock"]
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(directory / kept[0]))
        listening.listen()
        for name in (*kept[1:], "example.com_npu-0000000a.sock", "example.com_npu-0000000b.sock"):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(directory / name))
        with listening:
            async with running(directory, ScriptedVendor(device(0))) as run:
                await kubelet.until_allocatable(RESOURCE, 1)
                assert run.sockets() == sorted([*kept, kubelet.registrations[0].endpoint])
                await run.ended()
                assert run.sockets() == sorted(kept)


class TestTwoInstances:
    """An upgrade: the new instance is there before the old one goes."""

    @pytest.mark.parametrize("by_socket", [False, True])
    @pytest.mark.parametrize("leaver", ["older", "younger"])
    async def test_the_one_that_stays_serves(self, directory: Path, by_socket: bool, leaver: str) -> None:
        async with (
            FakeKubelet(directory, by_socket=by_socket) as kubelet,
            running(directory, ScriptedVendor(device(0), device(1))) as older,
        ):
            await kubelet.until_allocatable(RESOURCE, 2)
            async with running(directory, ScriptedVendor(device(0), device(1))) as younger:
                await kubelet.until(lambda: kubelet.streams(RESOURCE) == 2, PATIENCE, "both are registered")
                await younger.rounds(20)  # so that each has seen the other
                kubelet.watch_low(RESOURCE)
                leaving, staying = (older, younger) if leaver == "older" else (younger, older)
                await leaving.ended()
                (name,) = staying.sockets()
                await kubelet.until(
                    lambda: kubelet.allocatable(RESOURCE) == 2 and kubelet.connected(RESOURCE) == name,
                    PATIENCE,
                    "it serves",
                )
                if leaver == "older":
                    assert kubelet.resource(RESOURCE).low == 2, "no device was unallocatable for a moment"
                assert len((await kubelet.admit(RESOURCE, 2))[0]) == 2


class TestStream:
    async def test_the_first_list_is_full_with_topology(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(device(0), device(1), device(2, cause="fault"), device(3, numa_nodes=()))
        async with running(directory, vendor):
            await kubelet.until_allocatable(RESOURCE, 3)
            (snapshot,) = kubelet.resource(RESOURCE).snapshots
            assert snapshot.health == {
                "uuid-0": HEALTHY,
                "uuid-1": HEALTHY,
                "uuid-2": UNHEALTHY,
                "uuid-3": HEALTHY,
            }
            assert snapshot.numa == {"uuid-0": (0,), "uuid-1": (0,), "uuid-2": (1,), "uuid-3": ()}

    async def test_nothing_is_sent_while_nothing_changes(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(device(0), device(1))
        async with running(directory, vendor) as run:
            await kubelet.until_allocatable(RESOURCE, 2)
            checkpoint = (directory / "kubelet_internal_checkpoint").stat().st_mtime_ns
            vendor.devices.reverse()  # another order and another serial are no change for the kubelet
            vendor.devices[0] = device(1, serial="other")
            await run.rounds(60)
            assert len(kubelet.resource(RESOURCE).snapshots) == 1
            assert (directory / "kubelet_internal_checkpoint").stat().st_mtime_ns == checkpoint

    async def test_flapping_is_coalesced_and_the_last_state_arrives(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        vendor = ScriptedVendor(device(0))
        settings = replace(FAST, interval_seconds=0.02, healthy_after=1)
        async with running(directory, vendor, settings) as run:
            await kubelet.until_allocatable(RESOURCE, 1)
            started = time.monotonic()
            for flap in range(30):
                vendor.devices = [device(0, cause="" if flap % 2 else "flap")]
                await run.rounds(1)
            lasted = time.monotonic() - started
            vendor.devices = [device(0, cause="dead")]
            await run.rounds(2)
            # It may have been told of a flap already, and be told of a recovery yet.
            await asyncio.sleep(3 * COALESCE_SECONDS)
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 0, PATIENCE, "the device is dead")
            await run.rounds(5)
            assert kubelet.allocatable(RESOURCE) == 0
            # The first, one more than there are quarters of a second, where it flapped last, and the dead one.
            assert len(kubelet.resource(RESOURCE).snapshots) <= 4 + 4 * lasted

    async def test_every_stream_gets_every_state_and_leaves_nothing_behind(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        vendor = ScriptedVendor(device(0), device(1))
        async with running(directory, vendor) as run:
            await kubelet.until_allocatable(RESOURCE, 2)
            (name,) = run.sockets()
            tasks = len(asyncio.all_tasks())
            async with kubelet_api.channel(str(directory / name)) as channel:
                client = kubelet_api.DevicePluginClient(channel)
                streams = [client.list_and_watch(pb.Empty()) for _ in range(100)]
                for stream in streams:
                    assert [each.health for each in (await anext(aiter(stream))).devices] == [HEALTHY] * 2
                vendor.devices[1] = device(1, cause="fault")
                for stream in streams:
                    assert [each.health for each in (await anext(aiter(stream))).devices] == [HEALTHY, UNHEALTHY]
                options = await client.get_device_plugin_options(pb.Empty(), timeout=PATIENCE)
                assert options.get_preferred_allocation_available
                for stream in streams:
                    stream.cancel()  # type: ignore[attr-defined]
            endpoint = run.plugin.registrar._endpoint
            assert endpoint is not None
            await kubelet.until(
                lambda: len(endpoint.service.streams) == 1, PATIENCE, "only the kubelet's stream is left"
            )
            await kubelet.until(lambda: len(asyncio.all_tasks()) < tasks + 10, PATIENCE, "their tasks have ended")
            assert kubelet.streams(RESOURCE) == 1


class TestHealth:
    async def test_a_device_recovers_after_enough_good_checks(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(device(0), device(1))
        async with running(directory, vendor, replace(FAST, healthy_after=3, interval_seconds=0.2)) as run:
            await kubelet.until_allocatable(RESOURCE, 2)
            vendor.devices[0] = device(0, cause="link down", failure=Failure.NEEDS_RESET)
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1, PATIENCE, "the device is unhealthy")
            report = json.loads((await run.get("/rma/v1/report"))[1])
            told = report["devices"][0]
            assert (told["id"], told["health"], told["cause"]) == ("uuid-0", "Unhealthy", "link down")
            assert told["failure"] == "NeedsReset"
            vendor.devices[0] = device(0)
            checks = vendor.discoveries
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 2, PATIENCE, "the device is healthy again")
            assert vendor.discoveries - checks >= 3
            assert {stream.endpoint for stream in kubelet.resource(RESOURCE).snapshots} == set(run.sockets())

    @pytest.mark.parametrize("failure", ["error", "hang", "duplicate", "empty id", "long id", "empty list", "partial"])
    async def test_a_failed_discovery_makes_devices_unhealthy_and_drops_none(
        self, directory: Path, kubelet: FakeKubelet, failure: str
    ) -> None:
        good = [device(0), device(1)]
        vendor = ScriptedVendor(*good)
        async with running(directory, vendor) as run:
            await kubelet.until_allocatable(RESOURCE, 2)
            left = 0
            match failure:
                case "error":
                    vendor.error = VendorError("the driver is gone")
                case "hang":
                    vendor.hang.clear()
                case "duplicate":
                    vendor.devices = [device(0), device(1, id="uuid-0")]
                case "empty id":
                    vendor.devices = [device(0, id=""), device(1)]
                case "long id":
                    vendor.devices = [device(0, id="x" * 64), device(1)]
                case "empty list":
                    vendor.devices = []
                case "partial":
                    vendor.devices, left = [device(0)], 1
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == left, PATIENCE, "the devices are unhealthy")
            assert kubelet.capacity(RESOURCE) == 2
            devices = json.loads((await run.get("/rma/v1/report"))[1])["devices"]
            assert [bool(each["cause"]) for each in devices] == [left == 0, True]
            vendor.error, vendor.devices = None, good
            vendor.hang.set()
            await kubelet.until_allocatable(RESOURCE, 2)

    async def test_a_hook_that_ignores_its_cancellation_is_not_called_beside_itself(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        class Stubborn(ScriptedVendor):
            async def discover(self) -> Discovery:
                self.discoveries += 1
                while not self.hang.is_set():
                    with suppress(asyncio.CancelledError):
                        await self.hang.wait()
                return Discovery(tuple(self.devices))

        vendor = Stubborn(device(0))
        async with running(directory, vendor, replace(FAST, discovery_timeout_seconds=0.1)) as run:
            await kubelet.until_allocatable(RESOURCE, 1)
            vendor.hang.clear()
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 0, PATIENCE, "the device is unhealthy")
            calls, failures = vendor.discoveries, run.plugin.inventory.problem
            checked = run.plugin._checked_at
            await kubelet.until(lambda: run.plugin._checked_at > checked + 0.3, PATIENCE, "further rounds")
            assert vendor.discoveries == calls
            assert run.plugin.inventory.problem == failures != ""
            vendor.hang.set()
            await kubelet.until_allocatable(RESOURCE, 1)

    async def test_devices_come_and_go_while_it_runs(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(device(0))
        async with running(directory, vendor, replace(FAST, forget_after_seconds=0.6)):
            await kubelet.until_allocatable(RESOURCE, 1)
            vendor.devices.append(device(1))
            await kubelet.until_allocatable(RESOURCE, 2)
            del vendor.devices[0]
            await kubelet.until(lambda: kubelet.allocatable(RESOURCE) == 1, PATIENCE, "it is unhealthy first")
            assert kubelet.capacity(RESOURCE) == 2
            await kubelet.until(lambda: kubelet.capacity(RESOURCE) == 1, PATIENCE, "and forgotten later")
            assert kubelet.allocatable(RESOURCE) == 1

    async def test_health_that_cannot_be_read_at_the_start_is_not_good_health(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        vendor = ScriptedVendor(device(0))
        vendor.error = RuntimeError("library not loaded")
        async with running(directory, vendor) as run:
            await kubelet.until(lambda: kubelet.streams(RESOURCE) == 1, PATIENCE, "it is registered")
            assert kubelet.capacity(RESOURCE) == 0
            assert json.loads((await run.get("/rma/v1/report"))[1])["message"] == "library not loaded"
            vendor.error = None
            await kubelet.until_allocatable(RESOURCE, 1)


class TestAllocate:
    async def test_a_container_gets_nodes_variables_and_what_the_vendor_adds_every_time(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        async with running(directory, ScriptedVendor(*(device(i) for i in range(4)))):
            await kubelet.until_allocatable(RESOURCE, 4)
            client = kubelet.client(RESOURCE)
            first = await client.allocate(allocation("uuid-2", "uuid-1"))
            (answer,) = first.container_responses
            assert dict(answer.envs) == {
                "DEVICE_IDS": "uuid-1,uuid-2",
                "DEVICE_INDEXES": "1,2",
                "RMA_DEVICE_NODES": "/dev/npu1=1:3,/dev/npu2=1:3",
                "RMA_DEVICE_SERIALS": "SN1,SN2",
                "RMA_DEVICE_PRODUCT": "Test NPU",
                "RMA_DEVICE_DRIVER": "7.1",
                "VENDOR": "yes",
            }
            assert [(d.container_path, d.host_path, d.permissions) for d in answer.devices] == [
                ("/dev/npu1", "/dev/null", "rw"),
                ("/dev/npu2", "/dev/null", "rw"),
            ]
            (mount,) = answer.mounts
            assert (mount.host_path, mount.container_path, mount.read_only) == ("/opt/driver", "/opt/driver", True)
            assert dict(answer.annotations) == {"a": "b"}
            assert [each.name for each in answer.cdi_devices] == ["example.com/npu=0"]
            assert await client.allocate(allocation("uuid-1", "uuid-2")) == first

    async def test_each_container_of_a_request_gets_its_own(self, directory: Path, kubelet: FakeKubelet) -> None:
        async with running(directory, ScriptedVendor(device(0), device(1))):
            await kubelet.until_allocatable(RESOURCE, 2)
            request = pb.AllocateRequest(
                container_requests=[pb.ContainerAllocateRequest(devices_ids=[f"uuid-{i}"]) for i in (1, 0)]
            )
            answer = await kubelet.client(RESOURCE).allocate(request)
            assert [each.envs["DEVICE_IDS"] for each in answer.container_responses] == ["uuid-1", "uuid-0"]

    @pytest.mark.parametrize(
        ("ids", "code", "says"),
        [
            (["uuid-9"], grpc.StatusCode.INVALID_ARGUMENT, "no device 'uuid-9'"),
            (["uuid-0", "uuid-0"], grpc.StatusCode.INVALID_ARGUMENT, "twice"),
            (["uuid-0", "uuid-9"], grpc.StatusCode.INVALID_ARGUMENT, "no device"),
            ([], grpc.StatusCode.INVALID_ARGUMENT, "no device is named"),
            (["uuid-1"], grpc.StatusCode.FAILED_PRECONDITION, "overheated"),
            (["uuid-0", "uuid-1"], grpc.StatusCode.FAILED_PRECONDITION, "overheated"),
            (["uuid-2"], grpc.StatusCode.FAILED_PRECONDITION, "No such file"),
            (["uuid-3"], grpc.StatusCode.FAILED_PRECONDITION, "is 1:3, and should be 9:9"),
            (["uuid-4"], grpc.StatusCode.FAILED_PRECONDITION, "no character device"),
        ],
    )
    async def test_what_cannot_be_given_is_an_error_that_says_why(
        self, directory: Path, kubelet: FakeKubelet, ids: list[str], code: grpc.StatusCode, says: str
    ) -> None:
        vendor = ScriptedVendor(
            device(0),
            device(1, cause="overheated"),
            device(2, nodes=(DeviceNode("/nowhere/npu", "/dev/npu2", 1, 3),)),
            device(3, nodes=(DeviceNode("/dev/null", "/dev/npu3", 9, 9),)),
            device(4, nodes=(DeviceNode("/", "/dev/npu4", 1, 3),)),
        )
        async with running(directory, vendor):
            await kubelet.until(lambda: kubelet.capacity(RESOURCE) == 5, PATIENCE, "the devices")
            client = kubelet.client(RESOURCE)
            assert says in await refused(client.allocate(allocation(*ids)), code)
            assert (await client.allocate(allocation("uuid-0"))).container_responses[0].envs["DEVICE_IDS"] == "uuid-0"

    async def test_no_container_is_an_error(self, directory: Path, kubelet: FakeKubelet) -> None:
        async with running(directory, ScriptedVendor(device(0))):
            await kubelet.until_allocatable(RESOURCE, 1)
            call = kubelet.client(RESOURCE).allocate(pb.AllocateRequest())
            assert "no container" in await refused(call, grpc.StatusCode.INVALID_ARGUMENT)

    async def test_a_node_that_comes_in_time_is_waited_for(
        self, directory: Path, kubelet: FakeKubelet, tmp_path: Path
    ) -> None:
        path = tmp_path / "npu0"
        vendor = ScriptedVendor(device(0, nodes=(DeviceNode(str(path), "/dev/npu0", 1, 3),)))
        async with running(directory, vendor, replace(FAST, node_wait_seconds=5)):
            await kubelet.until_allocatable(RESOURCE, 1)
            call = asyncio.ensure_future(kubelet.client(RESOURCE).allocate(allocation("uuid-0")))
            done, _ = await asyncio.wait({call}, timeout=0.2)
            assert not done
            path.symlink_to("/dev/null")
            assert (await asyncio.wait_for(call, PATIENCE)).container_responses[0].devices[0].host_path == str(path)

    async def test_a_hook_past_its_deadline_fails_its_call_and_no_other(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        vendor = ScriptedVendor(device(0), device(1))
        vendor.allocate_seconds["uuid-0"] = 3600
        async with running(directory, vendor):
            await kubelet.until_allocatable(RESOURCE, 2)
            client = kubelet.client(RESOURCE)
            slow = asyncio.ensure_future(client.allocate(allocation("uuid-0")))
            await client.allocate(allocation("uuid-1"), timeout=PATIENCE)
            assert "did not end within 0.5 s" in await refused(slow, grpc.StatusCode.DEADLINE_EXCEEDED)
            vendor.allocate_seconds.clear()
            await client.allocate(allocation("uuid-0"), timeout=PATIENCE)

    async def test_a_hook_that_fails_is_an_error_with_its_words(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(device(0))
        vendor.allocate_error = ValueError("no such partition")
        async with running(directory, vendor) as run:
            await kubelet.until_allocatable(RESOURCE, 1)
            client = kubelet.client(RESOURCE)
            assert "no such partition" in await refused(client.allocate(allocation("uuid-0")), grpc.StatusCode.INTERNAL)
            vendor.allocate_error = None
            await client.allocate(allocation("uuid-0"))
            text = (await run.get("/metrics"))[1]
            for result in ("ok", "error"):
                line = f'rma_device_plugin_allocate_seconds_count{{resource="{RESOURCE}",result="{result}"}} 1.0'
                assert line in text

    async def test_allocations_of_one_group_come_one_after_another(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(*(device(i, group=f"card{i // 2}") for i in range(4)))
        vendor.allocate_seconds = {f"uuid-{i}": 0.05 for i in range(4)}
        async with running(directory, vendor, replace(FAST, allocate_timeout_seconds=5)):
            await kubelet.until_allocatable(RESOURCE, 4)
            client = kubelet.client(RESOURCE)
            pairs = [("uuid-0", "uuid-2"), ("uuid-3", "uuid-1"), ("uuid-0",), ("uuid-3",)] * 3
            await asyncio.gather(*(client.allocate(allocation(*pair), timeout=10) for pair in pairs))
            assert vendor.most_busy == {"card0": 1, "card1": 1}

    @pytest.mark.parametrize(
        ("available", "must", "size", "chosen"),
        [
            ([0, 1, 2, 3], [], 2, [0, 1]),
            ([1, 2, 3], [], 2, [2, 3]),
            ([0, 1, 2, 3], [3], 2, [2, 3]),
            ([0, 1, 2, 3], [1, 2], 2, [1, 2]),
            ([0, 1, 2, 3], [], 9, []),
            ([0, 1], [0, 1], 1, []),
            ([0, 1], [7], 1, []),
            ([0, 1], [0, 0], 2, []),
            ([0, 1], [], -1, []),
        ],
    )
    async def test_the_preferred_allocation_is_a_fitting_set_or_nothing(
        self,
        directory: Path,
        kubelet: FakeKubelet,
        available: list[int],
        must: list[int],
        size: int,
        chosen: list[int],
    ) -> None:
        async with running(directory, ScriptedVendor(*(device(i) for i in range(4)))):
            await kubelet.until_allocatable(RESOURCE, 4)
            wish = pb.ContainerPreferredAllocationRequest(
                available_deviceIDs=[f"uuid-{i}" for i in available],
                must_include_deviceIDs=[f"uuid-{i}" for i in must],
                allocation_size=size,
            )
            request = pb.PreferredAllocationRequest(container_requests=[wish, wish])
            answer = await kubelet.client(RESOURCE).get_preferred_allocation(request)
            expected = [f"uuid-{i}" for i in chosen]
            assert [list(each.deviceIDs) for each in answer.container_responses] == [expected, expected]

    async def test_pre_start_runs_the_hook_also_for_an_unhealthy_device(
        self, directory: Path, kubelet: FakeKubelet
    ) -> None:
        vendor = PreStartVendor(device(0), device(1, cause="hot"))
        async with running(directory, vendor):
            await kubelet.until(lambda: kubelet.capacity(RESOURCE) == 2, PATIENCE, "the devices")
            assert kubelet.registrations[0].options.pre_start_required
            client = kubelet.client(RESOURCE)
            await client.pre_start_container(pb.PreStartContainerRequest(devices_ids=["uuid-1"]))
            assert vendor.started == ["uuid-1"]
            call = client.pre_start_container(pb.PreStartContainerRequest(devices_ids=["uuid-7"]))
            await refused(call, grpc.StatusCode.INVALID_ARGUMENT)


class TestLife:
    async def test_no_device_at_all_is_a_state_like_any_other(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor()
        async with running(directory, vendor) as run:
            await kubelet.until(lambda: kubelet.streams(RESOURCE) == 1, PATIENCE, "it is registered")
            assert kubelet.capacity(RESOURCE) == 0
            assert (await run.get("/readyz"))[0] == 200
            assert json.loads((await run.get("/rma/v1/report"))[1])["devices"] == []
            vendor.devices = [device(0)]
            await kubelet.until_allocatable(RESOURCE, 1)

    async def test_a_restart_keeps_capacity_though_discovery_fails(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(device(0), device(1))
        async with running(directory, vendor):
            await kubelet.until_allocatable(RESOURCE, 2)
        vendor.error = VendorError("not loaded yet")
        async with running(directory, vendor) as run:
            # The kubelet may still count the devices of the instance that has just gone.
            unhealthy = {"uuid-0": UNHEALTHY, "uuid-1": UNHEALTHY}
            await kubelet.until(
                lambda: kubelet.resource(RESOURCE).snapshots[-1].health == unhealthy, PATIENCE, "they are unhealthy"
            )
            report = json.loads((await run.get("/rma/v1/report"))[1])
            assert (report["driver"], report["product"]) == ("7.1", "Test NPU")
            vendor.error = None
            await kubelet.until_allocatable(RESOURCE, 2)
        before = len(kubelet.registrations)
        async with running(directory, vendor):
            # The kubelet may still count the devices of the instance that has just gone.
            await kubelet.until(lambda: len(kubelet.registrations) > before, PATIENCE, "it is registered")
            last = kubelet.registrations[-1].endpoint
            await kubelet.until(
                lambda: kubelet.resource(RESOURCE).snapshots[-1].endpoint == last, PATIENCE, "its devices are listed"
            )
            await kubelet.until_allocatable(RESOURCE, 2)
            assert kubelet.resource(RESOURCE).snapshots[-1].health == {"uuid-0": HEALTHY, "uuid-1": HEALTHY}
            lists = [each.health for each in kubelet.resource(RESOURCE).snapshots if each.endpoint == last]
            assert len(lists) == 1, "a healthy device was healthy from the first list on"

    async def test_an_id_follows_its_device_through_re_enumeration(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(device(0), device(1))
        async with running(directory, vendor) as run:
            await kubelet.until_allocatable(RESOURCE, 2)
            first, second = vendor.devices
            vendor.devices = [
                replace(second, index=0, nodes=first.nodes),
                replace(first, index=1, nodes=second.nodes),
            ]
            await run.rounds(2)
            answer = await kubelet.client(RESOURCE).allocate(allocation("uuid-0"))
            envs = answer.container_responses[0].envs
            assert (envs["DEVICE_IDS"], envs["DEVICE_INDEXES"], envs["RMA_DEVICE_SERIALS"]) == ("uuid-0", "1", "SN0")
            assert envs["RMA_DEVICE_NODES"] == "/dev/npu1=1:3"
            assert kubelet.allocatable(RESOURCE) == 2

    async def test_256_devices_are_allocated_quickly(self, directory: Path, kubelet: FakeKubelet) -> None:
        vendor = ScriptedVendor(*(device(i, numa_nodes=(i // 64,), group=f"card{i // 8}") for i in range(256)))
        async with running(directory, vendor, replace(FAST, interval_seconds=1)):
            await kubelet.until_allocatable(RESOURCE, 256)
            ids, answer = await kubelet.admit(RESOURCE, 64)
            assert {int(each.removeprefix("uuid-")) // 64 for each in ids} == {0}
            assert len(answer.devices) == 64

    async def test_the_report_has_the_agreed_members(self, directory: Path, kubelet: FakeKubelet) -> None:
        async with running(directory, ScriptedVendor(device(0))) as run:
            await kubelet.until_allocatable(RESOURCE, 1)
            code, text = await run.get("/rma/v1/report")
            assert code == 200
            assert json.loads(text) == {
                "resource": RESOURCE,
                "node": "",
                "driver": "7.1",
                "sdk": "",
                "firmware": "",
                "product": "Test NPU",
                "devices": [
                    {
                        "id": "uuid-0",
                        "index": 0,
                        "serial": "SN0",
                        "node": "/dev/null",
                        "health": "Healthy",
                        "cause": "",
                        "failure": "",
                        "firmware": "",
                        "group": "",
                        "parent": "",
                        "outOfBand": "",
                        "pods": [],
                    },
                ],
                "message": "",
                "conflict": "",
            }
            code, text = await run.get("/nothing")
            assert code == 404
            assert "/rma/v1/report" in text
