"""Plain C libraries as plugins: a description of a vendor's functions stands in for ``rm_plugin.h``.

A description names the functions that load a file, run it and unload it, and says of each argument what is passed.
The library is called in the same kind of process, with the same deadlines, as one that exports ``rm_plugin.h``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from rm_abstract.core.errors import BadInput

_ARGUMENT: Final = re.compile(r"(?P<role>\w+)(?::(?P<type>\w+))?(?:=(?P<value>.*))?", re.DOTALL)
SCALARS: Final = (
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "size", "float32", "float64", "text",
)  # fmt: skip


class Role(StrEnum):
    """What is passed for an argument."""

    PATH = "path"
    """``const char *``: the artifact's file; of ``compile``, the model's directory."""
    OUTPUT_PATH = "output_path"
    """``const char *``: of ``compile``, where the artifact's file goes."""
    DEVICE = "device"
    """``const char *``: the first device's id."""
    DEVICE_INDEX = "device_index"
    """The number at the end of that id, or 0."""
    OPTION = "option"
    """An option of the request, by name: ``option:int32=threads``."""
    CONSTANT = "constant"
    """Always the same: ``constant:int32=4``."""
    NULL = "null"
    """A null pointer."""
    HANDLE = "handle"
    """``void *``: what loading gave."""
    HANDLE_OUT = "handle_out"
    """``void **``: where loading stores it."""
    INPUT = "input"
    """``const T *``: tokens of the prompt, or numbers; T is the shim's ``element``."""
    INPUT_LENGTH = "input_length"
    """Their number."""
    OUTPUT = "output"
    """``T *``: room for the result."""
    OUTPUT_CAPACITY = "output_capacity"
    """Its number of elements."""
    OUTPUT_LENGTH = "output_length"
    """``N *``: holds the capacity, and then the number of elements that were stored."""
    MAX_TOKENS = "max_tokens"
    TEMPERATURE = "temperature"
    TOP_P = "top_p"
    SEED = "seed"
    ON_TOKENS = "on_tokens"
    """``int (*)(void *user, const T *, size_t)``: stores the next elements; not 0 says that no more are wanted."""
    ON_TOKEN = "on_token"  # noqa: S105 (no password)
    """``int (*)(void *user, T)``: the same, for one element."""
    USER = "user"
    """``void *``: for the callback."""
    STATUS = "status"
    """What the function that failed returned."""


_TYPED: Final[Mapping[Role, str]] = {
    Role.DEVICE_INDEX: "int32", Role.OPTION: "text", Role.CONSTANT: "int32", Role.INPUT_LENGTH: "size",
    Role.OUTPUT_CAPACITY: "size", Role.OUTPUT_LENGTH: "size", Role.MAX_TOKENS: "int32", Role.TEMPERATURE: "float32",
    Role.TOP_P: "float32", Role.SEED: "uint64", Role.STATUS: "int32",
}  # fmt: skip
"""Roles whose C type may be chosen, and what it is where none is."""


class Returns(StrEnum):
    """What a function's result means."""

    NOTHING = "nothing"
    STATUS = "status"
    """A number; any but the shim's ``ok`` is a failure."""
    HANDLE = "handle"
    """``void *``; null is a failure."""
    COUNT = "count"
    """A number of elements or devices; a negative one is a failure."""
    TOKEN = "token"  # noqa: S105
    """The next token; a negative one ends the text."""
    TEXT = "text"
    """``const char *``, which stays the library's."""


@dataclass(frozen=True)
class Argument:
    """One argument of a C function."""

    role: Role
    type: str = ""
    """Its C type, one of ``SCALARS``, where the role leaves that open."""
    value: str = ""
    """Of a constant; of an option, its name."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """An argument written ``role``, ``role:type`` or ``role:type=value``. Raises BadInput."""
        match = _ARGUMENT.fullmatch(text)
        if match is None or match["role"] not in list(Role):
            raise BadInput(f"{text!r} is no argument; one begins with {', '.join(Role)}")
        role = Role(match["role"])
        kind = match["type"] or _TYPED.get(role, "")
        if match["type"] and role not in _TYPED:
            raise BadInput(f"the type of the argument {role} is not to be chosen")
        if kind and kind not in SCALARS:
            raise BadInput(f"{kind} is no type of an argument; there are {', '.join(SCALARS)}")
        if (match["value"] is not None) != (role in {Role.OPTION, Role.CONSTANT}):
            raise BadInput(f"the argument {text!r} needs a value, or has one too many")
        argument = cls(role, kind, match["value"] or "")
        if role is Role.CONSTANT:
            scalar(argument.type, argument.value)
        return argument

    def __str__(self) -> str:
        kind = f":{self.type}" if self.type else ""
        return f"{self.role}{kind}" + (f"={self.value}" if self.role in {Role.OPTION, Role.CONSTANT} else "")


def scalar(kind: str, value: Any) -> Any:
    """A value in the form that a C type takes. Raises BadInput where it has none."""
    try:
        if kind == "text":
            return str(value).encode()
        return float(value) if kind.startswith("float") else int(value)
    except (TypeError, ValueError):
        raise BadInput(f"{value!r} is no value of type {kind}") from None


@dataclass(frozen=True)
class Function:
    """A C function. Arguments may be given as texts, see ``Argument.parse``."""

    name: str
    arguments: Sequence[Argument | str] = ()
    returns: Returns = Returns.STATUS
    type: str = "int32"
    """C type of a result that is a number."""

    def __post_init__(self) -> None:
        parsed = [Argument.parse(one) if isinstance(one, str) else one for one in self.arguments]
        object.__setattr__(self, "arguments", tuple(parsed))
        if self.returns not in list(Returns):
            raise BadInput(f"{self.name} returns {self.returns!r}; known are {', '.join(Returns)}")
        object.__setattr__(self, "returns", Returns(self.returns))
        if self.type not in SCALARS or self.type == "text":
            raise BadInput(f"{self.name} returns a number of type {self.type!r}; there are {', '.join(SCALARS[:-1])}")

    @property
    def parsed(self) -> tuple[Argument, ...]:
        """The arguments."""
        return tuple(one for one in self.arguments if isinstance(one, Argument))

    def has(self, role: Role) -> bool:
        """Whether one of its arguments has this role."""
        return any(argument.role is role for argument in self.parsed)


@dataclass(frozen=True)
class Shim:
    """A vendor's C library, described. Raises BadInput where the description cannot be right.

    ``run`` either fills a buffer (``output``), or calls back (``on_token``, ``on_tokens``), or takes the prompt alone,
    and ``step`` gives one token after the other.
    """

    name: str
    version: str
    """What is expected of the library; where there is a function ``version_text``, it must say the same."""
    load: Function
    run: Function
    unload: Function | None = None
    step: Function | None = None
    cancel: Function | None = None
    """Called from another thread while ``run`` goes on."""
    error: Function | None = None
    """Gives the text of the last failure."""
    device_count: Function | None = None
    version_text: Function | None = None
    compile: Function | None = None
    file: str = ""
    """Name of the file in the artifact's directory that ``load`` takes; empty: the directory itself."""
    element: str = "int32"
    """C type of the input's elements."""
    output_element: str = ""
    """C type of the output's elements; empty: the same."""
    output_capacity: int = 4096
    """Elements of the output where a request names no ``max_tokens`` and no ``output_capacity``."""
    ok: int = 0
    end_tokens: Sequence[int] = ()
    device_type: str = "cpu"
    info: Mapping[str, Any] = field(default_factory=dict)
    """Further members of what ``rma_info`` would answer, such as ``formats`` and ``device_types``."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What ``rma_open`` would answer, such as ``max_sequence_length``, ``vocabulary_size`` and ``tokenizer``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "end_tokens", tuple(self.end_tokens))
        loads = self.load.has(Role.HANDLE_OUT) + (self.load.returns is Returns.HANDLE)
        if loads > 1 or not all((self.name, self.version)):
            raise BadInput("a shim needs a name and a version, and a load that gives its handle in one way")
        ways = [self.run.has(Role.OUTPUT), self.run.has(Role.ON_TOKEN) or self.run.has(Role.ON_TOKENS), bool(self.step)]
        if sum(ways) != 1:
            raise BadInput(f"the result of {self.run.name} comes in one way: an output, a callback or a function step")
        counts = self.run.has(Role.OUTPUT_LENGTH) + (self.run.returns is Returns.COUNT)
        if ways[0] and counts != 1:
            raise BadInput(f"{self.run.name} must say how much it stored: by output_length, or by returning a count")
        if self.step is not None and self.step.returns is not Returns.TOKEN:
            raise BadInput(f"{self.step.name} must return a token")
        if not all(isinstance(one, Mapping) for one in (self.info, self.facts)):
            raise BadInput("info and facts of a shim are objects")
        if not all(isinstance(one, int) for one in (self.ok, self.output_capacity, *self.end_tokens)):
            raise BadInput("ok, output_capacity and end_tokens of a shim are whole numbers")
        for kind in (self.element, self.output_element or self.element):
            if kind not in SCALARS or kind == "text":
                raise BadInput(f"{kind} is no type of an element; there are {', '.join(SCALARS[:-1])}")

    def to_json(self) -> dict[str, Any]:
        """The description as JSON, for ``from_json``."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        return {key: _plain(value) for key, value in content.items() if value is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The shim that a JSON object describes, its arguments written as texts. Raises BadInput."""
        known = {one.name: one for one in fields(cls)}
        unknown = [key for key in content if key not in known]
        if unknown:
            raise BadInput(f"a shim has no {', '.join(unknown)}; it has {', '.join(known)}")
        values: dict[str, Any] = {
            key: _function(key, value) if key in _FUNCTIONS else value for key, value in content.items()
        }
        try:
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise BadInput(f"a shim cannot be made of this: {error}") from None

    def artifact(self, directory: str) -> str:
        """The path that ``load`` takes."""
        return str(Path(directory, self.file)) if self.file and Path(directory).is_dir() else directory


_FUNCTIONS: Final = frozenset(
    {"load", "run", "unload", "step", "cancel", "error", "device_count", "version_text", "compile"}
)


def _function(key: str, content: Any) -> Function | None:
    if content is None:
        return None
    if not isinstance(content, Mapping) or not isinstance(content.get("name"), str):
        raise BadInput(f"{key} of a shim is an object with a name, and arguments and returns where it has any")
    unknown = set(content) - {one.name for one in fields(Function)}
    if unknown:
        raise BadInput(f"{key} of a shim has no {', '.join(sorted(unknown))}")
    return Function(**content)


def _plain(value: Any) -> Any:
    if isinstance(value, Function):
        arguments = [str(argument) for argument in value.parsed]
        return {"name": value.name, "arguments": arguments, "returns": str(value.returns), "type": value.type}
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
