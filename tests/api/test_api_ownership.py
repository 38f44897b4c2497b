"""Who owns a name on a node, against a real API server: the operator sees it, says it, keeps off, and goes on."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from custom_objects import SMALLEST, apply, custom_object
from plugin_pods import PLUGIN, Fleet, Reporters
from real_api import ApiServer, eventually
from rm_operator import controllers
from rm_operator.kube.errors import Conflict, NotFound
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, DAEMONSETS, DEVICE_CLASSES, NODES, RESOURCE_SLICES
from whole_operator import whole_operator

Object = dict[str, Any]


class Owners(Fleet):
    """Nodes that say what they advertise, and kinds of it."""

    def resource(self, name: str) -> str:
        """The resource of a kind."""
        return f"{name}.{self.namespace}.test/x"

    async def kind(self, name: str, **spec: Any) -> str:
        """A kind of these nodes with a device plugin, or adopted with ``devicePlugin=None``; returns its name."""
        whole = {
            **SMALLEST["AcceleratorResource"], "resourceName": self.resource(name),
            "nodeSelector": {"tests": self.namespace}, **PLUGIN, **spec,
        }  # fmt: skip
        body = {member: value for member, value in whole.items() if value is not None}
        await apply(self.client, custom_object("AcceleratorResource", body, self.namespace, f"{self.namespace}-{name}"))
        return f"{self.namespace}-{name}"

    async def host(self, letter: str, **labels: str) -> str:
        """A node with the label that a kubelet gives it."""
        return await self.node(letter, **{"kubernetes.io/hostname": f"{self.namespace}-{letter}", **labels})

    async def advertise(self, node: str, name: str, devices: int) -> None:
        """What the node's kubelet would say."""
        amount = {self.resource(name): str(devices)}

        async def written() -> bool:
            live = await self.client.get(NODES, None, node)
            try:
                await self.client.apply_status(NODES, live, {"capacity": amount, "allocatable": amount})
            except Conflict:
                return False  # the operator writes on nodes, too
            return True

        await eventually(written, "the node says so")

    async def kept_off(self, kind: str) -> Sequence[str] | None:
        """Hosts that the kind's device plugin is kept off; None where there is no DaemonSet."""
        try:
            live = await self.client.get(DAEMONSETS, self.namespace, f"device-plugin-{kind}")
        except NotFound:
            return None
        affinity = live["spec"]["template"]["spec"].get("affinity")
        if affinity is None:
            return []
        required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return list(required["nodeSelectorTerms"][0]["matchExpressions"][0]["values"])

    async def until_says(self, kind: str, **wanted: tuple[str, str] | None) -> Object:
        """Waits until conditions have (status, reason), or are not there; returns all, by type."""
        seen: dict[str, Object] = {}

        async def said() -> bool:
            seen.clear()
            seen.update({each["type"]: each for each in (await self.status(kind)).get("conditions") or ()})
            return all(
                (None if name not in seen else (seen[name]["status"], seen[name]["reason"])) == state
                for name, state in wanted.items()
            )

        await eventually(said, f"{kind} says {wanted}: {seen}")
        return seen


READY: dict[str, tuple[str, str] | None] = {"Ready": ("True", "Ready"), "Stalled": None}


def stalled(reason: str) -> dict[str, tuple[str, str] | None]:
    return {"Ready": ("False", reason), "Stalled": ("True", reason), "Reconciling": None}


@pytest.fixture
async def fleet(client: HttpClient, api_namespace: str) -> AsyncIterator[Owners]:
    made = Owners(client, api_namespace)
    yield made
    await made.close()


@pytest.fixture
async def reporters(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reporters]:
    made = Reporters()
    monkeypatch.setattr(controllers, "Reports", made.keep)
    yield made
    await made.close()


async def test_ours_is_not_rolled_out_beside_the_vendors_plugin_and_goes_on_when_that_has_gone(
    api_server: ApiServer, fleet: Owners, api_namespace: str, reporters: Reporters
) -> None:
    theirs, free = await fleet.host("a"), await fleet.host("b")
    await fleet.advertise(theirs, "npu", 4)
    async with whole_operator(api_server, api_namespace):
        kind = await fleet.kind("npu")
        said = await fleet.until_says(
            kind, DevicesAdvertised=("False", "ResourceNameConflict"), **stalled("ResourceNameConflict")
        )
        assert theirs in said["Stalled"]["message"]
        assert free not in said["Stalled"]["message"]
        assert await fleet.kept_off(kind) == [theirs]
        assert ("Warning", "ResourceNameConflict") in {each[:2] for each in await fleet.events(kind)}
        # Ours comes up on the other node: it is used, and still it is said.
        await fleet.pod(kind, free, await reporters.say(1, driver="1.2"))
        await fleet.advertise(free, "npu", 2)
        await fleet.until_says(kind, DevicesAdvertised=("True", "Advertised"), **stalled("ResourceNameConflict"))
        assert (await fleet.status(kind))["devices"]["total"] == 2
    # What another process makes of it rests on what the cluster says.
    async with whole_operator(api_server, api_namespace):
        await fleet.advertise(theirs, "npu", 0)

        async def goes_on() -> bool:
            return await fleet.kept_off(kind) == []

        await eventually(goes_on, "the device plugin is rolled out everywhere")
        await fleet.pod(kind, theirs, await reporters.say(2, driver="1.2"))
        await fleet.advertise(theirs, "npu", 4)

        async def all_are_counted() -> bool:
            status = await fleet.status(kind)
            drivers = [(each["driver"], each["nodes"]) for each in status.get("versions") or ()]
            return (status["devices"]["total"], drivers) == (6, [("1.2", 2)])

        await eventually(all_are_counted, "the devices and versions of both nodes are counted")
        await fleet.until_says(kind, **READY)


async def test_a_conflict_that_is_reported_is_told_until_the_report_is_another(
    api_server: ApiServer, fleet: Owners, api_namespace: str, reporters: Reporters
) -> None:
    node = await fleet.host("a")
    async with whole_operator(api_server, api_namespace):
        kind = await fleet.kind("npu")
        await fleet.pod(kind, node, await reporters.say(1))
        await fleet.advertise(node, "npu", 2)
        await fleet.until_says(kind, **READY)
        await reporters.say(1, conflict="the kubelet has GPU-7, which is not ours")
        said = await fleet.until_says(
            kind, DevicesAdvertised=("False", "ResourceNameConflict"), **stalled("ResourceNameConflict")
        )
        assert f"{node}: the kubelet has GPU-7" in said["Stalled"]["message"]
        assert await fleet.kept_off(kind) == [], "it stays to see the end"
        await reporters.say(1)
        await fleet.until_says(kind, **READY)


async def test_of_two_kinds_on_one_node_the_younger_waits(
    api_server: ApiServer, fleet: Owners, api_namespace: str
) -> None:
    shared, own = await fleet.host("a"), await fleet.host("b", zone="2")
    for node in (shared, own):
        await fleet.advertise(node, "npu", 4)
    adopted: Object = {"devicePlugin": None, "resourceName": fleet.resource("npu")}
    async with whole_operator(api_server, api_namespace):
        older = await fleet.kind("npu", **adopted)
        await fleet.until_says(older, **READY)
        await asyncio.sleep(1.1)  # creation times have seconds
        younger = await fleet.kind("second", **{**adopted, **PLUGIN})
        said = await fleet.until_says(younger, DevicesAdvertised=("False", "NodeConflict"), **stalled("NodeConflict"))
        assert f"AcceleratorResource {older}" in said["Stalled"]["message"]
        assert await fleet.kept_off(younger) is None
        await fleet.until_says(older, **READY)
        # The older one leaves the second node to the younger one, which adopts what is there.
        await fleet.kind("npu", **adopted, nodeSelector={"kubernetes.io/hostname": shared})
        await fleet.kind("second", **adopted, nodeSelector={"tests": api_namespace, "zone": "2"})
        await fleet.until_says(younger, **READY)
        assert (await fleet.status(younger))["devices"]["total"] == 4
        await fleet.until_kind(older, lambda status: status["devices"]["total"] == 4, "each has its own")
        # And who is deleted makes room.
        await fleet.kind("second", **adopted)
        await fleet.until_says(younger, **stalled("NodeConflict"))
        await fleet.client.delete(ACCELERATOR_RESOURCES, None, older)
        await fleet.until_says(younger, **READY)
        assert (await fleet.status(younger))["devices"]["total"] == 8


async def test_a_name_by_plugin_and_by_class_on_one_node_is_told(
    api_server: ApiServer, fleet: Owners, api_namespace: str
) -> None:
    both, plain = await fleet.host("a"), await fleet.host("b")
    for node in (both, plain):
        await fleet.advertise(node, "npu", 4)
    driver = f"{api_namespace}.test"
    pool = {"name": both, "generation": 1, "resourceSliceCount": 1}
    published = {
        "apiVersion": RESOURCE_SLICES.api_version,
        "kind": RESOURCE_SLICES.kind,
        "metadata": {"name": both},
        "spec": {"driver": driver, "nodeName": both, "pool": pool, "devices": [{"name": "d0"}]},
    }
    device_class = {
        "apiVersion": DEVICE_CLASSES.api_version,
        "kind": DEVICE_CLASSES.kind,
        "metadata": {"name": api_namespace},
        "spec": {
            "extendedResourceName": fleet.resource("npu"),
            "selectors": [{"cel": {"expression": f"device.driver == '{driver}'"}}],
        },
    }
    async with whole_operator(api_server, api_namespace):
        kind = await fleet.kind("npu", devicePlugin=None)
        await fleet.until_says(kind, **READY)
        await fleet.client.apply(DEVICE_CLASSES, device_class, field_manager="tests")
        await fleet.client.apply(RESOURCE_SLICES, published, field_manager="tests")
        said = await fleet.until_says(kind, DevicesAdvertised=("True", "Advertised"), **stalled("ResourceNameConflict"))
        assert both in said["Stalled"]["message"]
        assert plain not in said["Stalled"]["message"]
        assert (await fleet.status(kind))["devices"]["total"] == 4
        await fleet.client.delete(RESOURCE_SLICES, None, both)
        await fleet.until_says(kind, **READY)
        await fleet.client.delete(DEVICE_CLASSES, None, api_namespace)


async def test_an_adopted_kind_has_the_versions_that_the_vendors_labels_say(
    api_server: ApiServer, fleet: Owners, api_namespace: str
) -> None:
    for letter, version in (("a", "575.57.08"), ("b", "575.57.08"), ("c", "580.95.05")):
        node = await fleet.host(letter, **{"example.com/driver-version": version})
        await fleet.advertise(node, "gpu", 8)
    async with whole_operator(api_server, api_namespace):
        kind = await fleet.kind("gpu", devicePlugin=None, versionLabels={"driver": "example.com/driver-version"})
        await fleet.until_says(kind, **READY)
        assert (await fleet.status(kind))["versions"] == [
            {
                "driver": driver, "sdk": "", "firmware": "", "nodes": nodes, "devices": 8 * nodes, "free": 8 * nodes,
                "devicesByNode": [{"devices": 8, "nodes": nodes}], "freeByNode": [{"devices": 8, "nodes": nodes}],
            }
            for driver, nodes in (("575.57.08", 2), ("580.95.05", 1))
        ]  # fmt: skip


async def test_an_observer_runs_beside_a_vendors_plugin(
    api_server: ApiServer, fleet: Owners, api_namespace: str
) -> None:
    await fleet.advertise(await fleet.host("a"), "gpu", 8)
    observer = {"image": "acme/plugin:1", "args": ["--vendor=acme"]}
    async with whole_operator(api_server, api_namespace):
        kind = await fleet.kind("gpu", devicePlugin=None, observer=observer)
        await fleet.until_says(kind, **READY)
        live = await fleet.client.get(DAEMONSETS, api_namespace, f"device-observer-{kind}")
        (container,) = live["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["--observe", "--vendor=acme"]
        # Without it, it goes.
        await fleet.kind("gpu", devicePlugin=None)

        async def gone() -> bool:
            try:
                await fleet.client.get(DAEMONSETS, api_namespace, f"device-observer-{kind}")
            except NotFound:
                return True
            return False

        await eventually(gone, "the observer has gone")


EXAMPLES = {
    file.parent.name: yaml.safe_load(file.read_text())
    for file in sorted((Path(__file__).parents[2] / "examples").glob("adopt-*/*.yaml"))
}


@pytest.mark.parametrize("body", EXAMPLES.values(), ids=list(EXAMPLES))
async def test_the_examples_are_adopted_as_they_are(
    api_server: ApiServer, fleet: Owners, api_namespace: str, body: Object
) -> None:
    name, spec = body["metadata"]["name"], body["spec"]
    version = "1.2.3"
    node = await fleet.host("a", **spec["nodeSelector"], **dict.fromkeys(spec["versionLabels"].values(), version))
    amount = {spec["resourceName"]: "8"}
    live = await fleet.client.get(NODES, None, node)
    await fleet.client.apply_status(NODES, live, {"capacity": amount, "allocatable": amount})
    async with whole_operator(api_server, api_namespace):
        await fleet.client.apply(ACCELERATOR_RESOURCES, body, field_manager="tests")
        await fleet.until_says(name, **READY)
        status = await fleet.status(name)
        assert (status["nodes"], status["devices"]["total"]) == (1, 8)
        assert status["versions"][0]["driver"] == version
        await fleet.client.get(DAEMONSETS, api_namespace, f"device-observer-{name}")
        await fleet.client.delete(ACCELERATOR_RESOURCES, None, name)
