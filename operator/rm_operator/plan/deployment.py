"""ModelDeployment: resolve, place, build, serve, route. The order of ``_STEPS`` is the life of a deployment.

Each step states its condition and may stop the chain; what runs already goes on running whatever a step says, until a
successor has taken over. One status comes out of it, with Ready rolled up from the first step that is not done.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import ModelDeploymentSpec
from rm_api.kinds.model_deployment import ModelFacts
from rm_api.placement import Candidate, ClassShare, Placement, VariantStatus

from rm_operator.plan import (
    autoscaler,
    building,
    cutover,
    endpoint,
    in_use,
    rejected,
    replacement,
    resolve,
    routing,
    serving,
    suspension,
)
from rm_operator.plan.artifact_spec import spec_of
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.memo import Memo, Specs
from rm_operator.plan.model import Plan, deletion_of, is_deleting, labels_of, name_of, namespace_of
from rm_operator.plan.placement import PlacementRequest, place
from rm_operator.plan.serving_report import observed_device
from rm_operator.plan.state import DeploymentSnapshot, State

__all__ = ["DeploymentSnapshot", "plan"]

_spec_of = Specs(ModelDeploymentSpec, most=64)
_facts_status: Memo[[ModelFacts], dict[str, Any]] = Memo(ModelFacts.to_wire, most=64)
_candidate: Memo[[Candidate], dict[str, Any]] = Memo(Candidate.to_wire, most=1024)


def plan(snapshot: DeploymentSnapshot, now: datetime) -> Plan:
    """Decides what is next for one ModelDeployment."""
    if is_deleting(snapshot.deployment):
        return Plan()
    state = State(
        snapshot,
        _spec_of(snapshot.deployment),
        Conditions(snapshot.deployment, now),
        now,
    )
    state.delete += [deletion_of(leftover) for leftover in snapshot.leftovers]
    said_before = (snapshot.deployment.get("status") or {}).get("conditions") or ()
    clearing = rejected.clear(snapshot.pods, said_before, now, removals=snapshot.removals)
    state.refused = clearing.said
    state.delete += clearing.delete
    state.requeue(clearing.after)
    if state.spec.suspend:
        suspension.suspend(state)
    else:
        _walk(state)
        replacement.tell(state)
    routing.route(state)
    autoscaler.autoscale(state)
    return _finish(state, clearing)


def _walk(state: State) -> None:
    blocked = False
    for step, condition, waiting in _STEPS:
        if blocked:
            state.conditions.set(condition, None, waiting)
        elif not step(state):
            blocked = True
    if not state.variants:
        cutover.hold(state)


def _resolve(state: State) -> bool:
    snapshot = state.snapshot
    namespace = namespace_of(snapshot.deployment)
    # The source of a model that an endpoint serves is a name, which no hub need know.
    if snapshot.config_map is None and endpoint.only_endpoints(state.spec, namespace, snapshot.accelerators):
        message = "only endpoints are selected, which have the model themselves"
        state.conditions.set(ConditionType.MODEL_RESOLVED, True, Reason.NOT_NEEDED, message)
        return True
    outcome = resolve.plan(
        state.spec.model,
        namespace=namespace,
        sharers=snapshot.sharers,
        config_map=snapshot.config_map,
        attempts=snapshot.resolve_attempts,
        conditions=state.conditions,
        settings=snapshot.settings,
        now=state.now,
    )
    state.apply += outcome.apply
    state.delete += outcome.delete
    state.requeue(outcome.requeue_after)
    state.facts = outcome.facts
    if outcome.stalled:
        said = state.conditions.get(ConditionType.MODEL_RESOLVED)
        state.stall(Reason(said["reason"]), said["message"])
    return outcome.facts is not None


def _place(state: State) -> bool:
    snapshot = state.snapshot
    before = (snapshot.deployment.get("status") or {}).get("placement") or {}
    result = place(
        PlacementRequest(
            deployment=name_of(snapshot.deployment),
            spec=state.spec,
            facts=state.facts or endpoint.nothing_known(state.spec.model.source),
            accelerators=in_use.open_accelerators(snapshot, before.get("chosen")),
            profiles=in_use.open_profiles(snapshot, before.get("profile")),
            current=before.get("chosen"),
            current_policy=before.get("policy"),
            namespace=namespace_of(snapshot.deployment),
            led_for=snapshot.led_for,
            refused=() if state.facts is None else building.refused_profiles(state),
        )
    )
    state.placement = result
    placed = result.chosen is not None
    state.conditions.set(ConditionType.PLACED, placed, result.reason, result.message)
    if placed:
        in_use.protect_placement(state)
    elif result.reason in (Reason.UNSUPPORTED_MODEL, Reason.REMOTE_CODE_NOT_ALLOWED):
        # Devices come and go; what is not taken or not allowed stays so until somebody changes something.
        state.stall(result.reason, result.message)
    return placed


_STEPS: tuple[tuple[Callable[[State], bool], ConditionType, Reason], ...] = (
    # what is the model?
    (_resolve, ConditionType.MODEL_RESOLVED, Reason.RESOLVING),
    # where does it run best?
    (_place, ConditionType.PLACED, Reason.WAITING_FOR_MODEL),
    # is it compiled for there?
    (building.build, ConditionType.ARTIFACT_READY, Reason.WAITING_FOR_PLACEMENT),
    # do its pods answer?
    (cutover.serve, ConditionType.AVAILABLE, Reason.WAITING_FOR_ARTIFACT),
)
_PARTS = (*(condition for _, condition, _ in _STEPS), ConditionType.ROUTED)


def _finish(state: State, clearing: rejected.Clearing) -> Plan:
    snapshot, conditions = state.snapshot, state.conditions
    url = serving.url(snapshot.deployment, snapshot.settings)
    conditions.roll_up(_PARTS, ready_message=f"serving at {url}")
    if state.lacking is not None and conditions.is_true(ConditionType.READY):
        # Others may answer meanwhile: what the spec says is not so yet.
        conditions.set(ConditionType.READY, False, *state.lacking)
    if not state.spec.suspend:
        _judge(state)
    before = snapshot.deployment.get("status") or {}
    status: dict[str, Any] = {
        "observedGeneration": snapshot.deployment["metadata"].get("generation", 0),
        "url": url if conditions.is_true(ConditionType.ROUTED) else None,
        "model": _facts_status(state.facts) if state.facts else None,
        "placement": _placement_status(state) if state.placement else before.get("placement"),
        **_artifacts_status(state, before),
        "variants": _variant_statuses(state),
        "replicas": sum(map(serving.is_live, snapshot.pods)),
        "readyReplicas": sum(serving.is_ready(pod) for pod in snapshot.pods),
        "selector": f"{names.LABEL_DEPLOYMENT}={name_of(snapshot.deployment)}",
        "conditions": conditions.to_list(),
    }
    return Plan(
        apply=tuple(state.apply),
        delete=tuple(state.delete),
        protect=tuple(state.protect),
        status={key: value for key, value in status.items() if value is not None},
        status_first=state.status_first,
        events=(*conditions.transitions(), *clearing.events),
        requeue_after=state.requeue_after,
        replacing=state.replacing,
        cleared=clearing.cleared,
        placement=state.placement,
    )


def _judge(state: State) -> None:
    """Is there work in progress, or an obstacle? Neither, of one that is suspended."""
    conditions = state.conditions
    if state.stalled is not None:
        if conditions.is_true(ConditionType.READY):
            conditions.set(ConditionType.READY, False, *state.stalled)
        conditions.set(ConditionType.STALLED, True, *state.stalled)
    elif not conditions.is_true(ConditionType.READY):
        ready = conditions.get(ConditionType.READY)
        conditions.set(ConditionType.RECONCILING, True, Reason(ready["reason"]), ready["message"])


def _placement_status(state: State) -> dict[str, Any]:
    assert state.placement is not None
    result = state.placement
    placement = Placement(
        policy=state.spec.policy.type,
        chosen=result.chosen,
        profile=result.profile,
        tensor_parallel=result.bucket.tensor_parallel if result.bucket else None,
        pipeline_parallel=result.bucket.pipeline_parallel if result.bucket else None,
    )
    return {**placement.to_wire(), "candidates": list(map(_candidate, result.candidates))}


def _artifacts_status(state: State, before: Mapping[str, Any]) -> dict[str, Any]:
    """The artifact, and who was given what where there are several classes; as they were, where nothing is known."""
    if building.is_needless(state):
        return {}
    known = [share for share in state.shares if share.name]
    if not known:
        return {name: before.get(name) for name in ("artifact", "artifactNamespace", "classes")}
    shares = [
        ClassShare(
            artifact=share.name,
            artifact_namespace=share.namespace,
            drivers=list(share.for_.drivers),
            sdks=list(share.for_.sdks),
            replicas=share.replicas,
        ).to_wire()
        for share in known
    ]
    first = known[0]
    several = shares if len(shares) > 1 else None
    return {"artifact": first.name, "artifactNamespace": first.namespace, "classes": several}


def _variant_statuses(state: State) -> list[dict[str, Any]]:
    statuses = []
    said = (state.snapshot.deployment.get("status") or {}).get("variants") or ()
    observed = {each["name"]: each.get("observedDevice") for each in said}
    for deployment in sorted(state.snapshot.variants, key=name_of):
        label = labels_of(deployment)
        artifact = state.snapshot.artifact_of(deployment)
        spec = None if artifact is None else spec_of(artifact)
        its_pods = state.snapshot.pods_of(serving.variant_label(deployment))
        statuses.append(
            VariantStatus(
                name=name_of(deployment),
                accelerator=label.get(names.LABEL_ACCELERATOR, ""),
                artifact=label.get(names.LABEL_ARTIFACT),
                replicas=sum(map(serving.is_live, its_pods)),
                ready=sum(serving.is_ready(pod) for pod in its_pods),
                active=any(
                    serving.is_ready(pod) and labels_of(pod).get(names.LABEL_ACTIVE) == "true" for pod in its_pods
                ),
                observed_device=observed_device(its_pods, state.snapshot.reports, observed.get(name_of(deployment))),
                drivers=None if spec is None else spec.drivers or None,
                sdks=None if spec is None else spec.sdks or None,
            ).to_wire()
        )
    return statuses[:16]
