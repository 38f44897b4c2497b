"""Drivers that are killed, replaced and found again, and what they tell of themselves."""

import asyncio
import json
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from dra_cluster import DRIVER, Cluster
from dra_kubelet import PluginWatcher, pod_resources
from dra_process import Driver, Node
from real_api import eventually
from rm_api.names import ExitCode
from rm_device_plugins import simulator_tool

Json = dict[str, Any]
WATCHED = ("--vendor=dra_vendor:WatchedVendor", f"--driver={DRIVER}")
HEALTHY, UNHEALTHY, UNKNOWN = 1, 2, 0


def sockets(node: Node) -> list[Path]:
    return [
        path
        for directory in (node.registry, node.own)
        for path in sorted(directory.iterdir())
        if stat.S_ISSOCK(path.lstat().st_mode)
    ]


def said(driver: Driver, message: str) -> bool:
    return any(line["message"] == message for line in driver.lines)


async def published(dra: Cluster, node: Node) -> None:
    """Waits for the node's slices; a driver is registered before it has written them."""

    async def written() -> bool:
        return set(await dra.devices()) >= set(node.names())

    await eventually(written, "the devices are in slices")


async def prepared(watcher: PluginWatcher, claim: Json) -> Any:
    (answer,) = (await watcher.prepare(claim)).values()
    assert answer.error == ""
    return answer


async def test_killed_while_the_vendor_works_it_begins_anew_and_leaves_nothing(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver(*WATCHED) as driver:
        await watcher.until_registered()
        (node.simulator / "hang-0").touch()
        first, second = [await dra.claim({"npu": [name]}) for name in node.names()]
        assert (await prepared(watcher, second)).devices
        preparing = asyncio.ensure_future(watcher.prepare(first))
        await watcher.until(lambda: "[0]" in (node.simulator / "calls").read_text(), "the hook was called")
        await driver.kill()
        await asyncio.gather(preparing, return_exceptions=True)
    (node.simulator / "hang-0").unlink()
    (node.cdi_dir / f"{DRIVER}-device_3f1c0a52-0000-4000-8000-000000000000.json").write_text("{}")
    (node.cdi_dir / f".{DRIVER}-device_x.json.1234.tmp").write_text("{")
    (node.cdi_dir / "other.json").write_text("{}")
    async with node.driver(*WATCHED):
        # The sockets of the killed one are gone, too.
        await watcher.until(lambda: len(watcher.ever) == 2 and len(watcher.plugins) == 1, "the later one is registered")
        uids = [claim["metadata"]["uid"] for claim in (first, second)]
        assert node.cdi_files() == ["other.json", f"{DRIVER}-device_{uids[1]}.json"]
        await prepared(watcher, first)
        assert (node.simulator / "calls").read_text() == "[1]\n[0]\n[0]\n", "the other claim was prepared once"
        await prepared(watcher, second)
        # The claims may be gone by the time that they are unprepared.
        for claim in (first, second):
            await dra.delete_claim(claim)
        assert set((await watcher.unprepare(first, second)).values()) == {""}
        assert (node.cdi_files(), node.records()) == (["other.json"], [])


async def test_a_younger_instance_takes_over_without_a_gap(dra: Cluster, node: Node, watcher: PluginWatcher) -> None:
    async with node.driver() as old:
        first = await watcher.until_registered()
        await published(dra, node)
        claim, later = [await dra.claim({"npu": [name]}) for name in node.names()]
        answer = await prepared(watcher, claim)
        async with node.driver() as young:
            second = await watcher.until_registered(2)
            assert second.info.endpoint != first.info.endpoint
            await eventually(lambda: said(old, "a younger instance writes the ResourceSlices"), "the old one gives way")
            assert await prepared(watcher, claim) == answer, "what the other one has prepared is known"
            await prepared(watcher, later)
            before = await dra.slices()
            old.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(old.process.wait(), 60) == 0
            assert (await watcher.until_registered(1)) is second
            assert set((await watcher.unprepare(claim, later)).values()) == {""}
            assert await dra.slices() == before, "nobody wrote the slices again"
            assert len(sockets(node)) == 2
            simulator_tool.change(node.simulator, device=0, health="failed")

            async def tainted() -> bool:
                return "taints" in (await dra.devices())[node.names()[0]]

            await eventually(tainted, "the young one writes")
            assert young.process.returncode is None


async def test_two_instances_that_differ_do_not_write_in_turns(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver("--taint-effect=NoExecute") as old:
        await watcher.until_registered()
        await published(dra, node)
        async with node.driver("--taint-effect=NoSchedule"):
            await watcher.until_registered(2)
            await eventually(lambda: said(old, "a younger instance writes the ResourceSlices"), "the old one gives way")
            (before,) = await dra.slices()
            for index, name in enumerate(node.names()):
                simulator_tool.change(node.simulator, device=index, health="failed")

                async def tainted(name: str = name) -> bool:
                    taints = (await dra.devices())[name].get("taints", [])
                    return [taint["effect"] for taint in taints] == ["NoSchedule"]

                await eventually(tainted, "the young one's taint is there")
            (after,) = await dra.slices()
            assert after["spec"]["pool"]["generation"] == before["spec"]["pool"]["generation"] + 2


async def test_the_old_instance_writes_again_where_the_younger_one_dies(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver() as old:
        await watcher.until_registered()
        await published(dra, node)
        async with node.driver() as young:
            await watcher.until_registered(2)
            await eventually(lambda: said(old, "a younger instance writes the ResourceSlices"), "the old one gives way")
            await young.kill()
        await eventually(lambda: said(old, "we write the ResourceSlices"), "the old one is back")
        simulator_tool.change(node.simulator, device=0, health="failed")

        async def tainted() -> bool:
            return "taints" in (await dra.devices())[node.names()[0]]

        await eventually(tainted, "the old one writes")


async def test_a_kubelet_that_restarts_finds_the_driver_and_what_is_prepared(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver() as driver:
        await watcher.until_registered()
        claim = await dra.claim({"npu": node.names()})
        answer = await prepared(watcher, claim)
        await watcher.stop()
        await watcher.start()
        await watcher.until_registered()
        assert await prepared(watcher, claim) == answer
        assert (await driver.get("/readyz"))[0] == 200


@pytest.mark.parametrize("which", [0, 1])
async def test_a_socket_that_somebody_removes_is_served_anew(
    dra: Cluster, node: Node, watcher: PluginWatcher, which: int
) -> None:
    async with node.driver():
        await watcher.until_registered()
        claim = await dra.claim({"npu": node.names()})
        sockets(node)[which].unlink()
        await watcher.until(lambda: len(watcher.ever) == 2 and len(watcher.plugins) == 1, "it is registered again")
        await prepared(watcher, claim)
        assert len(sockets(node)) == 2


async def test_a_refusal_of_the_kubelet_is_told(dra: Cluster, node: Node, watcher: PluginWatcher) -> None:
    watcher.refuse = "the version is too old"
    async with node.driver() as driver:

        async def told() -> bool:
            return "refuses the driver: the version is too old" in str((await driver.get("/readyz"))[1])

        await eventually(told, "it says so")
        watcher.refuse = ""
        await watcher.until_registered()

        async def ready() -> bool:
            return (await driver.get("/readyz"))[0] == 200

        await eventually(ready, "it is ready")


@pytest.mark.parametrize("damage", ["cut", "other", "empty", "version"])
async def test_a_broken_record_is_told_and_its_claim_is_prepared_anew(
    dra: Cluster, node: Node, watcher: PluginWatcher, damage: str
) -> None:
    async with node.driver() as driver:
        await watcher.until_registered()
        claim, later = [await dra.claim({"npu": [name]}) for name in node.names()]
        answer = await prepared(watcher, claim)
        (record,) = (node.own / "claims").iterdir()
        content = record.read_text()
        broken = {
            "cut": content[:-20],
            "other": content.replace(node.names()[0], node.names()[1]),
            "empty": "",
            "version": content.replace('"version": 1', '"version": 2'),
        }
        record.write_text(broken[damage])
        await prepared(watcher, later)
        assert any("cannot be read" in line["message"] for line in driver.lines)
        assert await prepared(watcher, claim) == answer
        await watcher.unprepare(claim, later)
        assert (node.cdi_files(), node.records()) == ([], [])


async def test_a_broken_record_keeps_no_claim_from_being_unprepared(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver():
        await watcher.until_registered()
        claim = await dra.claim({"npu": [node.names()[0]]})
        await prepared(watcher, claim)
        (record,) = (node.own / "claims").iterdir()
        record.write_text("garbage")
    async with node.driver():
        await watcher.until(lambda: len(watcher.ever) == 2, "the later one is registered")
        assert set((await watcher.unprepare(claim)).values()) == {""}
        assert (node.cdi_files(), node.records()) == ([], [])


async def test_after_a_start_of_the_machine_claims_are_prepared_anew(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    """The directory of CDI files is empty then, and device numbers may be others."""
    async with node.driver(*WATCHED):
        await watcher.until_registered()
        claim = await dra.claim({"npu": node.names()})
        answer = await prepared(watcher, claim)
        (file,) = node.cdi_dir.iterdir()
        content = file.read_bytes()
        file.unlink()
        assert await prepared(watcher, claim) == answer
        assert file.read_bytes() == content
        assert (node.simulator / "calls").read_text() == "[0, 1]\n" * 2


async def test_the_kubelet_hears_of_each_device(dra: Cluster, node: Node, watcher: PluginWatcher) -> None:
    async with node.driver():
        plugin = await watcher.until_registered()
        first, second = node.names()

        async def heard(wanted: dict[str, int], message: str) -> None:
            def there() -> bool:
                last = plugin.health[-1] if plugin.health else {}
                states = {name: state for name, (state, _) in last.items()}
                return states == wanted and message in last[first][1]

            await watcher.until(there, f"the health {wanted}")

        await heard({first: HEALTHY, second: HEALTHY}, "")
        simulator_tool.change(node.simulator, device=0, health="failed")
        await heard({first: UNHEALTHY, second: HEALTHY}, "reports it as failed")
        simulator_tool.change(node.simulator, device=0, health="ok")
        await heard({first: HEALTHY, second: HEALTHY}, "")
        (node.simulator / "driver" / "status.json").rename(node.simulator / "driver" / "away")
        await heard({first: UNKNOWN, second: UNKNOWN}, "discovery failed")
        (node.simulator / "driver" / "away").rename(node.simulator / "driver" / "status.json")
        await heard({first: HEALTHY, second: HEALTHY}, "")


async def test_the_report_names_pods_and_metrics_count_claims(dra: Cluster, node: Node, watcher: PluginWatcher) -> None:
    simulated = {"podsIntervalSeconds": 0.2}
    async with node.driver(plugin=simulated) as driver:
        await watcher.until_registered()
        first, second = node.names()
        claim = await dra.claim({"npu": [first]})
        await prepared(watcher, claim)
        holds = {("team", "decoder", "engine"): (DRIVER, dra.node, first), ("x", "y", "z"): (DRIVER, "other", second)}
        async with pod_resources(node.kubelet_dir, holds):

            async def told() -> bool:
                return bool((await driver.report())["devices"][0]["pods"])

            await eventually(told, "the pod is in the report")
            report = await driver.report()
        assert (report["resource"], report["node"], report["message"]) == (f"{DRIVER}/device", dra.node, "")
        assert [device["id"] for device in report["devices"]] == [first, second]
        assert report["devices"][0]["pods"] == [{"namespace": "team", "name": "decoder", "container": "engine"}]
        assert report["devices"][1]["pods"] == []
        metrics = (await driver.get("/metrics"))[1].decode()
        labels = f'call="prepare",resource="{DRIVER}/device",result="ok"'
        assert f"rma_dra_claim_seconds_count{{{labels}}} 1.0" in metrics
        assert f'rma_dra_slice_writes_total{{resource="{DRIVER}/device",result="ok"}} 1.0' in metrics
        assert (await driver.get("/healthz"))[0] == 200


async def test_sigterm_removes_the_sockets_and_nothing_that_pods_need(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver() as driver:
        await watcher.until_registered()
        claim = await dra.claim({"npu": [node.names()[0]]})
        await prepared(watcher, claim)

        async def published() -> bool:
            return len(await dra.slices()) == 1

        await eventually(published, "the slice is there")
        driver.process.terminate()
        assert await asyncio.wait_for(driver.process.wait(), 60) == 0
    assert sockets(node) == []
    assert len(node.cdi_files()) == len(node.records()) == len(await dra.slices()) == 1


@pytest.mark.parametrize(
    ("options", "config", "says"),
    [
        (["--node="], {}, "set NODE_NAME by the downward API"),
        (["--node=Bad_Name"], {}, "cannot be a node's name"),
        (["--driver=Example.com"], {}, "must be a lower-case DNS domain of at most 60 characters"),
        (["--driver=" + "a" * 61], {}, "at most 60 characters"),
        (["--vendor=rm_device_plugins.vendors.simulator:SimulatorVendor"], {}, "set RMA_DRA_DRIVER, or --driver"),
        (["--kubelet-dir=/does/not/exist"], {}, "plugins_registry is no directory"),
        (["--service-account=/does/not/exist"], {}, "the pod needs a service account"),
        ([], {"plugin": {"shares": 0}}, "plugin.shares must be 1 to 64"),
    ],
)
async def test_what_can_never_work_ends_at_once_with_what_to_change(
    node: Node, options: list[str], config: Json, says: str
) -> None:
    async with node.driver(*options, **config) as driver:
        assert await asyncio.wait_for(driver.process.wait(), 60) == ExitCode.BAD_INPUT
    assert says in driver.lines[-1]["cause"]


async def test_a_port_that_is_taken_is_an_error_that_may_pass(node: Node) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        async with node.driver(f"--port={taken.getsockname()[1]}") as driver:
            assert await asyncio.wait_for(driver.process.wait(), 60) == ExitCode.TRANSIENT
    assert "in use" in json.dumps(driver.lines[-1])
