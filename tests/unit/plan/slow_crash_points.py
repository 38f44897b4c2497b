"""The operator dies at every one of its writes in each scenario: ``make test-slow-crashes``."""

import pytest
from crash_scenarios import Scenario, check_a_death, deaths, writes_to_die_at


@pytest.mark.parametrize(
    ("scenario", "how"), [pytest.param(*each, id=f"{each[0].name} {each[1]}") for each in deaths()]
)
def test_a_death_at_any_write_changes_nothing(scenario: Scenario, how: str) -> None:
    for number in writes_to_die_at(scenario, how):
        check_a_death(scenario, how, number)
