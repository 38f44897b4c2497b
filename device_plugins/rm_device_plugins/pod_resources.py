"""Which containers have which devices, as the kubelet's Pod Resources API says.

The API is a help, and never a need: a kubelet that is not there, that does not know a call or that answers nonsense
leaves it unknown who has a device, and harms nothing else.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from rm_device_plugins.kubelet_api import Client
from rm_device_plugins.logs import Log
from rm_device_plugins.proto.podresources.v1 import api_pb2 as pb

log = Log("pod-resources")

DEFAULT_SOCKET: Final = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
SERVICE: Final = "PodResourcesLister"
CALL_SECONDS: Final = 5.0
KEEP_SECONDS: Final = 60.0
"""How long the last answer holds while there is no new one: a kubelet that restarts moves no pods."""
_MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""What the kubelet sends at most."""


class PodResourcesError(Exception):
    """The kubelet does not say who has what; the message says why."""


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """A container that has devices."""

    namespace: str
    pod: str
    container: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Devices of one kind that a container has: of a device plugin's resource, or of a DRA driver's pool."""

    holder: Holder
    ids: tuple[str, ...]
    """IDs as the kubelet knows them; of a driver, names within the pool."""
    resource: str = ""
    driver: str = ""
    pool: str = ""


class _Lister(Client):
    list: Callable[..., Awaitable[pb.ListPodResourcesResponse]]
    get: Callable[..., Awaitable[pb.GetPodResourcesResponse]]
    get_allocatable_resources: Callable[..., Awaitable[pb.AllocatableResourcesResponse]]


class PodResources:
    """Asks the kubelet. Every call has a deadline, and raises PodResourcesError if it brings nothing."""

    def __init__(self, socket: Path = DEFAULT_SOCKET, seconds: float = CALL_SECONDS) -> None:
        self._socket = socket
        self._seconds = seconds

    async def list(self) -> "tuple[Hold, ...]":
        """What all containers of the node have."""
        answer = await self._call(lambda client: client.list(pb.ListPodResourcesRequest(), timeout=self._seconds))
        return tuple(hold for pod in answer.pod_resources for hold in _holds(pod))

    async def get(self, namespace: str, pod: str) -> "tuple[Hold, ...]":
        """What the containers of one pod have."""
        request = pb.GetPodResourcesRequest(pod_name=pod, pod_namespace=namespace)
        answer = await self._call(lambda client: client.get(request, timeout=self._seconds))
        return tuple(_holds(answer.pod_resources))

    async def allocatable(self, resource: str) -> dict[str, tuple[int, ...]]:
        """IDs of ``resource`` that pods have or could have, with their NUMA nodes; no unhealthy ones."""
        request = pb.AllocatableResourcesRequest()
        answer = await self._call(lambda client: client.get_allocatable_resources(request, timeout=self._seconds))
        return {
            device_id: tuple(node.ID for node in devices.topology.nodes)
            for devices in answer.devices
            if devices.resource_name == resource
            for device_id in devices.device_ids
        }

    async def _call(self, ask: Callable[[_Lister], Awaitable[Any]]) -> Any:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.default_authority", "localhost"),
            ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
        ]
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=options) as channel:
                answer = await ask(_Lister(SERVICE, channel, pb))
            # Of an answer that is no message grpc.aio makes None, and an entry in the log.
            why = "" if answer is not None else "it answers what is no message of the API"
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
        except Exception as error:  # whatever else grpc makes of what the other side says
            why = repr(error)
        if not why:
            return answer
        raise PodResourcesError(f"the kubelet does not tell which pods have devices: {self._socket}: {why}")


def _holds(pod: pb.PodResources) -> Iterable[Hold]:
    for container in pod.containers:
        holder = Holder(pod.namespace, pod.name, container.name)
        for devices in container.devices:
            yield Hold(holder, tuple(devices.device_ids), resource=devices.resource_name)
        for claim in container.dynamic_resources:
            for each in claim.claim_resources:
                yield Hold(holder, (each.device_name,), driver=each.driver_name, pool=each.pool_name)


class PodWatch:
    """Who has which device, as far as it is known. Only the event loop's thread may use it.

    ``ours`` tells whether a Hold is of the devices that are reported on, and ``device_of`` which device an ID of the
    kubelet is, None where that cannot be told; ``changed`` is called when somebody has another device than before.
    """

    def __init__(
        self,
        api: PodResources,
        ours: Callable[[Hold], bool],
        device_of: Callable[[str], str | None],
        changed: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._ours = ours
        self._device_of = device_of
        self._changed = changed
        self._now = now
        self._answered_at: float | None = None
        self._holders: Mapping[str, tuple[Holder, ...]] = {}
        self._taken: frozenset[str] = frozenset()
        self._complete = False
        self.problem = "the kubelet was not asked yet"
        """Why the kubelet's last answer is none; empty if it is one."""

    def of(self, device_id: str) -> tuple[Holder, ...]:
        """Containers that have the device, sorted; none if it is not known."""
        return self._holders.get(device_id, ())

    def free(self, device_id: str) -> bool:
        """True if certainly no pod has the device, by whatever name it was given to it."""
        return self._complete and device_id not in self._taken

    async def nobody_has(self, device_ids: Collection[str]) -> bool:
        """True if the kubelet, asked now, is certain that no pod has any of the devices."""
        await self.refresh()
        return not self.problem and all(map(self.free, device_ids))

    async def run(self, interval_seconds: Callable[[], float]) -> None:
        """Asks the kubelet again and again until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(interval_seconds())

    async def refresh(self) -> None:
        """Asks the kubelet once."""
        try:
            holds = await self._api.list()
        except PodResourcesError as error:
            if str(error) != self.problem:
                log.warning("it is not known which pods have devices", cause=str(error))
            self.problem = str(error)
            if self._answered_at is not None and self._now() - self._answered_at > KEEP_SECONDS:
                self._answered_at, self._complete, self._taken = None, False, frozenset()
                self._show({})
            return
        self.problem = ""
        self._answered_at = self._now()
        found: defaultdict[str, set[Holder]] = defaultdict(set)
        taken: set[str] = set()
        complete = True
        for hold in holds:
            ours = self._ours(hold)
            for device_id in map(self._device_of, hold.ids):
                if device_id is not None:
                    taken.add(device_id)
                    if ours:
                        found[device_id].add(hold.holder)
                elif ours or hold.driver:
                    # Any of the devices may be the one that this is.
                    complete = False
        self._complete, self._taken = complete, frozenset(taken)
        self._show({device_id: tuple(sorted(holders)) for device_id, holders in found.items()})

    def _show(self, holders: Mapping[str, tuple[Holder, ...]]) -> None:
        if holders != self._holders:
            self._holders = holders
            self._changed()
