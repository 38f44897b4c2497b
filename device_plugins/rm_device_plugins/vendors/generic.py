"""Any device that is a file: cameras, serial lines, accelerators without a module of their own."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rm_device_plugins.config import ConfigError, parse
from rm_device_plugins.device_nodes import character_device, numa_nodes, read_attribute
from rm_device_plugins.kubelet_api import MAX_DEVICE_ID
from rm_device_plugins.library import LibraryThread
from rm_device_plugins.vendor import Device, Discovery, Failure, Trouble, Vendor, VendorError, common_firmware

_NUMBER = re.compile(r"(\d+)\D*$")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class GenericSettings:
    """The configuration file. In the files below, ``{name}`` stands for the last part of the device's real path."""

    match: tuple[str, ...]
    """Patterns of paths; each path that is found is a device. ``/dev/…/by-id/*`` gives IDs that survive a reboot."""
    nodes: tuple[str, ...] = ()
    """Patterns of further device files that every container with a device gets."""
    product: str = "generic"
    serial_file: str = ""
    """A file that holds the device's serial, such as ``/sys/class/accel/{name}/device/serial``: it becomes the ID."""
    health_file: str = ""
    """A file whose content says how the device is."""
    healthy: tuple[str, ...] = ()
    """Contents of ``healthFile`` that mean that all is well."""
    transient: tuple[str, ...] = ()
    """Contents that mean that it may recover by itself."""
    needs_reset: tuple[str, ...] = ()
    """Contents that mean that somebody has to reset it."""
    dead: tuple[str, ...] = ()
    """Contents that mean that it is to be replaced."""
    firmware_file: str = ""
    """A file that holds the firmware's version."""
    numa_file: str = ""
    """A file that holds the number of the NUMA node, such as ``/sys/class/accel/{name}/device/numa_node``."""


class GenericVendor(Vendor):
    """Devices that are found by patterns of paths."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        self._wanted = parse(GenericSettings, settings)
        self._thread = LibraryThread("the host's file system")
        patterns = (*self._wanted.match, *self._wanted.nodes)
        if not self._wanted.match:
            raise ConfigError("match must name at least one pattern of paths")
        relative = [pattern for pattern in patterns if not os.path.isabs(pattern)]
        if relative:
            raise ConfigError(f"{relative[0]!r} is no absolute path")
        if bool(self._wanted.health_file) != bool(self._wanted.healthy):
            raise ConfigError("healthFile and healthy belong together: give both or none")
        self._failures = {
            **dict.fromkeys(self._wanted.transient, Failure.TRANSIENT),
            **dict.fromkeys(self._wanted.needs_reset, Failure.NEEDS_RESET),
            **dict.fromkeys(self._wanted.dead, Failure.DEAD),
        }
        if self._failures and not self._wanted.health_file:
            raise ConfigError("transient, needsReset and dead are contents of healthFile, which is not given")
        named = (*self._wanted.healthy, *self._wanted.transient, *self._wanted.needs_reset, *self._wanted.dead)
        twice = next((content for content in named if named.count(content) > 1), None)
        if twice is not None:
            raise ConfigError(f"{twice!r} is said to mean two things of healthy, transient, needsReset and dead")

    async def discover(self) -> Discovery:
        """Looks for the paths. None at all is no failure: a node may have none of these devices."""
        return await self._thread.call(self._discover)

    def _discover(self) -> Discovery:
        found: dict[str, str] = {}
        for path in _paths(self._wanted.match):
            found.setdefault(os.path.realpath(path), path)
        shared = tuple(character_device(path) for path in _paths(self._wanted.nodes))
        devices = []
        for position, (real, path) in enumerate(sorted(found.items())):
            number = _NUMBER.search(os.path.basename(real))
            serial, cause = self._identity(real, path)
            trouble, firmware = Trouble(cause), ""
            numa: tuple[int, ...] = ()
            nodes = shared
            try:
                nodes = (character_device(path), *shared)
                if self._wanted.numa_file:
                    numa = numa_nodes(read_attribute(_file(self._wanted.numa_file, real)))
                if self._wanted.firmware_file:
                    firmware = read_attribute(_file(self._wanted.firmware_file, real))
                trouble = trouble or self._trouble(real)
            except VendorError as error:
                trouble = Trouble(str(error))
            devices.append(
                Device(
                    id=_short(serial),
                    index=int(number.group(1)) if number else position,
                    serial=serial,
                    product=self._wanted.product,
                    nodes=nodes,
                    cause=trouble.cause,
                    numa_nodes=numa,
                    failure=trouble.failure,
                    firmware=firmware,
                )
            )
        return Discovery(tuple(devices), product=self._wanted.product, firmware=common_firmware(devices))

    def _identity(self, real: str, path: str) -> tuple[str, str]:
        """The serial, and why the device cannot be trusted where it cannot be read."""
        if not self._wanted.serial_file:
            return path.strip("/"), ""
        serial = read_attribute(_file(self._wanted.serial_file, real))
        return (serial, "") if serial else (path.strip("/"), "its serial is empty")

    def _trouble(self, real: str) -> Trouble:
        if not self._wanted.health_file:
            return Trouble()
        file = _file(self._wanted.health_file, real)
        said = read_attribute(file)
        if said in self._wanted.healthy:
            return Trouble()
        return Trouble(f"{file} says {said!r}", self._failures.get(said, Failure.UNKNOWN))


def _paths(patterns: Iterable[str]) -> list[str]:
    return sorted({path for pattern in patterns for path in glob.glob(pattern)})


def _file(template: str, real: str) -> Path:
    return Path(template.replace("{name}", os.path.basename(real)))


def _short(serial: str) -> str:
    """An ID that the kubelet takes; where it has to be shortened, its end tells it from others."""
    plain = _UNSAFE.sub("-", serial)
    if plain == serial and len(plain) <= MAX_DEVICE_ID:
        return plain
    digest = hashlib.sha256(serial.encode()).hexdigest()[:8]
    return f"{plain[: MAX_DEVICE_ID - 9]}-{digest}"
