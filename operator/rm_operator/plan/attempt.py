"""Reads what became of a Job from the Job and its pods: one value that the planners decide by."""

import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from rm_api.conditions import Reason
from rm_api.names import ExitCode
from rm_api.report import Report, ReportInvalid

from rm_operator.plan.conditions import reason_or
from rm_operator.plan.model import Object, from_timestamp, moment_of, name_of, namespace_of

START_SECONDS = 60
"""What a pod may take, on its node, until what it mounts is there."""
JOB_NAME = "batch.kubernetes.io/job-name"
UNMAKEABLE = frozenset({"CreateContainerConfigError", "CreateContainerError"})
"""Why a container waits, where something that it refers to is missing or wrong."""
PULL_PROBLEMS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
"""Why a container waits, where an image is the reason."""
_NAME = re.compile(r"[a-z]-[a-z0-9]+-([0-9]{1,9})(?:-([0-9]{1,3}))?")


class State(StrEnum):
    """How far a Job is."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class Attempt:
    """One Job, as seen."""

    job: Object
    number: int
    """0 of a Job that is none of ours, whoever owns it."""
    state: State
    stage: str = ""
    """The container that runs, failed, or ended last."""
    report: Report | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    """Why it failed, or why it does not get on."""
    message: str = ""
    retryable: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Container → how long it ran."""
    part: int = 0
    """Which Job of its attempt it is, from 0."""
    node: str = ""
    """Where its pod ran, if that is known."""
    on_node_since: datetime | None = None
    """Since when its pod is on a node and nothing of it has begun; None once something has, or where that is normal."""

    def not_begun(self, now: datetime) -> "NotBegun | None":
        """What keeps it from beginning, as far as that is known; None where it has begun."""
        if self.on_node_since is None:
            return None
        due = self.on_node_since + timedelta(seconds=START_SECONDS)
        if now < due:
            return NotBegun("", (due - now).total_seconds())
        pod, namespace = (self.job["spec"].get("template") or {}).get("spec") or {}, namespace_of(self.job)
        mounted = [said for volume in pod.get("volumes") or () if (said := _mounted(volume))]
        needs = f"; it needs {', '.join(mounted)}: is that there?" if mounted else "; can it be mounted and connected?"
        return NotBegun(
            f"its pod has been on {self.node} for more than {START_SECONDS} s and has not begun{needs} "
            f"`kubectl describe pod -n {namespace} -l {JOB_NAME}={name_of(self.job)}` says why"
        )

    @property
    def spent(self) -> float:
        """Seconds that its containers ran; where nothing is left that tells, how long the Job took."""
        started = (self.job.get("status") or {}).get("startTime")
        if self.seconds or self.ended is None or not started:
            return sum(self.seconds.values())
        return max(0.0, (self.ended - from_timestamp(started)).total_seconds())

    @property
    def ended(self) -> datetime | None:
        """When the Job came to its end; where that is not said, when it was made. None while it runs."""
        if self.state is State.RUNNING:
            return None
        times = [
            entry["lastTransitionTime"]
            for entry in (self.job.get("status") or {}).get("conditions") or []
            if entry["status"] == "True" and entry.get("lastTransitionTime")
        ]
        made = self.job["metadata"].get("creationTimestamp")
        # A time there must be: a pause that begins whenever it is looked at never ends.
        return from_timestamp(max(times or [made])) if times or made else None


@dataclass(frozen=True)
class NotBegun:
    """A pod on a node of which nothing runs yet."""

    message: str
    """What to look at, for a person; empty while there is nothing strange about it."""
    look_again: float | None = None
    """Seconds until there is."""


def _mounted(volume: Mapping[str, Any]) -> str:
    """What of the namespace a volume takes, for a person; empty for what the pod has itself."""
    secret, claim = volume.get("secret"), volume.get("persistentVolumeClaim")
    if claim:
        return f"the claim {claim.get('claimName')}"
    if not secret or secret.get("optional"):
        return ""
    keys = [str(item["key"]) for item in secret.get("items") or ()]
    return f"the Secret {secret.get('secretName')}{f' with the key {keys[0]}' if keys else ''}"


def observe(job: Object, pods: Iterable[Object]) -> Attempt:
    """What ``job`` came to. ``pods`` are the Job's; of several, the newest tells."""
    # Labels may be changed by anybody, the name by nobody.
    named = _NAME.fullmatch(name_of(job))
    number, part = (int(named[1]), max(0, int(named[2] or 1) - 1)) if named else (0, 0)
    pod = max(pods, key=lambda each: each["metadata"].get("creationTimestamp", ""), default=None)
    node = str(((pod or {}).get("spec") or {}).get("nodeName") or "")
    return replace(_observed(job, number, pod), part=part, node=node)


def _observed(job: Object, number: int, pod: Object | None) -> Attempt:
    conditions = {entry["type"]: entry for entry in (job.get("status") or {}).get("conditions") or []}
    statuses = _container_statuses(pod)
    seconds = {status["name"]: spent for status in statuses if (spent := _seconds(status)) is not None}

    if _is_true(conditions, "Complete") or _is_true(conditions, "SuccessCriteriaMet"):
        last = statuses[-1] if statuses else None
        report, _ = _report_of(last)
        if report is not None:
            # Each tool knows its own version, and the last container is ours.
            reports = (_report_of(status)[0] for status in statuses)
            versions = ChainMap(*(each.versions for each in reports if each is not None))
            report = replace(report, versions=dict(versions))
        return Attempt(job, number, State.SUCCEEDED, last["name"] if last else "", report, 0, seconds=seconds)

    # Who ended the pod tells before what its containers said while they were ended.
    failed = next((status for status in statuses if _exit_code(status) not in (None, 0)), None)
    failure = next((conditions[name] for name in ("Failed", "FailureTarget") if _is_true(conditions, name)), None)
    if failure is not None and failure.get("reason") == "DeadlineExceeded":
        running = next((status["name"] for status in statuses if "running" in (status.get("state") or {})), "")
        stage = failed["name"] if failed else running
        where = f" while {stage} ran" if stage else ""
        return Attempt(
            job, number, State.FAILED, stage, reason=Reason.BUILD_TIMED_OUT, seconds=seconds,
            message=f"the attempt exceeded its {job['spec'].get('activeDeadlineSeconds')} seconds{where}",
        )  # fmt: skip
    pod_status = (pod or {}).get("status") or {}
    removed = pod_status.get("phase") == "Failed" and bool(pod_status.get("reason"))
    if failed is not None and not removed:
        return _failure(job, number, failed, seconds)
    if removed or failure is not None:
        said = pod_status.get("message") or (failure or {}).get("message") or "the pod disappeared"
        message = f"{pod_status['reason']}: {said}" if removed else said
        return Attempt(
            job, number, State.FAILED, failed["name"] if failed else "", reason=Reason.RETRYING, retryable=True,
            message=message, seconds=seconds,
        )  # fmt: skip
    return _running(job, number, pod, statuses, seconds)


def _running(
    job: Object, number: int, pod: Object | None, statuses: list[Mapping[str, Any]], seconds: Mapping[str, float]
) -> Attempt:
    for status in statuses:
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in PULL_PROBLEMS:
            message = (
                f"the image of {status['name']} ({status.get('image')}) cannot be pulled: {waiting.get('message')}"
            )
            return Attempt(
                job, number, State.RUNNING, status["name"], reason=Reason.IMAGE_PULL_FAILED, message=message,
                seconds=seconds,
            )  # fmt: skip
        if waiting.get("reason") in UNMAKEABLE:
            message = f"{status['name']} cannot be started: {waiting.get('message', '')}"
            return Attempt(
                job, number, State.RUNNING, status["name"], reason=Reason.STARTING, message=message, seconds=seconds
            )
    for condition in ((pod or {}).get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Attempt(
                job, number, State.RUNNING, reason=Reason.UNSCHEDULABLE, seconds=seconds,
                message=f"no node takes the pod: {condition.get('message', '')}",
            )  # fmt: skip
    running = next((status["name"] for status in statuses if "running" in (status.get("state") or {})), "")
    since = _on_node_since(pod, statuses)
    return Attempt(job, number, State.RUNNING, running, seconds=seconds, on_node_since=since)


def _on_node_since(pod: Object | None, statuses: list[Mapping[str, Any]]) -> datetime | None:
    """Since when the pod is on a node where what it mounts is not there yet."""
    known = {each["type"]: each for each in ((pod or {}).get("status") or {}).get("conditions") or []}
    scheduled = known.get("PodScheduled", {})
    if scheduled.get("status") != "True" or any(
        {"running", "terminated"} & set(each.get("state") or {}) for each in statuses
    ):
        return None
    # From then on images are pulled, which takes as long as it takes.
    return None if _is_true(known, "PodReadyToStartContainers") else moment_of(scheduled.get("lastTransitionTime"))


def _failure(job: Object, number: int, status: Mapping[str, Any], seconds: Mapping[str, float]) -> Attempt:
    stage = status["name"]
    terminated = status["state"]["terminated"]
    code = int(terminated["exitCode"])
    if terminated.get("reason") == "OOMKilled":
        return Attempt(
            job, number, State.FAILED, stage, None, code, Reason.OUT_OF_MEMORY, seconds=seconds,
            message=f"{stage} needed more memory than there was for it",
        )  # fmt: skip
    report, problem = _report_of(status)
    if report is None:
        known = code in set(ExitCode)
        return Attempt(
            job, number, State.FAILED, stage, None, code, Reason.REPORT_MISSING, seconds=seconds,
            message=f"{stage} of {name_of(job)} ended with {code} and left no report ({problem})",
            retryable=ExitCode(code).retryable if known else True,
        )  # fmt: skip
    reason = reason_or(report.reason, Reason.TOOLCHAIN_FAILED)
    retryable = report.retryable or (code in (ExitCode.SOURCE_UNREACHABLE, ExitCode.TRANSIENT))
    return Attempt(
        job, number, State.FAILED, stage, report, code, reason, f"{stage}: {report.message}", retryable, seconds
    )


def _report_of(status: Mapping[str, Any] | None) -> tuple[Report | None, str]:
    message = (((status or {}).get("state") or {}).get("terminated") or {}).get("message", "")
    try:
        return Report.parse(message), ""
    except ReportInvalid as error:
        return None, str(error)


def _container_statuses(pod: Object | None) -> list[Mapping[str, Any]]:
    status = (pod or {}).get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _exit_code(status: Mapping[str, Any]) -> int | None:
    terminated = (status.get("state") or {}).get("terminated")
    return None if terminated is None else int(terminated["exitCode"])


def _seconds(status: Mapping[str, Any]) -> float | None:
    terminated = (status.get("state") or {}).get("terminated") or {}
    if not terminated.get("startedAt") or not terminated.get("finishedAt"):
        return None
    spent = from_timestamp(terminated["finishedAt"]) - from_timestamp(terminated["startedAt"])
    # A node's clock may be set back while the container runs.
    return max(0.0, spent.total_seconds())


def _is_true(conditions: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return conditions.get(name, {}).get("status") == "True"


_TELLING = re.compile(r"error|exception|fatal|fail|panic|abort|unsupported|not supported|cannot|can't|unable", re.I)
_TRACE = re.compile(r"\s|Traceback |\^+$")
MOST_TOLD = 300


def telling(tail: str) -> str:
    """The one line of a tool's last ones that tells most of why it failed; empty where there are none."""
    lines = [line for line in tail.splitlines() if line.strip()]
    # What is indented belongs to a trace, whose last line says what it is about.
    found = [line for line in lines if _TELLING.search(line) and not _TRACE.match(line)]
    line = (found or lines or [""])[-1].strip()
    return line if len(line) <= MOST_TOLD else f"{line[: MOST_TOLD - 1]}…"
