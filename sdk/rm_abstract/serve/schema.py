"""Requests of the OpenAI API: read strictly, refused in OpenAI's words."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from rm_abstract.core.session import Session
from rm_abstract.serve.errors import ApiError
from rm_abstract.serve.fields import check_fields

_MAX_CHOICES: Final = 128
_MAX_STOP: Final = 16
_MAX_COMPLETION_LOGPROBS: Final = 5
_MAX_CHAT_LOGPROBS: Final = 20


@dataclass(frozen=True)
class ApiRequest:
    """A completion or chat completion, checked."""

    prompts: list[list[int]]
    """Token ids; one for a chat."""
    choices: int
    """Answers to each prompt."""
    max_tokens: int | None
    """None: as many as fit."""
    temperature: float
    top_p: float
    top_k: int | None
    seed: int | None
    presence_penalty: float
    frequency_penalty: float
    ignore_eos: bool
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    logprobs: int | None = None
    """Most likely tokens to tell of each position; None: nothing of the kind."""
    echo: tuple[str, ...] = ()
    """What to put before the answers to each prompt; empty: nothing."""


class _Fields:
    """Typed access to the members of a request's body; null counts as absent."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def get(self, name: str) -> Any:
        return self._body.get(name)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ApiError(400, f"{name} must be a number from {low:g} to {high:g}", param=name)
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self._body.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ApiError(400, f"{name} must be a whole number from {low} to {high}", param=name)
        return value

    def flag(self, name: str) -> bool:
        value = self._body.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise ApiError(400, f"{name} must be true or false", param=name)
        return value


def parse_completion(body: Mapping[str, Any], session: Session) -> ApiRequest:
    """A request to ``/v1/completions``. Raises ApiError."""
    fields = _Fields(body)
    check_fields("/v1/completions", body)
    choices = fields.integer("n", 1, _MAX_CHOICES) or 1
    if fields.integer("best_of", 1, _MAX_CHOICES) not in (None, choices):
        raise ApiError(400, "best_of other than n is not supported", param="best_of", code="unsupported_parameter")
    logprobs = _logprobs("logprobs", fields.integer("logprobs", 0, _MAX_COMPLETION_LOGPROBS), session)
    echoed = fields.flag("echo")
    if echoed and logprobs is not None:
        raise ApiError(
            400, "echo cannot go with logprobs: no probabilities of prompts are known here",
            param="echo", code="unsupported_parameter",
        )  # fmt: skip
    prompts = _prompts(fields.get("prompt"), session)
    limit = fields.integer("max_tokens", 1, 1 << 31)
    request = _request(fields, prompts, choices, 16 if limit is None else limit, session)
    echo = _texts(fields.get("prompt"), prompts, session) if echoed else ()
    return replace(request, logprobs=logprobs, echo=echo)


def parse_chat(body: Mapping[str, Any], session: Session) -> ApiRequest:
    """A request to ``/v1/chat/completions``. Raises ApiError."""
    fields = _Fields(body)
    check_fields("/v1/chat/completions", body)
    most = fields.integer("top_logprobs", 0, _MAX_CHAT_LOGPROBS)
    wanted = fields.flag("logprobs")
    if most and not wanted:
        raise ApiError(400, "top_logprobs is only for logprobs: true", param="top_logprobs")
    logprobs = _logprobs("top_logprobs" if most else "logprobs", (most or 0) if wanted else None, session)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list of at least one message", param="messages")
    rendered = [_message(index, message) for index, message in enumerate(messages)]
    try:
        prompt = session.tokenizer.render_chat(rendered)
    except ValueError as error:
        raise ApiError(400, f"the model's chat template refuses these messages: {error}", param="messages") from error
    tokens = session.tokenizer.encode(prompt, add_special_tokens=False)
    limit = fields.integer("max_completion_tokens", 1, 1 << 31)
    if limit is None:
        limit = fields.integer("max_tokens", 1, 1 << 31)
    request = _request(fields, [tokens], fields.integer("n", 1, _MAX_CHOICES) or 1, limit, session)
    return replace(request, logprobs=logprobs)


def _request(
    fields: _Fields, prompts: list[list[int]], choices: int, max_tokens: int | None, session: Session
) -> ApiRequest:
    for prompt in prompts:
        if not prompt:
            raise ApiError(400, "the prompt is empty", param="prompt")
        wanted = len(prompt) + (max_tokens or 1)
        if wanted > session.max_sequence_length:
            raise ApiError(
                400,
                f"this model's context is {session.max_sequence_length} tokens, but {wanted} were asked for "
                f"({len(prompt)} in the prompt, {max_tokens or 1} to generate)",
                param="messages" if max_tokens is None else "max_tokens",
                code="context_length_exceeded",
            )
    stream = fields.flag("stream")
    return ApiRequest(
        prompts=prompts,
        choices=choices,
        max_tokens=max_tokens,
        temperature=fields.number("temperature", session.default_temperature, 0, 2),
        top_p=_top_p(fields, session),
        top_k=fields.integer("top_k", 1, 1 << 31),
        seed=fields.integer("seed", -(1 << 63), (1 << 63) - 1),
        presence_penalty=fields.number("presence_penalty", 0, -2, 2),
        frequency_penalty=fields.number("frequency_penalty", 0, -2, 2),
        ignore_eos=fields.flag("ignore_eos"),
        stop=_stop(fields.get("stop")),
        stream=stream,
        include_usage=_include_usage(fields.get("stream_options"), stream=stream),
    )


def _include_usage(options: Any, *, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict) or not stream:
        raise ApiError(400, "stream_options must be an object, and is only for stream: true", param="stream_options")
    for name, value in options.items():
        if not isinstance(value, bool | None):
            raise ApiError(400, f"{name} must be true or false", param=f"stream_options.{name}")
        if name != "include_usage" and value:
            raise ApiError(
                400, f"{name} is not supported by this server",
                param=f"stream_options.{name}", code="unsupported_parameter",
            )  # fmt: skip
    return bool(options.get("include_usage"))


def _logprobs(name: str, wanted: int | None, session: Session) -> int | None:
    """``wanted``, if the session can tell that many."""
    if wanted is not None and (session.max_logprobs is None or wanted > session.max_logprobs):
        able = "no probabilities" if session.max_logprobs is None else f"at most {session.max_logprobs} alternatives"
        raise ApiError(400, f"this engine tells {able} of a token", param=name, code="unsupported_parameter")
    return wanted


def _texts(value: Any, prompts: list[list[int]], session: Session) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value[0], str):
        return tuple(value)
    return tuple(session.tokenizer.decode(prompt) for prompt in prompts)


def _top_p(fields: _Fields, session: Session) -> float:
    value = fields.number("top_p", session.default_top_p, 0, 1)
    if value == 0:
        raise ApiError(400, "top_p must be greater than 0", param="top_p")
    return value


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > _MAX_STOP or not all(isinstance(s, str) and s for s in strings):
        raise ApiError(
            400, f"stop must be a string, or a list of at most {_MAX_STOP} strings that are not empty", param="stop"
        )
    return tuple(strings)


def _prompts(value: Any, session: Session) -> list[list[int]]:
    if isinstance(value, str):
        return [session.tokenizer.encode(value, add_special_tokens=True)]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return [session.tokenizer.encode(item, add_special_tokens=True) for item in value]
        if all(_is_token(item, session) for item in value):
            return [list(value)]
        if all(isinstance(item, list) and item and all(_is_token(token, session) for token in item) for item in value):
            return [list(item) for item in value]
    raise ApiError(
        400, "prompt must be a string, a list of strings, a list of token ids or a list of such lists", param="prompt"
    )


def _is_token(value: Any, session: Session) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < session.vocabulary_size


def _message(index: int, message: Any) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
        raise ApiError(400, f"{where} must be an object with a role", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        ):
            raise ApiError(
                400, f"{where}.content has a part that is not text; this model reads text only", param="messages"
            )
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ApiError(400, f"{where}.content must be a string or a list of text parts", param="messages")
    return {**message, "content": content}
