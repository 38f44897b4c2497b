"""The runtime plugin for UPMEM's DIMMs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rm_abstract import __version__
from rm_abstract.backends.hf import versions_of
from rm_abstract.backends.openvino_model import ModelInfo
from rm_abstract.core.errors import ArtifactMismatch, DeviceMissing, DriverMismatch
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import BuildArtifact, BuildProfile, BuildStep, Capability, Resource, ResourceType
from rm_abstract.core.session import Session

FORMAT: Final = "upmem-pim"
PRODUCT: Final = "UPMEM PIM rank"
OPTION_RANKS: Final = "ranks"
"""Option of the configuration: ranks that a model is laid out for, 1 by default."""
_DEFAULT_BATCH: Final = 8


class UpmemPlugin(Plugin):
    """Lays weights out over ranks, compiles the units' program, and serves with both; the host reads the prompts."""

    def __init__(self) -> None:
        self._ranks: list[Resource] = []

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="upmem",
            display_name="UPMEM PIM",
            version=__version__,
            vendor="UPMEM",
            priority=PluginPriority.NORMAL,
            device_types=("pim",),
            requires=("numpy", "tokenizers", "jinja2"),
            description="Llama with int8 weights in UPMEM's DIMMs: they decode, the host reads the prompt",
            formats=(FORMAT,),
            extra={"capabilities": {"architectures": ["LlamaForCausalLM"], "quantization": ["int8"]}},
        )

    def is_available(self) -> bool:
        """See the base class: the library is installed, and at least one rank allocated."""
        from rm_abstract.backends.pim.device import observe  # noqa: PLC0415
        from rm_abstract.backends.pim.native import library_path  # noqa: PLC0415 (numpy)

        if not library_path().is_file():
            return False
        try:
            return bool(observe(os.environ))
        except DeviceMissing:
            return False

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class."""
        layout = BuildStep(
            "layout",
            ("python", "-m", "rm_abstract.backends.pim.compiler", "--model=${MODEL_DIR}", "--ranks=${DEVICE_COUNT}",
             "--output=${OUTPUT}", "--kernel=${WORK}"),
            ("${OUTPUT}/weights.pim", "${OUTPUT}/layout.json", "${OUTPUT}/host.safetensors", "${WORK}/gemv_int8.c"),
        )  # fmt: skip
        program = BuildStep(
            "compile",
            ("dpu-upmem-dpurte-clang", "-DNR_TASKLETS=16", "-DBATCH=${MAX_BATCH}", "-O2", "-o", "${OUTPUT}/gemv.dpu",
             "${WORK}/gemv_int8.c"),
            ("${OUTPUT}/gemv.dpu",),
        )  # fmt: skip
        return [
            BuildProfile(
                target_resource_type=ResourceType.PIM,
                compiler="dpu-upmem-dpurte-clang",
                steps=(layout, program),
                flags={
                    "DEVICE_COUNT": config.options.get(OPTION_RANKS, "1"),
                    "MAX_BATCH": str(config.max_batch_size or _DEFAULT_BATCH),
                },
                output_format=FORMAT,
                products=(PRODUCT,),
            )
        ]

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class: every allocated rank is opened, and compared with what was announced."""
        from rm_abstract.backends.pim.device import observe  # noqa: PLC0415

        observed = [
            Resource(
                Path(rank.node).name,
                ResourceType.PIM,
                {
                    "vendor": "UPMEM",
                    "product": rank.product or PRODUCT,
                    "serial": rank.id,
                    "node": rank.node,
                    "driver": rank.driver,
                },
            )
            for rank in observe(os.environ)
        ]
        wanted = {resource.id for resource in resources}
        self._ranks = [rank for rank in observed if not wanted or rank.id in wanted]
        return self._ranks

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        lengths = [ModelInfo.read(artifact.path).max_sequence_length for artifact in artifacts]
        return Capability(
            max_seq_len=min(lengths, default=None),
            dtype=("int8",),
            requires_precompile=True,
            optimized_for=("energy",),
        )

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> object:
        """See the base class: the layout must be for as many ranks as there are."""
        from rm_abstract.backends.pim.layout import Layout  # noqa: PLC0415 (numpy)
        from rm_abstract.backends.pim.runtime import PimModel, read_image  # noqa: PLC0415

        config = config or BackendConfig()
        ranks = self._ranks or self.probe()
        for rank in ranks:
            product, driver = rank.attributes["product"], rank.attributes["driver"]
            if resource.products and product not in resource.products:
                raise ArtifactMismatch(
                    f"the artifact is for {', '.join(resource.products)}, but {rank.id} is a {product}"
                )
            if resource.drivers and driver not in resource.drivers:
                raise DriverMismatch(
                    f"the artifact was built for driver {', '.join(resource.drivers)}, "
                    f"but {rank.id} has {driver or 'none'}"
                )
        layout = Layout.read(resource.path)
        if layout.ranks != len(ranks):
            raise ArtifactMismatch(
                f"the artifact is laid out for {layout.ranks} ranks, and this container was given {len(ranks)}"
            )
        read_image(resource.path, layout)
        nodes = tuple(str(rank.attributes["node"]) for rank in ranks)
        return PimModel(resource.path, layout, nodes, ModelInfo.read(resource.path, config.max_sequence_length))

    def create_session(self, resource: object) -> Session:
        """See the base class. Raises DeviceMissing where a rank cannot be had or computes wrong."""
        from rm_abstract.backends.child import ChildSession  # noqa: PLC0415
        from rm_abstract.backends.file_tokenizer import FileTokenizer  # noqa: PLC0415
        from rm_abstract.backends.pim.runtime import PimModel, PimSession  # noqa: PLC0415

        assert isinstance(resource, PimModel)
        # The vendor's library is native code: where it crashes, the server is to say so.
        return ChildSession(FileTokenizer(resource.directory), PimSession, resource)

    def versions(self) -> dict[str, str]:
        """See the base class."""
        from rm_abstract.backends.pim.native import sdk_version  # noqa: PLC0415 (numpy)

        found = {"upmem-sdk": sdk_version(), **versions_of("numpy", "tokenizers")}
        return {name: version for name, version in found.items() if version}
