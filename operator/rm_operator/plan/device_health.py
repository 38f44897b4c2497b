"""Which devices of a kind are not well: from the reports of our programs on its nodes, or from what kubelets say.

What was said of a device in the status holds until something newer is known of its node, so neither a new leader nor a
silent device plugin makes a device well. By the same status each failure and each recovery is told once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.accelerator_resource import DeviceCounts, DeviceFailure, UnhealthyDevice

from rm_operator.plan.conditions import Conditions
from rm_operator.plan.device_class import requested_resource
from rm_operator.plan.device_report import Report, said_by_kubelet
from rm_operator.plan.model import Object, PlannedEvent, Regarding, name_of, namespace_of, uid_of
from rm_operator.plan.node_health import in_words

MAX_UNHEALTHY: Final = 32
MAX_PODS: Final = 16
RECOVERED: Final = "DeviceRecovered"
"""Reason of an Event; a condition says that all are healthy."""
_MAX_EVENTS: Final = 16
_MAX_LINE: Final = 256
_NAMED: Final = 3
"""Devices, nodes or pods that a message names; of the others it says how many there are."""

_Where = tuple[str, str]
"""Node and device."""


@dataclass(frozen=True, slots=True)
class Reported:
    """What device plugins and observers of a kind report."""

    reports: Mapping[str, Report] = field(default_factory=dict)
    """By node."""
    awaited: bool = False
    """True while too little is known to take anything back."""


NOTHING: Final = Reported()


@dataclass(frozen=True, slots=True)
class Health:
    """What the status and Events say of devices."""

    unhealthy: Sequence[UnhealthyDevice] = ()
    """All of them, by node and device."""
    used_out_of_band: int = 0
    events: tuple[PlannedEvent, ...] = ()

    def to_wire(self) -> list[dict[str, Any]]:
        """The member of the status."""
        return [device.to_wire() for device in self.unhealthy[:MAX_UNHEALTHY]]


def reports_of(spec: AcceleratorResourceSpec) -> bool:
    """True of kinds on whose nodes a program of ours reports."""
    return spec.device_plugin is not None or spec.observer is not None


def examine(
    accelerator: Object,
    spec: AcceleratorResourceSpec,
    nodes: Sequence[Object],
    devices: DeviceCounts,
    reported: Reported,
    holding: Sequence[Object],
    conditions: Conditions,
) -> Health:
    """States DevicesHealthy.

    ``nodes`` are those of the kind, with the ``devices`` that they advertise, and ``holding`` the pods on them that
    request some.
    """
    status = accelerator.get("status") or {}
    before = [UnhealthyDevice.model_validate(each) for each in status.get("unhealthy") or ()]
    if not reports_of(spec):
        if requested_resource(spec) is None:
            return Health()
        unhealthy = _by_kubelets(spec, nodes, holding)
        _state_counted(spec, nodes, devices, unhealthy, conditions)
        return Health(unhealthy, 0, _events(accelerator, nodes, before, unhealthy, ()))
    if reported.awaited:
        conditions.as_before(ConditionType.DEVICES_HEALTHY)
        return Health(before, int((status.get("devices") or {}).get("usedOutOfBand", 0)))
    reports = {name: report for node in nodes if (report := reported.reports.get(name := name_of(node))) is not None}
    known = {node for node, report in reports.items() if report.known}
    noted = {node: report for node, report in reports.items() if report.noted}
    there = set(map(name_of, nodes)) if before else set()
    unhealthy = sorted(
        [
            *(each for node, report in noted.items() for each in _unhealthy(node, report)),
            *(each for each in before if each.node in there and each.node not in known),
        ],
        key=_where,
    )
    _state_reported(reports, unhealthy, conditions)
    used = sum(report.used_out_of_band for report in noted.values())
    return Health(unhealthy, used, _events(accelerator, nodes, before, unhealthy, known))


def _unhealthy(node: str, report: Report) -> list[UnhealthyDevice]:
    return [
        UnhealthyDevice(
            node=node,
            device=device.id,
            failure=device.failure,
            cause=device.cause,
            pods=[_cut(f"{namespace}/{name}") for namespace, name in device.pods[:MAX_PODS]],
        )
        for device in report.unhealthy
    ]


def _by_kubelets(
    spec: AcceleratorResourceSpec, nodes: Sequence[Object], holding: Sequence[Object]
) -> list[UnhealthyDevice]:
    there = frozenset(map(name_of, nodes))
    users: dict[_Where, set[str]] = {}
    for pod in holding:
        node = (pod.get("spec") or {}).get("nodeName") or ""
        for resource, device in said_by_kubelet(pod):
            if resource == spec.resource_name and node in there:
                users.setdefault((node, device), set()).add(_cut(f"{namespace_of(pod)}/{name_of(pod)}"))
    return [
        UnhealthyDevice(node=node, device=device, cause="says the kubelet", pods=sorted(pods)[:MAX_PODS])
        for (node, device), pods in sorted(users.items())
    ]


def _state_counted(
    spec: AcceleratorResourceSpec,
    nodes: Sequence[Object],
    devices: DeviceCounts,
    unhealthy: Sequence[UnhealthyDevice],
    conditions: Conditions,
) -> None:
    """By what pods and nodes tell."""
    lacking = devices.total - devices.healthy
    if not unhealthy and lacking <= 0:
        if devices.total:
            message = f"all {devices.total} can be allocated"
            conditions.set(ConditionType.DEVICES_HEALTHY, True, Reason.ALL_HEALTHY, message)
        return
    parts = [_named(unhealthy)] if unhealthy else []
    if lacking > 0:
        where = "" if spec.resource_name is None else _lacking(spec.resource_name, nodes)
        why = "their device plugin says that they are unhealthy, or does not run"
        hint = "" if spec.resource_name is None else "; set observer to learn more"
        parts.append(f"{lacking} of {devices.total} cannot be allocated{where}: {why}{hint}")
    conditions.set(ConditionType.DEVICES_HEALTHY, False, Reason.DEVICE_UNHEALTHY, "; ".join(parts))


def _lacking(resource: str, nodes: Sequence[Object]) -> str:
    where = [
        name_of(node)
        for node in nodes
        if ((node.get("status") or {}).get("capacity") or {}).get(resource, "0")
        != ((node.get("status") or {}).get("allocatable") or {}).get(resource, "0")
    ]
    return f" on {_several(where)}" if where else ""


def _state_reported(
    reports: Mapping[str, Report], unhealthy: Sequence[UnhealthyDevice], conditions: Conditions
) -> None:
    silent = {node: report.problem for node, report in reports.items() if report.problem}
    failing = {node: report.message for node, report in reports.items() if report.message and not report.problem}
    parts = [_named(unhealthy)] if unhealthy else []
    for what, nodes in (("no report from", silent), ("discovery fails on", failing)):
        if nodes:
            first = min(nodes)
            more = f"; {what} {len(nodes) - 1} more" if len(nodes) > 1 else ""
            parts.append(f"{what} {first}: {nodes[first]}{more}")
    if unhealthy:
        conditions.set(ConditionType.DEVICES_HEALTHY, False, Reason.DEVICE_UNHEALTHY, "; ".join(parts))
    elif parts:
        conditions.set(ConditionType.DEVICES_HEALTHY, None, Reason.REPORT_MISSING, "; ".join(parts))
    elif reports:
        count = sum(report.devices for report in reports.values())
        message = f"{count} devices on {len(reports)} nodes, as their device plugins report"
        conditions.set(ConditionType.DEVICES_HEALTHY, True, Reason.ALL_HEALTHY, message)


def _named(unhealthy: Sequence[UnhealthyDevice]) -> str:
    count = len(unhealthy)
    parts = [f"{each.node}: {_about(each)}" for each in unhealthy[:_NAMED]]
    if count > _NAMED:
        parts.append(f"and {count - _NAMED} more")
    return f"{count} device{' is' if count == 1 else 's are'} not well: {'; '.join(parts)}"


def _about(device: UnhealthyDevice) -> str:
    users = f", used by {_several(device.pods)}" if device.pods else ""
    return f"{device.device} {in_words(device.failure, device.cause)}{users}"


def _events(
    accelerator: Object,
    nodes: Sequence[Object],
    before: Sequence[UnhealthyDevice],
    after: Sequence[UnhealthyDevice],
    known: Collection[str],
) -> tuple[PlannedEvent, ...]:
    """What has failed and what has recovered since the last status; that is told only of nodes that are ``known``."""
    if not before and not after:
        return ()
    failures: dict[_Where, DeviceFailure] = {_where(each): each.failure for each in before}
    # Of more devices than a status holds nobody knows which of them were told before.
    told_until = max(failures) if len(failures) >= MAX_UNHEALTHY else None
    concerned = {each.node for each in (*before, *after)}
    about = {
        name: Regarding("v1", "Node", "", name, uid_of(node)) for node in nodes if (name := name_of(node)) in concerned
    }
    events: list[PlannedEvent] = []
    for device in after:
        where = _where(device)
        if failures.get(where) == device.failure or (told_until is not None and where > told_until):
            continue
        words, reason = _about(device), Reason.DEVICE_UNHEALTHY.value
        events.append(PlannedEvent("Warning", reason, f"{device.node}: {words}"))
        events.append(PlannedEvent("Warning", reason, f"{name_of(accelerator)}: {words}", about[device.node]))
    for node, device_id in sorted(failures.keys() - set(map(_where, after))):
        if node in known:
            words = f"{device_id} is not reported as unhealthy any more"
            events.append(PlannedEvent("Normal", RECOVERED, f"{node}: {words}"))
            events.append(PlannedEvent("Normal", RECOVERED, f"{name_of(accelerator)}: {words}", about[node]))
    return tuple(events[:_MAX_EVENTS])


def _where(device: UnhealthyDevice) -> _Where:
    return device.node, device.device


def _several(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_LINE else text[: _MAX_LINE - 1] + "…"
