"""A device plugin: a vendor's module, an inventory, a registration, and what it reports of itself."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rm_api import names

from rm_device_plugins.allocator import Allocator
from rm_device_plugins.config import ConfigError, PluginSettings
from rm_device_plugins.http import METRICS, TEXT, Answer, HttpServer, json_answer
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.kubelet_api import HEALTHY, UNHEALTHY
from rm_device_plugins.logs import Log
from rm_device_plugins.metrics import Metrics
from rm_device_plugins.registration import Registrar
from rm_device_plugins.service import PluginService
from rm_device_plugins.sockets import new_socket_path, slug
from rm_device_plugins.tool import DeadlineError, bounded
from rm_device_plugins.vendor import Vendor

log = Log("plugin")

_CLOSE_SECONDS = 5.0


class DevicePlugin:
    """One resource of one vendor on one node. Raises ConfigError where it could never work."""

    def __init__(self, resource: str, settings: PluginSettings, vendor: Vendor, plugin_dir: Path, port: int) -> None:
        if not plugin_dir.is_dir():
            raise ConfigError(f"{plugin_dir} is no directory: mount the kubelet's device plugin directory there")
        new_socket_path(plugin_dir, resource)
        self._resource = resource
        self._settings = settings
        self._vendor = vendor
        self._port = port
        self._discover_now = asyncio.Event()
        self._prepared = False
        self._hanging: asyncio.Task[Any] | None = None
        self._checked_at = 0.0
        self.configuration_problem = ""
        """Why a configuration that was written while it runs is not in use; empty if it is."""
        self.metrics = Metrics(resource)
        self.inventory = Inventory(settings, plugin_dir / f"{slug(resource)[:200]}.rma-state.json")
        self.allocator = Allocator(self.inventory, vendor, settings, self._discover_now.set)
        self.registrar = Registrar(resource, plugin_dir, self._new_service, self.metrics)
        self.http = HttpServer(
            {
                names.REPORT_PATH: self._report,
                "/healthz": self._healthz,
                "/readyz": self._readyz,
                "/metrics": lambda: (200, METRICS, self.metrics.text()),
            }
        )

    def _new_service(self, opened: Callable[[], object], closed: Callable[[], None]) -> PluginService:
        return PluginService(self.inventory, self.allocator, self.metrics, opened, closed)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until ``stop`` is set. Raises OSError if the HTTP port is taken; nothing else ends it."""
        self.inventory.load()
        self._checked_at = asyncio.get_running_loop().time()
        await self.http.start(self._port)
        log.info("started", resource=self._resource, port=self.http.port)
        try:
            # What the kubelet hears first should be true, so discovery goes before registration, whatever it says.
            await self._discover()
            work = [asyncio.ensure_future(self._watch_devices()), asyncio.ensure_future(self.registrar.run())]
            stopping = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait({stopping, *work}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (stopping, *work):
                    task.cancel()
                results = await asyncio.gather(*work, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result
        finally:
            self.http.close()
            with contextlib.suppress(Exception):
                await bounded("closing the vendor's module", self._vendor.close(), _CLOSE_SECONDS)
            log.info("stopped", resource=self._resource)

    async def reconfigure(self, settings: PluginSettings, vendor: Vendor) -> None:
        """Takes up other settings and another module; streams stay open, and what was allocated stays allocated."""
        before, self._vendor = self._vendor, vendor
        self._settings = self.inventory.settings = settings
        self.allocator.reconfigure(vendor, settings)
        self._prepared, self._hanging = False, None
        self.configuration_problem = ""
        self._discover_now.set()
        with contextlib.suppress(Exception):
            await bounded("closing the vendor's module", before.close(), _CLOSE_SECONDS)
        log.info("took up another configuration", resource=self._resource)

    async def _watch_devices(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.interval_seconds):
                    await self._discover_now.wait()
            self._discover_now.clear()
            await self._discover()

    async def _discover(self) -> None:
        seconds = self._settings.discovery_timeout_seconds
        try:
            if self._hanging is None or self._hanging.done():
                self._hanging = None
                if not self._prepared:
                    await bounded("the vendor's preparation", self._vendor.prepare(), seconds)
                    self._prepared = True
                discovery = await bounded("the vendor's discovery", self._vendor.discover(), seconds)
                discovery.check(self._settings.shares)
                self.inventory.observe(discovery)
            else:
                # A hook that survives its cancellation is not called again beside itself.
                self.inventory.fail(self.inventory.problem)
        except DeadlineError as error:
            self._hanging = error.task
            self._failed(error)
        except Exception as error:
            self._failed(error)
        self._checked_at = asyncio.get_running_loop().time()
        entries = self.inventory.entries()
        self.metrics.healthy.set(sum(entry.healthy for entry in entries))
        self.metrics.unhealthy.set(sum(not entry.healthy for entry in entries))

    def _failed(self, error: Exception) -> None:
        self.metrics.discovery_failures.inc()
        self.inventory.fail(str(error) or type(error).__name__)

    def _report(self) -> Answer:
        devices = [
            {
                "id": entry.device.id,
                "serial": entry.device.serial,
                "node": entry.device.nodes[0].host_path if entry.device.nodes else "",
                "health": HEALTHY if entry.healthy else UNHEALTHY,
                "cause": entry.cause,
            }
            for entry in self.inventory.entries()
        ]
        report = {
            "resource": self._resource,
            "driver": self.inventory.driver,
            "product": self.inventory.product,
            "devices": devices,
            "message": "; ".join(filter(None, (self.inventory.problem, self.configuration_problem))),
        }
        return json_answer(200, report)

    def _healthz(self) -> Answer:
        age = asyncio.get_running_loop().time() - self._checked_at
        allowed = 3 * self._settings.interval_seconds + 2 * self._settings.discovery_timeout_seconds + 5
        if age > allowed:
            return 503, TEXT, f"devices were last looked at {age:.0f} s ago\n".encode()
        return 200, TEXT, b"ok\n"

    def _readyz(self) -> Answer:
        if self.registrar.problem:
            return 503, TEXT, f"{self.registrar.problem}\n".encode()
        return 200, TEXT, b"ok\n"
