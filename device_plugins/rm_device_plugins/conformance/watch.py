"""What a ListAndWatch stream said."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Self

import grpc
import grpc.aio

from rm_device_plugins.kubelet_api import HEALTHY, DevicePluginClient
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One message of a ListAndWatch stream."""

    at: float
    """``time.monotonic()`` of its arrival."""
    endpoint: str
    """File name of the socket that it came from."""
    health: dict[str, str]
    numa: dict[str, tuple[int, ...]]
    ids: tuple[str, ...]
    """As they were listed, repetitions included."""

    @classmethod
    def of(cls, message: pb.ListAndWatchResponse, endpoint: str) -> "Snapshot":
        """The message, arrived now."""
        return cls(
            time.monotonic(),
            endpoint,
            {device.ID: device.health for device in message.devices},
            {device.ID: tuple(node.ID for node in device.topology.nodes) for device in message.devices},
            tuple(device.ID for device in message.devices),
        )

    @property
    def healthy(self) -> frozenset[str]:
        """IDs that the kubelet may allocate."""
        return frozenset(name for name, health in self.health.items() if health == HEALTHY)

    def same_as(self, other: "Snapshot") -> bool:
        """True if the kubelet would learn nothing new from one after the other."""
        return (self.health, self.numa) == (other.health, other.numa)


class Watch:
    """An open stream of one's own beside the kubelet's. ``async with`` opens and cancels it."""

    def __init__(self, client: DevicePluginClient, endpoint: str) -> None:
        self._client = client
        self._endpoint = endpoint
        self._call: Any = None
        self._task: asyncio.Task[None] | None = None
        self.opened_at = 0.0
        self.snapshots: list[Snapshot] = []
        self.ended = ""
        """Why the stream has ended; empty while it is open."""

    async def __aenter__(self) -> Self:
        self.opened_at = time.monotonic()
        self._call = self._client.list_and_watch(pb.Empty())
        self._task = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._call.cancel()
        if self._task is not None:
            await self._task

    async def _read(self) -> None:
        try:
            async for message in self._call:
                self.snapshots.append(Snapshot.of(message, self._endpoint))
            self.ended = "the plugin ended it"
        except grpc.aio.AioRpcError as error:
            self.ended = f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:
            # The call's cancellation, which is ours; that of this task would have nobody who waits for it.
            self.ended = "cancelled"

    @property
    def last(self) -> Snapshot | None:
        """The newest list; None before the first."""
        return self.snapshots[-1] if self.snapshots else None

    def health(self, device: str) -> str:
        """Its health in the newest list; empty where it is not listed."""
        return self.last.health.get(device, "") if self.last else ""
