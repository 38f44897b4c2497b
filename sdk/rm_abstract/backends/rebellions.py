"""Rebellions' NPUs through vLLM with the vendor's plugin vllm-rbln, on what optimum-rbln has compiled."""

from rm_api.names import literal

from rm_abstract.backends.own_server import OFFLINE, OwnServerPlugin, ServerModel, option, sequence_limit, switch
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.plugin import BackendConfig
from rm_abstract.core.resource import BuildArtifact, ResourceType

_COMPILED = "rbln_config.json"


class RebellionsPlugin(OwnServerPlugin):
    """Serves a directory of ``optimum-rbln-cli``. The device plugin says which NPUs: RBLN_VISIBLE_DEVICES."""

    name = "rebellions"
    display_name = "vLLM RBLN"
    vendor = "Rebellions"
    device_type = ResourceType.NPU
    package = "vllm_rbln"
    aliases = ("rbln",)
    description = "vLLM on Rebellions' NPUs, with what optimum-rbln compiled"

    def server_model(self, resource: BuildArtifact, config: BackendConfig) -> ServerModel:
        """See the base class. Devices and shapes are compiled in: the limits only have to be the same."""
        directory = resource.path
        if not (directory / _COMPILED).is_file():
            raise ArtifactMismatch(f"{directory} has no {_COMPILED}: it is nothing that optimum-rbln has compiled")
        arguments = [
            *option("--max-model-len", sequence_limit(directory, config.max_sequence_length)),
            *option("--max-num-seqs", config.max_batch_size),
            *switch("enable-prefix-caching", config.prefix_caching),
        ]
        environment = {**OFFLINE, "VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": "${CACHE_DIR}/vllm"}
        return ServerModel(directory, tuple(arguments), environment)

    def serve_command(self, resource: ServerModel, *, served_name: str, port: int) -> list[str]:
        """See the base class."""
        names = ["--served-model-name", literal(served_name), "--port", str(port)]
        return ["vllm", "serve", literal(str(resource.directory)), *names, *resource.arguments]
