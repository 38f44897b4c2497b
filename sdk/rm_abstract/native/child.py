"""The process of one library: loads it, and does what the host's frames say. Imports little, as it starts often."""

import ctypes
import os
import queue
import resource
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from rm_abstract.native.abi import ABI_MAJOR, ABI_MINOR, AbiEngine, Engine, Failed
from rm_abstract.native.frames import Frame, FrameReader, Kind, encode, encode_tokens, write_all

_CHUNK: Final = 1 << 16
_BY_LINES: Final = 1
"""``_IOLBF`` of stdio.h."""


def main(requests: int, results: int) -> NoReturn:
    """Serve the pipes with these descriptors until the host closes the first."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The host decides when this process ends; the terminal's signals go to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (requests, results):
        os.set_inheritable(descriptor, False)
    with suppress(ValueError, AttributeError):
        # What the library has printed must not be lost in a buffer when it crashes.
        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _BY_LINES, 0)
    _Loop(requests, results).run()


class _Loop:
    def __init__(self, requests: int, results: int) -> None:
        self._requests = requests
        self._results = results
        self._writing = threading.Lock()
        self._control: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._running: dict[int, int] = {}
        self._cancelled: set[int] = set()
        # A session that is being cancelled must not be closed under it.
        self._ending = threading.Lock()

    def run(self) -> NoReturn:
        """Read frames. Nothing of the library is called on this thread, so that it always sees the host's end."""
        threading.Thread(target=self._work, daemon=True).start()
        reader = FrameReader()
        while content := os.read(self._requests, _CHUNK):
            for frame in reader.feed(content):
                self._take(frame)
        # Without the destructors of the library, which may hang; what it holds, the system takes back.
        os._exit(0)

    def _work(self) -> None:
        while True:
            self._control.get()()

    def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.CANCEL:
            threading.Thread(target=self._cancel, args=(frame.call,), daemon=True).start()
            return
        request = frame.json()
        function, arguments = request["function"], request["arguments"]
        if function == "run":
            self._running[frame.call] = arguments["session"]
            threading.Thread(target=self._answer, args=(frame.call, function, arguments), daemon=True).start()
        else:
            self._control.put(lambda: self._answer(frame.call, function, arguments))

    def _cancel(self, call: int) -> None:
        with self._ending:
            if call not in self._running or self._engine is None:
                return
            self._cancelled.add(call)
            # The run tells what became of it; a library that cannot cancel still learns it from its callback.
            with suppress(Failed):
                self._engine.cancel(self._running[call], call)

    def _answer(self, call: int, function: str, arguments: Mapping[str, Any]) -> None:
        try:
            frame = encode(Kind.RESULT, call, {"answer": self._do(call, function, arguments)})
        except Failed as error:
            frame = encode(Kind.FAILURE, call, {"code": error.code, "message": str(error)})
        except Exception as error:
            frame = encode(Kind.FAILURE, call, {"code": 0, "message": f"{function}: {type(error).__name__}: {error}"})
        self._running.pop(call, None)
        self._cancelled.discard(call)
        self._write(frame)

    def _do(self, call: int, function: str, arguments: Mapping[str, Any]) -> Any:
        if function == "load":
            self._engine = _load(arguments)
            return {"abi": f"{ABI_MAJOR}.{ABI_MINOR}"}
        assert self._engine is not None
        match function:
            case "info":
                return self._engine.info()
            case "probe":
                return self._engine.probe(arguments)
            case "compile":
                return self._engine.compile(arguments)
            case "open":
                session, facts = self._engine.open(arguments)
                return {"session": session, "facts": facts}
            case "close":
                with self._ending:
                    self._engine.close(arguments["session"])
                return None
            case _:
                return self._engine.run(
                    arguments["session"], call, arguments["request"], lambda tokens: self._emit(call, tokens)
                )

    def _emit(self, call: int, tokens: Sequence[int]) -> bool:
        if call in self._cancelled:
            return False
        if tokens:
            self._write(encode_tokens(call, tokens))
        return True

    def _write(self, frame: bytes) -> None:
        try:
            with self._writing:
                write_all(self._results, frame)
        except OSError:
            os._exit(0)  # the host has gone


def _load(arguments: Mapping[str, Any]) -> Engine:
    if arguments["shim"] is None:
        return AbiEngine(arguments["path"])
    from rm_abstract.native.shim_engine import ShimEngine  # noqa: PLC0415 (few libraries need it)

    return ShimEngine(arguments["path"], arguments["shim"])
