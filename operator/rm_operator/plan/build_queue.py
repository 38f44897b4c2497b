"""Which builds may begin where only so many may run: whoever holds a place goes on, the others in the order they came.

A build holds a place while its status says since when it runs. It waits while nothing else keeps it from beginning:
what is suspended, or pauses after a failure, lets others pass.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rm_api.conditions import ConditionType, Reason

from rm_operator.plan.model import Object, is_deleting

MOST_TOLD: Final = 10
"""Up to here the place in the queue is told; beyond it would change too often."""


class Part(StrEnum):
    """What an artifact has to do with the queue."""

    BUILDS = "Builds"
    WAITS = "Waits"
    NONE = "None"


@dataclass(frozen=True)
class Line:
    """One limit, as it is for one build."""

    what: str
    """What the limit is of, for a person."""
    limit: int
    building: int
    """Others that hold a place."""
    before: int
    """Others that wait, and come first."""

    @property
    def is_open(self) -> bool:
        """True if the build may begin, as far as this limit goes."""
        return self.building + self.before < self.limit

    @property
    def place(self) -> str:
        """Where in the queue the build is, for a person."""
        where = f"place {self.before + 1}" if self.before < MOST_TOLD else f"more than {MOST_TOLD} wait before it"
        return f"{where}; at most {self.limit} builds {self.what} run at a time"


def part_of(artifact: Object) -> Part:
    """Whether a build holds a place, or waits for one."""
    status = artifact.get("status") or {}
    conditions = {entry["type"]: entry for entry in status.get("conditions") or []}
    ready = conditions.get(ConditionType.READY, {}).get("status") == "True"
    if is_deleting(artifact) or ready or ConditionType.STALLED in conditions:
        return Part.NONE
    if status.get("startedAt"):
        return Part.BUILDS
    built = conditions.get(ConditionType.BUILT)
    return Part.WAITS if built is None or built["reason"] == Reason.QUEUED else Part.NONE
