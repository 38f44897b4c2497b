"""Placement as a whole: filter, estimate, score, choose, explain."""

from rm_api.conditions import Reason
from rm_api.kinds.model_deployment import Candidate

from rm_operator.plan import buckets
from rm_operator.plan.placement import explain, filters
from rm_operator.plan.placement.estimate import estimate
from rm_operator.plan.placement.explain import Explanation, Ranked
from rm_operator.plan.placement.machine import machine_of
from rm_operator.plan.placement.question import Cause, Question, Removed
from rm_operator.plan.placement.request import AcceleratorView, PlacementRequest, PlacementResult
from rm_operator.plan.placement.score import Goal
from rm_operator.plan.placement.ways import best_way

MAX_CANDIDATES = 16
STABILIZATION_SECONDS = 300
"""How long a clearly better accelerator must have been there until a deployment moves to it."""


def place(request: PlacementRequest) -> PlacementResult:
    """Where the deployment runs. Pure, total, and independent of the order of accelerators and profiles.

    A deployment stays on its current accelerator as long as that can take it, unless another one is clearly better and
    has been so for a while; a change of policy needs no waiting.
    """
    question, goal = Question(request), Goal(request.spec.policy)
    ranked: list[Ranked] = []
    beyond: list[Ranked] = []
    out: list[tuple[str, Removed]] = []
    for accelerator in request.accelerators:
        one = None
        try:
            one = _assess(question, goal, accelerator)
            for check in filters.AVAILABLE:
                check(question, accelerator)
            ranked.append(one)
        except Removed as removal:
            out.append((accelerator.name, removal))
            if one is not None:
                beyond.append(one)
    ranked.sort(key=lambda one: one.rank)
    beyond.sort(key=lambda one: one.rank)
    out.sort(key=lambda one: (-one[1].cause, one[0]))
    if not ranked:
        return _unplaced(question, out, beyond)

    chosen, leader = _choose(request, ranked)
    shown = ranked[:MAX_CANDIDATES]
    if all(one is not chosen for one in shown):
        shown[-1] = chosen
    explanation = Explanation(question, goal, ranked, chosen, leader)
    fitting = [explanation.eligible(one) for one in shown]
    return PlacementResult(
        shape=question.shape,
        reason=Reason.PLACED,
        message=explanation.placed(),
        candidates=(*fitting, *_removed(out[: MAX_CANDIDATES - len(fitting)])),
        chosen=chosen.name,
        profile=None if chosen.way.profile is None else chosen.way.profile.name,
        dtype=chosen.way.dtype,
        bucket=buckets.bucket(chosen.way.sequence, chosen.way.batch),
        waits_for=tuple(one.name for one in beyond if one.rank.clearly_before(chosen.rank)),
        leader=None if leader is None else leader.name,
    )


def _assess(question: Question, goal: Goal, accelerator: AcceleratorView) -> Ranked:
    """How the accelerator would do, whether or not it has a device now. Raises ``Removed``."""
    for check in filters.WANTED:
        check(question, accelerator)
    way = best_way(question, accelerator)
    figures = estimate(question.work(way.dtype), machine_of(accelerator.spec))
    filters.within_objectives(question, figures)
    points = goal.score(figures)
    return Ranked(accelerator, way, figures, points, goal.rank(accelerator, points, figures.currency))


def _choose(request: PlacementRequest, ranked: list[Ranked]) -> tuple[Ranked, Ranked | None]:
    """The accelerator to be on, and one that will be instead of it if nothing changes."""
    best = ranked[0]
    current = next((one for one in ranked if one.name == request.current), best)
    if not best.rank.clearly_before(current.rank):
        return current, None
    if request.led_for >= STABILIZATION_SECONDS or request.current_policy not in (None, request.spec.policy.type):
        return best, None
    return current, best


def _unplaced(question: Question, out: list[tuple[str, Removed]], beyond: list[Ranked]) -> PlacementResult:
    request = question.request
    pinned = request.spec.build_profile
    causes = {removal.cause for _, removal in out}
    if pinned is not None and all(profile.name != pinned for profile in request.profiles):
        reason, message = Reason.PROFILE_NOT_FOUND, explain.no_profile(request)
    elif not request.accelerators:
        reason, message = Reason.NO_ACCELERATOR, explain.no_accelerator(request)
    else:
        only_slow = Cause.SLO in causes and Cause.CAPACITY not in causes
        reason = Reason.SLO_UNREACHABLE if only_slow else Reason.NO_ELIGIBLE_ACCELERATOR
        message = explain.nowhere(request, [(name, str(removal)) for name, removal in out])
    return PlacementResult(
        question.shape,
        reason,
        message,
        tuple(_removed(out[:MAX_CANDIDATES])),
        waits_for=tuple(one.name for one in beyond),
    )


def _removed(out: list[tuple[str, Removed]]) -> list[Candidate]:
    return [explain.removed(name, str(removal)) for name, removal in out]
