"""What a failed build comes to: is it tried again, when, where, and with how much memory?

What the input is to blame for is not tried again. Too little memory is doubled, up to what the profile allows. A node
whose device or driver is not right is left out. What passes by itself is tried again after a pause. What nothing
explains, such as memory that nobody limited, may be the node's fault, and gets one more chance on another one: the same
a second time is the input's.
"""

from dataclasses import dataclass
from typing import Final

from rm_api.conditions import Reason
from rm_api.kinds import BuildArtifactSpec, BuildArtifactStatus
from rm_api.kinds.build_artifact import UnexplainedFailure
from rm_api.names import ExitCode
from rm_api.quantity import doubled, quantity

from rm_operator.plan.attempt import Attempt

FIRST_PAUSE_SECONDS: Final = 10
MAX_PAUSE_SECONDS: Final = 300
MOST_FAILURES: Final = 12
"""Attempts that may fail, whatever for; those in which a source or the store did not answer are not among them."""
MOST_NODES: Final = 16
"""Nodes that are left out, or gone around."""

_INPUT_CODES: Final = frozenset({ExitCode.BAD_INPUT, ExitCode.ARTIFACT_MISMATCH})
_OUTSIDE: Final = frozenset({Reason.SOURCE_UNREACHABLE, Reason.STORE_UNREACHABLE})
_SIGNALS: Final = 128
"""Exit codes from here on tell of a signal, which is somebody else's doing."""
_SAME_AGAIN: Final = "the same input would fail again"


@dataclass(frozen=True)
class Verdict:
    """What is to be done about a failure."""

    advice: str = ""
    """Why there is no further attempt; empty where there is one."""
    pause: int = 0
    """Seconds until the next attempt."""
    counts: bool = True
    """False for what neither the build nor its node is to blame for."""
    memory: str | None = None
    """What the steps get from now on."""
    excluded: str | None = None
    """The node that is left out from now on."""
    avoided: str | None = None
    """The node that is gone around from now on."""
    unexplained: UnexplainedFailure | None = None


def judge(
    attempt: Attempt, reason: Reason, spec: BuildArtifactSpec, status: BuildArtifactStatus, *, retryable: bool
) -> Verdict:
    """What to do about ``attempt``, which failed for ``reason``; ``status`` tells of those before it."""
    verdict = _judged(attempt, reason, spec, status, retryable=retryable)
    if not verdict.advice and verdict.counts and status.failures + 1 >= MOST_FAILURES:
        return Verdict(f"it has failed {MOST_FAILURES} times")
    return verdict


def _judged(
    attempt: Attempt, reason: Reason, spec: BuildArtifactSpec, status: BuildArtifactStatus, *, retryable: bool
) -> Verdict:
    if reason is Reason.OUT_OF_MEMORY and (limit := _limit(attempt.stage, spec, status)) is not None:
        return _with_more(limit, spec)
    if retryable and not (reason is Reason.OUT_OF_MEMORY or _is_unknown(attempt, reason)):
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(attempt.number - 1, 8), MAX_PAUSE_SECONDS)
        return Verdict(pause=pause, counts=reason not in _OUTSIDE)
    if attempt.exit_code in _INPUT_CODES or reason is Reason.BUILD_TIMED_OUT:
        return Verdict(_SAME_AGAIN)
    if attempt.exit_code in set(ExitCode) and ExitCode(attempt.exit_code).excludes_node and attempt.node:
        if len(status.excluded_nodes or ()) >= MOST_NODES:
            return Verdict(f"{MOST_NODES} nodes could not run it")
        return Verdict(excluded=attempt.node)
    failure = UnexplainedFailure(container=attempt.stage[:63], exit_code=attempt.exit_code, reason=reason)
    if failure == status.unexplained:
        return Verdict(_SAME_AGAIN)
    return Verdict(avoided=attempt.node or None, unexplained=failure)


def _limit(container: str, spec: BuildArtifactSpec, status: BuildArtifactStatus) -> str | None:
    """The memory that the step had; None where it is none of the steps, or was not limited."""
    own = next((step.resources.memory for step in spec.steps if step.name == container), None)
    if own is None:
        return status.memory if any(step.name == container for step in spec.steps) else None
    return own if status.memory is None else max(own, status.memory, key=quantity)


def _with_more(limit: str, spec: BuildArtifactSpec) -> Verdict:
    if spec.max_memory is None:
        return Verdict(f"{limit} of memory are too little; raise resources.memory of the step, or set maxMemory")
    if quantity(limit) >= quantity(spec.max_memory):
        return Verdict(f"{limit} of memory are too little, and maxMemory allows no more")
    enough = 2 * quantity(limit) <= quantity(spec.max_memory)
    return Verdict(memory=doubled(limit) if enough else spec.max_memory)


def _is_unknown(attempt: Attempt, reason: Reason) -> bool:
    """True if a container ended by itself, and in a way that is not in the contract."""
    code = attempt.exit_code
    return reason is Reason.REPORT_MISSING and code is not None and code not in set(ExitCode) and code < _SIGNALS
