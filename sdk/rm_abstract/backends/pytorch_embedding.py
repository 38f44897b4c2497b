"""Embedding models on PyTorch, through transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rm_abstract.backends.embedding_model import EmbeddingModel, padded
from rm_abstract.backends.hf import HfTokenizer
from rm_abstract.core.embedding import Embedder
from rm_abstract.core.errors import ArtifactMismatch


@dataclass(frozen=True)
class PyTorchEmbeddings:
    """A model's directory that was found to be an embedding model."""

    directory: Path
    info: EmbeddingModel
    dtype: str
    """As PyTorch names it; ``auto`` for that of the weights."""


class PyTorchEmbedder(Embedder):
    """One model in this process, on the CPU."""

    def __init__(self, model: PyTorchEmbeddings) -> None:
        self._torch: Any = import_module("torch")
        self._info = model.info
        self.tokenizer = HfTokenizer(model.directory)
        self.max_sequence_length = model.info.max_sequence_length
        self.vocabulary_size = model.info.vocabulary_size
        self.size = model.info.size
        self.sizes = model.info.sizes
        self.normalized = model.info.normalized
        transformers = import_module("transformers")
        try:
            config = transformers.AutoConfig.from_pretrained(model.directory, local_files_only=True)
            kind = transformers.MODEL_MAPPING[type(config)]
            self._model: Any = kind.from_pretrained(
                model.directory, config=config, dtype=model.dtype, local_files_only=True
            ).eval()
        except KeyError:
            raise ArtifactMismatch(f"transformers has no model of type {config.model_type}") from None
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ArtifactMismatch(f"transformers cannot load the model: {error}") from error

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See the base class."""
        ids, mask = padded(prompts)
        with self._torch.inference_mode():
            tensors = [self._torch.from_numpy(each) for each in (ids, mask)]
            hidden = self._model(input_ids=tensors[0], attention_mask=tensors[1]).last_hidden_state
        return self._info.pool(hidden.float().numpy(), mask)

    def close(self) -> None:
        """See the base class."""
        del self._model
