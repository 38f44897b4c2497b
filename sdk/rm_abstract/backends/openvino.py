"""OpenVINO on the CPU, through OpenVINO GenAI's engine with continuous batching."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from rm_abstract import __version__
from rm_abstract.backends.child import ChildSession
from rm_abstract.backends.embedding_model import EmbeddingModel, is_embedding_model, longest_sequence
from rm_abstract.backends.openvino_embedding import OpenVinoEmbedder, OpenVinoEmbeddings
from rm_abstract.backends.openvino_model import (
    EXPORT_COMMAND,
    PROPERTIES,
    GenAiTokenizer,
    ModelInfo,
    installed,
    installed_versions,
)
from rm_abstract.backends.stepping import SteppingSession
from rm_abstract.core.embedding import Embedder
from rm_abstract.core.errors import ArtifactMismatch, DeviceMissing
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import BuildArtifact, BuildProfile, BuildStep, Capability, Resource, ResourceType
from rm_abstract.core.session import FinishReason, GenerationRequest, ScoredToken, Session

FORMAT: Final = "openvino-ir"
_MODEL_FILE: Final = "openvino_model.xml"
_DEFAULT_BATCH: Final = 8


@dataclass(frozen=True)
class OpenVinoModel:
    """An artifact that was found to be one of ours."""

    directory: Path
    info: ModelInfo
    max_batch: int


class OpenVinoPlugin(Plugin):
    """Compiles with ``optimum-cli export openvino``, serves with OpenVINO GenAI on the CPU."""

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="openvino",
            display_name="OpenVINO (CPU)",
            version=__version__,
            vendor="Intel",
            priority=PluginPriority.LOWEST,
            device_types=("cpu",),
            requires=("openvino", "openvino-genai", "openvino-tokenizers"),
            description="OpenVINO GenAI with continuous batching on the CPU",
            formats=(FORMAT,),
        )

    def is_available(self) -> bool:
        """See the base class."""
        return installed()

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class."""
        step = BuildStep(
            "export",
            (*EXPORT_COMMAND, "${OUTPUT}"),
            ("${OUTPUT}/openvino_model.xml", "${OUTPUT}/openvino_model.bin", "${OUTPUT}/openvino_tokenizer.xml"),
        )
        return [
            BuildProfile(
                target_resource_type=ResourceType.CPU,
                compiler="optimum-intel",
                steps=(step,),
                flags={"DTYPE": config.dtype or "fp16"},
                output_format=FORMAT,
            )
        ]

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class; the CPU is always there."""
        if resources:
            return [resource for resource in resources if resource.type is ResourceType.CPU]
        import openvino  # noqa: PLC0415 (heavy)

        core = openvino.Core()
        if "CPU" not in core.available_devices:
            raise DeviceMissing("OpenVINO finds no CPU that it supports")
        name = str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()
        return [Resource("cpu", ResourceType.CPU, {"product": name})]

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        lengths = [longest_sequence(artifact.path) for artifact in artifacts]
        return Capability(max_seq_len=min(lengths, default=None), dtype=("fp16", "fp32"), optimized_for=("cost",))

    def prepare_resource(
        self, resource: BuildArtifact, config: BackendConfig | None = None
    ) -> OpenVinoModel | OpenVinoEmbeddings:
        """See the base class."""
        config = config or BackendConfig()
        config.refuse_several_devices("OpenVINO")
        if not (resource.path / _MODEL_FILE).is_file():
            raise ArtifactMismatch(f"the artifact has no {_MODEL_FILE}")
        if is_embedding_model(resource.path):
            embeddings = EmbeddingModel.read(resource.path, config.max_sequence_length)
            return OpenVinoEmbeddings(resource.path / _MODEL_FILE, embeddings)
        info = ModelInfo.read(resource.path, config.max_sequence_length)
        return OpenVinoModel(resource.path, info, config.max_batch_size or _DEFAULT_BATCH)

    def create_embedder(self, resource: OpenVinoModel | OpenVinoEmbeddings) -> Embedder | None:
        """See the base class. Raises ArtifactMismatch where the model cannot be loaded."""
        return OpenVinoEmbedder(resource) if isinstance(resource, OpenVinoEmbeddings) else None

    def create_session(self, resource: OpenVinoModel | OpenVinoEmbeddings) -> Session:
        """See the base class. Raises ArtifactMismatch where the model cannot be loaded."""
        if isinstance(resource, OpenVinoEmbeddings):
            raise ArtifactMismatch("this model computes embeddings and generates no text")
        # GenAI's step holds the interpreter: in this process, a long prompt would keep even health checks waiting.
        return ChildSession(GenAiTokenizer(resource.directory), GenAiSession, resource)

    def versions(self) -> dict[str, str]:
        """See the base class."""
        return installed_versions()


class GenAiSession(SteppingSession[Any]):
    """GenAI's engine: all running generations in one batch, new ones join between steps."""

    def __init__(self, model: OpenVinoModel) -> None:
        import openvino_genai  # noqa: PLC0415 (heavy)

        super().__init__()
        self._genai: Any = openvino_genai
        tokenizer = GenAiTokenizer(model.directory)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = model.max_batch
        try:
            self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
                model.directory, tokenizer.native, scheduler, "CPU", **PROPERTIES
            )
        except RuntimeError as error:
            raise ArtifactMismatch(f"OpenVINO cannot load the model: {error}") from error
        self.tokenizer = tokenizer
        self.max_sequence_length = model.info.max_sequence_length
        self.vocabulary_size = model.info.vocabulary_size
        self.default_temperature = model.info.temperature
        self.default_top_p = model.info.top_p
        self.max_logprobs = 0
        self._ids: Iterator[int] = count()
        self._end_tokens = model.info.end_tokens
        self.start()

    def begin(self, request: GenerationRequest) -> Any:
        """See the base class."""
        import numpy  # noqa: PLC0415
        import openvino  # noqa: PLC0415

        config = self._genai.GenerationConfig()
        config.max_new_tokens = request.max_tokens
        config.stop_token_ids = set(self._end_tokens)
        config.ignore_eos = request.ignore_eos
        config.presence_penalty = request.presence_penalty
        config.frequency_penalty = request.frequency_penalty
        # It tells those of the chosen tokens only, whatever the number.
        config.logprobs = 0 if request.logprobs is None else 1
        config.do_sample = request.temperature > 0
        if config.do_sample:
            config.temperature = request.temperature
            config.top_p = request.top_p
            if request.top_k is not None:
                config.top_k = request.top_k
        prompt = openvino.Tensor(numpy.array([request.prompt], dtype=numpy.int64))
        number = next(self._ids)
        config.rng_seed = (request.seed if request.seed is not None else hash((number, id(request)))) % (1 << 63)
        return self._pipeline.add_request(number, prompt, config)

    def step(self, slots: Sequence[Any]) -> Iterable[tuple[Any, Sequence[int], FinishReason | None]]:
        """See the base class."""
        status, reasons = self._genai.GenerationStatus, self._genai.GenerationFinishReason
        self._pipeline.step()
        for slot in slots:
            tokens: list[int] = []
            finish = None
            while slot.can_read():
                for output in slot.read().values():
                    scores = output.generated_log_probs
                    tokens.extend(map(ScoredToken, output.generated_ids, scores) if scores else output.generated_ids)
                    if output.finish_reason == reasons.STOP:
                        finish = FinishReason.STOP
                    elif output.finish_reason == reasons.LENGTH:
                        finish = FinishReason.LENGTH
            if finish is None and slot.get_status() != status.RUNNING:
                # IGNORED: the cache has no room for it, and would not have any if it waited.
                finish = FinishReason.ERROR
            yield slot, tokens, finish

    def drop(self, slot: Any) -> None:
        """See the base class."""
        slot.cancel()
