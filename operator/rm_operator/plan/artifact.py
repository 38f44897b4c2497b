"""BuildArtifact: compile once, whatever happens in between.

The store is the truth: it is asked before anything is built, and after a Job says that it has pushed. The number of an
attempt is in the status before its Job exists, so a crash between the two makes the same Job again, not another one.
What a Job came to is taken up into the status once: from then on the status alone says what is next. A failed Job
stays, for its log, until the next attempt takes its place; a failure that would only repeat is remembered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import BuildArtifactSpec, BuildArtifactStatus
from rm_api.kinds.build_artifact import EndedJob

from rm_operator.plan import build_devices, build_ended, build_job, collection, compatibility
from rm_operator.plan.attempt import Attempt, State
from rm_operator.plan.build_ended import SUCCEEDED
from rm_operator.plan.build_queue import Line, Part, part_of
from rm_operator.plan.conditions import Conditions, reason_or
from rm_operator.plan.memo import Specs
from rm_operator.plan.model import (
    Deletion,
    Object,
    Plan,
    Settings,
    deletion_of,
    from_timestamp,
    is_deleting,
    labels_of,
    moment_of,
    name_of,
    namespace_of,
    to_timestamp,
)
from rm_operator.plan.serving_report import ServingReport, verifications

STORE_RETRY_SECONDS: Final = 10
LOOK_AGAIN_SECONDS: Final = 300
"""While a build waits for what it is woken for: devices, nodes, or others to end."""
_LAST_NUMBER: Final = 999_999_999
"""A Job's name has room for no more digits."""


class Presence(StrEnum):
    """What the store answered."""

    FOUND = "Found"
    ABSENT = "Absent"
    UNREACHABLE = "Unreachable"


@dataclass(frozen=True)
class StoreAnswer:
    """What the store says of a tag."""

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
    held: int = 0
    """Jobs of an attempt, from the first, whose result the store has for the next one."""
    accelerators: Sequence[Object] = ()
    """All AcceleratorResources."""
    nodes: Sequence[Object] = ()
    """All nodes."""
    lines: Sequence[Line] = ()
    """The limits of parallel builds."""
    spoken_for: Mapping[str, int] = field(default_factory=dict)
    """Devices that its Jobs cannot have, by accelerator."""
    expected_seconds: int | None = None
    """What builds with the same profile took."""
    users: Sequence[str] = ()
    """Those that it is kept for: deployments that name it or have pods of it, artifacts that are built from it."""
    ready: Sequence[Object] = ()
    """The namespace's artifacts that are Ready, it included, where their sizes matter."""
    users_now: bool | None = None
    """Whether anybody uses it, by the API server's own word; None where that was not asked."""
    reports: Sequence[ServingReport] = ()
    """What its ready serving pods said, where it is Ready."""


def is_ready(artifact: Object) -> bool:
    """True if the status says Ready."""
    return any(
        entry["type"] == ConditionType.READY and entry["status"] == "True"
        for entry in (artifact.get("status") or {}).get("conditions") or []
    )


def is_stale(artifact: Object) -> bool:
    """True if no node has a version any more that it is for."""
    return any(
        entry["type"] == ConditionType.STALE and entry["status"] == "True"
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


spec_of: Specs[BuildArtifactSpec] = Specs(BuildArtifactSpec, most=256)
"""The spec of a BuildArtifact."""


def hostname(node: Object) -> str:
    """What an affinity knows a node by."""
    return labels_of(node).get(names.LABEL_HOSTNAME) or name_of(node)


def plan(snapshot: ArtifactSnapshot, now: datetime) -> Plan:
    """Decides what is next for one BuildArtifact."""
    artifact = snapshot.artifact
    if is_deleting(artifact):
        return _leave(snapshot, now)
    if snapshot.referrers == 0 and not is_ready(artifact) and not is_refused(artifact):
        # Nobody waits for it any more, and there is nothing to keep; its Jobs go with it.
        return Plan(delete=(deletion_of(artifact),))
    return _Planner(snapshot, now).plan()


def asks_for_users(artifact: Object, now: datetime) -> bool:
    """True if it is about to go with its content, and the API server is to say whether anybody uses it."""
    return is_deleting(artifact) and collection.is_marked(artifact) and not collection.seconds_to_barrier(artifact, now)


def _leave(snapshot: ArtifactSnapshot, now: datetime) -> Plan:
    """Lets an artifact go, with its content where nobody uses that."""
    artifact = snapshot.artifact
    if not collection.is_marked(artifact):
        return Plan()
    if snapshot.users_now is None:
        return Plan(requeue_after=max(1.0, collection.seconds_to_barrier(artifact, now)))
    forget = None if snapshot.users_now else repository(artifact)
    return Plan(forget=forget, protect=(collection.mark(artifact, present=False),))


class _Planner:
    def __init__(self, snapshot: ArtifactSnapshot, now: datetime) -> None:
        self.snapshot = snapshot
        self.now = now
        self.spec = spec_of(snapshot.artifact)
        self.parts = len(build_job.stages(self.spec))
        self.attempts = [attempt for attempt in snapshot.attempts if attempt.number]
        self.before = BuildArtifactStatus.model_validate(snapshot.artifact.get("status") or {})
        self.conditions = Conditions(snapshot.artifact, now)
        self.status = self.before.model_copy(
            update={
                "observed_generation": snapshot.artifact["metadata"].get("generation", 0),
                "referrer_count": len(snapshot.users),
            }
        )

    def plan(self) -> Plan:
        finished = tuple(deletion_of(a.job) for a in self.snapshot.attempts if a.state is not State.RUNNING)
        if is_ready(self.snapshot.artifact):
            before = self.conditions.before(ConditionType.BUILT) or {}
            self._ready(reason_or(before.get("reason", ""), Reason.BUILT))
            self._verify()
            return self._keep_or_collect(finished)

        snapshot, answer, now = self.snapshot, self.snapshot.answer, self.now
        last = max(self.attempts, key=_order, default=None)
        if answer is None:
            return self._running(max((a for a in self.attempts if a.state is State.RUNNING), key=_order))
        if answer.presence is Presence.FOUND and answer.key == self.spec.key:
            return self._found(answer, last)
        ended = self.before.ended
        if answer.presence is Presence.UNREACHABLE and not (ended and ended.final):
            self._not_ready(Reason.STORE_UNREACHABLE, f"the artifact store does not answer: {answer.message}")
            return self._finish(requeue_after=STORE_RETRY_SECONDS)
        if last is not None and not self._is_taken_up(last):
            waited = self.conditions.before(ConditionType.BUILT) or {}
            self.status = build_ended.take_up(last, self.spec, self.status, held=snapshot.held, waited=waited, now=now)
            ended = self.status.ended
        if ended is not None and ended.final:
            return self._remember(ended)
        due = moment_of(self.status.retry_at)
        if ended is not None and due is not None and now < due:
            return self._pause(ended, due)
        return self._begin(ended)

    def _keep_or_collect(self, finished: tuple[Deletion, ...]) -> Plan:
        """Says why it is kept; or has it go, with the finalizer first, so that its content is seen to."""
        artifact, users = self.snapshot.artifact, self.snapshot.users
        self._set(last_used=collection.last_used(artifact, bool(users), self.now))
        this = replace(collection.kept(artifact), last_used=from_timestamp(str(self.status.last_used)))
        others = (collection.kept(each) for each in self.snapshot.ready if name_of(each) != this.name)
        verdict = collection.judge(this.name, users, [this, *others], self.snapshot.settings.retention, self.now)
        self._set(kept_because=verdict.reason[:1024])
        self._say_whether_stale()
        marked = collection.is_marked(artifact)
        protect = (collection.mark(artifact, present=verdict.goes),) if marked is not verdict.goes else ()
        gone = (deletion_of(artifact),) if marked and verdict.goes else ()
        return self._finish(delete=(*finished, *gone), protect=protect, requeue_after=verdict.look_again)

    def _verify(self) -> None:
        known = verifications(self.before.verifications or [], self.snapshot.reports, self.spec.key, self.now)
        self._set(verifications=known or None)

    def _say_whether_stale(self) -> None:
        for_ = compatibility.class_of(self.spec)
        there = build_devices.versions(self.spec, self.snapshot.accelerators)
        if there and not any(map(for_.admits, there)):
            wanted = " or ".join((*for_.drivers, *for_.sdks))
            message = f"no node has {wanted} any more: there is {compatibility.said(there)}"
            self.conditions.set(ConditionType.STALE, True, Reason.NO_MATCHING_NODE, message)

    def _found(self, answer: StoreAnswer, last: Attempt | None) -> Plan:
        # A build that this status knows of made it; otherwise an earlier life of the cluster did.
        built = self.before.attempts > 0
        host = self.snapshot.settings.store.host
        known = last is not None and self._is_taken_up(last)
        if last is not None and not known:
            self.status = build_ended.spend(self.status, last)
        if last is not None and last.state is State.SUCCEEDED and not (known and self._has_succeeded()):
            self.status = build_ended.succeed(self.status, last)
        if answer.digest != self.before.digest:
            # What was seen to run is not what the store has now.
            self._set(verifications=None)
        self._set(
            digest=answer.digest,
            size_bytes=answer.size_bytes,
            location=f"{host}/{repository(self.snapshot.artifact)}@{answer.digest}",
            failures=0,
            retry_at=None,
            log_tail=None,
            unexplained=None,
            excluded_nodes=None,
            avoided_nodes=None,
        )
        self._rest()
        self._ready(Reason.BUILT if built else Reason.ADOPTED)
        # The Jobs go only when what they tell is written down.
        return self._finish(delete=tuple(deletion_of(a.job) for a in self.snapshot.attempts), status_first=True)

    def _is_taken_up(self, job: Attempt) -> bool:
        ended = self.before.ended
        return ended is not None and (ended.attempt, ended.stage) == (job.number, job.part + 1)

    def _has_succeeded(self) -> bool:
        return self.before.ended is not None and self.before.ended.outcome == SUCCEEDED

    def _remember(self, ended: EndedJob) -> Plan:
        reason = reason_or(ended.outcome, Reason.TOOLCHAIN_FAILED)
        self._rest()
        self._not_ready(reason, ended.message)
        self.conditions.set(
            ConditionType.STALLED, True, reason,
            "mend the profile, the model or the deployment; to try the same again, delete this artifact",
        )  # fmt: skip
        return self._finish()

    def _pause(self, ended: EndedJob, due: datetime) -> Plan:
        self._rest()
        message = f"{ended.message}; the next attempt is due at {to_timestamp(due)}"
        self._not_ready(reason_or(ended.outcome, Reason.RETRYING), message)
        return self._finish(requeue_after=(due - self.now).total_seconds())

    def _begin(self, ended: EndedJob | None) -> Plan:
        snapshot = self.snapshot
        part = min(snapshot.held, self.parts - 1)
        if snapshot.referrers == snapshot.suspended:
            self._rest()
            message = "every deployment that wants it is suspended; it is built when one of them goes on"
            self.conditions.set(ConditionType.BUILT, False, Reason.SUSPENDED, message)
            self.conditions.roll_up([ConditionType.BUILT], ready_message="")
            return self._finish()
        excluded = self.status.excluded_nodes or []
        nodes = [node for node in snapshot.nodes if hostname(node) not in excluded] if excluded else None
        found = build_devices.Found(lacking="" if nodes is None or nodes else "every node is one that could not run it")
        if build_job.on_device(self.spec, part):
            found = build_devices.find(
                self.spec, namespace_of(snapshot.artifact), snapshot.accelerators, nodes, snapshot.spoken_for
            )
        if found.lacking:
            without = (
                f"; without {', '.join(excluded)}: to have them tried again, delete this artifact" if excluded else ""
            )
            return self._wait(Reason.UNSCHEDULABLE, f"{found.lacking}{without}")
        line = next((line for line in snapshot.lines if not line.is_open), None)
        if line is not None and part_of(snapshot.artifact) is not Part.BUILDS:
            return self._wait(Reason.QUEUED, line.place)
        return self._make(self._number(ended), part, found.devices, why=ended.message if ended is not None else "")

    def _make(self, number: int, part: int, devices: build_job.Devices | None, *, why: str) -> Plan:
        snapshot = self.snapshot
        goes_on = number == self.before.attempts and self.before.started_at is not None
        self._set(
            attempts=number,
            retry_at=None,
            stage=None,
            started_at=self.before.started_at if goes_on else to_timestamp(self.now),
            expected_seconds=snapshot.expected_seconds,
        )
        which = f"Job {part + 1} of {self.parts} of attempt {number}" if self.parts > 1 else f"attempt {number}"
        self._not_ready(Reason.BUILDING, f"{which} begins{f'; before: {why}' if why else ''}")
        run = build_job.Run(
            number,
            part,
            memory=self.status.memory,
            excluded=tuple(self.status.excluded_nodes or ()),
            avoided=tuple(self.status.avoided_nodes or ()),
            devices=devices,
            accelerators=tuple(sorted(name_of(each) for each in snapshot.accelerators if _has_devices(each))),
        )
        job = build_job.render(snapshot.artifact, self.spec, run, snapshot.settings)
        delete = tuple(deletion_of(attempt.job) for attempt in self.attempts)
        claim = None if devices is None else (devices.accelerator, self.spec.shape.devices)
        return self._finish(apply=(job,), delete=delete, status_first=True, devices=claim)

    def _number(self, ended: EndedJob | None) -> int:
        """The attempt that the next Job is of: the same one, if the last Job left something to go on with."""
        number = 1
        if ended is not None:
            goes_on = ended.outcome == SUCCEEDED and self.snapshot.held >= ended.stage
            number = ended.attempt if goes_on else ended.attempt + 1
        number = max(1, number, self.before.attempts)
        return number if number <= _LAST_NUMBER else 1

    def _wait(self, reason: Reason, message: str) -> Plan:
        self._rest()
        self._not_ready(reason, message)
        return self._finish(requeue_after=LOOK_AGAIN_SECONDS)

    def _running(self, job: Attempt) -> Plan:
        runs = f", {job.stage} runs" if job.stage else ""
        which = f"{job.part + 1}/{self.parts} " if self.parts > 1 else ""
        since = self.before.started_at or job.job["metadata"].get("creationTimestamp") or to_timestamp(self.now)
        self._set(stage=f"{which}{job.stage}"[:128].strip() or None, started_at=since)
        waits = job.not_begun(self.now)
        if waits is not None and waits.message:
            self._not_ready(Reason.STARTING, f"attempt {job.number}: {waits.message}")
        else:
            self._not_ready(job.reason or Reason.BUILDING, job.message or f"attempt {job.number}{runs}")
        return self._finish(requeue_after=waits.look_again if waits is not None else None)

    def _rest(self) -> None:
        """Nothing is at work."""
        self._set(stage=None, started_at=None, expected_seconds=None)

    def _set(self, **update: Any) -> None:
        self.status = self.status.model_copy(update=update)

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
        """Jobs whose place a later one has taken, left over by a crash between the two."""
        newest = max(map(_order, self.attempts), default=(0, 0))
        return [
            deletion_of(attempt.job)
            for attempt in self.attempts
            if attempt.state is not State.RUNNING and _order(attempt) < newest
        ]


def _order(attempt: Attempt) -> tuple[int, int]:
    return attempt.number, attempt.part


def _has_devices(accelerator: Object) -> bool:
    return bool(accelerator["spec"].get("resourceName") or accelerator["spec"].get("deviceClassName"))
