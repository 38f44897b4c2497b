"""BuildArtifact: compile once, whatever happens in between.

The store is the truth: it is asked before anything is built, and after a Job says that it has pushed. The number of an
attempt is in the status before its Job exists, so a crash between the two makes the same Job again, not another one.
A failed Job stays, for its log, until the next attempt takes its place; a failure that would only repeat is remembered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildArtifactSpec, BuildArtifactStatus
from rm_api.names import ExitCode

from rm_operator.plan import build_job
from rm_operator.plan.attempt import Attempt, State
from rm_operator.plan.conditions import Conditions, reason_or
from rm_operator.plan.model import (
    Deletion,
    Object,
    Plan,
    Settings,
    deletion_of,
    is_deleting,
    name_of,
    namespace_of,
    to_timestamp,
)

STORE_RETRY_SECONDS = 10
MAX_PAUSE_SECONDS = 300
_DETERMINISTIC = frozenset({Reason.BUILD_TIMED_OUT, Reason.OUT_OF_MEMORY})
_DETERMINISTIC_CODES = frozenset({ExitCode.BAD_INPUT, ExitCode.ARTIFACT_MISMATCH})


class Presence(StrEnum):
    """What the store answered."""

    FOUND = "Found"
    ABSENT = "Absent"
    UNREACHABLE = "Unreachable"


@dataclass(frozen=True)
class StoreAnswer:
    """What the store says of an artifact's tag."""

    presence: Presence
    digest: str = ""
    size_bytes: int = 0
    key: str = ""
    message: str = ""


@dataclass(frozen=True)
class ArtifactSnapshot:
    """Everything that a decision about one BuildArtifact rests on."""

    artifact: Object
    referrers: int
    """Deployments whose status names it."""
    attempts: Sequence[Attempt]
    answer: StoreAnswer | None
    """The store's answer; None where it was not asked, because the artifact is Ready or a Job still runs."""
    settings: Settings
    suspended: int = 0
    """Those of the deployments that are suspended."""


def is_ready(artifact: Object) -> bool:
    """True if the status says Ready."""
    return any(
        entry["type"] == ConditionType.READY and entry["status"] == "True"
        for entry in (artifact.get("status") or {}).get("conditions") or []
    )


def is_refused(artifact: Object) -> bool:
    """True if the compiler does not take the model: what is known of it is worth keeping."""
    return any(
        entry["type"] == ConditionType.STALLED and entry["reason"] == Reason.UNSUPPORTED_MODEL
        for entry in (artifact.get("status") or {}).get("conditions") or []
    )


def why_not_ready(artifact: Object) -> str:
    """What the status says of an artifact that is not Ready, for a person."""
    conditions = (artifact.get("status") or {}).get("conditions") or []
    return next((str(entry.get("message", "")) for entry in conditions if entry["type"] == ConditionType.READY), "")


def in_build(artifact: Object) -> bool:
    """True if it is on its way to Ready: neither there, nor failed for good."""
    conditions = (artifact.get("status") or {}).get("conditions") or []
    stalled = any(entry["type"] == ConditionType.STALLED for entry in conditions)
    return not is_ready(artifact) and not stalled


def repository(artifact: Object) -> str:
    """The artifact's repository in the store."""
    return names.artifact_repository(namespace_of(artifact), name_of(artifact))


def plan(snapshot: ArtifactSnapshot, now: datetime) -> Plan:
    """Decides what is next for one BuildArtifact."""
    artifact = snapshot.artifact
    if is_deleting(artifact):
        return Plan()
    if snapshot.referrers == 0 and not is_ready(artifact) and not is_refused(artifact):
        # Nobody waits for it any more, and there is nothing to keep; its Jobs go with it.
        return Plan(delete=(deletion_of(artifact),))
    return _Planner(snapshot, now).plan()


class _Planner:
    def __init__(self, snapshot: ArtifactSnapshot, now: datetime) -> None:
        self.snapshot = snapshot
        self.now = now
        self.spec = BuildArtifactSpec.model_validate(snapshot.artifact["spec"])
        self.before = BuildArtifactStatus.model_validate(snapshot.artifact.get("status") or {})
        self.conditions = Conditions(snapshot.artifact, now)
        self.status = self.before.model_copy(
            update={
                "observed_generation": snapshot.artifact["metadata"].get("generation", 0),
                "referrer_count": snapshot.referrers,
            }
        )

    def plan(self) -> Plan:
        finished = tuple(deletion_of(a.job) for a in self.snapshot.attempts if a.state is not State.RUNNING)
        if is_ready(self.snapshot.artifact):
            said = (entry["reason"] for entry in self._before_conditions() if entry["type"] == ConditionType.BUILT)
            self._ready(reason_or(next(said, ""), Reason.BUILT))
            return self._finish(delete=finished)

        answer = self.snapshot.answer
        last = max(self.snapshot.attempts, key=lambda attempt: attempt.number, default=None)
        if answer is None:
            assert last is not None
            self._running(last)
            return self._finish()
        if answer.presence is Presence.UNREACHABLE:
            self._not_ready(Reason.STORE_UNREACHABLE, f"the artifact store does not answer: {answer.message}")
            return self._finish(requeue_after=STORE_RETRY_SECONDS)
        if answer.presence is Presence.FOUND and answer.key == self.spec.key:
            return self._found(answer, last)
        if last is None:
            if self._was_stalled():
                return self._remember()
            return self._begin(max(1, self.before.attempts))
        if last.state is State.SUCCEEDED:
            message = "the Job succeeded, but the store does not have the artifact"
            return self._failed(last, Reason.ARTIFACT_MISSING, message, retryable=True)
        return self._failed(last, last.reason or Reason.TOOLCHAIN_FAILED, last.message, retryable=last.retryable)

    def _found(self, answer: StoreAnswer, last: Attempt | None) -> Plan:
        # A build that this status knows of made it; otherwise an earlier life of the cluster did.
        built = self.before.attempts > 0
        host = self.snapshot.settings.store.host
        update: dict[str, Any] = {
            "digest": answer.digest,
            "size_bytes": answer.size_bytes,
            "location": f"{host}/{repository(self.snapshot.artifact)}@{answer.digest}",
            "failures": 0,
            "retry_at": None,
            "log_tail": None,
        }
        if last is not None and last.state is State.SUCCEEDED:
            stages = {stage: _decimal(spent) for stage, spent in last.seconds.items()}
            update |= {"stage_seconds": stages or None, "build_seconds": _decimal(sum(last.seconds.values()))}
            if last.report and last.report.versions:
                # It is a tool's word: what exceeds the schema must not cost the whole status.
                update["versions"] = {tool: version[:256] for tool, version in [*last.report.versions.items()][:32]}
        self.status = self.status.model_copy(update=update)
        self._ready(Reason.BUILT if built else Reason.ADOPTED)
        # The Jobs go only when what they tell is written down.
        return self._finish(delete=tuple(deletion_of(a.job) for a in self.snapshot.attempts), status_first=True)

    def _begin(self, number: int, *, replacing: Attempt | None = None) -> Plan:
        if self.snapshot.referrers == self.snapshot.suspended:
            message = "every deployment that wants it is suspended; it is built when one of them goes on"
            self.conditions.set(ConditionType.BUILT, False, Reason.SUSPENDED, message)
            self.conditions.roll_up([ConditionType.BUILT], ready_message="")
            return self._finish()
        self.status = self.status.model_copy(update={"attempts": number, "retry_at": None})
        self._not_ready(Reason.BUILDING, f"attempt {number} begins")
        job = build_job.render(self.snapshot.artifact, self.spec, build_job.Run(number), self.snapshot.settings)
        delete = (deletion_of(replacing.job),) if replacing else ()
        return self._finish(apply=(job,), delete=delete, status_first=True)

    def _running(self, attempt: Attempt) -> None:
        stage = f", {attempt.stage} runs" if attempt.stage else ""
        message = attempt.message or f"attempt {attempt.number}{stage}"
        self._not_ready(attempt.reason or Reason.BUILDING, message)

    def _failed(self, attempt: Attempt, reason: Reason, message: str, *, retryable: bool) -> Plan:
        tail = attempt.report.facts.get("logTail") if attempt.report else None
        self.status = self.status.model_copy(
            update={
                "failures": attempt.number,
                "log_tail": [line[:512] for line in tail.splitlines()[-20:]] if isinstance(tail, str) else None,
            }
        )
        # What the vendor's tool does not explain may be the node's fault: it gets one more chance.
        deterministic = attempt.exit_code in _DETERMINISTIC_CODES or reason in _DETERMINISTIC
        again = retryable or (not deterministic and attempt.number < 2)
        if not again:
            self._not_ready(reason, f"{message} (attempt {attempt.number}; the same input would fail again)")
            self.conditions.set(
                ConditionType.STALLED, True, reason,
                "mend the profile, the model or the deployment; to try the same again, delete this artifact",
            )  # fmt: skip
            return self._finish()
        pause = min(STORE_RETRY_SECONDS * 2 ** (attempt.number - 1), MAX_PAUSE_SECONDS) if retryable else 0
        ended = attempt.ended
        due = (ended or self.now) + timedelta(seconds=pause)
        if self.now >= due:
            return self._begin(attempt.number + 1, replacing=attempt)
        self.status = self.status.model_copy(update={"retry_at": to_timestamp(due)})
        self._not_ready(reason, f"{message}; the next attempt is due at {to_timestamp(due)}")
        return self._finish(requeue_after=(due - self.now).total_seconds())

    def _remember(self) -> Plan:
        for entry in self._before_conditions():
            if entry["type"] in set(ConditionType):
                reason = reason_or(entry["reason"], Reason.TOOLCHAIN_FAILED)
                self.conditions.set(
                    ConditionType(entry["type"]), entry["status"] == "True", reason, entry.get("message", "")
                )
        return self._finish()

    def _before_conditions(self) -> list[dict[str, Any]]:
        return list((self.snapshot.artifact.get("status") or {}).get("conditions") or [])

    def _was_stalled(self) -> bool:
        # By a build that failed: what else was in the way, such as a name that was taken, may be gone.
        stalled = any(entry["type"] == ConditionType.STALLED for entry in self._before_conditions())
        return stalled and self.before.failures > 0

    def _ready(self, reason: Reason) -> None:
        self.conditions.set(ConditionType.BUILT, True, reason, f"{self.status.location}")
        self.conditions.roll_up([ConditionType.BUILT], ready_message="built and in the store")

    def _not_ready(self, reason: Reason, message: str) -> None:
        self.conditions.set(ConditionType.BUILT, False, reason, message)
        self.conditions.roll_up([ConditionType.BUILT], ready_message="")
        self.conditions.set(ConditionType.RECONCILING, True, reason, message)

    def _finish(self, *, delete: Sequence[Deletion] = (), **plan: Any) -> Plan:
        if self.conditions.has(ConditionType.STALLED):
            self.conditions.set(ConditionType.RECONCILING, False, Reason.READY)
        status = {**self.status.to_wire(), "conditions": self.conditions.to_list()}
        gone = tuple(dict.fromkeys([*delete, *self._superseded()]))
        return Plan(status=status, events=self.conditions.transitions(), delete=gone, **plan)

    def _superseded(self) -> list[Deletion]:
        """Jobs whose place a later attempt has taken, left over by a crash between the two."""
        ended = [attempt for attempt in self.snapshot.attempts if attempt.state is not State.RUNNING]
        newest = max((attempt.number for attempt in self.snapshot.attempts), default=0)
        return [deletion_of(attempt.job) for attempt in ended if attempt.number < newest]


def _decimal(seconds: float) -> str:
    return f"{seconds:.1f}"
