"""Sentences and figures for people: a candidate's terms, why it ranks where it does, and the condition's message."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from rm_api.kinds.model_deployment import Candidate, PolicyType, Term

from rm_operator.plan.placement.estimate import GIB, Estimate, memory_limit
from rm_operator.plan.placement.filters import Option
from rm_operator.plan.placement.request import AcceleratorView, PlacementRequest
from rm_operator.plan.placement.score import SCORE_DECIMALS, Rank

MAX_REASON = 512
MAX_MESSAGE = 1024
_LARGEST = Decimal(999_999_999_999)
_ALL_DIGITS_FIT = 0.001
"""From here on, six decimals hold four significant digits."""

# What a policy wants, and the figure that decides.
_WANTED: dict[PolicyType, tuple[str, str]] = {
    PolicyType.LATENCY: ("lowest", "latency"),
    PolicyType.THROUGHPUT: ("highest", "rate"),
    PolicyType.ENERGY: ("lowest", "joulesPerToken"),
    PolicyType.COST: ("lowest", "pricePerMillionTokens"),
}

# Declarations that matter to one policy only.
_ONLY_FOR = {"power": PolicyType.ENERGY, "cost": PolicyType.COST}


@dataclass(frozen=True)
class Ranked:
    """An accelerator that could take the deployment."""

    accelerator: AcceleratorView
    option: Option
    estimate: Estimate
    score: float | None
    rank: Rank

    @property
    def name(self) -> str:
        """The accelerator's name."""
        return self.accelerator.name


def decimal(value: float) -> Decimal:
    """``value`` as the API shows it: four significant digits, at most six decimals, never an exponent."""
    rounded = Decimal(f"{value:.3e}" if value >= _ALL_DIGITS_FIT else f"{value:.6f}")
    return Decimal(f"{min(rounded, _LARGEST):.6f}".rstrip("0").rstrip("."))


def terms(ranked: Ranked) -> list[Term]:
    """The figures that are known, with their units."""
    return [Term(name=name, value=decimal(value), unit=unit) for name, (value, unit) in _figures(ranked).items()]


def _figures(ranked: Ranked) -> dict[str, tuple[float, str]]:
    estimate = ranked.estimate
    figures: tuple[tuple[str, float | None, float, str], ...] = (
        ("ttft", estimate.ttft, 1e3, "ms"),
        ("tpot", estimate.tpot, 1e3, "ms"),
        ("latency", estimate.answer, 1e3, "ms"),
        ("rate", estimate.rate, 1, "req/s"),
        ("memory", estimate.memory.total, 1 / GIB, "GiB"),
        ("memoryLimit", memory_limit(ranked.accelerator.spec), 1 / GIB, "GiB"),
        ("joulesPerToken", estimate.joules_per_token, 1, "J/token"),
        ("pricePerMillionTokens", estimate.price, 1, f"{estimate.currency}/Mtoken"),
    )
    return {name: (value * scale, unit) for name, value, scale, unit in figures if value is not None}


def eligible(request: PlacementRequest, one: Ranked, ranked: Sequence[Ranked], chosen: Ranked) -> Candidate:
    """A candidate that could take it; ``ranked`` are all of these."""
    return Candidate(
        name=one.name,
        eligible=True,
        score=None if one.score is None else f"{one.score:.{SCORE_DECIMALS}f}",
        profile=one.option.profile.name,
        terms=terms(one),
        provenance=one.estimate.provenance,
        reason=line(_why(request, one, ranked, chosen), MAX_REASON),
    )


def removed(name: str, sentence: str) -> Candidate:
    """A candidate that a filter removed."""
    return Candidate(name=name, eligible=False, reason=line(sentence, MAX_REASON))


def placed(request: PlacementRequest, ranked: Sequence[Ranked], chosen: Ranked) -> str:
    """The line for a deployment that has a place."""
    option, why = chosen.option, _why(request, chosen, ranked, chosen)
    how = f"profile {option.profile.name}, {option.dtype}"
    return line(f"{request.deployment} goes to {chosen.name} ({how}): {why}", MAX_MESSAGE)


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


def _why(request: PlacementRequest, one: Ranked, ranked: Sequence[Ranked], chosen: Ranked) -> str:
    parts = [_standing(request, one, ranked, chosen)]
    if one.option.dtype is not request.facts.dtype and request.spec.requirements.dtype is None:
        parts.append(f"computes in {one.option.dtype}, as it does not take the model's {request.facts.dtype}")
    free = one.accelerator.free
    if one.name != request.current and free is not None and free < request.spec.replicas:
        parts.append(f"only {free} of the {request.spec.replicas} devices that spec.replicas needs are free")
    return "; ".join(parts)


def _standing(request: PlacementRequest, one: Ranked, ranked: Sequence[Ranked], chosen: Ranked) -> str:
    policy, best = request.spec.policy.type, ranked[0]
    word, figure = _WANTED[policy]
    if one is best and one.score is not None and len(ranked) > 1:
        return f"{word} {figure}, {_value(policy, one)}, of {len(ranked)} that can take it"
    parts = [f"{figure} {_value(policy, one)}"]
    if len(ranked) == 1:
        parts.append("the only one that can take it")
    elif one is not best:
        parts.append(_behind(policy, one, best))
    if one is chosen and one is not best:
        parts.append(
            "kept, as a deployment is not moved while its accelerator can take it; "
            "to move it, exclude this one in spec.accelerators"
        )
    return ", ".join(parts)


def _value(policy: PolicyType, one: Ranked) -> str:
    if one.score is None:
        lacking = [name for name in one.estimate.missing if _ONLY_FOR.get(name, policy) is policy]
        return f"not known (not declared: {', '.join(lacking)}), ranked by its type"
    value, unit = _figures(one)[_WANTED[policy][1]]
    return f"{decimal(value)} {unit}"


def _behind(policy: PolicyType, one: Ranked, best: Ranked) -> str:
    if one.score is None or best.score is None:
        return f"behind {best.name}"
    if one.rank.group != best.rank.group:
        return f"behind {best.name}, as prices in different currencies are not compared"
    if one.score == best.score:
        return f"equal to {best.name}, which has the higher priority or the earlier name"
    ratio = math.exp(best.score - one.score)
    if policy is PolicyType.THROUGHPUT:
        ratio = 1 / ratio
    return f"{decimal(float(f'{ratio:.2e}'))} times that of {best.name}"


def _some(names: Iterable[str], most: int = 8) -> str:
    every = list(names)
    rest = len(every) - most
    return ", ".join(every[:most]) + (f" and {rest} more" if rest > 0 else "")
