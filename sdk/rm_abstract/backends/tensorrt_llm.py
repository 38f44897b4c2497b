"""NVIDIA's GPUs through ``trtllm-serve``: an engine that trtllm-build made, or a model as it is."""

from rm_api.names import literal
from rm_api.runtimes import FORMAT_TENSORRT_LLM

from rm_abstract.backends.own_server import (
    OFFLINE,
    OwnServerPlugin,
    ServerModel,
    option,
    sequence_limit,
    settings,
    several,
)
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.resource import BuildArtifact, ResourceType


class TensorRtLlmPlugin(OwnServerPlugin):
    """Serves an engine's directory, which has the tokenizer beside the engine, or a model through PyTorch.

    The server has no option for the model's name: it calls it by its directory, and answers to every name.
    """

    name = "tensorrt-llm"
    display_name = "TensorRT-LLM"
    vendor = "NVIDIA"
    device_type = ResourceType.GPU
    package = "tensorrt_llm"
    description = "NVIDIA's trtllm-serve on its GPUs"

    def server_model(self, resource: BuildArtifact, config: BackendConfig) -> ServerModel:
        """See the base class."""
        directory = resource.path
        if resource.format == FORMAT_TENSORRT_LLM:
            if "pretrained_config" not in settings(directory) or not any(directory.glob("rank*.engine")):
                raise ArtifactMismatch(f"{directory} has no engine: config.json of trtllm-build, and rank*.engine")
            # What is compiled in need not be said again; a length that is not would be refused.
            arguments = ["--backend", "tensorrt", *option("--tokenizer", directory)]
            length = config.max_sequence_length
        else:
            arguments = ["--backend", "pytorch"]
            length = sequence_limit(directory, config.max_sequence_length)
        arguments += [
            *option("--max_seq_len", length),
            *option("--max_batch_size", config.max_batch_size),
            *several("--tp_size", config.tensor_parallel),
            *several("--pp_size", config.pipeline_parallel),
        ]
        return ServerModel(directory, tuple(arguments), OFFLINE)

    def serve_command(self, resource: ServerModel, *, served_name: str, port: int) -> list[str]:
        """See the base class. By itself it listens on the loopback only."""
        place = ["--host", "0.0.0.0", "--port", str(port)]
        return ["trtllm-serve", literal(str(resource.directory)), *place, *resource.arguments]
