"""Devices that pods request by class, against a real API server: counted, promised, told; and where it has none."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from api_proxy import ApiProxy
from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_api.names import FIELD_MANAGER_IN_USE
from rm_operator import app
from rm_operator.kube.auth import Connection
from rm_operator.kube.errors import NotFound
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    DEPLOYMENTS,
    DEVICE_CLASSES,
    MODEL_DEPLOYMENTS,
    NODES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
)
from whole_operator import add_facts, build, whole_operator

Object = dict[str, Any]


class Cluster:
    """Two nodes with two devices each of driver ``NS.com``, a class of them, and a kind that is requested by it."""

    def __init__(self, client: HttpClient, namespace: str) -> None:
        self.client = client
        self.ns = namespace
        self.driver = f"{namespace}.com"
        self.resource = f"deviceclass.resource.kubernetes.io/{namespace}"

    async def add(self, *, device_class: bool = True, **spec: Any) -> None:
        """All of that; ``spec`` is of the kind."""
        for node in self.nodes:
            metadata = {"name": node, "labels": {"tests": self.ns}}
            await self.client.create(
                NODES, {"apiVersion": "v1", "kind": "Node", "metadata": metadata}, field_manager="t"
            )
            await self.slice(node, {}, {})
        if device_class:
            await self.device_class(f"device.driver == '{self.driver}'")
        target = {"type": "NPU", "vendor": self.ns}
        kind = {
            **target, "product": "x", "deviceClassName": self.ns, "nodeSelector": {"tests": self.ns},
            "runtime": {"plugin": "p", "image": "serve:1"}, **spec,
        }  # fmt: skip
        step = {"name": "compile", "image": "cc:1", "command": ["cc"]}
        recipe = {"target": target, "steps": [step], "output": {"format": "f"}}
        await apply(self.client, custom_object("AcceleratorResource", kind, self.ns, self.ns))
        await apply(self.client, custom_object("BuildProfile", recipe, self.ns, self.ns))
        await add_facts(self.client, self.ns, "hf://acme/model")

    @property
    def nodes(self) -> list[str]:
        return [f"{self.ns}-a", f"{self.ns}-b"]

    async def device_class(self, expression: str, **spec: Any) -> None:
        """The class; what is written of it by hand."""
        body = {"selectors": [{"cel": {"expression": expression}}], **spec}
        await self.client.apply(DEVICE_CLASSES, self._object(DEVICE_CLASSES, self.ns, body), field_manager="tests")

    async def slice(self, node: str, *devices: Object) -> None:
        """The devices of a node, by what is said of them."""
        pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
        named = [{"name": f"d{number}", **each} for number, each in enumerate(devices)]
        body = {"driver": self.driver, "nodeName": node, "pool": pool, "devices": named}
        await self.client.apply(RESOURCE_SLICES, self._object(RESOURCE_SLICES, node, body), field_manager="tests")

    async def claim(self, name: str, node: str, device: str) -> None:
        """A claim that the scheduler has given a device."""
        request = {"name": "r", "exactly": {"deviceClassName": self.ns}}
        body = self._object(RESOURCE_CLAIMS, name, {"devices": {"requests": [request]}}, namespace=self.ns)
        made = await self.client.create(RESOURCE_CLAIMS, body, field_manager="tests")
        result = {"request": "r", "driver": self.driver, "pool": node, "device": device}
        await self.client.apply_status(RESOURCE_CLAIMS, made, {"allocation": {"devices": {"results": [result]}}})

    async def counts(self) -> tuple[int, int, int, int]:
        """Nodes, and devices: all, healthy, allocated."""
        status = (await self.client.get(ACCELERATOR_RESOURCES, None, self.ns)).get("status") or {}
        devices = status.get("devices") or {}
        return status.get("nodes", 0), *(devices.get(each, 0) for each in ("total", "healthy", "allocated"))  # type: ignore[return-value]

    async def become(self, *counts: int) -> None:
        """Wait for these counts."""

        async def reached() -> bool:
            return await self.counts() == counts

        await eventually(reached, f"the counts are {counts}")

    async def says(self, reason: str, *words: str) -> None:
        """Wait for what DevicesAdvertised says."""
        said: Object = {}

        async def reached() -> bool:
            status = (await self.client.get(ACCELERATOR_RESOURCES, None, self.ns)).get("status") or {}
            found = [each for each in status.get("conditions") or [] if each["type"] == "DevicesAdvertised"]
            said.update(found[0] if found else {})
            return said.get("reason") == reason and all(word in said["message"] for word in words)

        try:
            await eventually(reached, f"{reason}: {words}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {said}") from None

    async def deploy(self, name: str) -> None:
        """A deployment that may be placed here only."""
        spec = {"model": {"source": "hf://acme/model"}, "accelerators": {"names": [self.ns]}}
        await apply(self.client, custom_object("ModelDeployment", spec, self.ns, name))

    async def placed(self) -> set[str]:
        """Deployments that have a place, once it is known of all."""
        found: dict[str, str] = {}

        async def known() -> bool:
            for each in (await self.client.list(MODEL_DEPLOYMENTS, self.ns)).items:
                conditions = (each.get("status") or {}).get("conditions") or []
                said = (c["reason"] for c in conditions if c["type"] == "Placed")
                found[each["metadata"]["name"]] = next(said, "")
            return set(found.values()) <= {"Placed", "NoEligibleAccelerator"}

        await eventually(known, "it is known who has a place")
        return {name for name, reason in found.items() if reason == "Placed"}

    async def become_placed(self, count: int) -> set[str]:
        """Wait until so many have a place."""

        async def reached() -> bool:
            return len(await self.placed()) == count

        await eventually(reached, f"{count} have a place")
        return await self.placed()

    async def remove(self) -> None:
        """What other tests would stumble over: all of it is cluster-scoped."""
        for resource in (RESOURCE_SLICES, NODES):
            for node in self.nodes:
                await self.client.delete(resource, None, node)
        await self.client.delete(DEVICE_CLASSES, None, self.ns)
        live = await self.client.get(ACCELERATOR_RESOURCES, None, self.ns)
        if live["metadata"].get("finalizers"):
            bare = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": {"name": self.ns}}
            await self.client.apply(ACCELERATOR_RESOURCES, bare, field_manager=FIELD_MANAGER_IN_USE)
        await self.client.delete(ACCELERATOR_RESOURCES, None, self.ns)

    def _object(self, resource: Any, name: str, spec: Object, **metadata: str) -> Object:
        typed = {"apiVersion": resource.api_version, "kind": resource.kind}
        return {**typed, "metadata": {"name": name, **metadata}, "spec": spec}


TAINT: Object = {"taints": [{"key": "acme.com/unhealthy", "effect": "NoSchedule"}]}


async def test_devices_are_counted_as_slices_and_claims_say(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    cluster = Cluster(client, api_namespace)
    await cluster.add()
    node = cluster.nodes[0]
    async with whole_operator(api_server, api_namespace) as running:
        await cluster.become(2, 4, 4, 0)
        await cluster.says("Advertised", "4 of 4", cluster.resource, "2 nodes")
        await cluster.claim("c", node, "d1")
        await cluster.become(2, 4, 4, 1)
        await cluster.slice(node, TAINT, {})
        await cluster.become(2, 4, 3, 1)
        await cluster.slice(node, {}, {}, {})
        await cluster.become(2, 5, 5, 1)
        await client.delete(RESOURCE_SLICES, None, node)
        await cluster.become(1, 2, 2, 0)
        await cluster.device_class(f"device.driver == '{cluster.driver}' && 'acme.com' in device.attributes")
        await cluster.says("NotCounted", "'acme.com' in device.attributes")
        await client.delete(DEVICE_CLASSES, None, cluster.ns)
        await cluster.says("NoDevices", "there is no DeviceClass", "install the vendor's DRA driver")
        await eventually(lambda: running.idle, "it comes to rest")
    await cluster.remove()


async def test_a_device_by_class_is_promised_once_and_requested_by_its_implied_resource(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    cluster = Cluster(client, api_namespace)
    await cluster.add()
    node = cluster.nodes[0]
    await cluster.claim("others", node, "d0")
    async with whole_operator(api_server, api_namespace):
        await cluster.become(2, 4, 4, 1)
        for number in range(5):
            await cluster.deploy(f"d{number}")
        placed = await cluster.become_placed(3)
        await client.delete(RESOURCE_CLAIMS, cluster.ns, "others")
        assert placed < await cluster.become_placed(4)
        name = min(placed)
        await build(client, cluster.ns, name)

        async def there() -> bool:
            return bool((await client.list(DEPLOYMENTS, cluster.ns)).items)

        await eventually(there, "its pods are asked for")
        serving = (await client.list(DEPLOYMENTS, cluster.ns)).items[0]
        template = serving["spec"]["template"]
        (container,) = template["spec"]["containers"]
        assert container["resources"]["limits"] == {cluster.resource: "1"}
        # What the launcher counts is announced by device plugins and drivers of ours; this driver is another's.
        assert "--require-devices=0" in container["command"]
        # Here nobody makes pods of it, but the API server would take them.
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": "p"},
            "spec": template["spec"],
        }
        made = await client.create(
            PODS, {**pod, "metadata": {**pod["metadata"], "namespace": cluster.ns}}, field_manager="t"
        )
        assert made["spec"]["containers"][0]["resources"]["requests"][cluster.resource] == "1"
    await cluster.remove()


async def test_a_driver_of_ours_brings_its_class(api_server: ApiServer, client: HttpClient, api_namespace: str) -> None:
    cluster = Cluster(client, api_namespace)
    plugin: Object = {"image": "driver:1", "extendedResourceName": "acme.com/npu"}
    await cluster.add(device_class=False, devicePlugin=plugin)
    kind = f"{cluster.ns}.rm-abstract.io"

    def made(check: Callable[[Object], bool]) -> Callable[[], Any]:
        async def reached() -> bool:
            try:
                return check(await client.get(DEVICE_CLASSES, None, cluster.ns))
            except NotFound:
                return False

        return reached

    async with whole_operator(api_server, api_namespace):
        await eventually(made(lambda found: found["spec"].get("extendedResourceName") == "acme.com/npu"), "it is there")
        found = await client.get(DEVICE_CLASSES, None, cluster.ns)
        assert kind in found["spec"]["selectors"][0]["cel"]["expression"]
        edited = {"extendedResourceName": "evil.com/npu"}
        await cluster.device_class("device.driver == 'evil'", **edited)
        await eventually(
            made(lambda found: kind in json.dumps(found) and "evil" not in json.dumps(found["spec"])), "mended"
        )
        await cluster.says("NoDevices", "no node advertises a healthy")
        live = await client.get(ACCELERATOR_RESOURCES, None, cluster.ns)
        other = {**live["spec"], "deviceClassName": f"{cluster.ns}-2"}
        await apply(client, custom_object("AcceleratorResource", other, cluster.ns, cluster.ns))

        async def renamed() -> bool:
            names = {each["metadata"]["name"] for each in (await client.list(DEVICE_CLASSES)).items}
            return f"{cluster.ns}-2" in names and cluster.ns not in names

        await eventually(renamed, "the class has the new name, and the old one is gone")
    await client.delete(DEVICE_CLASSES, None, f"{cluster.ns}-2")
    await cluster.remove()


async def test_a_class_of_somebody_else_is_left_alone(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    cluster = Cluster(client, api_namespace)
    await cluster.add(devicePlugin={"image": "driver:1"})

    async def refused() -> bool:
        status = (await client.get(ACCELERATOR_RESOURCES, None, cluster.ns)).get("status") or {}
        said = {each["reason"]: each["message"] for each in status.get("conditions") or []}
        return "was not made by RM Abstract" in said.get("NameTaken", "")

    async with whole_operator(api_server, api_namespace):
        await eventually(refused, "it says whose the class is")
    found = await client.get(DEVICE_CLASSES, None, cluster.ns)
    assert found["spec"]["selectors"][0]["cel"]["expression"] == f"device.driver == '{cluster.driver}'"
    await cluster.remove()


class OldServer(ApiProxy):
    """The API server, as one that is too old says of itself, until it is ``upgraded``."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(server)
        self.upgraded = False

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/version" and not self.upgraded:
            return web.json_response({"major": "1", "minor": "33+"})
        if request.path.startswith("/apis/resource.k8s.io") and not self.upgraded:
            return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)
        return await super()._handle(request)


class _Behind:
    """An API server behind a proxy, as whole_operator takes it."""

    def __init__(self, proxy: ApiProxy) -> None:
        self._proxy = proxy

    def connection(self) -> Connection:
        return self._proxy.connection


async def test_where_there_are_no_classes_it_says_so_and_all_else_works(
    api_server: ApiServer, client: HttpClient, api_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CLASSES_POLL_SECONDS", 0.5)
    cluster = Cluster(client, api_namespace)
    await cluster.add(device_class=False, devicePlugin={"image": "driver:1"})
    async with OldServer(api_server) as proxy, whole_operator(_Behind(proxy), api_namespace) as running:  # type: ignore[arg-type]
        await cluster.says("NoDevices", "deviceClassName needs Kubernetes 1.36", "the API server is 1.33")
        await cluster.deploy("d")
        assert await cluster.placed() == set()
        await eventually(lambda: running.idle, "it comes to rest")
        assert [each.path for each in proxy.writes if "resource.k8s.io" in each.path] == []
        proxy.upgraded = True

        async def made() -> bool:
            names = {each["metadata"]["name"] for each in (await client.list(DEVICE_CLASSES)).items}
            return cluster.ns in names

        await eventually(made, "once it is new enough, nobody has to restart anything")
        await cluster.says("NoDevices", "no node advertises a healthy")
    await cluster.remove()
