"""API objects as the JSON that they come in: of most of them little is ever decoded.

A decoded object takes some eight times the memory of its JSON, and decoding is most of what a list costs. So pages and
watches are only divided into objects, an object into its members, and what nobody asks for stays JSON.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from rm_operator.kube.buckets import ObjectKey
from rm_operator.kube.client import Json, Object

T = TypeVar("T")

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"

decode: Final = msgspec.json.Decoder().decode
"""Any JSON value. Raises msgspec.DecodeError."""
encode: Final = msgspec.json.Encoder().encode
"""JSON of plain values, and of such that hold parts as ``msgspec.Raw``."""
encode_sorted: Final = msgspec.json.Encoder(order="sorted").encode
"""The same bytes for equal values, whatever the order of their members."""

_encode_into: Final = msgspec.json.Encoder().encode_into
_buffer: Final = bytearray()
_divide: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text: Final = msgspec.json.Decoder(str).decode


class ListMetadata(msgspec.Struct, gc=False):
    """What a list says of itself; ``more`` is the token of its next page, or empty."""

    resource_version: str = msgspec.field(name="resourceVersion", default="")
    more: str = msgspec.field(name="continue", default="")


class Listed(msgspec.Struct, gc=False):
    """One page of a list, divided into its objects."""

    metadata: ListMetadata
    items: Sequence[msgspec.Raw] | None = None


class Reader(Generic[T]):
    """Decodes what a type tells, and skips the rest."""

    def __init__(self, type_: type[T]) -> None:
        self._decode = msgspec.json.Decoder(type_).decode

    def __call__(self, content: Json) -> T:
        """The value. Raises msgspec.DecodeError for what is no JSON, and for what is of another type."""
        return self._decode(content)


class Document:
    """One object's JSON, divided into its members and those of its metadata.

    Raises msgspec.DecodeError and KeyError for what is no API object.
    """

    __slots__ = ("_members", "_metadata", "key", "resource_version", "uid")

    def __init__(self, content: Json) -> None:
        self._members = _divide(content)
        self._metadata = _divide(self._members["metadata"])
        self.key: ObjectKey = (self._said("namespace"), self._said("name"))
        """(namespace, name); the namespace of a cluster-scoped object is empty, as is the name of a bookmark."""
        self.uid = self._said("uid")
        self.resource_version = self._said("resourceVersion")

    @property
    def version(self) -> int:
        """The resourceVersion as the number that it is; objects of one kind compare by it."""
        return int(self.resource_version)

    def member(self, name: str, reader: Reader[T]) -> T | None:
        """A top-level member, as ``reader`` sees it; None if there is none."""
        found = self._members.get(name)
        return None if found is None else reader(found)

    def in_metadata(self, name: str, reader: Reader[T]) -> T | None:
        """A member of the metadata, as ``reader`` sees it; None if there is none."""
        found = self._metadata.get(name)
        return None if found is None else reader(found)

    def kept(self, api_version: str, kind: str) -> tuple[bytes, dict[str, Any]]:
        """The object without what is bulky and of no use to a reconciler, and as much of it as tells what it is.

        The first is JSON, without managedFields and kubectl's copy of the object, and with the apiVersion and kind that
        the API server leaves out in lists; the second has apiVersion, kind and metadata, decoded.
        """
        metadata = {name: decode(content) for name, content in self._metadata.items() if name != "managedFields"}
        if _LAST_APPLIED in (metadata.get("annotations") or {}):
            annotations = {name: value for name, value in metadata["annotations"].items() if name != _LAST_APPLIED}
            metadata["annotations"] = annotations
        head = {"apiVersion": api_version, "kind": kind, "metadata": metadata}
        # The encoder's own bytes have been made smaller, and what was left over lies between them: a copy has its own.
        _encode_into({**self._members, **head}, _buffer)
        return bytes(_buffer), head

    def _said(self, name: str) -> str:
        content = self._metadata.get(name)
        return "" if content is None else _text(content)


class Glance(Mapping[str, Any]):
    """An object of which apiVersion, kind and metadata are decoded, and the rest once somebody looks at it."""

    __slots__ = ("_content", "_head", "_whole")

    def __init__(self, content: bytes, head: Mapping[str, Any]) -> None:
        self._content = content
        self._head = head
        self._whole: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        found = self._head.get(name)
        return found if found is not None else self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> dict[str, Any]:
        if self._whole is None:
            self._whole = {**decode(self._content), **self._head}
        return self._whole


def key_of(obj: Object) -> ObjectKey:
    """(namespace, name); the namespace of a cluster-scoped object is empty."""
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def version_of(obj: Object) -> int:
    """The resourceVersion as the number that it is; objects of one kind compare by it."""
    return int(obj["metadata"]["resourceVersion"])
