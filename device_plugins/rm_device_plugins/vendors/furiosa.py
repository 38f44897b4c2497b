"""FuriosaAI's NPUs, through the vendor's own ``furiosa-smi-py``."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rm_device_plugins.config import parse
from rm_device_plugins.device_nodes import character_device
from rm_device_plugins.library import LibraryThread
from rm_device_plugins.vendor import Device, DeviceNode, Discovery, Vendor, VendorError, common_firmware


@dataclass(frozen=True, slots=True)
class FuriosaSettings:
    """The configuration file: there is nothing to set."""


class FuriosaVendor(Vendor):
    """What ``furiosa_smi_py.list_devices`` gives."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        parse(FuriosaSettings, settings)
        self._thread = LibraryThread("furiosa-smi")
        self._power_thread = LibraryThread("furiosa-smi, for power")
        self._library: Any = None

    async def prepare(self) -> None:
        """Loads the library. Raises VendorError where it is not installed or finds no driver."""
        try:
            self._library = import_module("furiosa_smi_py")
        except ImportError as error:
            raise VendorError(f"furiosa-smi-py is not in this image: {error}") from error
        await self._thread.call(self._library.init)

    async def discover(self) -> Discovery:
        """Asks the library for everything anew."""
        return await self._thread.call(self._discover)

    def _discover(self) -> Discovery:
        found = self._library.list_devices()
        devices = tuple(map(self._device, found))
        driver = self._library.driver_info() if devices else None
        return Discovery(
            devices,
            driver=_version(driver),
            product=devices[0].product if devices else "",
            firmware=common_firmware(devices),
        )

    def _device(self, handle: Any) -> Device:
        about = handle.device_info()
        cause = ""
        nodes: list[DeviceNode] = []
        try:
            nodes = [character_device(str(file.path)) for file in handle.device_files()]
            if not handle.liveness():
                cause = "the driver says that it does not answer"
        except Exception as error:  # the library's errors have no common class
            cause = str(error) or type(error).__name__
        return Device(
            id=str(about.uuid),
            index=int(about.index),
            serial=str(about.serial),
            product=str(about.name),
            nodes=tuple(nodes),
            cause=cause,
            numa_nodes=(int(about.numa_node),) if int(about.numa_node) >= 0 else (),
            firmware=_version(getattr(about, "firmware_version", None)),
        )

    async def power(self) -> Mapping[str, float]:
        """What the library says that the cards draw."""
        return await self._power_thread.call(self._power) if self._library is not None else {}

    def _power(self) -> dict[str, float]:
        return {str(each.device_info().uuid): float(each.power_consumption()) for each in self._library.list_devices()}


def _version(said: Any) -> str:
    return f"{said.major}.{said.minor}.{said.patch}" if said is not None else ""
