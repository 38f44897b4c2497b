"""A server that speaks the kubelet's Pod Resources API v1 over a real socket, and says what a test wrote on it."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from rm_device_plugins import kubelet_api
from rm_device_plugins.pod_resources import SERVICE
from rm_device_plugins.proto.podresources.v1 import api_pb2 as pb


@dataclass(eq=False)
class PodResourcesServer:
    """``async with PodResourcesServer(path) as kubelet: kubelet.give(…)``."""

    path: Path
    calls: int = 0
    refuse: grpc.StatusCode | None = None
    hold: asyncio.Event | None = None
    """Calls wait for it."""
    pods: dict[tuple[str, str], pb.PodResources] = field(default_factory=dict)
    offered: dict[str, list[str]] = field(default_factory=dict)
    """Healthy IDs by resource."""
    _server: Any = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((kubelet_api.handlers(SERVICE, self, pb),))
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()

    async def stop(self) -> None:
        """As a kubelet that ends; its socket goes with it."""
        await self._server.stop(0)

    def give(
        self, pod: str, resource: str, ids: Iterable[str], *, namespace: str = "default", container: str = "main"
    ) -> None:
        """Gives a pod's container devices of a plugin, one entry a device, as the kubelet's topology does."""
        made = self.pods.setdefault((namespace, pod), pb.PodResources(name=pod, namespace=namespace))
        has = next((each for each in made.containers if each.name == container), None) or made.containers.add(
            name=container
        )
        for device_id in ids:
            has.devices.add(resource_name=resource, device_ids=[device_id])

    def claim(self, pod: str, driver: str, device: str) -> None:
        """Gives a pod a device of a driver."""
        made = self.pods.setdefault(("default", pod), pb.PodResources(name=pod, namespace="default"))
        claims = made.containers.add(name="main").dynamic_resources.add(claim_name="c", claim_namespace="default")
        claims.claim_resources.add(driver_name=driver, pool_name="node", device_name=device)

    def end(self, pod: str, namespace: str = "default") -> None:
        del self.pods[(namespace, pod)]

    async def _begin(self, context: Any) -> None:
        self.calls += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.refuse is not None:
            await context.abort(self.refuse, "as the test wants it")

    async def list(self, request: pb.ListPodResourcesRequest, context: Any) -> pb.ListPodResourcesResponse:
        await self._begin(context)
        return pb.ListPodResourcesResponse(pod_resources=self.pods.values())

    async def get(self, request: pb.GetPodResourcesRequest, context: Any) -> pb.GetPodResourcesResponse:
        await self._begin(context)
        pod = self.pods.get((request.pod_namespace, request.pod_name))
        if pod is None:
            await context.abort(grpc.StatusCode.UNKNOWN, f"pod {request.pod_name} is not found")
        return pb.GetPodResourcesResponse(pod_resources=pod)

    async def get_allocatable_resources(
        self, request: pb.AllocatableResourcesRequest, context: Any
    ) -> pb.AllocatableResourcesResponse:
        await self._begin(context)
        answer = pb.AllocatableResourcesResponse(cpu_ids=[0, 1])
        for resource, ids in self.offered.items():
            for device_id in ids:
                topology = pb.TopologyInfo(nodes=[pb.NUMANode(ID=1)])
                answer.devices.add(resource_name=resource, device_ids=[device_id], topology=topology)
        return answer
