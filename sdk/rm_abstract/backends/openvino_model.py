"""What both OpenVINO plugins need of an exported model's directory: tokenizer, limits, end-of-text tokens."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.files import json_object
from rm_abstract.core.session import Encoder, Tokenizer

PACKAGES: Final = ("openvino", "openvino_genai", "openvino_tokenizers")
TOKENIZER_FILES: Final = (
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
PRECISION: Final[Mapping[str, str]] = {"INFERENCE_PRECISION_HINT": "f32"}
PROPERTIES: Final[Mapping[str, str]] = {**PRECISION, "KV_CACHE_PRECISION": "f16"}
"""By default the CPU computes in bf16 and keeps an 8-bit cache where it can: other tokens on another machine."""
EXPORT_COMMAND: Final = (
    "optimum-cli",
    "export",
    "openvino",
    "--model=${MODEL_DIR}",
    "--task=text-generation-with-past",
    "--weight-format=${DTYPE}",
)


def installed() -> bool:
    """True if OpenVINO and its generation library are; nothing is loaded to know."""
    return all(find_spec(package) is not None for package in PACKAGES)


def installed_versions() -> dict[str, str]:
    """Versions of the parts of OpenVINO that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package.replace("_", "-")] = version(package)
        except PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class ModelInfo:
    """What an exported model's configuration files say."""

    max_sequence_length: int
    vocabulary_size: int
    end_tokens: frozenset[int]
    temperature: float
    top_p: float

    @classmethod
    def read(cls, directory: Path, limit: int | None = None) -> "ModelInfo":
        """Of the model in ``directory``, its length at most ``limit``. ArtifactMismatch where a file is not valid."""
        config, defaults = (
            json_object(directory / "config.json"),
            json_object(directory / "generation_config.json", optional=True),
        )
        longest = config.get("max_position_embeddings")
        vocabulary = config.get("vocab_size")
        if not isinstance(longest, int) or not isinstance(vocabulary, int):
            raise ArtifactMismatch("config.json of the artifact lacks max_position_embeddings or vocab_size")
        ends = defaults.get("eos_token_id", config.get("eos_token_id"))
        tokens = ends if isinstance(ends, list) else [ends]
        return cls(
            max_sequence_length=min(longest, limit or longest),
            vocabulary_size=vocabulary,
            end_tokens=frozenset(token for token in tokens if isinstance(token, int)),
            temperature=_number(defaults.get("temperature"), 1.0),
            top_p=_number(defaults.get("top_p"), 1.0),
        )


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default


class GenAiEncoder(Encoder):
    """The tokenizer that was compiled with the model, from text to tokens.

    The native one waits for the interpreter while it holds a lock of its own: threads that make their first calls at
    the same time can wait for each other for ever. So its first calls are made here, and one thread at a time uses it.
    """

    files: ClassVar[tuple[str, ...]] = TOKENIZER_FILES[:2]

    def __init__(self, directory: Path, longest: int | None = None) -> None:
        """``longest``: tokens after which a text is cut; without it, where the model's tokenizer was told to."""
        import openvino_genai  # noqa: PLC0415 (heavy)

        missing = [name for name in self.files if not (directory / name).is_file()]
        if missing:
            raise ArtifactMismatch(f"the artifact has no {missing[0]}")
        try:
            self.native: Any = openvino_genai.Tokenizer(directory)
        except RuntimeError as error:
            raise ArtifactMismatch(f"the artifact's tokenizer cannot be loaded: {error}") from error
        self._lock = threading.Lock()
        self._options = {} if longest is None else {"max_length": longest}
        self._first = [self.encode("a", add_special_tokens=special) for special in (True, False)]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See the base class."""
        with self._lock:
            found = self.native.encode([text], add_special_tokens=add_special_tokens, **self._options)
            ids = found.input_ids.data[0].tolist()
        return [int(token) for token in ids]


class GenAiTokenizer(GenAiEncoder, Tokenizer):
    """The tokenizer that was compiled with the model, both ways."""

    files: ClassVar[tuple[str, ...]] = TOKENIZER_FILES

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        for tokens in self._first:
            self.decode(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """See the base class."""
        if not tokens:
            return ""
        with self._lock:
            return str(self.native.decode(list(tokens), skip_special_tokens=True))

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See the base class."""
        try:
            with self._lock:
                return str(
                    self.native.apply_chat_template([dict(message) for message in messages], add_generation_prompt=True)
                )
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[-1]) from error
