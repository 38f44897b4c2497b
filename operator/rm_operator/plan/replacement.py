"""Pods whose device is not well: another one takes over, on another device of the kind, and only then they go.

It is a rollout within one variant. The pods that are to go count as an old variant, the others of the same Deployment
as the new one, and ``rollout`` decides on both, with nothing missing and as many pods beyond as a rollout may have. So
no pod goes before another one serves in its place, whatever crashes on the way, and no more pods are asked for than
there are devices for: a pod that serves goes on serving where no other device is free. One that does not serve is
deleted where there is another device, as its ReplicaSet makes a new one at once.

Since when a device is not well is written on the pod, as an annotation: nobody waits anew after a change of leaders,
and whoever counts devices knows that this pod takes none that others could have. A device that recovers ends all of
it: the pod stays, and a successor that is not needed any more goes.
"""

from collections.abc import Sequence
from datetime import MAXYEAR, datetime, timedelta
from typing import Any, Final

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds.accelerator_resource import DeviceFailure

from rm_operator.plan import rollout, serving
from rm_operator.plan.device_report import UnhealthyUse
from rm_operator.plan.model import Object, deletion_of, from_timestamp, name_of, namespace_of, to_timestamp, uid_of
from rm_operator.plan.rollout import Bounds, Count
from rm_operator.plan.state import State
from rm_operator.plan.trouble import trouble

PATIENCE: Final = timedelta(seconds=30)
"""So long a device that may recover by itself may take for that, and so old a pod is at least before it is given up."""
ANNOTATION_SINCE: Final = f"{names.GROUP}/device-unhealthy-since"
"""On a serving pod: when its device was first seen to be unhealthy. Gone once the device is well."""

_HOPELESS: Final = frozenset({DeviceFailure.NEEDS_RESET, DeviceFailure.DEAD})
_HELPS: Final = {
    DeviceFailure.TRANSIENT: "the device may recover by itself",
    DeviceFailure.NEEDS_RESET: "reset the device",
    DeviceFailure.DEAD: "the device has to be exchanged",
    DeviceFailure.UNKNOWN: "look at the device and its driver",
}
# Of pods that are equally unready or ready, a ReplicaSet ends those first whose end costs least; others cost 0.
_DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
_SHOWN: Final = 3


def is_marked(pod: Object) -> bool:
    """True of a pod whose device was seen to be unhealthy: it holds none that can be allocated."""
    return ANNOTATION_SINCE in (pod["metadata"].get("annotations") or {})


def due(pod: Object, use: UnhealthyUse) -> datetime | None:
    """From when on the pod is to be replaced; None until it is marked.

    One that serves, at once if its device will not recover by itself, otherwise after ``PATIENCE``. One that does not,
    at once, unless it was begun just now: that it was given such a device says that the kubelet does not know yet.
    """
    since = _since(pod)
    if since is None:
        return None
    if not serving.is_ready(pod):
        return max(since, from_timestamp(pod["metadata"]["creationTimestamp"]) + PATIENCE)
    return since if use.failure in _HOPELESS else since + PATIENCE


def replicas(state: State, pods: Sequence[Object], accelerator: str, *, asked: int, wanted: int) -> int:
    """Replicas that the Deployment of a variant is to be asked for, so that pods on sick devices are replaced.

    ``pods`` are those of the variant that live, on ``accelerator``; ``asked`` is what the Deployment has now, and
    ``wanted`` what it is to have in the end. Decides which of them the Service selects, and which are deleted.
    """
    spec, sick = state.spec, _due(state, pods)
    beyond = max(asked, len(pods)) - wanted
    begun = min(len(sick), max(beyond, sum(not serving.is_active(pod) for pod in sick)))
    room = give_up(state, sick[begun:], accelerator, missing=asked - len(pods))
    ready = list(filter(serving.is_ready, sick[begun:]))
    going = [*sick[:begun], *ready[:room]]
    coming = [pod for pod in pods if not serving.is_ready(pod) and pod not in sick] if going else []
    why = f": {trouble(coming, None).message}" if coming else ""
    state.fates |= {uid_of(pod): f"another pod takes over{why}" for pod in going}
    for pod in ready[len(going) - begun :]:
        state.fates[uid_of(pod)] = f"it serves on, as {_no_other(state, pod, accelerator)}"

    serve = sum(map(serving.serves, pods))
    serve_still = sum(map(serving.serves, going))
    new = Count(max(0, asked - len(going)), serve - serve_still)
    # One that ends first would leave no device to the next: whatever the strategy is, the next comes first.
    surge = spec.rollout.max_surge or 1
    step = rollout.advance(new, [Count(len(going), serve_still)], Bounds(wanted, 0, surge))
    leaving = going[: len(going) - step.old[0]]
    for pod in pods:
        state.select(pod, active=pod not in leaving)
    replicas = step.new + step.old[0]
    # The cheapest pod ends first: as long as requests come to one that leaves, nothing may shrink.
    drains = sum(name_of(pod) in state.snapshot.routed_pods for pod in leaving)
    replicas = max(asked, replicas + drains) if drains else replicas
    if going:
        state.replacing = (accelerator, replicas * serving.devices_of(pods))
    return replicas


def give_up(state: State, pods: Sequence[Object], accelerator: str, *, missing: int) -> int | None:
    """Deletes those of ``pods`` that do not serve for their device's sake, as far as there are other devices.

    Pods that were asked for and are not there yet, so many are ``missing``, will take devices that are free now.
    Returns for how many pods devices are left then; None without a limit.
    """
    room = _room(state, accelerator, missing, serving.devices_of(pods))
    for pod in _due(state, pods):
        if serving.is_ready(pod):
            continue
        if room == 0:
            state.fates[uid_of(pod)] = _no_other(state, pod, accelerator)
            continue
        room = room - 1 if room is not None else None
        state.fates[uid_of(pod)] = "it is ended, and another one begins in its place"
        state.delete.append(deletion_of(pod))
    return room


def tell(state: State) -> None:
    """Writes on the pods what was decided on them, and says in the conditions which devices are not well."""
    snapshot = state.snapshot
    ailing = []
    for pod in snapshot.pods:
        if not serving.is_live(pod) or not serving.variant_label(pod):
            continue
        use = snapshot.sick.get(uid_of(pod))
        since = None if use is None else _since(pod) or state.now
        active = state.active.get(uid_of(pod), serving.is_active(pod))
        if active != serving.is_active(pod) or (since is None) == is_marked(pod) or (since and not _since(pod)):
            state.apply.insert(0, labelled(pod, active=active, since=since))
        if use is not None:
            ailing.append((pod, use))
            moment = due(pod, use)
            if moment is not None and moment > state.now:
                state.requeue((moment - state.now).total_seconds())
    _say(state, sorted(ailing, key=lambda each: name_of(each[0])))


def labelled(pod: Object, *, active: bool, since: datetime | None = None) -> dict[str, Any]:
    """The pod as the Service is to select it, or not, and since when its device is unhealthy."""
    metadata: dict[str, Any] = {
        "name": name_of(pod),
        "namespace": namespace_of(pod),
        "uid": uid_of(pod),
        # Stated again, since a child of somebody else is not touched: it is our ReplicaSet's.
        "ownerReferences": pod["metadata"].get("ownerReferences") or [],
        "labels": {names.LABEL_ACTIVE: "true" if active else "false"},
    }
    annotations = {} if active else {_DELETION_COST: "-1"}
    if since is not None:
        annotations[ANNOTATION_SINCE] = to_timestamp(since)
    if annotations:
        metadata["annotations"] = annotations
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def told(state: State, pod: Object, use: UnhealthyUse) -> str:
    """What is wrong with the device of a pod, and what becomes of the pod."""
    moment = due(pod, use)
    waits = moment is None or moment > state.now
    otherwise = "it is replaced if that lasts" if waits else "it is replaced once the rollout is over"
    cause = f": {use.cause}" if use.cause else ""
    where = f"{use.device} of node {use.node}"
    return f"{name_of(pod)} has {where}, which is unhealthy ({use.failure}{cause}); " + state.fates.get(
        uid_of(pod), otherwise
    )


def _no_other(state: State, pod: Object, accelerator: str) -> str:
    helps = _HELPS[state.snapshot.sick[uid_of(pod)].failure]
    return f"no other device of {accelerator} is free: {helps}, or release one"


def _due(state: State, pods: Sequence[Object]) -> list[Object]:
    """Those whose device is not well, and has not been for long enough, in the order in which they are replaced."""
    found = []
    for pod in pods:
        use = state.snapshot.sick.get(uid_of(pod))
        moment = None if use is None else due(pod, use)
        if use is not None and moment is not None and moment <= state.now:
            found.append(
                (serving.is_active(pod), serving.is_ready(pod), use.failure not in _HOPELESS, name_of(pod), pod)
            )
    # Who is on its way out goes first, then who does not serve.
    return [pod for *_, pod in sorted(found, key=lambda each: each[:-1])]


def _room(state: State, accelerator: str, missing: int, each: int) -> int | None:
    """Further pods of ``each`` devices that the kind has devices for, ``missing`` of which were asked for already.

    None without a limit.
    """
    for view in state.snapshot.accelerators:
        if view.name == accelerator:
            return None if view.spare is None else max(0, view.spare // each - max(0, missing))
    return 0


def _since(pod: Object) -> datetime | None:
    written = (pod["metadata"].get("annotations") or {}).get(ANNOTATION_SINCE)
    try:
        moment = from_timestamp(written) if written else None
    except ValueError:
        return None
    # Whoever wrote something else into it did not mean a moment that can be reckoned with.
    return moment if moment is not None and moment.tzinfo is not None and moment.year < MAXYEAR else None


def _say(state: State, ailing: Sequence[tuple[Object, UnhealthyUse]]) -> None:
    conditions = state.conditions
    if ailing:
        further = f"; and {len(ailing) - _SHOWN} more" if len(ailing) > _SHOWN else ""
        message = ". ".join(told(state, pod, use) for pod, use in ailing[:_SHOWN]) + further
        conditions.set(ConditionType.DEVICES_HEALTHY, False, Reason.DEVICE_UNHEALTHY, message)
    elif conditions.before(ConditionType.DEVICES_HEALTHY) is not None:
        message = "the devices of all pods are well"
        conditions.set(ConditionType.DEVICES_HEALTHY, True, Reason.ALL_HEALTHY, message)
