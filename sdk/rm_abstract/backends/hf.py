"""What plugins that serve models as they are need of Hugging Face's files and library."""

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.session import Tokenizer

FORMAT: Final = "huggingface"
"""Format of a model's directory as it is: configuration, tokenizer and safetensors files."""
_DTYPES: Final = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def dtype_name(dtype: str) -> str:
    """The name that PyTorch has for a number format, such as ``bfloat16`` for ``bf16``; ``auto`` for none."""
    return _DTYPES.get(dtype, dtype) or "auto"


def versions_of(*distributions: str) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class HfTokenizer(Tokenizer):
    """The tokenizer of a model's directory, loaded when it is first used: most sessions are given tokens."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.RLock()

    @cached_property
    def _native(self) -> Any:
        try:
            return import_module("transformers").AutoTokenizer.from_pretrained(self._directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ArtifactMismatch(f"the model's tokenizer cannot be loaded: {error}") from error

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See the base class."""
        with self._lock:
            return [int(token) for token in self._native.encode(text, add_special_tokens=add_special_tokens)]

    def decode(self, tokens: Sequence[int]) -> str:
        """See the base class."""
        with self._lock:
            return str(self._native.decode(list(tokens), skip_special_tokens=True))

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See the base class."""
        with self._lock:
            try:
                return str(
                    self._native.apply_chat_template(
                        [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
                    )
                )
            except Exception as error:  # whatever a model's template raises
                raise ValueError(str(error)) from error
