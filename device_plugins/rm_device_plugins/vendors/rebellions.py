"""Rebellions' NPUs, through the vendor's status tool ``rbln-smi`` and the driver's sysfs class.

Devices that work on one model together have to be one RSD group, which has a device node of its own: it is made when
more than one device is allocated, under the lock that the vendor's own tools take.
"""

import asyncio
import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rm_device_plugins.config import ConfigError, parse
from rm_device_plugins.device_nodes import character_device, numa_nodes
from rm_device_plugins.library import LibraryThread
from rm_device_plugins.logs import Log
from rm_device_plugins.tool import run_tool
from rm_device_plugins.vendor import (
    Allocation,
    Device,
    DeviceNode,
    Discovery,
    Failure,
    Trouble,
    Vendor,
    VendorError,
    common_firmware,
)

log = Log("rebellions")

ENV_VISIBLE: Final = "RBLN_VISIBLE_DEVICES"
GROUP_NODE: Final = "/dev/rsd0"
_LOCK_POLL_SECONDS: Final = 0.05
_WELL: Final = frozenset({"ready", "busy", "0", "1"})
"""Busy is well: a device that computes. By number only these two mean the same to all versions of the driver."""
_BUSY: Final = frozenset({"busy", "1"})
_POWER: Final = re.compile(r"\d+(\.\d+)?(?=\s*(W|/|$))")
_PASSING: Final = frozenset({"init", "probing", "finish"})
"""States between others. What ends a fault is not documented."""


@dataclass(frozen=True, slots=True)
class RebellionsSettings:
    """The configuration file."""

    status_tool: tuple[str, ...] = ("rbln-smi",)
    sys_root: str = "/sys"
    dev_root: str = "/dev"
    group_lock: str = "/var/run/rbln-rsd-group.lock"
    cdi_device: str = ""
    """A CDI device that brings the driver's libraries, such as ``rebellions.ai/npu=runtime``; empty for none."""


class RebellionsVendor(Vendor):
    """What ``rbln-smi -j`` lists."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        self._wanted = parse(RebellionsSettings, settings)
        self._thread = LibraryThread("the driver's sysfs class")
        if not self._wanted.status_tool:
            raise ConfigError("statusTool must name a command")

    async def discover(self) -> Discovery:
        """Asks the status tool, and the driver for each device's state."""
        status = await self._status()
        try:
            devices = await self._thread.call(lambda: tuple(map(self._device, status["devices"])))
            found = Discovery(
                devices,
                driver=str(status["KMD_version"]),
                product=devices[0].product if devices else "",
                firmware=common_firmware(devices),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise VendorError(f"the status tool's answer makes no sense: {error!r}") from error
        return replace(found, devices=await self._with_groups(devices))

    async def power(self) -> Mapping[str, float]:
        """What the status tool says that cards draw, in equal parts for the devices of a card."""
        devices = (await self._status())["devices"]
        on_card = Counter(str(raw["sid"]) for raw in devices)
        said = {str(raw["uuid"]): (_POWER.match(str(raw.get("card_power", ""))), str(raw["sid"])) for raw in devices}
        return {uuid: float(watts.group()) / on_card[card] for uuid, (watts, card) in said.items() if watts}

    async def _with_groups(self, devices: tuple[Device, ...]) -> tuple[Device, ...]:
        """The devices, with what uses the RSD group that one is in: whoever works with one member has all of them."""
        busy = {device.index for device in devices if device.out_of_band}
        if not busy:
            return devices
        try:
            groups = await self._groups()
        except VendorError as error:
            # Nobody's health depends on it.
            log.warning("RSD groups are not known", cause=str(error))
            return devices
        uses = {
            index: f"RSD group {number}, of which {', '.join(map(str, sorted(members & busy)))} is BUSY"
            for number, members in groups.items()
            for index in members
            if members & busy
        }
        return tuple(replace(device, out_of_band=uses.get(device.index, device.out_of_band)) for device in devices)

    async def _groups(self) -> dict[int, set[int]]:
        """Indexes of devices by the number of their RSD group."""
        groups: dict[int, set[int]] = {}
        for raw in (await self._status("-g")).get("devices") or []:
            try:
                groups.setdefault(int(raw["group_id"]), set()).add(int(raw["npu"]))
            except (KeyError, TypeError, ValueError) as error:
                raise VendorError(f"the status tool's answer makes no sense: {error!r}") from error
        # Group 0 is where devices without a group are.
        groups.pop(0, None)
        return groups

    async def _status(self, *options: str) -> dict[str, Any]:
        output = await run_tool([*self._wanted.status_tool, *options, "-j"])
        try:
            status = json.loads(output)
        except ValueError as error:
            raise VendorError(f"the status tool's answer is no JSON: {error}") from error
        if not isinstance(status, dict):
            raise VendorError("the status tool's answer is no object")
        return status

    def _device(self, raw: dict[str, Any]) -> Device:
        name = str(raw["device"])
        trouble, busy = self._state(name)
        nodes: tuple[DeviceNode, ...] = ()
        try:
            nodes = (character_device(f"{self._wanted.dev_root}/{name}", f"/dev/{name}"),)
        except VendorError as error:
            trouble = Trouble(str(error))
        return Device(
            id=str(raw["uuid"]),
            index=int(raw["npu"]),
            serial=str(raw["sid"]),
            product=str(raw["name"]),
            nodes=nodes,
            cause=trouble.cause,
            numa_nodes=numa_nodes(str(raw["pci"]["numa_node"])),
            group=str(raw["sid"]),
            failure=trouble.failure,
            firmware=str(raw.get("fw_ver", "")),
            out_of_band="the driver reports it as BUSY" if busy else "",
        )

    def _state(self, name: str) -> tuple[Trouble, bool]:
        """What is wrong with the device, and whether it computes."""
        file = Path(self._wanted.sys_root, "class", "rebellions", name, "status")
        try:
            said = file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            # What cannot be asked is not assumed to be well.
            return Trouble(f"{file}: {error.strerror}"), False
        words = set(said.lower().split())
        if words & _WELL:
            return Trouble(), bool(words & _BUSY)
        failure = Failure.TRANSIENT if words & _PASSING else Failure.UNKNOWN
        return Trouble(f"the driver reports its state as {said or 'nothing'}", failure), False

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        """Puts several devices into one RSD group, and names the devices to the engine."""
        nodes: tuple[DeviceNode, ...] = ()
        if len(devices) > 1:
            async with self._group_lock():
                group = await self._group_of({device.index for device in devices})
            nodes = (character_device(f"{self._wanted.dev_root}/rsd{group}", GROUP_NODE),)
        return Allocation(
            envs={ENV_VISIBLE: ",".join(str(device.index) for device in devices)},
            nodes=nodes,
            cdi_devices=(self._wanted.cdi_device,) if self._wanted.cdi_device else (),
        )

    @asynccontextmanager
    async def _group_lock(self) -> AsyncIterator[None]:
        try:
            descriptor = os.open(self._wanted.group_lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise VendorError(f"{self._wanted.group_lock}: {error.strerror}") from error
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    async def _group_of(self, wanted: set[int]) -> int:
        """The group that consists of these devices, made anew where there is none.

        Raises VendorError where a group would lose some devices of it, and keep others: somebody works with it.
        """
        groups = await self._groups()
        overlapping = {number: members for number, members in groups.items() if members & wanted}
        for number, members in overlapping.items():
            if members == wanted:
                return number
            if members - wanted:
                raise VendorError(f"RSD group {number} also has the devices {sorted(members - wanted)}")
        for number in sorted(overlapping):
            await run_tool([*self._wanted.status_tool, "group", "-d", str(number)])
        free = next(number for number in range(1, len(groups) + 2) if number not in groups or number in overlapping)
        indexes = ",".join(map(str, sorted(wanted)))
        await run_tool([*self._wanted.status_tool, "group", "-c", str(free), "-a", indexes])
        return free
