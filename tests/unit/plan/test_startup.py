"""How long engines may take to start: what is large may take longer, and the launcher gives up before the kubelet."""

from dataclasses import replace
from typing import Any

import pytest
from chain import FACTS, SETTINGS, World
from rm_api import names
from rm_api.kinds import BuildArtifactSpec
from rm_api.kinds.build_profile import BuildInterface
from rm_api.kinds.model_deployment import ModelFacts
from rm_operator.plan.serving_report import ServingReport
from rm_operator.plan.startup import budget_seconds, launcher_flags, slowest_start, startup_probe

GIB = 1 << 30


def pod() -> dict[str, Any]:
    world = World()
    world.serve()
    (made,) = world.of("Deployment")
    return dict(made["spec"]["template"]["spec"])


def artifact() -> BuildArtifactSpec:
    world = World()
    world.serve()
    (made,) = world.of("BuildArtifact")
    return BuildArtifactSpec.model_validate(made["spec"])


def facts(weight_bytes: int) -> ModelFacts:
    return ModelFacts.model_validate({**FACTS, "source": "hf://a/b", "weightBytes": weight_bytes})


def ready_timeout(container: dict[str, Any]) -> int:
    (value,) = [each for each in container["command"] if each.startswith("--ready-timeout=")]
    return int(value.partition("=")[2])


@pytest.mark.parametrize(
    ("weight_bytes", "least", "most"), [(1 << 20, 600, 1200), (16 * GIB, 900, 1800), (140 * GIB, 2800, 7200)]
)
def test_the_budget_follows_what_is_loaded(weight_bytes: int, least: int, most: int) -> None:
    """The least is a read at 50 MB/s; the most is what somebody would wait for an engine that is dead."""
    assert least <= budget_seconds(artifact(), facts(weight_bytes)) <= most


def test_an_engine_that_starts_from_its_own_cache_compiles_nothing() -> None:
    warm = artifact().model_copy(update={"interface": BuildInterface.WARMUP})
    assert budget_seconds(warm, facts(GIB)) < budget_seconds(artifact(), facts(GIB))


@pytest.mark.parametrize(
    ("measured", "budget"),
    [(0, None), (10, None), (1000, 3000), (300_000, 604_800)],
    ids=["none", "fast", "slow", "absurd"],
)
def test_starts_that_were_measured_count_where_they_were_slower_than_thought(measured: int, budget: int | None) -> None:
    derived = budget_seconds(artifact(), facts(1 << 20))
    assert budget_seconds(artifact(), facts(1 << 20), measured) == (budget or derived)


@pytest.mark.parametrize(
    ("status", "slowest"),
    [
        ({}, 0),
        ({"status": {}}, 0),
        ({"status": {"verifications": [{"product": "X1"}]}}, 0),
        ({"status": {"verifications": [{"startSeconds": 30}, {"startSeconds": 70}, {}]}}, 70),
    ],
)
def test_the_slowest_start_of_an_artifact(status: dict[str, Any], slowest: int) -> None:
    assert slowest_start(status) == slowest


def test_pods_of_an_artifact_that_started_slowly_before_get_more_time() -> None:
    world = World()
    world.serve()
    (made,) = world.of("BuildArtifact")
    (first,) = world.of("Deployment")
    world.said = ServingReport(made["spec"]["key"], "X1", "1.4.0", "", 5000)
    world.settle()
    world.serve("other")
    budgets = {
        each["metadata"]["labels"][names.LABEL_DEPLOYMENT]: ready_timeout(
            each["spec"]["template"]["spec"]["containers"][0]
        )
        for each in world.of("Deployment")
    }
    assert budgets["other"] == 15_000
    assert budgets["hello"] == ready_timeout(first["spec"]["template"]["spec"]["containers"][0]), "it is not restarted"


def test_the_kubelet_waits_longer_than_the_launcher_that_knows_why() -> None:
    (container,) = pod()["containers"]
    probe = container["startupProbe"]
    assert ready_timeout(container) == budget_seconds(artifact(), facts(FACTS["weightBytes"]))
    assert probe["periodSeconds"] * probe["failureThreshold"] >= ready_timeout(container) + 60
    assert probe["httpGet"] == container["readinessProbe"]["httpGet"], "others begin once it was ready"


@pytest.mark.parametrize("budget", [1, 601, 100_000])
def test_a_probe_covers_its_budget(budget: int) -> None:
    probe = startup_probe(budget)
    assert probe["periodSeconds"] * probe["failureThreshold"] >= budget


@pytest.mark.parametrize(("native", "flags"), [(True, []), (False, ["--log-format=logfmt"])])
def test_lines_are_in_one_format_where_that_is_wanted(native: bool, flags: list[str]) -> None:
    assert [each for each in launcher_flags(replace(SETTINGS, native_logs=native)) if "log" in each] == flags


def test_requests_have_time_to_end_before_the_pod_is_killed() -> None:
    spec = pod()
    flags = dict(each.split("=", 1) for each in spec["containers"][0]["command"] if each.startswith("--drain-"))
    waited = sum(int(value) for value in flags.values())
    assert int(flags["--drain-delay"]) > 0
    assert waited + 10 <= spec["terminationGracePeriodSeconds"]
