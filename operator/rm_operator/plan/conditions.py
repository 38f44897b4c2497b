"""Conditions of a status, built so that nothing changes unless something changed (kstatus rules)."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rm_api.conditions import ConditionType, Reason

from rm_operator.plan.model import Object, PlannedEvent, to_timestamp

_ORDER = {condition: position for position, condition in enumerate(ConditionType)}
_ABNORMAL_TRUE = frozenset({ConditionType.RECONCILING, ConditionType.STALLED})
MAX_MESSAGE = 2000


def reason_or(text: str, otherwise: Reason) -> Reason:
    """The reason that ``text`` names; ``otherwise`` where another version, or a container, used another word."""
    try:
        return Reason(text)
    except ValueError:
        return otherwise


class Conditions:
    """The conditions of one object during one reconcile: starts from nothing, ends as the list for the status.

    ``lastTransitionTime`` is kept where the status is as before. Reconciling and Stalled exist only while true.
    """

    def __init__(self, obj: Object, now: datetime) -> None:
        self._before: dict[str, dict[str, Any]] = {
            entry["type"]: entry for entry in (obj.get("status") or {}).get("conditions") or []
        }
        self._generation = int(obj["metadata"].get("generation", 0))
        self._now = to_timestamp(now)
        self._after: dict[ConditionType, dict[str, Any]] = {}

    def set(self, condition: ConditionType, status: bool | None, reason: Reason, message: str = "") -> None:
        """States one condition; None is Unknown. An abnormal-true condition that is not true is left out."""
        if condition in _ABNORMAL_TRUE and not status:
            self._after.pop(condition, None)
            return
        word = "Unknown" if status is None else str(bool(status))
        before = self._before.get(condition.value)
        if len(message) > MAX_MESSAGE:
            message = message[: MAX_MESSAGE - 1] + "…"
        self._after[condition] = {
            "type": condition.value,
            "status": word,
            "reason": reason.value,
            "message": message,
            "lastTransitionTime": before["lastTransitionTime"] if before and before["status"] == word else self._now,
            "observedGeneration": self._generation,
        }

    def before(self, condition: ConditionType) -> dict[str, Any] | None:
        """What an earlier reconcile said of ``condition``, if anything."""
        return self._before.get(condition.value)

    def said_before(self, condition: ConditionType, reason: Reason) -> bool:
        """True if ``condition`` was True for ``reason``, and of the same generation of the spec."""
        entry = self._before.get(condition.value)
        if entry is None or (entry["status"], entry["reason"]) != ("True", reason.value):
            return False
        return bool(entry.get("observedGeneration", 0) == self._generation)

    def keep(self, condition: ConditionType, otherwise: Reason, message: str) -> None:
        """States what was True before again; what was not is Unknown, for the reason ``otherwise``."""
        entry = self._before.get(condition.value)
        if entry is not None and entry["status"] == "True":
            self.set(condition, True, reason_or(entry["reason"], otherwise), entry.get("message", ""))
        else:
            self.set(condition, None, otherwise, message)

    def as_before(self, condition: ConditionType) -> None:
        """States what an earlier reconcile said, whatever it was; nothing, where it said nothing."""
        entry = self._before.get(condition.value)
        if entry is not None:
            self._after[condition] = {**entry, "observedGeneration": self._generation}

    def is_true(self, condition: ConditionType) -> bool:
        """True if the condition was stated True in this reconcile."""
        return self._after.get(condition, {}).get("status") == "True"

    def has(self, condition: ConditionType) -> bool:
        """True if the condition was stated at all."""
        return condition in self._after

    def roll_up(self, parts: Iterable[ConditionType], *, ready_message: str) -> None:
        """States Ready from the first part, in order, that is not True."""
        for part in parts:
            entry = self._after.get(part)
            if entry is not None and entry["status"] != "True":
                self.set(ConditionType.READY, False, Reason(entry["reason"]), entry["message"])
                return
        self.set(ConditionType.READY, True, Reason.READY, ready_message)

    def get(self, condition: ConditionType) -> dict[str, Any]:
        """What was stated of ``condition``; raises KeyError if nothing was."""
        return self._after[condition]

    def to_list(self) -> list[dict[str, Any]]:
        """The conditions in a fixed order."""
        return [self._after[condition] for condition in sorted(self._after, key=_ORDER.__getitem__)]

    def transitions(self) -> tuple[PlannedEvent, ...]:
        """One event for each condition whose status or reason changed to something worth telling a person."""
        events = []
        for condition, entry in self._after.items():
            before = self._before.get(condition.value)
            if before and (before["status"], before["reason"]) == (entry["status"], entry["reason"]):
                continue
            if condition is ConditionType.RECONCILING or entry["reason"].startswith("Waiting"):
                continue
            blamed = entry["status"] != "True" and entry["reason"] in _BLAMES
            warning = blamed or condition is ConditionType.STALLED
            events.append(
                PlannedEvent("Warning" if warning else "Normal", entry["reason"], entry["message"] or condition.value)
            )
        return tuple(dict.fromkeys(events))


_BLAMES = frozenset(
    reason.value
    for reason in Reason
    if reason
    not in {
        Reason.RESOLVING,
        Reason.PROBING,
        Reason.BUILDING,
        Reason.STARTING,
        Reason.WAITING_FOR_MODEL,
        Reason.WAITING_FOR_PLACEMENT,
        Reason.WAITING_FOR_ARTIFACT,
        Reason.ROLLING_OUT,
        Reason.SUSPENDED,
        Reason.QUEUED,
    }
)
