"""The answer to a list, divided into its objects while it comes, so that the whole is never in memory.

An API server sends ``{…"items":[OBJECT,OBJECT,…]…}`` without a line end between two objects. All objects of an answer
begin with the same members, so what the first one begins with, up to its metadata, tells where another one may begin.
Whether it does is told by what comes before: only at the end of an object is that a JSON array once it is closed.
"""

from collections.abc import Sequence
from typing import Final, Generic, TypeVar

import msgspec

from rm_operator.kube.client import Members
from rm_operator.kube.documents import Reader

T = TypeVar("T")

_ITEMS: Final = b'"items":['
_METADATA: Final = b'"metadata":'
WORTH_A_LOOK: Final = 1 << 16
"""Bytes that have come since the last look: fewer are hardly more than the beginning of an object."""


class ListMetadata(msgspec.Struct, gc=False):
    """What an answer says of itself; ``more`` is set where it is not all."""

    resource_version: str = msgspec.field(name="resourceVersion", default="")
    more: str = msgspec.field(name="continue", default="")


class Listed(msgspec.Struct, Generic[T], gc=False):
    """A whole answer, with its objects as ``T``."""

    metadata: ListMetadata
    items: Sequence[T] | None = None


_read_list: Final = Reader(Listed[dict[str, msgspec.Raw]])
_read_items: Final = Reader(list[dict[str, msgspec.Raw]])


class ListDivider:
    """Takes the answer piece by piece, and gives the objects that are whole, ``worth`` bytes of them at a time."""

    def __init__(self, worth: int = WORTH_A_LOOK) -> None:
        self._worth = worth
        self._head = b""
        """What comes before the first object, once something of that has come."""
        self._between = b""
        """Between two objects: the end of one, and what the next begins with."""
        self._pieces: list[bytes] = []
        """What has come and was not given."""
        self._size = 0

    def take(self, piece: bytes) -> Sequence[Members]:
        """The objects that are whole, if it is worth a look; the last one that has begun is none of them."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size < self._worth:
            return ()
        content = b"".join(self._pieces)
        if not self._between:
            content = self._begun(content)
        objects, rest = self._divided(content)
        self._pieces, self._size = [rest], 0
        return objects

    def end(self) -> tuple[Sequence[Members], ListMetadata]:
        """The other objects, and what the list says of itself. Raises msgspec.DecodeError if it is no whole list."""
        said = _read_list(b"".join((self._head, *self._pieces)))
        return said.items or (), said.metadata

    def _begun(self, content: bytes) -> bytes:
        """Without the head, if there are objects."""
        first = content.find(_ITEMS) + len(_ITEMS)
        metadata = content.find(_METADATA, first)
        if first < len(_ITEMS) or metadata < 0:
            return content
        self._head, self._between = content[:first], b"}," + content[first : metadata + len(_METADATA)]
        return content[first:]

    def _divided(self, content: bytes) -> tuple[Sequence[Members], bytes]:
        """The objects that are whole, and what follows them."""
        end = content.rfind(self._between) if self._between else -1
        while end >= 0:
            try:
                return _read_items(b"[%b}]" % content[:end]), content[end + 2 :]
            except msgspec.DecodeError:
                # Something within an object begins as objects do.
                end = content.rfind(self._between, 0, end)
        return (), content
