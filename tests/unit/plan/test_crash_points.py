"""The operator dies at some of its writes in each scenario; at every one with ``make test-slow-crashes``."""

from collections import defaultdict

import pytest
from crash_scenarios import MODEL, SCENARIOS, Scenario, check_a_death, deaths, reference, writes_to_die_at
from memory_cluster import NAMESPACE

DEATHS = 6
"""In each scenario and way to die: at the first write, at the last, and at some between."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_without_a_fault_it_ends_where_it_should(scenario: Scenario) -> None:
    outcome = reference(scenario)
    conditions = outcome.objects.get(MODEL, {}).get("status", {}).get("conditions", [])
    assert next((each["reason"] for each in conditions if each["type"] == "Ready"), "") == scenario.end
    if scenario.end == "Ready":
        slice_ = outcome.objects["EndpointSlice", NAMESPACE, "hello-slice"]
        assert len(slice_["endpoints"]) == outcome.objects[MODEL]["spec"]["replicas"], "Ready pods are reached"
    attempts: dict[str, set[str]] = defaultdict(set)
    for name in outcome.ran:
        kind, key, number, *_ = name.split("-")
        attempts[f"{kind}-{key}"].add(number)
    tries = {"source away twice": 3, "memory fails twice": 3}.get(scenario.name, 2 if "fails" in scenario.name else 1)
    assert max(map(len, attempts.values()), default=1) == tries, "no second attempt for a key"
    assert max(outcome.ran.values(), default=1) == 1, "no second Job of an attempt"


@pytest.mark.parametrize(
    ("scenario", "how"), [pytest.param(*each, id=f"{each[0].name} {each[1]}") for each in deaths()]
)
def test_a_death_at_a_write_changes_nothing(scenario: Scenario, how: str) -> None:
    numbers = writes_to_die_at(scenario, how)
    spread = {(len(numbers) - 1) * each // (DEATHS - 1) for each in range(DEATHS)} if numbers else ()
    for number in (numbers[each] for each in sorted(spread)):
        check_a_death(scenario, how, number)
