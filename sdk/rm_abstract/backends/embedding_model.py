"""An embedding model's directory: how many tokens it takes, and how those become one vector.

Run as `python -m rm_abstract.backends.embedding_model MODEL OUTPUT` it copies the files that say so beside what a
compiler has made of the model: compilers take over the transformer only.
"""

import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from rm_abstract.backends.openvino_model import ModelInfo
from rm_abstract.core.embedding import MODULE_CONFIG, MODULES, SENTENCE_CONFIG, embeds, longest_input, module_types
from rm_abstract.core.errors import ArtifactMismatch, BadInput, WorkloadError
from rm_abstract.core.files import json_at, json_object

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[numpy.float32]]
else:
    Array = Any

_MODULES: Final = frozenset({"Transformer", "Pooling", "Normalize"})
_PREFIX: Final = "pooling_mode_"


def is_embedding_model(directory: Path) -> bool:
    """True if what is in ``directory`` computes embeddings. Raises ArtifactMismatch where it is no model."""
    architectures = json_object(directory / "config.json").get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return embeds(str(first), json_at(directory / MODULES, optional=True))


def longest_sequence(directory: Path) -> int:
    """Tokens that the model in ``directory`` takes, whichever kind it is. Raises ArtifactMismatch."""
    longest = ModelInfo.read(directory).max_sequence_length
    return _longest(directory, longest) if is_embedding_model(directory) else longest


def _longest(directory: Path, positions: int) -> int:
    sentence = json_at(directory / SENTENCE_CONFIG, optional=True)
    return longest_input(
        positions, json_object(directory / "config.json"), sentence if isinstance(sentence, dict) else {}
    )


@dataclass(frozen=True)
class EmbeddingModel:
    """What an embedding model's files say."""

    max_sequence_length: int
    vocabulary_size: int
    size: int
    sizes: Collection[int]
    pooling: str
    normalized: bool

    @classmethod
    def read(cls, directory: Path, limit: int | None = None) -> "EmbeddingModel":
        """Of the model in ``directory``, its inputs at most ``limit`` tokens.

        Raises ArtifactMismatch where a file is not valid, or the model asks for what is not done here.
        """
        config = json_object(directory / "config.json")
        figures = [config.get(name) for name in ("max_position_embeddings", "vocab_size", "hidden_size")]
        positions, vocabulary, size = (figure if isinstance(figure, int) else 0 for figure in figures)
        if min(positions, vocabulary, size) < 1:
            raise ArtifactMismatch("config.json lacks max_position_embeddings, vocab_size or hidden_size")
        pooling, normalized = _modules(directory)
        longest = _longest(directory, positions)
        return cls(
            max_sequence_length=min(longest, limit or longest),
            vocabulary_size=vocabulary,
            size=size,
            sizes=_sizes(config, size),
            pooling=pooling,
            normalized=normalized,
        )

    def pool(self, hidden: Array, mask: Array) -> list[list[float]]:
        """One vector of each row of ``hidden`` [rows, tokens, size]; ``mask`` [rows, tokens] is 1 for its tokens."""
        import numpy  # noqa: PLC0415

        rows = _POOLING[self.pooling](hidden.astype(numpy.float32), mask)
        if self.normalized:
            rows = rows / numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        found: list[list[float]] = rows.tolist()
        return found


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Token ids and mask, [prompts, tokens of the longest] each; behind its end a prompt has zeros in both."""
    import numpy  # noqa: PLC0415

    ids = numpy.zeros((len(prompts), max(map(len, prompts))), numpy.int64)
    mask = numpy.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = 1
    return ids, mask


def _first(hidden: Any, mask: Any) -> Any:
    return hidden[:, 0]


def _last(hidden: Any, mask: Any) -> Any:
    return hidden[range(len(hidden)), mask.sum(axis=1) - 1]


def _mean(hidden: Any, mask: Any) -> Any:
    return (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]


def _greatest(hidden: Any, mask: Any) -> Any:
    import numpy  # noqa: PLC0415

    return numpy.where(mask[:, :, None] > 0, hidden, -numpy.inf).max(axis=1)


_POOLING: Final[Mapping[str, Callable[[Any, Any], Any]]] = MappingProxyType(
    {"cls": _first, "lasttoken": _last, "mean": _mean, "max": _greatest}
)


def _modules(directory: Path) -> tuple[str, bool]:
    """How tokens are pooled, and whether the result is given length 1."""
    modules = json_at(directory / MODULES, optional=True)
    if modules is None:
        raise ArtifactMismatch(
            f"the model has no {MODULES}, so how its tokens become one embedding is not known; add it as "
            "sentence-transformers write it"
        )
    types = module_types(modules)
    if unknown := sorted(set(types) - _MODULES):
        raise ArtifactMismatch(f"{MODULES} names {', '.join(unknown)}; known here are {', '.join(sorted(_MODULES))}")
    if types.count("Pooling") != 1:
        raise ArtifactMismatch(f"{MODULES} has to name one Pooling, and names {types.count('Pooling')}")
    path = f"{modules[types.index('Pooling')].get('path')}/config.json"
    if not MODULE_CONFIG.fullmatch(path):
        raise ArtifactMismatch(f"{MODULES} says that its Pooling is in {path}, which is no place of a module")
    said = json_object(directory / path)
    # Newer releases name the mode, older ones have a switch for each.
    modes = [said["pooling_mode"]] if "pooling_mode" in said else [
        name.removeprefix(_PREFIX).removesuffix("_tokens").removesuffix("_token")
        for name, chosen in said.items() if name.startswith(_PREFIX) and chosen is True
    ]  # fmt: skip
    if len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in _POOLING:
        raise ArtifactMismatch(f"{path} pools by {modes}; known here is one of {', '.join(sorted(_POOLING))}")
    return modes[0], "Normalize" in types


def _sizes(config: Mapping[str, Any], size: int) -> Collection[int]:
    listed = config.get("matryoshka_dimensions")
    if isinstance(listed, list):
        return sorted({size, *(each for each in listed if isinstance(each, int) and 0 < each < size)})
    return range(1, size + 1) if config.get("is_matryoshka") is True else (size,)


def main(arguments: Sequence[str]) -> int:
    """Copy the files. The exit code is the contract's."""
    try:
        if len(arguments) != 2:
            raise BadInput("embedding_model takes two directories: the model, and what was compiled of it")
        model, output = map(Path, arguments)
        EmbeddingModel.read(model)
        for name in [MODULES, SENTENCE_CONFIG, *(str(path.relative_to(model)) for path in model.glob("*/config.json"))]:
            if (model / name).is_file():
                (output / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(model / name, output / name)
    except WorkloadError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return int(error.code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
