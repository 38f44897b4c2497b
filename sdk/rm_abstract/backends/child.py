"""A session in a process of its own: for engines that hold the interpreter while they compute, or that may crash."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Final

from rm_api.conditions import Reason

from rm_abstract.core.errors import ToolchainFailure, WorkloadError
from rm_abstract.core.session import FinishReason, Generation, GenerationRequest, Session, Sink, Tokenizer

_CLOSE_SECONDS: Final = 10
_FACTS: Final = ("max_sequence_length", "vocabulary_size", "default_temperature", "default_top_p", "max_logprobs")
# Not multiprocessing's own way: that runs the main module once more in the child, and a user's script is one.
_BOOT: Final = """\
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from rm_abstract.backends.child import run
run(connection)
"""


class _Remote(Generation):
    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel

    def cancel(self) -> None:
        self._cancel()


class ChildSession(Session):
    """The session that ``factory(*args)`` makes in a new process. Both must be picklable; the tokenizer stays here.

    The server stays responsive while the engine computes, and an engine that dies becomes a ``failure`` that names its
    exit code. Raises what the factory raises.
    """

    def __init__(self, tokenizer: Tokenizer, factory: Callable[..., Session], *args: Any) -> None:
        self._connection, theirs = Pipe()
        descriptor = theirs.fileno()
        # However this process ends, its end of the pipe is closed, and the child ends too.
        self._process = subprocess.Popen([sys.executable, "-P", "-c", _BOOT, str(descriptor)], pass_fds=[descriptor])
        theirs.close()
        try:
            self._connection.send(sys.path)
            self._connection.send((factory, args))
            answer = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            self._connection.close()
            raise ToolchainFailure(
                f"the engine ended with {code} while it loaded the model", reason=Reason.ENGINE_FAILED
            ) from None
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            raise
        if isinstance(answer, WorkloadError):
            self._process.wait()
            self._connection.close()
            raise answer
        self.tokenizer = tokenizer
        for name, value in zip(_FACTS, answer, strict=True):
            setattr(self, name, value)
        self._lock = threading.Lock()
        self._sinks: dict[int, Sink] = {}
        self._numbers = count()
        self._failure = ""
        self._closing = False
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._reader.start()

    @property
    def failure(self) -> str:
        """See the base class."""
        return self._failure

    def execute(self, request: GenerationRequest, sink: Sink) -> Generation:
        """See the base class."""
        number = next(self._numbers)
        with self._lock:
            gone = bool(self._failure) or self._closing
            if not gone:
                self._sinks[number] = sink
                self._send((number, request))
        if gone:
            sink((), FinishReason.ERROR)
        return _Remote(lambda: self._cancel(number))

    def _cancel(self, number: int) -> None:
        with self._lock:
            if number in self._sinks:
                self._send((number, None))

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            return  # the process has ended; the reader finds that out and says so

    def _read(self) -> None:
        while True:
            try:
                number, tokens, finish, failure = self._connection.recv()
            except (EOFError, OSError):
                break
            with self._lock:
                sink = self._sinks.get(number) if finish is None else self._sinks.pop(number, None)
            if failure:
                self._fail(failure)
            if sink is not None:
                sink(tokens, finish)
        code = self._process.wait()
        if not self._closing:
            self._fail(f"its process ended with {code}")
        with self._lock:
            sinks = list(self._sinks.values())
            self._sinks.clear()
        for sink in sinks:
            sink((), FinishReason.CANCELLED if self._closing else FinishReason.ERROR)

    def _fail(self, failure: str) -> None:
        with self._lock:
            first, self._failure = not self._failure, self._failure or failure
        if first and self.on_failure is not None:
            self.on_failure()

    def close(self) -> None:
        """See the base class."""
        with self._lock:
            self._closing = True
            self._send(None)
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        self._connection.close()


def run(connection: Connection) -> None:
    """The child: makes the session, and does what it is told until the connection ends."""
    # Signals go to the whole group in a terminal; the server decides when the engine ends, by closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    factory, args = connection.recv()
    try:
        session = factory(*args)
    except WorkloadError as error:
        connection.send(error)
        return
    with suppress(OSError):  # the server has gone while the model was loaded; the loop below ends at once
        connection.send([getattr(session, name) for name in _FACTS])
    lock = threading.RLock()
    running: dict[int, Generation] = {}

    def sink(number: int, tokens: Sequence[int], finish: FinishReason | None) -> None:
        with lock:
            if finish is not None:
                running.pop(number, None)
            connection.send((number, list(tokens), finish, session.failure))

    while True:
        try:
            message = connection.recv()
        except EOFError:
            break
        if message is None:
            break
        number, request = message
        with lock:
            if request is not None:
                running[number] = session.execute(request, partial(sink, number))
            elif number in running:
                running[number].cancel()
    session.close()
