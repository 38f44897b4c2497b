"""The process in which one library lives, as the host sees it: calls with deadlines, and what became of it."""

import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from rm_abstract.core.errors import (
    ArtifactMismatch,
    BadInput,
    DeviceMissing,
    DriverMismatch,
    PluginError,
    SourceUnreachable,
    ToolchainFailure,
    Transient,
    WorkloadError,
)
from rm_abstract.native.frames import Frame, FrameError, FrameReader, Kind, encode
from rm_abstract.native.log import LibraryLog, log

_ERRORS: Final = {
    int(kind.code): kind
    for kind in (
        BadInput, ArtifactMismatch, DeviceMissing, DriverMismatch, SourceUnreachable, ToolchainFailure, Transient,
    )
}  # fmt: skip
_CHUNK: Final = 1 << 16
_LAST_WORDS_SECONDS: Final = 5.0
"""From the moment when one side has closed its pipe to the process's end."""
_MOST_LAST_WORDS: Final = 64
"""Pieces that are read after its end; what it has started, and cannot be ended, may go on printing."""
_LOOK_MILLISECONDS: Final = 200
_START: Final = (
    "import sys; sys.path[:] = {path!r}; from rm_abstract.native.child import main; main({requests}, {results})"
)

OnTokens = Callable[[list[int]], None]
OnEnd = Callable[[Any, WorkloadError | None], None]
"""Gets the answer or the failure."""


@dataclass
class _Call:
    function: str
    seconds: float
    on_end: OnEnd
    on_tokens: OnTokens | None = None
    deadline: float = 0.0

    def renew(self) -> None:
        self.deadline = time.monotonic() + self.seconds


class LibraryProcess:
    """Starts at once. Every call ends: with the library's answer, or with a WorkloadError that says what happened.

    Callbacks are called on a thread of this object. After a crash, a hang or nonsense the process is gone for good
    (``ended``), with everything that it had started; whoever wants the library again makes another object.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._waking = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._numbers = count(1)
        self._watchers: list[Callable[[str], None]] = []
        self._reason = ""
        self._closing = False
        self._end = ""
        self._kill_at = float("inf")
        self._log = LibraryLog(name)
        self._frames = FrameReader()
        self._dead = threading.Event()
        requests, self._requests = os.pipe()
        self._results, results = os.pipe()
        self._woken, self._wake = os.pipe()
        for descriptor in (self._requests, self._results, self._woken):
            os.set_blocking(descriptor, False)
        root = str(Path(__file__).parents[2])
        path = [root, *(entry for entry in sys.path if entry and entry != root)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START.format(path=path, requests=requests, results=results)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(requests, results),
                start_new_session=True,
            )
        except OSError as error:
            for descriptor in (self._requests, self._results, self._woken, self._wake):
                os.close(descriptor)
            raise Transient(f"no process can be started for {name}: {error}") from error
        finally:
            os.close(requests)
            os.close(results)
        assert self._process.stdout is not None
        self._output = self._process.stdout
        os.set_blocking(self._output.fileno(), False)
        self._reader = threading.Thread(target=self._read, name=f"{name}-reader", daemon=True)
        self._reader.start()
        threading.Thread(target=self._await_end, name=f"{name}-end", daemon=True).start()

    @property
    def ended(self) -> bool:
        """True once the process is gone or about to be."""
        return bool(self._end or self._reason)

    def call(self, function: str, arguments: Mapping[str, Any], *, seconds: float) -> Any:
        """Call a function and wait for its answer, at most so long. Raises WorkloadError, or see ``check_may_wait``."""
        self.check_may_wait()
        done = threading.Event()
        outcome: list[tuple[Any, WorkloadError | None]] = []

        def on_end(answer: Any, error: WorkloadError | None) -> None:
            outcome.append((answer, error))
            done.set()

        self.begin(function, arguments, seconds=seconds, on_end=on_end)
        done.wait()
        answer, error = outcome[0]
        if error is not None:
            raise error
        return answer

    def check_may_wait(self) -> None:
        """RuntimeError in a callback of this object: what it would wait for is read on the very thread that waits."""
        if threading.current_thread() is self._reader:
            raise RuntimeError(f"a callback of {self._name} may not wait for another call; do that on another thread")

    def begin(
        self,
        function: str,
        arguments: Mapping[str, Any],
        *,
        seconds: float,
        on_end: OnEnd,
        on_tokens: OnTokens | None = None,
    ) -> int:
        """Call a function; ``on_end`` is called once. ``seconds`` count anew from each piece of tokens."""
        number = next(self._numbers)
        call = _Call(function, seconds, on_end, on_tokens)
        call.renew()
        try:
            frame = encode(Kind.CALL, number, {"function": function, "arguments": arguments})
        except (ValueError, TypeError) as error:
            on_end(None, BadInput(f"what {self._name} is asked cannot be said as JSON: {error}"))
            return number
        with self._lock:
            end = self._end
            if not end:
                self._calls[number] = call
        if end:
            on_end(None, PluginError(end))
        else:
            self._poke()
            self._send(frame)
        return number

    def cancel(self, number: int, *, seconds: float) -> None:
        """End a run soon, and the process where the run does not end in so many seconds. Harmless after the end."""
        with self._lock:
            call = self._calls.get(number)
            if call is None:
                return
            call.seconds = seconds
            call.renew()
        self._poke()
        self._send(encode(Kind.CANCEL, number))

    def watch(self, on_gone: Callable[[str], None]) -> None:
        """Have ``on_gone`` called with the reason once the process is gone, before what went on fails."""
        with self._lock:
            end = self._end
            if not end:
                self._watchers.append(on_gone)
        if end:
            on_gone(end)

    def close(self) -> None:
        """End the process, with everything that it has started. What goes on fails."""
        self._closing = True
        # Nobody writes while the descriptor is closed: its number may be another file's a moment later.
        with self._writing:
            requests, self._requests = self._requests, -1
            if requests >= 0:
                os.close(requests)
        self._kill_at = time.monotonic() + _LAST_WORDS_SECONDS
        self._poke()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _send(self, frame: bytes) -> None:
        # The process always reads, unless it is gone or stopped; the reader's thread notices both, and ends it.
        view = memoryview(frame)
        with self._writing, suppress(OSError):
            while view and self._requests >= 0 and not self._dead.is_set():
                try:
                    view = view[os.write(self._requests, view) :]
                except BlockingIOError:
                    room = select.poll()
                    room.register(self._requests, select.POLLOUT)
                    room.poll(_LOOK_MILLISECONDS)

    def _poke(self) -> None:
        with self._waking:
            if self._wake >= 0:
                os.write(self._wake, b"\0")

    def _await_end(self) -> None:
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        # Until it is waited for, the number is its own: this ends what it has started, and nobody else.
        self._kill()
        self._process.wait()
        self._dead.set()
        self._poke()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    # On the reader's thread

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ, self._take_results)
            selector.register(self._output.fileno(), selectors.EVENT_READ, self._log.feed)
            selector.register(self._woken, selectors.EVENT_READ, lambda content: None)
            while not self._dead.is_set():
                for key, _ in selector.select(self._patience()):
                    self._take(selector, key)
                self._enforce()
            for key in list(selector.get_map().values()):
                for _ in range(_MOST_LAST_WORDS):
                    if not self._take(selector, key):
                        break
        self._finish()

    def _take(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> bool:
        """Read once; False where there is nothing more."""
        assert isinstance(key.fd, int)
        try:
            content = os.read(key.fd, _CHUNK)
        except BlockingIOError:
            return False
        if content:
            key.data(content)
        else:
            selector.unregister(key.fd)
            if key.fd == self._results:
                self._kill_at = time.monotonic() + _LAST_WORDS_SECONDS
        return bool(content)

    def _patience(self) -> float | None:
        with self._lock:
            first = min((call.deadline for call in self._calls.values()), default=float("inf"))
        first = min(first, self._kill_at)
        return None if first == float("inf") else max(0.0, first - time.monotonic())

    def _enforce(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = next((call for call in self._calls.values() if call.deadline <= now), None)
        if late is not None and not self._reason:
            self._give_up(f"{_title(late.function)} did not come to its end or go on for {late.seconds:g} s")
        if now >= self._kill_at:
            self._kill_at = float("inf")
            self._give_up("it closed the pipe to the host")

    def _give_up(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._kill()

    def _take_results(self, content: bytes) -> None:
        try:
            for frame in self._frames.feed(content):
                self._take_frame(frame)
        except FrameError as error:
            # Nothing after it can be understood either.
            self._frames = FrameReader()
            self._give_up(f"its process does not speak as it should ({error})")

    def _take_frame(self, frame: Frame) -> None:
        with self._lock:
            call = self._calls.get(frame.call)
            if call is None:
                return
            call.renew()
            if frame.kind is not Kind.TOKENS:
                del self._calls[frame.call]
        if frame.kind is Kind.TOKENS:
            tokens = frame.tokens()
            if call.on_tokens is not None:
                with _told():
                    call.on_tokens(tokens)
            return
        error: WorkloadError | None = None
        answer = None
        try:
            answer, error = self._outcome(frame)
        except (FrameError, KeyError, TypeError) as wrong:
            reason = f"its process does not speak as it should ({wrong!r})"
            error = PluginError(f"{self._name}: {reason}")
            self._give_up(reason)
        with _told():
            call.on_end(answer, error)

    def _outcome(self, frame: Frame) -> tuple[Any, WorkloadError | None]:
        content = frame.json()
        if frame.kind is Kind.RESULT:
            return content["answer"], None
        kind = _ERRORS.get(content["code"], PluginError)
        return None, kind(f"{self._name}: {content['message']}")

    def _finish(self) -> None:
        self._log.close()
        with self._lock:
            left, self._calls = list(self._calls.values()), {}
            watchers, self._watchers = self._watchers, []
            self._end = f"{self._name}: {self._obituary([call.function for call in left])}"
        if not self._closing:
            log.warning("%s", self._end)
        for watcher in watchers:
            with _told():
                watcher(self._end)
        for call in left:
            with _told():
                call.on_end(None, PluginError(self._end))
        os.close(self._results)
        self._output.close()
        with self._waking:
            os.close(self._wake)
            os.close(self._woken)
            self._wake = -1
        with self._writing:
            if self._requests >= 0:
                os.close(self._requests)
                self._requests = -1

    def _obituary(self, functions: list[str]) -> str:
        if self._closing and not self._reason:
            return "it was closed"
        where = f" in {', '.join(sorted({_title(function) for function in functions}))}" if functions else ""
        code = self._process.returncode
        if self._reason:
            what = f"{self._reason}, and was ended"
        elif code < 0:
            what = f"its process was ended by {_signal_name(-code)}{where}"
        else:
            what = f"its process ended by itself with exit code {code}{where}"
        said = f"; the last that it printed: {self._log.last}" if self._log.last else ""
        return what + said


@contextmanager
def _told() -> Iterator[None]:
    """What a callback raises is told in the log: the thread that calls it serves others too."""
    try:
        yield
    except Exception:
        log.exception("a callback failed")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _title(function: str) -> str:
    return "loading the library" if function == "load" else f"rma_{function}"
