"""Whose devices they are: one name on one node has one owner, and two of them are told, not fought over.

Two things can go wrong. Somebody else advertises on a node what our device plugin is to advertise there
(``ResourceNameConflict``): the vendor's plugin that was there first, one that came later and that our plugin reports,
or a DRA driver with a class of the same name. Or two AcceleratorResources count the same devices (``NodeConflict``).

Somebody else's nodes are left out: the rest of the kind is used as before. Where nothing of ours runs yet, our plugin
keeps off them. Once it runs it is not withdrawn: it yields by itself and goes on by itself, and what it reports is how
the end of the conflict is known. Whether a node is new or always was ours is remembered by the DaemonSet: one that is
there says on which nodes it was never to be, so a restart of our own plugin makes nobody a stranger to his devices.

Of two AcceleratorResources the older one goes on as if the other were not there; the younger is not used until its
nodes are its own, as its pods could go to any of them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.accelerator_resource import NodeDevices, NodeVersions

from rm_operator.plan.conditions import Conditions
from rm_operator.plan.model import Object, is_deleting, labels_of, name_of, uid_of

MAX_VERSIONS: Final = 32
_MAX_VERSION: Final = 128
_MAX_COUNTS: Final = 64
_NAMED: Final = 3
"""Nodes that a message names; of the others it says how many there are."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else there is in the cluster that may have the devices of a kind."""

    others: Sequence[Object] = ()
    """AcceleratorResources with the same resourceName or deviceClassName; it may be among them."""
    ours: Collection[str] = ()
    """Names of nodes on which a device plugin of ours is, for this kind or for another one with its resourceName."""
    daemonset: Object | None = None
    """The DaemonSet of its device plugin."""
    reported: Mapping[str, str] = field(default_factory=dict)
    """What device plugins report of other owners, in words, by node; nothing of those that have nothing to report."""
    extended: str = ""
    """The extendedResourceName of its DeviceClass."""
    by_class: Collection[str] = ()
    """Names of nodes where a DRA driver has devices of a class whose extendedResourceName is the name of its resource,
    or its own class."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """What of a kind is somebody else's."""

    reason: Reason | None = None
    """ResourceNameConflict or NodeConflict; None while there is no conflict."""
    message: str = ""
    lost: frozenset[str] = frozenset()
    """Names of nodes whose devices are not its own: they are not counted."""
    keep_off: frozenset[str] = frozenset()
    """Values of the hostname label of nodes where its device plugin must not be started."""
    unused: bool = False
    """Nothing of it may be used, and nothing that does not run yet is rolled out."""


def examine(
    accelerator: Object, spec: AcceleratorResourceSpec, nodes: Sequence[Object], around: Surroundings
) -> Ownership:
    """Who else claims the devices of ``nodes``, those that the kind selects."""
    plugin = spec.device_plugin
    # A class that is yet to be made is known by the name that it is to get.
    resource = spec.resource_name or around.extended or (plugin.extended_resource_name if plugin else None) or ""
    shared = _shared(accelerator, spec, nodes, around.others)
    advertising = {name_of(node) for node in nodes if _advertises(node, resource)}
    new = {name_of(node): _host(node) for node in _not_begun(accelerator, spec, nodes, around)}
    by_class = set(around.by_class)
    strangers = (advertising & new.keys()) - by_class
    # A node where our plugin is to begin would have them twice once it had.
    twice = (advertising if spec.device_class_name else advertising | new.keys()) & by_class
    there = set(map(name_of, nodes))
    reported = {node: words for node, words in sorted(around.reported.items()) if node in there}
    messages = [
        f"{_several(on)} also belong to the AcceleratorResource {other}, which is older; choose nodeSelectors that no "
        f"node fits both of, or delete one of the two"
        for other, on in shared.items()
    ]
    if strangers:
        messages.append(
            f"another device plugin advertises {resource} on {_several(strangers)}, so ours is "
            "not rolled out there; remove that plugin, leave these nodes out by nodeSelector, or remove devicePlugin "
            "to use the devices as they are advertised"
        )
    if reported:
        node, words = next(iter(reported.items()))
        messages.append(
            f"device plugins report another owner on {_several(reported)}, on {node}: {words}; remove the other one, "
            "or leave these nodes out by nodeSelector"
        )
    if twice:
        messages.append(
            f"{resource} would be had both from a device plugin and from a DRA driver on {_several(twice)}; "
            "remove one of the two from there, or leave these nodes out by nodeSelector"
        )
    if not messages:
        return Ownership()
    return Ownership(
        Reason.NODE_CONFLICT if shared else Reason.RESOURCE_NAME_CONFLICT,
        "; ".join(messages),
        lost=frozenset({*strangers, *twice, *reported, *(each for on in shared.values() for each in on)}),
        keep_off=frozenset(new[name] for name in strangers | twice if new.get(name)),
        unused=bool(shared),
    )


def state(conditions: Conditions, found: Ownership) -> None:
    """Says so, where there is a conflict, after everything else was stated: what is left is used as before."""
    if found.reason is None:
        return
    if found.unused or not conditions.is_true(ConditionType.DEVICES_ADVERTISED):
        conditions.set(ConditionType.DEVICES_ADVERTISED, False, found.reason, found.message)
    conditions.set(ConditionType.READY, False, found.reason, found.message)
    # Nothing that the operator does ends it.
    conditions.set(ConditionType.RECONCILING, False, found.reason)
    conditions.set(ConditionType.STALLED, True, found.reason, found.message)


def versions(
    accelerator: str,
    spec: AcceleratorResourceSpec,
    nodes: Iterable[Object],
    devices: Mapping[str, tuple[int, int]] | None = None,
) -> list[NodeVersions]:
    """Versions that nodes carry as labels, the commonest first: the vendor's labels, or those that we write.

    Nodes that say nothing are not counted. ``devices`` are by the node's name: how many it has, and how many of them
    are free; None where they are not counted by node.
    """
    wanted = spec.version_labels
    sources = tuple(
        (theirs, f"{ours}/{accelerator}")
        for theirs, ours in (
            (wanted.driver, names.NODE_LABEL_DRIVER),
            (wanted.sdk, names.NODE_LABEL_SDK),
            (wanted.firmware, names.NODE_LABEL_FIRMWARE),
        )
    )
    found: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for node in nodes:
        labels = labels_of(node)
        said = tuple((labels.get(theirs or "") or labels.get(ours, ""))[:_MAX_VERSION] for theirs, ours in sources)
        if any(said):
            found.setdefault(said, []).append((devices or {}).get(name_of(node), (0, 0)))
    ranked = sorted(found.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    return [
        NodeVersions(
            driver=driver,
            sdk=sdk,
            firmware=firmware,
            nodes=len(counts),
            devices=None if devices is None else sum(there for there, _ in counts),
            free=None if devices is None else sum(free for _, free in counts),
            devices_by_node=_by_node(there for there, _ in counts),
            free_by_node=_by_node(free for _, free in counts),
        )
        for (driver, sdk, firmware), counts in ranked[:MAX_VERSIONS]
    ]


def _by_node(devices: Iterable[int]) -> list[NodeDevices] | None:
    """Nodes with the same number of devices, those with the most first; None where none has more than one."""
    ranked = sorted(Counter(each for each in devices if each).items(), reverse=True)
    if not ranked or ranked[0][0] == 1:
        return None
    return [NodeDevices(devices=each, nodes=nodes) for each, nodes in ranked[:_MAX_COUNTS]]


def kept_off(daemonset: Object) -> frozenset[str]:
    """Values of the hostname label that a DaemonSet of ours keeps off."""
    pod: Mapping[str, Any] = ((daemonset.get("spec") or {}).get("template") or {}).get("spec") or {}
    affinity: Mapping[str, Any] = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return frozenset(
        value
        for term in required.get("nodeSelectorTerms") or []
        for each in term.get("matchExpressions") or []
        if (each["key"], each["operator"]) == (names.LABEL_HOSTNAME, "NotIn")
        for value in each["values"]
    )


def _shared(
    accelerator: Object, spec: AcceleratorResourceSpec, nodes: Sequence[Object], others: Iterable[Object]
) -> dict[str, list[str]]:
    """Nodes that older kinds select as well, by the name of the kind."""
    found: dict[str, list[str]] = {}
    devices = (spec.resource_name, spec.device_class_name)
    for other in sorted(others, key=name_of):
        # One that is being deleted goes once its users are elsewhere, and this one may be where they go.
        if uid_of(other) == uid_of(accelerator) or is_deleting(other) or _age(other) > _age(accelerator):
            continue
        theirs = other["spec"]
        if (theirs.get("resourceName"), theirs.get("deviceClassName")) != devices or not any(devices):
            continue
        selector = (theirs.get("nodeSelector") or {}).items()
        if on := [name_of(node) for node in nodes if selector <= labels_of(node).items()]:
            found[name_of(other)] = on
    return found


def _age(accelerator: Object) -> tuple[str, str]:
    return str(accelerator["metadata"].get("creationTimestamp", "")), name_of(accelerator)


def _not_begun(
    accelerator: Object, spec: AcceleratorResourceSpec, nodes: Iterable[Object], around: Surroundings
) -> list[Object]:
    """Nodes on which the kind's device plugin is to be rolled out, and was never before."""
    if spec.device_plugin is None:
        return []
    before = None if around.daemonset is None else kept_off(around.daemonset)
    written = {
        f"{label}/{name_of(accelerator)}"
        for label in (names.NODE_LABEL_DRIVER, names.NODE_LABEL_SDK, names.NODE_LABEL_FIRMWARE)
    }
    return [
        node
        for node in nodes
        if (before is None or _host(node) in before)
        and name_of(node) not in around.ours
        and written.isdisjoint(labels_of(node))
    ]


def _advertises(node: Object, resource: str) -> bool:
    """True if a device plugin gives out devices there; once it has gone the kubelet tells none that can be had."""
    return str(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0")) != "0"


def _host(node: Object) -> str:
    return str(labels_of(node).get(names.LABEL_HOSTNAME, ""))


def _several(nodes: Iterable[str]) -> str:
    every = sorted(nodes)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return f"node{'s' if len(every) > 1 else ''} {', '.join(every[:_NAMED])}{more}"
