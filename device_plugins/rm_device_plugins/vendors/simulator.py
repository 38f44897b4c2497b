"""The simulated NPU: everything of a real vendor's module but the silicon.

It learns of its devices from the status tool ``rma-sim``, run as a process, and looks at the device nodes itself.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_device_plugins import simulator_tool
from rm_device_plugins.allocator import node_problem
from rm_device_plugins.config import ConfigError, parse
from rm_device_plugins.logs import Log
from rm_device_plugins.tool import run_tool
from rm_device_plugins.vendor import (
    Allocation,
    Device,
    DeviceNode,
    Discovery,
    Failure,
    Mount,
    Vendor,
    VendorError,
    common_firmware,
)

log = Log("simulator")

CONTAINER_NODES = "/dev/rma-sim"

_TOOL = (sys.executable, "-I", "-S", os.path.abspath(simulator_tool.__file__))


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """The configuration file. What is already in the directory wins over all but ``root`` and ``statusTool``."""

    root: str = str(simulator_tool.DEFAULT_ROOT)
    """The simulator's directory, at the same path on the host and in the plugin's container."""
    devices: int = 1
    product: str = "Simulated NPU X1"
    driver: str = "1.4.0"
    firmware: str = "1.0.0"
    memory_mib: int = 16384
    numa_nodes: int = 1
    status_tool: tuple[str, ...] = _TOOL
    """The status tool's command; ``status --json --driver-dir DIR`` is appended."""


class SimulatorVendor(Vendor):
    """Devices of the directory ``root``."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        self._wanted = parse(SimulatorSettings, settings)
        self._root = Path(self._wanted.root)
        if not self._root.is_absolute():
            raise ConfigError(f"root is {self._wanted.root!r}; an absolute path is needed")
        if self._wanted.devices < 0 or self._wanted.numa_nodes < 1:
            raise ConfigError("devices must be at least 0, and numaNodes at least 1")
        if not self._wanted.status_tool:
            raise ConfigError("statusTool must name a command")

    async def prepare(self) -> None:
        """Makes the directory, as the installation of a driver would."""
        wanted = self._wanted
        try:
            status = await asyncio.to_thread(
                simulator_tool.initialise,
                self._root,
                wanted.devices,
                wanted.product,
                wanted.driver,
                wanted.firmware,
                wanted.memory_mib,
                wanted.numa_nodes,
            )
        except (OSError, simulator_tool.SimulatorError) as error:
            raise VendorError(f"{self._root} cannot be prepared: {error}") from error
        for name in ("product", "driver", "firmware"):
            if status.get(name) != getattr(wanted, name):
                log.warning(
                    "the directory differs from the configuration, and wins",
                    setting=name,
                    directory=status.get(name),
                    configuration=getattr(wanted, name),
                )

    async def discover(self) -> Discovery:
        """Asks the status tool, and checks each node that it names."""
        output = await self._status()
        try:
            status = json.loads(output)
            devices = tuple(self._device(status, raw) for raw in status["devices"])
            return Discovery(
                devices,
                driver=str(status["driver"]),
                product=str(status["product"]),
                firmware=common_firmware(devices),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise VendorError(f"the status tool's answer makes no sense: {error!r}") from error

    async def _status(self) -> bytes:
        driver = str(self._root / "driver")
        return await run_tool([*self._wanted.status_tool, "status", "--json", "--driver-dir", driver])

    async def power(self) -> Mapping[str, float]:
        """What the status tool says of the devices of which it says something."""
        devices = json.loads(await self._status())["devices"]
        return {str(raw["uuid"]): float(raw["watts"]) for raw in devices if "watts" in raw}

    def _device(self, status: dict[str, Any], raw: dict[str, Any]) -> Device:
        node = DeviceNode(
            host_path=str(self._root / "dev" / raw["node"]),
            container_path=f"{CONTAINER_NODES}/{raw['node']}",
            major=int(raw["major"]),
            minor=int(raw["minor"]),
        )
        cause = node_problem(node)
        if raw["health"] != "ok":
            cause = f"the driver reports it as {raw['health']}"
        return Device(
            id=str(raw["uuid"]),
            index=int(raw["index"]),
            serial=str(raw["serial"]),
            product=str(status["product"]),
            nodes=(node,),
            cause=cause,
            numa_nodes=(int(raw["numaNode"]),),
            failure=Failure(raw.get("failure", Failure.UNKNOWN)),
            firmware=str(status.get("firmware", "")),
            out_of_band="the driver reports it as in use" if raw.get("inUse") else "",
        )

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        """Gives the container the driver's directory, in which the status tool looks."""
        del devices
        driver = Mount(host_path=str(self._root / "driver"), container_path=str(simulator_tool.DEFAULT_DRIVER_DIR))
        return Allocation(mounts=(driver,))
