"""What the operator knows of a kind: a frozen view with indexes, fed by a watch and by the answers to own writes."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rm_operator.kube.client import Object
from rm_operator.kube.resources import Resource, resource_of

logger = logging.getLogger(__name__)

IndexFunction = Callable[[Object], Iterable[str]]
Transform = Callable[[dict[str, Any]], dict[str, Any] | None]
Subscriber = Callable[[Object | None, Object | None], None]
ObjectKey = tuple[str, str]

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_MAX_TOMBSTONES: Final = 4096


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
    """What a fresh list changed."""

    added: tuple[Object, ...] = ()
    changed: tuple[Object, ...] = ()
    removed: tuple[Object, ...] = ()


class Store:
    """Objects of one kind.

    ``indexes`` maps a name to the function that gives an object's values in it. ``transform`` replaces an object before
    it is kept, or drops it (None). Every object passes ``trim`` and gets its apiVersion and kind, which the API server
    leaves out in lists. All methods are for the event loop's thread; readers get tuples sorted by namespace and name.
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
        self._objects: dict[ObjectKey, Object] = {}
        self._functions: dict[str, IndexFunction] = dict(indexes or {})
        self._buckets: dict[tuple[str, str], dict[ObjectKey, Object]] = {}
        self._values: dict[ObjectKey, tuple[tuple[str, str], ...]] = {}
        self._views: dict[tuple[str, str] | None, tuple[Object, ...]] = {}
        # Versions at which objects went: an answer to a write that arrives after the deletion must not revive them.
        self._tombstones: OrderedDict[ObjectKey, int] = OrderedDict()
        self._subscribers: list[Subscriber] = []

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(self.list())

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._objects

    def get(self, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        return self._objects.get((namespace or "", name))

    def list(self, namespace: str | None = None) -> tuple[Object, ...]:
        """All objects, or those of one namespace."""
        return self._view(("", namespace) if namespace is not None else None)

    def by_index(self, index_name: str, value: str) -> tuple[Object, ...]:
        """Objects that index ``index_name`` gives ``value``. Raises KeyError for an index that was not declared."""
        if index_name not in self._functions:
            raise KeyError(f"{self.resource.name} has no index {index_name!r}; it has {sorted(self._functions)}")
        return self._view((index_name, value))

    def count(self, index_name: str, value: str) -> int:
        """How many ``by_index`` would give, without making the view."""
        return len(self._buckets.get((index_name, value), ()))

    def on_change(self, subscriber: Subscriber) -> None:
        """Call ``subscriber(old, new)`` after each change; ``old`` is None for a new object, ``new`` for one gone."""
        self._subscribers.append(subscriber)

    def upsert(self, obj: dict[str, Any]) -> bool:
        """Take ``obj`` from a watch or from the answer to a write; False if what is known is as new, or it is gone."""
        key, version = key_of(obj), version_of(obj)
        old = self._objects.get(key)
        if (old is not None and version_of(old) >= version) or self._tombstones.get(key, -1) >= version:
            return False
        self._put(key, obj)
        return True

    def remove(
        self, namespace: str | None, name: str, *, uid: str | None = None, resource_version: str | None = None
    ) -> bool:
        """Forget an object that was deleted at ``resource_version``; False if it was not known.

        A successor of the same name (another uid, newer than the deletion) stays.
        """
        key = (namespace or "", name)
        old = self._objects.get(key)
        version = int(resource_version) if resource_version else None
        successor = old is not None and uid is not None and old["metadata"]["uid"] != uid
        if old is not None and successor and (version is None or version_of(old) > version):
            return False
        if version is not None:
            self._bury(key, version)
        if old is None:
            return False
        self._drop(key, old)
        return True

    def replace(self, items: Iterable[dict[str, Any]], resource_version: str) -> Changes:
        """Become the collection as listed at ``resource_version``; returns what that changed.

        An object that is newer than the list, known from the answer to an own write, stays. A list older than what the
        store has already seen means that the cluster was restored from a backup: then the list alone is true.
        """
        version = int(resource_version)
        back_in_time = self.resource_version != "" and version < int(self.resource_version)
        if back_in_time:
            logger.warning("%s went back in time: it is taken as listed", self.resource.name)
            self._tombstones.clear()
            self.accepted.clear()
        added: list[Object] = []
        changed: list[Object] = []
        removed: list[Object] = []
        seen: set[ObjectKey] = set()
        for item in items:
            key = key_of(item)
            seen.add(key)
            old = self._objects.get(key)
            if back_in_time:
                fresh = old is None or version_of(old) != version_of(item)
            else:
                fresh = old is None or version_of(old) < version_of(item)
                fresh = fresh and self._tombstones.get(key, -1) < version_of(item)
            if not fresh:
                continue
            new = self._put(key, item)
            if new is not None:
                (added if old is None else changed).append(new)
        for key in [key for key in self._objects if key not in seen]:
            old = self._objects[key]
            if back_in_time or version_of(old) <= version:
                self._bury(key, version)
                self._drop(key, old)
                removed.append(old)
        self.resource_version = resource_version
        return Changes(tuple(added), tuple(changed), tuple(removed))

    def _put(self, key: ObjectKey, obj: dict[str, Any]) -> Object | None:
        """Keep ``obj`` as transformed; None if the transform dropped it."""
        old = self._objects.get(key)
        if "kind" not in obj:
            obj = {"apiVersion": self.resource.api_version, "kind": self.resource.kind, **obj}
        new = trim(obj)
        transformed = self._transform(new) if self._transform is not None else new
        if transformed is None:
            if old is not None:
                self._drop(key, old)
            return None
        self._unindex(key)
        self._objects[key] = transformed
        self._index(key, transformed)
        self._notify(old, transformed)
        return transformed

    def _drop(self, key: ObjectKey, old: Object) -> None:
        self._unindex(key)
        del self._objects[key]
        self.accepted.pop(key, None)
        self._notify(old, None)

    def _bury(self, key: ObjectKey, version: int) -> None:
        self._tombstones[key] = max(version, self._tombstones.pop(key, -1))
        if len(self._tombstones) > _MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)

    def _index(self, key: ObjectKey, obj: Object) -> None:
        # The empty index name is the namespace: it cannot clash with a declared one that is named.
        values = [("", key[0])]
        for name, function in self._functions.items():
            try:
                values += [(name, value) for value in function(obj)]
            except Exception:
                # An object that an index cannot read must still be known, or nobody could say what is wrong with it.
                logger.exception("index %r of %s failed for %s/%s", name, self.resource.name, *key)
        self._values[key] = tuple(dict.fromkeys(values))
        for value in self._values[key]:
            self._buckets.setdefault(value, {})[key] = obj
            self._views.pop(value, None)
        self._views.pop(None, None)

    def _unindex(self, key: ObjectKey) -> None:
        for value in self._values.pop(key, ()):
            bucket = self._buckets[value]
            del bucket[key]
            if not bucket:
                del self._buckets[value]
            self._views.pop(value, None)
        self._views.pop(None, None)

    def _view(self, which: tuple[str, str] | None) -> tuple[Object, ...]:
        view = self._views.get(which)
        if view is None:
            objects = self._objects if which is None else self._buckets.get(which)
            if not objects:
                return ()
            view = self._views[which] = tuple(objects[key] for key in sorted(objects))
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
