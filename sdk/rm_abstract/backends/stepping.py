"""Sessions over engines that compute in steps, one token per generation and step, on one thread."""

import threading
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rm_abstract.core.session import FinishReason, Generation, GenerationRequest, Session, Sink

SlotT = TypeVar("SlotT")


@dataclass(eq=False)
class _Running(Generation, Generic[SlotT]):
    request: GenerationRequest
    sink: Sink
    slot: SlotT | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


class SteppingSession(Session, Generic[SlotT]):
    """Runs every generation that it is given at once; whoever calls ``execute`` limits how many that are.

    A step that raises ends all generations with ERROR and the session with a ``failure``: what state the engine is in
    after that cannot be known.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._new: list[_Running[SlotT]] = []
        self._running: list[_Running[SlotT]] = []
        self._failure = ""
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread. Called once, by the subclass, when it is ready to step."""
        self._thread.start()

    @abstractmethod
    def begin(self, request: GenerationRequest) -> SlotT:
        """Take up a generation. Only the engine's thread calls this and the methods below."""

    @abstractmethod
    def step(self, slots: Sequence[SlotT]) -> Iterable[tuple[SlotT, Sequence[int], FinishReason | None]]:
        """Compute one step of ``slots``, at least one: the tokens of each, and why it ended if it did."""

    @abstractmethod
    def drop(self, slot: SlotT) -> None:
        """Forget a generation that was cancelled."""

    @property
    def failure(self) -> str:
        """See the base class."""
        return self._failure

    def execute(self, request: GenerationRequest, sink: Sink) -> Generation:
        """See the base class."""
        running: _Running[SlotT] = _Running(request, sink)
        with self._changed:
            if self._failure or self._closing:
                sink((), FinishReason.ERROR)
            else:
                self._new.append(running)
                self._changed.notify()
        return running

    def close(self) -> None:
        """See the base class."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while self._take():
            try:
                self._turn()
            except Exception as error:
                self._failure = " ".join(f"{type(error).__name__}: {error}".split())
                break
        with self._changed:
            self._closing = True
            left, self._running, self._new = self._running + self._new, [], []
        for running in left:
            running.sink((), FinishReason.ERROR if self._failure else FinishReason.CANCELLED)
        if self._failure and self.on_failure is not None:
            self.on_failure()

    def _take(self) -> bool:
        """Wait for something to do; False when the session is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._new or self._running)
            self._running, self._new = self._running + self._new, []
            return not self._closing

    def _turn(self) -> None:
        for running in [running for running in self._running if running.cancelled.is_set()]:
            self._running.remove(running)
            if running.slot is not None:
                self.drop(running.slot)
            running.sink((), FinishReason.CANCELLED)
        for running in self._running:
            if running.slot is None:
                running.slot = self.begin(running.request)
        by_slot = {id(running.slot): running for running in self._running}
        slots = [running.slot for running in self._running if running.slot is not None]
        if not slots:
            return
        for slot, tokens, finish in self.step(slots):
            running = by_slot[id(slot)]
            if finish is not None:
                self._running.remove(running)
            if tokens or finish is not None:
                running.sink(tokens, finish)
