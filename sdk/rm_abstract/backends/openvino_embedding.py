"""Embedding models on OpenVINO: the transformer as it was compiled, and the model's own pooling behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rm_abstract.backends.embedding_model import EmbeddingModel, padded
from rm_abstract.backends.openvino_model import PRECISION, GenAiEncoder
from rm_abstract.core.embedding import Embedder
from rm_abstract.core.errors import ArtifactMismatch

_IDS: Final = "input_ids"
_MASK: Final = "attention_mask"
_HIDDEN: Final = "last_hidden_state"


@dataclass(frozen=True)
class OpenVinoEmbeddings:
    """An artifact that was found to be an embedding model."""

    file: Path
    info: EmbeddingModel


class OpenVinoEmbedder(Embedder):
    """One model in this process; OpenVINO lets others run while it computes."""

    def __init__(self, model: OpenVinoEmbeddings) -> None:
        import openvino  # noqa: PLC0415 (heavy)

        # Exported ones cut a text without a word where the model ends: one token more shows that it is too long.
        self.tokenizer = GenAiEncoder(model.file.parent, model.info.max_sequence_length + 1)
        self._info = model.info
        self.max_sequence_length = model.info.max_sequence_length
        self.vocabulary_size = model.info.vocabulary_size
        self.size = model.info.size
        self.sizes = model.info.sizes
        self.normalized = model.info.normalized
        try:
            self._model: Any = openvino.Core().compile_model(model.file, "CPU", dict(PRECISION))
        except RuntimeError as error:
            raise ArtifactMismatch(f"OpenVINO cannot load the model: {error}") from error
        self._inputs = {each.any_name for each in self._model.inputs}
        outputs = {name: each for each in self._model.outputs for name in each.names}
        unknown = sorted(self._inputs - {_IDS, _MASK, "token_type_ids", "position_ids"})
        if unknown or _IDS not in self._inputs or _HIDDEN not in outputs:
            raise ArtifactMismatch(
                f"the model was compiled from {', '.join(sorted(self._inputs))} to {', '.join(sorted(outputs))}; one "
                f"that is exported for the task feature-extraction gives {_HIDDEN}"
            )
        self._output = outputs[_HIDDEN]

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """See the base class."""
        import numpy  # noqa: PLC0415

        ids, mask = padded(prompts)
        known = {
            _IDS: ids, _MASK: mask, "token_type_ids": numpy.zeros_like(ids),
            "position_ids": numpy.broadcast_to(numpy.arange(ids.shape[1]), ids.shape),
        }  # fmt: skip
        answer = self._model({name: numpy.ascontiguousarray(known[name]) for name in self._inputs})
        return self._info.pool(answer[self._output], mask)

    def close(self) -> None:
        """See the base class."""
        del self._model
