"""Takes up into an artifact's status what a Job came to: from then on the status alone says what is next."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from rm_api.conditions import Reason
from rm_api.kinds import BuildArtifactSpec, BuildArtifactStatus
from rm_api.kinds.build_artifact import EndedJob

from rm_operator.plan import build_job
from rm_operator.plan.attempt import Attempt, State, telling
from rm_operator.plan.conditions import MAX_MESSAGE
from rm_operator.plan.model import to_timestamp
from rm_operator.plan.verdict import MOST_NODES, judge

SUCCEEDED: Final = "Succeeded"
"""The outcome of a Job that did what it should; of another one it is the reason."""
_MOST_SECONDS: Final = 99_999_999_999.0
_MOST_CONTAINERS: Final = 64
_MOST_VERSIONS: Final = 32
_WAITED: Final = (Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.STARTING)


def take_up(
    job: Attempt,
    spec: BuildArtifactSpec,
    status: BuildArtifactStatus,
    *,
    held: int,
    waited: Mapping[str, Any],
    now: datetime,
) -> BuildArtifactStatus:
    """``status`` with what ``job`` came to, of which the store does not have the artifact.

    ``held`` is the number of Jobs whose result it has for the next one. ``waited`` is what the status said of the build
    while the Job ran.
    """
    status = spend(status, job)
    parts = len(build_job.stages(spec))
    if job.state is not State.SUCCEEDED:
        reason = job.reason or Reason.TOOLCHAIN_FAILED
        if reason is Reason.BUILD_TIMED_OUT and waited.get("reason") in _WAITED:
            # The time went by before anything was done with it.
            message = f"{waited.get('message', '')}; {job.message}"
            return _fail(job, Reason(waited["reason"]), message, spec, status, now, retryable=True)
        return _fail(job, reason, job.message, spec, status, now, retryable=job.retryable)
    if job.part + 1 < parts and held > job.part:
        return succeed(status, job)
    what = "the artifact" if job.part + 1 == parts else "what the next one goes on with"
    message = f"the Job succeeded, but the store does not have {what}"
    return _fail(job, Reason.ARTIFACT_MISSING, message, spec, status, now, retryable=True)


def succeed(status: BuildArtifactStatus, job: Attempt) -> BuildArtifactStatus:
    """``status`` with a Job that did what it should, what its tools are, and how long its containers took."""
    stages = {stage: float(spent) for stage, spent in (status.stage_seconds or {}).items()}
    for stage, spent in job.seconds.items():
        stages[stage] = stages.get(stage, 0.0) + spent
    versions = {**(status.versions or {}), **(job.report.versions if job.report else {})}
    return status.model_copy(
        update={
            # They are a tool's word: what exceeds the schema must not cost the whole status.
            "versions": {tool: version[:256] for tool, version in [*versions.items()][:_MOST_VERSIONS]} or None,
            "stage_seconds": {stage: _decimal(spent) for stage, spent in [*stages.items()][:_MOST_CONTAINERS]} or None,
            "build_seconds": _decimal(sum(stages.values())),
            "ended": EndedJob(attempt=job.number, stage=job.part + 1, outcome=SUCCEEDED),
        }
    )


def spend(status: BuildArtifactStatus, job: Attempt) -> BuildArtifactStatus:
    """``status`` with the time that ``job`` took."""
    return status.model_copy(update={"spent_seconds": _decimal(float(status.spent_seconds or 0) + job.spent)})


def _fail(
    job: Attempt,
    reason: Reason,
    message: str,
    spec: BuildArtifactSpec,
    status: BuildArtifactStatus,
    now: datetime,
    *,
    retryable: bool,
) -> BuildArtifactStatus:
    tail = job.report.facts.get("logTail") if job.report else None
    lines = tail.splitlines() if isinstance(tail, str) else []
    if (line := telling("\n".join(lines))) and line not in message:
        message = f"{message}: {line}"
    verdict = judge(job, reason, spec, status, retryable=retryable)
    if verdict.advice:
        message = f"{message} (attempt {job.number}; {verdict.advice})"
    due = (job.ended or now) + timedelta(seconds=verdict.pause) if verdict.pause else now
    return status.model_copy(
        update={
            "failures": status.failures + verdict.counts,
            "retry_at": to_timestamp(due) if now < due else None,
            "memory": verdict.memory or status.memory,
            "excluded_nodes": _with(status.excluded_nodes, verdict.excluded),
            "avoided_nodes": _with(status.avoided_nodes, verdict.avoided),
            "unexplained": verdict.unexplained or status.unexplained,
            "log_tail": [line[:512] for line in lines[-20:]] or None,
            "ended": EndedJob(
                attempt=job.number,
                stage=job.part + 1,
                outcome=reason,
                container=job.stage[:63] or None,
                message=message[:MAX_MESSAGE],
                final=bool(verdict.advice),
            ),
        }
    )


def _with(nodes: list[str] | None, further: str | None) -> list[str] | None:
    if further is None or further in (nodes or []):
        return nodes
    return [*(nodes or []), further][-MOST_NODES:]


def _decimal(seconds: float) -> str:
    return f"{min(seconds, _MOST_SECONDS):.1f}"
