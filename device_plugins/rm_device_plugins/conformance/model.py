"""What a case is, how it may end, and the times that it goes by."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any


class Violation(AssertionError):
    """The plugin breaks the rule of a case; the message says what was seen, and what should have been."""


class NotApplicable(Exception):
    """The case cannot be tried on this plugin; the message says what it would need."""


class CannotJudge(Exception):
    """Something that is not the plugin failed (the fault hook, a container runtime)."""


class CannotRun(Exception):
    """The suite cannot begin at all; the message says what to change."""


class Verdict(StrEnum):
    """How a case ended."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    """It could not be judged, though it applies."""
    BLOCKED = "blocked"
    """A case that it builds on did not pass."""
    NOT_APPLICABLE = "not applicable"


GOOD = frozenset({Verdict.PASSED, Verdict.NOT_APPLICABLE})


class Lane(Enum):
    """What a case does to the plugin, and hence beside which others it may run."""

    SHARED = "calls on a plugin that others use, too"
    FRESH = "starts, stops or disturbs a plugin of its own"
    FAULT = "injects faults under a plugin that other such cases use, too"
    FAULT_FRESH = "injects faults under a plugin of its own"

    @property
    def needs_start(self) -> bool:
        """True if the suite must be able to start the plugin."""
        return self in (Lane.FRESH, Lane.FAULT_FRESH)

    @property
    def needs_faults(self) -> bool:
        """True if the suite must be able to inject faults."""
        return self in (Lane.FAULT, Lane.FAULT_FRESH)


REREGISTER_SECONDS = 2.0
FIRST_LIST_SECONDS = 1.0
ALLOCATE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """All times in seconds, but for ``allowance``."""

    allowance: float = 5.0
    """The factor by which the times of the rules are stretched: 1 on a quiet machine, more on a busy one."""
    patience: float = 30.0
    """For what has no time of its own in the rules, and for each call."""
    quiet: float = 12.0
    """How long a stream is watched for messages without news."""
    settle: float = 1.0
    """How long is looked on for something that must not happen."""
    away: float = 0.5
    """How long a restarting kubelet is away."""
    refusing: float = 3.0
    """How long the kubelet refuses registrations before it takes one."""
    give_up: float = 45.0
    """Within this a plugin must give up a call that its other side never answers."""

    def limit(self, rule_seconds: float) -> float:
        """The rule's time, stretched."""
        return rule_seconds * self.allowance


@dataclass(frozen=True, slots=True)
class Case:
    """One rule, and how it is tried."""

    id: str
    """``group.name``; never changes, as it is what people skip, select and compare."""
    rule: str
    """What the plugin must do, in a sentence."""
    why: str
    """What happens on a node where it does not."""
    reference: str
    """Where that comes from: a file of the kubelet, an enhancement, a behaviour of the kernel."""
    lane: Lane
    run: Callable[[Any], Awaitable[str | None]]
    """Gets a bench. Returns what was measured, if anything; raises Violation, NotApplicable or CannotJudge."""
    requires: tuple[str, ...] = ()
    """Cases that it builds on: where one did not pass, this one would say nothing new."""
    lasts_long: bool = False
    """It spends its time waiting, so it begins early and other cases run beside it."""

    @property
    def group(self) -> str:
        """The first part of the ID."""
        return self.id.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Result:
    """How a case ended."""

    case: Case
    verdict: Verdict
    message: str = ""
    """For a case that passed what was measured, else the reason."""
    seconds: float = 0.0
    output: str = ""
    """The end of what the plugin said, where the case failed."""


CASES: dict[str, Case] = {}
"""All cases by ID, in the order of their definition."""


def case(
    id: str,  # noqa: A002 (it is what it is)
    rule: str,
    *,
    why: str,
    reference: str,
    lane: Lane,
    requires: tuple[str, ...] = (),
    lasts_long: bool = False,
) -> Callable[[Callable[[Any], Awaitable[str | None]]], Callable[[Any], Awaitable[str | None]]]:
    """Makes the decorated coroutine function a case."""

    def add(run: Callable[[Any], Awaitable[str | None]]) -> Callable[[Any], Awaitable[str | None]]:
        unknown = [name for name in requires if name not in CASES]
        if id in CASES or unknown:
            raise ValueError(f"case {id} is defined twice, or requires what is not defined before it: {unknown}")
        CASES[id] = Case(id, rule, why, reference, lane, run, requires, lasts_long)
        return run

    return add
