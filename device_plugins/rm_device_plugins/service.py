"""The gRPC service ``DevicePlugin`` of one socket: translation, streams, and error codes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from rm_device_plugins.allocator import Allocator, RequestError, UnusableError, environment
from rm_device_plugins.inventory import Inventory, Snapshot
from rm_device_plugins.kubelet_api import HEALTHY, UNHEALTHY
from rm_device_plugins.logs import Log
from rm_device_plugins.metrics import Metrics
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb
from rm_device_plugins.tool import DeadlineError
from rm_device_plugins.vendor import Allocation, Device, DeviceNode

log = Log("service")

COALESCE_SECONDS = 0.25
"""At least this long between two lists on one stream: the kubelet writes its checkpoint for each."""


@dataclass(eq=False, slots=True)
class Stream:
    """An open ListAndWatch. ``kubelet`` is what ``stream_opened`` returned when it was opened."""

    kubelet: object = None


@dataclass(eq=False)
class PluginService:
    """Serves one socket. ``stream_opened`` and ``stream_closed`` tell the registrar of the kubelet's streams."""

    inventory: Inventory
    allocator: Allocator
    metrics: Metrics
    stream_opened: Callable[[], object]
    stream_closed: Callable[[], None]
    streams: set[Stream] = field(default_factory=set)
    leaving: bool = False
    """True once another instance is to have the devices: a registration that comes now is to fail."""
    opened: int = 0
    """Streams that were ever opened."""
    _closing: asyncio.Event = field(default_factory=asyncio.Event)
    _speaking: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._speaking.set()

    def mute(self, muted: bool) -> None:
        """Keeps the streams open and says nothing on them: to the kubelet, a list of ours replaces that of another
        plugin of the same name, and the end of a stream may end that one's registration. Or goes on.
        """
        (self._speaking.clear if muted else self._speaking.set)()

    def close(self) -> None:
        """Ends the streams, so that stopping the server waits only for calls."""
        self._closing.set()

    def options(self) -> pb.DevicePluginOptions:
        """What the kubelet may call."""
        return pb.DevicePluginOptions(
            pre_start_required=self.allocator.pre_start_required, get_preferred_allocation_available=True
        )

    async def get_device_plugin_options(self, request: pb.Empty, context: Any) -> pb.DevicePluginOptions:
        """What the kubelet may call; it asks while it handles Register."""
        del request
        if self.leaving:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this instance leaves")
        return self.options()

    async def list_and_watch(self, request: pb.Empty, context: Any) -> AsyncIterator[pb.ListAndWatchResponse]:
        """The full list at once, and then whenever it differs from the one that was sent last."""
        del request, context
        stream = Stream()
        self.streams.add(stream)
        self.opened += 1
        stream.kubelet = self.stream_opened()
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            snapshot = self.inventory.snapshot
            while not self._closing.is_set():
                yield device_list(snapshot)
                self.metrics.snapshots.inc()
                await asyncio.wait({closing}, timeout=COALESCE_SECONDS)
                changed = asyncio.ensure_future(self._news(snapshot))
                try:
                    await asyncio.wait({closing, changed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                snapshot = self.inventory.snapshot
        finally:
            closing.cancel()
            self.streams.discard(stream)
            self.stream_closed()

    async def _news(self, snapshot: Snapshot) -> None:
        await self.inventory.changed_from(snapshot)
        await self._speaking.wait()

    async def get_preferred_allocation(
        self, request: pb.PreferredAllocationRequest, context: Any
    ) -> pb.PreferredAllocationResponse:
        """A set per container; an empty one, never an error, where none can be named: an error fails the pod."""
        del context
        response = pb.PreferredAllocationResponse()
        for wish in request.container_requests:
            chosen: list[str] = []
            try:
                available, must_include = list(wish.available_deviceIDs), list(wish.must_include_deviceIDs)
                chosen = self.allocator.prefer(available, must_include, wish.allocation_size)
            except Exception as error:
                log.warning("no preferred allocation", cause=str(error), size=wish.allocation_size)
            response.container_responses.add(deviceIDs=chosen)
        return response

    async def allocate(self, request: pb.AllocateRequest, context: Any) -> pb.AllocateResponse:
        """All containers of the request or none."""
        started = time.monotonic()
        ids = [list(container.devices_ids) for container in request.container_requests]
        response = pb.AllocateResponse()
        try:
            if not ids:
                raise RequestError("no container is named")
            for wanted in ids:
                devices, allocation = await self.allocator.allocate(wanted)
                response.container_responses.append(container_response(devices, allocation, self.inventory.driver))
        except Exception as error:
            self.metrics.allocated(False, time.monotonic() - started)
            log.error("allocation refused", devices=ids, cause=str(error))
            await context.abort(_code(error), _message(error))
        self.metrics.allocated(True, time.monotonic() - started)
        log.info("allocated", devices=ids, seconds=round(time.monotonic() - started, 4))
        return response

    async def pre_start_container(
        self, request: pb.PreStartContainerRequest, context: Any
    ) -> pb.PreStartContainerResponse:
        """Runs the vendor's hook; an error keeps the container from starting."""
        try:
            await self.allocator.pre_start(list(request.devices_ids))
        except Exception as error:
            log.error("preparation for a container's start failed", cause=str(error))
            await context.abort(_code(error), _message(error))
        return pb.PreStartContainerResponse()


def _code(error: Exception) -> Any:
    if isinstance(error, RequestError):
        return grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, UnusableError):
        return grpc.StatusCode.FAILED_PRECONDITION
    if isinstance(error, DeadlineError):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.INTERNAL


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__


def device_list(snapshot: Snapshot) -> pb.ListAndWatchResponse:
    """The message for a snapshot."""
    response = pb.ListAndWatchResponse()
    for device_id, healthy, numa_nodes in snapshot:
        device = response.devices.add(ID=device_id, health=HEALTHY if healthy else UNHEALTHY)
        if numa_nodes:
            device.topology.nodes.extend(pb.NUMANode(ID=node) for node in numa_nodes)
    return response


def container_response(devices: list[Device], allocation: Allocation, driver: str) -> pb.ContainerAllocateResponse:
    """The message for one container; the vendor's variables add to the common ones and may replace them."""
    return pb.ContainerAllocateResponse(
        envs={**environment(devices, driver), **allocation.envs},
        mounts=[
            pb.Mount(container_path=m.container_path, host_path=m.host_path, read_only=m.read_only)
            for m in allocation.mounts
        ],
        devices=[
            pb.DeviceSpec(container_path=n.container_path, host_path=n.host_path, permissions=n.permissions)
            for n in _nodes(devices, allocation)
        ],
        annotations=dict(allocation.annotations),
        cdi_devices=[pb.CDIDevice(name=name) for name in allocation.cdi_devices],
    )


def _nodes(devices: list[Device], allocation: Allocation) -> list[DeviceNode]:
    """Each node once: devices may share one, such as that of their driver."""
    every = [node for device in devices for node in device.nodes]
    return list(dict.fromkeys([*every, *allocation.nodes]))
