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

    Looking at every distribution takes tens of milliseconds. What was found is remembered together with the times of
    the directories on ``sys.path``, and holds until one of them changes.
    """
    store = store or Store()
    places = _places()
    name = f"installed-{zlib.crc32(repr((group, sys.prefix, [path for path, _ in places])).encode()):08x}"
    known = store.read(name)
    try:
        if known["places"] == places:
            return [(point, value, version) for point, value, version in known["points"]]
    except (TypeError, KeyError, ValueError):
        pass  # there is none, or one that another program wrote
    from importlib.metadata import entry_points  # noqa: PLC0415 (costs more than all the rest of discovery)

    found = [(point.name, point.value, point.dist.version if point.dist else "") for point in entry_points(group=group)]
    latest = max((changed for _, changed in places), default=0)
    if latest < time.time_ns() - RACE_NS:
        store.write(name, {"places": places, "points": found})
    return found


def _places() -> list[Any]:
    """The directories that distributions are looked for in, with the times of their last change."""
    places: list[Any] = []
    for path in map(os.path.abspath, sys.path):
        try:
            places.append([path, os.stat(path).st_mtime_ns])
        except OSError:
            places.append([path, 0])
    # Finders of other programs may know distributions that lie nowhere on the path.
    others = (finder for finder in sys.meta_path if finder is not PathFinder and hasattr(finder, "find_distributions"))
    return [*places, *([type(finder).__name__, 0] for finder in others)]
