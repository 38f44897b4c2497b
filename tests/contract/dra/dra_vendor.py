"""The simulated NPU with an allocation that can be made to hang, to fail and to be watched."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rm_device_plugins.vendor import Allocation, Device, VendorError
from rm_device_plugins.vendors.simulator import SimulatorVendor


class WatchedVendor(SimulatorVendor):
    """In the simulator's directory: ``hang-INDEX`` and ``fail-INDEX``; ``calls`` gets a line for each call."""

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        """Notes the call, and does what it is told to."""
        root = Path(str(self.settings["root"]))
        indexes = [device.index for device in devices]
        with (root / "calls").open("a") as calls:
            calls.write(f"{indexes}\n")
        for index in indexes:
            if (root / f"fail-{index}").exists():
                raise VendorError(f"NPU {index} does not want to")
            while (root / f"hang-{index}").exists():  # noqa: ASYNC110 (another process tells)
                await asyncio.sleep(0.02)
        return await super().allocate(devices)
