"""Probabilities of tokens, in the two shapes that the OpenAI API has for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rm_abstract.core.session import ScoredToken, Tokenizer

_CONTEXT: Final = 4
"""Tokens before one that its text is seen with: alone, many tokenizers drop a blank."""
_LEAST: Final = -9999.0
"""Stands for a probability of 0, which JSON cannot say."""
_BROKEN: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Score:
    """One token of an answer."""

    text: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...]
    offset: int
    """Characters of the answer before it."""


class Scores:
    """Collects the scores of one answer, and gives those out whose text is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._held: list[Score] = []

    def add(self, token: int, offset: int) -> None:
        """A token that begins at ``offset`` in the text."""
        if isinstance(token, ScoredToken):
            others = tuple((self._text(other), max(logprob, _LEAST)) for other, logprob in token.alternatives)
            self._held.append(Score(self._text(token), max(token.logprob, _LEAST), others, offset))
        self._before = [*self._before[1 - _CONTEXT :], int(token)]

    def take(self, length: int) -> tuple[Score, ...]:
        """Those within the first ``length`` characters. One that ends the text, or is cut off with it, never is."""
        taken = tuple(score for score in self._held if score.offset < length)
        self._held = self._held[len(taken) :]
        return taken

    def _text(self, token: int) -> str:
        before, after = self._tokenizer.decode(self._before), self._tokenizer.decode([*self._before, int(token)])
        return after[len(before) :] if after.startswith(before) else self._tokenizer.decode([int(token)])


def of_chat(scores: Sequence[Score]) -> dict[str, Any] | None:
    """``logprobs`` of a choice of a chat completion."""
    content = [
        {**_entry(score.text, score.logprob), "top_logprobs": [_entry(*other) for other in score.alternatives]}
        for score in scores
    ]
    return {"content": content, "refusal": None} if content else None


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # A part of a character has no text of its own, and its bytes are not known here.
    return {"token": text, "logprob": logprob, "bytes": None if _BROKEN in text else list(text.encode())}


def of_completion(scores: Sequence[Score]) -> dict[str, Any] | None:
    """``logprobs`` of a choice of a completion."""
    if not scores:
        return None
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        # Different tokens may have the same text; the likeliest comes first and stays.
        "top_logprobs": [{**dict(reversed(score.alternatives)), score.text: score.logprob} for score in scores],
        "text_offset": [score.offset for score in scores],
    }
