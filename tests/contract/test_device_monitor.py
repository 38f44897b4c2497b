"""What a device plugin tells of its devices: the report and waiting for it, pods, power, use outside of Kubernetes."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from device_report_client import PATIENCE, Client, until
from pod_resources_server import PodResourcesServer
from rm_device_plugins import http
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.monitor import Monitor
from rm_device_plugins.plugin import DevicePlugin
from rm_device_plugins.pod_resources import PodResources
from rm_device_plugins.vendor import Device, DeviceNode, Discovery, Failure, Vendor

NPU = "example.com/npu"
FAST = PluginSettings(
    interval_seconds=0.03,
    healthy_after=1,
    pods_interval_seconds=0.03,
    power_interval_seconds=0.03,
    out_of_band_after_seconds=0.0,
)


def device(index: int, **changes: object) -> Device:
    node = DeviceNode("/dev/null", f"/dev/npu{index}", 1, 3)
    made = Device(f"uuid-{index}", index, f"SN{index}", "Test NPU", (node,), firmware="3.1")
    return replace(made, **changes)  # type: ignore[arg-type]


class Scripted(Vendor):
    """Says what a test wrote on it."""

    def __init__(self, *devices: Device) -> None:
        super().__init__({})
        self.found = Discovery(devices, driver="7.1", sdk="2.0", firmware="3.1", product="Test NPU")
        self.watts: Mapping[str, float] | Exception = {}
        self.power_hangs = asyncio.Event()
        self.power_hangs.set()
        self.readings = 0
        self.error: Exception | None = None

    async def discover(self) -> Discovery:
        if self.error is not None:
            raise self.error
        return self.found

    def now(self, *devices: Device) -> None:
        self.found = replace(self.found, devices=devices)

    async def power(self) -> Mapping[str, float]:
        self.readings += 1
        await self.power_hangs.wait()
        if isinstance(self.watts, Exception):
            raise self.watts
        return self.watts


@asynccontextmanager
async def running(monitor: Monitor) -> AsyncIterator[Client]:
    stop = asyncio.Event()
    task = asyncio.ensure_future(monitor.run(stop))
    try:
        await until(lambda: monitor.document.body or task.done(), "the first discovery")
        yield Client(monitor.http.port)
        assert not task.done(), "the monitor ended by itself"
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


@pytest.fixture
async def kubelet(tmp_path: Path) -> AsyncIterator[PodResourcesServer]:
    async with PodResourcesServer(tmp_path / "pods.sock") as server:
        yield server


def monitor(vendor: Vendor, kubelet: PodResourcesServer | None = None, settings: PluginSettings = FAST) -> Monitor:
    return Monitor(NPU, settings, vendor, 0, PodResources(kubelet.path if kubelet else Path("/nowhere/kubelet.sock")))


class TestReport:
    async def test_it_has_the_agreed_members(
        self, kubelet: PodResourcesServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NODE_NAME", "worker-3")
        kubelet.give("serve-0", NPU, ["uuid-1"], namespace="team", container="engine")
        vendor = Scripted(device(0), device(1, cause="hot", failure=Failure.TRANSIENT, group="card", parent="gpu"))
        async with running(monitor(vendor, kubelet)) as client:
            report = await client.until(lambda report: report["devices"][1]["pods"], "the pod")
        first, second = report.pop("devices")
        assert report == {
            "resource": NPU, "node": "worker-3", "driver": "7.1", "sdk": "2.0", "firmware": "3.1",
            "product": "Test NPU", "message": "", "conflict": "",
        }  # fmt: skip
        assert first == {
            "id": "uuid-0", "index": 0, "serial": "SN0", "node": "/dev/null", "health": "Healthy", "cause": "",
            "failure": "", "firmware": "3.1", "group": "", "parent": "", "outOfBand": "", "pods": [],
        }  # fmt: skip
        assert second == {
            "id": "uuid-1", "index": 1, "serial": "SN1", "node": "/dev/null", "health": "Unhealthy", "cause": "hot",
            "failure": "Transient", "firmware": "3.1", "group": "card", "parent": "gpu", "outOfBand": "",
            "pods": [{"namespace": "team", "name": "serve-0", "container": "engine"}],
        }  # fmt: skip

    async def test_who_has_it_is_not_sent_it_again(self) -> None:
        async with running(monitor(Scripted(device(0)))) as client:
            first = await client.get()
            assert (first.status, first.tag[0], first.tag[-1]) == (200, '"', '"')
            for known in (first.tag, f"W/{first.tag}", f'"other", {first.tag}', "*"):
                again = await client.get(if_none_match=known)
                assert (again.status, again.body, again.tag) == (304, b"", first.tag)
            assert (await client.get(if_none_match='"other"')).status == 200
            head = await client.get(method="HEAD")
            assert (head.status, head.body, head.tag) == (200, b"", first.tag)

    async def test_who_waits_gets_the_change_when_it_comes(self) -> None:
        vendor = Scripted(device(0))
        plugin = monitor(vendor)
        async with running(plugin) as client:
            first = await client.get()
            waiting = [await client.send(if_none_match=first.tag, prefer="wait=60") for _ in range(20)]
            await until(lambda: plugin.document.waiting == 20, "all wait")
            vendor.now(device(0, cause="gone", failure=Failure.DEAD))
            for each in waiting:
                answer = await client.receive(each)
                assert (answer.status, answer.headers["preference-applied"]) == (200, "wait=60")
                assert answer.report["devices"][0]["failure"] == "Dead"
                assert answer.tag != first.tag
            assert plugin.document.waiting == 0

    async def test_who_waits_in_vain_is_told_that_nothing_has_changed(self) -> None:
        async with running(monitor(Scripted(device(0)))) as client:
            first = await client.get()
            assert (await client.wait_for_change(first.tag, seconds=1)).status == 304

    async def test_there_is_no_waiting_for_what_has_changed_already(self) -> None:
        async with running(monitor(Scripted(device(0)))) as client:
            assert (await client.wait_for_change('"old"')).status == 200
            assert (await client.get(prefer="wait=60")).status == 200
            tag = (await client.get()).tag
            for odd in ("wait=0", "wait=soon", "respond-async", "wait", "wait=-5"):
                assert (await client.get(if_none_match=tag, prefer=odd)).status == 304

    async def test_quantities_that_move_all_the_time_wake_nobody(self) -> None:
        vendor = Scripted(device(0))
        plugin = monitor(vendor)
        async with running(plugin) as client:
            tag = (await client.get()).tag
            waiting = await client.send(if_none_match=tag, prefer="wait=1")
            for watts in range(10):
                vendor.watts, before = {"uuid-0": float(watts)}, vendor.readings
                await until(lambda before=before: vendor.readings > before, "another reading")
            assert (await client.receive(waiting)).status == 304

    async def test_a_client_that_goes_away_is_forgotten(self) -> None:
        plugin = monitor(Scripted(device(0)))
        async with running(plugin) as client:
            tag = (await client.get()).tag
            waiting = [await client.send(if_none_match=tag, prefer="wait=60") for _ in range(5)]
            await until(lambda: plugin.document.waiting == 5, "all wait")
            for _, writer in waiting:
                writer.close()
            await until(lambda: plugin.document.waiting == 0, "nobody waits")

    async def test_many_that_wait_hold_up_nobody_else_and_the_first_come_make_room(self) -> None:
        plugin = monitor(Scripted(device(0)))
        async with running(plugin) as client:
            tag = (await client.get()).tag
            first = [await client.send(if_none_match=tag, prefer="wait=60") for _ in range(3)]
            await until(lambda: plugin.document.waiting == 3, "they wait")
            rest = [await client.send(if_none_match=tag, prefer="wait=60") for _ in range(http.MAX_WAITERS)]
            for each in first:
                assert (await client.receive(each)).status == 304
            assert plugin.document.waiting <= http.MAX_WAITERS
            for path in ("/healthz", "/readyz", "/metrics", "/rma/v1/report"):
                assert (await client.get(path)).status == 200
            for _, writer in rest:
                writer.close()

    async def test_who_waits_is_answered_when_the_plugin_ends(self) -> None:
        plugin = monitor(Scripted(device(0)))
        async with running(plugin) as client:
            waiting = await client.send(if_none_match=(await client.get()).tag, prefer="wait=60")
            await until(lambda: plugin.document.waiting == 1, "it waits")
        assert (await client.receive(waiting)).status == 304

    @pytest.mark.parametrize(
        ("method", "path", "status"), [("POST", "/rma/v1/report", 405), ("PUT", "/healthz", 405), ("GET", "/x", 404)]
    )
    async def test_what_is_not_there(self, method: str, path: str, status: int) -> None:
        async with running(monitor(Scripted(device(0)))) as client:
            answer = await client.get(path, method)
            assert answer.status == status
            assert status == 405 or b"/healthz /metrics /readyz /rma/v1/report" in answer.body

    async def test_what_is_no_http_is_refused(self) -> None:
        async with running(monitor(Scripted(device(0)))) as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
            writer.write(b"hello\r\n\r\n")
            assert (await client.receive((reader, writer))).status == 400


class TestPods:
    async def test_pods_come_and_go(self, kubelet: PodResourcesServer) -> None:
        async with running(monitor(Scripted(device(0), device(1)), kubelet)) as client:
            kubelet.give("a", NPU, ["uuid-0"])
            kubelet.give("b", NPU, ["uuid-1"], namespace="team", container="engine")
            await client.until(lambda report: all(each["pods"] for each in report["devices"]), "both have pods")
            assert await client.series("rma_device_allocated") == {
                ("main", "uuid-0", "default", "a"): 1.0,
                ("engine", "uuid-1", "team", "b"): 1.0,
            }
            kubelet.end("a")
            await client.until(lambda report: not report["devices"][0]["pods"], "it is free")
            assert list(await client.series("rma_device_allocated")) == [("engine", "uuid-1", "team", "b")]

    async def test_a_kubelet_that_hangs_holds_up_nothing(self, kubelet: PodResourcesServer) -> None:
        kubelet.hold = asyncio.Event()
        vendor = Scripted(device(0))
        async with running(monitor(vendor, kubelet)) as client:
            await until(lambda: kubelet.calls == 1, "the kubelet is asked")
            vendor.now(device(0, cause="hot"))
            report = await client.until(lambda report: report["devices"][0]["cause"], "the change")
            assert report["devices"][0]["pods"] == []
            kubelet.hold.set()

    async def test_without_such_a_kubelet_the_plugin_works_and_is_ready(self) -> None:
        async with running(monitor(Scripted(device(0)))) as client:
            assert (await client.get()).report["message"] == ""
            assert (await client.get("/readyz")).status == 200


class TestMetrics:
    async def test_devices_by_health_and_failures_by_kind(self) -> None:
        vendor = Scripted(device(0), device(1, cause="dead", failure=Failure.DEAD))
        async with running(monitor(vendor)) as client:
            assert await client.series("rma_device_healthy") == {
                ("uuid-0", "Test NPU", "SN0"): 1.0,
                ("uuid-1", "Test NPU", "SN1"): 0.0,
            }
            for _ in range(2):
                vendor.now(device(0, cause="hot", failure=Failure.TRANSIENT), device(1))
                await client.until(lambda report: report["devices"][0]["cause"], "it is hot")
                vendor.now(device(0), device(1))
                await client.until(lambda report: not report["devices"][0]["cause"], "it is well")
            counted = {"Transient": 2.0, "NeedsReset": 0.0, "Dead": 1.0, "Unknown": 0.0}
            assert await client.series("rma_device_failures_total") == {(k,): v for k, v in counted.items()}

    async def test_power_is_the_pods_that_has_the_device_alone(self, kubelet: PodResourcesServer) -> None:
        vendor = Scripted(device(0), device(1), device(2), device(3))
        vendor.watts = {"uuid-0": 75.5, "uuid-1": 30, "uuid-2": 10, "uuid-9": 5, "uuid-3": math.nan}
        kubelet.give("a", NPU, ["uuid-0"])
        kubelet.give("b", NPU, ["uuid-1::0"])
        kubelet.give("c", NPU, ["uuid-1::1"])
        async with running(monitor(vendor, kubelet, replace(FAST, shares=2))) as client:
            await client.until(lambda report: len(report["devices"][1]["pods"]) == 2, "the pods")
            await until(lambda: vendor.readings > 1, "a reading")
            assert await client.series("rma_device_power_watts") == {
                ("main", "uuid-0", "default", "a"): 75.5,
                ("", "uuid-1", "", ""): 30.0,
                ("", "uuid-2", "", ""): 10.0,
            }

    async def test_a_reading_that_fails_is_no_reading_and_no_illness(self) -> None:
        vendor = Scripted(device(0))
        vendor.watts = {"uuid-0": 7.0}
        async with running(monitor(vendor)) as client:
            await until(lambda: vendor.readings > 1, "a reading")
            assert await client.series("rma_device_power_watts") == {("", "uuid-0", "", ""): 7.0}
            vendor.watts, before = RuntimeError("no sensor"), vendor.readings
            await until(lambda: vendor.readings > before + 1, "failed readings")
            assert await client.series("rma_device_power_watts") == {}
            assert (await client.get()).report["devices"][0]["health"] == "Healthy"

    async def test_a_reading_that_hangs_holds_up_neither_metrics_nor_discovery(self) -> None:
        vendor = Scripted(device(0))
        vendor.power_hangs.clear()
        async with running(monitor(vendor)) as client:
            await until(lambda: vendor.readings == 1, "the reading has begun")
            vendor.now(device(0, cause="hot"))
            await client.until(lambda report: report["devices"][0]["cause"], "the change")
            assert await client.series("rma_device_healthy") == {("uuid-0", "Test NPU", "SN0"): 0.0}
            vendor.power_hangs.set()

    async def test_a_hook_that_survives_its_deadline_is_not_called_beside_itself(self) -> None:
        class Stubborn(Scripted):
            async def power(self) -> Mapping[str, float]:
                self.readings += 1
                while not self.power_hangs.is_set():
                    try:
                        await self.power_hangs.wait()
                    except asyncio.CancelledError:
                        continue
                return self.watts

        vendor = Stubborn(device(0))
        vendor.power_hangs.clear()
        vendor.watts = {"uuid-0": 5.0}
        plugin = monitor(vendor, settings=replace(FAST, power_timeout_seconds=0.1))
        async with running(plugin) as client:
            await until(lambda: "did not end within 0.1 s" in plugin._power_problem, "the deadline")
            checked = plugin._checked_at
            await until(lambda: plugin._checked_at > checked + 0.3, "further rounds")
            assert vendor.readings == 1
            vendor.power_hangs.set()
            await until(lambda: vendor.readings > 2, "it is asked again")
            assert await client.series("rma_device_power_watts") == {("", "uuid-0", "", ""): 5.0}


class TestUseOutsideOfKubernetes:
    async def test_what_no_pod_has_and_somebody_uses(self, kubelet: PodResourcesServer) -> None:
        kubelet.give("a", NPU, ["uuid-1"])
        used = "processes 17 and 23"
        vendor = Scripted(device(0, out_of_band=used), device(1, out_of_band=used), device(2))
        async with running(monitor(vendor, kubelet)) as client:
            report = await client.until(lambda report: report["devices"][0]["outOfBand"], "the use")
            assert [each["outOfBand"] for each in report["devices"]] == [used, "", ""]
            assert {each["health"] for each in report["devices"]} == {"Healthy"}
            metrics = await client.series("rma_device_used_out_of_band")
            assert metrics == {("uuid-0",): 1.0, ("uuid-1",): 0.0, ("uuid-2",): 0.0}
            kubelet.end("a")
            await client.until(lambda report: report["devices"][1]["outOfBand"] == used, "a process that stayed")
            vendor.now(device(0), device(1), device(2))
            await client.until(lambda report: not any(each["outOfBand"] for each in report["devices"]), "all is free")

    async def test_it_is_not_told_before_it_has_lasted(self, kubelet: PodResourcesServer) -> None:
        vendor = Scripted(device(0, out_of_band="a process"))
        plugin = monitor(vendor, kubelet, replace(FAST, out_of_band_after_seconds=3600))
        async with running(plugin) as client:
            await until(lambda: "uuid-0" in plugin._used_since, "the use is seen")
            assert (await client.get()).report["devices"][0]["outOfBand"] == ""

    async def test_nothing_is_claimed_where_nobody_knows_who_has_what(self) -> None:
        vendor = Scripted(device(0, out_of_band="a process"))
        async with running(monitor(vendor)) as client:
            vendor.now(device(0, out_of_band="a process", cause="hot"))
            report = await client.until(lambda report: report["devices"][0]["cause"], "a later round")
            assert report["devices"][0]["outOfBand"] == ""

    async def test_what_was_not_seen_now_says_nothing_of_now(self, kubelet: PodResourcesServer) -> None:
        vendor = Scripted(device(0, out_of_band="a process"))
        async with running(monitor(vendor, kubelet)) as client:
            await client.until(lambda report: report["devices"][0]["outOfBand"], "the use")
            vendor.error = RuntimeError("no driver")
            report = await client.until(lambda report: report["message"] == "no driver", "the failure")
            assert report["devices"][0]["outOfBand"] == ""


async def test_the_plugin_reports_pods_by_the_same_means(tmp_path: Path, kubelet: PodResourcesServer) -> None:
    kubelet.give("a", NPU, ["uuid-0"])
    directory = tmp_path / "plugins"
    directory.mkdir()
    plugin = DevicePlugin(NPU, FAST, Scripted(device(0)), directory, 0, kubelet.path)
    async with running(plugin) as client:
        report = await client.until(lambda report: report["devices"][0]["pods"], "the pod")
        assert report["devices"][0]["pods"] == [{"namespace": "default", "name": "a", "container": "main"}]
        assert report["conflict"] == ""
