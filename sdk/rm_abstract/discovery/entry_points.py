"""What installed distributions offer, remembered until something is installed or removed."""

import os
import sys
import time
import zlib
from importlib.machinery import PathFinder
from typing import Any

from rm_abstract.discovery.store import Store

RACE_NS = 2_000_000_000
"""A directory or file that changed as recently before it was read may have changed again without another time."""


def installed_points(group: str, store: Store | None = None) -> list[tuple[str, str, str]]:
    """Name, value and version of distribution of every entry point of ``group``.

    Looking into every distribution takes tens of milliseconds. What was found is remembered together with the times of
    the directories on ``sys.path`` and holds until distributions come, go or change in one of them.
    """
    store = store or Store()
    paths = [os.path.abspath(path) for path in sys.path]
    name = f"installed-{zlib.crc32(repr((group, sys.prefix, paths, _finders())).encode()):08x}"
    known = store.read(name)
    try:
        before = {path: (changed, found) for path, changed, found in known["places"]}
        places = [_Place(path, *before[path]) for path in paths]
        if all(place.found == before[place.path][1] for place in places):
            points = [(point, value, version) for point, value, version in known["points"]]
            if any(place.changed != before[place.path][0] for place in places):
                _save(store, name, places, points)
            return points
    except (TypeError, KeyError, ValueError):
        pass  # there is none, or one that another program wrote
    from importlib.metadata import entry_points  # noqa: PLC0415 (costs more than all the rest of discovery)

    places = [_Place(path) for path in paths]
    points = [
        (point.name, point.value, point.dist.version if point.dist else "") for point in entry_points(group=group)
    ]
    _save(store, name, places, points)
    return points


class _Place:
    """A directory on ``sys.path``: when it changed last, and the distributions in it with the times of theirs."""

    def __init__(self, path: str, changed: int = -1, found: Any = None) -> None:
        self.path = path
        try:
            self.changed = os.stat(path).st_mtime_ns
        except OSError:
            self.changed = 0
        self.found = found if self.changed == changed else self._look()
        if self.changed > time.time_ns() - RACE_NS:
            self.changed = -2  # look again next time

    def _look(self) -> list[list[Any]]:
        """Programs write other files beside distributions, where they run in a directory that is on the path."""
        try:
            names = [name for name in os.listdir(self.path) if name.endswith((".dist-info", ".egg-info"))]
        except OSError:
            return []
        return [[name, _changed(os.path.join(self.path, name))] for name in sorted(names)]


def _changed(distribution: str) -> int:
    for path in (os.path.join(distribution, "entry_points.txt"), distribution):
        try:
            changed = os.stat(path).st_mtime_ns
        except OSError:
            continue
        return changed if changed < time.time_ns() - RACE_NS else -2
    return 0


def _save(store: Store, name: str, places: list[_Place], points: list[tuple[str, str, str]]) -> None:
    if all(changed != -2 for place in places for _, changed in place.found):
        rows = [[place.path, place.changed, place.found] for place in places]
        store.write(name, {"places": rows, "points": points})


def _finders() -> list[str]:
    """Finders of other programs, which may know distributions that lie nowhere on the path."""
    others = (finder for finder in sys.meta_path if finder is not PathFinder and hasattr(finder, "find_distributions"))
    return [type(finder).__name__ for finder in others]
