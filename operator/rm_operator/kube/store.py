"""What the operator knows of a kind: a frozen view with indexes, fed by a watch and by the answers to own writes."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from rm_operator.kube.buckets import IndexValue, ObjectKey
from rm_operator.kube.client import Object
from rm_operator.kube.contents import Decoded, Fate, Kept, Transform, same_but_version
from rm_operator.kube.documents import Document, encode, key_of, version_of
from rm_operator.kube.indexes import Indexes, IndexFunction
from rm_operator.kube.listing import Changes, Listing
from rm_operator.kube.resources import Resource, resource_of
from rm_operator.kube.ticks import Ticks

logger = logging.getLogger(__name__)

__all__ = ["Changes", "IndexFunction", "Place", "Store", "Stores", "Subscriber", "key_of", "version_of"]

Subscriber = Callable[[Object | None, Object | None], None]
Place = tuple[object, ...]
"""Something that can be read, as ``Ticks`` knows it."""

_MAX_TOMBSTONES: Final = 4096


class Store:
    """Objects of one kind.

    ``indexes`` maps a name to the function that gives an object's values in it. ``transform`` replaces an object before
    it is kept, or drops it. All methods are for the event loop's thread; readers get tuples sorted by namespace and
    name.

    Objects come as JSON and are kept as JSON, without what is of no use to a reconciler. Functions of indexes and
    subscribers get them with nothing but the metadata decoded, until they look at more; readers get them decoded, and
    those that were read last are remembered. What a transform has made small is kept decoded, and a change of which it
    leaves nothing is none.
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
        self.unserved = ""
        """Why the API server has no such kind; empty where it has it."""
        self.accepted: dict[ObjectKey, tuple[str, object]] = {}
        """Per object: hash of what was applied last, and in which ways the server's answer differed from it."""
        self._transform = transform
        self._kept: dict[ObjectKey, Kept] = {}
        self._decoded = Decoded()
        self._indexes = Indexes(resource.name, indexes or {})
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
                yield self._decoded.peek(key, kept)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._kept

    def get(self, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        key = (namespace or "", name)
        kept = self._kept.get(key)
        return None if kept is None else self._decoded.read(key, kept)

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
        return self._view(self._indexes.declared(index_name, value))

    def keys_by_index(self, index_name: str, value: str) -> tuple[ObjectKey, ...]:
        """(namespace, name) of what ``by_index`` would give; nothing is decoded."""
        return self._indexes.ordered(self._indexes.declared(index_name, value))

    def count(self, index_name: str, value: str) -> int:
        """How many ``by_index`` would give, without making the view."""
        return len(self._indexes.members(self._indexes.declared(index_name, value)))

    def counts(self, index_name: str) -> dict[str, int]:
        """How many objects index ``index_name`` has under each of its values."""
        self._indexes.declared(index_name, "")
        return {value: len(self._indexes.members((index_name, value))) for value in self._indexes.values(index_name)}

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
        which = self._indexes.declared(index_name, value)
        uids = self._uids.get(which)
        if uids is None:
            uids = tuple((key[1], self._kept[key].uid) for key in self._indexes.ordered(which))
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

    def is_unserved(self, why: str) -> None:
        """The API server has no such kind, and so there are no objects; an empty ``why`` says that it has it now."""
        changed, self.unserved = self.unserved != why, why
        if why:
            self.synced.set()
        if changed and self.ticks is not None:
            self.ticks.touch([self.place_of_all()])

    def on_change(self, subscriber: Subscriber) -> None:
        """Call ``subscriber(old, new)`` after each change; ``old`` is None for a new object, ``new`` for one gone."""
        self._subscribers.append(subscriber)

    def upsert(self, obj: Object) -> bool:
        """Take the answer to a write; False if what is known is as new, or the object is gone."""
        return self.take(Document.of(encode(obj)))

    def take(self, document: Document) -> bool:
        """Take what a watch or a write told; False if what is known is as new, or the object is gone."""
        if not self.is_news(document):
            return False
        self.put(document)
        return True

    def is_news(self, document: Document) -> bool:
        """True if the object is newer than what is known of it, its deletion included."""
        key, version = document.key, document.version
        return self.version(key) < version and self._tombstones.get(key, -1) < version

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

    def replace(self, items: Iterable[Object], resource_version: str) -> Changes:
        """Become the collection as listed at ``resource_version``; returns what that changed."""
        listing = self.listing()
        listing.take(Document.of(encode(item)) for item in items)
        return listing.finish(resource_version)

    def listing(self) -> Listing:
        """Begin to become a collection as it is listed, part by part."""
        return Listing(self)

    def forget_history(self) -> None:
        """What was is no more: of deletions and of what was applied nothing holds any longer."""
        self._tombstones.clear()
        self.accepted.clear()

    def put(self, document: Document) -> bool:
        """Keep an object as transformed, whether it is news or not; False if the transform dropped it."""
        key = document.key
        before = self._kept.get(key)
        transformed = self._transform(document) if self._transform is not None else Fate.WHOLE
        if transformed is Fate.DROPPED:
            if before is not None:
                self._drop(key, before)
            return False
        new: Object
        content: bytes | Object
        if transformed is Fate.WHOLE:
            content, new = document.kept(self.resource.api_version, self.resource.kind)
        else:
            new = content = transformed
            if before is not None and same_but_version(before.content, content):
                before.content, before.version = content, document.version
                self._forget(key, before.values)
                return True
        old = self._old(key, before)
        kept = Kept(content, document.uid, document.version, self._indexes.values_of(key, new))
        if before is None:
            self._order = None
            self._indexes.add(key, kept.values)
        elif before.values != kept.values:
            self._indexes.discard(key, before.values)
            self._indexes.add(key, kept.values)
        self._kept[key] = kept
        self._forget(key, (*before.values, *kept.values) if before is not None else kept.values)
        self._tick(key, before, kept)
        self._notify(old, new)
        return True

    def _drop(self, key: ObjectKey, kept: Kept) -> None:
        old = self._old(key, kept)
        self._indexes.discard(key, kept.values)
        self._order = None
        del self._kept[key]
        self._forget(key, kept.values)
        self.accepted.pop(key, None)
        self._tick(key, kept, None)
        self._notify(old, None)

    def _tick(self, key: ObjectKey, before: Kept | None, after: Kept | None) -> None:
        """Whoever has read the object, or what it is among, has read something else than there is now."""
        if self.ticks is None and not self._uids:
            return
        old, new = before.values if before is not None else (), after.values if after is not None else ()
        same = before is not None and after is not None and before.uid == after.uid
        moved = set(old) ^ set(new) if same else {*old, *new}
        for value in moved:
            self._uids.pop(value, None)
        if self.ticks is not None:
            values = old if old == new else {*old, *new}
            places = [self.place_of_all(), self.place_of(key), *(self.place_in(*value) for value in values)]
            self.ticks.touch([*places, *(self.place_among(*value) for value in moved)])

    def _old(self, key: ObjectKey, kept: Kept | None) -> Object | None:
        """What subscribers are told that the object was; where nobody listens, nothing is decoded."""
        if kept is None or not self._subscribers:
            return None
        return self._decoded.peek(key, kept)

    def _bury(self, key: ObjectKey, version: int) -> None:
        self._tombstones[key] = max(version, self._tombstones.pop(key, -1))
        if len(self._tombstones) > _MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _forget(self, key: ObjectKey, values: Iterable[IndexValue]) -> None:
        """What was decoded for readers is no longer so."""
        self._decoded.forget(key)
        if self._views:
            for value in (None, *values):
                self._views.pop(value, None)

    def _view(self, which: IndexValue | None) -> tuple[Object, ...]:
        view = self._views.get(which)
        if view is None:
            keys = self.keys() if which is None else self._indexes.ordered(which)
            members = [(key, self._kept[key]) for key in keys]
            view = tuple(self._decoded.read(key, kept) for key, kept in members)
            if members and not any(isinstance(kept.content, bytes) for _, kept in members):
                self._views[which] = view
        return view

    def _notify(self, old: Object | None, new: Object | None) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(old, new)
            except Exception:
                # One consumer's mistake must neither stop the watch nor keep the change from the others.
                logger.exception("a subscriber of %s failed", self.resource.name)


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

    def put(self, obj: Object) -> None:
        """Take the answer to an own write, so that the next reconcile sees it before the watch tells."""
        resource = resource_of(obj)
        if resource in self._stores:
            self._stores[resource].upsert(obj)

    def unread_until_synced(self) -> None:
        """Nothing is decided before ``wait_synced`` has returned, so until then no change need be told to ``ticks``."""
        for store in self:
            store.ticks = None

    @property
    def unsynced(self) -> tuple[str, ...]:
        """Names of the kinds that have not been listed completely yet."""
        return tuple(store.resource.name for store in self if not store.synced.is_set())

    async def wait_synced(self) -> None:
        """Return once every kind has been listed completely."""
        for store in self:
            await store.synced.wait()
        for store in self:
            store.ticks = self.ticks
