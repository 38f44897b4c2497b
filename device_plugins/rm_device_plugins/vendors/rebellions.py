"""Rebellions' NPUs, through the vendor's status tool ``rbln-smi`` and the driver's sysfs class."""

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rm_device_plugins.config import ConfigError, parse
from rm_device_plugins.device_nodes import character_device, numa_nodes
from rm_device_plugins.library import LibraryThread
from rm_device_plugins.logs import Log
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
from rm_device_plugins.vendors.rebellions_groups import RsdGroups, status

log = Log("rebellions")

ENV_VISIBLE: Final = "RBLN_VISIBLE_DEVICES"
GROUP_NODE: Final = "/dev/rsd0"
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
        self._groups = RsdGroups(self._wanted.status_tool, self._wanted.group_lock)
        self._ids: dict[int, str] = {}
        self._groups_problem = ""

    async def discover(self) -> Discovery:
        """Asks the status tool, and the driver for each device's state."""
        said = await status(self._wanted.status_tool)
        try:
            devices = await self._thread.call(lambda: tuple(map(self._device, said["devices"])))
            found = Discovery(
                devices,
                driver=str(said["KMD_version"]),
                product=devices[0].product if devices else "",
                firmware=common_firmware(devices),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise VendorError(f"the status tool's answer makes no sense: {error!r}") from error
        self._ids = {device.index: device.id for device in devices}
        return replace(found, devices=await self._with_groups(devices))

    async def power(self) -> Mapping[str, float]:
        """What the status tool says that cards draw, in equal parts for the devices of a card."""
        devices = (await status(self._wanted.status_tool))["devices"]
        on_card = Counter(str(raw["sid"]) for raw in devices)
        said = {str(raw["uuid"]): (_POWER.match(str(raw.get("card_power", ""))), str(raw["sid"])) for raw in devices}
        return {uuid: float(watts.group()) / on_card[card] for uuid, (watts, card) in said.items() if watts}

    async def _with_groups(self, devices: tuple[Device, ...]) -> tuple[Device, ...]:
        """The devices, with what uses the RSD group that one is in: whoever works with one member has all of them."""
        busy = {device.index for device in devices if device.out_of_band}
        if not busy:
            return devices
        try:
            groups = await self._groups.all()
        except VendorError as error:
            # Nobody's health depends on it.
            if str(error) != self._groups_problem:
                log.warning("RSD groups are not known", cause=str(error))
            self._groups_problem = str(error)
            return devices
        uses = {
            index: f"RSD group {number}, of which {', '.join(map(str, sorted(members & busy)))} is BUSY"
            for number, members in groups.items()
            for index in members
            if members & busy
        }
        return tuple(replace(device, out_of_band=uses.get(device.index, device.out_of_band)) for device in devices)

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
            group = await self._groups.of({device.index for device in devices}, self._nobody_has)
            nodes = (character_device(f"{self._wanted.dev_root}/rsd{group}", GROUP_NODE),)
        else:
            # It needs no group, and others that were in one with it may come to need another.
            with contextlib.suppress(VendorError):
                await self._groups.leave(devices[0].index, self._nobody_has)
        return Allocation(
            envs={ENV_VISIBLE: ",".join(str(device.index) for device in devices)},
            nodes=nodes,
            cdi_devices=(self._wanted.cdi_device,) if self._wanted.cdi_device else (),
        )

    async def _nobody_has(self, indexes: Collection[int]) -> bool:
        ids = [self._ids[index] for index in indexes if index in self._ids]
        return len(ids) == len(indexes) and await self.nobody_has(ids)
