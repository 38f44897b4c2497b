"""What a status says when a plan could not be carried out, or not even be made. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rm_api.conditions import ConditionType, Reason

from rm_operator.plan.conditions import Conditions
from rm_operator.plan.model import Object, PlannedEvent

_STATED = frozenset({ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED})


@dataclass(frozen=True)
class Refusal:
    """Why an object does not come to be what it should be, for a person to read."""

    reason: Reason
    message: str
    stalled: bool
    """It will not pass by itself; otherwise it is being tried again."""

    def differs(self, other: "Refusal") -> bool:
        """True if it says more than the same with another message."""
        return (self.reason, self.stalled) != (other.reason, other.stalled)


def stated(
    obj: Object, status: Mapping[str, Any], refusal: Refusal, now: datetime
) -> tuple[dict[str, Any], tuple[PlannedEvent, ...]]:
    """``status`` of ``obj`` with the refusal in it, and the events of that. What is known of the rest stays said."""
    conditions = Conditions(obj, now)
    conditions.set(ConditionType.READY, False, refusal.reason, refusal.message)
    abnormal = ConditionType.STALLED if refusal.stalled else ConditionType.RECONCILING
    conditions.set(abnormal, True, refusal.reason, refusal.message)
    rest = [entry for entry in status.get("conditions") or () if entry["type"] not in _STATED]
    return {
        **status,
        "observedGeneration": int(obj["metadata"].get("generation", 0)),
        "conditions": [*conditions.to_list(), *rest],
    }, conditions.transitions()
