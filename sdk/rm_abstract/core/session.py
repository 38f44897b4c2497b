"""A loaded model that generates tokens: what a runtime plugin gives, and the server drives."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MAX_LOGPROBS: Final = 20
"""Likeliest tokens of a position that a session tells at most where it can tell any number: what is ever asked for."""


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """The model ended its text."""
    LENGTH = "length"
    """The limit of tokens was reached."""
    CANCELLED = "cancelled"
    """It was cancelled."""
    ERROR = "error"
    """The engine failed."""


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate from. ``temperature`` 0 is greedy: the most likely token each time."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    max_tokens: int
    """At least one; together with the prompt within the session's ``max_sequence_length``."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    logprobs: int | None = None
    """Most likely tokens to tell of each position, at most the session's ``max_logprobs``; None: no probabilities."""

    def ended_by(self, token: int, generated: int, end_tokens: Collection[int]) -> FinishReason | None:
        """Why the generation ends with ``token``, the ``generated``-th of its answer; None where it goes on."""
        if token in end_tokens and not self.ignore_eos:
            return FinishReason.STOP
        return FinishReason.LENGTH if generated >= self.max_tokens else None


class ScoredToken(int):
    """A token of a request with ``logprobs``: a token like any other, that knows how likely it was."""

    logprob: float
    """Natural logarithm of its probability, before temperature and penalties."""
    alternatives: tuple[tuple[int, float], ...]
    """The most likely tokens of its position with theirs, the likeliest first."""

    def __new__(cls, token: int, logprob: float, alternatives: Sequence[tuple[int, float]] = ()) -> "ScoredToken":
        """``token`` with what is known of it."""
        made = super().__new__(cls, token)
        made.logprob, made.alternatives = logprob, tuple(alternatives)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it goes from process to process whole."""
        return ScoredToken, (int(self), self.logprob, self.alternatives)


Sink = Callable[[Sequence[int], FinishReason | None], None]
"""Receives tokens in order, on a thread of the engine; the last call, and only it, has a finish reason.

The token that ends a text is passed like any other, so that usage counts what was computed. Where a request has
``logprobs``, tokens are ScoredTokens.
"""


class Generation(ABC):
    """A generation that goes on."""

    @abstractmethod
    def cancel(self) -> None:
        """End it soon. Harmless at any time and from any thread; the sink still gets its last call."""


class Encoder(ABC):
    """Text to tokens. Safe to call from any thread."""

    @abstractmethod
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``."""


class Tokenizer(Encoder):
    """Text to tokens and back. Safe to call from any thread."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens`` without special tokens; bytes that are no character yet come out as U+FFFD."""

    @abstractmethod
    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt of a conversation, up to where the assistant speaks. ValueError where the template refuses it."""


class Session(ABC):
    """A model that is loaded. ``execute`` may be called from any thread."""

    tokenizer: Tokenizer
    max_sequence_length: int
    """Tokens of prompt and answer together."""
    vocabulary_size: int
    default_temperature: float = 1.0
    """What the model's authors recommend, where a request names none."""
    default_top_p: float = 1.0
    max_logprobs: int | None = None
    """Most likely tokens that it can tell of each position; 0 for the chosen one only, None for no probabilities."""
    on_failure: Callable[[], None] | None = None
    """Called once, on any thread, when the engine has failed; ``failure`` says why."""

    @abstractmethod
    def execute(self, request: GenerationRequest, sink: Sink) -> Generation:
        """Begin a generation and return at once."""

    @property
    @abstractmethod
    def failure(self) -> str:
        """Why the engine can generate no more; empty while it can."""

    @abstractmethod
    def close(self) -> None:
        """Cancel what goes on and free the model."""


def generate(session: Session, request: GenerationRequest, sink: Sink | None = None) -> tuple[list[int], FinishReason]:
    """Generate, and wait for the end: the tokens and why it ended.

    ``sink`` gets them as they come, too; what it raises ends the generation, and is raised here.
    """
    tokens: list[int] = []
    end: list[FinishReason] = []
    failures: list[Exception] = []
    news = threading.Event()
    done = threading.Event()

    def collect(new: Sequence[int], finish: FinishReason | None) -> None:
        tokens.extend(new)
        if sink is not None and not failures:
            try:
                sink(new, finish)
            except Exception as error:  # the engine's thread is not to suffer from it
                failures.append(error)
                news.set()
        if finish is not None:
            end.append(finish)
            done.set()
            news.set()

    generation = session.execute(request, collect)
    news.wait()
    if not done.is_set():
        generation.cancel()
    done.wait()
    if failures:
        raise failures[0]
    return tokens, end[0]
