"""Looks at devices that somebody else's device plugin advertises, and tells of them as ours does.

It makes nothing in the kubelet's directories and registers nothing: the name keeps its one owner. What the kubelet
knows comes from its Pod Resources API; with a vendor's module the devices themselves are looked at, too.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_device_plugins import sharing
from rm_device_plugins.config import PluginSettings, parse
from rm_device_plugins.monitor import Monitor
from rm_device_plugins.pod_resources import PodResources, PodResourcesError
from rm_device_plugins.vendor import Device, Discovery, Failure, Vendor, VendorError


class Observer(Monitor):
    """One resource of one node. The kubelet's IDs are found as the devices' own, or by the names of their files."""

    def __init__(
        self, resource: str, settings: PluginSettings, vendor: Vendor, port: int, pod_resources: PodResources
    ) -> None:
        super().__init__(resource, settings, vendor, port, pod_resources)

    def _unready(self) -> str:
        return self.pods.problem

    def _problems(self) -> Sequence[str]:
        # A vendor that asks the kubelet, too, would say the same thing again.
        return tuple(dict.fromkeys((*super()._problems(), self.pods.problem)))

    def _device_of(self, kubelet_id: str) -> str | None:
        """Some plugins advertise serials, or the names of device files, which are good for as long as we look."""
        own = super()._device_of(kubelet_id)
        if own is not None:
            return own
        name = sharing.device_of(kubelet_id)
        found = [
            entry.device.id
            for entry in self.inventory.entries()
            if name in (entry.device.serial, *(Path(node.host_path).name for node in entry.device.nodes[:1]))
        ]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class KubeletSettings:
    """The configuration file."""

    grace_seconds: float = 60.0
    """How long the kubelet may not offer a device before it counts as unhealthy: a plugin or a kubelet that starts
    again takes its devices away for a moment."""


class KubeletVendor(Vendor):
    """The devices that the kubelet says it has of a resource. It does not name those that are unhealthy, so a device
    that it named before, or that a pod has, is one of these.
    """

    def __init__(
        self,
        settings: Mapping[str, object],
        resource: str,
        api: PodResources,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(settings)
        self._wanted = parse(KubeletSettings, settings)
        self._resource = resource
        self._api = api
        self._now = now
        self._offered_at: dict[str, float] = {}
        self._numa: dict[str, tuple[int, ...]] = {}
        self._last: Discovery | None = None

    async def discover(self) -> Discovery:
        """Asks the kubelet. While it does not answer nothing is known to have changed."""
        try:
            offered = await self._api.allocatable(self._resource)
            holds = await self._api.list()
        except PodResourcesError as error:
            if self._last is None:
                raise VendorError(str(error)) from error
            # The time in which nobody was asked is no time in which nothing was offered.
            now = self._now()
            self._offered_at.update(dict.fromkeys((d.id for d in self._last.devices if not d.cause), now))
            return self._last
        now = self._now()
        for kubelet_id, numa in offered.items():
            device_id = sharing.device_of(kubelet_id)
            self._offered_at[device_id], self._numa[device_id] = now, numa
        for hold in holds:
            if hold.resource == self._resource:
                for kubelet_id in hold.ids:
                    self._offered_at.setdefault(sharing.device_of(kubelet_id), now)
        self._last = Discovery(tuple(self._device(*each, now) for each in enumerate(sorted(self._offered_at))))
        return self._last

    def _device(self, index: int, device_id: str, now: float) -> Device:
        away = now - self._offered_at[device_id]
        return Device(
            id=device_id,
            index=index,
            serial=device_id,
            product="",
            nodes=(),
            cause="the kubelet does not offer it to pods" if away > self._wanted.grace_seconds else "",
            failure=Failure.UNKNOWN,
            numa_nodes=self._numa.get(device_id, ()),
        )
