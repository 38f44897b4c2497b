"""The step that asks for the artifact, or one for each class of nodes, and says how far it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildArtifactSpec
from rm_api.kinds.build_artifact import BaseArtifact, ShapeBucket

from rm_operator.plan import artifact as artifact_plan
from rm_operator.plan import class_shares, compatibility, pods, sharing
from rm_operator.plan.artifact_spec import artifact_spec, recipe_was_mended, spec_of
from rm_operator.plan.buckets import Shape, chunk_of, covering, round_up
from rm_operator.plan.classes import Share
from rm_operator.plan.compatibility import NodeClass
from rm_operator.plan.conditions import reason_or
from rm_operator.plan.key import artifact_name
from rm_operator.plan.model import Object, deletion_of, is_deleting, namespace_of
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rm_operator.plan.remote_code import trusted
from rm_operator.plan.sharing import Home
from rm_operator.plan.state import DeploymentSnapshot, Given, State


@dataclass(frozen=True)
class _Look:
    """How far the artifact for a class of nodes is, or one before it that it starts from."""

    for_: NodeClass
    reason: Reason
    message: str
    home: Home
    """Where it is, or is to be."""
    wanted: BuildArtifactSpec | None = None
    """None where it cannot be told yet."""
    existing: Object | None = None
    ready: bool = False
    """The artifact itself is in the store."""
    failed: bool = False
    """It will not be, until somebody changes something."""
    given_up_in: float | None = None
    """Seconds until it makes room for another one, as what failed was somebody else's source."""

    @property
    def name(self) -> str:
        return "" if self.wanted is None else artifact_name(self.wanted.key)

    @property
    def location(self) -> str:
        assert self.existing is not None
        return str(self.existing["status"].get("location"))


def build(state: State) -> bool:
    """Has the placement's artifacts built, and before them those that they start from; True once one can serve.

    Where the nodes have several versions that need an artifact each, this gives the replicas to the classes of nodes.
    """
    assert state.placement is not None
    if is_needless(state):
        state.shares = (Given(NodeClass(), "", None, None, state.spec.replicas, ready=True, spare=None),)
        message = f"{state.placement.chosen} serves the model itself"
        state.conditions.set(ConditionType.ARTIFACT_READY, True, Reason.NOT_NEEDED, message)
        return True
    assert state.placement.profile is not None
    try:
        if namespace_of(state.snapshot.deployment) == state.snapshot.settings.builds_namespace:
            raise _Unbuildable("this namespace is for builds that all namespaces share; deploy models in another one")
        chain = _chain(state.placement.profile, state.snapshot)
        view, chosen = chain[-1], _chosen(state)
        rooms = class_shares.rooms(view, chosen, state)
        if not rooms:
            raise _unbuildable(view, chosen)
    except _Unbuildable as error:
        state.conditions.set(ConditionType.ARTIFACT_READY, False, Reason.INVALID_SPEC, str(error))
        state.stall(Reason.INVALID_SPEC, str(error))
        return False
    looks = {for_: _look(chain, for_, state) for for_ in rooms}
    ready, failed = {each for each in looks if looks[each].ready}, {each for each in looks if looks[each].failed}
    shares = class_shares.shares(view.name, rooms, ready, failed, state)
    for share in shares:
        _request(looks[share.option.for_], state)
    state.shares = tuple(_given(share, looks[share.option.for_]) for share in shares)
    _say(shares, looks, state)
    return any(_serves(share, state) for share in shares)


def is_needless(state: State) -> bool:
    """True if the deployment is placed where nothing is compiled: an endpoint serves the model itself."""
    placement = state.placement
    return placement is not None and placement.chosen is not None and placement.profile is None


def _serves(share: Share, state: State) -> bool:
    return share.option.warm and (share.replicas > 0 or state.spec.replicas == 0)


def _given(share: Share, look: _Look) -> Given:
    home = look.home.namespace if look.home.shared else None
    return Given(look.for_, look.name, home, look.existing, share.replicas, look.ready, share.option.room.free)


def _say(shares: Sequence[Share], looks: Mapping[NodeClass, _Look], state: State) -> None:
    """States how far the artifacts are that are needed."""
    needed = [share for share in shares if share.replicas] or shares[:1]
    behind = [looks[share.option.for_] for share in needed if not share.option.warm]
    if not behind:
        there = [looks[share.option.for_].message for share in needed]
        state.conditions.set(ConditionType.ARTIFACT_READY, True, Reason.BUILT, "; ".join(there))
        return
    first = behind[0]
    further = f"for {compatibility.label_of(first.for_)}: " if len(shares) > 1 else ""
    state.conditions.set(ConditionType.ARTIFACT_READY, False, first.reason, further + first.message)
    if first.failed:
        state.stall(first.reason, further + first.message)


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
            tuple(spec.drivers), tuple(spec.sdks), spec.model.code_digest,
        )  # fmt: skip
        if again.key != spec.key or again.check != spec.check:
            state.delete.append(deletion_of(artifact))
        elif not _serves_elsewhere(spec, state):
            found[view.name] = artifact_plan.why_not_ready(artifact)
    return tuple(sorted(found.items()))


def _serves_elsewhere(refused: BuildArtifactSpec, state: State) -> bool:
    """True if the deployment has what was refused for one class of nodes from the same profile for another one."""
    status = state.snapshot.deployment.get("status") or {}
    for share in (status, *(status.get("classes") or ())):
        artifact = state.snapshot.artifact_at(share.get("artifactNamespace"), share.get("artifact") or "")
        if artifact is None or not artifact_plan.is_ready(artifact):
            continue
        spec = spec_of(artifact)
        if spec.profile == refused.profile and compatibility.class_of(spec) != compatibility.class_of(refused):
            return True
    return False


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


def _chosen(state: State) -> AcceleratorView:
    assert state.placement is not None
    return next(each for each in state.snapshot.accelerators if each.name == state.placement.chosen)


def _class_of_base(view: ProfileView, for_: NodeClass, state: State) -> NodeClass:
    """The versions that the artifact is for that one for ``for_`` starts from."""
    chosen = _chosen(state)
    there = [each for each in chosen.versions if for_.admits(each)]
    found = compatibility.commonest(compatibility.rooms(view.spec.compatibility, there))
    if found is None:
        raise _unbuildable(view, chosen)
    return found


def _unbuildable(view: ProfileView, chosen: AcceleratorView) -> _Unbuildable:
    return _Unbuildable(
        f"BuildProfile {view.name} builds for {compatibility.wanted(view.spec.compatibility)}; "
        f"{chosen.name} has {compatibility.said(chosen.versions) or 'no known version'}"
    )


def _home(
    view: ProfileView, for_: NodeClass, state: State, base: BaseArtifact | None, shape: ShapeBucket | None = None
) -> tuple[Home, BuildArtifactSpec]:
    """Where the artifact is or is to be, and what it is there; of ``shape``, where that is not what placement says."""
    assert state.facts is not None
    snapshot, model = state.snapshot, state.spec.model
    own = _wanted(view, for_, state, base, model.credentials_secret_ref, shape)
    mine = namespace_of(snapshot.deployment)
    if not sharing.is_wanted(view.spec):
        return Home(mine), own
    ours = snapshot.settings.builds_namespace
    if not ours:
        return Home(mine, why_not="the installation names no namespace for shared builds"), own
    base_there = base.model_copy(update={"namespace": None}) if base is not None else None
    there = _wanted(view, for_, state, base_there, None, shape)
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
    view: ProfileView,
    for_: NodeClass,
    state: State,
    base: BaseArtifact | None,
    credentials: str | None,
    shape: ShapeBucket | None,
) -> BuildArtifactSpec:
    placement, facts, snapshot = state.placement, state.facts, state.snapshot
    assert placement is not None
    assert facts is not None
    assert placement.dtype is not None
    assert placement.bucket is not None
    shape = shape or placement.bucket
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
        trusted(state.spec, _chosen(state).spec, facts),
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


def _look(chain: Sequence[ProfileView], for_: NodeClass, state: State) -> _Look:
    """How far the artifact for a class is: the last of the chain, or the first that is not in the store."""
    base: BaseArtifact | None = None
    home = Home(namespace_of(state.snapshot.deployment))
    try:
        for view in chain:
            if view.awaited:
                # Which artifact it is depends on what the probe finds.
                return _Look(for_, Reason.PROBING, f"BuildProfile {view.name}: {view.reason}", home)
            last = view is chain[-1]
            home, wanted = _home(view, for_ if last else _class_of_base(view, for_, state), state, base)
            found = _look_at(wanted, home, for_, state)
            if last and len(chain) == 1:
                return _larger(found, view, for_, state) or found
            if last or not found.ready:
                return found
            base = BaseArtifact(
                name=found.name,
                key=wanted.key,
                location=found.location,
                namespace=home.namespace if home.shared else None,
            )
    except _Unbuildable as error:
        return _Look(for_, Reason.INVALID_SPEC, str(error), home, failed=True)
    raise AssertionError("a chain has at least the profile itself")


def _larger(exact: _Look, view: ProfileView, for_: NodeClass, state: State) -> _Look | None:
    """An artifact in the store that covers what is needed, where the one of just these sizes is neither there nor made.

    One that the deployment has already is kept: that the other one comes to be is no reason to move.
    """
    placement, facts, snapshot = state.placement, state.facts, state.snapshot
    assert placement is not None
    assert placement.bucket is not None
    assert facts is not None
    has = _artifacts_of(snapshot)
    if exact.ready and (exact.name in has or not has):
        return None
    capability, shapes = _chosen(state).spec.capability, view.spec.shapes
    others = covering(
        placement.bucket,
        _within(shapes.sequence, capability.max_sequence_length),
        _within(shapes.batch, capability.max_batch_size),
        facts.max_sequence_length,
    )
    made = exact.existing is not None and not exact.failed and not is_deleting(exact.existing)
    kept = [shape for shape in others if shape in has.values()]
    # Whoever asked for the exact one, or finds it, does not look for another.
    for shape in kept if made else [*kept, *(shape for shape in others if shape not in kept)]:
        home, wanted = _home(view, for_, state, None, shape)
        look = _look_at(wanted, home, for_, state)
        fits = look.ready and look.existing is not None and not artifact_plan.is_stale(look.existing)
        if fits and (look.name in has or not made):
            return look
    return None


def _artifacts_of(snapshot: DeploymentSnapshot) -> dict[str, ShapeBucket]:
    """The artifacts that the deployment's status names, as far as they are there, and what they are compiled to."""
    status = snapshot.deployment.get("status") or {}
    named = {
        share["artifact"]: snapshot.artifact_at(share.get("artifactNamespace"), share["artifact"])
        for share in (status, *(status.get("classes") or ()))
        if share.get("artifact")
    }
    return {name: spec_of(found).shape for name, found in named.items() if found is not None}


def _within(buckets: Sequence[int], limit: int | None) -> list[int]:
    return [each for each in buckets if limit is None or each <= limit]


def _look_at(wanted: BuildArtifactSpec, home: Home, for_: NodeClass, state: State) -> _Look:
    snapshot, name = state.snapshot, artifact_name(wanted.key)
    existing = (snapshot.shared_artifacts if home.shared else snapshot.artifacts).get(name)

    def look(reason: Reason, message: str, **further: Any) -> _Look:
        return _Look(for_, reason, message + home.suffix, home, wanted, existing, **further)

    if existing is None:
        return look(Reason.BUILDING, f"{name} is requested")
    if is_deleting(existing):
        # What the store has of it is adopted by the next one of the name, unless nobody wanted it in time.
        return look(Reason.DELETING, f"{name} is being deleted, and asked for again when it is gone")
    if artifact_plan.is_ready(existing):
        return look(Reason.BUILT, str(existing["status"].get("location")), ready=True)
    conditions = {entry["type"]: entry for entry in (existing.get("status") or {}).get("conditions") or []}
    ready = conditions.get(ConditionType.READY)
    reason = reason_or(ready["reason"], Reason.BUILDING) if ready else Reason.BUILDING
    message = f"{name}: {ready['message']}" if ready else f"{name} is requested"
    if home.shared and sharing.failed_by_its_source(existing) and not sharing.same_source(spec_of(existing), wanted):
        # What somebody else's source came to says nothing about this one.
        return look(reason, message, given_up_in=sharing.seconds_to_replacement(existing, state.now))
    stalled = ConditionType.STALLED in conditions
    if stalled and recipe_was_mended(existing, wanted):
        return look(reason, message, given_up_in=0)
    return look(reason, message, failed=stalled)


def _request(look: _Look, state: State) -> None:
    """Asks for what was looked for and is not there."""
    if look.wanted is None or look.ready:
        return
    if look.existing is None:
        state.apply.append(
            {
                "apiVersion": names.API_VERSION,
                "kind": "BuildArtifact",
                "metadata": {
                    "name": look.name,
                    "namespace": look.home.namespace,
                    "labels": pods.labels(names.ROLE_BUILD),
                },
                "spec": look.wanted.to_wire(),
            }
        )
        # An artifact that nobody refers to is removed, so the reference comes first.
        state.status_first = True
    elif look.given_up_in:
        state.requeue(look.given_up_in)
    elif look.given_up_in is not None:
        state.delete.append(deletion_of(look.existing))
