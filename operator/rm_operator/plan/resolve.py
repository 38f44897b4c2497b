"""What is the model? One Job per source and namespace finds out; an immutable ConfigMap keeps the answer.

Deployments of one namespace that name the same source share both, and own both, so the last one takes them along.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds.model_deployment import ModelFacts, ModelSource

from rm_operator.plan import pods
from rm_operator.plan.attempt import Attempt, State
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.model import (
    Deletion,
    Object,
    Settings,
    deletion_of,
    owner_reference,
    to_timestamp,
    uid_of,
)

DEADLINE_SECONDS = 900
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
    parts = [model.source, model.revision or "", model.credentials_secret_ref or ""]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def config_map_name(hash_: str) -> str:
    """Name of the ConfigMap that keeps the facts."""
    return f"model-{hash_}"


def plan(
    model: ModelSource,
    *,
    namespace: str,
    sharers: Sequence[Object],
    config_map: Object | None,
    attempts: Sequence[Attempt],
    conditions: Conditions,
    settings: Settings,
    now: datetime,
) -> Resolution:
    """Decides what is next for ``model`` and states ModelResolved.

    ``sharers`` are the deployments of the namespace with this source, this one included; ``attempts`` their Jobs.
    """
    hash_ = source_hash(model)
    owners = [owner_reference(each, controller=False) for each in sorted(sharers, key=uid_of)]
    finished = tuple(deletion_of(attempt.job) for attempt in attempts if attempt.state is not State.RUNNING)

    if config_map is not None:
        try:
            facts = ModelFacts.model_validate_json((config_map.get("data") or {}).get(FACTS_KEY, ""))
        except ValidationError:
            # Kept by a version that knew other facts, or replaced by somebody: the model tells once more.
            message = f"what was known of {model.source} cannot be read; it is read again"
            conditions.set(ConditionType.MODEL_RESOLVED, False, Reason.RESOLVING, message)
            return Resolution(delete=(deletion_of(config_map),))
        conditions.set(ConditionType.MODEL_RESOLVED, True, Reason.RESOLVED, f"pinned to {facts.revision}")
        return Resolution(facts, (_config_map(hash_, namespace, owners, facts),), finished)

    last = max(attempts, key=lambda attempt: attempt.number, default=None)
    if last is None:
        conditions.set(ConditionType.MODEL_RESOLVED, False, Reason.RESOLVING, f"reading {model.source}")
        return Resolution(apply=(_job(model, hash_, 1, namespace, owners, settings),))
    if last.state is State.RUNNING:
        message = last.message or f"reading {model.source}"
        conditions.set(ConditionType.MODEL_RESOLVED, False, last.reason or Reason.RESOLVING, message)
        return Resolution()
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
                namespace, owners, conditions, settings, now, stalled=True,
            )  # fmt: skip
        conditions.set(ConditionType.MODEL_RESOLVED, False, Reason.RESOLVING, f"pinned to {facts.revision}")
        return Resolution(apply=(_config_map(hash_, namespace, owners, facts),))
    pause = RETRY_SECONDS[min(last.number, len(RETRY_SECONDS)) - 1] if last.retryable else RECHECK_SECONDS
    return _wait(
        model, hash_, last, pause, last.reason or Reason.RESOLVE_FAILED, last.message,
        namespace, owners, conditions, settings, now, stalled=not last.retryable,
    )  # fmt: skip


def _is_too_large(value: object) -> bool:
    """True for a whole number that the API cannot keep; JSON, and so a report, knows no limit."""
    return isinstance(value, int) and value >= 2**63


def _wait(
    model: ModelSource, hash_: str, last: Attempt, pause: float, reason: Reason, message: str, namespace: str,
    owners: list[dict[str, Any]], conditions: Conditions, settings: Settings, now: datetime, *, stalled: bool,
) -> Resolution:  # fmt: skip
    due = (last.ended or now) + timedelta(seconds=pause)
    text = f"{message}; attempt {last.number} failed, the next one is due at {to_timestamp(due)}"
    conditions.set(ConditionType.MODEL_RESOLVED, False, reason, text)
    if now < due:
        return Resolution(requeue_after=(due - now).total_seconds(), stalled=stalled)
    return Resolution(
        apply=(_job(model, hash_, last.number + 1, namespace, owners, settings),),
        delete=(deletion_of(last.job),),
        stalled=stalled,
    )


def _config_map(hash_: str, namespace: str, owners: list[dict[str, Any]], facts: ModelFacts) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_map_name(hash_),
            "namespace": namespace,
            "labels": pods.labels(names.ROLE_RESOLVE, **{names.LABEL_MODEL: hash_}),
            "ownerReferences": owners,
        },
        "immutable": True,
        "data": {FACTS_KEY: json.dumps(facts.to_wire(), sort_keys=True, separators=(",", ":"))},
    }


def _job(
    model: ModelSource, hash_: str, number: int, namespace: str, owners: list[dict[str, Any]], settings: Settings
) -> dict[str, Any]:
    command = ["rm-abstract", "resolve", f"--source={pods.literal(model.source)}"]
    if model.revision:
        command.append(f"--revision={pods.literal(model.revision)}")
    environment, further_mounts, further_volumes = pods.source_access(settings, model.credentials_secret_ref)
    return pods.job(
        name=f"r-{hash_}-{number}",
        namespace=namespace,
        owners=owners,
        label=pods.labels(names.ROLE_RESOLVE, **{names.LABEL_MODEL: hash_, names.LABEL_ATTEMPT: str(number)}),
        deadline=DEADLINE_SECONDS,
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
