"""UPMEM's processing-in-memory: a device is a rank of 64 processing units, as the driver's sysfs class shows it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rm_device_plugins.config import parse
from rm_device_plugins.device_nodes import character_device, numa_nodes, read_attribute
from rm_device_plugins.library import LibraryThread
from rm_device_plugins.vendor import Device, Discovery, Vendor, VendorError

PRODUCT = "UPMEM PIM rank"
_RANK = re.compile(r"dpu_rank(\d+)")


@dataclass(frozen=True, slots=True)
class UpmemSettings:
    """The configuration file."""

    sys_root: str = "/sys"
    dev_root: str = "/dev"


class UpmemVendor(Vendor):
    """Ranks of the class ``dpu_rank``."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        wanted = parse(UpmemSettings, settings)
        self._class = Path(wanted.sys_root, "class", "dpu_rank")
        self._module = Path(wanted.sys_root, "module", "dpu", "version")
        self._dev = wanted.dev_root
        self._thread = LibraryThread("the driver's sysfs class")

    async def discover(self) -> Discovery:
        """Reads what the driver says of each rank. A node without the class has no such memory."""
        return await self._thread.call(self._discover)

    def _discover(self) -> Discovery:
        try:
            names = [entry.name for entry in self._class.iterdir()]
        except FileNotFoundError:
            return Discovery((), product=PRODUCT)
        except OSError as error:
            raise VendorError(f"{self._class}: {error.strerror}") from error
        found = sorted(int(match.group(1)) for match in map(_RANK.fullmatch, names) if match)
        driver = self._module.read_text().strip() if self._module.is_file() else ""
        return Discovery(tuple(map(self._device, found)), driver=driver, product=PRODUCT)

    def _device(self, number: int) -> Device:
        rank = self._class / f"dpu_rank{number}"
        # A DIMM carries two ranks under one serial number; the rank's place on its DIMM tells them apart.
        module = read_attribute(rank / "serial_number")
        place = read_attribute(rank / "rank_index")
        serial = f"{module}-{place}"
        cause = ""
        numa: tuple[int, ...] = ()
        paths = [f"{self._dev}/dpu_rank{number}"]
        # The rank's memory, which newer drivers show as a device of its own.
        memory = f"{self._dev}/dax{number}.{number}"
        if os.path.exists(memory):
            paths.append(memory)
        nodes = []
        try:
            nodes = [character_device(path, f"/dev/{os.path.basename(path)}") for path in paths]
            if (rank / "device" / "numa_node").exists():
                numa = numa_nodes(read_attribute(rank / "device" / "numa_node"))
        except VendorError as error:
            cause = str(error)
        return Device(
            id=serial,
            index=number,
            serial=serial,
            product=PRODUCT,
            nodes=tuple(nodes),
            cause=cause,
            numa_nodes=numa,
            group=module,
            out_of_band=_use(rank),
        )


def _use(rank: Path) -> str:
    """Whether somebody has taken the rank: the driver counts, and does not say who it is."""
    try:
        owned, users = read_attribute(rank / "is_owned"), read_attribute(rank / "usage_count")
    except VendorError:
        return ""
    if owned in ("", "0"):
        return ""
    return f"a program that owns the rank (usage count {users or 'not known'})"
