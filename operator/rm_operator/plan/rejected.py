"""Serving pods that a kubelet refused to run: said with the node and its reason, and cleared away.

A kubelet refuses a pod where it cannot allocate a device, or where something else is not free that the scheduler took
for free. That is for good: the pod stays as Failed, and its ReplicaSet makes another one at once, which the scheduler
may send to the same node. So they come in thousands, and Kubernetes keeps 12500 of them. Of each node the newest two
stay for a while, as evidence, and go only after a status has told of them; all others go in batches, and an Event
tells of each batch.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rm_api import names

from rm_operator.plan import serving
from rm_operator.plan.model import (
    Deletion,
    Object,
    PlannedEvent,
    deletion_of,
    from_timestamp,
    is_deleting,
    labels_of,
    name_of,
)

BATCH: Final = 20
"""So many that are not needed are cleared away at once …"""
BATCH_SECONDS: Final = timedelta(seconds=60)
"""… or as many as there are when the oldest is so old."""
EVIDENCE_SECONDS: Final = timedelta(seconds=600)
"""So long the newest ones of a node stay."""
KEPT: Final = 2
"""Of each node: two tell that it was not the only one."""
NODES: Final = 3
"""Nodes whose newest ones stay, and that are told of: those with the newest of all."""
_AGAIN_SECONDS: Final = 1.0

_REASONS: Final = frozenset(
    {
        "UnexpectedAdmissionError", "TopologyAffinityError", "NodeAffinity", "NodeName", "NodePorts",
        "NodeUnschedulable", "TaintToleration", "NodeShutdown", "Evicted", "AppArmor", "SysctlForbidden",
        "PodOSNotSupported", "PodOSSelectorNodeLabelDoesNotMatch", "PodLevelResourcesNotSupported",
        "PodFeatureUnsupported", "InvalidNodeInfo", "UnexpectedPredicateFailureType",
    }
)  # fmt: skip
_OUT_OF: Final = "OutOf"
_OF_DEVICES: Final = frozenset({"UnexpectedAdmissionError", "TopologyAffinityError"})


@dataclass(frozen=True, slots=True)
class Rejection:
    """What a kubelet said of a pod that it refused."""

    node: str
    reason: str
    """One of the kubelet's reasons, such as UnexpectedAdmissionError; those that name a resource begin with OutOf."""
    message: str
    resource: str
    """The devices that the pod asked for; empty if none."""
    at: datetime

    @property
    def lacks_device(self) -> bool:
        """True if it is, or may be, for want of a device."""
        return self.reason in _OF_DEVICES or (bool(self.resource) and self.reason == f"{_OUT_OF}{self.resource}")


@dataclass(frozen=True)
class Clearing:
    """What is next for the pods of one deployment that kubelets refused."""

    said: tuple[str, ...]
    """Which nodes refuse its pods, and why."""
    delete: tuple[Deletion, ...]
    cleared: Mapping[tuple[str, str], int]
    """Of what is deleted: how many, by resource and reason."""
    events: tuple[PlannedEvent, ...]
    after: float | None
    """Seconds until there may be more to do."""


def rejection_of(pod: Object) -> Rejection | None:
    """What a kubelet said of ``pod`` if it refused to run it; None of other pods, also of those that ran and failed."""
    status = pod.get("status") or {}
    reason = str(status.get("reason") or "")
    if status.get("phase") != "Failed" or not (reason in _REASONS or reason.startswith(_OUT_OF)):
        return None
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    if any({"running", "terminated"} & (each.get("state") or {}).keys() for each in statuses):
        return None
    spec = pod.get("spec") or {}
    limits = [(each.get("resources") or {}).get("limits") or {} for each in spec.get("containers") or []]
    devices = sorted({name for each in limits for name in each if "/" in name})
    return Rejection(
        node=str(spec.get("nodeName") or "unknown"),
        reason=reason,
        message=" ".join(str(status.get("message") or "").removeprefix("Pod was rejected: ").split()),
        resource=devices[0] if devices else "",
        at=from_timestamp(status.get("startTime") or pod["metadata"]["creationTimestamp"]),
    )


def told(rejection: Rejection, *, again: bool) -> str:
    """One rejection in words; ``again`` if the node refused other pods, too."""
    what = "refuses pods again and again" if again else "refused a pod"
    return f"{_who(rejection)} {what}: {rejection.reason}: {rejection.message}".rstrip(": ")


def clear(pods: Iterable[Object], conditions: Sequence[Mapping[str, str]], now: datetime, *, removals: int) -> Clearing:
    """What to do about those of a deployment's ``pods`` that kubelets refused.

    ``conditions`` are those of the status as it is; ``removals`` pods may be deleted at most.
    """
    found = [
        (rejection, pod)
        for pod in pods
        if _is_ours(pod) and not is_deleting(pod) and (rejection := rejection_of(pod)) is not None
    ]
    found.sort(key=lambda each: (each[0].at, name_of(each[1])), reverse=True)
    evidence: dict[str, list[tuple[Rejection, Object]]] = {}
    others: list[tuple[Rejection, Object]] = []
    for rejection, pod in found:
        if rejection.node in evidence or len(evidence) < NODES:
            of_node = evidence.setdefault(rejection.node, [])
            (of_node if len(of_node) < KEPT else others).append((rejection, pod))
        else:
            others.append((rejection, pod))
    said = tuple(told(of_node[0][0], again=len(of_node) > 1) for of_node in evidence.values())

    moments, gone = [], []
    for rejection, pod in itertools.chain.from_iterable(evidence.values()):
        if rejection.at + EVIDENCE_SECONDS > now:
            moments.append(rejection.at + EVIDENCE_SECONDS)
        elif any(f"{_who(rejection)} ref" in entry.get("message", "") for entry in conditions):
            gone.append((rejection, pod))
    if others and (len(others) >= BATCH or others[-1][0].at + BATCH_SECONDS <= now):
        gone += others
    elif others:
        moments.append(others[-1][0].at + BATCH_SECONDS)
    # The oldest first.
    taken = sorted(gone, key=lambda each: (each[0].at, name_of(each[1])))[: max(0, removals)]
    after = min(((moment - now).total_seconds() for moment in moments), default=None)
    return Clearing(
        said=said,
        delete=tuple(deletion_of(pod) for _, pod in taken),
        cleared=Counter((rejection.resource, rejection.reason) for rejection, _ in taken),
        events=_events([rejection for rejection, pod in taken if (rejection, pod) in others]),
        after=_AGAIN_SECONDS if len(taken) < len(gone) else after,
    )


def _events(cleared: Sequence[Rejection]) -> tuple[PlannedEvent, ...]:
    if not cleared:
        return ()
    last = {each.node: each for each in cleared}
    counts = Counter(each.node for each in cleared)
    shown = [
        f"node {node} {count}, last for {last[node].reason}: {last[node].message}"
        for node, count in counts.most_common(NODES)
    ]
    further = f"; and {len(counts) - NODES} more nodes" if len(counts) > NODES else ""
    message = f"{len(cleared)} pods that kubelets had refused were cleared away: {'; '.join(shown)}{further}"
    return (PlannedEvent("Warning", "PodsRefused", message),)


def _is_ours(pod: Object) -> bool:
    """True if a ReplicaSet of ours made it, which makes another one in its place."""
    owners = pod["metadata"].get("ownerReferences") or []
    made = any(owner.get("controller") and owner.get("kind") == "ReplicaSet" for owner in owners)
    return made and labels_of(pod).get(names.LABEL_MANAGED_BY) == names.MANAGED_BY and bool(serving.variant_label(pod))


def _who(rejection: Rejection) -> str:
    return f"the kubelet of node {rejection.node}"
