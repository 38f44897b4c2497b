"""How an accelerator would do for a model, whatever there is of it now: the part of an answer that many share.

Deployments are placed several times while they come up, and many ask for the same. What does not depend on free devices
or on where a deployment is now, is therefore worked out once per question and accelerator. Nothing can be stale: a
question is told apart by all that it says, an accelerator by its spec being the same object and by how many devices a
node of it has, of each version, the profiles by their specs being the same objects.
"""

import operator
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from rm_api.kinds import AcceleratorResourceSpec
from rm_api.placement import Candidate, Term

from rm_operator.plan.placement import filters
from rm_operator.plan.placement.estimate import Estimate, estimate
from rm_operator.plan.placement.groups import most_by_version
from rm_operator.plan.placement.machine import machine_of
from rm_operator.plan.placement.question import Cause, Question, Removed
from rm_operator.plan.placement.request import AcceleratorView, PlacementRequest, ProfileView
from rm_operator.plan.placement.score import Goal, Rank
from rm_operator.plan.placement.ways import Way, best_way

_MOST_QUESTIONS = 32
"""More than are asked at the same time; each keeps the answers for a whole fleet."""
_ASKED_ELSEWHERE = {"replicas", "suspend"}
"""Members of a deployment's spec that matter only together with free devices. All others make another question."""


class Obstacle(NamedTuple):
    """Why an accelerator is out."""

    cause: Cause
    sentence: str


class Fit:
    """How the model would run on an accelerator that can serve it."""

    __slots__ = ("behind", "candidate", "estimate", "rank", "score", "terms", "value", "way")

    def __init__(self, way: Way, figures: Estimate, score: float | None, rank: Rank) -> None:
        self.way = way
        self.estimate = figures
        self.score = score
        self.rank = rank
        self.terms: list[Term] | None = None
        """As the API shows the figures; None until somebody wants to see them."""
        self.value: str | None = None
        """What it is ranked by, in words; None until somebody wants to read them."""
        self.behind: tuple[Fit, str] | None = None
        """How far it is behind the best of those that it was compared with last, in words."""
        self.candidate: Candidate | None = None
        """As it was explained last."""


_Nodes = tuple[int | None, Sequence[tuple[str, str, int]]]
"""What an answer rests on of the devices that single nodes have."""


class Assessment:
    """Answers to one question so far, by accelerator."""

    def __init__(self, goal: Goal, profiles: tuple[ProfileView, ...]) -> None:
        self.goal = goal
        self.profiles = profiles
        self._known: dict[str, tuple[AcceleratorResourceSpec, _Nodes, Fit | Obstacle]] = {}

    def of(self, question: Question, accelerator: AcceleratorView) -> Fit | Obstacle:
        """How ``accelerator`` would do."""
        known = self._known.get(accelerator.name)
        nodes = accelerator.largest, most_by_version(accelerator)
        if known is not None and known[0] is accelerator.spec and known[1] == nodes:
            return known[2]
        try:
            found: Fit | Obstacle = self._examine(question, accelerator)
        except Removed as removal:
            found = Obstacle(removal.cause, str(removal))
        self._known[accelerator.name] = (accelerator.spec, nodes, found)
        return found

    def _examine(self, question: Question, accelerator: AcceleratorView) -> Fit:
        for check in filters.WANTED:
            check(question, accelerator)
        way = best_way(question, accelerator)
        figures = estimate(question.work(way.dtype), machine_of(accelerator.spec), way.group, way.prefill_chunk)
        filters.within_objectives(question, figures)
        score = self.goal.score(figures)
        doubtful = way.is_doubtful(accelerator)
        return Fit(way, figures, score, self.goal.rank(accelerator, score, figures.currency, doubtful=doubtful))


_Asked = tuple[str, str, str, tuple[tuple[str, str], ...]]
_recent: OrderedDict[_Asked, Assessment] = OrderedDict()


def assessment_of(request: PlacementRequest) -> Assessment:
    """What is known already of the question that ``request`` asks."""
    spec, facts = request.spec.model_dump_json(exclude=_ASKED_ELSEWHERE), request.facts.model_dump_json()
    key = (request.namespace, spec, facts, request.refused)
    known = _recent.pop(key, None)
    if known is None or not _are_same(known.profiles, request.profiles):
        known = Assessment(Goal(request.spec.policy), request.profiles)
    _recent[key] = known
    if len(_recent) > _MOST_QUESTIONS:
        _recent.popitem(last=False)
    return known


def _are_same(some: Sequence[ProfileView], others: Sequence[ProfileView]) -> bool:
    return some is others or (len(some) == len(others) and all(map(operator.is_, some, others)))
