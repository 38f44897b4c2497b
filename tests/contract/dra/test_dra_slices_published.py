"""ResourceSlices of a running driver, in a real API server."""

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from dra_cluster import DRIVER, SLICES, Cluster, prepare
from dra_kubelet import PluginWatcher
from dra_process import Driver, Node
from real_api import ApiServer, eventually
from rm_device_plugins import simulator_tool
from rm_operator.kube.errors import ApiError

TAINT = f"{DRIVER}/unhealthy"

Json = dict[str, Any]


def effects(device: Json) -> list[tuple[str, str]]:
    return [(taint["key"], taint["effect"]) for taint in device.get("taints") or []]


async def until(dra: Cluster, condition: Callable[[dict[str, Json]], bool], what: str) -> None:
    async def holds() -> bool:
        return condition(await dra.devices())

    await eventually(holds, what)


async def until_count(dra: Cluster, count: int) -> list[Json]:
    await until(dra, lambda devices: len(devices) == count, f"{count} devices are published")
    return await dra.slices()


async def until_says(driver: Driver, ask: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool]) -> None:
    async def said() -> bool:
        return wanted(await ask())

    await eventually(said, "the driver says so")


def versions(found: list[Json]) -> list[tuple[str, str, int]]:
    return [(each["metadata"]["uid"], each["metadata"]["resourceVersion"], generation(each)) for each in found]


def generation(found: Json) -> int:
    return int(found["spec"]["pool"]["generation"])


async def test_devices_are_published_with_what_is_known_of_them(dra: Cluster, node: Node) -> None:
    async with node.driver(devices=3, numaNodes=2, driver="2.0.1", product="Simulated NPU Y7"):
        (found,) = await until_count(dra, 3)
        spec = found["spec"]
        assert (spec["driver"], spec["nodeName"]) == (DRIVER, dra.node)
        assert spec["pool"] == {"name": dra.node, "generation": 1, "resourceSliceCount": 1}
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Node", dra.node)
        assert [device["name"] for device in spec["devices"]] == node.names()
        last = spec["devices"][2]
        assert "taints" not in last
        attributes = {key: next(iter(value.values())) for key, value in last["attributes"].items()}
        assert attributes["product"] == "Simulated NPU Y7"
        assert attributes["driverVersion"] == "2.0.1"
        assert (attributes["index"], attributes["numaNode"], attributes["uuid"]) == (2, 1, node.names()[2])
        simulator_tool.change(node.simulator, driver="3.0.0")
        await until(
            dra, lambda now: now[node.names()[0]]["attributes"]["driverVersion"] == {"string": "3.0.0"}, "3.0.0"
        )


@pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute"])
async def test_an_unhealthy_device_has_a_taint_until_it_is_well(dra: Cluster, node: Node, effect: str) -> None:
    async with node.driver(f"--taint-effect={effect}") as driver:
        (before,) = await until_count(dra, 2)
        first, second = node.names()
        simulator_tool.change(node.simulator, device=0, health="failed")
        await until(dra, lambda now: effects(now[first]) == [(TAINT, effect)], "the taint is there")
        (tainted,) = await dra.slices()
        assert generation(tainted) == generation(before) + 1
        since = (await dra.devices())[first]["taints"][0]["timeAdded"]
        # Another cause is no other taint: nothing is written for it.
        simulator_tool.change(node.simulator, remove_node=0, device=0, health="ok")
        await until_says(driver, driver.report, lambda told: "No such file" in told["devices"][0]["cause"])
        simulator_tool.change(node.simulator, device=1, health="failed")
        await until(dra, lambda now: effects(now[second]) == [(TAINT, effect)], "the second taint is there")
        (both,) = await dra.slices()
        assert generation(both) == generation(tainted) + 1
        assert (await dra.devices())[first]["taints"][0]["timeAdded"] == since
        simulator_tool.change(node.simulator, device=1, health="ok", restore_node=0)
        await until(dra, lambda now: not any(map(effects, now.values())), "both are well again")


async def test_slices_that_somebody_deletes_or_edits_come_back(dra: Cluster, node: Node) -> None:
    """The kubelet deletes those of all drivers when it starts."""
    async with node.driver():
        (first,) = await until_count(dra, 2)
        name = first["metadata"]["name"]
        await dra.client.delete(SLICES, None, name)
        (second,) = await until_count(dra, 2)
        assert second["metadata"]["uid"] != first["metadata"]["uid"]
        edited = {**second, "spec": {**second["spec"], "devices": second["spec"]["devices"][:1]}}
        await dra.raw("PUT", f"/apis/resource.k8s.io/v1/resourceslices/{name}", edited)
        (third,) = await until_count(dra, 2)
        assert generation(third) > generation(second)


async def test_a_node_that_is_made_anew_owns_its_slices(dra: Cluster, node: Node) -> None:
    async with node.driver():
        (first,) = await until_count(dra, 2)
        uid = await dra.make_node()
        # As the garbage collector does with what the old node owned.
        await dra.client.delete(SLICES, None, first["metadata"]["name"])
        (second,) = await until_count(dra, 2)
        assert [owner["uid"] for owner in second["metadata"]["ownerReferences"]] == [uid]


async def test_a_later_instance_adopts_what_it_finds(dra: Cluster, node: Node) -> None:
    async with node.driver() as driver:
        before = await until_count(dra, 2)
        await driver.kill()
    orphan = {**before[0], "metadata": {"name": f"{dra.node}-of-another-version"}}
    await dra.raw("POST", "/apis/resource.k8s.io/v1/resourceslices", orphan)
    async with node.driver() as driver:

        async def one() -> bool:
            return len(await dra.slices()) == 1

        await eventually(one, "the slice that has another name is gone")
        (kept,) = await dra.slices()
        assert kept["metadata"]["uid"] == before[0]["metadata"]["uid"]
        after = versions(await dra.slices())
        await driver.kill()
    async with node.driver() as driver:
        await until_says(driver, lambda: driver.get("/readyz"), lambda answer: "kubelet" in answer[1].decode())
        simulator_tool.change(node.simulator, device=0, health="failed")
        await until(dra, lambda now: bool(effects(now[node.names()[0]])), "it has looked at the slices")
        assert generation((await dra.slices())[0]) == after[0][2] + 1, "nothing was written but the taint"


async def test_a_big_pool_is_complete_in_each_generation(dra: Cluster, node: Node) -> None:
    async with node.driver(devices=150):
        found = await until_count(dra, 150)
        assert [len(each["spec"]["devices"]) for each in found] == [64, 64, 22]
        assert {(generation(each), each["spec"]["pool"]["resourceSliceCount"]) for each in found} == {(1, 3)}
        simulator_tool.change(node.simulator, device=149, health="failed")

        async def all_at(wanted: int) -> bool:
            return {generation(each) for each in await dra.slices()} == {wanted}

        await eventually(lambda: all_at(2), "all slices have the new generation")
        assert [name for name, device in (await dra.devices()).items() if effects(device)] == [node.names()[149]]


async def test_a_node_without_devices_is_ready_and_has_no_slices(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver(devices=0) as driver:
        await watcher.until_registered()
        await until_says(driver, lambda: driver.get("/readyz"), lambda answer: answer[0] == 200)
        assert await dra.slices() == []


async def test_while_the_api_server_is_away_it_says_so_and_goes_on(dra: Cluster, node: Node) -> None:
    async with node.driver() as driver:
        await until_count(dra, 2)
        (node.account / "token").write_text("expired")
        simulator_tool.change(node.simulator, device=0, health="failed")

        def refused(told: Json) -> bool:
            return "401" in told.get("message", "")

        await until_says(driver, driver.report, refused)
        assert (await driver.get("/readyz"))[0] == 503
        assert (await driver.get("/healthz"))[0] == 200
        assert not any(map(effects, (await dra.devices()).values()))
        await node.renew_token()
        await until(dra, lambda now: bool(effects(now[node.names()[0]])), "it reads the token again")
        await until_says(driver, driver.report, lambda told: told.get("message") == "")


async def test_a_server_with_another_certificate_never_sees_the_token(
    dra: Cluster, node: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from rm_local_cluster.pki import Authority

    other = Authority(tmp_path_factory.mktemp("other"), "other-ca")
    (node.account / "ca.crt").write_bytes(other.pair.certificate.read_bytes())
    async with node.driver() as driver:
        await until_says(driver, driver.report, lambda told: "CERTIFICATE_VERIFY_FAILED" in told.get("message", ""))
        assert await dra.slices() == []
        (node.account / "ca.crt").write_bytes(dra.server.ca.read_bytes())
        await until_count(dra, 2)


async def test_an_api_server_without_device_taints_and_its_upgrade(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Without them an unhealthy device is left out; with them it is there, and tainted."""
    server = ApiServer(tmp_path_factory.mktemp("no-taints"), server_flags=["--feature-gates=DRADeviceTaints=false"])
    server.start()
    try:
        await prepare(server)
        async with Cluster(server) as dra:
            with tempfile.TemporaryDirectory(prefix="dra") as directory:
                await _through_the_upgrade(dra, Node(dra, Path(directory)))
    finally:
        server.stop()


async def _through_the_upgrade(dra: Cluster, node: Node) -> None:
    async with node.driver(devices=3) as driver:
        await until_count(dra, 3)
        simulator_tool.change(node.simulator, device=1, health="failed")
        (found,) = await until_count(dra, 2)
        sick = node.names()[1]
        assert sick not in await dra.devices()
        assert generation(found) <= 3, "once with the taint, once without the device"
        assert (await driver.report())["devices"][1]["health"] == "Unhealthy"
        simulator_tool.change(node.simulator, device=1, health="ok")
        await until_count(dra, 3)
        simulator_tool.change(node.simulator, device=1, health="failed")
        await until_count(dra, 2)
        dra.server.kill()
        await until_says(driver, driver.report, lambda told: "cannot be kept" in told.get("message", ""))
        assert (await driver.get("/readyz"))[0] == 503
        dra.server._flags["kube-apiserver"] = ()
        dra.server.start()

        async def tainted() -> bool:
            try:
                return bool(effects((await dra.devices()).get(sick, {})))
            except ApiError:
                return False

        await eventually(tainted, "the later server is told of the taint", 120)
        await until_says(driver, driver.report, lambda told: told.get("message") == "")
