"""What the server makes of each field of the published API: nothing that is asked for is ignored in silence."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rm_abstract.serve.errors import ApiError


class Use(StrEnum):
    """What becomes of a field."""

    HONOURED = "honoured"
    """The answer follows it. What it may be is checked where it is read."""
    HARMLESS = "harmless"
    """Any value is taken: it asks for nothing that an answer would show."""
    REFUSED = "refused"
    """Only values that ask for nothing are taken; others are refused by the field's name."""


@dataclass(frozen=True)
class Field:
    """A field of a request."""

    use: Use
    neutral: tuple[Any, ...] = ()
    """Values of a refused one that ask for nothing; null always does."""


_HONOURED: Final = Field(Use.HONOURED)
_HARMLESS: Final = Field(Use.HARMLESS)


def _refused(*neutral: Any) -> Field:
    return Field(Use.REFUSED, neutral)


_SAMPLING: Final[Mapping[str, Field]] = {
    "model": _HONOURED,
    "n": _HONOURED,
    "temperature": _HONOURED,
    "top_p": _HONOURED,
    "max_tokens": _HONOURED,
    "stop": _HONOURED,
    "seed": _HONOURED,
    "presence_penalty": _HONOURED,
    "frequency_penalty": _HONOURED,
    "logprobs": _HONOURED,
    "stream": _HONOURED,
    "stream_options": _HONOURED,
    "logit_bias": _refused({}),
    "user": _HARMLESS,
    # Not OpenAI's, but most engines'.
    "top_k": _HONOURED,
    "ignore_eos": _HONOURED,
}

FIELDS: Final[Mapping[str, Mapping[str, Field]]] = {
    "/v1/completions": {
        **_SAMPLING,
        "prompt": _HONOURED,
        "echo": _HONOURED,
        "best_of": _HONOURED,
        "suffix": _refused(""),
    },
    "/v1/chat/completions": {
        **_SAMPLING,
        "messages": _HONOURED,
        "max_completion_tokens": _HONOURED,
        "top_logprobs": _HONOURED,
        "tools": _refused([]),
        "tool_choice": _refused("none", "auto"),
        "functions": _refused([]),
        "function_call": _refused("none", "auto"),
        "response_format": _refused({"type": "text"}),
        "modalities": _refused(["text"]),
        "audio": _refused(),
        "web_search_options": _refused(),
        "moderation": _refused(),
        "reasoning_effort": _refused("none"),
        "verbosity": _refused("medium"),
        "service_tier": _refused("auto", "default"),
        "store": _refused(False),
        # Without tools there is nothing to call in parallel; a predicted answer changes no token, only its price.
        "parallel_tool_calls": _HARMLESS,
        "prediction": _HARMLESS,
        "metadata": _HARMLESS,
        "prompt_cache_key": _HARMLESS,
        "prompt_cache_options": _HARMLESS,
        "prompt_cache_retention": _HARMLESS,
        "safety_identifier": _HARMLESS,
    },
    "/v1/embeddings": {
        "model": _HONOURED,
        "input": _HONOURED,
        "encoding_format": _HONOURED,
        "dimensions": _HONOURED,
        "user": _HARMLESS,
    },
}


def check_fields(endpoint: str, body: Mapping[str, Any]) -> None:
    """Raises ApiError for a field that asks for what there is not; null counts as absent."""
    known = FIELDS[endpoint]
    for name, value in body.items():
        if value is None:
            continue
        if name not in known:
            raise ApiError(400, f"Unknown parameter: {name!r}.", param=name, code="unknown_parameter")
        field = known[name]
        asks = not any(value == neutral and type(value) is type(neutral) for neutral in field.neutral)
        if field.use is Use.REFUSED and asks:
            raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
