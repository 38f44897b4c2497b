"""How long engines may take to start: what is large may take longer, and the launcher gives up before the kubelet."""

from typing import Any

import pytest
from chain import FACTS, World
from rm_api.kinds import BuildArtifactSpec
from rm_api.kinds.build_profile import BuildInterface
from rm_api.kinds.model_deployment import ModelFacts
from rm_operator.plan.startup import budget_seconds, startup_probe

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


def test_requests_have_time_to_end_before_the_pod_is_killed() -> None:
    spec = pod()
    flags = dict(each.split("=", 1) for each in spec["containers"][0]["command"] if each.startswith("--drain-"))
    waited = sum(int(value) for value in flags.values())
    assert int(flags["--drain-delay"]) > 0
    assert waited + 10 <= spec["terminationGracePeriodSeconds"]
