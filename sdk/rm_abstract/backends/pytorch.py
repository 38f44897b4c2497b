"""PyTorch on the CPU, eager, through transformers: runs any model that transformers knows, as it is."""

import inspect
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rm_abstract import __version__
from rm_abstract.backends.embedding_model import EmbeddingModel, is_embedding_model, longest_sequence
from rm_abstract.backends.hf import FORMAT, HfTokenizer, dtype_name, versions_of
from rm_abstract.backends.openvino_model import ModelInfo
from rm_abstract.backends.pytorch_embedding import PyTorchEmbedder, PyTorchEmbeddings
from rm_abstract.backends.stepping import SteppingSession
from rm_abstract.core.embedding import Embedder
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import BuildArtifact, BuildProfile, Capability, Resource, ResourceType
from rm_abstract.core.session import MAX_LOGPROBS, FinishReason, GenerationRequest, Session

_PACKAGES: Final = ("torch", "transformers")


@dataclass(frozen=True)
class PyTorchModel:
    """A model's directory that was found to be one."""

    directory: Path
    info: ModelInfo
    dtype: str
    """As PyTorch names it; ``auto`` for that of the weights."""


class PyTorchPlugin(Plugin):
    """Compiles nothing: a model is loaded by transformers and runs in this process."""

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="pytorch",
            display_name="PyTorch (CPU)",
            version=__version__,
            # Before other engines of the CPU: it needs no compiler, and leaves out nothing that a script may ask for.
            priority=PluginPriority.LOW,
            device_types=("cpu",),
            requires=_PACKAGES,
            description="PyTorch on the CPU, eager, through transformers",
            formats=(FORMAT,),
        )

    def is_available(self) -> bool:
        """See the base class."""
        return all(find_spec(package) is not None for package in _PACKAGES)

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class: none."""
        return []

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class; the CPU is always there."""
        if resources:
            return [resource for resource in resources if resource.type is ResourceType.CPU]
        return [Resource("cpu", ResourceType.CPU, {"product": platform.processor() or platform.machine()})]

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        lengths = [longest_sequence(artifact.path) for artifact in artifacts]
        return Capability(max_seq_len=min(lengths, default=None), dtype=("bf16", "fp32", "fp16"))

    def prepare_resource(
        self, resource: BuildArtifact, config: BackendConfig | None = None
    ) -> PyTorchModel | PyTorchEmbeddings:
        """See the base class."""
        config = config or BackendConfig()
        config.refuse_several_devices("PyTorch")
        if is_embedding_model(resource.path):
            embeddings = EmbeddingModel.read(resource.path, config.max_sequence_length)
            return PyTorchEmbeddings(resource.path, embeddings, dtype_name(config.dtype))
        info = ModelInfo.read(resource.path, config.max_sequence_length)
        return PyTorchModel(resource.path, info, dtype_name(config.dtype))

    def create_embedder(self, resource: PyTorchModel | PyTorchEmbeddings) -> Embedder | None:
        """See the base class. Raises ArtifactMismatch where transformers cannot load the model."""
        return PyTorchEmbedder(resource) if isinstance(resource, PyTorchEmbeddings) else None

    def create_session(self, resource: PyTorchModel | PyTorchEmbeddings) -> Session:
        """See the base class. Raises ArtifactMismatch where transformers cannot load the model."""
        if isinstance(resource, PyTorchEmbeddings):
            raise ArtifactMismatch("this model computes embeddings and generates no text")
        return self.session(resource)

    def session(self, resource: PyTorchModel) -> Session:
        """A session over a model that generates."""
        return PyTorchSession(resource)

    def versions(self) -> dict[str, str]:
        """See the base class."""
        return versions_of(*_PACKAGES)


@dataclass(eq=False)
class _Slot:
    request: GenerationRequest
    tokens: list[int]
    """What the model has not seen yet."""
    sampler: Any
    generated: int = 0
    cache: Any = None


class PyTorchSession(SteppingSession[_Slot]):
    """One model in this process. ``native`` is it, a model of transformers with all that it can do."""

    def __init__(self, model: PyTorchModel) -> None:
        super().__init__()
        self._torch: Any = import_module("torch")
        self.native: Any = self.load(model)
        self.tokenizer = HfTokenizer(model.directory)
        self.max_sequence_length = model.info.max_sequence_length
        self.vocabulary_size = model.info.vocabulary_size
        self.default_temperature = model.info.temperature
        self.default_top_p = model.info.top_p
        self.max_logprobs = MAX_LOGPROBS
        self._end_tokens = model.info.end_tokens
        self.start()

    def load(self, model: PyTorchModel) -> Any:
        """The model, on the device that it runs on. Raises ArtifactMismatch where that is not possible."""
        return load(model)

    @cached_property
    def _options(self) -> dict[str, Any]:
        # Without it, a long prompt costs a row of the vocabulary's size for each of its tokens.
        known = "logits_to_keep" in inspect.signature(self.native.forward).parameters
        return {"logits_to_keep": 1} if known else {}

    def begin(self, request: GenerationRequest) -> _Slot:
        """See the base class."""
        from rm_abstract.backends.sampling import Sampler  # noqa: PLC0415 (numpy)

        return _Slot(request, list(request.prompt), Sampler(request))

    def step(self, slots: Sequence[_Slot]) -> Iterable[tuple[_Slot, Sequence[int], FinishReason | None]]:
        """See the base class."""
        for slot in slots:
            yield from self._advance(slot)

    def _advance(self, slot: _Slot) -> Iterator[tuple[_Slot, Sequence[int], FinishReason | None]]:
        torch = self._torch
        with torch.inference_mode():
            ids = torch.tensor([slot.tokens], dtype=torch.long, device=self.native.device)
            output = self.native(input_ids=ids, past_key_values=slot.cache, use_cache=True, **self._options)
            logits = output.logits[0, -1].float().cpu().numpy()
        slot.cache = output.past_key_values
        token = slot.sampler.choose(logits)
        slot.tokens = [token]
        slot.generated += 1
        yield slot, slot.tokens, slot.request.ended_by(token, slot.generated, self._end_tokens)

    def drop(self, slot: _Slot) -> None:
        """See the base class."""
        slot.cache = None


def load(model: PyTorchModel) -> Any:
    """A model of transformers, on the CPU. Raises ArtifactMismatch."""
    transformers = import_module("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(model.directory, local_files_only=True)
        # The model's own class and not AutoModelForCausalLM: a hook on that one may be what brought us here.
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return kind.from_pretrained(model.directory, config=config, dtype=model.dtype, local_files_only=True).eval()
    except KeyError:
        raise ArtifactMismatch(f"transformers generates no text with a model of type {config.model_type}") from None
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ArtifactMismatch(f"transformers cannot load the model: {error}") from error
