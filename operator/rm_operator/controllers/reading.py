"""What a decision reads, and whether reading it again would tell anything new.

A decision sees the stores through a ``Reading`` alone, which notes every read. A decision after which there was nothing
to write is remembered with its reads and with the time until which it holds; the next reconcile of its object is over
at once unless something of that has changed.
"""

from array import array
from collections.abc import Awaitable, Iterator, Mapping
from typing import Final, NamedTuple, TypeVar

from rm_operator.kube.buckets import ObjectKey
from rm_operator.kube.client import KubeClient, Object
from rm_operator.kube.errors import NotFound
from rm_operator.kube.resources import Resource
from rm_operator.kube.store import Place, Store, Stores
from rm_operator.kube.ticks import Ticks
from rm_operator.runtime.queue import Key

T = TypeVar("T")

MOST_SECONDS: Final = 8 * 3600.0
"""A decision is made again after this time in any case; less than the time after which every object is looked at."""


class Reading:
    """The stores, for one decision. Whatever is asked of them is noted; nothing can be changed through it."""

    def __init__(self, stores: Stores, client: KubeClient) -> None:
        self._stores = stores
        self._client = client
        self._since = stores.ticks.now
        self._slots: set[int] = set()
        self._repeatable = True

    def __getitem__(self, resource: Resource) -> "ReadStore":
        return ReadStore(self._stores[resource], self)

    def of_kind(self, kind: str) -> "ReadStore":
        """The store of ``kind``. Raises KeyError."""
        return ReadStore(self._stores.of_kind(kind), self)

    def note(self, *places: Place) -> None:
        """The decision rests on these, too, which ``Stores.ticks`` is told of."""
        self._slots.update(map(Ticks.slot, places))

    async def outside(self, answer: Awaitable[T]) -> T:
        """Ask somebody who tells nobody of changes: a decision that rests on that is never remembered."""
        self._repeatable = False
        return await answer

    async def live(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The object as the API server has it, or None; for what the stores do not follow."""
        try:
            return await self.outside(self._client.get(resource, namespace, name))
        except NotFound:
            return None

    @property
    def result(self) -> "_Read | None":
        """What was read; None if reading it again may tell something else at any time."""
        return _Read(array("H", sorted(self._slots)), self._since) if self._repeatable else None


class ReadStore:
    """Objects of one kind, for one decision. The methods are those of ``Store``."""

    __slots__ = ("_reading", "_store")

    def __init__(self, store: Store, reading: Reading) -> None:
        self._store = store
        self._reading = reading

    def __iter__(self) -> Iterator[Object]:
        self._reading.note(self._store.place_of_all())
        return iter(self._store)

    def __contains__(self, key: ObjectKey) -> bool:
        self.note(key)
        return key in self._store

    @property
    def unserved(self) -> str:
        """Why the API server has no such kind; empty where it has it."""
        self._reading.note(self._store.place_of_all())
        return self._store.unserved

    def note(self, key: ObjectKey) -> None:
        """The decision rests on this object, though it is not looked at here."""
        self._reading.note(self._store.place_of(key))

    def get(self, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        self.note((namespace or "", name))
        return self._store.get(namespace, name)

    def list(self, namespace: str | None = None) -> tuple[Object, ...]:
        """All objects, or those of one namespace."""
        store = self._store
        self._reading.note(store.place_of_all() if namespace is None else store.place_in("", namespace))
        return store.list(namespace)

    def by_index(self, index_name: str, value: str) -> tuple[Object, ...]:
        """Objects that index ``index_name`` gives ``value``."""
        self._reading.note(self._store.place_in(index_name, value))
        return self._store.by_index(index_name, value)

    def keys_by_index(self, index_name: str, value: str) -> tuple[ObjectKey, ...]:
        """(namespace, name) of what ``by_index`` would give; the objects themselves do not matter to the decision."""
        self._reading.note(self._store.place_among(index_name, value))
        return self._store.keys_by_index(index_name, value)

    def uids_by_index(self, index_name: str, value: str) -> tuple[tuple[str, str], ...]:
        """(name, uid) of what ``by_index`` would give; the objects themselves do not matter to the decision."""
        self._reading.note(self._store.place_among(index_name, value))
        return self._store.uids_by_index(index_name, value)

    def count(self, index_name: str, value: str) -> int:
        """How many ``by_index`` would give; the objects themselves do not matter to the decision."""
        self._reading.note(self._store.place_among(index_name, value))
        return self._store.count(index_name, value)


class InNamespace(Mapping[str, Object]):
    """Objects of one namespace by name, looked up only when they are asked for."""

    def __init__(self, store: ReadStore, namespace: str) -> None:
        self._store = store
        self._namespace = namespace

    def __getitem__(self, name: str) -> Object:
        obj = self._store.get(self._namespace, name)
        if obj is None:
            raise KeyError(name)
        return obj

    def __iter__(self) -> Iterator[str]:
        return (str(each["metadata"]["name"]) for each in self._store.list(self._namespace))

    def __len__(self) -> int:
        return len(self._store.list(self._namespace))


class _Read(NamedTuple):
    slots: "array[int]"
    since: int


class _Rest(NamedTuple):
    """A decision after which there was nothing to write."""

    slots: "array[int]"
    since: int
    until: float
    """Unix time from which on the decision may be another one though nothing changed."""
    again: bool
    """It is to be looked at again then."""


class AtRest:
    """Objects for which there was nothing to write, and what that rests on: some hundreds of bytes for each."""

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._known: dict[Key, _Rest] = {}

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, key: Key, read: _Read | None, now: float, after: float | None) -> None:
        """Nothing was to be written for ``key``; by itself that changes in ``after`` seconds at the earliest."""
        self._known.pop(key, None)  # so that the key that is kept is the one that the queue keeps, too
        if read is not None:
            until = now + min(MOST_SECONDS, MOST_SECONDS if after is None else after)
            self._known[key] = _Rest(*read, until, again=after is not None)

    def forget(self, key: Key) -> None:
        """``key`` is gone, or something is to be written."""
        self._known.pop(key, None)

    def holds(self, key: Key, now: float) -> bool:
        """True if there is still nothing to write for ``key``."""
        rest = self._known.get(key)
        return rest is not None and now < rest.until and self._ticks.last(rest.slots) <= rest.since

    def after(self, key: Key, now: float) -> float | None:
        """In how many seconds to look at ``key`` again, for which ``holds`` is true."""
        rest = self._known[key]
        return rest.until - now if rest.again else None
