"""What every accelerator is asked: a request, with what follows from it worked out once."""

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum

from rm_api.accelerator_types import AcceleratorType
from rm_api.dtypes import DType

from rm_operator.plan.buckets import required_shape
from rm_operator.plan.memo import Memo
from rm_operator.plan.placement.estimate import Estimate, Work, work_of
from rm_operator.plan.placement.request import PlacementRequest, ProfileView


class Cause(IntEnum):
    """What stands in the way of an accelerator, the nearest miss last."""

    EXCLUDED = 0
    """The deployment does not want it, or may not have it."""
    UNFIT = 1
    """It, or what compiles for it, does not take the model."""
    CODE = 2
    """The model brings code of its own, which is not run there."""
    REFUSED = 3
    """What compiles for it was asked, and does not take the model; or its engine is known not to serve such."""
    SLO = 4
    """Its estimate misses the deployment's objectives."""
    CAPACITY = 5
    """It is not ready, or has no free device: what may pass by itself."""


class Removed(Exception):
    """The accelerator is out; the argument is the sentence that says why."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


Target = tuple[AcceleratorType, str]


def _by_target(profiles: tuple[ProfileView, ...]) -> Mapping[Target, tuple[ProfileView, ...]]:
    found: dict[Target, list[ProfileView]] = {}
    for view in sorted(profiles, key=lambda view: (-view.spec.priority, view.name)):
        found.setdefault((view.spec.target.type, view.spec.target.vendor), []).append(view)
    return {target: tuple(views) for target, views in found.items()}


_profiles_by_target: Memo[[tuple[ProfileView, ...]], Mapping[Target, tuple[ProfileView, ...]]] = Memo(
    _by_target, most=8
)


class Question:
    """One request while it is being answered."""

    def __init__(self, request: PlacementRequest) -> None:
        self.request = request
        self.spec = request.spec
        self.facts = request.facts
        self.shape = required_shape(request.spec, request.facts)
        self.workload = request.spec.workload
        """What is estimated with. An embedding takes one pass over its text, as the first token of an answer does."""
        if request.facts.embeds:
            self.workload = self.workload.model_copy(update={"output_tokens": 1})
        self.dtype = request.spec.requirements.dtype or request.facts.dtype
        """The number format that is wanted, before it is known what can be had."""
        self.replicas = 0 if request.spec.suspend else request.spec.replicas
        """Replicas that the deployment wants now."""
        self._works: dict[DType, Work] = {}
        self._profiles = _profiles_by_target(request.profiles)

    def profiles_for(self, type_: AcceleratorType, vendor: str) -> Sequence[ProfileView]:
        """Profiles for any product of the target, the preferred one first."""
        return self._profiles.get((type_, vendor), ())

    @property
    def is_without_objectives(self) -> bool:
        """True if any speed will do."""
        return self.spec.slo.ttft_ms is None and self.spec.slo.tpot_ms is None

    def missed_by(self, figures: Estimate) -> float:
        """How many times as slow as ``spec.slo`` allows; 1 where it is reached, and for what is not known."""
        slo = self.spec.slo
        limits = ((figures.ttft, slo.ttft_ms), (figures.tpot, slo.tpot_ms))
        return max([1.0, *(had * 1e3 / most for had, most in limits if had is not None and most is not None)])

    def work(self, dtype: DType) -> Work:
        """What the model asks of a device in ``dtype``."""
        work = self._works.get(dtype)
        if work is None:
            work = self._works[dtype] = work_of(self.facts, dtype, self.workload, self.shape)
        return work


def admits(listed: Sequence[str], value: str) -> bool:
    """An empty list admits everything."""
    return not listed or value in listed


def listing(values: Iterable[str | int]) -> str:
    """The values in their order, for a sentence."""
    ordered = sorted(set(values), key=lambda value: (value, "") if isinstance(value, int) else (0, value))
    return ", ".join(str(value) for value in ordered) or "none"
