"""ModelDeployment: resolve, place, build, serve, route. The order of ``_STEPS`` is the life of a deployment.

Each step states its condition and may stop the chain; what runs already goes on running whatever a step says, until a
successor has taken over. One status comes out of it, with Ready rolled up from the first step that is not done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildArtifactSpec, ModelDeploymentSpec
from rm_api.kinds.build_artifact import BuildArtifactStatus, ModelInput
from rm_api.kinds.model_deployment import ModelFacts, Placement, VariantStatus

from rm_operator.plan import artifact as artifact_plan
from rm_operator.plan import pods as pods_plan
from rm_operator.plan import resolve, serving
from rm_operator.plan.attempt import Attempt
from rm_operator.plan.conditions import Conditions, reason_or
from rm_operator.plan.key import KeyInputs, artifact_key, artifact_name
from rm_operator.plan.model import (
    Deletion,
    Object,
    Plan,
    Settings,
    deletion_of,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    uid_of,
)
from rm_operator.plan.placement import AcceleratorView, PlacementRequest, PlacementResult, ProfileView, place


@dataclass(frozen=True)
class DeploymentSnapshot:
    """Everything that a decision about one ModelDeployment rests on."""

    deployment: Object
    sharers: Sequence[Object]
    """Deployments of the namespace with the same source, this one included."""
    config_map: Object | None
    """The resolved facts of the source."""
    resolve_attempts: Sequence[Attempt]
    leftovers: Sequence[Object]
    """ConfigMaps and Jobs of sources that this deployment named before and nobody names now."""
    accelerators: Sequence[AcceleratorView]
    profiles: Sequence[ProfileView]
    artifacts: Mapping[str, Object]
    """BuildArtifacts of the namespace by name."""
    revisions: Mapping[str, Object]
    """Remembered pod templates by name."""
    variants: Sequence[Object]
    """Deployments (apps/v1) that serve or served this one."""
    pods: Sequence[Object]
    """Their pods."""
    service: Object | None
    """The Service of the deployment's name, whoever made it."""
    routed_pods: frozenset[str]
    """Names of pods that the Service's EndpointSlices still send requests to."""
    settings: Settings


@dataclass
class _State:
    snapshot: DeploymentSnapshot
    spec: ModelDeploymentSpec
    conditions: Conditions
    now: datetime
    facts: ModelFacts | None = None
    placement: PlacementResult | None = None
    artifact: str | None = None
    artifact_object: Object | None = None
    variant: serving.Variant | None = None
    apply: list[dict[str, Any]] = field(default_factory=list)
    delete: list[Deletion] = field(default_factory=list)
    requeue_after: float | None = None
    stalled: Reason | None = None
    status_first: bool = False

    def requeue(self, seconds: float | None) -> None:
        if seconds is not None:
            self.requeue_after = seconds if self.requeue_after is None else min(seconds, self.requeue_after)


def plan(snapshot: DeploymentSnapshot, now: datetime) -> Plan:
    """Decides what is next for one ModelDeployment."""
    if is_deleting(snapshot.deployment):
        return Plan()
    state = _State(
        snapshot,
        ModelDeploymentSpec.model_validate(snapshot.deployment["spec"]),
        Conditions(snapshot.deployment, now),
        now,
    )
    state.delete += [deletion_of(leftover) for leftover in snapshot.leftovers]
    blocked = False
    for step, condition, waiting in _STEPS:
        if blocked:
            state.conditions.set(condition, None, waiting)
        elif not step(state):
            blocked = True
    _route(state)
    return _finish(state)


def _resolve(state: _State) -> bool:
    snapshot = state.snapshot
    outcome = resolve.plan(
        state.spec.model,
        namespace=namespace_of(snapshot.deployment),
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
        state.stalled = Reason(state.conditions.get(ConditionType.MODEL_RESOLVED)["reason"])
    return outcome.facts is not None


def _place(state: _State) -> bool:
    assert state.facts is not None
    snapshot = state.snapshot
    before = (snapshot.deployment.get("status") or {}).get("placement") or {}
    result = place(
        PlacementRequest(
            deployment=name_of(snapshot.deployment),
            spec=state.spec,
            facts=state.facts,
            accelerators=tuple(snapshot.accelerators),
            profiles=tuple(snapshot.profiles),
            current=before.get("chosen"),
        )
    )
    state.placement = result
    placed = result.chosen is not None and result.profile is not None
    state.conditions.set(ConditionType.PLACED, placed, result.reason, result.message)
    return placed


def _build(state: _State) -> bool:
    assert state.placement is not None
    assert state.facts is not None
    snapshot = state.snapshot
    desired = _artifact_spec(state.placement, state.facts, state.spec, snapshot)
    name = artifact_name(desired.key)
    state.artifact = name
    existing = snapshot.artifacts.get(name)
    if existing is None:
        state.conditions.set(ConditionType.ARTIFACT_READY, False, Reason.BUILDING, f"{name} is requested")
        state.apply.append(
            {
                "apiVersion": names.API_VERSION,
                "kind": "BuildArtifact",
                "metadata": {
                    "name": name,
                    "namespace": namespace_of(snapshot.deployment),
                    "labels": pods_plan.labels(names.ROLE_BUILD),
                },
                "spec": desired.to_wire(),
            }
        )
        # An artifact that nobody refers to is removed, so the reference comes first.
        state.status_first = True
        return False
    state.artifact_object = existing
    if artifact_plan.is_ready(existing):
        location = BuildArtifactStatus.model_validate(existing["status"]).location
        state.conditions.set(ConditionType.ARTIFACT_READY, True, Reason.BUILT, f"{location}")
        return True
    conditions = {entry["type"]: entry for entry in (existing.get("status") or {}).get("conditions") or []}
    ready = conditions.get(ConditionType.READY)
    reason = reason_or(ready["reason"], Reason.BUILDING) if ready else Reason.BUILDING
    message = f"{name}: {ready['message']}" if ready else f"{name} is requested"
    state.conditions.set(ConditionType.ARTIFACT_READY, False, reason, message)
    if ConditionType.STALLED in conditions:
        if _recipe_was_mended(existing, desired) and not is_deleting(existing):
            state.delete.append(deletion_of(existing))
        else:
            state.stalled = reason
    return False


def _artifact_spec(
    placement: PlacementResult, facts: ModelFacts, spec: ModelDeploymentSpec, snapshot: DeploymentSnapshot
) -> BuildArtifactSpec:
    profile = next(view.spec for view in snapshot.profiles if view.name == placement.profile)
    assert placement.dtype is not None
    assert placement.bucket is not None
    inputs = KeyInputs.from_profile(profile, facts, placement.dtype, placement.bucket, snapshot.settings.host_isa)
    return BuildArtifactSpec(
        key=artifact_key(inputs),
        key_schema=names.KEY_SCHEMA_VERSION,
        model=ModelInput(
            source=facts.source,
            revision=facts.revision,
            credentials_secret=spec.model.credentials_secret_ref,
            config_digest=facts.config_digest,
            tensors_digest=facts.tensors_digest,
            weights_digest=facts.weights_digest,
            architecture=facts.architecture,
        ),
        profile=str(placement.profile),
        target=profile.target,
        dtype=placement.dtype,
        shape=placement.bucket,
        drivers=profile.compatibility.driver,
        format=profile.output.format,
        steps=[
            step.model_copy(update={"resources": _merged(step.resources, profile.resources)}) for step in profile.steps
        ],
        probe=profile.probe,
        scratch=profile.scratch,
        timeout_seconds=profile.timeout_seconds,
        exit_codes=profile.exit_codes,
    )


def _merged(wanted: Any, otherwise: Any) -> Any:
    return wanted.model_copy(update={"cpu": wanted.cpu or otherwise.cpu, "memory": wanted.memory or otherwise.memory})


def _recipe_was_mended(existing: Object, desired: BuildArtifactSpec) -> bool:
    """True if the profile changed in what does not count for the key: a time limit, memory, meanings of exit codes."""
    made_from = BuildArtifactSpec.model_validate(existing["spec"])
    return made_from.profile == desired.profile and made_from.model_copy(update={"model": desired.model}) != desired


def _serve(state: _State) -> bool:
    assert state.placement is not None
    assert state.artifact_object is not None
    snapshot = state.snapshot
    accelerator = next(view for view in snapshot.accelerators if view.name == state.placement.chosen)
    variant = serving.Variant(
        deployment=snapshot.deployment,
        spec=state.spec,
        accelerator=accelerator.name,
        accelerator_spec=accelerator.spec,
        artifact=name_of(state.artifact_object),
        artifact_spec=BuildArtifactSpec.model_validate(state.artifact_object["spec"]),
        location=str((state.artifact_object["status"])["location"]),
    )
    state.variant = variant
    state.apply += serving.children(variant, snapshot.revisions.get(variant.name), snapshot.settings)
    mine = _pods_of(snapshot, variant.inputs_hash)
    ready = sum(serving.is_ready(pod) for pod in mine)
    wanted = state.spec.replicas
    if ready >= wanted and any(name_of(each) == variant.name for each in snapshot.variants):
        message = f"{ready} of {wanted} pods ready on {variant.accelerator}" if wanted else "scaled to zero"
        state.conditions.set(ConditionType.AVAILABLE, True, Reason.SERVING, message)
        _retire(state, variant)
        return True
    waiting = [pod for pod in mine if not serving.is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]
    why = serving.trouble(waiting, accelerator.spec.resource_name)
    old = sum(serving.is_ready(pod) for pod in snapshot.pods) - ready
    meanwhile = f"; {old} pods of the previous variant keep serving" if old else ""
    message = f"{ready} of {wanted} pods ready: {why.message}{meanwhile}"
    state.conditions.set(ConditionType.AVAILABLE, False, why.reason, message)
    return False


def _retire(state: _State, variant: serving.Variant) -> None:
    """Takes earlier variants out of the Service, and away once no EndpointSlice names their pods any more."""
    snapshot = state.snapshot
    for old in snapshot.variants:
        if name_of(old) == variant.name or is_deleting(old):
            continue
        its_pods = _pods_of(snapshot, serving.variant_label(old))
        if not any(name_of(pod) in snapshot.routed_pods for pod in its_pods):
            state.delete.append(deletion_of(old))
            revision = snapshot.revisions.get(name_of(old))
            if revision is not None:
                state.delete.append(deletion_of(revision))
            continue
        for pod in its_pods:
            state.apply.append(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": name_of(pod),
                        "namespace": namespace_of(pod),
                        "uid": uid_of(pod),
                        # Stated again, since a child of somebody else is not touched: it is our ReplicaSet's.
                        "ownerReferences": pod["metadata"].get("ownerReferences") or [],
                        "labels": {names.LABEL_ACTIVE: "false"},
                    },
                }
            )


def _route(state: _State) -> None:
    snapshot = state.snapshot
    service = snapshot.service
    if service is not None and not _controlled_by(service, snapshot.deployment):
        message = (
            f"a Service {name_of(service)} exists and belongs to somebody else; "
            "delete it, or deploy the model under another name"
        )
        state.conditions.set(ConditionType.ROUTED, False, Reason.NAME_TAKEN, message)
        state.stalled = state.stalled or Reason.NAME_TAKEN
        return
    state.apply.append(serving.service(snapshot.deployment))
    state.conditions.set(
        ConditionType.ROUTED, True, Reason.SERVICE_READY, serving.url(snapshot.deployment, snapshot.settings)
    )


def _controlled_by(child: Object, owner: Object) -> bool:
    return any(reference["uid"] == uid_of(owner) for reference in child["metadata"].get("ownerReferences") or [])


def _pods_of(snapshot: DeploymentSnapshot, variant: str) -> list[Object]:
    return [pod for pod in snapshot.pods if labels_of(pod).get(names.LABEL_VARIANT) == variant]


_STEPS: tuple[tuple[Callable[[_State], bool], ConditionType, Reason], ...] = (
    # what is the model?
    (_resolve, ConditionType.MODEL_RESOLVED, Reason.RESOLVING),
    # where does it run best?
    (_place, ConditionType.PLACED, Reason.WAITING_FOR_MODEL),
    # is it compiled for there?
    (_build, ConditionType.ARTIFACT_READY, Reason.WAITING_FOR_PLACEMENT),
    # do its pods answer?
    (_serve, ConditionType.AVAILABLE, Reason.WAITING_FOR_ARTIFACT),
)
_PARTS = (*(condition for _, condition, _ in _STEPS), ConditionType.ROUTED)


def _finish(state: _State) -> Plan:
    snapshot, conditions = state.snapshot, state.conditions
    url = serving.url(snapshot.deployment, snapshot.settings)
    conditions.roll_up(_PARTS, ready_message=f"serving at {url}")
    ready = conditions.get(ConditionType.READY)
    if state.stalled is not None:
        conditions.set(ConditionType.STALLED, True, state.stalled, ready["message"])
    elif ready["status"] != "True":
        conditions.set(ConditionType.RECONCILING, True, Reason(ready["reason"]), ready["message"])
    before = snapshot.deployment.get("status") or {}
    status: dict[str, Any] = {
        "observedGeneration": snapshot.deployment["metadata"].get("generation", 0),
        "url": url if conditions.is_true(ConditionType.ROUTED) else None,
        "model": state.facts.to_wire() if state.facts else None,
        "placement": _placement_status(state) if state.placement else before.get("placement"),
        "artifact": state.artifact or before.get("artifact"),
        "variants": _variant_statuses(state),
        "replicas": sum("deletionTimestamp" not in pod["metadata"] for pod in snapshot.pods),
        "readyReplicas": sum(serving.is_ready(pod) for pod in snapshot.pods),
        "selector": f"{names.LABEL_DEPLOYMENT}={name_of(snapshot.deployment)}",
        "conditions": conditions.to_list(),
    }
    return Plan(
        apply=tuple(state.apply),
        delete=tuple(state.delete),
        status={key: value for key, value in status.items() if value is not None},
        status_first=state.status_first,
        events=conditions.transitions(),
        requeue_after=state.requeue_after,
    )


def _placement_status(state: _State) -> dict[str, Any]:
    assert state.placement is not None
    result = state.placement
    return Placement(
        policy=state.spec.policy.type,
        chosen=result.chosen,
        profile=result.profile,
        candidates=list(result.candidates),
    ).to_wire()


def _variant_statuses(state: _State) -> list[dict[str, Any]]:
    statuses = []
    for deployment in sorted(state.snapshot.variants, key=name_of):
        label = labels_of(deployment)
        its_pods = _pods_of(state.snapshot, serving.variant_label(deployment))
        statuses.append(
            VariantStatus(
                name=name_of(deployment),
                accelerator=label.get(names.LABEL_ACCELERATOR, ""),
                artifact=label.get(names.LABEL_ARTIFACT),
                replicas=len(its_pods),
                ready=sum(serving.is_ready(pod) for pod in its_pods),
                active=any(
                    serving.is_ready(pod) and labels_of(pod).get(names.LABEL_ACTIVE) == "true" for pod in its_pods
                ),
            ).to_wire()
        )
    return statuses[:16]
