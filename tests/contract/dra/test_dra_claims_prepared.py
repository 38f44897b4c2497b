"""Claims of a real API server, prepared by a running driver for the kubelet, and taken by a container runtime."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from dra_cluster import CLAIMS, DRIVER, Cluster
from dra_kubelet import PluginWatcher
from dra_process import Node
from rm_device_plugins import simulator_tool

Json = dict[str, Any]
Runtime = Callable[..., Json]


def cdi_ids(answer: Any) -> list[str]:
    assert answer.error == ""
    return [each for device in answer.devices for each in device.cdi_device_ids]


def environment(container: Json) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in container["process"]["env"])


async def only(watcher: PluginWatcher, claim: Json) -> Any:
    (answer,) = (await watcher.prepare(claim)).values()
    return answer


async def test_a_container_gets_the_devices_of_its_request(
    dra: Cluster, node: Node, watcher: PluginWatcher, cdi_runtime: Runtime
) -> None:
    async with node.driver(devices=4, driver="2.0.1", product="Simulated NPU Y7"):
        plugin = await watcher.until_registered()
        assert plugin.info.name == DRIVER
        a, b, _, d = node.names()
        claim = await dra.claim({"decode": [b, a], "prefill": [d]})
        uid = claim["metadata"]["uid"]
        answer = await only(watcher, claim)
        assert [(list(each.request_names), each.pool_name, each.device_name) for each in answer.devices] == [
            (["decode"], dra.node, b),
            (["decode"], dra.node, a),
            (["prefill"], dra.node, d),
        ]
        # The kubelet shows the health of a device by the first name, so each has its own.
        assert len({each.cdi_device_ids[0] for each in answer.devices}) == 3
        decode = cdi_runtime(node.cdi_dir, *[each for device in answer.devices[:2] for each in device.cdi_device_ids])
        assert environment(decode) == {
            "DEVICE_IDS": f"{a},{b}",
            "DEVICE_INDEXES": "0,1",
            "RMA_DEVICE_NODES": "/dev/rma-sim/npu0=1:3,/dev/rma-sim/npu1=1:5",
            "RMA_DEVICE_SERIALS": "SIMY7-0000,SIMY7-0001",
            "RMA_DEVICE_PRODUCT": "Simulated NPU Y7",
            "RMA_DEVICE_DRIVER": "2.0.1",
        }
        nodes = {entry["path"]: (entry["major"], entry["minor"], entry["uid"]) for entry in decode["linux"]["devices"]}
        assert nodes == {"/dev/rma-sim/npu0": (1, 3, 65532), "/dev/rma-sim/npu1": (1, 5, 65532)}
        allowed = {(rule["major"], rule["minor"], rule["access"]) for rule in decode["linux"]["resources"]["devices"]}
        assert allowed == {(1, 3, "rw"), (1, 5, "rw")}
        (mount,) = decode["mounts"]
        assert mount["destination"] == "/run/rma-simulator"
        assert "ro" in mount["options"]
        prefill = cdi_runtime(node.cdi_dir, *answer.devices[2].cdi_device_ids)
        assert environment(prefill)["DEVICE_INDEXES"] == "3"
        assert [entry["path"] for entry in prefill["linux"]["devices"]] == ["/dev/rma-sim/npu3"]
        assert node.cdi_files() == [f"{DRIVER}-device_{uid}.json"]
        assert await watcher.unprepare(claim) == {uid: ""}
        assert (node.cdi_files(), node.records()) == ([], [])


async def test_a_kind_may_be_called_by_a_number(
    dra: Cluster, node: Node, watcher: PluginWatcher, cdi_runtime: Runtime
) -> None:
    """Names of CDI devices begin with a letter, and those of objects need not."""
    async with node.driver("--driver=4090.rm-abstract.io"):
        await watcher.until_registered()
        claim = await dra.claim({"npu": node.names()[:1]}, driver="4090.rm-abstract.io")
        container = cdi_runtime(node.cdi_dir, *cdi_ids(await only(watcher, claim)))
        assert environment(container)["DEVICE_INDEXES"] == "0"


async def test_asking_again_changes_nothing(dra: Cluster, node: Node, watcher: PluginWatcher) -> None:
    async with node.driver("--vendor=dra_vendor:WatchedVendor", f"--driver={DRIVER}"):
        await watcher.until_registered()
        claim = await dra.claim({"npu": node.names()})
        uid = claim["metadata"]["uid"]
        first = await only(watcher, claim)
        (file,) = node.cdi_dir.iterdir()
        written = file.stat().st_mtime_ns
        # A device that has become unhealthy stays with the pod that has it, also when the kubelet was restarted.
        simulator_tool.change(node.simulator, device=0, health="failed")
        await watcher.until(
            lambda: watcher.plugins[-1].health[-1][node.names()[0]][0] == 2, "it is known to be unhealthy"
        )
        assert await only(watcher, claim) == first
        assert file.stat().st_mtime_ns == written
        assert (node.simulator / "calls").read_text() == "[0, 1]\n"
        for _ in range(2):
            assert await watcher.unprepare(claim) == {uid: ""}
        never = {"metadata": {"namespace": "x", "name": "y", "uid": "3f1c0a52-0000-4000-8000-000000000000"}}
        assert await watcher.unprepare(never) == {"3f1c0a52-0000-4000-8000-000000000000": ""}


async def test_a_claim_that_cannot_be_prepared_says_why_and_harms_no_other(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver(devices=3):
        await watcher.until_registered()
        a, b, c = node.names()
        good = await dra.claim({"npu": [a]})
        gone = await dra.claim({"npu": [b]})
        await dra.delete_claim(gone)
        other = await dra.claim({"npu": [b]})
        renamed = {"metadata": {**other["metadata"], "uid": "3f1c0a52-0000-4000-8000-000000000000"}}
        foreign = await dra.claim({"npu": [b]}, pool="another-node")
        unallocated = await dra.claim({})
        unknown = await dra.claim({"npu": ["no-such-device"]})
        sick = await dra.claim({"npu": [c]})
        simulator_tool.change(node.simulator, device=2, health="failed")
        await watcher.until(lambda: watcher.plugins[-1].health[-1][c][0] == 2, "it is known to be unhealthy")
        wicked = {"metadata": {"namespace": "x", "name": "y", "uid": "../../../etc/passwd"}}
        answers = await watcher.prepare(good, gone, renamed, foreign, unallocated, unknown, sick, wicked)

        def error(claim: Json) -> str:
            return str(answers[claim["metadata"]["uid"]].error)

        assert error(good) == ""
        assert error(gone).endswith("does not exist any more")
        assert "is another one now: its UID is" in error(renamed)
        assert f"this node has the pool '{dra.node}'" in error(foreign)
        assert error(unallocated).endswith("is not allocated")
        assert "there is no device 'no-such-device' in the pool" in error(unknown)
        assert "is unhealthy: the driver reports it as failed" in error(sick)
        assert "is no UID of a claim" in error(wicked)
        assert node.cdi_files() == [f"{DRIVER}-device_{good['metadata']['uid']}.json"]
        await watcher.unprepare(good, gone, renamed, foreign, unallocated, unknown, sick)
        assert (node.cdi_files(), node.records()) == ([], [])


async def test_parameters_for_the_driver_are_refused(dra: Cluster, node: Node, watcher: PluginWatcher) -> None:
    async with node.driver():
        await watcher.until_registered()
        claim = await dra.claim({"npu": [node.names()[0]]})
        path = f"/apis/resource.k8s.io/v1/namespaces/{dra.namespace}/resourceclaims/{claim['metadata']['name']}"
        now = await dra.raw("GET", path)
        opaque = {"driver": DRIVER, "parameters": {"kind": "Sharing"}}
        devices = now["status"]["allocation"]["devices"]
        now["status"] = {}
        await dra.raw("PUT", f"{path}/status", now)
        now = await dra.raw("GET", path)
        now["status"] = {"allocation": {"devices": {**devices, "config": [{"source": "FromClass", "opaque": opaque}]}}}
        await dra.raw("PUT", f"{path}/status", now)
        assert "has parameters for simulator.rm-abstract.io, which takes none" in (await only(watcher, claim)).error


async def test_a_device_is_not_given_to_two_claims(dra: Cluster, node: Node, watcher: PluginWatcher) -> None:
    """The scheduler does not allocate so; the driver is the last one that can see it."""
    async with node.driver():
        await watcher.until_registered()
        a, b = node.names()
        first, second = await dra.claim({"npu": [a]}), await dra.claim({"npu": [b, a]})
        assert (await only(watcher, first)).error == ""
        refused = (await only(watcher, second)).error
        assert (
            refused == f"{a} is prepared for the claim {dra.namespace}/{first['metadata']['name']}, which has it still"
        )
        # Its containers may still run, until the kubelet says that they do not.
        await dra.delete_claim(first)
        assert "which is gone; the kubelet has" in (await only(watcher, second)).error
        await watcher.unprepare(first)
        assert (await only(watcher, second)).error == ""
        assert node.cdi_files() == [f"{DRIVER}-device_{second['metadata']['uid']}.json"]
        assert node.records() == [f"{second['metadata']['uid']}.json"]


async def test_an_administrator_sees_a_device_that_somebody_has(
    dra: Cluster, node: Node, watcher: PluginWatcher, cdi_runtime: Runtime
) -> None:
    async with node.driver("--vendor=dra_vendor:WatchedVendor", f"--driver={DRIVER}"):
        await watcher.until_registered()
        name = node.names()[0]
        user = await dra.claim({"npu": [name]})
        assert (await only(watcher, user)).error == ""
        admin = await dra.claim({"npu": [name]}, adminAccess=True)
        simulator_tool.change(node.simulator, device=0, health="failed")
        await watcher.until(lambda: watcher.plugins[-1].health[-1][name][0] == 2, "it is known to be unhealthy")
        container = cdi_runtime(node.cdi_dir, *cdi_ids(await only(watcher, admin)))
        assert environment(container)["DEVICE_IDS"] == name
        assert (node.simulator / "calls").read_text() == "[0]\n", "the user's device was not touched"


async def test_many_claims_at_once_get_what_is_theirs(
    dra: Cluster, node: Node, watcher: PluginWatcher, cdi_runtime: Runtime
) -> None:
    async with node.driver(devices=16):
        await watcher.until_registered()
        names = node.names()
        claims = [await dra.claim({"npu": names[start : start + 2]}) for start in range(0, 16, 2)]
        answers = await asyncio.gather(*(watcher.prepare(claim) for claim in claims))
        ids = {uid: cdi_ids(answer) for each in answers for uid, answer in each.items()}
        given = [environment(cdi_runtime(node.cdi_dir, *ids[claim["metadata"]["uid"]])) for claim in claims]
        assert [each["DEVICE_IDS"].split(",") for each in given] == [names[at : at + 2] for at in range(0, 16, 2)]
        await asyncio.gather(*(watcher.unprepare(claim) for claim in claims))
        assert (node.cdi_files(), node.records()) == ([], [])


async def test_a_vendor_that_hangs_or_fails_keeps_nobody_else_waiting(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    options = ("--vendor=dra_vendor:WatchedVendor", f"--driver={DRIVER}")
    async with node.driver(*options, devices=3, plugin={"allocateTimeoutSeconds": 5}):
        await watcher.until_registered()
        (node.simulator / "hang-0").touch()
        (node.simulator / "fail-1").touch()
        hanging, failing, well = [await dra.claim({"npu": [name]}) for name in node.names()]
        waiting = asyncio.ensure_future(only(watcher, hanging))
        await watcher.until((node.simulator / "calls").exists, "the hook was called")
        assert (await only(watcher, failing)).error == "NPU 1 does not want to"
        assert (await only(watcher, well)).error == ""
        assert not waiting.done()
        assert (await waiting).error == "the vendor's allocation did not end within 5 s"
        assert node.cdi_files() == [f"{DRIVER}-device_{well['metadata']['uid']}.json"]
        (node.simulator / "hang-0").unlink()
        (node.simulator / "fail-1").unlink()
        assert not any(answer.error for answer in (await watcher.prepare(hanging, failing, well)).values())


async def test_a_pod_that_goes_while_its_claim_is_prepared_leaves_nothing(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver("--vendor=dra_vendor:WatchedVendor", f"--driver={DRIVER}"):
        await watcher.until_registered()
        (node.simulator / "hang-0").touch()
        claim = await dra.claim({"npu": [node.names()[0]]})
        preparing = asyncio.ensure_future(only(watcher, claim))
        await watcher.until((node.simulator / "calls").exists, "the hook was called")
        undoing = asyncio.ensure_future(watcher.unprepare(claim))
        (node.simulator / "hang-0").unlink()
        await preparing
        assert set((await undoing).values()) == {""}
        assert (node.cdi_files(), node.records()) == ([], [])


@pytest.mark.parametrize("shares", [2])
async def test_shares_are_devices_of_their_own(
    dra: Cluster, node: Node, watcher: PluginWatcher, cdi_runtime: Runtime, shares: int
) -> None:
    async with node.driver(devices=1, plugin={"shares": shares}):
        await watcher.until_registered()
        await watcher.until(lambda: bool(watcher.plugins[-1].health), "the devices are known")
        names = sorted(watcher.plugins[-1].health[-1])
        assert len(names) == shares
        claims = [await dra.claim({"npu": [name]}) for name in names]
        answers = await watcher.prepare(*claims)
        given = {environment(cdi_runtime(node.cdi_dir, *cdi_ids(answer)))["DEVICE_IDS"] for answer in answers.values()}
        assert given == set(node.names())
        both = await dra.claim({"npu": names}, name=f"both-{secrets.token_hex(2)}")
        for claim in claims:
            await watcher.unprepare(claim)
            await dra.delete_claim(claim)
        assert "2 shares of device" in (await only(watcher, both)).error


async def test_a_claim_whose_uid_is_reused_by_name_is_not_the_same(
    dra: Cluster, node: Node, watcher: PluginWatcher
) -> None:
    async with node.driver():
        await watcher.until_registered()
        a, b = node.names()
        first = await dra.claim({"npu": [a]}, name="same")
        assert (await only(watcher, first)).error == ""
        await dra.client.delete(CLAIMS, dra.namespace, "same")
        second = await dra.claim({"npu": [b]}, name="same")
        assert "is another one now" in (await only(watcher, first)).error
        assert (await only(watcher, second)).error == ""
        await watcher.unprepare(first)
        assert node.records() == [f"{second['metadata']['uid']}.json"]
