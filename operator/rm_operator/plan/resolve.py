"""What is the model? One Job per source and namespace finds out; an immutable ConfigMap keeps the answer.

Deployments of one namespace that name the same source share both, and own both, so the last one takes them along.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from pydantic import ValidationError
from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import MODEL_DEPLOYMENT
from rm_api.kinds.model_deployment import ModelFacts, ModelSource

from rm_operator.plan import pods
from rm_operator.plan.attempt import Attempt, State
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.memo import Memo
from rm_operator.plan.model import (
    Deletion,
    Object,
    Settings,
    SharedIntent,
    deletion_of,
    to_timestamp,
)

DEADLINE_SECONDS = 900
"""Of the first attempt. One whose time was too short is followed by one with GROWTH times as much."""
GROWTH = 4
MOST_DEADLINE_SECONDS = 86400
RETRY_SECONDS = (10, 20, 40, 80, 160, 300)
"""Pause after the n-th failed attempt, when the source could not be reached."""
RECHECK_SECONDS = 300
"""Pause after a failure that the user has to mend; what mends it may be outside the spec (a Secret, a pushed tag)."""
FACTS_KEY = "model.json"


@dataclass(frozen=True)
class Resolution:
    """The outcome of this step."""

    facts: ModelFacts | None = None
    apply: tuple[dict[str, Any], ...] = ()
    delete: tuple[Deletion, ...] = ()
    requeue_after: float | None = None
    stalled: bool = False


def source_hash(model: ModelSource) -> str:
    """Identifies what is to be resolved: 16 hexadecimal digits over source, revision and credentials."""
    return _hash(model.source, model.revision, model.credentials_secret_ref)


def written_source_hash(model: Mapping[str, Any]) -> str:
    """The same of a ``spec.model`` as it is written."""
    return _hash(model["source"], model.get("revision"), model.get("credentialsSecretRef"))


@lru_cache(maxsize=1024)  # many deployments are of few models
def _hash(source: str, revision: str | None, credentials: str | None) -> str:
    return hashlib.sha256(json.dumps([source, revision or "", credentials or ""]).encode()).hexdigest()[:16]


def config_map_name(hash_: str) -> str:
    """Name of the ConfigMap that keeps the facts."""
    return f"model-{hash_}"


def plan(
    model: ModelSource,
    *,
    namespace: str,
    sharers: tuple[tuple[str, str], ...],
    config_map: Object | None,
    attempts: Sequence[Attempt],
    conditions: Conditions,
    settings: Settings,
    now: datetime,
) -> Resolution:
    """Decides what is next for ``model`` and states ModelResolved.

    ``sharers`` are name and uid of the deployments of the namespace with this source, this one included; ``attempts``
    their Jobs.
    """
    hash_ = source_hash(model)
    finished = tuple(deletion_of(attempt.job) for attempt in attempts if attempt.state is not State.RUNNING)

    if config_map is not None:
        try:
            facts = _facts((config_map.get("data") or {}).get(FACTS_KEY, ""))
        except ValidationError:
            # Kept by a version that knew other facts, or replaced by somebody: the model tells once more.
            message = f"what was known of {model.source} cannot be read; it is read again"
            conditions.set(ConditionType.MODEL_RESOLVED, False, Reason.RESOLVING, message)
            return Resolution(delete=(deletion_of(config_map),))
        conditions.set(ConditionType.MODEL_RESOLVED, True, Reason.RESOLVED, f"pinned to {facts.revision}")
        return Resolution(facts, (_config_map(hash_, namespace, sharers, facts),), finished)

    last = max(attempts, key=lambda attempt: attempt.number, default=None)
    if last is None:
        conditions.set(ConditionType.MODEL_RESOLVED, False, Reason.RESOLVING, f"reading {model.source}")
        return Resolution(apply=(_job(model, hash_, 1, namespace, sharers, settings),))
    if last.state is State.RUNNING:
        message = last.message or f"reading {model.source}"
        waits = last.not_begun(now)
        if waits is not None and waits.message:
            conditions.set(ConditionType.MODEL_RESOLVED, False, Reason.STARTING, waits.message)
        else:
            conditions.set(ConditionType.MODEL_RESOLVED, False, last.reason or Reason.RESOLVING, message)
        return Resolution(requeue_after=waits.look_again if waits is not None else None)
    if last.state is State.SUCCEEDED:
        reported = last.report.facts if last.report else {}
        try:
            facts = ModelFacts.model_validate({**reported, "source": model.source})
            problems = [f"{name}: more than 64 bits" for name, value in facts.to_wire().items() if _is_too_large(value)]
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        if problems:
            return _wait(
                model, hash_, last, RECHECK_SECONDS, Reason.RESOLVE_FAILED,
                f"the report lacks facts: {'; '.join(problems[:3])}",
                namespace, sharers, conditions, settings, now, stalled=True,
            )  # fmt: skip
        conditions.set(ConditionType.MODEL_RESOLVED, False, Reason.RESOLVING, f"pinned to {facts.revision}")
        return Resolution(apply=(_config_map(hash_, namespace, sharers, facts),))
    reason, message, retryable = last.reason or Reason.RESOLVE_FAILED, last.message, last.retryable
    if reason is Reason.BUILD_TIMED_OUT:
        waited = conditions.before(ConditionType.MODEL_RESOLVED) or {}
        if waited.get("reason") in _WAITED:
            # The time went by before anything was read.
            reason, message = Reason(waited["reason"]), str(waited.get("message", "")).partition(_FAILED)[0]
        retryable = reason in _WAITED or _deadline_of(last) < MOST_DEADLINE_SECONDS
    pause = RETRY_SECONDS[min(last.number, len(RETRY_SECONDS)) - 1] if retryable else RECHECK_SECONDS
    return _wait(
        model, hash_, last, pause, reason, message,
        namespace, sharers, conditions, settings, now, stalled=not retryable,
    )  # fmt: skip


_FAILED: Final = "; attempt "
_WAITED: Final = (Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.STARTING)


def _deadline_of(attempt: Attempt) -> int:
    return int(attempt.job["spec"].get("activeDeadlineSeconds") or DEADLINE_SECONDS)


def _next_deadline(last: Attempt, reason: Reason) -> int:
    """Seconds that the attempt after ``last`` may take: as many, or more where they were too few for what is read."""
    if reason is Reason.BUILD_TIMED_OUT:
        return min(GROWTH * _deadline_of(last), MOST_DEADLINE_SECONDS)
    return _deadline_of(last)


def _is_too_large(value: object) -> bool:
    """True for a whole number that the API cannot keep; JSON, and so a report, knows no limit."""
    return isinstance(value, int) and value >= 2**63


def _wait(
    model: ModelSource, hash_: str, last: Attempt, pause: float, reason: Reason, message: str, namespace: str,
    sharers: tuple[tuple[str, str], ...], conditions: Conditions, settings: Settings, now: datetime, *, stalled: bool,
) -> Resolution:  # fmt: skip
    due = (last.ended or now) + timedelta(seconds=pause)
    text = f"{message}{_FAILED}{last.number} failed, the next one is due at {to_timestamp(due)}"
    conditions.set(ConditionType.MODEL_RESOLVED, False, reason, text)
    if now < due:
        return Resolution(requeue_after=(due - now).total_seconds(), stalled=stalled)
    return Resolution(
        apply=(
            _job(model, hash_, last.number + 1, namespace, sharers, settings, deadline=_next_deadline(last, reason)),
        ),
        delete=(deletion_of(last.job),),
        stalled=stalled,
    )


def _owners(sharers: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    kind = {"apiVersion": names.API_VERSION, "kind": MODEL_DEPLOYMENT.kind}
    return [{**kind, "name": name, "uid": uid} for name, uid in sorted(sharers, key=lambda each: each[1])]


def _read_facts(text: str) -> ModelFacts:
    return ModelFacts.model_validate_json(text)


def _rendered(hash_: str, namespace: str, sharers: tuple[tuple[str, str], ...], facts: ModelFacts) -> SharedIntent:
    return SharedIntent(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": config_map_name(hash_),
                "namespace": namespace,
                "labels": pods.labels(names.ROLE_RESOLVE, **{names.LABEL_MODEL: hash_}),
                "ownerReferences": _owners(sharers),
            },
            "immutable": True,
            "data": {FACTS_KEY: json.dumps(facts.to_wire(), sort_keys=True, separators=(",", ":"))},
        }
    )


# A model's facts, and the object that keeps them, are the same for all who share the model.
_facts = Memo(_read_facts, most=64)
_config_map = Memo(_rendered, most=64)


def _job(
    model: ModelSource,
    hash_: str,
    number: int,
    namespace: str,
    sharers: tuple[tuple[str, str], ...],
    settings: Settings,
    deadline: int = DEADLINE_SECONDS,
) -> dict[str, Any]:
    command = ["rm-abstract", "resolve", f"--source={pods.literal(model.source)}"]
    if model.revision:
        command.append(f"--revision={pods.literal(model.revision)}")
    environment, further_mounts, further_volumes = pods.source_access(
        settings, model.source, model.credentials_secret_ref
    )
    return pods.job(
        name=f"r-{hash_}-{number}",
        namespace=namespace,
        owners=_owners(sharers),
        label=pods.labels(names.ROLE_RESOLVE, **{names.LABEL_MODEL: hash_, names.LABEL_ATTEMPT: str(number)}),
        deadline=deadline,
        template=pods.pod_spec(
            init_containers=[],
            containers=[
                pods.container(
                    "resolve",
                    settings.images.runtime,
                    command,
                    settings,
                    mounted=[*pods.mounts(["tmp"]), *further_mounts],
                    environment=pods.env(environment),
                    compute={"requests": {"cpu": "50m", "memory": "128Mi"}},
                )
            ],
            pod_volumes=[*pods.volumes(["tmp"]), *further_volumes],
        ),
    )
