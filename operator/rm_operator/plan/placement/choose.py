"""Placement as a whole: filter, estimate, score, choose, explain."""

from rm_api.conditions import Reason
from rm_api.kinds.model_deployment import Candidate

from rm_operator.plan import buckets
from rm_operator.plan.placement import explain, filters
from rm_operator.plan.placement.estimate import estimate
from rm_operator.plan.placement.explain import Ranked
from rm_operator.plan.placement.request import AcceleratorView, PlacementRequest, PlacementResult
from rm_operator.plan.placement.score import rank, score

MAX_CANDIDATES = 16


def place(request: PlacementRequest) -> PlacementResult:
    """Where the deployment runs. Pure, total, and independent of the order of accelerators and profiles.

    A deployment stays on its current accelerator as long as that can take it; otherwise the best one is chosen.
    """
    ranked: list[Ranked] = []
    out: list[tuple[str, str]] = []
    for accelerator in sorted(request.accelerators, key=lambda a: a.name):
        try:
            option = filters.examine(request, accelerator)
        except filters.Removed as removal:
            out.append((accelerator.name, str(removal)))
        else:
            ranked.append(_rank(request, accelerator, option))
    ranked.sort(key=lambda one: one.rank)
    if not ranked:
        return _unplaced(request, out)

    chosen = next((one for one in ranked if one.name == request.current), ranked[0])
    shown = ranked[:MAX_CANDIDATES]
    if all(one is not chosen for one in shown):
        shown[-1] = chosen
    fitting = [explain.eligible(request, one, ranked, chosen) for one in shown]
    return PlacementResult(
        shape=buckets.required_shape(request.spec, request.facts),
        reason=Reason.PLACED,
        message=explain.placed(request, ranked, chosen),
        candidates=(*fitting, *_removed(out[: MAX_CANDIDATES - len(fitting)])),
        chosen=chosen.name,
        profile=chosen.option.profile.name,
        dtype=chosen.option.dtype,
        bucket=buckets.bucket(chosen.option.sequence, chosen.option.batch),
    )


def _rank(request: PlacementRequest, accelerator: AcceleratorView, option: filters.Option) -> Ranked:
    spec, policy = request.spec, request.spec.policy.type
    shape = buckets.required_shape(spec, request.facts)
    figures = estimate(request.facts, accelerator.spec, option.dtype, spec.workload, shape)
    points = score(policy, figures)
    return Ranked(accelerator, option, figures, points, rank(policy, accelerator, points, figures.currency))


def _unplaced(request: PlacementRequest, out: list[tuple[str, str]]) -> PlacementResult:
    pinned = request.spec.build_profile
    if pinned is not None and all(profile.name != pinned for profile in request.profiles):
        reason, message = Reason.PROFILE_NOT_FOUND, explain.no_profile(request)
    elif not request.accelerators:
        reason, message = Reason.NO_ACCELERATOR, explain.no_accelerator(request)
    else:
        reason, message = Reason.NO_ELIGIBLE_ACCELERATOR, explain.nowhere(request, out)
    shape = buckets.required_shape(request.spec, request.facts)
    return PlacementResult(shape, reason, message, tuple(_removed(out[:MAX_CANDIDATES])))


def _removed(out: list[tuple[str, str]]) -> list[Candidate]:
    return [explain.removed(name, sentence) for name, sentence in out]
