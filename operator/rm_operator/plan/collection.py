"""Collection: which artifacts go, why the others are kept, and how one goes without taking it from anybody.

An artifact goes that nobody has used for a while, or the one that was used longest ago where a namespace keeps more
than it may. First it gets the finalizer, then it is deleted. From then on nobody begins to use it. Whoever had decided
to before has written that down by the time the barrier is over; then the API server itself is asked who uses it. Only
if nobody does, the store is told to forget it. Otherwise the object goes and the content stays: who uses it asks for
the artifact again, and what the store has is adopted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rm_api import names

from rm_operator.plan.model import (
    Object,
    Protection,
    Retention,
    from_timestamp,
    is_deleting,
    moment_of,
    name_of,
    namespace_of,
    to_timestamp,
    uid_of,
)
from rm_operator.plan.placement.machine import GIB

BARRIER_SECONDS: Final = 60
"""Longer than any reconcile that began before the deletion was known goes on: each of its requests has a deadline."""
LAST_USED_SECONDS: Final = 86400
"""How old the time of the last use may be in the status of an artifact in use."""
MOST_NAMED: Final = 5


@dataclass(frozen=True)
class Kept:
    """An artifact that is Ready, as far as collection looks at it."""

    name: str
    size_bytes: int
    last_used: datetime
    used: bool


@dataclass(frozen=True)
class Verdict:
    """What becomes of an artifact."""

    reason: str
    """Why it is kept, or goes, for a person."""
    goes: bool = False
    look_again: float | None = None
    """Seconds until time alone may change the verdict."""


def judge(name: str, users: Sequence[str], kept: Sequence[Kept], retention: Retention, now: datetime) -> Verdict:
    """Decides about the artifact ``name``; ``kept`` are those of the namespace that are Ready, it included."""
    if users:
        more = f" and {len(users) - MOST_NAMED} more" if len(users) > MOST_NAMED else ""
        return Verdict(f"used by {', '.join(sorted(users)[:MOST_NAMED])}{more}")
    mine = next(each for each in kept if each.name == name)
    until = mine.last_used + timedelta(seconds=retention.unused_seconds)
    if now >= until:
        return Verdict(f"nobody has used it since {to_timestamp(mine.last_used)}", goes=True)
    quota = retention.quota_bytes
    total = sum(each.size_bytes for each in kept)
    if quota is not None and total > quota:
        # Those that go before it, until the rest fits.
        for each in sorted((each for each in kept if not each.used), key=lambda each: (each.last_used, each.name)):
            if total <= quota:
                break
            if each.name == name:
                return Verdict(
                    f"the namespace's artifacts take {_gib(sum(each.size_bytes for each in kept))} GiB, "
                    f"{_gib(quota)} are allowed, and nobody uses it",
                    goes=True,
                )
            total -= each.size_bytes
    return Verdict(
        f"nobody uses it; kept until {to_timestamp(until)}", look_again=max(1.0, (until - now).total_seconds())
    )


def last_used(artifact: Object, used: bool, now: datetime) -> str:
    """The time of the last use for the status: now where it has just ended, or is going on and a day has passed."""
    status = artifact.get("status") or {}
    said = status.get("lastUsed")
    if said is None or moment_of(said) is None or (not used and int(status.get("referrerCount") or 0) > 0):
        return to_timestamp(now)
    if used and (now - from_timestamp(said)).total_seconds() >= LAST_USED_SECONDS:
        return to_timestamp(now)
    return str(said)


def is_marked(artifact: Object) -> bool:
    """True if it has the finalizer, and so does not go before its content."""
    return names.FINALIZER_ARTIFACT in (artifact["metadata"].get("finalizers") or ())


def mark(artifact: Object, *, present: bool) -> Protection:
    """Puts the finalizer there, or takes it off."""
    return Protection(
        artifact["apiVersion"],
        artifact["kind"],
        name_of(artifact),
        uid_of(artifact),
        present,
        None if present else artifact["metadata"].get("resourceVersion"),
        namespace_of(artifact),
        names.FINALIZER_ARTIFACT,
    )


def kept(artifact: Object) -> Kept:
    """What collection looks at of an artifact that is Ready."""
    status = artifact.get("status") or {}
    since = moment_of(status.get("lastUsed")) or from_timestamp(artifact["metadata"]["creationTimestamp"])
    return Kept(
        name_of(artifact),
        int(status.get("sizeBytes") or 0),
        since,
        int(status.get("referrerCount") or 0) > 0,
    )


def seconds_to_barrier(artifact: Object, now: datetime) -> float:
    """Seconds until all who decided to use it before it was deleted have written that down."""
    assert is_deleting(artifact)
    deleted = from_timestamp(artifact["metadata"]["deletionTimestamp"])
    return max(0.0, BARRIER_SECONDS - (now - deleted).total_seconds())


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f}"
