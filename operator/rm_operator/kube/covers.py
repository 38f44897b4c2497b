"""Is a live object still as we applied it? The comparison that lets an unchanged child cost no request.

Server-side apply would answer the same question, for the price of a write. Here it is answered from the store: each
field that we set must be as we set it; what others added (defaults, status, an autoscaler's replicas) does not matter.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rm_api.quantity import quantity

Path = tuple[str | int, ...]
Difference = tuple[Path, str]
"""Where the live object differs from what is desired, and what is there instead."""

# Lists that the API server merges by key: member name of the list -> what may identify its items, first match wins.
_LIST_KEYS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "conditions": (("type",),),
    "containers": (("name",),),
    "env": (("name",),),
    "ephemeralContainers": (("name",),),
    "hostAliases": (("ip",),),
    "imagePullSecrets": (("name",),),
    "initContainers": (("name",),),
    "ownerReferences": (("uid",),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "resourceClaims": (("name",),),
    "schedulingGates": (("name",),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "volumeDevices": (("devicePath",),),
    "volumeMounts": (("mountPath",),),
    "volumes": (("name",),),
}
_KEY_DEFAULTS: Final = {"protocol": "TCP"}
_SETS: Final = frozenset({"finalizers"})
# Members that hold quantities, and maps whose values are quantities.
_QUANTITIES: Final = frozenset({"divisor", "sizeLimit", "storage"})
_QUANTITY_MAPS: Final = frozenset({"capacity", "limits", "overhead", "requests"})
# Booleans and numbers that the API server leaves out where they are false or zero. Others are pointers, for which false
# and absent differ: a missing ``automountServiceAccountToken: false`` must be put back.
_ZERO_IS_ABSENT: Final = frozenset(
    {
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "initialDelaySeconds",
        "minReadySeconds",
        "paused",
        "publishNotReadyAddresses",
        "readOnly",
        "stdin",
        "stdinOnce",
        "tty",
    }
)
_MISSING: Final = object()
# Both sides are JSON: asking for abstract types instead took most of the time of a comparison.
_LISTS: Final = (list, tuple)
# Set by the API server or only meaningful in a request; never part of the comparison.
_REQUEST_ONLY: Final = frozenset({"resourceVersion", "uid", "managedFields"})


def covers(live: Mapping[str, Any], desired: Mapping[str, Any]) -> bool:
    """True if every field of ``desired`` is in ``live`` with the same meaning."""
    return not differences(live, desired)


def differences(live: Mapping[str, Any], desired: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Every place where ``live`` is not as ``desired`` says, in the order of ``desired``."""
    found: list[Difference] = []
    for name, value in desired.items():
        if name == "metadata":
            value = {key: part for key, part in value.items() if key not in _REQUEST_ONLY}  # noqa: PLW2901
        _compare(live.get(name, _MISSING), value, (name,), found)
    return tuple(found)


def _compare(live: Any, desired: Any, path: Path, found: list[Difference]) -> None:
    if live is _MISSING:
        if not _absent(desired, path):
            found.append((path, "absent"))
    elif isinstance(desired, dict):
        if not isinstance(live, dict):
            found.append((path, repr(live)))
            return
        for name, value in desired.items():
            _compare(live.get(name, _MISSING), value, (*path, name), found)
    elif isinstance(desired, _LISTS):
        if not isinstance(live, _LISTS):
            found.append((path, repr(live)))
        else:
            _compare_lists(live, desired, path, found)
    elif desired is None or not _same(live, desired, path):
        found.append((path, repr(live)))


def _compare_lists(live: Sequence[Any], desired: Sequence[Any], path: Path, found: list[Difference]) -> None:
    name = path[-1]
    if name in _SETS:
        found.extend(((*path, index), "absent") for index, value in enumerate(desired) if value not in live)
        return
    keys = _keys_of(name, desired)
    if keys is None:
        # An atomic list is ours as a whole: an item more is a difference, a default inside an item is not.
        if len(live) != len(desired):
            found.append((path, f"{len(live)} items"))
            return
        for index, (theirs, ours) in enumerate(zip(live, desired, strict=True)):
            _compare(theirs, ours, (*path, index), found)
        return
    known = {_key(item, keys): item for item in live if isinstance(item, dict)}
    for index, item in enumerate(desired):
        _compare(known.get(_key(item, keys), _MISSING), item, (*path, index), found)


def _keys_of(name: str | int, items: Sequence[Any]) -> tuple[str, ...] | None:
    for keys in _LIST_KEYS.get(str(name), ()):
        if all(isinstance(item, dict) and keys[0] in item for item in items):
            return keys
    return None


def _key(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key, _KEY_DEFAULTS.get(key)) for key in keys)


def _absent(desired: Any, path: Path) -> bool:
    """True if the API server keeps ``desired`` by leaving the field out."""
    if desired is None or desired == "":
        return True
    if isinstance(desired, (dict, *_LISTS)):
        # ``emptyDir: {}`` says something, and stays; below labels or a security context an empty value is dropped.
        return not desired and path[-1] != "emptyDir"
    return not desired and path[-1] in _ZERO_IS_ABSENT


def _same(live: Any, desired: Any, path: Path) -> bool:
    if live == desired and isinstance(live, bool) == isinstance(desired, bool):
        return True
    is_quantity = path[-1] in _QUANTITIES or (len(path) > 1 and path[-2] in _QUANTITY_MAPS)
    if not is_quantity or isinstance(live, bool) or isinstance(desired, bool):
        return False
    try:
        return quantity(live) == quantity(desired)
    except ValueError:
        return False
