"""BuildProfile: what makes one unusable, and what its status says."""

import copy
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from chain import SETTINGS
from rm_api.kinds import BuildProfileSpec
from rm_api.names import BUILD_VARIABLES
from rm_operator.plan.model import Plan
from rm_operator.plan.profile import ProfileSnapshot, plan, problems

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
STEP: Object = {"name": "compile", "image": "acme/cc:1", "command": ["cc", "${MODEL_DIR}", "-o", "${OUTPUT}/x"]}


def _spec(**step: Any) -> Object:
    return {
        "target": {"type": "NPU", "vendor": "Acme"},
        "steps": [{**STEP, **step}],
        "output": {"format": "acme"},
    }


def _profile(spec: Object, **status: Any) -> Object:
    return {"metadata": {"name": "p", "generation": 3}, "spec": spec, "status": status}


GOOD: list[Object] = [
    {},
    {"args": [f"${{{name}}}" for name in sorted(BUILD_VARIABLES)]},
    {"args": ["$$", "$${NOT_A_VARIABLE}", "cost: 5$", "$HOME"]},
    {"outputs": ["/rma/output/*", "a..b", "${OUTPUT}/x"], "env": [{"name": "A", "value": "${WORK}/a"}]},
]


@pytest.mark.parametrize("step", GOOD)
def test_usable(step: Object) -> None:
    assert problems(BuildProfileSpec.model_validate(_spec(**step))) == []


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"name": "push"}, "step push: the name is taken by a container of ours; choose another"),
        ({"name": "fetch"}, "step fetch: the name is taken"),
        ({"name": "launcher"}, "step launcher: the name is taken"),
        ({"name": "probe"}, "step probe: the name is taken"),
        ({"command": ["${CC}"]}, "step compile: unknown variable CC; there are CACHE_DIR, "),
        ({"args": ["${B}${A}"]}, "step compile: unknown variable A, B; "),
        ({"args": ["$$${NOPE}"]}, "unknown variable NOPE"),
        ({"args": ["${}"]}, "unknown variable"),
        ({"args": ["${SERVED_NAME}"]}, "unknown variable SERVED_NAME"),
        ({"env": [{"name": "A", "value": "${HOME}"}]}, "unknown variable HOME"),
        ({"outputs": ["${OUT}/x"]}, "unknown variable OUT"),
        ({"outputs": ["../etc"]}, "step compile: output ../etc leaves the build's directories"),
        ({"outputs": ["${OUTPUT}/a/../../b"]}, "leaves the build's directories"),
    ],
)
def test_unusable_says_where_and_why(step: Object, said: str) -> None:
    found = problems(BuildProfileSpec.model_validate(_spec(**step)))
    assert len(found) == 1
    assert said in found[0]


def test_the_probe_is_held_to_the_same_variables() -> None:
    spec = {**_spec(), "probe": {"image": "acme/cc:1", "command": ["check", "${OUTPUT}", "${NOPE}"]}}
    (found,) = problems(BuildProfileSpec.model_validate(spec))
    assert found.startswith("probe: unknown variable NOPE; there are CACHE_DIR, ")


def test_everything_that_is_wrong_is_said_at_once() -> None:
    spec = _spec(name="push", command=["${A}"])
    spec["steps"].append({**STEP, "name": "second", "outputs": ["../x"]})
    made = plan(ProfileSnapshot(_profile(spec), 0, SETTINGS), NOW)
    assert made.status is not None
    conditions = {entry["type"]: entry for entry in made.status["conditions"]}
    assert conditions.keys() == {"Ready", "Stalled"}
    assert (conditions["Ready"]["status"], conditions["Ready"]["reason"]) == ("False", "InvalidSpec")
    message = conditions["Ready"]["message"]
    assert message == conditions["Stalled"]["message"]
    assert [part.split(":")[0] for part in message.split("; ") if part.startswith("step")] == [
        "step push", "step push", "step second",
    ]  # fmt: skip
    assert [(event.type, event.reason) for event in made.events] == [("Warning", "InvalidSpec")]


def test_a_mended_profile_is_ready_and_says_nothing_twice() -> None:
    bad = plan(ProfileSnapshot(_profile(_spec(name="push")), 0, SETTINGS), NOW).status
    assert bad is not None
    mended = _profile(_spec(), **copy.deepcopy(bad))
    made = plan(ProfileSnapshot(mended, 7, SETTINGS), NOW)
    assert made.status is not None
    assert [(entry["type"], entry["status"], entry["reason"]) for entry in made.status["conditions"]] == [
        ("Ready", "True", "Accepted")
    ]
    assert (made.status["artifacts"], made.status["observedGeneration"]) == (7, 3)
    again = plan(ProfileSnapshot(_profile(_spec(), **made.status), 7, SETTINGS), NOW)
    assert again.status == made.status
    assert again.events == ()


def test_nothing_is_done_for_one_that_is_being_deleted() -> None:
    leaving = _profile(_spec())
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert plan(ProfileSnapshot(leaving, 0, SETTINGS), NOW) == Plan()


@pytest.mark.parametrize(("seconds", "minutes"), [("0", None), ("90", "1.5"), ("100.04", "1.7"), ("7200", "120.0")])
def test_what_builds_took_is_said_in_minutes(seconds: str, minutes: str | None) -> None:
    made = plan(ProfileSnapshot(_profile(_spec()), 1, SETTINGS, spent_seconds=Decimal(seconds)), NOW)
    assert made.status is not None
    assert made.status.get("buildMinutes") == minutes
