"""Counts of our own objects by state, taken from indexes of the stores when metrics are read."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from rm_api.conditions import ConditionType, Reason

from rm_operator.kube.client import Object
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, CUSTOM, Resource
from rm_operator.kube.store import IndexFunction, Stores
from rm_operator.runtime.metrics import Metrics

_READINESS: Final = "readiness"
_REASONS: Final = frozenset(reason.value for reason in Reason)
_DEVICE_STATES: Final = ("total", "healthy", "allocated")


def observe_objects(metrics: Metrics, stores: Stores) -> None:
    """Set the gauges of objects and devices. A state in which nothing is any more shows no series.

    The stores of our kinds must have ``INDEXES``.
    """
    metrics.objects.clear()
    for resource in CUSTOM:
        for state, count in stores[resource].counts(_READINESS).items():
            ready, _, reason = state.partition("/")
            metrics.objects.labels(resource.kind, ready, reason).set(count)
    devices: Counter[tuple[str, str, str]] = Counter()
    for each in stores[ACCELERATOR_RESOURCES]:
        counted = (each.get("status") or {}).get("devices") or {}
        for state in _DEVICE_STATES:
            devices[each["spec"]["type"], each["spec"]["vendor"], state] += counted.get(state, 0)
    metrics.devices.clear()
    for labels, count in devices.items():
        metrics.devices.labels(*labels).set(count)


def _readiness(obj: Object) -> list[str]:
    for entry in (obj.get("status") or {}).get("conditions") or ():
        if entry["type"] == ConditionType.READY:
            # A reason of another version is none of the closed set, and labels stay bounded.
            reason = entry["reason"] if entry["reason"] in _REASONS else "Other"
            return [f"{entry['status']}/{reason}"]
    return ["Unknown/New"]


INDEXES: Final[Mapping[Resource, Mapping[str, IndexFunction]]] = {
    resource: {_READINESS: _readiness} for resource in CUSTOM
}
"""What the stores must be indexed by."""
