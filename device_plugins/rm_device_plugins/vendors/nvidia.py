"""NVIDIA's GPUs, through NVML.

A GPU is unhealthy while the driver asks for a recovery action (a reset, a reboot), or does not answer for it. Drivers
that do not know recovery actions tell of trouble by XID events only: an XID that is not an application's own fault
makes the GPU unhealthy, for good where it takes a reset to recover, and otherwise until nothing was heard for a while.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rm_device_plugins.config import ConfigError, parse
from rm_device_plugins.device_nodes import character_device, numa_nodes, read_attribute
from rm_device_plugins.library import LibraryThread
from rm_device_plugins.logs import Log
from rm_device_plugins.vendor import Allocation, Device, DeviceNode, Discovery, Vendor, VendorError

log = Log("nvidia")

ENV_VISIBLE: Final = "NVIDIA_VISIBLE_DEVICES"
CDI_KIND: Final = "nvidia.com/gpu"
APPLICATION_XIDS: Final = frozenset({8, 13, 31, 43, 45, 68, 109})
"""What a program did wrong, and the next one need not: illegal accesses, its own page faults, its own time limits."""
RESET_XIDS: Final = frozenset({48, 62, 64, 74, 79, 95, 110, 119, 120, 136, 140, 143, 155, 156, 158})
"""After these the GPU has to be reset, or the node to be started again: NVIDIA's catalogue of XIDs says so."""
_SHARED_NODES: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
_INJECTIONS: Final = ("envvar", "cdi", "none")


@dataclass(frozen=True, slots=True)
class NvidiaSettings:
    """The configuration file."""

    inject: str = "envvar"
    """Who brings the driver's libraries into containers: NVIDIA's runtime (envvar), CDI (cdi), or nobody (none)."""
    ignored_xids: tuple[str, ...] = ()
    """Further XIDs that say nothing of a GPU's health."""
    probation_seconds: float = 600.0
    """For drivers without recovery actions: after so long without a further XID a GPU counts as well again."""
    dev_root: str = "/dev"
    sys_root: str = "/sys"


@dataclass
class _Xid:
    number: int
    at: float


class NvidiaVendor(Vendor):
    """All GPUs that NVML lists."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        self._wanted = parse(NvidiaSettings, settings)
        if self._wanted.inject not in _INJECTIONS:
            raise ConfigError(f"inject is {self._wanted.inject!r}; it must be one of {', '.join(_INJECTIONS)}")
        try:
            self._ignored = APPLICATION_XIDS | {int(text) for text in self._wanted.ignored_xids}
        except ValueError as error:
            raise ConfigError(f"ignoredXids must be numbers in quotes: {error}") from error
        self._thread = LibraryThread("NVML")
        self._nvml: Any = None
        self._events: Any = None
        self._watched: set[str] = set()
        self._xids: dict[str, _Xid] = {}
        self._last: dict[int, Device] = {}

    async def prepare(self) -> None:
        """Loads NVML. Raises VendorError where the driver or its library is not to be found."""
        self._nvml = import_module("pynvml")
        await self._thread.call(self._start)

    def _start(self) -> None:
        nvml = self._nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise VendorError(
                f"NVML cannot be started: {error}. The plugin's pod needs the driver's libraries: run it with NVIDIA's "
                "runtime class, or mount them"
            ) from error
        self._events = nvml.nvmlEventSetCreate()

    async def discover(self) -> Discovery:
        """Asks NVML for everything anew."""
        return await self._thread.call(self._discover)

    def _discover(self) -> Discovery:
        nvml = self._nvml
        try:
            count, driver = nvml.nvmlDeviceGetCount(), nvml.nvmlSystemGetDriverVersion()
        except nvml.NVMLError as error:
            raise VendorError(f"NVML does not list the GPUs: {error}") from error
        self._hear()
        devices = []
        for index in range(count):
            try:
                device = self._device(index)
            except nvml.NVMLError as error:
                # A GPU that fell off the bus is still counted. Others must not suffer for it.
                if index not in self._last:
                    raise VendorError(f"GPU {index} cannot be identified: {error}") from error
                device = replace(self._last[index], cause=f"NVML: {error}")
            self._last[index] = device
            devices.append(device)
        return Discovery(tuple(devices), driver=driver, product=devices[0].product if devices else "")

    def _device(self, index: int) -> Device:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        self._watch(handle, uuid)
        cause = ""
        nodes: tuple[DeviceNode, ...] = ()
        try:
            nodes = self._nodes(nvml.nvmlDeviceGetMinorNumber(handle))
        except VendorError as error:
            cause = str(error)
        return Device(
            id=uuid,
            index=index,
            serial=self._serial(handle) or uuid,
            product=nvml.nvmlDeviceGetName(handle),
            nodes=nodes,
            cause=cause or self._trouble(handle, uuid),
            numa_nodes=self._numa(handle),
        )

    def _nodes(self, minor: int) -> tuple[DeviceNode, ...]:
        dev = self._wanted.dev_root
        own = character_device(f"{dev}/nvidia{minor}", f"/dev/nvidia{minor}")
        shared = [name for name in _SHARED_NODES if Path(dev, name).exists()]
        return own, *(character_device(f"{dev}/{name}", f"/dev/{name}") for name in shared)

    def _serial(self, handle: Any) -> str:
        try:
            return str(self._nvml.nvmlDeviceGetSerial(handle))
        except self._nvml.NVMLError:
            return ""  # boards without one say that it is not supported

    def _numa(self, handle: Any) -> tuple[int, ...]:
        # NVML writes the domain with eight digits, and the kernel with four.
        domain, _, rest = str(self._nvml.nvmlDeviceGetPciInfo_v3(handle).busId).lower().partition(":")
        file = Path(self._wanted.sys_root, "bus/pci/devices", f"{domain[-4:]}:{rest}", "numa_node")
        try:
            return numa_nodes(read_attribute(file))
        except VendorError:
            return ()

    # Health

    def _watch(self, handle: Any, uuid: str) -> None:
        if uuid in self._watched:
            return
        nvml = self._nvml
        try:
            wanted = nvml.nvmlEventTypeXidCriticalError & nvml.nvmlDeviceGetSupportedEventTypes(handle)
            if wanted:
                nvml.nvmlDeviceRegisterEvents(handle, wanted, self._events)
        except nvml.NVMLError as error:
            log.warning("no events of this GPU", device=uuid, cause=str(error))
        self._watched.add(uuid)

    def _hear(self) -> None:
        """Takes in the events since the last time."""
        nvml = self._nvml
        while True:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:
                return  # nothing more, which NVML calls a timeout; what else it may be shows in the queries
            number = int(event.eventData)
            if event.eventType != nvml.nvmlEventTypeXidCriticalError or number in self._ignored:
                continue
            try:
                uuid = nvml.nvmlDeviceGetUUID(event.device)
            except nvml.NVMLError as error:
                log.warning("an XID of a GPU that does not say which it is", xid=number, cause=str(error))
                continue
            before = self._xids.get(uuid)
            if before is None or before.number not in RESET_XIDS:
                self._xids[uuid] = _Xid(number, time.monotonic())
            log.warning("XID", device=uuid, xid=number)

    def _trouble(self, handle: Any, uuid: str) -> str:
        xid = self._xids.get(uuid)
        heard = f"XID {xid.number}" if xid is not None else ""
        action = self._recovery_action(handle)
        if action is not None:
            if not action:
                # The driver has the last word: a reset has happened, or none is needed.
                self._xids.pop(uuid, None)
                return ""
            return f"the driver asks for {action}" + (f" after {heard}" if heard else "")
        if xid is None:
            return ""
        if xid.number in RESET_XIDS:
            return f"{heard}: the GPU has to be reset; restart this plugin afterwards"
        if time.monotonic() - xid.at < self._wanted.probation_seconds:
            return heard
        del self._xids[uuid]
        return ""

    def _recovery_action(self, handle: Any) -> str | None:
        """What the driver wants to be done, empty if nothing; None if it does not know such a thing."""
        nvml = self._nvml
        (answer,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
        if answer.nvmlReturn != nvml.NVML_SUCCESS:
            return None
        actions = {
            nvml.NVML_GPU_RECOVERY_ACTION_NONE: "",
            nvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: "a reset of the GPU",
            nvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: "a restart of the node",
            nvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: "a drain of its peer-to-peer traffic",
            nvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "a drain and a reset of the GPU",
        }
        number = int(answer.value.uiVal)
        return actions.get(number, f"recovery action {number}")

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        """Names the GPUs to whoever brings the driver's libraries into the container."""
        if self._wanted.inject == "cdi":
            return Allocation(cdi_devices=tuple(f"{CDI_KIND}={device.id}" for device in devices))
        if self._wanted.inject == "envvar":
            return Allocation(envs={ENV_VISIBLE: ",".join(device.id for device in devices)})
        return Allocation()
