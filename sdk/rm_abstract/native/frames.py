"""What the host and a library's process say to each other: frames over two pipes.

A frame is a header (kind, number of the call, length) and a payload: JSON, or tokens as 32-bit numbers.
"""

import json
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

_HEADER: Final = struct.Struct("<BQI")
MAX_PAYLOAD: Final = 64 << 20
"""Bytes of one message."""


class Kind(IntEnum):
    """What a frame is."""

    CALL = 1
    """To the library: ``{"function", "arguments"}``."""
    CANCEL = 2
    """To the library: end the run of this number."""
    RESULT = 3
    """From the library: what the function answered."""
    FAILURE = 4
    """From the library: ``{"code", "message"}``. Code 0: the library did what ``rm_plugin.h`` forbids."""
    TOKENS = 5
    """From the library: the next tokens of a run."""


_KINDS: Final = frozenset(Kind)


class FrameError(Exception):
    """What came is no frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: Kind
    call: int
    payload: bytes

    def json(self) -> Any:
        """The payload as JSON. Raises FrameError where it is none."""
        try:
            return json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"a message is not valid JSON: {error}") from None

    def tokens(self) -> list[int]:
        """The payload as tokens. Raises FrameError where it is no row of them."""
        values = array("I")
        try:
            values.frombytes(self.payload)
        except ValueError as error:
            raise FrameError(f"a message holds no whole number of tokens: {error}") from None
        return values.tolist()


def encode(kind: Kind, call: int, content: Any = None) -> bytes:
    """A frame with JSON in it, or with nothing. Raises ValueError where it would be too long."""
    return _frame(kind, call, b"" if content is None else json.dumps(content, ensure_ascii=False).encode())


def encode_tokens(call: int, tokens: Sequence[int]) -> bytes:
    """A frame with tokens, each within 32 bits."""
    return _frame(Kind.TOKENS, call, array("I", tokens).tobytes())


def _frame(kind: Kind, call: int, payload: bytes) -> bytes:
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a message of {len(payload)} bytes is too long; {MAX_PAYLOAD} may be sent at once")
    return _HEADER.pack(kind, call, len(payload)) + payload


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it. Raises OSError where the other side has gone."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, content: bytes) -> Iterator[Frame]:
        """The frames that are complete now. Raises FrameError at the first thing that is none."""
        self._held += content
        while len(self._held) >= _HEADER.size:
            kind, call, length = _HEADER.unpack_from(self._held)
            if kind not in _KINDS or length > MAX_PAYLOAD:
                raise FrameError(f"what came is no message: {bytes(self._held[:32])!r}")
            end = _HEADER.size + length
            if len(self._held) < end:
                return
            payload = bytes(self._held[_HEADER.size : end])
            del self._held[:end]
            yield Frame(Kind(kind), call, payload)
