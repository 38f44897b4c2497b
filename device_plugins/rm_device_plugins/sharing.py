"""Devices that several containers may have at a time: each is advertised as several, whose IDs name the one behind."""

from collections.abc import Iterable

SEPARATOR = "::"
"""Between a device's ID and the number of the share; no vendor's ID has it."""


def shares(device_id: str, count: int) -> list[str]:
    """The IDs under which a device is advertised; its own where it is not shared."""
    return [device_id] if count == 1 else [f"{device_id}{SEPARATOR}{number}" for number in range(count)]


def device_of(share: str) -> str:
    """The device that a share is of."""
    return share.partition(SEPARATOR)[0]


def longest_suffix(count: int) -> int:
    """Characters that an ID grows by."""
    return 0 if count == 1 else len(SEPARATOR) + len(str(count - 1))


def by_device(free: Iterable[str]) -> dict[str, list[str]]:
    """Shares that are free, by their device, in order."""
    found: dict[str, list[str]] = {}
    for share in sorted(free, key=lambda each: (device_of(each), len(each), each)):
        found.setdefault(device_of(share), []).append(share)
    return found
