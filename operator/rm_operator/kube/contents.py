"""How a store keeps one object, and what a transform may make of it before."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from rm_operator.kube.buckets import IndexValue, ObjectKey
from rm_operator.kube.client import Object
from rm_operator.kube.documents import Document, decode

MAX_DECODED: Final = 128
"""Objects of one kind that are remembered decoded: more than workers look at at a time, little against the memory."""


class Fate(Enum):
    """What becomes of an object that a transform makes nothing smaller of."""

    WHOLE = "it is kept as it is"
    DROPPED = "it is not kept"


Transformed = Mapping[str, object] | Fate
Transform = Callable[[Document], Transformed]


class Kept:
    """One object as a store keeps it: as JSON, or decoded where a transform has made it small."""

    __slots__ = ("as_applied", "content", "uid", "values", "version")

    def __init__(self, content: bytes | Object, uid: str, version: int, values: tuple[IndexValue, ...]) -> None:
        self.as_applied: str | None = None
        self.content = content
        self.uid = uid
        self.version = version
        self.values = values

    @property
    def object(self) -> Object:
        """The object, decoded anew if it is kept as JSON."""
        content = self.content
        if isinstance(content, bytes):
            found: Object = decode(content)
            return found
        return content


class Decoded:
    """The objects of a kind that were read last, so that reading one again costs nothing."""

    def __init__(self) -> None:
        self._objects: OrderedDict[ObjectKey, Object] = OrderedDict()

    def __len__(self) -> int:
        return len(self._objects)

    def peek(self, key: ObjectKey, kept: Kept) -> Object:
        """The object; it is not remembered."""
        return self._objects.get(key) or kept.object

    def read(self, key: ObjectKey, kept: Kept) -> Object:
        """The object, remembered if it had to be decoded."""
        if not isinstance(kept.content, bytes):
            return kept.content
        found = self._objects.get(key)
        if found is None:
            found = self._objects[key] = kept.object
            if len(self._objects) > MAX_DECODED:
                self._objects.popitem(last=False)
        return found

    def forget(self, key: ObjectKey) -> None:
        """The object has changed or is gone."""
        self._objects.pop(key, None)


def same_but_version(before: object, after: Object) -> bool:
    """True if two small objects differ in their resourceVersion at most."""
    if not isinstance(before, Mapping) or before.keys() != after.keys():
        return False
    unlike = [name for name in after if before[name] != after[name]]
    if unlike == ["metadata"]:
        metadata = {**before["metadata"], "resourceVersion": after["metadata"]["resourceVersion"]}
        return bool(metadata == after["metadata"])
    return not unlike
