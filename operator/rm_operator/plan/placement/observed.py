"""What the status of an AcceleratorResource says of it, for placement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_api.accelerator_types import AcceleratorType
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.accelerator_resource import NodeVersions, ProvisioningMode

from rm_operator.plan.device_class import requested_resource


@dataclass(frozen=True, slots=True)
class Observed:
    """What there is of a kind of accelerator."""

    nodes: int | None
    """Nodes that have it; None for an endpoint, which needs none."""
    healthy: int | None
    """Devices that can be allocated, taken or not; None where devices are not counted."""
    most: int | None
    """Devices that may be promised: those that are healthy, or as many as can be had; None without a limit."""
    total: int | None
    """Devices that are there or can be had, healthy or not; None without a limit."""
    ready: bool
    reason: str
    """Why it is not ready, for a person."""
    versions: tuple[NodeVersions, ...] = ()
    """Versions that its nodes have, the commonest first."""
    largest: int | None = None
    """Devices of the node that has most of them, healthy or not; None where that is not known."""


def observe(spec: AcceleratorResourceSpec, status: Mapping[str, Any]) -> Observed:
    """What ``status`` says of an accelerator with this spec."""
    devices = status.get("devices") or {}
    healthy, total = int(devices.get("healthy", 0)), int(devices.get("total", 0))
    conditions = {entry["type"]: entry for entry in status.get("conditions") or []}
    # Not Ready: one that is being deleted is not, but whoever is placed on it stays as long as there are devices.
    advertised = conditions.get(ConditionType.DEVICES_ADVERTISED)
    uncounted = advertised is not None and advertised["reason"] == Reason.NOT_COUNTED
    counted = requested_resource(spec) is not None and not uncounted
    elastic, limit = spec.provisioning.mode is ProvisioningMode.ELASTIC, spec.provisioning.max_devices
    most: int | None = healthy
    there: int | None = total
    if elastic:
        most, there = (None, None) if limit is None else (max(healthy, limit), max(total, limit))
    ready, reason = _readiness(spec, advertised, conditions.get(ConditionType.ENDPOINT_READY), elastic=elastic)
    return Observed(
        nodes=None if spec.type is AcceleratorType.REMOTE else int(status.get("nodes", 0)),
        healthy=healthy if counted else None,
        most=most if counted else None,
        total=there if counted else None,
        ready=ready,
        reason=reason,
        versions=tuple(map(NodeVersions.model_validate, status.get("versions") or ())),
        # Of nodes that may come it is not known what they have.
        largest=int(devices.get("mostOnNode", 1)) if counted and total else None,
    )


def _readiness(
    spec: AcceleratorResourceSpec,
    advertised: Mapping[str, Any] | None,
    endpoint: Mapping[str, Any] | None,
    *,
    elastic: bool,
) -> tuple[bool, str]:
    if spec.type is AcceleratorType.REMOTE:
        if endpoint is None:
            return False, "its proxy has not been looked at yet"
        return endpoint["status"] == "True", str(endpoint.get("message", ""))
    if advertised is None:
        return False, "its devices have not been counted yet"
    # No node is what an elastic kind begins with.
    good = advertised["status"] == "True" or (elastic and advertised["reason"] == Reason.NO_DEVICES)
    return good, str(advertised.get("message", ""))
