"""Which devices a container should get: those on the fewest NUMA nodes, then on the fewest cards. Pure."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from rm_device_plugins.vendor import Device

_LEVELS: tuple[Callable[[Device], object], ...] = (lambda device: device.numa_nodes, lambda device: device.group)


def preferred(available: Sequence[Device], must_include: Sequence[Device], size: int) -> list[Device]:
    """``size`` of ``available``, with all of ``must_include``, by index; raises ValueError if there is no such set.

    Of the places that can hold the rest alone the one with the least room is taken, so that big requests keep theirs.
    """
    chosen = {device.id: device for device in must_include}
    free = [device for device in available if device.id not in chosen]
    if len(chosen) != len(must_include) or len(free) + len(chosen) != len({d.id for d in available} | chosen.keys()):
        raise ValueError("a device is named twice")
    missing = size - len(chosen)
    if missing < 0 or missing > len(free):
        raise ValueError(f"{size} devices with {len(chosen)} given ones cannot be taken from {len(free)} others")
    picked = [*chosen.values(), *_pack(free, list(chosen.values()), missing, _LEVELS)]
    return sorted(picked, key=lambda device: (device.index, device.id))


def _pack(
    free: Sequence[Device], used: Sequence[Device], count: int, levels: Sequence[Callable[[Device], object]]
) -> list[Device]:
    """``count`` of ``free``: first from places already in ``used``, then from as few others as possible."""
    if not levels:
        return sorted(free, key=lambda device: (device.index, device.id))[:count]
    key, *inner = levels
    places: dict[object, list[Device]] = defaultdict(list)
    for device in free:
        places[key(device)].append(device)
    occupied = {key(device) for device in used}
    picked: list[Device] = []
    while len(picked) < count:
        rest = count - len(picked)
        place = min(places, key=lambda name: _rank(len(places[name]), rest, name in occupied, places[name]))
        candidates = places.pop(place)
        picked += _pack(candidates, [*used, *picked], min(rest, len(candidates)), inner)
    return picked


def _rank(room: int, rest: int, occupied: bool, devices: Sequence[Device]) -> tuple[bool, bool, int, int]:
    fits = room >= rest
    return (not occupied, not fits, room if fits else -room, min(device.index for device in devices))
