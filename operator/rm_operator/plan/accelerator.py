"""AcceleratorResource: roll out its device plugin, and say what the nodes have."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rm_api.accelerator_types import AcceleratorType
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.accelerator_resource import DeviceCounts

from rm_operator.plan import device_class, device_health, in_use, ownership, remote
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.device_children import device_children
from rm_operator.plan.device_class import NO_CLASS, ClassDevices, ClassView, requested_resource
from rm_operator.plan.device_health import Health, Reported
from rm_operator.plan.in_use import NOBODY, Users
from rm_operator.plan.model import (
    Object,
    Plan,
    PlannedEvent,
    Protection,
    Settings,
    deletion_of,
    is_deleting,
    labels_of,
    name_of,
)

FINISHED = ("Succeeded", "Failed")
"""Phases of a pod that has ended: what it had others may have."""
_COUNT = re.compile(r"([0-9]+)(?:(k|Ki|[MGTPE]i?)|[eE]([0-9]+))?")
_POWERS = "KMGTPE"


@dataclass(frozen=True)
class AcceleratorSnapshot:
    """Everything that a decision about one AcceleratorResource rests on."""

    accelerator: Object
    nodes: Sequence[Object]
    """All nodes."""
    requesting: Sequence[Object]
    """Pods that request its resource, on whatever nodes."""
    plugin_pods: Sequence[Object]
    """Pods of its device plugin; of an endpoint those of its proxy."""
    children: Sequence[Object]
    """What was made for it: its device plugin's DaemonSet and what belongs to that, or its proxy."""
    settings: Settings
    by_class: ClassView = NO_CLASS
    """What there is of its DeviceClass, where it has one."""
    users: Users = NOBODY
    """Deployments that are placed on it, or that still run on it."""
    reported: Reported = device_health.NOTHING
    """What the programs on its nodes report."""
    others: Sequence[Object] = ()
    """AcceleratorResources that are requested as it is; it may be among them."""
    ours: Collection[str] = ()
    """Names of nodes with a device plugin of ours for its resource, whatever kind it runs for."""
    named: Mapping[str, ClassView] = field(default_factory=dict)
    """DeviceClasses that pods may also request by the name of its resource."""


def matching_nodes(spec: AcceleratorResourceSpec, nodes: Iterable[Object]) -> list[Object]:
    """Nodes that carry every label of the selector."""
    wanted = spec.node_selector.items()
    return [node for node in nodes if wanted <= labels_of(node).items()]


def plan(snapshot: AcceleratorSnapshot, now: datetime) -> Plan:
    """Decides what is next for one AcceleratorResource."""
    accelerator = snapshot.accelerator
    leaving = is_deleting(accelerator)
    protect = in_use.protection(accelerator, snapshot.users)
    if leaving and not snapshot.users.count:
        return Plan(protect=protect)
    spec = AcceleratorResourceSpec.model_validate(accelerator["spec"])
    conditions = Conditions(accelerator, now)
    if spec.type is AcceleratorType.REMOTE:
        return _plan_endpoint(snapshot, spec, conditions, protect)
    selected = matching_nodes(spec, snapshot.nodes)
    owned = ownership.Ownership() if leaving else ownership.examine(accelerator, spec, selected, _around(snapshot))
    told = conditions.said_before(ConditionType.STALLED, Reason.RESOURCE_NAME_CONFLICT)
    if told and owned.reason is None and snapshot.reported.awaited and not leaving:
        # A conflict that reports tell of has not ended because nobody has been asked yet.
        return Plan(protect=protect)
    nodes = [node for node in selected if name_of(node) not in owned.lost]
    holding: Sequence[Object] = ()
    devices, by_class = DeviceCounts(), ClassDevices()
    by_node: dict[str, tuple[int, int]] | None = None
    if spec.device_class_name:
        by_class = device_class.count(spec.device_class_name, snapshot.by_class, nodes)
        nodes = list(by_class.nodes)
        devices = DeviceCounts(
            total=by_class.total,
            healthy=by_class.healthy,
            allocated=by_class.allocated,
            most_on_node=_if_several(by_class.most_on_node),
        )
    if spec.resource_name:
        # Another kind may have the same resource on other nodes.
        mine = set(map(name_of, nodes))
        holding = [pod for pod in snapshot.requesting if (pod.get("spec") or {}).get("nodeName") in mine]
        nodes = [node for node in nodes if spec.resource_name in (node.get("status") or {}).get("capacity", {})]
        there, healthy = (
            {name_of(node): devices_on(node, what, spec.resource_name) for node in nodes}
            for what in ("capacity", "allocatable")
        )
        taken: Counter[str] = Counter()
        for pod in holding:
            taken[pod["spec"]["nodeName"]] += requested(pod, spec.resource_name)
        devices = DeviceCounts(
            total=sum(there.values()),
            healthy=sum(healthy.values()),
            allocated=taken.total(),
            most_on_node=_if_several(max(there.values(), default=0)),
        )
        by_node = {node: (count, max(0, healthy[node] - taken[node])) for node, count in there.items()}
    health = device_health.examine(accelerator, spec, selected, devices, snapshot.reported, holding, conditions)
    devices = devices.model_copy(update={"used_out_of_band": health.used_out_of_band})
    _advertised(conditions, spec, nodes, devices, by_class, snapshot.plugin_pods)
    conditions.roll_up([ConditionType.DEVICES_ADVERTISED], ready_message="models can be placed on it")
    if leaving:
        in_use.state_use(accelerator, snapshot.users, conditions, "they are deleted or placed elsewhere")
    elif not conditions.is_true(ConditionType.READY):
        entry = conditions.get(ConditionType.READY)
        conditions.set(ConditionType.RECONCILING, True, Reason(entry["reason"]), entry["message"])
    ownership.state(conditions, owned)

    # While it is used its device plugin stays as it is. It is not made again: the garbage collector may be taking what
    # belongs to an object that goes, and would take it again.
    idle = leaving or by_class.unserved or (owned.unused and _daemonset(snapshot) is None)
    children = [] if idle else device_children(accelerator, spec, snapshot.settings, keep_off=owned.keep_off)
    kept = {(child["kind"], child["metadata"]["name"]) for child in children}
    stale = [] if leaving else [each for each in snapshot.children if (each["kind"], name_of(each)) not in kept]
    status = {
        "observedGeneration": accelerator["metadata"].get("generation", 0),
        "nodes": len(nodes),
        "devices": devices.to_wire(),
        "versions": [each.to_wire() for each in ownership.versions(name_of(accelerator), spec, selected, by_node)],
        "unhealthy": health.to_wire(),
        "conditions": conditions.to_list(),
    }
    return Plan(
        apply=tuple(children),
        delete=tuple(deletion_of(child) for child in stale if not is_deleting(child)),
        protect=protect,
        status=status,
        events=_events(conditions, health),
    )


def _plan_endpoint(
    snapshot: AcceleratorSnapshot,
    spec: AcceleratorResourceSpec,
    conditions: Conditions,
    protect: tuple[Protection, ...],
) -> Plan:
    """The same for an endpoint outside the cluster, which has a proxy and no nodes."""
    accelerator = snapshot.accelerator
    remote.state(conditions, name_of(accelerator), spec, snapshot.plugin_pods)
    conditions.roll_up([ConditionType.ENDPOINT_READY], ready_message="models can be placed on it")
    leaving = is_deleting(accelerator)
    if leaving:
        in_use.state_use(accelerator, snapshot.users, conditions, "they are deleted or placed elsewhere")
    elif not conditions.is_true(ConditionType.READY):
        entry = conditions.get(ConditionType.READY)
        conditions.set(ConditionType.RECONCILING, True, Reason(entry["reason"]), entry["message"])
    # While it is used its proxy stays, as a device plugin does.
    children = [] if leaving else remote.children(accelerator, spec, snapshot.settings)
    kept = {(child["kind"], child["metadata"]["name"]) for child in children}
    stale = [] if leaving else [each for each in snapshot.children if (each["kind"], name_of(each)) not in kept]
    return Plan(
        apply=tuple(children),
        delete=tuple(deletion_of(child) for child in stale if not is_deleting(child)),
        protect=protect,
        status={
            "observedGeneration": accelerator["metadata"].get("generation", 0),
            "nodes": 0,
            "devices": DeviceCounts().to_wire(),
            "versions": [],
            "unhealthy": [],
            "conditions": conditions.to_list(),
        },
        events=conditions.transitions(),
    )


def _around(snapshot: AcceleratorSnapshot) -> ownership.Surroundings:
    """What the planner of ownership looks at."""
    by_class: set[str] = set()
    extended = device_class.extended_resource(snapshot.by_class.device_class)
    named = {extended: snapshot.by_class} if extended is not None else snapshot.named
    for name, view in named.items():
        counted = device_class.count(name, view, snapshot.nodes)
        # Of one that cannot be counted it is not known where its devices are.
        by_class.update(() if counted.uncounted else map(name_of, counted.nodes))
    return ownership.Surroundings(
        others=snapshot.others,
        ours=snapshot.ours,
        daemonset=_daemonset(snapshot),
        reported={node: said.conflict for node, said in snapshot.reported.reports.items() if said.conflict},
        extended=extended or "",
        by_class=by_class,
    )


def _daemonset(snapshot: AcceleratorSnapshot) -> Object | None:
    return next((child for child in snapshot.children if child["kind"] == "DaemonSet"), None)


def _events(conditions: Conditions, health: Health) -> tuple[PlannedEvent, ...]:
    """Devices by name, rather than that there are some."""
    summaries = {Reason.DEVICE_UNHEALTHY.value, Reason.ALL_HEALTHY.value} if health.events else set()
    return (*(each for each in conditions.transitions() if each.reason not in summaries), *health.events)


def _advertised(
    conditions: Conditions,
    spec: AcceleratorResourceSpec,
    nodes: Sequence[Object],
    devices: DeviceCounts,
    by_class: ClassDevices,
    plugin_pods: Sequence[Object],
) -> None:
    what = requested_resource(spec)
    if what is None:
        found = bool(nodes)
        message = f"{len(nodes)} nodes" if found else f"no node has the labels {dict(spec.node_selector)}"
        reason = Reason.ADVERTISED if found else Reason.NO_DEVICES
        conditions.set(ConditionType.DEVICES_ADVERTISED, found, reason, message)
    elif devices.healthy > 0:
        message = f"{devices.healthy} of {devices.total} {what} healthy on {len(nodes)} nodes"
        conditions.set(ConditionType.DEVICES_ADVERTISED, True, Reason.ADVERTISED, message)
    elif by_class.uncounted:
        # Pods wait where there is none; nobody is kept from trying.
        conditions.set(ConditionType.DEVICES_ADVERTISED, True, Reason.NOT_COUNTED, by_class.uncounted)
    elif (problem := _plugin_problem(plugin_pods)) is not None:
        conditions.set(ConditionType.DEVICES_ADVERTISED, False, Reason.PLUGIN_NOT_READY, problem)
    else:
        message = by_class.missing or f"no node advertises a healthy {what}"
        if spec.device_plugin is None and not by_class.unserved:
            what = "DRA driver" if spec.device_class_name else "device plugin"
            message += f"; install the vendor's {what}, or set devicePlugin"
        conditions.set(ConditionType.DEVICES_ADVERTISED, False, Reason.NO_DEVICES, message)


def _plugin_problem(plugin_pods: Sequence[Object]) -> str | None:
    for pod in plugin_pods:
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            state = status.get("state") or {}
            waiting = state.get("waiting")
            ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
            if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                said = (ended or {}).get("message") or waiting.get("message", "")
                return f"device plugin {name_of(pod)}: {waiting['reason']}: {said}"
    return None


def devices_on(node: Object, what: str, resource: str) -> int:
    """Devices of ``resource`` that a node has; ``what`` is capacity, or allocatable for those that are healthy."""
    return _count((node.get("status") or {}).get(what, {}).get(resource, 0))


def _if_several(devices: int) -> int | None:
    return devices if devices > 1 else None


def _count(quantity: object) -> int:
    """Devices as the API server writes their number: it shortens 2000 to ``2k``. Raises ValueError."""
    found = _COUNT.fullmatch(str(quantity))
    if found is None:
        raise ValueError(f"{quantity!r} is no number of devices")
    number, suffix, exponent = found.groups()
    if exponent:
        return int(number + "0" * int(exponent))
    if not suffix:
        return int(number)
    power = _POWERS.index(suffix[0].upper()) + 1
    return int(int(number) * (1024 if suffix.endswith("i") else 1000) ** power)


def requested(pod: Mapping[str, Any], resource: str) -> int:
    """Devices of ``resource`` that the pod asks for; 0 once it has ended."""
    if (pod.get("status") or {}).get("phase") in FINISHED:
        return 0
    spec = pod.get("spec") or {}

    def of(container: Mapping[str, Any]) -> int:
        return _count(((container.get("resources") or {}).get("limits") or {}).get(resource, 0))

    # The scheduler's rule: init containers run one after another, before the others; one that restarts (a sidecar)
    # stays, beside the later init containers and the others.
    sidecars = most = 0
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            sidecars += of(container)
            most = max(most, sidecars)
        else:
            most = max(most, sidecars + of(container))
    return max(most, sidecars + sum(map(of, spec.get("containers") or [])))
