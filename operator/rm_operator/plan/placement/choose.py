"""Placement as a whole: filter, estimate, score, choose, explain."""

from collections.abc import Iterable, Sequence

from rm_api.conditions import Reason
from rm_api.kinds.build_artifact import ShapeBucket
from rm_api.placement import Candidate

from rm_operator.plan import buckets
from rm_operator.plan.placement import explain, filters
from rm_operator.plan.placement.assess import Obstacle, assessment_of
from rm_operator.plan.placement.explain import Explanation, Ranked
from rm_operator.plan.placement.question import Cause, Question, Removed
from rm_operator.plan.placement.request import AcceleratorView, PlacementRequest, PlacementResult

MAX_CANDIDATES = 16
STABILIZATION_SECONDS = 300
"""How long a clearly better accelerator must have been there until a deployment moves to it."""


def place(request: PlacementRequest) -> PlacementResult:
    """Where the deployment runs. Pure, total, and independent of the order of accelerators and profiles.

    A deployment stays on its current accelerator as long as that can take it, unless another one is clearly better and
    has been so for a while; a change of policy needs no waiting.
    """
    question, assessment = Question(request), assessment_of(request)
    ranked: list[Ranked] = []
    beyond: list[Ranked] = []
    out: list[tuple[str, Obstacle]] = []
    for accelerator in request.accelerators:
        found = assessment.of(question, accelerator)
        if isinstance(found, Obstacle):
            out.append((accelerator.name, found))
            continue
        try:
            filters.fitting_version(accelerator, found.way.profile)
        except Removed as removal:
            out.append((accelerator.name, Obstacle(removal.cause, str(removal))))
            continue
        one = Ranked(accelerator, found)
        try:
            for check in filters.AVAILABLE:
                check(question, accelerator, found.way.group)
        except Removed as removal:
            out.append((accelerator.name, Obstacle(removal.cause, str(removal))))
            beyond.append(one)
        else:
            ranked.append(one)
    ranked.sort(key=lambda one: one.fit.rank)
    beyond.sort(key=lambda one: one.fit.rank)
    out.sort(key=lambda one: (-one[1].cause, one[0]))
    if not ranked:
        return _unplaced(question, out, beyond)

    chosen, leader = _choose(request, ranked)
    awaited = [one for one in beyond if one.fit.rank.clearly_before(chosen.fit.rank)]
    shown = ranked[:MAX_CANDIDATES]
    if all(one is not chosen for one in shown):
        shown[-1] = chosen
    explanation = Explanation(question, assessment.goal, ranked, chosen, leader)
    fitting = [explanation.eligible(one) for one in shown]
    return PlacementResult(
        shape=question.shape,
        reason=Reason.PLACED,
        message=explanation.placed(),
        candidates=(*fitting, *_removed(out[: MAX_CANDIDATES - len(fitting)])),
        chosen=chosen.name,
        profile=None if chosen.fit.way.profile is None else chosen.fit.way.profile.name,
        dtype=chosen.fit.way.dtype,
        bucket=_bucket(chosen),
        waits_for=tuple(one.name for one in awaited),
        leader=None if leader is None else leader.name,
        devices=_devices(awaited if leader is None else [*awaited, leader]),
    )


def selected(request: PlacementRequest) -> tuple[AcceleratorView, ...]:
    """The accelerators that the deployment selects and its namespace may use, whether they can take it or not.

    Where it may use none of them, all that it selects.
    """
    question = Question(request)

    def passes(accelerator: AcceleratorView, checks: Sequence[filters.Check]) -> bool:
        try:
            for check in checks:
                check(question, accelerator)
        except Removed:
            return False
        return True

    named = tuple(each for each in request.accelerators if passes(each, filters.SELECTED))
    return tuple(each for each in named if passes(each, [filters.allowed_namespace])) or named


def _bucket(chosen: Ranked) -> ShapeBucket:
    way = chosen.fit.way
    return buckets.bucket(way.sequence, way.batch, way.prefill_chunk, way.group)


def _devices(ranked: Iterable[Ranked]) -> dict[str, int]:
    return {one.name: one.fit.way.group.devices for one in ranked if one.fit.way.group.devices > 1}


def _choose(request: PlacementRequest, ranked: list[Ranked]) -> tuple[Ranked, Ranked | None]:
    """The accelerator to be on, and one that will be instead of it if nothing changes."""
    best = ranked[0]
    current = next((one for one in ranked if one.name == request.current), best)
    if not best.fit.rank.clearly_before(current.fit.rank):
        return current, None
    if request.led_for >= STABILIZATION_SECONDS or request.current_policy not in (None, request.spec.policy.type):
        return best, None
    return current, best


def _unplaced(question: Question, out: list[tuple[str, Obstacle]], beyond: list[Ranked]) -> PlacementResult:
    request = question.request
    pinned = request.spec.build_profile
    causes = {obstacle.cause for _, obstacle in out}
    if pinned is not None and all(profile.name != pinned for profile in request.profiles):
        reason, message = Reason.PROFILE_NOT_FOUND, explain.no_profile(request)
    elif not request.accelerators:
        reason, message = Reason.NO_ACCELERATOR, explain.no_accelerator(request)
    else:
        # What is nearest says what it is about.
        reason = _REASONS.get(max(causes), Reason.NO_ELIGIBLE_ACCELERATOR)
        message = explain.nowhere(request, [(name, obstacle.sentence) for name, obstacle in out])
    return PlacementResult(
        question.shape,
        reason,
        message,
        tuple(_removed(out[:MAX_CANDIDATES])),
        waits_for=tuple(one.name for one in beyond),
        devices=_devices(beyond),
    )


_REASONS = {
    Cause.CODE: Reason.REMOTE_CODE_NOT_ALLOWED,
    Cause.REFUSED: Reason.UNSUPPORTED_MODEL,
    Cause.SLO: Reason.SLO_UNREACHABLE,
}


def _removed(out: list[tuple[str, Obstacle]]) -> list[Candidate]:
    return [explain.removed(name, obstacle.sentence) for name, obstacle in out]
