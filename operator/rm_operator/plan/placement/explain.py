"""Sentences and figures for people: a candidate's terms, why it ranks where it does, and the condition's message."""

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from rm_api.kinds.accelerator_resource import ProvisioningMode
from rm_api.placement import Candidate, PolicyType, Term

from rm_operator.plan.memo import Memo
from rm_operator.plan.placement.assess import Fit
from rm_operator.plan.placement.machine import GIB, machine_of
from rm_operator.plan.placement.question import Question
from rm_operator.plan.placement.request import AcceleratorView, PlacementRequest
from rm_operator.plan.placement.score import COST, ENERGY, MARGIN_PERCENT, SCORE_DECIMALS, Goal

MAX_REASON = 512
MAX_MESSAGE = 1024
_LARGEST = Decimal(999_999_999_999)
_SIGNIFICANT = 4
_MOST_DECIMALS = 6
"""What the API takes."""

# What a policy wants, and the figure that decides.
_WANTED: dict[PolicyType, tuple[str, str]] = {
    PolicyType.LATENCY: ("lowest", "latency"),
    PolicyType.THROUGHPUT: ("highest", "rate"),
    PolicyType.ENERGY: ("lowest", "joulesPerToken"),
    PolicyType.COST: ("lowest", "pricePerMillionTokens"),
}
_MISSING_WEIGHS = {
    "power": (ENERGY,),
    "cost": (COST,),
    "cost.perMillionInputTokens": (COST,),
    "cost.perMillionOutputTokens": (COST,),
}
"""Declarations that matter only where these figures are weighed."""


class Ranked(NamedTuple):
    """An accelerator that could take the deployment."""

    accelerator: AcceleratorView
    fit: Fit

    @property
    def name(self) -> str:
        """The accelerator's name."""
        return self.accelerator.name


def decimal(value: float) -> Decimal:
    """``value`` as the API shows it: four significant digits, at most six decimals, never an exponent."""
    if value <= 0.0:
        return Decimal(0)
    wanted = _SIGNIFICANT - 1 - math.floor(math.log10(value))
    places = min(wanted, _MOST_DECIMALS)
    text = f"{round(value, places):.{max(places, 0)}f}"
    if places > 0:
        text = text.rstrip("0").rstrip(".")
    return min(Decimal(text), _LARGEST)


def _terms(ranked: Ranked) -> list[Term]:
    """The figures that are known, with their units. They are ours, so nobody needs to validate them."""
    fit = ranked.fit
    if fit.terms is None:
        fit.terms = [
            Term.model_construct(name=name, value=decimal(value), unit=unit)
            for name, (value, unit) in figures(ranked).items()
        ]
    return fit.terms


def figures(ranked: Ranked) -> dict[str, tuple[float, str]]:
    """The figures that are known, by the name of their term, with their units."""
    estimate = ranked.fit.estimate
    memory, group = estimate.memory, ranked.fit.way.group
    several = group.devices > 1
    known: tuple[tuple[str, float | None, float, str], ...] = (
        ("tensorParallel", group.tensor if several else None, 1, "devices"),
        ("pipelineParallel", group.pipeline if group.pipeline > 1 else None, 1, "stages"),
        ("queue", estimate.queue or None, 1e3, "ms"),
        ("ttft", estimate.ttft, 1e3, "ms"),
        ("tpot", estimate.tpot, 1e3, "ms"),
        ("latency", estimate.answer, 1e3, "ms"),
        ("rate", estimate.rate, 1, "req/s"),
        ("replicas", estimate.replicas, 1, "replicas"),
        ("utilisation", estimate.utilisation, 1e2, "%"),
        ("memory", None if memory is None else memory.total, 1 / GIB, "GiB"),
        ("memoryLimit", None if memory is None else machine_of(ranked.accelerator.spec).memory, 1 / GIB, "GiB"),
        ("joulesPerToken", estimate.joules_per_token, 1, "J/token"),
        ("pricePerMillionTokens", estimate.price, 1, f"{estimate.currency}/Mtoken"),
    )
    return {name: (value * scale, unit) for name, value, scale, unit in known if value is not None}


class Explanation:
    """Why candidates stand where they stand. ``ranked`` are all that can take the deployment, the best first.

    ``leader`` is the one that will be chosen if it stays clearly better than the chosen one.
    """

    def __init__(
        self, question: Question, goal: Goal, ranked: Sequence[Ranked], chosen: Ranked, leader: Ranked | None
    ) -> None:
        self._question = question
        self._goal = goal
        self._policy = question.spec.policy.type
        self._ranked = ranked
        self._chosen = chosen
        self._leader = leader

    def eligible(self, one: Ranked) -> Candidate:
        """One of the candidates that could take it; the same object as long as the same is to be said."""
        fit, reason = one.fit, line(self._why(one), MAX_REASON)
        if fit.candidate is None or fit.candidate.reason != reason:
            fit.candidate = Candidate.model_construct(
                name=one.name,
                eligible=True,
                score=None if fit.score is None else f"{fit.score:.{SCORE_DECIMALS}f}",
                profile=None if fit.way.profile is None else fit.way.profile.name,
                terms=_terms(one),
                provenance=fit.estimate.provenance.value,
                reason=reason,
            )
        return fit.candidate

    def placed(self) -> str:
        """The line for a deployment that has a place."""
        way = self._chosen.fit.way
        how = f"profile {way.profile.name}, {way.dtype}" if way.profile is not None else "a remote endpoint"
        if way.group.devices > 1:
            how += f", {way.group.devices} devices for each replica"
        deployment = self._question.request.deployment
        return line(f"{deployment} goes to {self._chosen.name} ({how}): {self._why(self._chosen)}", MAX_MESSAGE)

    def _why(self, one: Ranked) -> str:
        question, spec = self._question, one.accelerator.spec
        parts = [self._standing(one)]
        if one.fit.way.dtype is not question.dtype:
            parts.append(f"computes in {one.fit.way.dtype}, as it does not take the model's {question.facts.dtype}")
        if one.fit.rank.doubtful:
            parts.append(_doubt(one))
        free, healthy = one.accelerator.free, one.accelerator.healthy
        devices = question.replicas * one.fit.way.group.devices
        if free is not None and free < devices:
            parts.append(f"only {free} of the {devices} devices that spec.replicas needs are free")
        elif spec.provisioning.mode is ProvisioningMode.ELASTIC and healthy == 0:
            seconds = spec.provisioning.expected_seconds
            parts.append("nodes come on demand" + (f", usually within {seconds} s" if seconds is not None else ""))
        return "; ".join(parts)

    def _standing(self, one: Ranked) -> str:
        ranked, best = self._ranked, self._ranked[0]
        word, figure = _WANTED.get(self._policy, ("highest", "weighted score"))
        fit = one.fit
        if fit.value is None:
            fit.value = self._value(one)
        value = fit.value
        if one is best and one.fit.score is not None and len(ranked) > 1:
            sure = sum(each.fit.rank.doubtful == fit.rank.doubtful for each in ranked)
            doubt = " without a doubt" if sure < len(ranked) else ""
            parts = [f"{word} {figure}, {value}, of {sure} that can take it{doubt}"]
        else:
            parts = [f"{figure} {value}"]
        if len(ranked) == 1:
            parts.append("the only one that can take it")
        elif one is not best:
            if fit.behind is None or fit.behind[0] is not best.fit:
                fit.behind = best.fit, self._behind(one, best)
            parts.append(fit.behind[1])
        if one is self._leader:
            parts.append(f"{self._chosen.name} is left for it if it stays clearly better")
        elif one is self._chosen and one is not best:
            parts.append(self._kept(best))
        return ", ".join(parts)

    def _kept(self, best: Ranked) -> str:
        if self._leader is not None:
            return f"kept for now; it moves to {best.name} if that stays clearly better"
        if not best.fit.rank.is_comparable(self._chosen.fit.rank):
            return f"kept, as a gain cannot be shown; to move it, exclude {self._chosen.name} in spec.accelerators"
        return f"kept, as a move for a gain of less than {MARGIN_PERCENT} % does not pay"

    def _value(self, one: Ranked) -> str:
        if one.fit.score is None:
            weights = self._goal.weights
            lacking = [
                name
                for name in one.fit.estimate.missing
                if any(weights[position] for position in _MISSING_WEIGHS.get(name, range(len(weights))))
            ]
            why = f"not declared: {', '.join(lacking)}" if lacking else "an endpoint declares none"
            return f"not known ({why}), ranked by its type"
        if self._policy is PolicyType.WEIGHTED:
            return f"{one.fit.score:.{SCORE_DECIMALS}f}"
        value, unit = figures(one)[_WANTED[self._policy][1]]
        return f"{decimal(value)} {unit}"

    def _behind(self, one: Ranked, best: Ranked) -> str:
        if one.fit.rank.doubtful != best.fit.rank.doubtful:
            return f"behind {best.name}, as it may not serve what is built for it"
        if one.fit.score is None or best.fit.score is None:
            return f"behind {best.name}"
        if one.fit.rank.group != best.fit.rank.group:
            return f"behind {best.name}, as prices in different currencies are not compared"
        if one.fit.score == best.fit.score:
            return f"equal to {best.name}, which has the higher priority or the earlier name"
        ratio = math.exp(best.fit.score - one.fit.score)
        if self._policy is PolicyType.WEIGHTED:
            return (
                f"its figures are in the weighted mean {decimal(float(f'{ratio:.2e}'))} times as bad as {best.name}'s"
            )
        if self._policy is PolicyType.THROUGHPUT:
            ratio = 1 / ratio
        return f"{decimal(float(f'{ratio:.2e}'))} times that of {best.name}"


def _doubt(one: Ranked) -> str:
    profile = one.fit.way.profile
    assert profile is not None
    return (
        f"its runtime plugin {one.accelerator.spec.plugin} is not known to serve {profile.spec.output.format}, which "
        f"BuildProfile {profile.name} makes; where it does not, exclude {one.name} in spec.accelerators"
    )


def _removed(name: str, sentence: str) -> Candidate:
    return Candidate.model_construct(name=name, eligible=False, reason=line(sentence, MAX_REASON))


removed: Memo[[str, str], Candidate] = Memo(_removed, most=1024)
"""A candidate that a filter removed, by its name and the filter's sentence."""


def no_accelerator(request: PlacementRequest) -> str:
    """The line for a cluster without accelerators."""
    return line(f"there is no AcceleratorResource for {request.deployment}; create one", MAX_MESSAGE)


def no_profile(request: PlacementRequest) -> str:
    """The line for a profile that spec.buildProfile names and that does not exist."""
    there = _some(sorted(p.name for p in request.profiles)) or "none"
    return line(
        f"the BuildProfile {request.spec.build_profile} does not exist (there are: {there}); "
        "create it, or change or remove spec.buildProfile",
        MAX_MESSAGE,
    )


def nowhere(request: PlacementRequest, out: Sequence[tuple[str, str]]) -> str:
    """The line for a deployment that nothing can take: which sentence removed which accelerators."""
    names: dict[str, list[str]] = {}
    for name, sentence in out:
        names.setdefault(sentence, []).append(name)
    selector = request.spec.accelerators.names
    unknown = sorted(set(selector) - {accelerator.name for accelerator in request.accelerators})
    parts = [f"{_some(unknown)}: no AcceleratorResource of this name exists"] if unknown else []
    parts += [f"{_some(group)}: {sentence}" for sentence, group in names.items()]
    return line(f"no accelerator can take {request.deployment}. {'. '.join(parts)}", MAX_MESSAGE)


def line(text: str, limit: int) -> str:
    """``text`` in one line of at most ``limit`` characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= limit else joined[: limit - 1] + "…"


def _some(names: Iterable[str], most: int = 8) -> str:
    every = list(names)
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")
