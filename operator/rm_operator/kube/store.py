"""What the operator knows of a kind: a frozen view with indexes, fed by a watch and by the answers to own writes."""

import asyncio
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from rm_operator.kube.buckets import Buckets, IndexValue, ObjectKey
from rm_operator.kube.client import Object
from rm_operator.kube.resources import Resource, resource_of
from rm_operator.kube.ticks import Ticks

logger = logging.getLogger(__name__)

IndexFunction = Callable[[Object], Iterable[str]]
Transform = Callable[[dict[str, Any]], dict[str, Any] | None]
Subscriber = Callable[[Object | None, Object | None], None]
Place = tuple[object, ...]
"""Something that can be read, as ``Ticks`` knows it."""

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_MAX_TOMBSTONES: Final = 4096
MAX_DECODED: Final = 128
"""Objects of one kind that are remembered decoded: more than workers look at at a time, little against the memory."""


def trim(obj: dict[str, Any]) -> dict[str, Any]:
    """``obj`` without what is bulky and of no use to a reconciler: managedFields and kubectl's copy of the object."""
    metadata = obj.get("metadata", {})
    annotations = metadata.get("annotations")
    if annotations and _LAST_APPLIED in annotations:
        annotations = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
        obj = {**obj, "metadata": {**metadata, "annotations": annotations}}
        metadata = obj["metadata"]
    if "managedFields" in metadata:
        obj = {**obj, "metadata": {key: value for key, value in metadata.items() if key != "managedFields"}}
    return obj


def key_of(obj: Object) -> ObjectKey:
    """(namespace, name); the namespace of a cluster-scoped object is empty."""
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def version_of(obj: Object) -> int:
    """The resourceVersion as the number that it is; objects of one kind compare by it."""
    return int(obj["metadata"]["resourceVersion"])


@dataclass(frozen=True, slots=True)
class Changes:
    """The keys of what a fresh list changed."""

    added: tuple[ObjectKey, ...] = ()
    changed: tuple[ObjectKey, ...] = ()
    removed: tuple[ObjectKey, ...] = ()


class _Kept:
    """One object as a store keeps it."""

    __slots__ = ("as_applied", "content", "uid", "values", "version")

    def __init__(self, content: bytes | Object, uid: str, version: int, values: tuple[IndexValue, ...]) -> None:
        self.as_applied: str | None = None
        self.content = content
        self.uid = uid
        self.version = version
        self.values = values


class Store:
    """Objects of one kind.

    ``indexes`` maps a name to the function that gives an object's values in it. ``transform`` replaces an object before
    it is kept, or drops it (None). Every object passes ``trim`` and gets its apiVersion and kind, which the API server
    leaves out in lists. All methods are for the event loop's thread; readers get tuples sorted by namespace and name.

    Decoded, an object takes some eight times the memory of its JSON. So objects are kept as JSON, and decoded when they
    are read; those that were read or written last are remembered. What a transform has made small is kept as it is.
    """

    def __init__(
        self,
        resource: Resource,
        *,
        indexes: Mapping[str, IndexFunction] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self.resource_version = ""
        """Where the watch stands, as the API server gave it; empty before the first list."""
        self.accepted: dict[ObjectKey, tuple[str, object]] = {}
        """Per object: hash of what was applied last, and in which ways the server's answer differed from it."""
        self._transform = transform
        self._kept: dict[ObjectKey, _Kept] = {}
        self._decoded: OrderedDict[ObjectKey, Object] = OrderedDict()
        self._functions: dict[str, IndexFunction] = dict(indexes or {})
        self._buckets = Buckets()
        self._order: tuple[ObjectKey, ...] | None = None
        self._views: dict[IndexValue | None, tuple[Object, ...]] = {}
        # Versions at which objects went: an answer to a write that arrives after the deletion must not revive them.
        self._tombstones: OrderedDict[ObjectKey, int] = OrderedDict()
        self._subscribers: list[Subscriber] = []
        self._uids: dict[IndexValue, tuple[tuple[str, str], ...]] = {}
        self.ticks: Ticks | None = None
        """Where changes are told to, if anybody wants to know."""

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Object]:
        """All objects, decoded one by one; what changes meanwhile may be there as it was or as it is."""
        for key in self.keys():
            kept = self._kept.get(key)
            if kept is not None:
                yield self._decoded.get(key) or _object(kept)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._kept

    def get(self, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        key = (namespace or "", name)
        kept = self._kept.get(key)
        return None if kept is None else self._read(key, kept)

    def version(self, key: ObjectKey) -> int:
        """The object's resourceVersion; -1 if it is not known."""
        kept = self._kept.get(key)
        return -1 if kept is None else kept.version

    def list(self, namespace: str | None = None) -> tuple[Object, ...]:
        """All objects, or those of one namespace."""
        return self._view(("", namespace) if namespace is not None else None)

    def keys(self) -> tuple[ObjectKey, ...]:
        """(namespace, name) of all objects; nothing is decoded."""
        if self._order is None:
            self._order = tuple(sorted(self._kept))
        return self._order

    def by_index(self, index_name: str, value: str) -> tuple[Object, ...]:
        """Objects that index ``index_name`` gives ``value``. Raises KeyError for an index that was not declared."""
        return self._view(self._declared(index_name, value))

    def keys_by_index(self, index_name: str, value: str) -> tuple[ObjectKey, ...]:
        """(namespace, name) of what ``by_index`` would give; nothing is decoded."""
        return self._buckets.ordered(self._declared(index_name, value))

    def count(self, index_name: str, value: str) -> int:
        """How many ``by_index`` would give, without making the view."""
        return len(self._buckets.members(self._declared(index_name, value)))

    def counts(self, index_name: str) -> dict[str, int]:
        """How many objects index ``index_name`` has under each of its values."""
        self._declared(index_name, "")
        return {value: len(self._buckets.members((index_name, value))) for value in self._buckets.values(index_name)}

    def is_as_applied(self, key: ObjectKey, digest: str) -> bool:
        """True if this very version of the object was found to be as the intent with hash ``digest`` left it."""
        kept = self._kept.get(key)
        return kept is not None and kept.as_applied == digest

    def note_as_applied(self, key: ObjectKey, obj: Object, digest: str) -> None:
        """Remember that ``obj`` is as the intent with hash ``digest`` left it, until another version comes."""
        kept = self._kept.get(key)
        if kept is not None and kept.version == version_of(obj):
            kept.as_applied = digest

    def uids_by_index(self, index_name: str, value: str) -> tuple[tuple[str, str], ...]:
        """(name, uid) of what ``by_index`` would give, the same tuple as long as it is so; nothing is decoded."""
        which = self._declared(index_name, value)
        uids = self._uids.get(which)
        if uids is None:
            uids = tuple((key[1], self._kept[key].uid) for key in self._buckets.ordered(which))
            if uids:
                self._uids[which] = uids
        return uids

    def place_of(self, key: ObjectKey) -> Place:
        """Touched when this object changes, comes or goes."""
        return self.resource.kind, key

    def place_in(self, index_name: str, value: str) -> Place:
        """Touched when an object changes that has the value, or gets or loses it."""
        return self.resource.kind, index_name, value

    def place_among(self, index_name: str, value: str) -> Place:
        """Touched when an object gets the value or loses it, or is replaced by another of its name."""
        return self.resource.kind, index_name, value, "keys"

    def place_of_all(self) -> Place:
        """Touched when any object changes, comes or goes."""
        return (self.resource.kind,)

    def on_change(self, subscriber: Subscriber) -> None:
        """Call ``subscriber(old, new)`` after each change; ``old`` is None for a new object, ``new`` for one gone."""
        self._subscribers.append(subscriber)

    def upsert(self, obj: dict[str, Any]) -> bool:
        """Take ``obj`` from a watch or from the answer to a write; False if what is known is as new, or it is gone."""
        key, version = key_of(obj), version_of(obj)
        if self.version(key) >= version or self._tombstones.get(key, -1) >= version:
            return False
        new = self._put(key, obj)
        if new is not None and isinstance(self._kept[key].content, bytes):
            self._remember(key, new)
        return True

    def remove(
        self, namespace: str | None, name: str, *, uid: str | None = None, resource_version: str | None = None
    ) -> bool:
        """Forget an object that was deleted at ``resource_version``; False if it was not known.

        A successor of the same name (another uid, newer than the deletion) stays.
        """
        key = (namespace or "", name)
        old = self._kept.get(key)
        version = int(resource_version) if resource_version else None
        successor = old is not None and uid is not None and old.uid != uid
        if old is not None and successor and (version is None or old.version > version):
            return False
        if version is not None:
            self._bury(key, version)
        if old is None:
            return False
        self._drop(key, old)
        return True

    def replace(self, items: Iterable[dict[str, Any]], resource_version: str) -> Changes:
        """Become the collection as listed at ``resource_version``; returns what that changed."""
        listing = self.listing(resource_version)
        listing.take(items)
        return listing.finish()

    def listing(self, resource_version: str) -> "Listing":
        """Begin to become the collection as listed at ``resource_version``, page by page."""
        return Listing(self, resource_version)

    def _put(self, key: ObjectKey, obj: dict[str, Any]) -> Object | None:
        """Keep ``obj`` as transformed; None if the transform dropped it."""
        before = self._kept.get(key)
        if "kind" not in obj:
            obj = {"apiVersion": self.resource.api_version, "kind": self.resource.kind, **obj}
        new = trim(obj)
        transformed = self._transform(new) if self._transform is not None else new
        if transformed is None:
            if before is not None:
                self._drop(key, before)
            return None
        old = self._old(key, before)
        metadata = transformed["metadata"]
        # A transform that leaves an object as it is, such as a pod of our own, has not made it small. The encoder's
        # own bytes come in a buffer of up to three times their length: a copy has its own.
        small = transformed is not new
        content = transformed if small else bytes(memoryview(orjson.dumps(transformed)))
        kept = _Kept(content, metadata.get("uid", ""), version_of(transformed), self._values(key, transformed))
        if before is None:
            self._order = None
            self._buckets.add(key, kept.values)
        elif before.values != kept.values:
            self._buckets.discard(key, before.values)
            self._buckets.add(key, kept.values)
        self._kept[key] = kept
        self._forget(key, (*before.values, *kept.values) if before is not None else kept.values)
        self._tick(key, before, kept)
        self._notify(old, transformed)
        return transformed

    def _drop(self, key: ObjectKey, kept: _Kept) -> None:
        old = self._old(key, kept)
        self._buckets.discard(key, kept.values)
        self._order = None
        del self._kept[key]
        self._forget(key, kept.values)
        self.accepted.pop(key, None)
        self._tick(key, kept, None)
        self._notify(old, None)

    def _tick(self, key: ObjectKey, before: _Kept | None, after: _Kept | None) -> None:
        """Whoever has read the object, or what it is among, has read something else than there is now."""
        old, new = before.values if before is not None else (), after.values if after is not None else ()
        same = before is not None and after is not None and before.uid == after.uid
        moved = set(old) ^ set(new) if same else {*old, *new}
        for value in moved:
            self._uids.pop(value, None)
        if self.ticks is not None:
            values = old if old == new else {*old, *new}
            places = [self.place_of_all(), self.place_of(key), *(self.place_in(*value) for value in values)]
            self.ticks.touch([*places, *(self.place_among(*value) for value in moved)])

    def _old(self, key: ObjectKey, kept: _Kept | None) -> Object | None:
        """What subscribers are told that the object was; where nobody listens, nothing is decoded."""
        if kept is None or not self._subscribers:
            return None
        return self._decoded.get(key) or _object(kept)

    def _bury(self, key: ObjectKey, version: int) -> None:
        self._tombstones[key] = max(version, self._tombstones.pop(key, -1))
        if len(self._tombstones) > _MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _values(self, key: ObjectKey, obj: Object) -> tuple[IndexValue, ...]:
        # The empty index name is the namespace: it cannot clash with a declared one that is named.
        values = [("", sys.intern(key[0]))]
        for name, function in self._functions.items():
            try:
                values += [(name, sys.intern(value)) for value in function(obj)]
            except Exception:
                # An object that an index cannot read must still be known, or nobody could say what is wrong with it.
                logger.exception("index %r of %s failed for %s/%s", name, self.resource.name, *key)
        return tuple(dict.fromkeys(values))

    def _forget(self, key: ObjectKey, values: Iterable[IndexValue]) -> None:
        """What was decoded for readers is no longer so."""
        self._decoded.pop(key, None)
        if self._views:
            for value in (None, *values):
                self._views.pop(value, None)

    def _declared(self, index_name: str, value: str) -> IndexValue:
        if index_name not in self._functions:
            raise KeyError(f"{self.resource.name} has no index {index_name!r}; it has {sorted(self._functions)}")
        return index_name, value

    def _view(self, which: IndexValue | None) -> tuple[Object, ...]:
        view = self._views.get(which)
        if view is None:
            keys = self.keys() if which is None else self._buckets.ordered(which)
            members = [(key, self._kept[key]) for key in keys]
            view = tuple(self._read(key, kept) for key, kept in members)
            if members and not any(isinstance(kept.content, bytes) for _, kept in members):
                self._views[which] = view
        return view

    def _read(self, key: ObjectKey, kept: _Kept) -> Object:
        if not isinstance(kept.content, bytes):
            return kept.content
        obj = self._decoded.get(key)
        if obj is None:
            obj = _object(kept)
            self._remember(key, obj)
        return obj

    def _remember(self, key: ObjectKey, obj: Object) -> None:
        self._decoded[key] = obj
        if len(self._decoded) > MAX_DECODED:
            self._decoded.popitem(last=False)

    def _notify(self, old: Object | None, new: Object | None) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(old, new)
            except Exception:
                # One consumer's mistake must neither stop the watch nor keep the change from the others.
                logger.exception("a subscriber of %s failed", self.resource.name)


class Listing:
    """A list on its way into a store, page by page, so that the whole is never in memory decoded.

    An object that is newer than the list, known from the answer to an own write, stays. A list older than what the
    store has already seen means that the cluster was restored from a backup: then the list alone is true.
    """

    def __init__(self, store: Store, resource_version: str) -> None:
        self._store = store
        self._resource_version = resource_version
        self._version = int(resource_version)
        self._back_in_time = store.resource_version != "" and self._version < int(store.resource_version)
        self._seen: set[ObjectKey] = set()
        self._added: list[ObjectKey] = []
        self._changed: list[ObjectKey] = []
        if self._back_in_time:
            logger.warning("%s went back in time: it is taken as listed", store.resource.name)
            store._tombstones.clear()
            store.accepted.clear()

    def take(self, items: Iterable[dict[str, Any]]) -> None:
        """Take one page."""
        store = self._store
        for item in items:
            key, version = key_of(item), version_of(item)
            self._seen.add(key)
            known = store.version(key)
            if self._back_in_time:
                fresh = known != version
            else:
                fresh = known < version and store._tombstones.get(key, -1) < version
            if fresh and store._put(key, item) is not None:
                (self._added if known < 0 else self._changed).append(key)

    def finish(self) -> Changes:
        """All pages were taken: what was not among them goes. Returns what the list changed."""
        store, removed = self._store, []
        for key in [key for key in store._kept if key not in self._seen]:
            kept = store._kept[key]
            if self._back_in_time or kept.version <= self._version:
                store._bury(key, self._version)
                store._drop(key, kept)
                removed.append(key)
        store.resource_version = self._resource_version
        return Changes(tuple(self._added), tuple(self._changed), tuple(removed))


def _object(kept: _Kept) -> Object:
    content = kept.content
    if isinstance(content, bytes):
        decoded: dict[str, Any] = orjson.loads(content)
        return decoded
    return content


class Stores:
    """The stores of all kinds, by resource."""

    def __init__(self, stores: Iterable[Store]) -> None:
        self._stores = {store.resource: store for store in stores}
        self._by_kind = {store.resource.kind: store for store in self._stores.values()}
        self.ticks = Ticks()
        for store in self._stores.values():
            store.ticks = self.ticks

    def __getitem__(self, resource: Resource) -> Store:
        return self._stores[resource]

    def __contains__(self, resource: Resource) -> bool:
        return resource in self._stores

    def __iter__(self) -> Iterator[Store]:
        return iter(self._stores.values())

    def of_kind(self, kind: str) -> Store:
        """The store of ``kind``. Raises KeyError."""
        return self._by_kind[kind]

    def put(self, obj: dict[str, Any]) -> None:
        """Take the answer to an own write, so that the next reconcile sees it before the watch tells."""
        resource = resource_of(obj)
        if resource in self._stores:
            self._stores[resource].upsert(obj)

    @property
    def unsynced(self) -> tuple[str, ...]:
        """Names of the kinds that have not been listed completely yet."""
        return tuple(store.resource.name for store in self if not store.synced.is_set())

    async def wait_synced(self) -> None:
        """Return once every kind has been listed completely."""
        for store in self:
            await store.synced.wait()
