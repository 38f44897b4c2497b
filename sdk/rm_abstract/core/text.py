"""Tokens to text, piece by piece, with stop strings."""

from collections.abc import Sequence

from rm_abstract.core.session import Tokenizer

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns tokens into pieces of text whose concatenation is the text of all tokens, cut before the first stop string.

    Text is held back while it may still become something else: a character of which bytes are missing, or the beginning
    of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._window = 0
        self._read = 0
        self._held = ""
        self.stopped = False
        """True once a stop string was found; whatever comes after it is ignored."""
        self.length = 0
        """Characters that are known by now: those given out, and those held back for a stop string."""

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not before."""
        if self.stopped or not tokens:
            return ""
        self._tokens.extend(tokens)
        # Two decodings from the same earlier token differ by the new text, whatever the tokenizer does at a beginning.
        before = self._tokenizer.decode(self._tokens[self._window : self._read]) if self._read > self._window else ""
        after = self._tokenizer.decode(self._tokens[self._window :])
        if after.endswith(_INCOMPLETE) or len(after) <= len(before):
            return ""
        self._window, self._read = self._read, len(self._tokens)
        return self._release(after[len(before) :])

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        if self.stopped:
            return ""
        before = self._tokenizer.decode(self._tokens[self._window : self._read]) if self._read > self._window else ""
        after = self._tokenizer.decode(self._tokens[self._window :]) if self._tokens else ""
        text = self._release(after[len(before) :])
        text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        self.length += len(text)
        text, self._held = self._held + text, ""
        found = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        if keep:
            text, self._held = text[:-keep], text[-keep:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    return next(
        (length for length in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-length:])), 0
    )
