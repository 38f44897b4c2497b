"""How candidates are compared.

score = Σ weight · ln(reference / figure), where a greater figure is worse and the weights add up to 1. The references
are constants: normalising by the best of the fleet would let an accelerator that nobody chooses decide between two
others. With references of one unit a score is the negative logarithm of the plain figure, and scores of different days
and fleets compare.
"""

import math
from typing import NamedTuple

from rm_api.accelerator_types import DEFAULT_PRIORITY, AcceleratorType
from rm_api.placement import Policy, PolicyType

from rm_operator.plan.placement.estimate import Estimate
from rm_operator.plan.placement.request import AcceleratorView

# The figures that are weighed: seconds per answer, seconds per request at full batch, joules per token, price per
# million tokens; and the policies that want nothing but that figure.
_SINGLE = (PolicyType.LATENCY, PolicyType.THROUGHPUT, PolicyType.ENERGY, PolicyType.COST)
ENERGY, COST = 2, 3
"""Positions of figures that need declarations of their own."""
_REFERENCES = (1.0, 1.0, 1.0, 1.0)
"""One second per answer, one second per request, one joule per token, one unit of currency per million tokens."""

_LEAST = 1e-9
"""What costs nothing, or draws nothing, counts as this, as zero has no logarithm."""

SCORE_DECIMALS = 4
"""Scores are compared as they are shown: closer than 0.01 % is a tie, and the priority decides."""

MARGIN_PERCENT = 10
_MARGIN = round(math.log(1 + MARGIN_PERCENT / 100), SCORE_DECIMALS)
"""Difference of scores from which one accelerator is clearly better than another."""

# Which type is preferred where figures are not known. After the preferred ones comes the usual order of priority.
_PREFERRED: dict[PolicyType, tuple[AcceleratorType, ...]] = {
    PolicyType.LATENCY: (AcceleratorType.NPU,),
    PolicyType.THROUGHPUT: (AcceleratorType.GPU,),
    PolicyType.ENERGY: (AcceleratorType.NPU, AcceleratorType.PIM),
    PolicyType.COST: (AcceleratorType.CPU, AcceleratorType.REMOTE),
}

_HOME_CURRENCY = "USD"
"""Prices in different currencies are not compared; those in this one come first, then the others by their code."""


class Goal:
    """What a policy asks for, as weights of the four figures."""

    def __init__(self, policy: Policy) -> None:
        self.weights = _weights_of(policy)
        first = _PREFERRED[_SINGLE[max(range(len(_SINGLE)), key=lambda i: (self.weights[i], -i))]]
        rest = sorted((t for t in AcceleratorType if t not in first), key=lambda t: -DEFAULT_PRIORITY[t])
        self.preference: tuple[AcceleratorType, ...] = (*first, *rest)
        """All types, the one that is preferred without figures first: that of the heaviest weight."""

    def score(self, estimate: Estimate) -> float | None:
        """The score, rounded; None where a figure that counts is not known."""
        seconds_per_request = None if estimate.rate is None else 1.0 / estimate.rate
        figures = (estimate.answer, seconds_per_request, estimate.joules_per_token, estimate.price)
        total = 0.0
        for weight, reference, value in zip(self.weights, _REFERENCES, figures, strict=True):
            if weight == 0.0:
                continue
            if value is None:
                return None
            total += weight * math.log(reference / max(value, _LEAST))
        return round(total, SCORE_DECIMALS) + 0.0  # no negative zero

    def rank(
        self, accelerator: AcceleratorView, points: float | None, currency: str | None, *, doubtful: bool = False
    ) -> "Rank":
        """Where a candidate with this score stands; ``doubtful`` as in ``Rank``."""
        spec = accelerator.spec
        priority = DEFAULT_PRIORITY[spec.type] if spec.priority is None else spec.priority
        if points is None:
            group = (self.preference.index(spec.type), "")
        elif self.weights[COST] and currency is not None:
            group = (int(currency != _HOME_CURRENCY), currency)
        else:
            group = (0, "")
        return Rank(doubtful, points is None, group, -(points or 0.0), -priority, accelerator.name)


class Rank(NamedTuple):
    """Position among candidates, the lowest first. Depends on one candidate only, so no third one can swap two."""

    doubtful: bool
    """Its engine is not known to serve what would be built for it."""
    unknown: bool
    """A figure that counts is not known."""
    group: tuple[int, str]
    """Within known figures, the currency where prices count; within unknown ones, the preference for the type."""
    loss: float
    """The negative score; 0 where it is not known."""
    disfavour: int
    """The negative priority."""
    name: str

    def is_comparable(self, other: "Rank") -> bool:
        """True if the scores tell how much better one of the two is."""
        known = not self.unknown and not other.unknown
        return known and self.doubtful == other.doubtful and self.group == other.group

    def clearly_before(self, other: "Rank") -> bool:
        """True if moving from ``other`` gains so much that it is worth a move, as far as figures are known."""
        return self.is_comparable(other) and round(other.loss - self.loss, SCORE_DECIMALS) >= _MARGIN


def _weights_of(policy: Policy) -> tuple[float, ...]:
    if policy.type is not PolicyType.WEIGHTED:
        return tuple(float(policy.type is single) for single in _SINGLE)
    given = policy.weights
    numbers = (given.latency, given.throughput, given.energy, given.cost) if given is not None else (0, 0, 0, 0)
    total = sum(numbers)
    # Weights that say nothing prefer nothing.
    return tuple(number / total for number in numbers) if total else (0.25,) * len(_SINGLE)
