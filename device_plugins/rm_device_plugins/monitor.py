"""Looks at a vendor's devices and at who has them, and tells of both: report, probes, metrics.

What a device plugin and an observer have in common. Neither the vendor's module nor the kubelet can hold up an answer:
everything that is told is what was seen last.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rm_api import names

from rm_device_plugins import sharing
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.http import METRICS, TEXT, Answer, Document, HttpServer
from rm_device_plugins.inventory import Entry, Inventory
from rm_device_plugins.kubelet_api import HEALTHY, UNHEALTHY
from rm_device_plugins.logs import Log
from rm_device_plugins.metrics import DeviceMetrics, Metrics
from rm_device_plugins.pod_resources import Hold, PodResources, PodWatch
from rm_device_plugins.tool import DeadlineError, bounded
from rm_device_plugins.vendor import Vendor

log = Log("monitor")

ENV_NODE_NAME: Final = "NODE_NAME"
_CLOSE_SECONDS: Final = 5.0


class Monitor:
    """One kind of device on one node."""

    def __init__(
        self,
        resource: str,
        settings: PluginSettings,
        vendor: Vendor,
        port: int,
        pod_resources: PodResources,
        state_file: Path | None = None,
    ) -> None:
        self._resource = resource
        self._settings = settings
        self._vendor = vendor
        self._port = port
        self._discover_now = asyncio.Event()
        self._prepared = False
        self._hanging: asyncio.Task[Any] | None = None
        self._checked_at = 0.0
        self._watts: Mapping[str, float] = {}
        self._power_problem = ""
        self._used_since: dict[str, float] = {}
        self.configuration_problem = ""
        """Why a configuration that was written while it runs is not in use; empty if it is."""
        self.metrics = Metrics(resource)
        self.inventory = Inventory(settings, state_file)
        self.document = Document(self._report)
        self.pods = PodWatch(pod_resources, self._ours, self._device_of, self._tell)
        vendor.nobody_has = self.pods.nobody_has
        self.metrics.registry.register(
            DeviceMetrics(resource, self.inventory, self.pods, lambda: self._watts, self._out_of_band)
        )
        self.http = HttpServer(
            {
                "/healthz": self._healthz,
                "/readyz": self._readyz,
                "/metrics": lambda: (200, METRICS, self.metrics.text()),
            },
            {names.REPORT_PATH: self.document},
        )

    # What a kind of monitor adds.

    def _work(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Further things to do until the end, begun after the first discovery."""
        return ()

    def _unready(self) -> str:
        """Why it does not do what it is for; empty if it does."""
        return ""

    def _conflict(self) -> str:
        """Who else owns the resource's name on this node; empty if nobody does."""
        return ""

    def _problems(self) -> Sequence[str]:
        """What fails, for the report."""
        return self.inventory.problem, self.configuration_problem

    def _ours(self, hold: Hold) -> bool:
        return hold.resource == self._resource

    def _device_of(self, kubelet_id: str) -> str | None:
        """The device of ours that the kubelet means."""
        device_id = sharing.device_of(kubelet_id)
        return device_id if self.inventory.get(device_id) is not None else None

    # Life

    async def run(self, stop: asyncio.Event) -> None:
        """Works until ``stop`` is set. Raises OSError if the HTTP port is taken; nothing else ends it."""
        self.inventory.load()
        self._checked_at = asyncio.get_running_loop().time()
        await self.http.start(self._port)
        log.info("started", resource=self._resource, port=self.http.port)
        try:
            # What the kubelet hears first should be true, so discovery goes before everything else.
            await self._discover()
            work = [
                asyncio.ensure_future(each)
                for each in (
                    self._watch_devices(),
                    self._watch_power(),
                    self.pods.run(lambda: self._settings.pods_interval_seconds),
                    *self._work(),
                )
            ]
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
        """Takes up other settings and another module."""
        vendor.nobody_has = self.pods.nobody_has
        before, self._vendor = self._vendor, vendor
        self._settings = self.inventory.settings = settings
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
        # With hundreds of devices each part takes a millisecond or two: an allocation that waits comes in between.
        await asyncio.sleep(0)
        self._note_use()
        entries = self.inventory.entries()
        self.metrics.healthy.set(sum(entry.healthy for entry in entries))
        self.metrics.unhealthy.set(sum(not entry.healthy for entry in entries))
        await asyncio.sleep(0)
        self._tell()

    def _failed(self, error: Exception) -> None:
        self.metrics.discovery_failures.inc()
        self.inventory.fail(str(error) or type(error).__name__)

    # Power

    async def _watch_power(self) -> None:
        hanging: asyncio.Task[Any] | None = None
        while True:
            if self._prepared and (hanging is None or hanging.done()):
                problem, watts = "", {}
                try:
                    reading = bounded("reading the power", self._vendor.power(), self._settings.power_timeout_seconds)
                    watts = {device: float(value) for device, value in (await reading).items()}
                except DeadlineError as error:
                    problem, hanging = str(error), error.task
                except Exception as error:
                    problem = str(error) or type(error).__name__
                # No reading is shown longer than until the next one: it would say what is not so any more.
                self._watts = {device: value for device, value in watts.items() if math.isfinite(value) and value >= 0}
                if problem and problem != self._power_problem:
                    log.warning("power is not known", cause=problem)
                self._power_problem = problem
            await asyncio.sleep(self._settings.power_interval_seconds)

    # Use that Kubernetes does not know of

    def _note_use(self) -> None:
        """Keeps since when each device is in use though no pod has it."""
        now = asyncio.get_running_loop().time()
        self._used_since = {
            entry.device.id: self._used_since.get(entry.device.id, now)
            for entry in self.inventory.entries()
            if self._is_used(entry)
        }

    def _is_used(self, entry: Entry) -> bool:
        # What was not seen now says nothing of now.
        seen = not self.inventory.problem and entry.missing_since is None
        return seen and bool(entry.device.out_of_band) and self.pods.free(entry.device.id)

    def _out_of_band(self, device_id: str) -> str:
        """What uses the device outside of Kubernetes. A pod that comes or goes is not taken for that: the kubelet is
        asked from time to time only, and a process may outlive its pod for a moment.
        """
        since, entry = self._used_since.get(device_id), self.inventory.get(device_id)
        if since is None or entry is None or not self._is_used(entry):
            return ""
        waited = asyncio.get_running_loop().time() - since
        return entry.device.out_of_band if waited >= self._settings.out_of_band_after_seconds else ""

    # What is told

    def _tell(self) -> None:
        self.document.refresh()

    def _report(self) -> object:
        inventory = self.inventory
        return {
            "resource": self._resource,
            "node": os.environ.get(ENV_NODE_NAME, ""),
            "driver": inventory.driver,
            "sdk": inventory.sdk,
            "firmware": inventory.firmware,
            "product": inventory.product,
            "message": "; ".join(filter(None, self._problems())),
            "conflict": self._conflict(),
            "devices": [self._told(entry) for entry in inventory.entries()],
        }

    def _told(self, entry: Entry) -> dict[str, object]:
        device = entry.device
        return {
            "id": device.id,
            "index": device.index,
            "serial": device.serial,
            "node": device.nodes[0].host_path if device.nodes else "",
            "health": HEALTHY if entry.healthy else UNHEALTHY,
            "cause": entry.cause,
            "failure": "" if entry.healthy else entry.failure.value,
            "firmware": device.firmware,
            "group": device.group,
            "parent": device.parent,
            "outOfBand": self._out_of_band(device.id),
            "pods": [
                {"namespace": holder.namespace, "name": holder.pod, "container": holder.container}
                for holder in self.pods.of(device.id)
            ],
        }

    def _healthz(self) -> Answer:
        age = asyncio.get_running_loop().time() - self._checked_at
        allowed = 3 * self._settings.interval_seconds + 2 * self._settings.discovery_timeout_seconds + 5
        if age > allowed:
            return 503, TEXT, f"devices were last looked at {age:.0f} s ago\n".encode()
        return 200, TEXT, b"ok\n"

    def _readyz(self) -> Answer:
        problem = self._unready()
        return (503, TEXT, f"{problem}\n".encode()) if problem else (200, TEXT, b"ok\n")
