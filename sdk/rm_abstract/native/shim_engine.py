"""Calls a plain C library as its shim describes it. Runs in the library's process only."""

import ctypes
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from rm_abstract.core.errors import BadInput
from rm_abstract.native.abi import Emit, Failed, load_library
from rm_abstract.native.shim import Argument, Function, Returns, Role, Shim, scalar

_BAD_INPUT: Final = 64
_DEVICE_MISSING: Final = 66
_FAILED: Final = 70
_TYPES: Final[Mapping[str, Any]] = {
    "int8": ctypes.c_int8, "uint8": ctypes.c_uint8, "int16": ctypes.c_int16, "uint16": ctypes.c_uint16,
    "int32": ctypes.c_int32, "uint32": ctypes.c_uint32, "int64": ctypes.c_int64, "uint64": ctypes.c_uint64,
    "size": ctypes.c_size_t, "float32": ctypes.c_float, "float64": ctypes.c_double, "text": ctypes.c_char_p,
}  # fmt: skip


@dataclass
class _Session:
    handle: ctypes.c_void_p
    devices: Sequence[str]
    options: Mapping[str, Any]


@dataclass
class _Run:
    """What the functions of one run are called with, by role."""

    values: dict[Role, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class ShimEngine:
    """A plain C library behind the interface of ``rm_plugin.h``. One call at a time, but for ``cancel``."""

    def __init__(self, path: str, description: Mapping[str, Any]) -> None:
        try:
            self._shim = Shim.from_json(description)
        except BadInput as error:
            raise Failed(_BAD_INPUT, str(error)) from None
        self._library = load_library(path)
        self._lock = threading.Lock()
        self._sessions: dict[int, _Session] = {}
        self._numbers = count(1)
        self._input = _TYPES[self._shim.element]
        self._output = _TYPES[self._shim.output_element or self._shim.element]
        self._on_tokens = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(self._output), ctypes.c_size_t)
        self._on_token = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, self._output)
        shim = self._shim
        described = (
            shim.load, shim.run, shim.unload, shim.step, shim.cancel, shim.error, shim.device_count, shim.version_text,
            shim.compile,
        )  # fmt: skip
        self._functions = {one.name: self._bind(one) for one in described if one is not None}
        if shim.version_text is not None:
            said = self._call(shim.version_text, _Run())
            if said != shim.version:
                raise Failed(0, f"the library says that it is version {said}, and its description says {shim.version}")

    def _bind(self, function: Function) -> Any:
        try:
            bound = getattr(self._library, function.name)
        except AttributeError:
            raise Failed(0, f"it does not export {function.name}, which its description names") from None
        bound.argtypes = [self._c_type(argument) for argument in function.parsed]
        results = {Returns.NOTHING: None, Returns.HANDLE: ctypes.c_void_p, Returns.TEXT: ctypes.c_char_p}
        bound.restype = results.get(function.returns, _TYPES[function.type])
        return bound

    def _c_type(self, argument: Argument) -> Any:
        match argument.role:
            case Role.PATH | Role.OUTPUT_PATH | Role.DEVICE:
                return ctypes.c_char_p
            case Role.INPUT:
                return ctypes.POINTER(self._input)
            case Role.OUTPUT:
                return ctypes.POINTER(self._output)
            case Role.OUTPUT_LENGTH:
                return ctypes.POINTER(_TYPES[argument.type])
            case Role.HANDLE_OUT:
                return ctypes.POINTER(ctypes.c_void_p)
            case Role.ON_TOKENS:
                return self._on_tokens
            case Role.ON_TOKEN:
                return self._on_token
            case Role.HANDLE | Role.NULL | Role.USER:
                return ctypes.c_void_p
            case _:
                return _TYPES[argument.type]

    def _call(self, function: Function, run: _Run) -> Any:
        """Call a function with the run's values; its result, where that is no failure."""
        arguments = [self._value(function, argument, run) for argument in function.parsed]
        result = self._functions[function.name](*arguments)
        match function.returns:
            case Returns.NOTHING:
                return None
            case Returns.TEXT:
                return (result or b"").decode(errors="replace")
            case Returns.HANDLE:
                failed = not result
            case Returns.STATUS:
                failed = result != self._shim.ok
            case Returns.COUNT:
                failed = result < 0
            case Returns.TOKEN:
                return result
        if failed:
            raise Failed(_FAILED, f"{function.name} failed{self._why(function, result, run)}")
        return result

    def _why(self, function: Function, result: Any, run: _Run) -> str:
        said = "" if function.returns is Returns.HANDLE else f" with {result}"
        if self._shim.error is not None and self._shim.error is not function:
            text = self._call(self._shim.error, _Run({**run.values, Role.STATUS: result or 0}, run.options))
            said += f": {text}" if text else ""
        return said

    def _value(self, function: Function, argument: Argument, run: _Run) -> Any:
        match argument.role:
            case Role.CONSTANT:
                return scalar(argument.type, argument.value)
            case Role.OPTION:
                if argument.value not in run.options:
                    raise Failed(_BAD_INPUT, f"{function.name} needs the option {argument.value}")
                try:
                    return scalar(argument.type, run.options[argument.value])
                except BadInput as error:
                    raise Failed(_BAD_INPUT, f"the option {argument.value}: {error}") from None
            case Role.NULL | Role.USER:
                return None
            case Role.OUTPUT_LENGTH:
                length = run.values.setdefault(
                    Role.OUTPUT_LENGTH, _TYPES[argument.type](run.values[Role.OUTPUT_CAPACITY])
                )
                return ctypes.byref(length)
            case Role.HANDLE_OUT:
                return ctypes.byref(run.values.setdefault(Role.HANDLE_OUT, ctypes.c_void_p()))
        if argument.role not in run.values:
            raise Failed(
                _BAD_INPUT, f"{function.name} is described with an argument {argument.role} that it cannot have"
            )
        return run.values[argument.role]

    def info(self) -> Any:
        """What the description says, in the form of ``rma_info``."""
        shim = self._shim
        return {"device_types": [shim.device_type], **shim.info, "name": shim.name, "version": shim.version}

    def probe(self, request: Mapping[str, Any]) -> Any:
        """As many devices as the library counts; one where it cannot count."""
        shim, number = self._shim, 1
        if shim.device_count is not None:
            with self._lock:
                number = int(self._call(shim.device_count, _Run()))
        found = [f"{shim.device_type}{index}" for index in range(number)]
        wanted = request.get("devices") or found
        missing = [device for device in wanted if _index(device) >= number]
        if missing or not number:
            raise Failed(_DEVICE_MISSING, f"there is no device {', '.join(missing) or 'at all'}; there are {number}")
        return {"devices": [{"id": device, "type": shim.device_type, "attributes": {}} for device in wanted]}

    def compile(self, request: Mapping[str, Any]) -> Any:
        """Call the compiler, if there is one."""
        if self._shim.compile is None:
            raise Failed(_FAILED, f"{self._shim.name} has no compiler")
        values = {
            Role.PATH: str(request["model"]).encode(),
            Role.OUTPUT_PATH: self._shim.artifact(str(request["output"])).encode(),
        }
        with self._lock:
            self._call(self._shim.compile, _Run(values, request.get("options") or {}))
        return {"versions": {self._shim.name: self._shim.version}}

    def open(self, request: Mapping[str, Any]) -> tuple[int, Any]:
        """Load a file."""
        devices, options = request.get("devices") or [], request.get("options") or {}
        path = self._shim.artifact(str(request["artifact"])).encode()
        values = {Role.PATH: path, **_device(devices)}
        run = _Run(values, options)
        with self._lock:
            result = self._call(self._shim.load, run)
        stored = run.values.get(Role.HANDLE_OUT)
        handle = stored if stored is not None else ctypes.c_void_p(result)
        if stored is not None and not stored.value:
            raise Failed(0, f"{self._shim.load.name} succeeded, but stored no handle")
        number = next(self._numbers)
        self._sessions[number] = _Session(handle, devices, options)
        return number, {"max_concurrent_runs": 1, **self._shim.facts}

    def run(self, session: int, run: int, request: Mapping[str, Any], emit: Emit) -> Any:
        """Tasks ``generate``, as in ``rma_run``, and ``run``: ``{"input": [1.0]}`` → ``{"output": [2.0]}``."""
        task = request.get("task", "run")
        name = {"generate": "prompt", "run": "input"}.get(task)
        numbers = request.get(name or "")
        if name is None or not isinstance(numbers, list):
            raise Failed(_BAD_INPUT, "a plain C library does the tasks generate, with a prompt, and run, with an input")
        with self._lock:
            if task == "run":
                return {"output": self._produce(session, numbers, request, lambda new: True)}
            return self._generate(session, numbers, request, emit)

    def _generate(self, session: int, prompt: list[Any], request: Mapping[str, Any], emit: Emit) -> Any:
        most, made, ended, wanted = int(request.get("max_tokens") or self._shim.output_capacity), 0, False, True
        ends = () if request.get("ignore_eos") else self._shim.end_tokens

        def take(new: Sequence[Any]) -> bool:
            nonlocal made, ended, wanted
            tokens = [int(token) for token in new][: most - made]
            last = next((at for at, token in enumerate(tokens) if token in ends), None)
            if last is not None:
                tokens, ended = tokens[: last + 1], True
            made += len(tokens)
            wanted = emit(tokens) and wanted
            return wanted and not ended and made < most

        self._produce(session, prompt, request, take)
        if not wanted:
            return {"finish": "cancelled"}
        return {"finish": "length" if made >= most and not ended else "stop"}

    def _produce(
        self, session: int, numbers: list[Any], request: Mapping[str, Any], take: Callable[[Sequence[Any]], bool]
    ) -> list[Any]:
        """Run once, and pass on what comes of it as it comes; all of it."""
        shim, opened = self._shim, self._sessions[session]
        try:
            given = (self._input * len(numbers))(*numbers)
        except (TypeError, OverflowError) as error:
            raise Failed(_BAD_INPUT, f"the input is no list of {shim.element}: {error}") from None
        capacity = int(request.get("output_capacity") or request.get("max_tokens") or shim.output_capacity)
        if capacity < 1:
            raise Failed(_BAD_INPUT, f"{capacity} elements are asked for; 1 is the least")
        produced: list[Any] = []
        goes_on = True

        def receive(new: Sequence[Any]) -> int:
            nonlocal goes_on
            if goes_on:
                produced.extend(new)
                goes_on = take(new)
            return 0 if goes_on else 1

        output = (self._output * capacity)()
        run = _Run(
            {
                Role.HANDLE: opened.handle,
                Role.INPUT: given,
                Role.INPUT_LENGTH: len(numbers),
                Role.OUTPUT: output,
                Role.OUTPUT_CAPACITY: capacity,
                Role.MAX_TOKENS: capacity,
                Role.TEMPERATURE: float(request.get("temperature") or 0),
                Role.TOP_P: float(1 if request.get("top_p") is None else request["top_p"]),
                Role.SEED: int(request.get("seed") or 0),
                Role.ON_TOKENS: self._on_tokens(lambda _user, new, length: receive(new[:length])),
                Role.ON_TOKEN: self._on_token(lambda _user, new: receive([new])),
                **_device(opened.devices),
            },
            {**opened.options, **(request.get("options") or {})},
        )
        result = self._call(shim.run, run)
        if shim.run.has(Role.OUTPUT):
            stored = int(result if shim.run.returns is Returns.COUNT else run.values[Role.OUTPUT_LENGTH].value)
            if not 0 <= stored <= capacity:
                raise Failed(0, f"{shim.run.name} says that it stored {stored} elements in a room of {capacity}")
            receive(output[:stored])
        while shim.step is not None and goes_on and len(produced) < capacity:
            token = self._call(shim.step, run)
            if token < 0:
                break
            receive([token])
        return produced

    def cancel(self, session: int, run: int) -> None:
        """Call the function for it, if there is one; otherwise a callback or a step ends the run."""
        if self._shim.cancel is not None:
            self._call(self._shim.cancel, _Run({Role.HANDLE: self._sessions[session].handle}))

    def close(self, session: int) -> None:
        """Unload."""
        opened = self._sessions.pop(session)
        if self._shim.unload is not None:
            with self._lock:
                self._call(self._shim.unload, _Run({Role.HANDLE: opened.handle}))


def _index(device: str) -> int:
    match = re.search(r"(\d+)$", device)
    return int(match[1]) if match else 0


def _device(devices: Sequence[str]) -> dict[Role, Any]:
    device = devices[0] if devices else ""
    return {Role.DEVICE: device.encode(), Role.DEVICE_INDEX: _index(device)}
