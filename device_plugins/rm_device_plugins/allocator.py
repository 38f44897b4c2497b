"""Allocation without gRPC: checks what the kubelet asks for, and runs the vendor's hooks under deadlines."""

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TypeVar

from rm_api import names

from rm_device_plugins import sharing
from rm_device_plugins.config import PluginSettings
from rm_device_plugins.inventory import Inventory
from rm_device_plugins.preferred import preferred
from rm_device_plugins.tool import bounded
from rm_device_plugins.vendor import Allocation, Device, DeviceNode, Vendor

T = TypeVar("T")

_NODE_POLL_SECONDS = 0.05


class RequestError(Exception):
    """The kubelet asks for devices that do not exist, or names one twice."""


class UnusableError(Exception):
    """The devices exist, but must not or cannot be given to a container now."""


class Allocator:
    """Gives devices of the inventory to containers. ``discover_soon`` is called when a device turns out to be bad."""

    def __init__(
        self, inventory: Inventory, vendor: Vendor, settings: PluginSettings, discover_soon: Callable[[], None]
    ) -> None:
        self._inventory = inventory
        self._vendor = vendor
        self._settings = settings
        self._discover_soon = discover_soon
        self._locks: dict[str, asyncio.Lock] = {}

    def reconfigure(self, vendor: Vendor, settings: PluginSettings) -> None:
        """Use these from the next request on."""
        self._vendor, self._settings = vendor, settings

    @property
    def pre_start_required(self) -> bool:
        """What the kubelet is told of PreStartContainer."""
        return self._vendor.pre_start_required

    async def allocate(self, ids: Sequence[str]) -> tuple[list[Device], Allocation]:
        """Readies the devices for one container; the devices by index, and what the vendor adds.

        Raises RequestError, UnusableError, DeadlineError, and whatever the vendor's hook raises.
        """
        devices = self._devices(ids)
        for device in devices:
            entry = self._inventory.get(device.id)
            if entry is None or not entry.healthy:
                raise UnusableError(f"device {device.id} is unhealthy: {entry.cause if entry else 'gone'}")
        await self._await_nodes(devices)
        seconds = self._settings.allocate_timeout_seconds
        return devices, await bounded("the vendor's allocation", self._locked(devices, self._vendor.allocate), seconds)

    async def pre_start(self, ids: Sequence[str]) -> None:
        """Readies the devices for a start of their container. Health is no matter: the container has them already."""
        devices = self._devices(ids)
        seconds = self._settings.allocate_timeout_seconds
        await bounded("the vendor's preparation", self._locked(devices, self._vendor.pre_start), seconds)

    def prefer(self, available: Sequence[str], must_include: Sequence[str], size: int) -> list[str]:
        """IDs that a container should get. Raises if the request cannot be met.

        Of shared devices those that the fewest containers have, and of each one share.
        """
        given = self._devices(must_include) if must_include else []
        free = sharing.by_device(available)
        taken = {sharing.device_of(share): share for share in must_include}
        others = sorted({len(found) for name, found in free.items() if name not in taken}, reverse=True)
        for least in others or [0]:
            idle = [name for name, found in free.items() if len(found) >= least or name in taken]
            known = self._known(idle)
            if len({device.id for device in known} | taken.keys()) >= size:
                break
        return [taken.get(device.id) or free[device.id][0] for device in preferred(known, given, size)]

    def _known(self, ids: Sequence[str]) -> list[Device]:
        entries = (self._inventory.get(device_id) for device_id in ids)
        return [entry.device for entry in entries if entry is not None and entry.healthy]

    def _devices(self, ids: Sequence[str]) -> list[Device]:
        if not ids:
            raise RequestError("no device is named")
        if len(set(ids)) != len(ids):
            raise RequestError(f"a device is named twice in {sorted(ids)}")
        known = [share for share, _, _ in self._inventory.snapshot]
        unknown = next(iter(sorted(set(ids).difference(known))), None)
        if unknown is not None:
            raise RequestError(f"there is no device {unknown!r}; there are {known[:8]}")
        names = [sharing.device_of(device_id) for device_id in ids]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UnusableError(
                f"one container would get {names.count(twice)} shares of device {twice}, which is one device to it; "
                "request fewer, or set plugin.shares to 1"
            )
        devices = [entry.device for name in names if (entry := self._inventory.get(name)) is not None]
        return sorted(devices, key=lambda device: (device.index, device.id))

    async def _locked(self, devices: Sequence[Device], hook: Callable[[Sequence[Device]], Awaitable[T]]) -> T:
        async with AsyncExitStack() as held:
            for group in sorted({device.group or device.id for device in devices}):
                await held.enter_async_context(self._locks.setdefault(group, asyncio.Lock()))
            return await hook(devices)

    async def _await_nodes(self, devices: Sequence[Device]) -> None:
        deadline = asyncio.get_running_loop().time() + self._settings.node_wait_seconds
        for device in devices:
            for node in device.nodes:
                while problem := node_problem(node):
                    if asyncio.get_running_loop().time() >= deadline:
                        self._discover_soon()
                        raise UnusableError(f"device {device.id}: {problem}")
                    await asyncio.sleep(_NODE_POLL_SECONDS)


def node_problem(node: DeviceNode) -> str:
    """Why ``node`` is not the character device that it should be; empty if it is."""
    try:
        found = os.stat(node.host_path)
    except OSError as error:
        return f"{node.host_path}: {error.strerror}"
    if not stat.S_ISCHR(found.st_mode):
        return f"{node.host_path} is no character device"
    have = (os.major(found.st_rdev), os.minor(found.st_rdev))
    if have != (node.major, node.minor):
        return f"{node.host_path} is {have[0]}:{have[1]}, and should be {node.major}:{node.minor}"
    return ""


def environment(devices: Sequence[Device], driver: str) -> dict[str, str]:
    """The variables that every plugin sets for a container that it gave ``devices`` to; ``driver`` may be empty."""
    nodes = [f"{n.container_path}={n.major}:{n.minor}" for device in devices for n in device.nodes]
    return {
        names.ENV_DEVICE_IDS: ",".join(device.id for device in devices),
        names.ENV_DEVICE_INDEXES: ",".join(str(device.index) for device in devices),
        names.ENV_DEVICE_NODES: ",".join(dict.fromkeys(nodes)),
        names.ENV_DEVICE_SERIALS: ",".join(device.serial for device in devices),
        names.ENV_DEVICE_PRODUCT: devices[0].product,
        **({names.ENV_DEVICE_DRIVER: driver} if driver else {}),
    }
