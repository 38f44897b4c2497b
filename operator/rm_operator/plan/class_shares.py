"""What there is of each class of nodes for a deployment, and what of the deployment is given to it by ``classes``."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

from rm_operator.plan import compatibility, serving
from rm_operator.plan.artifact_spec import spec_of
from rm_operator.plan.classes import Option, Share, split
from rm_operator.plan.compatibility import NodeClass, Room
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rm_operator.plan.state import State
from rm_operator.plan.trouble import is_stuck

LOOK_AGAIN_SECONDS: Final = 10
"""While pods wait for a device that another class may have by now."""
_MOST_CLASSES: Final = 8


def rooms(view: ProfileView, chosen: AcceleratorView, state: State) -> dict[NodeClass, Room]:
    """The classes of the accelerator's nodes; of very many, those of the most nodes and those that it has now."""
    found = compatibility.rooms(view.spec.compatibility, chosen.versions, _devices_each(state))
    before = _before(view.name, state)
    ranked = sorted(found, key=lambda each: (each in before, found[each].nodes, each.drivers, each.sdks), reverse=True)
    return {each: found[each] for each in ranked[:_MOST_CLASSES]}


def shares(
    profile: str,
    rooms: Mapping[NodeClass, Room],
    ready: Collection[NodeClass],
    failed: Collection[NodeClass],
    state: State,
) -> list[Share]:
    """Gives the replicas to classes, whose artifacts are ``ready``, or ``failed``, or neither yet."""
    each = _devices_each(state)
    held, stuck = Counter[tuple[NodeClass, str, str]](), Counter[tuple[NodeClass, str]]()
    for pod in state.snapshot.pods if len(rooms) > 1 else ():
        artifact = state.snapshot.artifact_of(pod)
        if artifact is None or not serving.is_live(pod):
            continue
        place = compatibility.class_of(spec_of(artifact)), serving.variant_label(pod)
        devices = serving.devices_of([pod])
        node = (pod.get("spec") or {}).get("nodeName")
        if node:
            held[*place, node] += devices
        # One that needs more devices than a replica is to have says nothing about fewer.
        stuck[place] += devices <= each and is_stuck(pod)
    if stuck.total():
        # Devices that become free there wake nobody who has found a place.
        state.requeue(LOOK_AGAIN_SECONDS)
    options = []
    for for_, room in rooms.items():
        most = max(
            (place for place in stuck if place[0] == for_), key=lambda place: (stuck[place], place[1]), default=None
        )
        options.append(
            Option(
                for_,
                room,
                for_ in ready,
                for_ in failed,
                held=_whole({place: devices for place, devices in held.items() if place[0] == for_}, each),
                stuck=0 if most is None else stuck[most],
                beside=_whole({place: devices for place, devices in held.items() if place[:2] == most}, each),
            )
        )
    return split(state.spec.replicas, options, _before(profile, state))


def _before(profile: str, state: State) -> dict[NodeClass, int]:
    """What was given to classes last, of this profile."""
    snapshot, found = state.snapshot, dict[NodeClass, int]()
    status = snapshot.deployment.get("status") or {}
    for share in status.get("classes") or [{**status, "replicas": state.spec.replicas}]:
        artifact = snapshot.artifact_at(share.get("artifactNamespace"), share.get("artifact") or "")
        if artifact is not None and (spec := spec_of(artifact)).profile == profile:
            found[compatibility.class_of(spec)] = int(share.get("replicas", 0))
    return found


def _devices_each(state: State) -> int:
    """Devices that a replica is to have."""
    assert state.placement is not None
    assert state.placement.bucket is not None
    return state.placement.bucket.devices


def _whole(held: Mapping[tuple[NodeClass, str, str], int], each: int) -> int:
    """Replicas of so many devices ``each`` that devices suffice for, which are by class, variant and node."""
    on_nodes = Counter[str]()
    for (_, _, node), devices in held.items():
        on_nodes[node] += devices
    return sum(devices // each for devices in on_nodes.values())
