"""A device plugin: a vendor's module, an inventory, a registration, and what it reports of itself."""

from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

from rm_device_plugins.allocator import Allocator
from rm_device_plugins.config import ConfigError, PluginSettings
from rm_device_plugins.monitor import Monitor
from rm_device_plugins.ownership import Ownership, state_file
from rm_device_plugins.pod_resources import DEFAULT_SOCKET, PodResources, PodResourcesError
from rm_device_plugins.registration import Registrar
from rm_device_plugins.service import PluginService
from rm_device_plugins.sockets import new_socket_path
from rm_device_plugins.vendor import Vendor


class DevicePlugin(Monitor):
    """One resource of one vendor on one node. Raises ConfigError where it could never work."""

    def __init__(
        self,
        resource: str,
        settings: PluginSettings,
        vendor: Vendor,
        plugin_dir: Path,
        port: int,
        pod_resources: Path = DEFAULT_SOCKET,
        owner: str = "",
    ) -> None:
        """``owner`` is on whose behalf it runs: instances of one owner follow each other, others are in conflict."""
        if not plugin_dir.is_dir():
            raise ConfigError(f"{plugin_dir} is no directory: mount the kubelet's device plugin directory there")
        new_socket_path(plugin_dir, resource)
        kept = state_file(plugin_dir, resource, owner, "state")
        super().__init__(resource, settings, vendor, port, PodResources(pod_resources), kept)
        self.allocator = Allocator(self.inventory, vendor, settings, self._discover_now.set)
        self._kubelet = PodResources(pod_resources)
        ownership = Ownership(plugin_dir, resource, owner, self._ids, self._hold_seconds, self._offered)
        self.registrar = Registrar(resource, plugin_dir, self._new_service, self.metrics, ownership)

    def _new_service(self, opened: Callable[[], object], closed: Callable[[], None]) -> PluginService:
        return PluginService(self.inventory, self.allocator, self.metrics, opened, closed)

    async def reconfigure(self, settings: PluginSettings, vendor: Vendor) -> None:
        """Takes up other settings and another module; streams stay open, and what was allocated stays allocated."""
        self.allocator.reconfigure(vendor, settings)
        await super().reconfigure(settings, vendor)

    def _work(self) -> Sequence[Coroutine[Any, Any, None]]:
        return (self.registrar.run(),)

    def _unready(self) -> str:
        return self.registrar.problem

    def _conflict(self) -> str:
        return self.registrar.conflict

    def _hold_seconds(self) -> float:
        return self._settings.take_over_after_seconds

    async def _offered(self) -> Collection[str] | None:
        try:
            return await self._kubelet.allocatable(self._resource)
        except PodResourcesError:
            return None

    def _ids(self) -> Iterable[str]:
        return (entry.device.id for entry in self.inventory.entries())
