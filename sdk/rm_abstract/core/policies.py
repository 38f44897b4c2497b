"""Which resource is preferred: what latency, throughput, energy and cost ask for, and a change between them by load.

The vocabulary and the order are those of the placement of ModelDeployments: score = Σ weight · ln(1 / figure), where a
greater figure is worse; who has no figure that counts comes after those who have them, by the preference for its type.
"""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Final, NamedTuple

from rm_abstract.core.errors import BadInput
from rm_abstract.core.resource import DEFAULT_PRIORITY, Resource, ResourceType

_LEAST: Final = 1e-9
"""What costs nothing, or draws nothing, counts as this, as zero has no logarithm."""
_DECIMALS: Final = 4
_HOME_CURRENCY: Final = "USD"


class PolicyType(StrEnum):
    """What is optimised."""

    LATENCY = "Latency"
    THROUGHPUT = "Throughput"
    ENERGY = "Energy"
    COST = "Cost"
    WEIGHTED = "Weighted"
    HYBRID = "Hybrid"


PREFERRED: Final[Mapping[PolicyType, tuple[ResourceType, ...]]] = {
    PolicyType.LATENCY: (ResourceType.NPU,),
    PolicyType.THROUGHPUT: (ResourceType.GPU,),
    PolicyType.ENERGY: (ResourceType.NPU, ResourceType.PIM),
    PolicyType.COST: (ResourceType.CPU, ResourceType.REMOTE),
}
"""Which types are preferred where figures are not known; after them comes the usual order of priority."""

FIGURES: Final = ("seconds_per_answer", "seconds_per_request", "joules_per_token", "price_per_million_tokens")
"""Attributes of resources that policies weigh, in the order of the weights: until an answer is whole; per request at
full load; energy; price, in the attribute ``currency`` or US dollars. A greater figure is worse."""


class Rank(NamedTuple):
    """Position among resources, the lowest first. Depends on one resource only, so no third one can swap two."""

    unknown: bool
    group: tuple[int, str]
    loss: float
    """The negative score; 0 where it is not known."""
    disfavour: int
    """The negative priority: the attribute ``priority``, or the type's."""


class Policy(ABC):
    """An order of resources. Safe to use from any thread."""

    type: ClassVar[PolicyType]

    @abstractmethod
    def rank(self, resource: Resource) -> Rank:
        """Where a resource stands now. Raises BadInput where a figure of it is no number, or negative."""

    def order(self, resources: Iterable[Resource]) -> list[Resource]:
        """The resources, the best first, and by id where two are the same."""
        return sorted(resources, key=lambda resource: (self.rank(resource), resource.id))

    def observe(self, load: float) -> None:  # noqa: B027 (most policies do not depend on it)
        """Be told how busy the resources are: users, waiting ones included, for each place; 1 is full."""


class WeightedPolicy(Policy):
    """Several goals at once; the weights need not add up to anything. Raises BadInput for a negative one."""

    type = PolicyType.WEIGHTED

    def __init__(self, latency: float = 0, throughput: float = 0, energy: float = 0, cost: float = 0) -> None:
        given = (latency, throughput, energy, cost)
        if min(given) < 0 or not all(math.isfinite(weight) for weight in given):
            raise BadInput(f"weights are numbers of at least 0, not {given}")
        total = sum(given)
        # Weights that say nothing prefer nothing.
        self.weights: tuple[float, ...] = tuple(weight / total for weight in given) if total else (0.25,) * len(given)
        heaviest = max(range(len(_SINGLE)), key=lambda index: (self.weights[index], -index))
        first = PREFERRED[_SINGLE[heaviest]]
        rest = sorted((kind for kind in ResourceType if kind not in first), key=lambda kind: -DEFAULT_PRIORITY[kind])
        self.preference: tuple[ResourceType, ...] = (*first, *rest)
        """All types, the preferred ones first: those of the heaviest weight."""

    def score(self, resource: Resource) -> float | None:
        """The score, rounded; more is better. None where a figure that counts is not known."""
        total = 0.0
        for weight, name in zip(self.weights, FIGURES, strict=True):
            if weight == 0.0:
                continue
            value = resource.attributes.get(name)
            if value is None:
                return None
            total -= weight * math.log(max(_number(resource, name, value), _LEAST))
        return round(total, _DECIMALS) + 0.0  # no negative zero

    def rank(self, resource: Resource) -> Rank:
        """See the base class."""
        points = self.score(resource)
        priority = int(resource.attributes.get("priority", DEFAULT_PRIORITY[resource.type]))
        if points is None:
            return Rank(True, (self.preference.index(resource.type), ""), 0.0, -priority)
        currency = str(resource.attributes.get("currency", _HOME_CURRENCY)) if self.weights[-1] else _HOME_CURRENCY
        # Prices in different currencies are not compared; those in the usual one come first, then by their code.
        return Rank(False, (int(currency != _HOME_CURRENCY), currency), -points, -priority)


class LatencyPolicy(WeightedPolicy):
    """The answer soon: NPUs where nothing is measured."""

    type = PolicyType.LATENCY

    def __init__(self) -> None:
        super().__init__(latency=1)


class ThroughputPolicy(WeightedPolicy):
    """Many answers: GPUs where nothing is measured."""

    type = PolicyType.THROUGHPUT

    def __init__(self) -> None:
        super().__init__(throughput=1)


class EnergyPolicy(WeightedPolicy):
    """Little energy: NPUs, then PIM, where nothing is measured."""

    type = PolicyType.ENERGY

    def __init__(self) -> None:
        super().__init__(energy=1)


class CostPolicy(WeightedPolicy):
    """Little money: the CPU, then remote endpoints, where nothing is known."""

    type = PolicyType.COST

    def __init__(self) -> None:
        super().__init__(cost=1)


_SINGLE: Final = (PolicyType.LATENCY, PolicyType.THROUGHPUT, PolicyType.ENERGY, PolicyType.COST)


@dataclass(frozen=True)
class Switch:
    """A change of what a hybrid policy optimises."""

    at: float
    """On the policy's clock."""
    load: float
    """That was observed last."""
    policy: Policy
    """What it goes by since."""


class HybridPolicy(Policy):
    """One policy while there is little to do, and another while there is much; with hysteresis.

    It goes over to ``busy`` once every load that was observed in ``stabilization_seconds`` was at least ``high``, and
    back to ``calm`` once every one was at most ``low``. In between nothing changes, so that a load near a limit does
    not make it swing. ``on_switch`` is told of each change, on the thread that observed the load.
    """

    type = PolicyType.HYBRID

    def __init__(
        self,
        calm: Policy | None = None,
        busy: Policy | None = None,
        *,
        high: float = 0.8,
        low: float = 0.5,
        stabilization_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        on_switch: Callable[[Switch], None] | None = None,
    ) -> None:
        if not 0 <= low < high:
            raise BadInput(f"low is {low} and high {high}; a policy that does not swing needs low below high")
        self._policies = (calm or LatencyPolicy(), busy or ThroughputPolicy())
        self._high, self._low, self._seconds = high, low, stabilization_seconds
        self._clock = clock
        self._on_switch = on_switch
        self._lock = threading.Lock()
        self._is_busy = False
        self._since: float | None = None

    @property
    def current(self) -> Policy:
        """What it goes by now."""
        return self._policies[self._is_busy]

    def rank(self, resource: Resource) -> Rank:
        """See the base class."""
        return self.current.rank(resource)

    def order(self, resources: Iterable[Resource]) -> list[Resource]:
        """See the base class; all by the same policy, whatever is observed meanwhile."""
        return self.current.order(resources)

    def observe(self, load: float) -> None:
        """See the base class."""
        now = self._clock()
        with self._lock:
            wants_change = load <= self._low if self._is_busy else load >= self._high
            if not wants_change:
                self._since = None
                return
            self._since = now if self._since is None else self._since
            if now - self._since < self._seconds:
                return
            self._is_busy, self._since = not self._is_busy, None
            switch = Switch(now, load, self._policies[self._is_busy])
        if self._on_switch is not None:
            self._on_switch(switch)


_BY_TYPE: Final[Mapping[PolicyType, Callable[[], Policy]]] = {
    PolicyType.LATENCY: LatencyPolicy,
    PolicyType.THROUGHPUT: ThroughputPolicy,
    PolicyType.ENERGY: EnergyPolicy,
    PolicyType.COST: CostPolicy,
    PolicyType.HYBRID: HybridPolicy,
}


def policy_of(name: str, weights: Mapping[str, float] | None = None) -> Policy:
    """The policy of a name such as ``Latency``, as ModelDeployments write it, whatever its case.

    ``weights`` are for ``Weighted``: ``latency``, ``throughput``, ``energy``, ``cost``. Raises BadInput.
    """
    wanted = next((kind for kind in PolicyType if kind.lower() == name.lower()), None)
    if wanted is None:
        raise BadInput(f"there is no policy {name!r}; there are {', '.join(PolicyType)}")
    if wanted is not PolicyType.WEIGHTED:
        if weights:
            raise BadInput(f"weights are for the policy Weighted, not for {wanted}")
        return _BY_TYPE[wanted]()
    unknown = sorted(set(weights or {}) - {kind.lower() for kind in _SINGLE})
    if unknown:
        raise BadInput(f"there is no weight {unknown[0]}; there are latency, throughput, energy and cost")
    return WeightedPolicy(**(weights or {}))


def _number(resource: Resource, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 0:
        raise BadInput(f"the attribute {name} of {resource.id} is {value!r}, but must be a number of at least 0")
    return number
