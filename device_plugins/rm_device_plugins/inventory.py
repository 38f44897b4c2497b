"""What is advertised: the devices that were ever seen, their health with hysteresis, and their memory on disk.

An ID is never dropped because a discovery failed or did not list it: for the kubelet a device that is not mentioned
is as good as healthy. It stays, unhealthy and with the cause, until it has been missing for long.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rm_device_plugins.config import PluginSettings
from rm_device_plugins.logs import Log
from rm_device_plugins.sharing import shares
from rm_device_plugins.vendor import Device, DeviceNode, Discovery

log = Log("inventory")

Snapshot = tuple[tuple[str, bool, tuple[int, ...]], ...]
"""What the kubelet is told: (ID, healthy, NUMA nodes) by index. Equal snapshots are not sent twice."""

STATE_VERSION = 1
UNCHECKED = "not checked since the plugin started"
MISSING = "the driver does not list it any more"


@dataclass(slots=True)
class Entry:
    """A device, and what is believed of it."""

    device: Device
    healthy: bool
    cause: str = ""
    streak: int = 0
    """Observations in a row that speak against ``healthy``."""
    missing_since: float | None = None
    """Unix time of the first discovery that did not list it."""


class Inventory:
    """The believed state of all devices. Only the event loop's thread may use it."""

    def __init__(self, settings: PluginSettings, state_file: Path, now: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._state_file = state_file
        self._now = now
        self._entries: dict[str, Entry] = {}
        self._saved: object = None
        self._changed = asyncio.Event()
        self.driver = ""
        self.product = ""
        self.problem = ""
        """Why the last discovery failed; empty if it did not."""
        self.snapshot: Snapshot = ()

    def entries(self) -> list[Entry]:
        """All devices by index."""
        return sorted(self._entries.values(), key=lambda entry: (entry.device.index, entry.device.id))

    def get(self, device_id: str) -> Entry | None:
        """The device with this ID."""
        return self._entries.get(device_id)

    async def changed_from(self, snapshot: Snapshot) -> Snapshot:
        """Waits until the snapshot differs from ``snapshot``; returns the current one."""
        while self.snapshot == snapshot:
            await self._changed.wait()
        return self.snapshot

    def observe(self, discovery: Discovery) -> None:
        """Takes in a complete discovery."""
        self.problem = ""
        self.driver, self.product = discovery.driver, discovery.product
        listed = {device.id for device in discovery.devices}
        for device in discovery.devices:
            entry = self._entries.get(device.id)
            if entry is None:
                self._entries[device.id] = Entry(device, healthy=not device.cause, cause=device.cause)
                log.info("new device", device=device.id, index=device.index, serial=device.serial, cause=device.cause)
                continue
            entry.device, entry.missing_since = device, None
            self._judge(entry, device.cause)
        for device_id in self._entries.keys() - listed:
            entry = self._entries[device_id]
            if entry.missing_since is None:
                entry.missing_since = self._now()
            if self._now() - entry.missing_since > self.settings.forget_after_seconds:
                del self._entries[device_id]
                log.warning("forgot a device that was missing for long", device=device_id)
            else:
                self._judge(entry, MISSING)
        self._publish()

    def fail(self, cause: str) -> None:
        """Takes in a discovery that failed: nothing is known of any device, and none is dropped."""
        if self.problem != cause:
            log.warning("discovery failed", cause=cause)
        self.problem = cause
        for entry in self._entries.values():
            self._judge(entry, f"discovery failed: {cause}")
        self._publish()

    def _judge(self, entry: Entry, cause: str) -> None:
        was = entry.healthy
        if (not cause) == entry.healthy:
            entry.streak, entry.cause = 0, cause
            return
        entry.streak += 1
        needed = self.settings.unhealthy_after if entry.healthy else self.settings.healthy_after
        if entry.streak >= needed:
            entry.healthy, entry.streak, entry.cause = not cause, 0, cause
        elif not was:
            entry.cause = f"recovering: {entry.streak} of {needed} checks passed"
        if entry.healthy != was:
            log.warning("device health changed", device=entry.device.id, healthy=entry.healthy, cause=cause)

    def _publish(self) -> None:
        snapshot = tuple(
            (share, entry.healthy, entry.device.numa_nodes)
            for entry in self.entries()
            for share in shares(entry.device.id, self.settings.shares)
        )
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self._changed.set()
            self._changed = asyncio.Event()
        self._save()

    def _save(self) -> None:
        entries = self.entries()
        kept = (self.driver, self.product, [(entry.device, entry.healthy, entry.missing_since) for entry in entries])
        if kept == self._saved:
            return
        self._saved = kept
        state = {
            "version": STATE_VERSION,
            "driver": self.driver,
            "product": self.product,
            "devices": [
                {**asdict(entry.device), "healthy": entry.healthy, "missing_since": entry.missing_since}
                for entry in entries
            ],
        }
        temporary = self._state_file.with_name(f"{self._state_file.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(state))
            temporary.replace(self._state_file)
        except OSError as error:
            log.warning("the inventory cannot be kept", file=self._state_file, cause=str(error))

    def load(self) -> None:
        """Takes up the devices that an earlier instance knew, unhealthy until the first discovery has spoken.

        A device that was healthy becomes so with its first good observation. A file that is none of ours is ignored.
        """
        try:
            state = json.loads(self._state_file.read_text())
            if state["version"] != STATE_VERSION:
                raise ValueError(f"version {state['version']}")
            entries = [self._entry(raw) for raw in state["devices"]]
            self.driver, self.product = str(state["driver"]), str(state["product"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the kept inventory is unusable", file=self._state_file, cause=repr(error))
            return
        self._entries = {entry.device.id: entry for entry in entries}
        self._publish()
        log.info("took up the kept inventory", devices=len(entries))

    def _entry(self, raw: dict[str, Any]) -> Entry:
        healthy, missing_since = bool(raw.pop("healthy")), raw.pop("missing_since")
        nodes = tuple(DeviceNode(**node) for node in raw.pop("nodes"))
        device = Device(nodes=nodes, numa_nodes=tuple(raw.pop("numa_nodes")), **raw)
        streak = self.settings.healthy_after - 1 if healthy else 0
        return Entry(replace(device, cause=UNCHECKED), False, UNCHECKED, streak, missing_since)
