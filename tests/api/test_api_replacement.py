"""Devices fall ill under the real controllers of Kubernetes: Deployments, ReplicaSets and EndpointSlices as they are.

What is missing is a node: its scheduler and kubelet are the test's, and do what the documentation says of them.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import real_api
from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_api import names
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import DEPLOYMENTS, ENDPOINTSLICES, MODEL_DEPLOYMENTS, NODES, PODS, Resource
from rm_operator.plan.rejected import BATCH, KEPT
from whole_operator import WholeOperator, add_facts, build, whole_operator

Object = dict[str, Any]
CONTROLLERS = "deployment-controller,replicaset-controller,endpointslice-controller"
SECONDS = 180


@pytest.fixture
def controller_manager(api_server: ApiServer, tmp_path: Path) -> Iterator[None]:
    """kube-controller-manager with those who make pods and say where requests go."""
    with real_api.controller_manager(api_server, tmp_path, CONTROLLERS):
        yield


@dataclass
class NodeAgent:
    """A node of the namespace's name with devices: binds pods, runs them, allocates, tells health, ends pods."""

    client: HttpClient
    ns: str
    devices: int
    unwell: set[int] = field(default_factory=set)
    refusing: int = 0
    allocated: dict[str, int] = field(default_factory=dict)
    """uid → number of a device."""
    addresses: int = 0

    @property
    def resource(self) -> str:
        return f"{self.ns}.com/npu"

    async def register(self) -> None:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.ns, "labels": {"tests": self.ns}}}
        await self.client.create(NODES, node, field_manager="tests")
        await self.tell()

    async def tell(self) -> None:
        """The node's capacity."""
        node = await self.client.get(NODES, None, self.ns)
        amounts = {"capacity": self.devices, "allocatable": self.devices - len(self.unwell)}
        status = {what: {self.resource: str(number)} for what, number in amounts.items()}
        await self.client.apply_status(NODES, node, status)

    async def run(self) -> None:
        while True:
            for pod in (await self.client.list(PODS, self.ns)).items:
                with suppress(ApiError):  # whatever changed meanwhile is seen the next time
                    await self._look_after(pod)
            await asyncio.sleep(0.1)

    async def _look_after(self, pod: Object) -> None:
        metadata, status = pod["metadata"], pod.get("status") or {}
        number = self.allocated.get(metadata["uid"])
        if "deletionTimestamp" in metadata:
            path = PODS.path(self.ns, metadata["name"])
            body = b'{"apiVersion":"v1","kind":"DeleteOptions","gracePeriodSeconds":0}'
            await self.client._request("DELETE", PODS, path, body=body, content_type="application/json")
            self.allocated.pop(metadata["uid"], None)
        elif "nodeName" not in pod["spec"]:
            free = [each for each in range(self.devices) if each not in {*self.unwell, *self.allocated.values()}]
            if not free:
                return
            bindings = Resource("", "v1", f"pods/{metadata['name']}/binding", "Binding", True)
            target = {"apiVersion": "v1", "kind": "Node", "name": self.ns}
            named = {"name": metadata["name"], "namespace": self.ns}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": named, "target": target}
            await self.client.create(bindings, binding, field_manager="scheduler")
            if self.refusing:
                self.refusing -= 1
            else:
                self.allocated[metadata["uid"]] = free[0]
        elif number is None:
            if status.get("phase") != "Failed":
                message = "Pod was rejected: Allocate failed due to no healthy devices present, which is unexpected"
                await self._say(pod, {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": message})
        else:
            health = "Unhealthy" if number in self.unwell else "Healthy"
            told = {"name": self.resource, "resources": [{"resourceID": f"npu{number}", "health": health}]}
            last = (status.get("containerStatuses") or [{}])[0]
            if last.get("allocatedResourcesStatus") != [told]:
                await self._run_pod(pod, told)

    async def _run_pod(self, pod: Object, told: Object) -> None:
        ip = (pod.get("status") or {}).get("podIP")
        if ip is None:
            self.addresses += 1
            ip = f"10.9.0.{self.addresses}"
        engine = {
            "name": "engine", "image": "serve:1", "imageID": "x", "ready": True, "restartCount": 0, "started": True,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "allocatedResourcesStatus": [told],
        }  # fmt: skip
        conditions = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "ContainersReady", "Ready")]
        for entry in conditions:
            entry["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        addresses = {"podIP": ip, "podIPs": [{"ip": ip}]}
        await self._say(pod, {"phase": "Running", **addresses, "conditions": conditions, "containerStatuses": [engine]})

    async def _say(self, pod: Object, status: Object) -> None:
        metadata = {"name": pod["metadata"]["name"], "namespace": self.ns, "uid": pod["metadata"]["uid"]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
        await self.client.apply(PODS, body, field_manager="kubelet", subresource="status")

    async def endpoints(self) -> set[str]:
        """Pods to which requests go."""
        return {
            endpoint["targetRef"]["name"]
            for each in (await self.client.list(ENDPOINTSLICES, self.ns)).items
            for endpoint in each.get("endpoints") or ()
            if endpoint["conditions"].get("ready")
        }


@asynccontextmanager
async def _serving(
    server: ApiServer, client: HttpClient, ns: str, *, devices: int
) -> AsyncIterator[tuple[WholeOperator, NodeAgent]]:
    """A deployment ``d`` with two pods that serve, on a node with so many devices."""
    node = NodeAgent(client, ns, devices)
    await node.register()
    target = {"type": "NPU", "vendor": ns}
    accelerator = {
        **target, "product": "x", "resourceName": node.resource, "nodeSelector": {"tests": ns},
        "runtime": {"plugin": "p", "image": "serve:1"},
    }  # fmt: skip
    step = {"name": "compile", "image": "cc:1", "command": ["cc"]}
    await apply(client, custom_object("AcceleratorResource", accelerator, ns, ns))
    await apply(
        client, custom_object("BuildProfile", {"target": target, "steps": [step], "output": {"format": "f"}}, ns, ns)
    )
    await add_facts(client, ns, "hf://acme/model")
    spec = {"model": {"source": "hf://acme/model"}, "accelerators": {"names": [ns]}, "replicas": 2}
    await apply(client, custom_object("ModelDeployment", spec, ns, "d"))
    agent = asyncio.create_task(node.run())
    try:
        async with whole_operator(server, ns) as running:
            await build(client, ns, "d")
            await eventually(lambda: _says(client, ns, "Ready", "Ready"), "it serves", SECONDS)
            await eventually(lambda: _reached(node, 2), "two pods are reached", SECONDS)
            yield running, node
            assert not agent.done()
    finally:
        agent.cancel()


async def _condition(client: HttpClient, ns: str, kind: str) -> Object:
    live = await client.get(MODEL_DEPLOYMENTS, ns, "d")
    conditions = (live.get("status") or {}).get("conditions") or ()
    return next((entry for entry in conditions if entry["type"] == kind), {"reason": "", "message": ""})


async def _says(client: HttpClient, ns: str, kind: str, reason: str) -> bool:
    return bool((await _condition(client, ns, kind))["reason"] == reason)


async def _pods(client: HttpClient, ns: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in (await client.list(PODS, ns)).items}


async def _gone(client: HttpClient, ns: str, pod: str) -> bool:
    return pod not in await _pods(client, ns)


async def _reached(node: NodeAgent, number: int) -> bool:
    return len(await node.endpoints()) == number


@pytest.mark.usefixtures("controller_manager")
async def test_just_the_pod_on_the_sick_device_is_replaced_and_no_request_goes_astray(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    async with _serving(api_server, client, api_namespace, devices=3) as (running, node):
        before = {pod["metadata"]["name"]: pod for pod in (await client.list(PODS, api_namespace)).items}
        ill = next(name for name, pod in before.items() if node.allocated[pod["metadata"]["uid"]] == 0)
        node.unwell = {0}
        await node.tell()

        async def replaced() -> bool:
            reached = await node.endpoints()
            assert len(reached) >= 2, "never a dip"
            return ill not in reached and await _says(client, api_namespace, "DevicesHealthy", "AllHealthy")

        await eventually(replaced, "another pod took over", SECONDS)
        await eventually(lambda: _gone(client, api_namespace, ill), "it has ended", SECONDS)
        await eventually(lambda: running.idle, "it comes to rest")
        after = await _pods(client, api_namespace)
        assert set(before) - after == {ill}
        assert sorted(node.allocated.values()) == [1, 2]
        (deployment,) = (await client.list(DEPLOYMENTS, api_namespace)).items
        assert deployment["spec"]["replicas"] == 2
        assert await _says(client, api_namespace, "Ready", "Ready")

        # There is no further device: what falls ill now serves on, and that is said.
        node.unwell = {0, 1}
        await node.tell()

        async def told() -> bool:
            return "serves on" in (await _condition(client, api_namespace, "DevicesHealthy"))["message"]

        await eventually(told, "it is said that no device is free", SECONDS)
        assert len(await node.endpoints()) == 2
        assert await _says(client, api_namespace, "Ready", "Ready")
        # It recovers. A kubelet tells of its pods at once, and of itself every few seconds.
        node.unwell = {0}
        await eventually(lambda: _says(client, api_namespace, "DevicesHealthy", "AllHealthy"), "it is well", SECONDS)
        await node.tell()
        await eventually(lambda: running.idle, "it comes to rest")
        assert await _pods(client, api_namespace) == after


@pytest.mark.usefixtures("controller_manager")
async def test_pods_that_the_kubelet_refuses_are_cleared_away_and_told_of(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    async with _serving(api_server, client, api_namespace, devices=3) as (running, node):
        node.refusing = BATCH + KEPT
        spec = {"model": {"source": "hf://acme/model"}, "accelerators": {"names": [api_namespace]}, "replicas": 3}
        await apply(client, custom_object("ModelDeployment", spec, api_namespace, "d"))

        async def three() -> bool:
            return await _reached(node, 3) and await _says(client, api_namespace, "Ready", "Ready")

        await eventually(three, "a third pod serves", SECONDS)

        async def cleared() -> bool:
            pods = (await client.list(PODS, api_namespace, label_selector=names.LABEL_VARIANT)).items
            assert len([pod for pod in pods if pod["status"].get("phase") != "Failed"]) == 3
            return len(pods) == 3 + KEPT

        await eventually(cleared, "but for the evidence, they are gone", SECONDS)
        message = (await _condition(client, api_namespace, "Available"))["message"]
        assert f"the kubelet of node {api_namespace} refuses pods again and again: UnexpectedAdmissionError" in message
        assert running.metric("rm_operator_admission_failures_total") == BATCH
