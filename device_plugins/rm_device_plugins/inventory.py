"""What is advertised: the devices that were ever seen, their health with hysteresis, and their memory on disk.

An ID is never dropped because a discovery failed or did not list it: for the kubelet a device that is not mentioned
is as good as healthy. It stays, unhealthy and with the cause, until it has been missing for long.

Partitions of one physical device fail and recover in the same moment where that device is the cause.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rm_device_plugins import files
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.logs import Log
from rm_device_plugins.sharing import shares
from rm_device_plugins.vendor import Device, DeviceNode, Discovery, Failure, Trouble

log = Log("inventory")

Snapshot = tuple[tuple[str, bool, tuple[int, ...]], ...]
"""What the kubelet is told: (ID, healthy, NUMA nodes) by index. Equal snapshots are not sent twice."""

STATE_VERSION = 2
_READABLE_VERSIONS = (1, STATE_VERSION)
"""Version 1 knew no partitions, failures and firmware, which all have a default."""
UNCHECKED = "not checked since the plugin started"
MISSING = "the driver does not list it any more"
_VERSIONS = ("driver", "sdk", "firmware", "product")
"""What is kept beside the devices."""


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
    failure: Failure = Failure.UNKNOWN
    """What helps, while it is unhealthy."""


class Inventory:
    """The believed state of all devices. Only the event loop's thread may use it."""

    def __init__(self, settings: PluginSettings, state_file: Path | None, now: Callable[[], float] = time.time) -> None:
        """Without ``state_file`` nothing is kept."""
        self.settings = settings
        self._state_file = state_file
        self._now = now
        self._entries: dict[str, Entry] = {}
        self._saved: object = None
        self._changed = asyncio.Event()
        self.driver = ""
        self.sdk = ""
        self.firmware = ""
        self.product = ""
        self.problem = ""
        """Why the last discovery failed; empty if it did not."""
        self.failures: Counter[Failure] = Counter()
        """How often a device became unhealthy, or was so when it was first seen."""
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
        self.driver, self.sdk = discovery.driver, discovery.sdk
        self.firmware, self.product = discovery.firmware, discovery.product
        parents, turned = discovery.parents, set[str]()
        listed = {device.id for device in discovery.devices}
        for device in discovery.devices:
            trouble = parents.get(device.parent) or device.trouble
            entry = self._entries.get(device.id)
            if entry is None:
                entry = Entry(device, healthy=not trouble, cause=trouble.cause, failure=trouble.failure)
                self._entries[device.id] = entry
                if trouble:
                    self.failures[trouble.failure] += 1
                log.info("new device", device=device.id, index=device.index, serial=device.serial, cause=trouble.cause)
                continue
            entry.device, entry.missing_since = device, None
            if self._judge(entry, trouble):
                turned.add(device.parent)
        for device_id in self._entries.keys() - listed:
            entry = self._entries[device_id]
            if inherited := parents.get(entry.device.parent):
                if self._judge(entry, inherited):
                    turned.add(entry.device.parent)
                continue
            if entry.missing_since is None:
                entry.missing_since = self._now()
            if self._now() - entry.missing_since > self.settings.forget_after_seconds:
                del self._entries[device_id]
                log.warning("forgot a device that was missing for long", device=device_id)
            else:
                self._judge(entry, Trouble(MISSING))
        # What is left of a physical device fails with the first of its partitions that does.
        for entry in self._entries.values():
            parent = entry.device.parent
            if entry.healthy and parent in turned and (inherited := parents.get(parent)):
                self._turn(entry, inherited)
        self._publish()

    def fail(self, cause: str) -> None:
        """Takes in a discovery that failed: nothing is known of any device, and none is dropped."""
        if self.problem != cause:
            log.warning("discovery failed", cause=cause)
        self.problem = cause
        for entry in self._entries.values():
            self._judge(entry, Trouble(f"discovery failed: {cause}"))
        self._publish()

    def _judge(self, entry: Entry, trouble: Trouble) -> bool:
        """Whether it became healthy or unhealthy by this."""
        if (not trouble) == entry.healthy:
            entry.streak, entry.cause, entry.failure = 0, trouble.cause, trouble.failure
            return False
        entry.streak += 1
        needed = self.settings.unhealthy_after if entry.healthy else self.settings.healthy_after
        if entry.streak >= needed:
            self._turn(entry, trouble)
            return True
        if not entry.healthy:
            entry.cause = f"recovering: {entry.streak} of {needed} checks passed"
            entry.failure = Failure.TRANSIENT
        return False

    def _turn(self, entry: Entry, trouble: Trouble) -> None:
        entry.healthy, entry.streak = not trouble, 0
        entry.cause, entry.failure = trouble.cause, trouble.failure
        if trouble:
            self.failures[trouble.failure] += 1
        log.warning("device health changed", device=entry.device.id, healthy=entry.healthy, cause=trouble.cause)

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
        if self._state_file is None:
            return
        entries = self.entries()
        versions = {name: getattr(self, name) for name in _VERSIONS}
        # What uses a device changes often, and a later instance asks anew.
        kept = [
            (
                replace(entry.device, out_of_band="") if entry.device.out_of_band else entry.device,
                entry.healthy,
                entry.missing_since,
            )
            for entry in entries
        ]
        if (versions, kept) == self._saved:
            return
        self._saved = (versions, kept)
        state = {
            "version": STATE_VERSION,
            **versions,
            "devices": [
                {**asdict(device), "healthy": healthy, "missing_since": missing_since}
                for device, healthy, missing_since in kept
            ],
        }
        try:
            files.write(self._state_file, json.dumps(state).encode(), durable=False)
        except OSError as error:
            log.warning("the inventory cannot be kept", file=self._state_file, cause=str(error))

    def load(self) -> None:
        """Takes up the devices that an earlier instance knew, unhealthy until the first discovery has spoken.

        A device that was healthy becomes so with its first good observation. A file that is none of ours is ignored.
        """
        if self._state_file is None:
            return
        try:
            state = json.loads(self._state_file.read_text())
            if state["version"] not in _READABLE_VERSIONS:
                raise ValueError(f"version {state['version']}")
            entries = [self._entry(raw) for raw in state["devices"]]
            for name in _VERSIONS:
                setattr(self, name, str(state.get(name, "")))
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
        failure = Failure(raw.pop("failure", Failure.UNKNOWN))
        device = Device(nodes=nodes, numa_nodes=tuple(raw.pop("numa_nodes")), failure=failure, **raw)
        streak = self.settings.healthy_after - 1 if healthy else 0
        return Entry(replace(device, cause=UNCHECKED), False, UNCHECKED, streak, missing_since)
