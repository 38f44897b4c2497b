"""Models that turn a text into one vector: how they are told from those that generate, and a loaded one."""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from rm_api.vllm_architectures import VLLM_ARCHITECTURES

from rm_abstract.core.session import Encoder

MODULES: Final = "modules.json"
"""What a model is made of, as sentence-transformers write it: what comes after the transformer, and in what order."""
SENTENCE_CONFIG: Final = "sentence_bert_config.json"
MODULE_CONFIG: Final = re.compile(r"[0-9]{1,2}_[A-Za-z]+/config\.json")
"""Where such a module says how it works, in the model's directory."""
_BEHIND_PADDING: Final = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"})
"""Types of models whose positions are counted from behind the padding token's number."""


def embeds(architecture: str, modules: Any) -> bool:
    """True of a model that computes embeddings: it is said to pool what its transformer gives, or has no head at all.

    A few that generate have names as if they had none; those are known. ``modules`` is what modules.json holds; None
    where there is none.
    """
    if "Pooling" in module_types(modules):
        return True
    if architecture.endswith("Model"):
        return not architecture.endswith("LMHeadModel") and architecture not in VLLM_ARCHITECTURES
    return architecture.endswith("Embedding")


def module_types(modules: Any) -> list[str]:
    """The modules by their class, such as Transformer, Pooling, Normalize; nothing of what is no list of modules."""
    entries = modules if isinstance(modules, list) else []
    types = (entry.get("type") for entry in entries if isinstance(entry, dict))
    return [kind.rpartition(".")[2] for kind in types if isinstance(kind, str)]


def longest_input(positions: int, config: Mapping[str, Any], sentence: Mapping[str, Any]) -> int:
    """Tokens that an embedding model takes: of its ``positions`` those that it uses, and no more than it was told.

    ``sentence`` is what sentence_bert_config.json holds.
    """
    if config.get("model_type") in _BEHIND_PADDING:
        padding = config.get("pad_token_id")
        positions -= (padding if isinstance(padding, int) else 1) + 1
    said = sentence.get("max_seq_length")
    return max(1, min(positions, said) if isinstance(said, int) and said > 0 else positions)


class Embedder(ABC):
    """An embedding model that is loaded. ``embed`` is called from one thread at a time, whichever that is."""

    tokenizer: Encoder
    max_sequence_length: int
    """Tokens of one input, the special ones included."""
    vocabulary_size: int
    size: int
    """Numbers in an embedding."""
    sizes: Collection[int]
    """Lengths that embeddings may be cut to, ``size`` among them: others mean nothing with this model."""
    normalized: bool
    """Embeddings have length 1, those that were cut, too."""

    @abstractmethod
    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """An embedding of each of ``prompts``, at least one, of token ids, at least one each."""

    @abstractmethod
    def close(self) -> None:
        """Free the model."""
