"""What a vendor's module provides: discovery, health and allocation of its devices. The framework does the rest."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from rm_device_plugins import sharing
from rm_device_plugins.kubelet_api import MAX_DEVICE_ID


class VendorError(Exception):
    """The vendor's tool or driver did not do what it should; the message is shown to people as the cause."""


class Failure(StrEnum):
    """What helps a device that is not well."""

    TRANSIENT = "Transient"
    """It may recover by itself."""
    NEEDS_RESET = "NeedsReset"
    """Somebody has to reset it, or to start its node again."""
    DEAD = "Dead"
    """It is to be replaced."""
    UNKNOWN = "Unknown"
    """The driver does not say."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a device must not be allocated, and what helps. A trouble without a cause is none."""

    cause: str = ""
    failure: Failure = Failure.UNKNOWN

    def __bool__(self) -> bool:
        return bool(self.cause)


WELL = Trouble()


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device file of the host, and where a container finds it."""

    host_path: str
    container_path: str
    major: int
    minor: int
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class Device:
    """One allocatable device as one discovery saw it."""

    id: str
    """Stable across reboots and re-enumeration (a UUID or serial, never an index), at most 63 characters."""
    index: int
    """The number that the vendor's tools and engines call it by on this host."""
    serial: str
    product: str
    nodes: tuple[DeviceNode, ...]
    cause: str = ""
    """Why it must not be allocated; empty if it is well. Busy is well."""
    numa_nodes: tuple[int, ...] = ()
    group: str = ""
    """Devices that share hardware (a card, a switch): packed together, and allocated one call at a time."""
    failure: Failure = Failure.UNKNOWN
    """What helps, where there is a cause."""
    firmware: str = ""
    """Its firmware's version; empty if not known."""
    parent: str = ""
    """The physical device that this is a partition of; what ``Discovery.parents`` says of that is true of all of its
    partitions, at the same time."""
    out_of_band: str = ""
    """What uses it at this moment, as the driver tells, in a few words that stay the same while it does. The framework
    shows it only where no pod has the device."""

    @property
    def trouble(self) -> Trouble:
        """``cause`` and ``failure`` in one."""
        return Trouble(self.cause, self.failure)


@dataclass(frozen=True, slots=True)
class Discovery:
    """All devices of the host, and what drives them."""

    devices: tuple[Device, ...]
    driver: str = ""
    product: str = ""
    sdk: str = ""
    """Version of the vendor's runtime libraries on this host; empty if not known."""
    firmware: str = ""
    """The devices' firmware; empty if not known, or if they differ."""
    parents: Mapping[str, Trouble] = field(default_factory=dict)
    """Physical devices that are not well, by the name that their partitions call them ``parent``. Partitions that
    cannot be listed for that reason need not be."""

    def check(self, shares: int = 1) -> None:
        """Raises VendorError if IDs are empty, too long or not unique: such a list cannot be advertised."""
        longest = MAX_DEVICE_ID - sharing.longest_suffix(shares)
        seen: set[str] = set()
        for device in self.devices:
            if not 0 < len(device.id) <= longest:
                raise VendorError(f"device {device.index} has the ID {device.id!r}; 1 to {longest} are allowed")
            if sharing.SEPARATOR in device.id:
                raise VendorError(f"the ID {device.id!r} contains {sharing.SEPARATOR!r}, which sets shares apart")
            if device.id in seen:
                raise VendorError(f"two devices have the ID {device.id!r}")
            seen.add(device.id)


def common_firmware(devices: Sequence[Device]) -> str:
    """The firmware that all of ``devices`` have; empty where they differ."""
    versions = {device.firmware for device in devices}
    return versions.pop() if len(versions) == 1 else ""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the host that a container with a device needs."""

    host_path: str
    container_path: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a container gets beside the device nodes and the variables that every plugin sets."""

    envs: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    """Device files that belong to all of the devices together."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    cdi_devices: tuple[str, ...] = ()


async def _not_known(device_ids: Collection[str]) -> bool:
    del device_ids
    return False


class Vendor(ABC):
    """One vendor's devices on this host.

    Every hook runs under a deadline and is cancelled when it has passed; it must not block the event loop (use
    ``rm_device_plugins.tool.run_tool`` for processes and ``asyncio.to_thread`` for libraries). An exception of any
    kind is a cause to show, never the end of the plugin.
    """

    pre_start_required: ClassVar[bool] = False
    """True if ``pre_start`` has work to do before each start of a container."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        """``settings`` is the configuration file without the framework's part; raise ConfigError if it is wrong."""
        self.settings = settings
        self.nobody_has: Callable[[Collection[str]], Awaitable[bool]] = _not_known
        """Whether certainly no pod has any of the devices with these IDs, as the kubelet says now. The framework
        replaces it; it is for what an ended pod left behind, so ask only when it matters."""

    async def prepare(self) -> None:  # noqa: B027 (most vendors have nothing to prepare)
        """Called before the first discovery, and again until it succeeds."""

    @abstractmethod
    async def discover(self) -> Discovery:
        """All devices with their health, every time. Raises if the list is not known to be complete."""

    async def power(self) -> Mapping[str, float]:
        """What devices draw, in watts, by ID. It runs beside ``discover``, so a library that can hang has to be called
        on a thread of its own; whatever it does makes no device unhealthy."""
        return {}

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        """Readies ``devices`` for one container. The same devices may be asked for again; the answer is the same."""
        del devices
        return Allocation()

    async def pre_start(self, devices: Sequence[Device]) -> None:  # noqa: B027
        """Called before each start of a container if ``pre_start_required``."""

    async def close(self) -> None:  # noqa: B027
        """Called once, when the plugin ends."""
