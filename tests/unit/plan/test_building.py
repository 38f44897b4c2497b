"""What is asked of the build, from profile, facts and placement."""

from dataclasses import replace
from typing import Any

import pytest
from chain import PROFILE, World
from rm_api.base import Resources


@pytest.mark.parametrize(
    ("own", "profile", "expected"),
    [
        ({}, {}, {}),
        ({}, {"cpu": "2", "memory": "4Gi"}, {"cpu": "2", "memory": "4Gi"}),
        ({"memory": "1Gi"}, {"cpu": "2", "memory": "4Gi"}, {"cpu": "2", "memory": "1Gi"}),
        ({"cpu": "1", "memory": "1Gi"}, {"cpu": "2"}, {"cpu": "1", "memory": "1Gi"}),
    ],
)
def test_a_step_gets_the_profiles_resources_where_it_names_none(
    own: dict[str, Any], profile: dict[str, Any], expected: dict[str, Any]
) -> None:
    world = World()
    step = PROFILE.steps[0].model_copy(update={"resources": Resources(**own)})
    recipe = PROFILE.model_copy(update={"steps": [step], "resources": Resources(**profile)})
    world.profiles = [replace(world.profiles[0], spec=recipe)]
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    (artifact,) = world.of("BuildArtifact")
    assert artifact["spec"]["steps"][0]["resources"] == expected
