"""Which objects have which value in an index, as keys alone: what a store's indexes are made of."""

from collections.abc import Collection, Iterable, Iterator

ObjectKey = tuple[str, str]
"""(namespace, name); the namespace of a cluster-scoped object is empty."""
IndexValue = tuple[str, str]
"""Name of an index and a value in it."""


class Buckets:
    """Keys by index value.

    Most values are those of one object, such as its owner: a key alone then takes the place of a collection, which
    would be larger than all else that is kept of it.
    """

    def __init__(self) -> None:
        self._buckets: dict[IndexValue, ObjectKey | dict[ObjectKey, None]] = {}
        self._orders: dict[IndexValue, tuple[ObjectKey, ...]] = {}

    def add(self, key: ObjectKey, values: Iterable[IndexValue]) -> None:
        """Put ``key`` under each of ``values``."""
        for value in values:
            bucket = self._buckets.get(value)
            if bucket is None:
                self._buckets[value] = key
            elif isinstance(bucket, dict):
                bucket[key] = None
            elif bucket != key:
                self._buckets[value] = {bucket: None, key: None}
            self._orders.pop(value, None)

    def discard(self, key: ObjectKey, values: Iterable[IndexValue]) -> None:
        """Take ``key``, which is under each of ``values``, away from there."""
        for value in values:
            bucket = self._buckets[value]
            if isinstance(bucket, dict) and len(bucket) > 1:
                del bucket[key]
            else:
                del self._buckets[value]
            self._orders.pop(value, None)

    def members(self, value: IndexValue) -> Collection[ObjectKey]:
        """The keys under ``value``, in no order."""
        bucket = self._buckets.get(value)
        if bucket is None:
            return ()
        return bucket if isinstance(bucket, dict) else (bucket,)

    def ordered(self, value: IndexValue) -> tuple[ObjectKey, ...]:
        """The keys under ``value``, sorted; sorted again only after they have changed."""
        members = self.members(value)
        if len(members) < 2:
            return tuple(members)
        order = self._orders.get(value)
        if order is None:
            order = self._orders[value] = tuple(sorted(members))
        return order

    def values(self, index_name: str) -> Iterator[str]:
        """The values in index ``index_name`` under which there is a key."""
        return (value for name, value in self._buckets if name == index_name)
