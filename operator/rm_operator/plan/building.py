"""The step that asks for the artifact, and says how far it is."""

from rm_api import names
from rm_api.base import Resources
from rm_api.conditions import ConditionType, Reason
from rm_api.dtypes import DType
from rm_api.kinds import BuildArtifactSpec, BuildProfileSpec
from rm_api.kinds.build_artifact import BaseArtifact, FetchedInput, ModelInput, ShapeBucket, Toolchain
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan import artifact as artifact_plan
from rm_operator.plan import compatibility, pods, sharing
from rm_operator.plan.buckets import Shape, chunk_of, round_up
from rm_operator.plan.compatibility import NodeClass
from rm_operator.plan.conditions import reason_or
from rm_operator.plan.key import KeyInputs, artifact_key, artifact_name, dtype_name
from rm_operator.plan.memo import Memo, Specs
from rm_operator.plan.model import Object, deletion_of, is_deleting, name_of, namespace_of
from rm_operator.plan.placement import ProfileView
from rm_operator.plan.sharing import Home
from rm_operator.plan.state import DeploymentSnapshot, State


def build(state: State) -> bool:
    """Has the placement's artifact built, and before it those that it starts from; True once it is in the store."""
    assert state.placement is not None
    assert state.placement.profile is not None
    try:
        if namespace_of(state.snapshot.deployment) == state.snapshot.settings.builds_namespace:
            raise _Unbuildable("this namespace is for builds that all namespaces share; deploy models in another one")
        chain = _chain(state.placement.profile, state.snapshot)
        base: BaseArtifact | None = None
        home = Home(namespace_of(state.snapshot.deployment))
        for view in chain:
            if view.awaited:
                # Which artifact it is depends on what the probe finds.
                message = f"BuildProfile {view.name}: {view.reason}"
                state.conditions.set(ConditionType.ARTIFACT_READY, False, Reason.PROBING, message)
                return False
            home, wanted = _home(view, _class(view, state), state, base)
            if not _has(state, wanted, home):
                return False
            assert state.artifact_object is not None
            base = BaseArtifact(
                name=name_of(state.artifact_object),
                key=wanted.key,
                location=str(state.artifact_object["status"].get("location")),
                namespace=home.namespace if home.shared else None,
            )
    except _Unbuildable as error:
        state.conditions.set(ConditionType.ARTIFACT_READY, False, Reason.INVALID_SPEC, str(error))
        state.stall(Reason.INVALID_SPEC, str(error))
        return False
    assert base is not None
    state.conditions.set(ConditionType.ARTIFACT_READY, True, Reason.BUILT, f"{base.location}{home.suffix}")
    return True


def refused_profiles(state: State) -> tuple[tuple[str, str], ...]:
    """BuildProfiles whose compiler has refused this very model, each with what it said.

    One that was changed since is another recipe, and is asked again; what the old one said is forgotten.
    """
    assert state.facts is not None
    found: dict[str, str] = {}
    for artifact in state.snapshot.refused(state.facts.config_digest):
        spec = spec_of(artifact)
        view = next((view for view in state.snapshot.profiles if view.name == spec.profile), None)
        if view is None:
            state.delete.append(deletion_of(artifact))
            continue
        if not view.usable:
            # Whether it is another recipe now is not known yet.
            found[view.name] = artifact_plan.why_not_ready(artifact)
            continue
        again = artifact_spec(
            view.name, view.spec, state.facts, spec.dtype, spec.shape,
            None, state.snapshot.settings.host_isa, spec.base, view.toolchain,
            tuple(spec.drivers), tuple(spec.sdks),
        )  # fmt: skip
        if again.key != spec.key or again.check != spec.check:
            state.delete.append(deletion_of(artifact))
        else:
            found[view.name] = artifact_plan.why_not_ready(artifact)
    return tuple(sorted(found.items()))


class _Unbuildable(Exception):
    """What the profile starts from cannot be built; the message says what to do."""


def _chain(profile: str, snapshot: DeploymentSnapshot) -> list[ProfileView]:
    """The profile, with those before it that it starts from."""
    chain: list[ProfileView] = []
    name: str | None = profile
    while name is not None:
        if any(view.name == name for view in chain):
            raise _Unbuildable(f"BuildProfile {name} starts from itself; correct spec.from of {chain[-1].name}")
        view = next((view for view in snapshot.profiles if view.name == name), None)
        if view is None:
            raise _Unbuildable(f"BuildProfile {name}, which {chain[-1].name} starts from, does not exist; create it")
        if not view.usable and not view.awaited:
            raise _Unbuildable(f"BuildProfile {name} is not usable: {view.reason}")
        chain.append(view)
        name = view.spec.from_profile
    return chain[::-1]


def _class(view: ProfileView, state: State) -> NodeClass:
    """The versions that the artifact is for."""
    assert state.placement is not None
    chosen = next(each for each in state.snapshot.accelerators if each.name == state.placement.chosen)
    now = state.snapshot.artifact_now
    spec = None if now is None else spec_of(now)
    current = None if spec is None or spec.profile != view.name else compatibility.class_of(spec)
    found = compatibility.choose(view.spec.compatibility, chosen.versions, current)
    if found is None:
        # Of the profile that serves placement has made sure; this is one that it starts from.
        raise _Unbuildable(
            f"BuildProfile {view.name} builds for {compatibility.wanted(view.spec.compatibility)}; "
            f"{chosen.name} has {compatibility.said(chosen.versions) or 'no known version'}"
        )
    return found


def _home(
    view: ProfileView, for_: NodeClass, state: State, base: BaseArtifact | None
) -> tuple[Home, BuildArtifactSpec]:
    """Where the artifact is or is to be, and what it is there."""
    assert state.facts is not None
    snapshot, model = state.snapshot, state.spec.model
    own = _wanted(view, for_, state, base, model.credentials_secret_ref)
    mine = namespace_of(snapshot.deployment)
    if not sharing.is_wanted(view.spec):
        return Home(mine), own
    ours = snapshot.settings.builds_namespace
    if not ours:
        return Home(mine, why_not="the installation names no namespace for shared builds"), own
    base_there = base.model_copy(update={"namespace": None}) if base is not None else None
    there = _wanted(view, for_, state, base_there, None)
    name = artifact_name(own.key)
    known, kept = snapshot.shared_artifacts.get(name), snapshot.artifacts.get(name)
    has_own = kept is not None and not is_deleting(kept)
    if known is not None and artifact_plan.is_ready(known) and not is_deleting(known) and not has_own:
        return Home(ours, shared=True), there
    why_not = sharing.obstacle(view.spec, model, state.facts, base)
    if not why_not and known is not None:
        mine_too = sharing.same_source(spec_of(known), there)
        said = sharing.failed_by_its_source(known)
        if mine_too and said:
            why_not = f"from {model.source} it could not be built for all: {said}"
        elif not mine_too and sharing.does_not_answer(known):
            why_not = "the build for all waits for another source, which does not answer"
    if not why_not and has_own:
        why_not = "this namespace has one of its own already, as it was built before or could not be built for all"
    return (Home(mine, why_not=why_not), own) if why_not else (Home(ours, shared=True), there)


def _wanted(
    view: ProfileView, for_: NodeClass, state: State, base: BaseArtifact | None, credentials: str | None
) -> BuildArtifactSpec:
    placement, facts, snapshot = state.placement, state.facts, state.snapshot
    assert placement is not None
    assert facts is not None
    assert placement.dtype is not None
    assert placement.bucket is not None
    shape = placement.bucket
    if view.name != placement.profile:
        shape = _shape_before(view, shape, placement.shape, facts.max_sequence_length)
    return artifact_spec(
        view.name,
        view.spec,
        facts,
        placement.dtype,
        shape,
        credentials,
        snapshot.settings.host_isa,
        base,
        view.toolchain,
        for_.drivers,
        for_.sdks,
    )


def _shape_before(view: ProfileView, wanted: ShapeBucket, needed: Shape, longest: int) -> ShapeBucket:
    """The shape of what another artifact starts from: for the same devices, and with buckets of its own."""
    own = view.spec.shapes
    for what, compiled, number in (
        ("tensorParallel", own.tensor_parallel, wanted.tensor_parallel or 1),
        ("pipelineParallel", own.pipeline_parallel, wanted.pipeline_parallel or 1),
    ):
        if compiled and number not in compiled:
            raise _Unbuildable(
                f"BuildProfile {view.name} does not compile for {what} {number}; add it to its spec.shapes.{what}"
            )
    sequence = _covering(view, "sequence", wanted.max_sequence_length or needed.sequence)
    return wanted.model_copy(
        update={
            "max_sequence_length": None if sequence is None else min(sequence, longest),
            "max_batch_size": _covering(view, "batch", wanted.max_batch_size or needed.batch),
            "prefill_chunk": chunk_of(wanted.prefill_chunk or needed.sequence, own.prefill_chunk),
        }
    )


def _covering(view: ProfileView, what: str, needed: int) -> int | None:
    """The bucket of a profile that another one starts from; None where it compiles no sizes in."""
    buckets: list[int] = getattr(view.spec.shapes, what)
    if not buckets:
        return None
    found = round_up(needed, buckets)
    if found is None:
        raise _Unbuildable(f"BuildProfile {view.name} compiles no {what} of {needed}; add it to its spec.shapes.{what}")
    return found


def _has(state: State, wanted: BuildArtifactSpec, home: Home) -> bool:
    """Asks for the artifact, and says how far it is; True if it is there."""
    snapshot = state.snapshot
    name = artifact_name(wanted.key)
    state.artifact = name
    state.artifact_namespace = home.namespace if home.shared else None
    existing = (snapshot.shared_artifacts if home.shared else snapshot.artifacts).get(name)

    def say(reason: Reason, message: str) -> str:
        state.conditions.set(ConditionType.ARTIFACT_READY, False, reason, message + home.suffix)
        return message + home.suffix

    if existing is None:
        say(Reason.BUILDING, f"{name} is requested")
        state.apply.append(
            {
                "apiVersion": names.API_VERSION,
                "kind": "BuildArtifact",
                "metadata": {
                    "name": name,
                    "namespace": home.namespace,
                    "labels": pods.labels(names.ROLE_BUILD),
                },
                "spec": wanted.to_wire(),
            }
        )
        # An artifact that nobody refers to is removed, so the reference comes first.
        state.status_first = True
        return False
    state.artifact_object = existing
    if is_deleting(existing):
        # What the store has of it is adopted by the next one of the name, unless nobody wanted it in time.
        say(Reason.DELETING, f"{name} is being deleted, and asked for again when it is gone")
        return False
    if artifact_plan.is_ready(existing):
        return True
    conditions = {entry["type"]: entry for entry in (existing.get("status") or {}).get("conditions") or []}
    ready = conditions.get(ConditionType.READY)
    reason = reason_or(ready["reason"], Reason.BUILDING) if ready else Reason.BUILDING
    message = say(reason, f"{name}: {ready['message']}" if ready else f"{name} is requested")
    failed = home.shared and sharing.failed_by_its_source(existing)
    if failed and not sharing.same_source(spec_of(existing), wanted):
        # What somebody else's source came to says nothing about this one.
        wait = sharing.seconds_to_replacement(existing, state.now)
        if wait:
            state.requeue(wait)
        else:
            state.delete.append(deletion_of(existing))
        return False
    if ConditionType.STALLED in conditions:
        if _recipe_was_mended(existing, wanted):
            state.delete.append(deletion_of(existing))
        else:
            state.stall(reason, message)
    return False


def _made(
    profile_name: str,
    profile: BuildProfileSpec,
    facts: ModelFacts,
    dtype: DType,
    shape: ShapeBucket,
    credentials: str | None,
    isa: str,
    base: BaseArtifact | None,
    toolchain: Toolchain | None,
    drivers: tuple[str, ...],
    sdks: tuple[str, ...],
) -> BuildArtifactSpec:
    chosen = NodeClass(drivers, sdks)
    profile = compatibility.targeted(profile, chosen)
    inputs = KeyInputs.from_profile(
        profile, facts, dtype, shape, isa, base=base.key if base else None, toolchain=toolchain, chosen=chosen
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
        dtype_name=dtype_name(profile, dtype),
        shape=shape,
        drivers=list(drivers),
        sdks=list(sdks),
        format=profile.output.format,
        interface=profile.interface,
        config_template=profile.config_template,
        flags=profile.flags,
        inputs=[FetchedInput(name=each.name, source=each.source, digest=each.digest) for each in profile.inputs],
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
artifact_spec = Memo(_made, most=64)
"""What is to be built, and its key."""
spec_of = Specs(BuildArtifactSpec, most=64)


def _recipe_was_mended(existing: Object, desired: BuildArtifactSpec) -> bool:
    """True if the profile changed in what does not count for the key: a time limit, memory, meanings of exit codes."""
    made_from = spec_of(existing)
    return made_from.profile == desired.profile and made_from.model_copy(update={"model": desired.model}) != desired


def _merged(wanted: Resources, otherwise: Resources) -> Resources:
    return wanted.model_copy(update={"cpu": wanted.cpu or otherwise.cpu, "memory": wanted.memory or otherwise.memory})
