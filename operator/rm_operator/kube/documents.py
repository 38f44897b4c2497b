"""API objects as the JSON that they come in: of most of them little is ever decoded.

A decoded object takes some eight times the memory of its JSON, and decoding is most of what a list costs. So lists and
watches are only divided into objects, an object into its members, and what nobody asks for stays JSON.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, Generic, TypedDict, TypeVar

import msgspec

from rm_operator.kube.buckets import ObjectKey
from rm_operator.kube.client import Json, Members, Object

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


def decoded(members: Members) -> dict[str, Any]:
    """The whole object."""
    return {name: decode(content) for name, content in members.items()}


class _Metadata(TypedDict, total=False):
    """What is decoded of an object's metadata: everything that there is, but for managedFields, its larger half."""

    name: str
    namespace: str
    uid: str
    resourceVersion: str
    generateName: Any
    generation: Any
    creationTimestamp: Any
    deletionTimestamp: Any
    deletionGracePeriodSeconds: Any
    labels: Any
    annotations: Any
    ownerReferences: Any
    finalizers: Any


_metadata_of: Final = msgspec.json.Decoder(_Metadata).decode


class Reader(Generic[T]):
    """Decodes what a type tells, and skips the rest."""

    def __init__(self, type_: type[T]) -> None:
        self._decode = msgspec.json.Decoder(type_).decode

    def __call__(self, content: Json) -> T:
        """The value. Raises msgspec.DecodeError for what is no JSON, and for what is of another type."""
        return self._decode(content)


class Document:
    """One object: its metadata decoded, and its other members as the JSON that they came in.

    Raises msgspec.DecodeError and KeyError for what is no API object.
    """

    __slots__ = ("_members", "key", "metadata", "resource_version", "uid")

    def __init__(self, members: Members) -> None:
        self._members = members
        metadata = self.metadata = _metadata_of(members["metadata"])
        # Thousands of objects are in one namespace: its name is kept once.
        self.key: ObjectKey = (sys.intern(metadata.get("namespace", "")), metadata.get("name", ""))
        """(namespace, name); the namespace of a cluster-scoped object is empty, as is the name of a bookmark."""
        self.uid = metadata.get("uid", "")
        self.resource_version = metadata.get("resourceVersion", "")

    @classmethod
    def of(cls, content: Json) -> "Document":
        """The object that ``content`` is."""
        return cls(_divide(content))

    @property
    def version(self) -> int:
        """The resourceVersion as the number that it is; objects of one kind compare by it."""
        return int(self.resource_version)

    def member(self, name: str, reader: Reader[T]) -> T | None:
        """A top-level member, as ``reader`` sees it; None if there is none."""
        found = self._members.get(name)
        return None if found is None else reader(found)

    def kept(self, api_version: str, kind: str) -> tuple[bytes, "Glance"]:
        """The object without what is bulky and of no use to a reconciler: as JSON, and for a glance.

        That is without managedFields and kubectl's copy of the object, and with the apiVersion and kind that the API
        server leaves out in lists.
        """
        metadata: Mapping[str, Any] = self.metadata
        annotations = metadata.get("annotations")
        if annotations and _LAST_APPLIED in annotations:
            rest = {name: value for name, value in annotations.items() if name != _LAST_APPLIED}
            metadata = {**metadata, "annotations": rest}
        head = {"apiVersion": api_version, "kind": kind, "metadata": metadata}
        # The encoder's own bytes have been made smaller, and what was left over lies between them: a copy has its own.
        _encode_into({**self._members, **head}, _buffer)
        return bytes(_buffer), Glance(self._members, head)


class Glance(Mapping[str, Any]):
    """An object of which apiVersion, kind and metadata are decoded, and every other member once somebody looks at it.

    For the moment of a change: it holds on to what the object came in.
    """

    __slots__ = ("_known", "_members")

    def __init__(self, members: Members, head: dict[str, Any]) -> None:
        self._members = members
        self._known = head

    def __getitem__(self, name: str) -> Any:
        known = self._known
        if name not in known:
            known[name] = decode(self._members[name])
        return known[name]

    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own is slower by far
        """The member, or ``default`` where there is none."""
        return self[name] if name in self._known or name in self._members else default

    def __iter__(self) -> Iterator[str]:
        return iter({**self._members, **self._known})

    def __len__(self) -> int:
        return len({**self._members, **self._known})

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return repr(dict(self))


def key_of(obj: Object) -> ObjectKey:
    """(namespace, name); the namespace of a cluster-scoped object is empty."""
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def version_of(obj: Object) -> int:
    """The resourceVersion as the number that it is; objects of one kind compare by it."""
    return int(obj["metadata"]["resourceVersion"])
