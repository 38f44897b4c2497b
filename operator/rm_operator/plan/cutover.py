"""The step that runs the pods: the wanted variant comes, and earlier ones go as it takes over.

How many pods each variant is asked for is decided by ``rollout``; here the counts are read from the cluster, and the
answer is turned into Deployments and labels. A pod that goes is taken out of the Service first, and its Deployment
shrinks once no EndpointSlice names the pod any more; it then ends on its own time. Nothing is remembered but what the
objects say, so a change of mind in the middle, or a death of the operator, is just another place to go on from.
Where only one variant runs, pods whose device is not well are replaced by others of it (``replacement``).
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds.model_deployment import Rollout, RolloutStrategy

from rm_operator.plan import building, rejected, replacement, rollout, serving
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
from rm_operator.plan.rollout import Bounds, Count, Step
from rm_operator.plan.state import State
from rm_operator.plan.trouble import Trouble, trouble


def serve(state: State) -> bool:
    """Brings the wanted pods, and lets earlier variants go; True once the wanted pods answer."""
    snapshot, spec = state.snapshot, state.spec
    variant = _wanted_variant(state)
    state.variant = variant
    known = {name_of(each): each for each in _running(state)}
    current = known.pop(variant.name, None)
    old = sorted(known.values(), key=lambda each: (each["metadata"].get("creationTimestamp", ""), name_of(each)))
    mine = [pod for pod in snapshot.pods_of(variant.inputs_hash) if serving.is_live(pod)]
    mine_now = _count(state, variant.inputs_hash, current)
    if old:
        counts = [_count(state, serving.variant_label(each), each) for each in old]
        step = rollout.advance(mine_now, counts, Bounds.of(spec.replicas, spec.rollout))
        # An earlier variant that is wanted again may have been on its way out.
        for pod in mine:
            state.select(pod, active=True)
        replacement.give_up(state, mine, variant.accelerator, missing=mine_now.asked - len(mine))
    else:
        step = Step(replacement.replicas(state, mine, variant.accelerator, asked=mine_now.asked), ())
    revision = snapshot.revisions.get(variant.name)
    state.apply += serving.children(variant, revision, snapshot.settings, replicas=step.new)
    kept = {variant.name} | {
        name_of(each) for each, pods in zip(old, step.old, strict=True) if _shrink(state, each, pods)
    }
    state.delete += [deletion_of(each) for name, each in snapshot.revisions.items() if name not in kept]

    ready = sum(map(serving.serves, mine))
    if ready >= spec.replicas:
        message = (
            f"{ready} of {spec.replicas} pods ready on {variant.accelerator}" if spec.replicas else "scaled to zero"
        )
        state.conditions.set(ConditionType.AVAILABLE, True, Reason.SERVING, _with_refusals(state, message))
        return True
    _say_what_is_missing(state, variant, current, mine, old)
    return False


def hold(state: State) -> None:
    """Keeps what runs running, and scaled, while it is not known what should take its place."""
    variants = sorted(_running(state), key=lambda each: (each["metadata"].get("creationTimestamp", ""), name_of(each)))
    counts = [_count(state, serving.variant_label(each), each) for each in variants]
    held = rollout.hold(counts, state.spec.replicas)
    for each, count, replicas in zip(variants, counts, held, strict=True):
        pods = [pod for pod in state.snapshot.pods_of(serving.variant_label(each)) if serving.is_live(pod)]
        if len(variants) == 1:
            accelerator = labels_of(each).get(names.LABEL_ACCELERATOR, "")
            resize(state, each, replacement.replicas(state, pods, accelerator, asked=count.asked))
            continue
        resize(state, each, replicas)
        for pod in pods:
            state.select(pod, active=True)


def resize(state: State, live: Object, replicas: int) -> None:
    """Asks for ``replicas`` pods of a variant that runs already."""
    snapshot = state.snapshot
    revision = snapshot.revisions.get(name_of(live))
    state.apply.append(serving.resized(live, revision, snapshot.deployment, state.spec, replicas=replicas))


def _running(state: State) -> list[Object]:
    return [each for each in state.snapshot.variants if not is_deleting(each)]


def _wanted_variant(state: State) -> serving.Variant:
    assert state.placement is not None
    assert state.artifact_object is not None
    assert state.facts is not None
    accelerator = next(view for view in state.snapshot.accelerators if view.name == state.placement.chosen)
    return serving.Variant(
        deployment=state.snapshot.deployment,
        spec=state.spec,
        accelerator=accelerator.name,
        accelerator_spec=accelerator.spec,
        artifact=name_of(state.artifact_object),
        artifact_namespace=state.artifact_namespace,
        artifact_spec=building.spec_of(state.artifact_object),
        location=str((state.artifact_object["status"])["location"]),
        facts=state.facts,
        versions=accelerator.versions,
        store=state.snapshot.settings.store,
    )


def _count(state: State, label: str, deployment: Object | None) -> Count:
    if deployment is None:
        return Count(0, 0)
    asked = int(deployment["spec"].get("replicas", 1))
    return Count(asked, sum(map(serving.serves, state.snapshot.pods_of(label))))


def _shrink(state: State, old: Object, kept: int) -> bool:
    """Lets all but ``kept`` pods of an old variant go; False if the variant goes with the last of them."""
    snapshot = state.snapshot
    its_pods = [pod for pod in snapshot.pods_of(serving.variant_label(old)) if serving.is_live(pod)]
    # The order in which the ReplicaSet will end them.
    well = {uid_of(pod): uid_of(pod) not in snapshot.sick for pod in its_pods}
    its_pods.sort(key=lambda pod: (serving.is_ready(pod), serving.is_active(pod), well[uid_of(pod)], name_of(pod)))
    surplus = max(0, len(its_pods) - kept)
    for position, pod in enumerate(its_pods):
        state.select(pod, active=position >= surplus)
    draining = sum(name_of(pod) in snapshot.routed_pods for pod in its_pods[:surplus])
    replicas = min(int(old["spec"].get("replicas", 1)), kept + draining)
    if replicas > 0:
        resize(state, old, replicas)
        return True
    state.delete.append(deletion_of(old))
    return False


def _say_what_is_missing(
    state: State, variant: serving.Variant, current: Object | None, mine: Sequence[Object], old: Sequence[Object]
) -> None:
    spec, snapshot = state.spec, state.snapshot
    ready = sum(map(serving.serves, mine))
    # Those that ended, too: a pod that the kubelet refused a device is replaced at once, and only its remains tell.
    unready = [
        pod
        for pod in snapshot.pods_of(variant.inputs_hash)
        if not serving.is_ready(pod) and not is_deleting(pod) and not _long_refused(state, pod)
    ]
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
    due = _last_progress(state, current, mine) + limit
    if state.now >= due:
        late = f"no further pod became ready within {spec.rollout.deadline_seconds} seconds, until {to_timestamp(due)}"
        message = f"{late}; {message}"
        state.conditions.set(ConditionType.AVAILABLE, False, Reason.ROLLOUT_TIMED_OUT, message)
        state.stall(Reason.ROLLOUT_TIMED_OUT, message)
        return
    state.requeue((due - state.now).total_seconds())
    state.conditions.set(ConditionType.AVAILABLE, False, why.reason, message)


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
    variant: serving.Variant,
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


def _last_progress(state: State, current: Object | None, mine: Iterable[Object]) -> datetime:
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
    if current is not None and "creationTimestamp" in current["metadata"]:
        moments.append(current["metadata"]["creationTimestamp"])
    since = state.conditions.before(ConditionType.RECONCILING)
    if since is not None:
        moments.append(since["lastTransitionTime"])
    elif not state.conditions.said_before(ConditionType.STALLED, Reason.ROLLOUT_TIMED_OUT) or not moments:
        return state.now
    return max(map(from_timestamp, moments))
