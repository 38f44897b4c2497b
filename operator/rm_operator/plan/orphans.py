"""Orphans: what the artifact store has and no object of the cluster names. Which they are, and when they go. Pure.

A cluster that was restored without its artifacts, or one that was deleted by hand, leaves its content in the store. It
is adopted as soon as a deployment wants it. What nobody has wanted for long enough goes. The same holds for what the
Jobs of a build left for one another, once the artifact is Ready.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from rm_api import names

from rm_operator.plan.model import moment_of, to_timestamp

MOST_REMEMBERED: Final = 5000
"""Orphans of which it is written down since when they are; more do not fit into one object. The others wait."""
MOST_REMOVED: Final = 500
"""At one time."""
_REPOSITORY: Final = re.compile(
    rf"{names.ARTIFACT_REPOSITORIES}/([a-z0-9](?:[-a-z0-9]{{0,61}}[a-z0-9])?)/([a-z0-9](?:[-a-z0-9]{{0,61}}[a-z0-9])?)"
)
_STAGE: Final = re.compile(re.escape(names.STAGE_TAG).replace(r"\{\}", "[1-9][0-9]*"))


@dataclass(frozen=True)
class Orphan:
    """A repository of which nobody knows, or a stage in one that nobody will read."""

    repository: str
    tag: str = ""
    """Empty for the whole repository."""

    @property
    def name(self) -> str:
        """As people read it and as it is written down."""
        return f"{self.repository}:{self.tag}" if self.tag else self.repository


@dataclass(frozen=True)
class OrphanPlan:
    """What is to be remembered, and what goes."""

    since: Mapping[str, str] = field(default_factory=dict)
    """Name of each orphan → when it was first seen; those that go are among them until they are gone."""
    remove: tuple[Orphan, ...] = ()


def place_of(repository: str) -> tuple[str, str] | None:
    """Namespace and name of the BuildArtifact that a repository belongs to; None for what is not of ours."""
    match = _REPOSITORY.fullmatch(repository)
    return (match[1], match[2]) if match else None


def find(
    tags: Mapping[str, Sequence[str]], named: Collection[tuple[str, str]], ready: Collection[tuple[str, str]]
) -> list[Orphan]:
    """The orphans among repositories with their tags.

    ``named`` are namespace and name of every artifact that an object names; ``ready`` of those whose build is over.
    """
    found = []
    for repository in sorted(tags):
        place = place_of(repository)
        if place is None or not tags[repository]:
            continue
        if place not in named:
            found.append(Orphan(repository))
        elif place in ready and names.ARTIFACT_TAG in tags[repository]:
            found += [Orphan(repository, tag) for tag in sorted(tags[repository]) if _STAGE.fullmatch(tag)]
    return found


def plan(orphans: Sequence[Orphan], since: Mapping[str, str], days: int, now: datetime) -> OrphanPlan:
    """Decides by when each was first seen, as it is written down. With 0 ``days`` nothing goes."""
    # Those that are known come first, so that none that waits to be written down displaces one that was.
    ordered = sorted(orphans, key=lambda each: (_seen(since, each, now) is None, each.name))[:MOST_REMEMBERED]
    remembered = {each.name: to_timestamp(_seen(since, each, now) or now) for each in ordered}
    due = [
        each
        for each in ordered
        if days and (seen := _seen(since, each, now)) is not None and now - seen >= timedelta(days=days)
    ]
    return OrphanPlan(remembered, tuple(due[:MOST_REMOVED]))


def _seen(since: Mapping[str, str], orphan: Orphan, now: datetime) -> datetime | None:
    """When it was first seen; None if it was not, or what is written down is no time, or one to come."""
    seen = moment_of(since.get(orphan.name))
    return seen if seen is not None and seen.tzinfo is not None and seen <= now else None
