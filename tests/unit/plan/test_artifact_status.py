"""A BuildArtifact whose status somebody else wrote is planned like any other."""

from chain import World
from rm_operator.plan import artifact


def test_an_artifact_that_is_ready_without_saying_how_it_was_built_stays_ready() -> None:
    world = World()
    world.serve()
    made = world.of("BuildArtifact")[0]
    made["status"]["conditions"] = [each for each in made["status"]["conditions"] if each["type"] == "Ready"]
    assert artifact.is_ready(made)
    world.settle()
    name = made["metadata"]["name"]
    assert world.condition("BuildArtifact", name, "Ready")["status"] == "True"
    assert world.condition("BuildArtifact", name, "Built")["reason"] == "Built"
