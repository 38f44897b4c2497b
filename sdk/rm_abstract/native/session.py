"""Text generation by a library in a process of its own."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rm_abstract.core.errors import PluginError, WorkloadError
from rm_abstract.core.session import FinishReason, Generation, GenerationRequest, Session, Sink, Tokenizer
from rm_abstract.native.library import NativeModel, NativeRun
from rm_abstract.native.log import log

_FINISHES: Final = {str(reason): reason for reason in FinishReason if reason is not FinishReason.ERROR}
_BYTES: Final = 256


class ByteTokenizer(Tokenizer):
    """A token below 256 is a byte of UTF-8; the others are no text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See the base class; there are no special tokens to add."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """See the base class."""
        return bytes(token for token in tokens if token < _BYTES).decode(errors="replace")

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See the base class: a line for each message, with who says it."""
        lines = []
        for message in messages:
            if not isinstance(message.get("content"), str):
                raise ValueError("a message's content must be a text")
            lines.append(f"{message.get('role', 'user')}: {message['content']}\n")
        return "".join(lines) + "assistant:"


class LibraryTokenizer(Tokenizer):
    """The tokenizer that a library brings: its tasks ``encode``, ``decode`` and ``chat``."""

    def __init__(self, model: NativeModel) -> None:
        self._model = model

    def _ask(self, member: str, kind: type[Any], request: Mapping[str, Any]) -> Any:
        answer = self._model.run(request)
        value = answer.get(member)
        if not isinstance(value, kind) or (kind is list and not all(isinstance(token, int) for token in value)):
            raise PluginError(f"{self._model.library.path.name}: the task {request['task']} answered no {member}")
        return value

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See the base class."""
        request = {"task": "encode", "text": text, "add_special_tokens": add_special_tokens}
        return list(self._ask("tokens", list, request))

    def decode(self, tokens: Sequence[int]) -> str:
        """See the base class."""
        return str(self._ask("text", str, {"task": "decode", "tokens": list(tokens)}))

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See the base class."""
        try:
            return str(self._ask("text", str, {"task": "chat", "messages": [dict(message) for message in messages]}))
        except WorkloadError as error:
            raise ValueError(str(error)) from error


TOKENIZERS: Final[Mapping[str, Callable[[NativeModel], Tokenizer]]] = {
    "bytes": lambda _: ByteTokenizer(),
    "library": LibraryTokenizer,
}
"""What ``rma_open`` may name as the tokenizer of a model."""


class NativeSession(Session):
    """A model that a library has loaded, as a session. Owns the model and its library, and closes both.

    As many generations go on at once as the library allows; the others wait in the order in which they came. Sinks are
    called on a thread of the session, and may use the tokenizer.
    """

    def __init__(self, model: NativeModel) -> None:
        self._model = model
        self._name = model.library.path.name
        facts = model.facts
        self.max_sequence_length = self._number(facts, "max_sequence_length")
        self.vocabulary_size = self._number(facts, "vocabulary_size")
        self._most = self._number({"max_concurrent_runs": 1, **facts}, "max_concurrent_runs")
        self.default_temperature = float(facts.get("temperature", 1.0))
        self.default_top_p = float(facts.get("top_p", 1.0))
        tokenizer = facts.get("tokenizer", "bytes")
        if tokenizer not in TOKENIZERS:
            raise PluginError(f"{self._name}: rma_open names the tokenizer {tokenizer!r}; there are bytes and library")
        self.tokenizer = TOKENIZERS[tokenizer](model)
        self._lock = threading.Lock()
        self._waiting: deque[_Generation] = deque()
        self._running: set[_Generation] = set()
        self._failure = ""
        self._closing = False
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name=f"{self._name}-sinks", daemon=True)
        self._thread.start()
        model.watch(self._lost)

    def _number(self, facts: Mapping[str, Any], name: str) -> int:
        value = facts.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise PluginError(f"{self._name} cannot generate text: rma_open answers {name} {value!r}, not a number")
        return value

    @property
    def failure(self) -> str:
        """See the base class."""
        return self._failure

    def execute(self, request: GenerationRequest, sink: Sink) -> Generation:
        """See the base class."""
        generation = _Generation(self, request, sink)
        with self._lock:
            gone = bool(self._failure) or self._closing
            if not gone:
                self._waiting.append(generation)
        if gone:
            sink((), FinishReason.ERROR)
        else:
            self._begin()
        return generation

    def tell(self, event: Callable[[], None]) -> None:
        """Have the session's thread call ``event``, after all that it was told before."""
        self._events.put(event)

    def drop(self, generation: "_Generation") -> None:
        """Take a generation out of the queue. One that has begun is cancelled in the library."""
        with self._lock:
            if generation in self._waiting:
                self._waiting.remove(generation)
                waiting = True
            else:
                waiting = False
        if waiting:
            generation.finish(FinishReason.CANCELLED)
        elif generation.run is not None:
            generation.run.cancel()

    def ended(self, generation: "_Generation") -> None:
        """A generation that had begun has ended."""
        with self._lock:
            self._running.discard(generation)
        self._begin()

    def _lost(self, reason: str) -> None:
        with self._lock:
            if self._closing:
                return
            self._failure = reason
            left = list(self._waiting)
            self._waiting.clear()
        for generation in left:
            generation.finish(FinishReason.ERROR)
        self.tell(lambda: self.on_failure() if self.on_failure is not None else None)

    def _begin(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or len(self._running) >= self._most:
                    return
                generation = self._waiting.popleft()
                self._running.add(generation)
            generation.begin(self._model)

    def close(self) -> None:
        """See the base class."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for generation in waiting:
            generation.finish(FinishReason.CANCELLED)
        try:
            self._model.close()
        except WorkloadError as error:
            log.warning("the model was not unloaded in order: %s", error)
        self._model.library.close()
        self._events.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _deliver(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                event()
            except Exception:
                log.exception("a sink of %s failed", self._name)


class _Generation(Generation):
    def __init__(self, session: NativeSession, request: GenerationRequest, sink: Sink) -> None:
        self._session = session
        self._request = request
        self._sink = sink
        self._made = 0
        self._lie = ""
        self._cancelled = False
        self.run: NativeRun | None = None

    def begin(self, model: NativeModel) -> None:
        """Have the library begin."""
        request = {"task": "generate", **asdict(self._request), "prompt": list(self._request.prompt)}
        self.run = model.start(request, on_end=self._on_end, on_tokens=self._on_tokens)
        if self._cancelled:
            self.run.cancel()

    def cancel(self) -> None:
        self._cancelled = True
        self._session.drop(self)

    def finish(self, reason: FinishReason) -> None:
        """Tell the end."""
        self._session.tell(lambda: self._sink((), reason))

    def _on_tokens(self, tokens: list[int]) -> None:
        self._made += len(tokens)
        if self._lie:
            return
        strange = [token for token in tokens if token >= self._session.vocabulary_size]
        if strange:
            self._lie = f"it made the token {strange[0]}, and has {self._session.vocabulary_size} of them"
        elif self._made > self._request.max_tokens:
            self._lie = f"it made more than the {self._request.max_tokens} tokens that were asked for"
        if self._lie:
            self.cancel()
        else:
            self._session.tell(lambda: self._sink(tokens, None))

    def _on_end(self, answer: Any, error: WorkloadError | None) -> None:
        finish = FinishReason.ERROR
        if error is None and not self._lie:
            finish = _FINISHES.get(str(answer.get("finish")), FinishReason.ERROR)
            self._lie = "" if finish is not FinishReason.ERROR else f"rma_run ended with {answer}, which is no finish"
        if self._cancelled and finish is FinishReason.STOP:
            finish = FinishReason.CANCELLED
        why = str(error) if error is not None else self._lie
        if why:
            log.warning("a generation failed: %s", why)
        self.finish(finish)
        self._session.ended(self)
