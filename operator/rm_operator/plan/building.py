"""The step that asks for the artifact, and says how far it is."""

from rm_api import names
from rm_api.base import Resources
from rm_api.conditions import ConditionType, Reason
from rm_api.dtypes import DType
from rm_api.kinds import BuildArtifactSpec, BuildProfileSpec, ModelDeploymentSpec
from rm_api.kinds.build_artifact import BaseArtifact, ModelInput, Toolchain
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan import artifact as artifact_plan
from rm_operator.plan import pods
from rm_operator.plan.buckets import bucket
from rm_operator.plan.conditions import reason_or
from rm_operator.plan.key import KeyInputs, artifact_key, artifact_name
from rm_operator.plan.memo import Memo, Specs
from rm_operator.plan.model import Object, deletion_of, is_deleting, namespace_of
from rm_operator.plan.placement import PlacementResult
from rm_operator.plan.state import DeploymentSnapshot, State


def build(state: State) -> bool:
    """Has the artifact of the placement built; True once it is in the store."""
    assert state.placement is not None
    assert state.facts is not None
    snapshot = state.snapshot
    desired = _wanted(state.placement, state.facts, state.spec, snapshot)
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
                    "labels": pods.labels(names.ROLE_BUILD),
                },
                "spec": desired.to_wire(),
            }
        )
        # An artifact that nobody refers to is removed, so the reference comes first.
        state.status_first = True
        return False
    state.artifact_object = existing
    if artifact_plan.is_ready(existing):
        location = existing["status"].get("location")
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
            state.stall(reason, message)
    return False


def _wanted(
    placement: PlacementResult, facts: ModelFacts, spec: ModelDeploymentSpec, snapshot: DeploymentSnapshot
) -> BuildArtifactSpec:
    profile = next(view for view in snapshot.profiles if view.name == placement.profile)
    assert placement.dtype is not None
    assert placement.bucket is not None
    return _artifact_spec(
        profile.name,
        profile.spec,
        facts,
        placement.dtype,
        placement.bucket.max_sequence_length,
        placement.bucket.max_batch_size,
        spec.model.credentials_secret_ref,
        snapshot.settings.host_isa,
        None,
        profile.toolchain,
    )


def _made(
    profile_name: str,
    profile: BuildProfileSpec,
    facts: ModelFacts,
    dtype: DType,
    sequence: int | None,
    batch: int | None,
    credentials: str | None,
    isa: str,
    base: BaseArtifact | None,
    toolchain: Toolchain | None,
) -> BuildArtifactSpec:
    shape = bucket(sequence, batch)
    inputs = KeyInputs.from_profile(
        profile, facts, dtype, shape, isa, base=base.key if base else None, toolchain=toolchain
    )
    return BuildArtifactSpec(
        key=artifact_key(inputs),
        key_schema=names.KEY_SCHEMA_VERSION,
        model=ModelInput(
            source=facts.source,
            revision=facts.revision,
            credentials_secret=credentials,
            config_digest=facts.config_digest,
            tensors_digest=facts.tensors_digest,
            weights_digest=facts.weights_digest,
            architecture=facts.architecture,
            scales_digest=facts.scales_digest,
        ),
        profile=profile_name,
        target=profile.target,
        dtype=dtype,
        shape=shape,
        drivers=profile.compatibility.driver,
        format=profile.output.format,
        interface=profile.interface,
        config_template=profile.config_template,
        flags=profile.flags,
        inputs=profile.inputs,
        base=base,
        check=profile.check,
        toolchain=toolchain,
        weights_in_artifact=profile.weights_in_artifact,
        secret_refs=profile.secret_refs,
        max_memory=profile.max_memory,
        steps=[
            step.model_copy(update={"resources": _merged(step.resources, profile.resources)}) for step in profile.steps
        ],
        probe=profile.probe,
        scratch=profile.scratch,
        timeout_seconds=profile.timeout_seconds,
        exit_codes=profile.exit_codes,
    )


# Deployments of one model on one kind of accelerator ask for the same.
_artifact_spec = Memo(_made, most=64)
spec_of = Specs(BuildArtifactSpec, most=64)


def _recipe_was_mended(existing: Object, desired: BuildArtifactSpec) -> bool:
    """True if the profile changed in what does not count for the key: a time limit, memory, meanings of exit codes."""
    made_from = spec_of(existing)
    return made_from.profile == desired.profile and made_from.model_copy(update={"model": desired.model}) != desired


def _merged(wanted: Resources, otherwise: Resources) -> Resources:
    return wanted.model_copy(update={"cpu": wanted.cpu or otherwise.cpu, "memory": wanted.memory or otherwise.memory})
