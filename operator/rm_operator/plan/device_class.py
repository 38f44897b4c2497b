"""Devices that pods request by a DeviceClass: which of those in ResourceSlices the class selects, and who has them.

Which devices a class has is said in CEL. Of that, what classes of device drivers are made of is understood: the driver,
and equality of attributes, joined by ``&&``. A class that says more than that is not guessed at: its devices are not
counted, and whoever reads the status is told so.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec

Object = Mapping[str, Any]

_TEXT = r"""(?:"[^"\\]*"|'[^'\\]*')"""
_LITERAL = rf"(?P<value>{_TEXT}|true|false|-?[0-9]+)"
_DRIVER: Final = re.compile(rf"device\.driver\s*==\s*(?P<driver>{_TEXT})")
_ATTRIBUTE: Final = re.compile(
    rf"device\.attributes\[\s*(?P<domain>{_TEXT})\s*\]"
    rf"(?:\.(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\[\s*(?P<quoted>{_TEXT})\s*\])\s*==\s*{_LITERAL}"
)

_PARENTHESES: Final = re.compile(r"\s*\(([^()]*)\)\s*")

IDENTIFYING: Final = frozenset({"uuid", "serial", "pciBusID", "pcieRoot", "index", "numaNode"})
"""Attributes, of any domain, that tell a device from its likes: they are not kept, and no class is counted by them."""

Value = str | int | bool
_UNUSABLE_EFFECTS: Final = frozenset({"NoSchedule", "NoExecute"})


def requested_resource(spec: AcceleratorResourceSpec) -> str | None:
    """The extended resource that a pod requests for a device of this kind; None where it needs to request none."""
    if spec.resource_name is not None:
        return spec.resource_name
    return None if spec.device_class_name is None else implied_resource(spec.device_class_name)


def implied_resource(device_class: str) -> str:
    """The extended resource by which Kubernetes lets pods request devices of a DeviceClass."""
    return names.DEVICE_CLASS_RESOURCE_PREFIX + device_class


class DeviceId(NamedTuple):
    """What tells a device from all others of the cluster."""

    driver: str
    pool: str
    device: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a ResourceSlice."""

    id: DeviceId
    node: str
    """Empty where it belongs to no single node."""
    attributes: Mapping[str, Value]
    """By ``domain/name``."""
    usable: bool
    """False if it must not be allocated: it is tainted, or its pool is not completely published."""
    shares: bool
    """It takes from a counter that other devices take from, too, so not all of them can be had at the same time."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which devices a DeviceClass has: all for which every term holds."""

    drivers: frozenset[str]
    """Drivers that are named; a device has one, so with two of them there is none."""
    attributes: frozenset[tuple[str, Value]]

    def admits(self, device: Device) -> bool:
        """True if the class has the device."""
        if any(device.id.driver != driver for driver in self.drivers):
            return False
        return all(_same(device.attributes.get(name), value) for name, value in self.attributes)


def _same(found: Value | None, wanted: Value) -> bool:
    # True is 1 for Python, and not for CEL.
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


class NotUnderstood(Exception):
    """The selectors of a DeviceClass say more than is understood here; the argument is the expression."""


def selection_of(device_class: Object) -> Selection:
    """What the selectors of a DeviceClass say. Raises NotUnderstood."""
    drivers: set[str] = set()
    attributes: set[tuple[str, Value]] = set()
    for selector in (device_class.get("spec") or {}).get("selectors") or []:
        expression = str((selector.get("cel") or {}).get("expression", ""))
        for term in _terms(expression):
            if (found := _DRIVER.fullmatch(term)) is not None:
                drivers.add(found["driver"][1:-1])
            elif (found := _ATTRIBUTE.fullmatch(term)) is not None:
                name = found["name"] or found["quoted"][1:-1]
                if name in IDENTIFYING:
                    raise NotUnderstood(expression)
                attributes.add((f"{found['domain'][1:-1]}/{name}", _value(found["value"])))
            else:
                raise NotUnderstood(expression)
    return Selection(frozenset(drivers), frozenset(attributes))


def drivers_named(device_class: Object) -> frozenset[str]:
    """Drivers of which alone the class has devices; empty where it has, or may have, some of any."""
    try:
        return selection_of(device_class).drivers
    except NotUnderstood:
        return frozenset()


def _terms(expression: str) -> Iterator[str]:
    """What is joined by ``&&``; where that is written inside of a literal, what comes is no term either."""
    for part in _bare(expression).split("&&"):
        yield _bare(part)


def _bare(expression: str) -> str:
    """Without space and one pair of parentheses around it."""
    found = _PARENTHESES.fullmatch(expression)
    return (found[1] if found is not None else expression).strip()


def _value(literal: str) -> Value:
    if literal[0] in "\"'":
        return literal[1:-1]
    return literal == "true" if literal in ("true", "false") else int(literal)


def devices_in(slices: Iterable[Object]) -> Iterator[Device]:
    """Devices of ResourceSlices as they are kept: those of each pool's newest generation."""
    pools: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for each in slices:
        spec = each["spec"]
        pools.setdefault((spec["driver"], spec["pool"]["name"]), []).append(spec)
    for (driver, pool), specs in pools.items():
        generation = max(spec["pool"]["generation"] for spec in specs)
        newest = [spec for spec in specs if spec["pool"]["generation"] == generation]
        # Until all of a pool is there nothing of it is allocated.
        complete = all(len(newest) >= spec["pool"]["resourceSliceCount"] for spec in newest)
        for spec in newest:
            for device in spec["devices"]:
                yield Device(
                    DeviceId(driver, pool, device["name"]),
                    device.get("nodeName") or spec.get("nodeName") or "",
                    device["attributes"],
                    usable=complete and not device.get("tainted", False),
                    shares=device.get("shares", False),
                )


def allocated_in(claim: Object) -> Iterator[DeviceId]:
    """Devices that a ResourceClaim, as it is kept, takes from everybody else."""
    for result in claim["status"]["allocation"]["devices"]["results"]:
        yield DeviceId(result["driver"], result["pool"], result["device"])


def is_unusable(taint: Mapping[str, Any]) -> bool:
    """True if a taint keeps its device from being allocated."""
    return taint.get("effect") in _UNUSABLE_EFFECTS


@dataclass(frozen=True)
class ClassView:
    """What the cluster says of the DeviceClass of a kind."""

    unserved: str = ""
    """Why there can be none: what the API server lacks. Empty where it has device classes that pods can request."""
    device_class: Object | None = None
    slices: Sequence[Object] = ()
    """ResourceSlices of all drivers, or of those that the class names."""
    claims: Sequence[Object] = ()
    """ResourceClaims that have devices, of all drivers or of those that the class names."""


NO_CLASS: Final = ClassView()


@dataclass(frozen=True)
class ClassDevices:
    """Devices of a kind that are requested by class."""

    nodes: tuple[Object, ...] = ()
    """Nodes that have one."""
    total: int = 0
    healthy: int = 0
    allocated: int = 0
    most_on_node: int = 0
    """Devices of the node that has most of them."""
    missing: str = ""
    """Why there can be none; for a person."""
    unserved: bool = False
    """The API server has no device classes that pods can request."""
    uncounted: str = ""
    """Why they cannot be counted, though there may be some; for a person."""


def count(name: str, view: ClassView, nodes: Sequence[Object]) -> ClassDevices:
    """Devices of the DeviceClass ``name`` on ``nodes``, and those that belong to no single node."""
    if view.unserved:
        return ClassDevices(missing=f"deviceClassName needs Kubernetes 1.36, and {view.unserved}", unserved=True)
    if view.device_class is None:
        return ClassDevices(missing=f"there is no DeviceClass {name}")
    try:
        selection = selection_of(view.device_class)
    except NotUnderstood as error:
        return ClassDevices(
            nodes=tuple(nodes),
            uncounted=f"devices of DeviceClass {name} are not counted, as it selects by more than a driver and "
            f"values of attributes: {error}",
        )
    by_name = {node["metadata"]["name"]: node for node in nodes}
    found = [
        device
        for device in devices_in(view.slices)
        if (not device.node or device.node in by_name) and selection.admits(device)
    ]
    having = tuple(by_name[each] for each in sorted({device.node for device in found} - {""}))
    if any(device.shares for device in found):
        return ClassDevices(
            nodes=having,
            uncounted=f"devices of DeviceClass {name} are not counted, as some can be had only in place of others",
        )
    taken = {each for claim in view.claims for each in allocated_in(claim)}
    return ClassDevices(
        nodes=having,
        total=len(found),
        healthy=sum(device.usable for device in found),
        allocated=sum(device.id in taken for device in found),
        most_on_node=max(Counter(device.node for device in found if device.node).values(), default=0),
    )


def extended_resource(device_class: Object | None) -> str | None:
    """The extended resource that a DeviceClass gives its devices by a name of its own."""
    name = None if device_class is None else (device_class.get("spec") or {}).get("extendedResourceName")
    return None if name is None else str(name)
