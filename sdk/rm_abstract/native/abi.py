"""``rm_plugin.h`` from Python, and what every engine in a library's process offers. Runs in that process only."""

import ctypes
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final, Protocol

ABI_MAJOR: Final = 1
ABI_MINOR: Final = 0
FUNCTIONS: Final = ("info", "probe", "compile", "open", "run", "cancel", "close", "last_error", "free")
_CODES: Final = frozenset({64, 65, 66, 67, 69, 70, 75})
_MOST_TOKENS: Final = 1 << 20
_SHOWN: Final = 120

Emit = Callable[[Sequence[int]], bool]
"""Passes tokens on. False says that nobody wants more."""


class Failed(Exception):
    """What the library reported, with its code; code 0: it did what it must not do."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Engine(Protocol):
    """A library as the loop of its process drives it. Sessions are numbers. Methods raise Failed."""

    def info(self) -> Any:
        """See ``rma_info``."""

    def probe(self, request: Mapping[str, Any]) -> Any:
        """See ``rma_probe``."""

    def compile(self, request: Mapping[str, Any]) -> Any:
        """See ``rma_compile``."""

    def open(self, request: Mapping[str, Any]) -> tuple[int, Any]:
        """See ``rma_open``: the session's number, and the answer."""

    def run(self, session: int, run: int, request: Mapping[str, Any], emit: Emit) -> Any:
        """See ``rma_run``."""

    def cancel(self, session: int, run: int) -> None:
        """See ``rma_cancel``."""

    def close(self, session: int) -> None:
        """See ``rma_close``."""


def load_library(path: str) -> ctypes.CDLL:
    """Load a shared library. Raises Failed with the loader's words."""
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise Failed(0, f"the system cannot load it: {error}") from None


_ON_TOKENS: Final = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32), ctypes.c_size_t)


class AbiEngine:
    """A library that exports what ``rm_plugin.h`` says. Raises Failed where it does not, or has another ABI version."""

    def __init__(self, path: str) -> None:
        self._library = load_library(path)
        version = self._function("abi_version", ctypes.c_uint32)()
        major, minor = version >> 16, version & 0xFFFF
        if major != ABI_MAJOR:
            raise Failed(
                0,
                f"rma_abi_version says {major}.{minor}, and this host knows {ABI_MAJOR}.x only; "
                "build it with this version's rm_plugin.h, or use another version of RM Abstract",
            )
        out, text = ctypes.POINTER(ctypes.c_void_p), ctypes.c_char_p
        self._info = self._function("info", ctypes.c_int32, out)
        self._probe = self._function("probe", ctypes.c_int32, text, out)
        self._compile = self._function("compile", ctypes.c_int32, text, out)
        self._open = self._function("open", ctypes.c_int32, text, out, out)
        run = (ctypes.c_void_p, ctypes.c_uint64, text, _ON_TOKENS, ctypes.c_void_p, out)
        self._run = self._function("run", ctypes.c_int32, *run)
        self._cancel = self._function("cancel", ctypes.c_int32, ctypes.c_void_p, ctypes.c_uint64)
        self._close = self._function("close", ctypes.c_int32, ctypes.c_void_p)
        self._last_error = self._function("last_error", text)
        self._free = self._function("free", None, ctypes.c_void_p)
        self._sessions: dict[int, int | None] = {}
        self._numbers = count(1)
        self._emits: dict[int, Emit] = {}
        self._lies: dict[int, str] = {}
        # One callback for all runs: a library that still calls it after a run's end finds nobody, and no freed memory.
        self._on_tokens = _ON_TOKENS(self._receive)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        try:
            function = getattr(self._library, f"rma_{name}")
        except AttributeError:
            raise Failed(0, f"it does not export rma_{name}; rm_plugin.h names what a plugin exports") from None
        function.restype, function.argtypes = result, arguments
        return function

    def _call(self, name: str, function: Any, *arguments: Any) -> Any:
        """Call a function whose last argument is ``out``; the JSON that it stores there."""
        out = ctypes.c_void_p()
        self._check(name, function(*arguments, ctypes.byref(out)))
        if not out.value:
            raise Failed(0, f"rma_{name} returned RMA_OK, but no answer")
        raw = ctypes.string_at(out.value)
        self._free(out)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise Failed(0, f"rma_{name} answered what is not valid JSON ({error}): {raw[:_SHOWN]!r}") from None

    def _check(self, name: str, code: int) -> None:
        if not code:
            return
        said = (self._last_error() or b"").decode(errors="replace") or "the library does not say why"
        if code not in _CODES:
            raise Failed(0, f"rma_{name} returned {code}, which is no code of rm_plugin.h: {said}")
        raise Failed(code, said)

    def info(self) -> Any:
        """See ``rma_info``."""
        return self._call("info", self._info)

    def probe(self, request: Mapping[str, Any]) -> Any:
        """See ``rma_probe``."""
        return self._call("probe", self._probe, _text(request))

    def compile(self, request: Mapping[str, Any]) -> Any:
        """See ``rma_compile``."""
        return self._call("compile", self._compile, _text(request))

    def open(self, request: Mapping[str, Any]) -> tuple[int, Any]:
        """See ``rma_open``."""
        session = ctypes.c_void_p()
        answer = self._call("open", self._open, _text(request), ctypes.byref(session))
        number = next(self._numbers)
        self._sessions[number] = session.value
        return number, answer

    def run(self, session: int, run: int, request: Mapping[str, Any], emit: Emit) -> Any:
        """See ``rma_run``."""
        self._emits[run] = emit
        try:
            answer = self._call(
                "run", self._run, self._sessions[session], run, _text(request), self._on_tokens, ctypes.c_void_p(run)
            )
        finally:
            del self._emits[run]
            lie = self._lies.pop(run, "")
        if lie:
            raise Failed(0, lie)
        return answer

    def _receive(self, user: int | None, tokens: Any, length: int) -> int:
        run = user or 0
        emit = self._emits.get(run)
        if emit is None:
            return 1
        if length > _MOST_TOKENS or (length and not tokens):
            self._lies[run] = f"rma_run passed {length} tokens at once to its callback, or none where it said some"
            return 1
        return 0 if emit(tokens[:length]) else 1

    def cancel(self, session: int, run: int) -> None:
        """See ``rma_cancel``."""
        self._check("cancel", self._cancel(self._sessions[session], run))

    def close(self, session: int) -> None:
        """See ``rma_close``."""
        self._check("close", self._close(self._sessions.pop(session)))


def _text(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request, ensure_ascii=False).encode()
