"""Rebellions' NPUs, through the vendor's status tool ``rbln-smi`` and the driver's sysfs class.

Devices that work on one model together have to be one RSD group, which has a device node of its own: it is made when
more than one device is allocated, under the lock that the vendor's own tools take.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rm_device_plugins.config import ConfigError, parse
from rm_device_plugins.device_nodes import character_device, numa_nodes
from rm_device_plugins.tool import run_tool
from rm_device_plugins.vendor import Allocation, Device, DeviceNode, Discovery, Vendor, VendorError

ENV_VISIBLE: Final = "RBLN_VISIBLE_DEVICES"
GROUP_NODE: Final = "/dev/rsd0"
_LOCK_POLL_SECONDS: Final = 0.05
_WELL: Final = frozenset({"ready", "busy", "0", "1"})
"""Busy is well: a device that computes. By number only these two mean the same to all versions of the driver."""


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
        if not self._wanted.status_tool:
            raise ConfigError("statusTool must name a command")

    async def discover(self) -> Discovery:
        """Asks the status tool, and the driver for each device's state."""
        status = await self._status()
        try:
            devices = tuple(map(self._device, status["devices"]))
            product = devices[0].product if devices else ""
            return Discovery(devices, driver=str(status["KMD_version"]), product=product)
        except (KeyError, TypeError, ValueError) as error:
            raise VendorError(f"the status tool's answer makes no sense: {error!r}") from error

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
        cause = ""
        nodes: tuple[DeviceNode, ...] = ()
        try:
            nodes = (character_device(f"{self._wanted.dev_root}/{name}", f"/dev/{name}"),)
        except VendorError as error:
            cause = str(error)
        return Device(
            id=str(raw["uuid"]),
            index=int(raw["npu"]),
            serial=str(raw["sid"]),
            product=str(raw["name"]),
            nodes=nodes,
            cause=cause or self._trouble(name),
            numa_nodes=numa_nodes(str(raw["pci"]["numa_node"])),
            group=str(raw["sid"]),
        )

    def _trouble(self, name: str) -> str:
        file = Path(self._wanted.sys_root, "class", "rebellions", name, "status")
        try:
            said = file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            # What cannot be asked is not assumed to be well.
            return f"{file}: {error.strerror}"
        words = said.lower().split()
        return "" if words and _WELL.intersection(words) else f"the driver reports its state as {said or 'nothing'}"

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
        groups: dict[int, set[int]] = {}
        for raw in (await self._status("-g")).get("devices") or []:
            try:
                groups.setdefault(int(raw["group_id"]), set()).add(int(raw["npu"]))
            except (KeyError, TypeError, ValueError) as error:
                raise VendorError(f"the status tool's answer makes no sense: {error!r}") from error
        # Group 0 is where devices without a group are.
        groups.pop(0, None)
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
