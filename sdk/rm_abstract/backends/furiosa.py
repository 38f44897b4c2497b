"""FuriosaAI's RNGD through ``furiosa-llm serve``: kernels from a bundle (FXB), weights from the model's directory."""

from rm_api.names import literal

from rm_abstract.backends.own_server import (
    OFFLINE,
    OwnServerPlugin,
    ServerModel,
    model_beside,
    option,
    sequence_limit,
    several,
    switch,
)
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.resource import BuildArtifact, ResourceType


class FuriosaPlugin(OwnServerPlugin):
    """Serves a bundle of ``fxb build`` beside the model that it was built for, or one of the same structure."""

    name = "furiosa-llm"
    display_name = "Furiosa-LLM"
    vendor = "FuriosaAI"
    device_type = ResourceType.NPU
    package = "furiosa_llm"
    aliases = ("furiosa",)
    description = "FuriosaAI's own server on RNGD, with kernels that fxb built"

    def server_model(self, resource: BuildArtifact, config: BackendConfig) -> ServerModel:
        """See the base class. Without ``--devices`` it takes all that its container has."""
        bundles = sorted(resource.path.glob("*.fxb"))
        if len(bundles) != 1:
            raise ArtifactMismatch(f"{resource.path} has {len(bundles)} files *.fxb; one is expected")
        directory = model_beside(resource, config)
        arguments = [
            *option("--fxb", bundles[0]),
            *option("--max-model-len", sequence_limit(directory, config.max_sequence_length)),
            *option("--max-concurrency", config.max_batch_size),
            *several("--pipeline-parallel-size", config.pipeline_parallel),
            *option("--max-num-batched-tokens", config.prefill_chunk),
            *switch("enable-prefix-caching", config.prefix_caching),
        ]
        return ServerModel(directory, tuple(arguments), OFFLINE)

    def serve_command(self, resource: ServerModel, *, served_name: str, port: int) -> list[str]:
        """See the base class."""
        names = ["--served-model-name", literal(served_name), "--port", str(port)]
        return ["furiosa-llm", "serve", literal(str(resource.directory)), *names, *resource.arguments]
