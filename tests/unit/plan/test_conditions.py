"""Conditions: what is kept, what changes, and what a person is told of it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from rm_api.conditions import ConditionType, Reason
from rm_operator.plan.conditions import MAX_MESSAGE, Conditions

Object = dict[str, Any]
BEFORE = "2026-01-01T00:00:00Z"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
AFTER = "2026-01-02T00:00:00Z"


def _object(*conditions: Object) -> Object:
    return {"metadata": {"name": "x", "generation": 5}, "status": {"conditions": list(conditions)}}


def _entry(condition: str, status: str, reason: str) -> Object:
    return {
        "type": condition, "status": status, "reason": reason, "message": "m", "lastTransitionTime": BEFORE,
        "observedGeneration": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "status", "word", "since"),
    [
        (None, True, "True", AFTER),
        ("True", True, "True", BEFORE),
        ("False", True, "True", AFTER),
        ("True", False, "False", AFTER),
        ("True", None, "Unknown", AFTER),
        ("Unknown", None, "Unknown", BEFORE),
    ],
)
def test_the_time_changes_with_the_status_only(before: str | None, status: bool | None, word: str, since: str) -> None:
    known = [_entry("Placed", before, "NoAccelerator")] if before else []
    conditions = Conditions(_object(*known), NOW)
    conditions.set(ConditionType.PLACED, status, Reason.PLACED, "another message")
    assert conditions.to_list() == [
        {
            "type": "Placed", "status": word, "reason": "Placed", "message": "another message",
            "lastTransitionTime": since, "observedGeneration": 5,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("condition", [ConditionType.RECONCILING, ConditionType.STALLED])
@pytest.mark.parametrize("status", [False, None])
def test_abnormal_conditions_are_there_while_they_are_true_only(condition: ConditionType, status: bool | None) -> None:
    conditions = Conditions(_object(_entry(condition.value, "True", "Building")), NOW)
    assert conditions.to_list() == [], "what is not stated again is gone"
    conditions.set(condition, True, Reason.BUILDING)
    assert conditions.is_true(condition)
    conditions.set(condition, status, Reason.BUILDING)
    assert not conditions.has(condition)
    assert conditions.to_list() == []


def test_a_long_message_is_cut_to_what_the_api_takes() -> None:
    conditions = Conditions(_object(), NOW)
    conditions.set(ConditionType.READY, False, Reason.BUILDING, "é" * 5000)
    message = conditions.get(ConditionType.READY)["message"]
    assert len(message) == MAX_MESSAGE
    assert message.endswith("é…")


def test_the_order_is_fixed() -> None:
    conditions = Conditions(_object(), NOW)
    for condition in reversed(ConditionType):
        conditions.set(condition, True, Reason.READY)
    assert [entry["type"] for entry in conditions.to_list()] == [condition.value for condition in ConditionType]


PARTS = [ConditionType.MODEL_RESOLVED, ConditionType.PLACED, ConditionType.ARTIFACT_READY]


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        ([True, True, True], ("True", "Ready", "all is well")),
        ([True, False, None], ("False", "NoAccelerator", "of Placed")),
        ([False, False, True], ("False", "Resolving", "of ModelResolved")),
        ([True, True, None], ("False", "Building", "of ArtifactReady")),
    ],
)
def test_ready_follows_the_first_part_that_is_not_true(states: list[bool | None], ready: tuple[str, str, str]) -> None:
    conditions = Conditions(_object(), NOW)
    reasons = [Reason.RESOLVING, Reason.NO_ACCELERATOR, Reason.BUILDING]
    for part, status, reason in zip(PARTS, states, reasons, strict=True):
        conditions.set(part, status, reason, f"of {part.value}")
    conditions.roll_up(PARTS, ready_message="all is well")
    entry = conditions.get(ConditionType.READY)
    assert (entry["status"], entry["reason"], entry["message"]) == ready


def test_a_part_that_was_not_stated_does_not_count() -> None:
    conditions = Conditions(_object(), NOW)
    conditions.roll_up(PARTS, ready_message="nothing is asked for")
    assert conditions.is_true(ConditionType.READY)


def test_get_of_what_was_not_stated_is_an_error() -> None:
    with pytest.raises(KeyError):
        Conditions(_object(_entry("Ready", "True", "Ready")), NOW).get(ConditionType.READY)


@pytest.mark.parametrize(
    ("before", "condition", "status", "reason", "event"),
    [
        (None, ConditionType.PLACED, True, Reason.PLACED, "Normal"),
        (None, ConditionType.ARTIFACT_READY, False, Reason.BUILDING, "Normal"),
        (None, ConditionType.ARTIFACT_READY, False, Reason.TOOLCHAIN_FAILED, "Warning"),
        (None, ConditionType.STALLED, True, Reason.INVALID_SPEC, "Warning"),
        (None, ConditionType.RECONCILING, True, Reason.BUILDING, None),
        (None, ConditionType.PLACED, None, Reason.WAITING_FOR_MODEL, None),
        (("False", "Building"), ConditionType.ARTIFACT_READY, False, Reason.BUILDING, None),
        (("False", "Building"), ConditionType.ARTIFACT_READY, False, Reason.TOOLCHAIN_FAILED, "Warning"),
        (("False", "Built"), ConditionType.ARTIFACT_READY, True, Reason.BUILT, "Normal"),
    ],
)
def test_a_change_worth_telling_is_one_event(
    before: tuple[str, str] | None, condition: ConditionType, status: bool | None, reason: Reason, event: str | None
) -> None:
    conditions = Conditions(_object(*([_entry(condition.value, *before)] if before else [])), NOW)
    conditions.set(condition, status, reason, "what happened")
    found = [(each.type, each.reason, each.message) for each in conditions.transitions()]
    assert found == ([(event, reason.value, "what happened")] if event else [])


def test_conditions_that_say_the_same_are_told_once() -> None:
    conditions = Conditions(_object(), NOW)
    conditions.set(ConditionType.PLACED, False, Reason.NO_ACCELERATOR, "none")
    conditions.roll_up([ConditionType.PLACED], ready_message="")
    assert len(conditions.transitions()) == 1


def test_an_event_without_a_message_names_the_condition() -> None:
    conditions = Conditions(_object(), NOW)
    conditions.set(ConditionType.BUILT, True, Reason.BUILT)
    assert conditions.transitions()[0].message == "Built"
