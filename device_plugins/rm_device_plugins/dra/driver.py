"""A driver for dynamic resource allocation: a monitor of devices, the node's ResourceSlices, and prepared claims."""

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Histogram

from rm_device_plugins import sharing
from rm_device_plugins.allocator import Allocator
from rm_device_plugins.config import ConfigError, PluginSettings
from rm_device_plugins.dra import naming, slices
from rm_device_plugins.dra.api import ApiClient
from rm_device_plugins.dra.cdi import Specs
from rm_device_plugins.dra.claims import Claims
from rm_device_plugins.dra.publisher import Publisher
from rm_device_plugins.dra.registration import Registrar
from rm_device_plugins.dra.service import DraService
from rm_device_plugins.files import LockedError
from rm_device_plugins.monitor import Monitor
from rm_device_plugins.pod_resources import Hold, PodResources
from rm_device_plugins.vendor import Vendor


@dataclass(frozen=True, slots=True)
class Place:
    """Where a driver runs, and under which name."""

    driver: str
    node: str
    kubelet_dir: Path
    cdi_dir: Path
    taint_effect: str

    @property
    def registry(self) -> Path:
        """The directory in which the kubelet looks for plugins."""
        return self.kubelet_dir / "plugins_registry"

    @property
    def own(self) -> Path:
        """The driver's directory, shared by its instances."""
        return self.kubelet_dir / "plugins" / self.driver

    @property
    def pod_resources(self) -> Path:
        """The socket of the kubelet's Pod Resources API."""
        return self.kubelet_dir / "pod-resources" / "kubelet.sock"


class DraDriver(Monitor):
    """One driver on one node. Raises ConfigError where it could never work, OSError where its directories fail it."""

    def __init__(self, place: Place, settings: PluginSettings, vendor: Vendor, port: int, client: ApiClient) -> None:
        if not place.registry.is_dir():
            raise ConfigError(f"{place.registry} is no directory: mount the kubelet's plugin registry there")
        place.own.mkdir(mode=0o750, parents=True, exist_ok=True)
        resource = naming.resource_name(place.driver)
        pods = PodResources(place.pod_resources)
        super().__init__(resource, settings, vendor, port, pods, place.own / "inventory.json")
        self._place = place
        self._resource = resource
        self._calls = Histogram(
            "rma_dra_claim_seconds",
            "Time for one claim.",
            ["resource", "call", "result"],
            buckets=(0.01, 0.05, 0.25, 1, 5, 15),
            registry=self.metrics.registry,
        )
        self._writes = Counter(
            "rma_dra_slice_writes",
            "Updates of the ResourceSlices.",
            ["resource", "result"],
            registry=self.metrics.registry,
        )
        self.allocator = Allocator(self.inventory, vendor, settings, self._discover_now.set)
        specs = Specs(place.cdi_dir, place.driver)
        self.claims = Claims(client, self.inventory, self.allocator, place.own, specs, place.driver, place.node)
        self.registrar = Registrar(
            place.driver,
            place.registry,
            place.own,
            new_service=self._new_service,
            registered=self.metrics.registered,
            lead_changed=self._lead_changed,
        )
        self.publisher = Publisher(
            client,
            self.inventory,
            slices.Pool(place.driver, place.node),
            place.taint_effect,
            leads=lambda: self.registrar.leads,
            wrote=lambda ok: self._writes.labels(resource, _result(ok)).inc(),
        )

    def _new_service(self) -> DraService:
        return DraService(
            self.claims,
            self.inventory,
            self._place.node,
            lambda call, ok, seconds: self._calls.labels(self._resource, call, _result(ok)).observe(seconds),
        )

    def _lead_changed(self) -> None:
        self.publisher.wake()

    async def reconfigure(self, settings: PluginSettings, vendor: Vendor) -> None:
        """Takes up other settings and another module; what was prepared stays prepared."""
        self.allocator.reconfigure(vendor, settings)
        await super().reconfigure(settings, vendor)

    def _work(self) -> Sequence[Coroutine[Any, Any, None]]:
        return (self._serve(), self.publisher.run())

    async def _serve(self) -> None:
        try:
            await self.claims.start()
        except LockedError as error:
            raise OSError(str(error)) from error
        await self.registrar.run()

    def _tell(self) -> None:
        super()._tell()
        self.publisher.wake()

    def _unready(self) -> str:
        return self.registrar.problem or self.publisher.problem

    def _problems(self) -> Sequence[str]:
        return (*super()._problems(), self.publisher.problem)

    def _ours(self, hold: Hold) -> bool:
        return (hold.driver, hold.pool) == (self._place.driver, self._place.node)

    def _device_of(self, kubelet_id: str) -> str | None:
        for share, _, _ in self.inventory.snapshot:
            if naming.device_name(share) == kubelet_id:
                return sharing.device_of(share)
        return None


def _result(ok: bool) -> str:
    return "ok" if ok else "error"
