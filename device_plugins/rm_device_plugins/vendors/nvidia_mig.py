"""MIG: instances of one GPU, each of them with memory and processors of its own.

``mig`` means what it means to NVIDIA's own plugin, but that a plugin of ours advertises one resource: ``none`` looks at
no instances, ``single`` takes the instances of GPUs that are all cut in the same way, and ``mixed`` takes those of
``migProfile``, or without it the GPUs that are not cut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rm_device_plugins.config import ConfigError
from rm_device_plugins.device_nodes import character_device, read_attribute
from rm_device_plugins.vendor import DeviceNode, VendorError

MODES: Final = ("none", "single", "mixed")
MAX_INSTANCES: Final = 16
"""More than any GPU can be cut into: instance I of GPU N has the index MAX_INSTANCES * N + I."""
_MARK: Final = " MIG "
_MINORS: Final = "driver/nvidia-caps/mig-minors"


@dataclass(frozen=True, slots=True)
class Instance:
    """A MIG device: a GPU instance with one compute instance."""

    handle: Any
    uuid: str
    name: str
    place: int
    gpu_instance: int
    compute_instance: int

    @property
    def profile(self) -> str:
        """How it is cut, such as ``1g.10gb``; as resource names write it."""
        return self.name.partition(_MARK)[2].replace("+", ".").strip()


def check(mode: str, profile: str) -> None:
    """Raises ConfigError for settings that do not go together."""
    if mode not in MODES:
        raise ConfigError(f"mig is {mode!r}; it must be one of {', '.join(MODES)}")
    if profile and mode != "mixed":
        raise ConfigError(f"migProfile is for mig: mixed; with mig: {mode} all devices are alike")


def is_cut(nvml: Any, handle: Any) -> bool:
    """Whether MIG is on. Raises NVMLError if the GPU does not answer."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def instances(nvml: Any, handle: Any) -> list[Instance]:
    """The instances of a GPU. Raises NVMLError if it does not answer, VendorError for one without a profile."""
    found = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except nvml.NVMLError_NotFound:
            continue
        one = Instance(
            handle=part,
            uuid=nvml.nvmlDeviceGetUUID(part),
            name=nvml.nvmlDeviceGetName(part),
            place=place,
            gpu_instance=nvml.nvmlDeviceGetGpuInstanceId(part),
            compute_instance=nvml.nvmlDeviceGetComputeInstanceId(part),
        )
        if not one.profile:
            raise VendorError(f"the MIG device {one.uuid} is called {one.name!r}, which tells no profile")
        found.append(one)
    return found


def check_alike(cut: Mapping[int, list[Instance]], whole: list[int]) -> None:
    """Raises VendorError unless the GPUs, by index, are cut in the same way, as ``mig: single`` needs it."""
    help_ = "cut all of them in the same way, or set mig to mixed with a migProfile"
    if whole:
        raise VendorError(f"mig is single, and GPU {whole[0]} is not cut while GPU {min(cut)} is: {help_}")
    empty = [index for index, parts in cut.items() if not parts]
    if empty:
        raise VendorError(f"mig is single, and GPU {empty[0]} has MIG on and no instances: {help_}")
    profiles = sorted({part.profile for parts in cut.values() for part in parts})
    if len(profiles) > 1:
        raise VendorError(f"mig is single, and there are instances of {' and '.join(profiles)}: {help_}")


def capability_nodes(proc: str, dev: str, gpu_minor: int, part: Instance) -> tuple[DeviceNode, ...]:
    """The device files that open the instance to a container. Raises VendorError where they are not to be found."""
    minors = dict(line.rsplit(" ", 1) for line in read_attribute(Path(proc, _MINORS)).splitlines() if " " in line)
    nodes = []
    instance = f"gpu{gpu_minor}/gi{part.gpu_instance}"
    for capability in (f"{instance}/access", f"{instance}/ci{part.compute_instance}/access"):
        if capability not in minors:
            raise VendorError(f"{Path(proc, _MINORS)} does not have {capability}")
        name = f"nvidia-caps/nvidia-cap{minors[capability]}"
        nodes.append(character_device(f"{dev}/{name}", f"/dev/{name}"))
    return tuple(nodes)
