"""The step that runs the pods: the wanted variant comes, and earlier ones go as it takes over.

How many pods each variant is asked for is decided by ``rollout``; here the counts are read from the cluster, and the
answer is turned into Deployments and labels. A pod that goes is taken out of the Service first, and its Deployment
shrinks once no EndpointSlice names the pod any more; it then ends on its own time. Nothing is remembered but what the
objects say, so a change of mind in the middle, or a death of the operator, is just another place to go on from.
Where only wanted variants run, pods whose device is not well are replaced by others of theirs (``replacement``).

Where the nodes have several versions that need an artifact each, one variant is wanted for each class of nodes that was
given replicas (``classes``) and whose artifact is there. They count as one: the bounds of a rollout are for their sum.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rm_api import names
from rm_api.accelerator_types import AcceleratorType
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds.model_deployment import Rollout, RolloutStrategy

from rm_operator.plan import endpoint, rejected, replacement, rollout, serving, startup
from rm_operator.plan.artifact_spec import spec_of
from rm_operator.plan.device_class import requested_resource
from rm_operator.plan.model import (
    Object,
    deletion_of,
    from_timestamp,
    is_deleting,
    labels_of,
    name_of,
    to_timestamp,
    uid_of,
)
from rm_operator.plan.rejected import rejection_of
from rm_operator.plan.rollout import Bounds, Count
from rm_operator.plan.state import Given, State
from rm_operator.plan.trouble import Trouble, is_stuck, trouble


@dataclass
class _Part:
    """A variant that is wanted, of several where classes of nodes have an artifact each."""

    variant: serving.AnyVariant
    wanted: int
    """Pods that are to serve in the end."""
    current: Object | None
    """Its Deployment."""
    pods: list[Object]
    """Those that live."""
    count: Count
    spare: int
    """Further pods of it that find their devices."""

    @property
    def surplus(self) -> int:
        """Pods that are asked for beyond those that are wanted."""
        return max(0, self.count.asked - self.wanted)

    @property
    def is_settled(self) -> bool:
        """All of its pods serve, and no others are asked for."""
        return self.count.asked == self.wanted and self.count.serving >= self.wanted


def serve(state: State) -> bool:
    """Brings the wanted pods, and lets earlier variants go; True once the wanted pods answer."""
    snapshot, spec = state.snapshot, state.spec
    known = {name_of(each): each for each in _running(state)}
    parts = _parts(state, known)
    state.variants = tuple(part.variant for part in parts)
    old = sorted(known.values(), key=lambda each: (each["metadata"].get("creationTimestamp", ""), name_of(each)))
    asked, left = _next(state, parts, old)
    for part, replicas in zip(parts, asked, strict=True):
        revision = snapshot.revisions.get(part.variant.name)
        state.apply += serving.children(part.variant, revision, snapshot.settings, replicas=replicas)
    if state.replacing is not None:
        devices = serving.devices_of(pod for part in parts for pod in part.pods)
        state.replacing = state.replacing[0], sum(asked) * devices
    kept = {part.variant.name for part in parts} | {
        name_of(each) for each, pods in zip(old, left, strict=True) if _shrink(state, each, pods)
    }
    state.delete += [deletion_of(each) for name, each in snapshot.revisions.items() if name not in kept]

    ready = sum(serving.serves(pod) for part in parts for pod in part.pods)
    if ready >= spec.replicas:
        where = parts[0].variant.accelerator
        message = f"{ready} of {spec.replicas} pods ready on {where}" if spec.replicas else "scaled to zero"
        state.conditions.set(ConditionType.AVAILABLE, True, Reason.SERVING, _with_refusals(state, message))
        return True
    _say_what_is_missing(state, parts, old)
    return False


def _parts(state: State, known: dict[str, Object]) -> list[_Part]:
    """The variants that are wanted now; their Deployments are taken out of ``known``."""
    parts = []
    given = [share for share in state.shares if share.ready and share.replicas] or state.shares[:1]
    for share in given:
        variant = _wanted_variant(state, share)
        current = known.pop(variant.name, None)
        mine = [pod for pod in state.snapshot.pods_of(variant.inputs_hash) if serving.is_live(pod)]
        count = _count(state, variant.inputs_hash, current)
        spare = share.replicas if share.spare is None else share.spare
        parts.append(_Part(variant, share.replicas, current, mine, count, spare))
    return parts


def _next(state: State, parts: Sequence[_Part], old: Sequence[Object]) -> tuple[list[int], tuple[int, ...]]:
    """Pods that the wanted variants, and the old ones, are asked for next.

    What a class has beyond its share counts as an old variant, as long as other classes have to take it over.
    """
    unsettled = [part for part in parts if not part.is_settled]
    if not old and not any(part.surplus and unsettled != [part] for part in parts):
        return [_in_place(state, part, alone=unsettled in ([], [part])) for part in parts], ()
    several = len(parts) > 1
    # Of a single one there is nobody to take over what it has too much of.
    stay = [_staying(part, parts) if several else part.count for part in parts]
    new = Count(sum(each.asked for each in stay), sum(each.serving for each in stay))
    leaving = [part for part in reversed(parts) if several and part.surplus]
    going = [
        *(_count(state, serving.variant_label(each), each) for each in old),
        *(Count(part.surplus, max(0, min(part.count) - part.wanted)) for part in leaving),
    ]
    step = rollout.advance(new, going, Bounds.of(state.spec.replicas, state.spec.rollout))
    stays = {part.variant.name: pods for part, pods in zip(leaving, step.old[len(old) :], strict=True)}
    more = _spread(step.new - new.asked, parts, stay) if several else [step.new - new.asked]
    asked = []
    for part, (pods, _), further in zip(parts, stay, more, strict=True):
        if part.variant.name in stays and part.current is not None:
            asked.append(_let_go(state, part.current, part.pods, pods + stays[part.variant.name]))
            continue
        # An earlier variant that is wanted again may have been on its way out.
        for pod in part.pods:
            state.select(pod, active=True)
        replacement.give_up(state, part.pods, part.variant.accelerator, missing=part.count.asked - len(part.pods))
        asked.append(pods + further)
    return asked, step.old[: len(old)]


def _staying(part: _Part, parts: Sequence[_Part]) -> Count:
    """Pods of one of several that count as new, without those for which there are devices only in another class."""
    asked, serving_ = (min(each, part.wanted) for each in part.count)
    elsewhere = sum(min(each.spare, max(0, each.wanted - each.count.asked)) for each in parts if each is not part)
    stuck = min(sum(map(is_stuck, part.pods)), elsewhere, asked - serving_)
    return Count(asked - stuck, serving_)


def _spread(pods: int, parts: Sequence[_Part], stay: Sequence[Count]) -> list[int]:
    """Further pods of each, ``pods`` in all: first where there are devices."""
    lacking = [part.wanted - each.asked for part, each in zip(parts, stay, strict=True)]
    found = [0] * len(parts)
    for limit in ([part.spare for part in parts], lacking):
        for index, most in enumerate(limit):
            further = min(pods, lacking[index] - found[index], max(0, most - found[index]))
            found[index] += further
            pods -= further
    return found


def _in_place(state: State, part: _Part, *, alone: bool) -> int:
    """Pods of a wanted variant, where nothing goes from one to another; ``alone``: all others are settled."""
    accelerator, asked = part.variant.accelerator, part.count.asked
    if alone:
        return replacement.replicas(state, part.pods, accelerator, asked=asked, wanted=part.wanted)
    # Its pods on devices that are not well serve on until the others have come to rest.
    for pod in part.pods:
        state.select(pod, active=True)
    replacement.give_up(state, part.pods, accelerator, missing=asked - len(part.pods))
    return part.wanted


def hold(state: State) -> None:
    """Keeps what runs running, and scaled, while it is not known what should take its place."""
    variants = sorted(_running(state), key=lambda each: (each["metadata"].get("creationTimestamp", ""), name_of(each)))
    counts = [_count(state, serving.variant_label(each), each) for each in variants]
    held = rollout.hold(counts, state.spec.replicas)
    for each, count, replicas in zip(variants, counts, held, strict=True):
        pods = [pod for pod in state.snapshot.pods_of(serving.variant_label(each)) if serving.is_live(pod)]
        if len(variants) == 1:
            accelerator = labels_of(each).get(names.LABEL_ACCELERATOR, "")
            wanted = state.spec.replicas
            resize(state, each, replacement.replicas(state, pods, accelerator, asked=count.asked, wanted=wanted))
            continue
        resize(state, each, replicas)
        for pod in pods:
            state.select(pod, active=True)
    if _answers(state):
        serve_still = sum(map(serving.serves, state.snapshot.pods))
        message = f"{serve_still} of {state.spec.replicas} pods ready; they stay until others can take over"
        state.conditions.set(ConditionType.AVAILABLE, True, Reason.SERVING, message)


def resize(state: State, live: Object, replicas: int) -> None:
    """Asks for ``replicas`` pods of a variant that runs already."""
    snapshot = state.snapshot
    revision = snapshot.revisions.get(name_of(live))
    state.apply.append(serving.resized(live, revision, snapshot.deployment, state.spec, replicas=replicas))


def _running(state: State) -> list[Object]:
    return [each for each in state.snapshot.variants if not is_deleting(each)]


def _wanted_variant(state: State, share: Given) -> serving.AnyVariant:
    assert state.placement is not None
    accelerator = next(view for view in state.snapshot.accelerators if view.name == state.placement.chosen)
    if accelerator.spec.type is AcceleratorType.REMOTE:
        return endpoint.EndpointVariant(
            state.snapshot.deployment, state.spec, accelerator.name, accelerator.spec, state.snapshot.settings
        )
    assert share.artifact is not None
    assert state.facts is not None
    return serving.Variant(
        deployment=state.snapshot.deployment,
        spec=state.spec,
        accelerator=accelerator.name,
        accelerator_spec=accelerator.spec,
        artifact=name_of(share.artifact),
        artifact_namespace=share.namespace,
        artifact_spec=spec_of(share.artifact),
        location=str((share.artifact["status"])["location"]),
        facts=state.facts,
        versions=accelerator.versions,
        store=state.snapshot.settings.store,
        slowest_start=startup.slowest_start(share.artifact),
    )


def _count(state: State, label: str, deployment: Object | None) -> Count:
    if deployment is None:
        return Count(0, 0)
    asked = int(deployment["spec"].get("replicas", 1))
    return Count(asked, sum(map(serving.serves, state.snapshot.pods_of(label))))


def _shrink(state: State, old: Object, kept: int) -> bool:
    """Lets all but ``kept`` pods of an old variant go; False if the variant goes with the last of them."""
    its_pods = [pod for pod in state.snapshot.pods_of(serving.variant_label(old)) if serving.is_live(pod)]
    replicas = _let_go(state, old, its_pods, kept)
    if replicas > 0:
        resize(state, old, replicas)
        return True
    state.delete.append(deletion_of(old))
    return False


def _let_go(state: State, live: Object, its_pods: Sequence[Object], kept: int) -> int:
    """Takes all but ``kept`` pods out of the Service; the replicas that its Deployment is asked for meanwhile."""
    snapshot = state.snapshot
    # The order in which the ReplicaSet will end them.
    well = {uid_of(pod): uid_of(pod) not in snapshot.sick for pod in its_pods}
    ordered = sorted(
        its_pods, key=lambda pod: (serving.is_ready(pod), serving.is_active(pod), well[uid_of(pod)], name_of(pod))
    )
    surplus = max(0, len(ordered) - kept)
    for position, pod in enumerate(ordered):
        state.select(pod, active=position >= surplus)
    draining = sum(name_of(pod) in snapshot.routed_pods for pod in ordered[:surplus])
    return min(int(live["spec"].get("replicas", 1)), kept + draining)


def _say_what_is_missing(state: State, parts: Sequence[_Part], old: Sequence[Object]) -> None:
    spec, snapshot, variant = state.spec, state.snapshot, parts[0].variant
    mine = [pod for part in parts for pod in part.pods]
    ready = sum(map(serving.serves, mine))
    # Those that ended, too: a pod that the kubelet refused a device is replaced at once, and only its remains tell.
    unready = [
        pod
        for part in parts
        for pod in snapshot.pods_of(part.variant.inputs_hash)
        if not serving.is_ready(pod) and not is_deleting(pod) and not _long_refused(state, pod)
    ]
    given = sum(part.wanted for part in parts)
    if not old and not unready and given < spec.replicas and ready >= given:
        # As ArtifactReady says in detail: that takes as long as it may.
        message = f"{ready} of {spec.replicas} pods ready: the others wait for their artifact"
        _lack(state, Reason.WAITING_FOR_ARTIFACT, message)
        return
    why = trouble(unready, requested_resource(variant.accelerator_spec))
    ailing = [pod for pod in unready if serving.is_live(pod) and uid_of(pod) in snapshot.sick]
    if ailing:
        first = min(ailing, key=name_of)
        why = Trouble(Reason.DEVICE_UNHEALTHY, replacement.told(state, first, snapshot.sick[uid_of(first)]))
    earlier = [pod for each in old for pod in snapshot.pods_of(serving.variant_label(each))]
    if old:
        why = _in_a_cut_over(why, variant, old, [pod for pod in earlier if not serving.is_live(pod)], spec.rollout)
    serving_still = sum(map(serving.serves, earlier))
    meanwhile = f"; {serving_still} pods of the previous variant keep serving" if serving_still else ""
    outside = "".join(f"; {said}" for pod in unready if (said := snapshot.used_outside.get(uid_of(pod))) is not None)
    message = _with_refusals(state, f"{ready} of {spec.replicas} pods ready: {why.message}{outside}{meanwhile}")

    limit = timedelta(seconds=spec.rollout.deadline_seconds)
    due = _last_progress(state, [part.current for part in parts if part.current is not None], mine) + limit
    if state.now >= due:
        late = f"no further pod became ready within {spec.rollout.deadline_seconds} seconds, until {to_timestamp(due)}"
        message = f"{late}; {message}"
        _lack(state, Reason.ROLLOUT_TIMED_OUT, message)
        state.stall(Reason.ROLLOUT_TIMED_OUT, message)
        return
    state.requeue((due - state.now).total_seconds())
    _lack(state, why.reason, message)


def _lack(state: State, reason: Reason, message: str) -> None:
    """Not all of the wanted pods answer. It is available if as many as a rollout promises do, old or new."""
    state.lacking = reason, message
    if _answers(state):
        state.conditions.set(ConditionType.AVAILABLE, True, Reason.SERVING, message)
    else:
        state.conditions.set(ConditionType.AVAILABLE, False, reason, message)


def _answers(state: State) -> bool:
    floor = Bounds.of(state.spec.replicas, state.spec.rollout).floor
    return sum(map(serving.serves, state.snapshot.pods)) >= max(1, floor)


def _long_refused(state: State, pod: Object) -> bool:
    """True if a kubelet refused the pod a while ago: what keeps those from being ready that came after it is news."""
    rejection = rejection_of(pod)
    if rejection is None:
        return False
    until = rejection.at + rejected.BATCH_SECONDS
    if until > state.now:
        state.requeue((until - state.now).total_seconds())
    return until <= state.now


def _with_refusals(state: State, message: str) -> str:
    return "; ".join([message, *(said for said in state.refused if said not in message)])


def _in_a_cut_over(
    why: Trouble,
    variant: serving.AnyVariant,
    old: Sequence[Object],
    leaving: Sequence[Object],
    settings: Rollout,
) -> Trouble:
    """What a lack of pods means while old ones still hold their devices."""
    if why.reason is Reason.STARTING:
        return Trouble(Reason.ROLLING_OUT, why.message)
    if why.reason is not Reason.NO_DEVICE:
        return why
    if leaving:
        return Trouble(Reason.ROLLING_OUT, f"{why.message}; {len(leaving)} pods that had one are ending")
    if settings.strategy is RolloutStrategy.IN_PLACE:
        return why
    resource = requested_resource(variant.accelerator_spec)
    helps = f"it goes on when a {resource} is free"
    if any(_requests(each, str(resource)) for each in old):
        helps += ", or with rollout.strategy InPlace, which ends old pods first"
    return Trouble(Reason.NO_SPARE_DEVICE, f"{why.message}; {helps}")


def _requests(deployment: Object, resource: str) -> bool:
    containers = deployment["spec"]["template"]["spec"].get("containers") or []
    return any(resource in ((each.get("resources") or {}).get("limits") or {}) for each in containers)


def _last_progress(state: State, current: Iterable[Object], mine: Iterable[Object]) -> datetime:
    """When the wanted variant last came closer: it was made, a pod of it that is ready became so, or work began.

    Pods that come and go do not count, and one that became ready counts as long as it stays so: a variant that crashes
    again and again makes no progress. Since when work goes on is said by Reconciling, which is there from a change of
    the spec until all is done or Stalled.
    """
    moments = [
        entry["lastTransitionTime"]
        for pod in mine
        if serving.is_ready(pod)
        for entry in pod["status"]["conditions"]
        if entry["type"] == "Ready" and entry.get("lastTransitionTime")
    ]
    moments += [each["metadata"]["creationTimestamp"] for each in current if "creationTimestamp" in each["metadata"]]
    since = state.conditions.before(ConditionType.RECONCILING)
    if since is not None:
        moments.append(since["lastTransitionTime"])
    elif not state.conditions.said_before(ConditionType.STALLED, Reason.ROLLOUT_TIMED_OUT) or not moments:
        return state.now
    return max(map(from_timestamp, moments))
