"""The simulated NPU's runtime plugin."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rm_abstract import __version__
from rm_abstract.backends.openvino_model import EXPORT_COMMAND, ModelInfo, installed, installed_versions
from rm_abstract.backends.simulated_npu.blob import Target, read_header
from rm_abstract.backends.simulated_npu.compiler import BLOB
from rm_abstract.backends.simulated_npu.device import observe
from rm_abstract.core.errors import ArtifactMismatch, DeviceMissing, DriverMismatch
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import BuildArtifact, BuildProfile, BuildStep, Capability, Resource, ResourceType
from rm_abstract.core.session import Session

FORMAT: Final = "simulated-npu"
_DEFAULT_TARGET: Final = "simx1:driver=1.4.0"


@dataclass(frozen=True)
class LoadedProgram:
    """A blob that fits the devices of this container."""

    blob: Path
    info: ModelInfo


class SimulatedNpuPlugin(Plugin):
    """Compiles with OpenVINO and ``rma-sim-compile``; serves on devices that the driver's status tool vouches for."""

    def __init__(self) -> None:
        self._devices: list[Resource] = []

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="simulated-npu",
            display_name="Simulated NPU",
            version=__version__,
            vendor="RM Abstract",
            priority=PluginPriority.HIGHEST,
            device_types=("npu",),
            requires=("openvino", "openvino-genai", "openvino-tokenizers"),
            description="An NPU whose silicon is simulated by the CPU; compiler, driver and checks are not",
            formats=(FORMAT,),
        )

    def is_available(self) -> bool:
        """See the base class: installed, and at least one device allocated."""
        if not installed():
            return False
        try:
            return bool(observe(os.environ))
        except DeviceMissing:
            return False

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class."""
        text = config.target or _DEFAULT_TARGET
        target = Target.parse(text)
        return [
            BuildProfile(
                target_resource_type=ResourceType.NPU,
                compiler="rma-sim-compile",
                steps=(
                    BuildStep("export", (*EXPORT_COMMAND, "${WORK}/ir"), ("${WORK}/ir/openvino_model.xml",)),
                    BuildStep(
                        "bind",
                        ("rma-sim-compile", "--model=${WORK}/ir", "--target=${TARGET}", "--output=${OUTPUT}"),
                        (f"${{OUTPUT}}/{BLOB}",),
                    ),
                ),
                flags={"DTYPE": config.dtype or "fp16", "TARGET": text},
                output_format=FORMAT,
                products=(target.product,),
                drivers=(target.driver,),
            )
        ]

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class: every allocated device is opened, and compared with what was announced."""
        observed = [
            Resource(
                Path(device.node).name,
                ResourceType.NPU,
                {
                    "vendor": "RM Abstract",
                    "product": device.product,
                    "serial": device.serial,
                    "node": device.node,
                    "driver": device.driver,
                    "memory_bytes": device.memory_bytes,
                },
            )
            for device in observe(os.environ)
        ]
        wanted = {resource.id for resource in resources}
        self._devices = [device for device in observed if not wanted or device.id in wanted]
        return self._devices

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        lengths = [ModelInfo.read(artifact.path).max_sequence_length for artifact in artifacts]
        return Capability(
            max_seq_len=min(lengths, default=None),
            dtype=("fp16", "fp32"),
            requires_precompile=True,
            optimized_for=("latency",),
        )

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> LoadedProgram:
        """See the base class: the artifact and its blob must be for the product and the driver of every device."""
        config = config or BackendConfig()
        config.refuse_several_devices("the simulated NPU")
        devices = self._devices or self.probe()
        header = read_header(resource.path / BLOB)
        for device in devices:
            product, driver = device.attributes["product"], device.attributes["driver"]
            if resource.products and product not in resource.products:
                raise ArtifactMismatch(
                    f"the artifact is for {', '.join(resource.products)}, but {device.id} is a {product}"
                )
            if resource.drivers and driver not in resource.drivers:
                raise DriverMismatch(
                    f"the artifact was built for driver {', '.join(resource.drivers)}, but {device.id} has {driver}"
                )
            if (header.product, header.driver) != (product, driver):
                raise ArtifactMismatch(
                    f"{BLOB} is bound to {header.product} with driver {header.driver}, "
                    f"but {device.id} is a {product} with driver {driver}"
                )
        return LoadedProgram(resource.path / BLOB, ModelInfo.read(resource.path, config.max_sequence_length))

    def create_session(self, resource: LoadedProgram) -> Session:
        """See the base class. Raises ArtifactMismatch where the blob cannot be loaded."""
        from rm_abstract.backends.simulated_npu.runtime import SimulatedNpuSession  # noqa: PLC0415 (numpy)

        return SimulatedNpuSession(resource.blob, resource.info)

    def versions(self) -> dict[str, str]:
        """See the base class."""
        return installed_versions()
