"""A model's own tokenizer.json and chat template, without transformers: for engines that bring none."""

import json
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.session import Tokenizer


class FileTokenizer(Tokenizer):
    """The tokenizer of a directory, through the library ``tokenizers``."""

    def __init__(self, directory: Path) -> None:
        """Raises ArtifactMismatch where a file is missing or damaged."""
        try:
            self._native: Any = import_module("tokenizers").Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises no other
            raise ArtifactMismatch(f"the artifact's tokenizer cannot be loaded: {error}") from error
        self._config = _json(directory / "tokenizer_config.json")
        template = directory / "chat_template.jinja"
        self._template = template.read_text(encoding="utf-8") if template.is_file() else _template(self._config)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See the base class."""
        return list(self._native.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """See the base class."""
        return str(self._native.decode(list(tokens), skip_special_tokens=True))

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See the base class. What templates find there is what transformers gives them."""
        if not isinstance(self._template, str):
            raise ValueError("the model has no chat template; ask for a completion")
        jinja2 = import_module("jinja2.sandbox")
        environment = jinja2.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": time.strftime}
        # jinja2's own writes < and & as HTML wants them.
        environment.filters["tojson"] = _json_text
        special = {name: _text(self._config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        try:
            return str(
                environment.from_string(self._template).render(
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **special,
                )
            )
        except Exception as error:  # whatever a model's template raises
            raise ValueError(str(error)) from error


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _json_text(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _template(config: Mapping[str, Any]) -> Any:
    """The chat template of a tokenizer's configuration: a text, or of several the one named ``default``."""
    found = config.get("chat_template")
    if not isinstance(found, list):
        return found
    named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
    return named.get("default")


def _text(token: Any) -> str:
    """A special token, which is a text or an object with its text."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ArtifactMismatch(f"{path.name} of the artifact is not valid JSON: {error}") from None
    return value if isinstance(value, dict) else {}
