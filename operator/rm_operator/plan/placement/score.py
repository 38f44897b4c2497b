"""How candidates are compared.

score = Σ weight · ln(reference / figure), where a greater figure is worse. The references are constants: normalising by
the best of the fleet would let an accelerator that nobody chooses decide between two others. With references of one
unit a score is the negative logarithm of the plain figure, and scores of different days and fleets compare.
"""

import math
from dataclasses import dataclass

from rm_api.kinds.accelerator_resource import DEFAULT_PRIORITY, AcceleratorType
from rm_api.kinds.model_deployment import PolicyType

from rm_operator.plan.placement.estimate import Estimate
from rm_operator.plan.placement.request import AcceleratorView

# Weights of: seconds per answer, seconds per request at full batch, joules per token, price per million tokens.
_WEIGHTS: dict[PolicyType, tuple[float, float, float, float]] = {
    PolicyType.LATENCY: (1.0, 0.0, 0.0, 0.0),
    PolicyType.THROUGHPUT: (0.0, 1.0, 0.0, 0.0),
    PolicyType.ENERGY: (0.0, 0.0, 1.0, 0.0),
    PolicyType.COST: (0.0, 0.0, 0.0, 1.0),
}
_REFERENCES = (1.0, 1.0, 1.0, 1.0)
"""One second per answer, one second per request, one joule per token, one unit of currency per million tokens."""

_LEAST = 1e-9
"""What costs nothing, or draws nothing, counts as this, as zero has no logarithm."""

SCORE_DECIMALS = 4
"""Scores are compared as they are shown: closer than 0.01 % is a tie, and the priority decides."""

# Which type is preferred where figures are not known. After the preferred ones comes the usual order of priority.
_PREFERRED: dict[PolicyType, tuple[AcceleratorType, ...]] = {
    PolicyType.LATENCY: (AcceleratorType.NPU,),
    PolicyType.THROUGHPUT: (AcceleratorType.GPU,),
    PolicyType.ENERGY: (AcceleratorType.NPU, AcceleratorType.PIM),
    PolicyType.COST: (AcceleratorType.CPU,),
}

_HOME_CURRENCY = "USD"
"""Prices in different currencies are not compared; those in this one come first, then the others by their code."""


@dataclass(frozen=True, order=True)
class Rank:
    """Position among candidates, the lowest first. Depends on one candidate only, so no third one can swap two."""

    unknown: bool
    group: tuple[int, str]
    """Within known figures, the currency under the Cost policy; within unknown ones, the preference for the type."""
    loss: float
    """The negative score; 0 where it is not known."""
    disfavour: int
    """The negative priority."""
    name: str


def score(policy: PolicyType, estimate: Estimate) -> float | None:
    """The score, rounded; None where a figure that the policy weighs is not known."""
    seconds_per_request = None if estimate.rate is None else 1.0 / estimate.rate
    figures = (estimate.answer, seconds_per_request, estimate.joules_per_token, estimate.price)
    total = 0.0
    for weight, reference, value in zip(_WEIGHTS[policy], _REFERENCES, figures, strict=True):
        if weight == 0.0:
            continue
        if value is None:
            return None
        total += weight * math.log(reference / max(value, _LEAST))
    return round(total, SCORE_DECIMALS) + 0.0  # no negative zero


def rank(policy: PolicyType, accelerator: AcceleratorView, points: float | None, currency: str | None) -> Rank:
    """Where a candidate with this score stands."""
    spec = accelerator.spec
    priority = DEFAULT_PRIORITY[spec.type] if spec.priority is None else spec.priority
    if points is None:
        group = (preference(policy).index(spec.type), "")
    elif policy is PolicyType.COST and currency is not None:
        group = (int(currency != _HOME_CURRENCY), currency)
    else:
        group = (0, "")
    return Rank(points is None, group, -(points or 0.0), -priority, accelerator.name)


def preference(policy: PolicyType) -> tuple[AcceleratorType, ...]:
    """All types, the one that is preferred without figures first."""
    first = _PREFERRED[policy]
    rest = sorted((t for t in AcceleratorType if t not in first), key=lambda t: -DEFAULT_PRIORITY[t])
    return (*first, *rest)
