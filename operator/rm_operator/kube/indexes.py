"""The indexes of a store: which objects have which value, by functions over one object."""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping

from rm_operator.kube.buckets import Buckets, IndexValue, ObjectKey
from rm_operator.kube.client import Object

logger = logging.getLogger(__name__)

IndexFunction = Callable[[Object], Iterable[str]]


class Indexes(Buckets):
    """Keys by the values that ``functions`` give their objects; ``kind`` is for messages."""

    def __init__(self, kind: str, functions: Mapping[str, IndexFunction]) -> None:
        super().__init__()
        self._kind = kind
        self.functions = dict(functions)

    def values_of(self, key: ObjectKey, obj: Object) -> tuple[IndexValue, ...]:
        """All values of an object, that of its namespace included."""
        # The empty index name is the namespace: it cannot clash with a declared one that is named.
        values = [("", key[0])]
        for name, function in self.functions.items():
            try:
                for value in function(obj):
                    values.append((name, sys.intern(value)))  # noqa: PERF401 - most have one or none
            except Exception:
                # An object that an index cannot read must still be known, or nobody could say what is wrong with it.
                logger.exception("index %r of %s failed for %s/%s", name, self._kind, *key)
        return tuple(dict.fromkeys(values))

    def declared(self, index_name: str, value: str) -> IndexValue:
        """The value of an index. Raises KeyError for an index that there is not."""
        if index_name not in self.functions:
            raise KeyError(f"{self._kind} has no index {index_name!r}; it has {sorted(self.functions)}")
        return index_name, value
