"""A session whose every token is known: it repeats its prompt in capitals, at the pace that a test sets."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rm_abstract.backends.stepping import SteppingSession
from rm_abstract.core.session import FinishReason, GenerationRequest, ScoredToken
from test_sdk_text import SPECIAL, ByteTokenizer


@dataclass(eq=False)
class Slot:
    """One generation."""

    request: GenerationRequest
    left: list[int]
    made: int = 0


@dataclass
class Pace:
    """How many steps the engine may make; unlimited while ``permits`` is None."""

    permits: threading.Semaphore | None = None
    dropped: list[Slot] = field(default_factory=list)
    most_at_once: int = 0
    requests: list[GenerationRequest] = field(default_factory=list)


def chance(token: int) -> float:
    """The logarithm of the probability of a token, whatever came before it."""
    return -(1 + token) / 100


def scored(token: int, most: int) -> ScoredToken:
    """The token with its probability, and with as many letters as the likeliest there are."""
    letters = sorted(range(ord("A"), ord("A") + most), key=chance, reverse=True)
    return ScoredToken(token, chance(token), [(letter, chance(letter)) for letter in letters])


class ScriptedSession(SteppingSession[Slot]):
    """Says the prompt in capitals, one byte per step, then the special token that ends a text."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = ByteTokenizer()
        self.max_sequence_length = 200
        self.vocabulary_size = 257
        self.pace = Pace()
        self.broken = threading.Event()
        self.start()

    def begin(self, request: GenerationRequest) -> Slot:
        """See the base class."""
        self.pace.requests.append(request)
        text = bytes(token for token in request.prompt if token != SPECIAL).decode().upper()
        return Slot(request, [*text.encode(), SPECIAL])

    def step(self, slots: Sequence[Slot]) -> Iterable[tuple[Slot, Sequence[int], FinishReason | None]]:
        """See the base class."""
        if self.broken.is_set():
            raise RuntimeError("the device has gone")
        if self.pace.permits is not None and not self.pace.permits.acquire(timeout=0.005):
            return
        self.pace.most_at_once = max(self.pace.most_at_once, len(slots))
        for slot in slots:
            token = slot.left.pop(0)
            slot.made += 1
            if slot.request.logprobs is not None:
                token = scored(token, slot.request.logprobs)
            finish = FinishReason.STOP if token == SPECIAL else None
            if finish is None and slot.made == slot.request.max_tokens:
                finish = FinishReason.LENGTH
            yield slot, [token], finish

    def drop(self, slot: Slot) -> None:
        """See the base class."""
        self.pace.dropped.append(slot)
