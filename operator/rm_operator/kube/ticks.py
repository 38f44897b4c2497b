"""When what changed last: by this a decision knows whether all that it rests on is as it was.

A *place* is anything that can be read: an object, the value of an index, all objects of a kind. Each falls into one of
a fixed number of slots, and a slot remembers its last change. So this takes half a mebibyte however much there is, and
places that share a slot seem to change together: a change may be seen where there was none, and none is ever missed.
"""

from array import array
from collections.abc import Hashable, Iterable
from typing import Final

SLOTS: Final = 1 << 16


class Ticks:
    """Counts changes. For one thread only."""

    def __init__(self) -> None:
        self._changed = array("Q", bytes(8 * SLOTS))
        self.now = 0
        """Changes so far."""

    def touch(self, places: Iterable[Hashable]) -> None:
        """All of ``places`` change, now."""
        self.now += 1
        for place in places:
            self._changed[hash(place) % SLOTS] = self.now

    @staticmethod
    def slot(place: Hashable) -> int:
        """Where ``place`` is remembered."""
        return hash(place) % SLOTS

    def last(self, slots: Iterable[int]) -> int:
        """When the newest change in ``slots`` was; 0 if there was none."""
        return max(map(self._changed.__getitem__, slots), default=0)
