"""NVIDIA's GPUs and their MIG instances, through NVML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from rm_device_plugins.config import ConfigError, parse
from rm_device_plugins.device_nodes import character_device, numa_nodes, read_attribute
from rm_device_plugins.library import LibraryThread
from rm_device_plugins.vendor import (
    Allocation,
    Device,
    DeviceNode,
    Discovery,
    Trouble,
    Vendor,
    VendorError,
    common_firmware,
)
from rm_device_plugins.vendors import nvidia_mig as mig
from rm_device_plugins.vendors.nvidia_health import APPLICATION_XIDS, Health, of_error, use

ENV_VISIBLE: Final = "NVIDIA_VISIBLE_DEVICES"
CDI_KIND: Final = "nvidia.com/gpu"
_SHARED_NODES: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
_INJECTIONS: Final = ("envvar", "cdi", "none")


@dataclass(frozen=True, slots=True)
class NvidiaSettings:
    """The configuration file."""

    inject: str = "envvar"
    """Who brings the driver's libraries into containers: NVIDIA's runtime (envvar), CDI (cdi), or nobody (none)."""
    mig: str = "none"
    """What is a device: GPUs (none), instances of GPUs that are all cut alike (single), or one kind of both (mixed)."""
    mig_profile: str = ""
    """With ``mig: mixed`` the instances that are devices, such as ``1g.10gb``; empty for the GPUs that are not cut."""
    ignored_xids: tuple[str, ...] = ()
    """Further XIDs that say nothing of a GPU's health."""
    probation_seconds: float = 600.0
    """For drivers without recovery actions: after so long without a further XID a GPU counts as well again."""
    dev_root: str = "/dev"
    sys_root: str = "/sys"
    proc_root: str = "/proc"


@dataclass(frozen=True, slots=True)
class _Gpu:
    """A GPU as a device of its own; of one that does not answer, as it was when it did."""

    device: Device
    cut: bool
    minor: int = -1
    parts: tuple[mig.Instance, ...] = ()


class NvidiaVendor(Vendor):
    """GPUs that NVML lists, or instances of them."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        self._wanted = parse(NvidiaSettings, settings)
        if self._wanted.inject not in _INJECTIONS:
            raise ConfigError(f"inject is {self._wanted.inject!r}; it must be one of {', '.join(_INJECTIONS)}")
        mig.check(self._wanted.mig, self._wanted.mig_profile)
        try:
            self._ignored = APPLICATION_XIDS | {int(text) for text in self._wanted.ignored_xids}
        except ValueError as error:
            raise ConfigError(f"ignoredXids must be numbers in quotes: {error}") from error
        self._thread = LibraryThread("NVML")
        self._power_thread = LibraryThread("NVML, for power")
        self._nvml: Any = None
        self._health: Any = None
        self._last: dict[int, _Gpu] = {}

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
        self._health = Health(nvml, self._ignored, self._wanted.probation_seconds)

    async def discover(self) -> Discovery:
        """Asks NVML for everything anew."""
        return await self._thread.call(self._discover)

    def _discover(self) -> Discovery:
        nvml = self._nvml
        try:
            count, driver = nvml.nvmlDeviceGetCount(), nvml.nvmlSystemGetDriverVersion()
            cuda = nvml.nvmlSystemGetCudaDriverVersion_v2()
        except nvml.NVMLError as error:
            raise VendorError(f"NVML does not list the GPUs: {error}") from error
        self._health.hear()
        gpus = []
        for index in range(count):
            try:
                gpu = self._gpu(index)
            except nvml.NVMLError as error:
                # A GPU that fell off the bus is still counted. Others must not suffer for it.
                if index not in self._last:
                    raise VendorError(f"GPU {index} cannot be identified: {error}") from error
                gpu = self._last[index]
                trouble = of_error(nvml, error)
                gpu = replace(gpu, device=replace(gpu.device, cause=trouble.cause, failure=trouble.failure))
            self._last[index] = gpu
            gpus.append(gpu)
        devices, parents = self._wanted_of(gpus)
        return Discovery(
            tuple(devices),
            driver=driver,
            product=devices[0].product if devices else "",
            sdk=f"{cuda // 1000}.{cuda % 1000 // 10}",
            firmware=common_firmware(devices),
            parents=parents,
        )

    def _gpu(self, index: int) -> _Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = nvml.nvmlDeviceGetUUID(handle)
        self._health.watch(handle, uuid)
        minor = nvml.nvmlDeviceGetMinorNumber(handle)
        cut = self._wanted.mig != "none" and mig.is_cut(nvml, handle)
        trouble, nodes = self._nodes(minor)
        # Asked for even if it has no node: what the driver says of it is remembered there.
        said = self._health.gpu(handle, uuid) or (Trouble() if cut else self._health.any_instance(uuid))
        trouble = trouble or said
        device = Device(
            id=uuid,
            index=index,
            serial=self._or_empty(nvml.nvmlDeviceGetSerial, handle) or uuid,
            product=nvml.nvmlDeviceGetName(handle),
            nodes=nodes,
            cause=trouble.cause,
            numa_nodes=self._numa(handle),
            failure=trouble.failure,
            firmware=self._or_empty(nvml.nvmlDeviceGetVbiosVersion, handle),
            out_of_band="" if cut else use(nvml, handle),
        )
        return _Gpu(device, cut, minor, tuple(mig.instances(nvml, handle)) if cut else ())

    def _wanted_of(self, gpus: Sequence[_Gpu]) -> tuple[list[Device], dict[str, Trouble]]:
        """The devices that the configuration asks for, and GPUs that are cut and not well."""
        cut = [gpu for gpu in gpus if gpu.cut]
        whole = [gpu.device for gpu in gpus if not gpu.cut]
        if not cut or (self._wanted.mig == "mixed" and not self._wanted.mig_profile):
            return ([] if self._wanted.mig_profile else whole), {}
        answering = [gpu for gpu in cut if not gpu.device.trouble]
        if self._wanted.mig == "single":
            mig.check_alike({g.device.index: list(g.parts) for g in answering or cut}, [d.index for d in whole])
        profile = self._wanted.mig_profile.replace("+", ".")
        parts = [self._part(gpu, part) for gpu in cut for part in gpu.parts if profile in ("", part.profile)]
        return parts, {gpu.device.id: gpu.device.trouble for gpu in cut if gpu.device.trouble}

    def _part(self, gpu: _Gpu, part: mig.Instance) -> Device:
        whole = gpu.device
        nodes: tuple[DeviceNode, ...] = ()
        trouble = self._health.instance(whole.id, part.gpu_instance)
        try:
            nodes = mig.capability_nodes(self._wanted.proc_root, self._wanted.dev_root, gpu.minor, part)
        except VendorError as error:
            trouble = Trouble(str(error))
        return Device(
            id=part.uuid,
            index=mig.MAX_INSTANCES * whole.index + part.place,
            serial=f"{whole.serial}-gi{part.gpu_instance}-ci{part.compute_instance}",
            product=part.name,
            nodes=(*whole.nodes, *nodes),
            cause=trouble.cause,
            numa_nodes=whole.numa_nodes,
            group=whole.id,
            failure=trouble.failure,
            firmware=whole.firmware,
            parent=whole.id,
            out_of_band="" if whole.cause else use(self._nvml, part.handle),
        )

    def _nodes(self, minor: int) -> tuple[Trouble, tuple[DeviceNode, ...]]:
        dev = self._wanted.dev_root
        try:
            own = character_device(f"{dev}/nvidia{minor}", f"/dev/nvidia{minor}")
            shared = [name for name in _SHARED_NODES if Path(dev, name).exists()]
            return Trouble(), (own, *(character_device(f"{dev}/{name}", f"/dev/{name}") for name in shared))
        except VendorError as error:
            return Trouble(str(error)), ()

    def _or_empty(self, ask: Any, handle: Any) -> str:
        try:
            return str(ask(handle))
        except self._nvml.NVMLError:
            return ""  # boards that have no such thing say that it is not supported

    def _numa(self, handle: Any) -> tuple[int, ...]:
        # NVML writes the domain with eight digits, and the kernel with four.
        domain, _, rest = str(self._nvml.nvmlDeviceGetPciInfo_v3(handle).busId).lower().partition(":")
        file = Path(self._wanted.sys_root, "bus/pci/devices", f"{domain[-4:]}:{rest}", "numa_node")
        try:
            return numa_nodes(read_attribute(file))
        except VendorError:
            return ()

    async def power(self) -> Mapping[str, float]:
        """What each GPU draws; of instances nobody knows. NVML may be called from several threads."""
        return await self._power_thread.call(self._power) if self._nvml is not None else {}

    def _power(self) -> dict[str, float]:
        nvml = self._nvml
        watts = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                watts[str(nvml.nvmlDeviceGetUUID(handle))] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
            except nvml.NVMLError:
                continue  # lost, or a board without a sensor
        return watts

    async def allocate(self, devices: Sequence[Device]) -> Allocation:
        """Names the GPUs to whoever brings the driver's libraries into the container."""
        if self._wanted.inject == "cdi":
            return Allocation(cdi_devices=tuple(f"{CDI_KIND}={device.id}" for device in devices))
        if self._wanted.inject == "envvar":
            return Allocation(envs={ENV_VISIBLE: ",".join(device.id for device in devices)})
        return Allocation()
