"""The device manager of a kubelet, without the rest: what a plugin is tested against.

It behaves as Kubernetes 1.36 does where a plugin can tell: it wipes sockets when it starts, connects back and asks for
the options inside Register, keeps the devices of a plugin whose stream ended but allocates none of them, and, as of a
resource it knows one client only, drops the newest one when any stream of that resource ends. ``by_socket=True`` is
the later behaviour, where the end of an old instance's stream does not harm its successor.
"""

import asyncio
import json
import socket
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from rm_device_plugins import kubelet_api
from rm_device_plugins.config import ConfigError, check_resource_name
from rm_device_plugins.conformance.model import Violation
from rm_device_plugins.conformance.watch import Snapshot
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb

DIAL_SECONDS = 10.0
CHECKPOINT = "kubelet_internal_checkpoint"
_TICK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call of Register, at the moment of its arrival."""

    at: float
    """``time.monotonic()``"""
    resource: str
    endpoint: str
    served: bool
    """Somebody listened on the endpoint already."""
    options: pb.DevicePluginOptions


@dataclass(eq=False, slots=True)
class Endpoint:
    """A plugin's socket that was registered, and the connection to it."""

    name: str
    channel: Any
    client: kubelet_api.DevicePluginClient
    options: pb.DevicePluginOptions
    task: "asyncio.Task[None] | None" = None
    streaming: bool = False


@dataclass(eq=False, slots=True)
class Resource:
    """What the device manager keeps of a resource."""

    endpoint: Endpoint | None = None
    """The newest registration; None once it was disconnected."""
    client: Endpoint | None = None
    """The one that is disconnected when a stream ends: the newest, until a registration has failed."""
    healthy: set[str] = field(default_factory=set)
    unhealthy: set[str] = field(default_factory=set)
    allocated: set[str] = field(default_factory=set)
    open: list[Endpoint] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    low: int = 0
    """The smallest number of allocatable devices since ``watch_low``."""


class FakeKubelet:
    """Serves Registration in ``directory``, and consumes the plugins that register there."""

    def __init__(self, directory: Path, *, by_socket: bool = False) -> None:
        self.directory = directory
        self.by_socket = by_socket
        self.resources: dict[str, Resource] = {}
        self.registrations: list[pb.RegisterRequest] = []
        self.arrivals: list[Arrival] = []
        self.problems: list[str] = []
        """Why calls of Register failed."""
        self.abandoned = 0
        """Calls of Register that the plugin gave up while they were held."""
        self.refuse: Callable[[pb.RegisterRequest], str] = lambda request: ""
        """Why Register fails; empty if it does not."""
        self.hold: asyncio.Event | None = None
        """Register does not answer before this is set."""
        self._server: Any = None

    @property
    def socket_path(self) -> Path:
        """Where plugins find it."""
        return self.directory / kubelet_api.KUBELET_SOCKET

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self, *, wipe: bool = True, before_bind: Callable[[], None] = lambda: None) -> None:
        """Removes every socket in the directory and serves; devices are known again when plugins have registered.

        Without ``wipe`` only its own socket is new, as where something else than the kubelet keeps the directory.
        ``before_bind`` is called right before the new socket's file is made.
        """
        for path in self.directory.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode) and (wipe or path == self.socket_path):
                path.unlink()
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((kubelet_api.handlers(kubelet_api.REGISTRATION, self),))
        before_bind()
        self._server.add_insecure_port(f"unix:{self.socket_path}")
        await self._server.start()

    async def stop(self, *, killed: bool = False) -> None:
        """Closes all connections. ``killed`` leaves a socket behind on which nobody listens."""
        server, self._server = self._server, None
        # First of all nobody answers any more: a kubelet that ends a stream and goes on is another matter.
        if server is not None:
            await server.stop(0)
        endpoints = [endpoint for resource in self.resources.values() for endpoint in resource.open]
        for endpoint in endpoints:
            if endpoint.task is not None:
                endpoint.task.cancel()
        await asyncio.gather(*(e.task for e in endpoints if e.task is not None), return_exceptions=True)
        for endpoint in endpoints:
            await endpoint.channel.close()
        for resource in self.resources.values():
            resource.endpoint = resource.client = None
            resource.healthy, resource.unhealthy, resource.open = set(), set(), []
        if killed:
            with socket.socket(socket.AF_UNIX) as leftover:
                leftover.bind(str(self.socket_path))

    async def restart(self, *, killed: bool = False, wipe: bool = True) -> None:
        """Ends and starts, as an update of the kubelet does."""
        await self.stop(killed=killed)
        await self.start(wipe=wipe)

    async def register(self, request: pb.RegisterRequest, context: Any) -> pb.Empty:
        """Registration.Register."""
        self.registrations.append(request)
        # As the kubelet joins it: an absolute endpoint does not leave the directory.
        path = f"{self.directory}/{request.endpoint}"
        now = time.monotonic()
        self.arrivals.append(Arrival(now, request.resource_name, request.endpoint, listens(path), request.options))
        problem = self.refuse(request)
        if request.version != kubelet_api.VERSION:
            problem = f"requested API version {request.version!r} is not supported by kubelet"
        try:
            check_resource_name(request.resource_name)
        except ConfigError:
            problem = f"the ResourceName {request.resource_name!r} is invalid"
        if problem:
            self.problems.append(problem)
            await context.abort(grpc.StatusCode.UNKNOWN, problem)
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.abandoned += 1
                raise
        channel = kubelet_api.channel(path)
        client = kubelet_api.DevicePluginClient(channel)
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await channel.channel_ready()
            options = await client.get_device_plugin_options(pb.Empty())
        except asyncio.CancelledError:
            self.problems.append(f"failed to dial device plugin {request.endpoint}: until the plugin gave up Register")
            await channel.close()
            raise
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            await channel.close()
            words = error.details() if isinstance(error, grpc.aio.AioRpcError) else f"not within {DIAL_SECONDS:g} s"
            self.problems.append(f"failed to dial device plugin {request.endpoint}: {words}")
            self.resource(request.resource_name).client = None
            await context.abort(grpc.StatusCode.UNKNOWN, self.problems[-1])
        resource = self.resources.setdefault(request.resource_name, Resource())
        endpoint = Endpoint(request.endpoint, channel, client, options)
        resource.endpoint = resource.client = endpoint
        resource.open.append(endpoint)
        endpoint.task = asyncio.ensure_future(self._consume(resource, endpoint))
        return pb.Empty()

    async def _consume(self, resource: Resource, endpoint: Endpoint) -> None:
        try:
            async for message in endpoint.client.list_and_watch(pb.Empty()):
                endpoint.streaming = True
                self._receive(resource, endpoint, message)
        except grpc.aio.AioRpcError:
            pass
        finally:
            endpoint.streaming = False
            if endpoint in resource.open:
                resource.open.remove(endpoint)
        dropped = endpoint if self.by_socket else resource.client
        await endpoint.channel.close()
        if dropped is None:
            return
        if dropped is resource.client:
            resource.client = None
        if dropped is resource.endpoint:
            resource.endpoint = None
            resource.unhealthy |= resource.healthy
            resource.healthy = set()
            self._low(resource)
        if dropped is not endpoint:
            await dropped.channel.close()

    def _receive(self, resource: Resource, endpoint: Endpoint, message: pb.ListAndWatchResponse) -> None:
        snapshot = Snapshot.of(message, endpoint.name)
        resource.snapshots.append(snapshot)
        resource.healthy = set(snapshot.healthy)
        resource.unhealthy = snapshot.health.keys() - resource.healthy
        self._low(resource)
        self._checkpoint()

    def _checkpoint(self) -> None:
        registered = {name: sorted(each.healthy) for name, each in self.resources.items()}
        content = {"Data": {"PodDeviceEntries": None, "RegisteredDevices": registered}, "Checksum": 0}
        (self.directory / CHECKPOINT).write_text(json.dumps(content))

    @staticmethod
    def _low(resource: Resource) -> None:
        resource.low = min(resource.low, len(resource.healthy))

    def resource(self, name: str) -> Resource:
        """What is known of a resource; empty if nothing is."""
        return self.resources.setdefault(name, Resource())

    def capacity(self, name: str) -> int:
        """Devices of the resource as the node's capacity shows them."""
        return len(self.resource(name).healthy) + len(self.resource(name).unhealthy)

    def allocatable(self, name: str) -> int:
        """Devices that the scheduler may count on."""
        return len(self.resource(name).healthy)

    def streams(self, name: str) -> int:
        """Open ListAndWatch streams of the resource that have delivered a list."""
        return sum(endpoint.streaming for endpoint in self.resource(name).open)

    def connected(self, name: str) -> str:
        """File name of the socket that allocations of the resource go to; empty if there is none."""
        endpoint = self.resource(name).endpoint
        return endpoint.name if endpoint is not None else ""

    def watch_low(self, name: str) -> None:
        """Begins to record the smallest number of allocatable devices in ``resource(name).low``."""
        self.resource(name).low = self.allocatable(name)

    async def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Waits for a condition; returns the seconds that it took, or raises Violation with what is known."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds:
                raise Violation(f"not within {seconds:g} s: {what}; {self.describe()}")
            await asyncio.sleep(_TICK_SECONDS)
        return time.monotonic() - started

    async def until_allocatable(self, name: str, count: int, seconds: float = 30.0) -> float:
        """Waits until exactly ``count`` devices can be allocated over exactly one stream."""
        return await self.until(
            lambda: self.allocatable(name) == count and self.streams(name) == 1,
            seconds,
            f"{count} allocatable {name} over one stream",
        )

    def describe(self) -> str:
        """What is known, for a message."""
        known = {
            name: {"healthy": sorted(r.healthy), "unhealthy": sorted(r.unhealthy), "streams": self.streams(name)}
            for name, r in self.resources.items()
        }
        return f"registrations: {len(self.registrations)}, resources: {known}"

    def client(self, name: str) -> kubelet_api.DevicePluginClient:
        """The connection that calls of this resource go over."""
        endpoint = self.resource(name).endpoint
        if endpoint is None:
            raise AssertionError(f"no plugin for {name} is connected; {self.describe()}")
        return endpoint.client

    async def admit(self, name: str, count: int) -> tuple[Sequence[str], pb.ContainerAllocateResponse]:
        """Gives a container ``count`` devices as the device manager does: the preferred ones, then any others."""
        resource, client = self.resource(name), self.client(name)
        free = sorted(resource.healthy - resource.allocated)
        if len(free) < count:
            raise AssertionError(f"{count} devices of {name} are wanted, and {len(free)} are free")
        wish = pb.ContainerPreferredAllocationRequest(available_deviceIDs=free, allocation_size=count)
        answer = await client.get_preferred_allocation(pb.PreferredAllocationRequest(container_requests=[wish]))
        preferred = [each for each in answer.container_responses[0].deviceIDs if each in free]
        chosen = [*preferred, *(each for each in free if each not in preferred)][:count]
        request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=chosen)])
        response = await client.allocate(request)
        resource.allocated |= set(chosen)
        return chosen, response.container_responses[0]


def listens(path: str) -> bool:
    """True if somebody listens on the unix socket ``path``."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its queue is full, so there is one
        except OSError:
            return False
    return True
