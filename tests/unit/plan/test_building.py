"""What is asked of the build, from profile, facts and placement."""

from dataclasses import replace
from typing import Any

import pytest
from chain import FACTS, NPU, PROFILE, World
from rm_api.base import Resources
from rm_api.kinds.build_artifact import ShapeBucket
from rm_api.kinds.build_profile import Lora
from rm_operator.plan.buckets import covers
from rm_operator.plan.model import to_timestamp
from rm_operator.plan.placement import AcceleratorView, ProfileView


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


def build_with(world: World, *profiles: ProfileView) -> None:
    """Deploys a model, has it resolved, and asks for what ``profiles`` build."""
    world.profiles = list(profiles)
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()


def recipe(name: str = "acme", **change: Any) -> ProfileView:
    return ProfileView(name, PROFILE.model_validate({**PROFILE.to_wire(), **change}))


UNSUPPORTED = {"reason": "UnsupportedModel", "message": "check: no kernel for rope_type yarn"}


def refuse(world: World) -> None:
    for job in world.jobs("build"):
        world.finish(job, 64, report=UNSUPPORTED)
    world.settle()


def elsewhere(world: World) -> None:
    """A second kind of accelerator, with a profile of its own."""
    spec = NPU.model_validate({**NPU.to_wire(), "vendor": "Other", "resourceName": "other.com/npu"})
    world.accelerators.append(AcceleratorView("other", spec, free=4, healthy=4, nodes=1))


def test_what_a_compiler_does_not_take_is_placed_elsewhere_and_stays_there() -> None:
    world = World()
    elsewhere(world)
    other = recipe("other", target={"type": "NPU", "vendor": "Other"}, output={"format": "other"})
    build_with(world, recipe(), other)
    assert world.objects["ModelDeployment", "hello"]["status"]["placement"]["chosen"] == "npu"
    refuse(world)
    status = world.objects["ModelDeployment", "hello"]["status"]
    assert status["placement"]["chosen"] == "other"
    (out,) = [each for each in status["placement"]["candidates"] if each["name"] == "npu"]
    assert not out["eligible"]
    assert "does not take the model" in out["reason"]
    assert "yarn" in out["reason"]
    world.build()
    world.settle()
    assert world.reason() == "Starting"
    world.settle()
    assert world.objects["ModelDeployment", "hello"]["status"]["placement"]["chosen"] == "other"


def test_nobody_asks_a_compiler_twice_for_a_model_that_it_does_not_take() -> None:
    world = World()
    build_with(world, recipe())
    refuse(world)
    made = len([kind for kind, _ in world.made if kind == "Job"])
    world.deploy("second")
    world.settle()
    assert world.reason("second") == "UnsupportedModel"
    assert world.condition("ModelDeployment", "second", "Stalled")["reason"] == "UnsupportedModel"
    assert "yarn" in world.condition("ModelDeployment", "second", "Placed")["message"]
    assert len([kind for kind, _ in world.made if kind == "Job"]) == made
    world.remove("ModelDeployment", "hello")
    world.remove("ModelDeployment", "second")
    world.settle()
    world.deploy("third")
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.reason("third") == "UnsupportedModel", "it is known after those who asked are gone"


def test_a_compiler_is_asked_again_when_its_profile_has_changed() -> None:
    world = World()
    build_with(world, recipe())
    refuse(world)
    (failed,) = world.of("BuildArtifact")
    world.profiles = [recipe(steps=[{**PROFILE.to_wire()["steps"][0], "image": "acme/cc:2"}])]
    world.settle()
    (again,) = world.of("BuildArtifact")
    assert again["metadata"]["name"] != failed["metadata"]["name"]
    world.build()
    world.settle()
    assert world.reason() == "Starting"


STRUCTURE = {"binds": "Structure", "weightsInArtifact": False}


def test_a_fine_tune_shares_what_depends_on_the_structure_alone() -> None:
    world = World()
    build_with(world, recipe(**STRUCTURE))
    world.build()
    world.settle()
    world.deploy("tuned", model={"source": "oci://registry/tuned:1"})
    world.settle()
    for job in world.jobs("resolve"):
        world.finish(job, report={"facts": {**FACTS, "weightsDigest": "sha256:" + "9" * 64}})
    world.settle()
    assert len(world.of("BuildArtifact")) == 1
    assert len([name for kind, name in world.made if kind == "Job" and name.startswith("b-")]) == 1
    first, second = world.of("Deployment")
    fetched = [
        next(each for each in made["spec"]["template"]["spec"]["initContainers"] if each["name"] == "fetch-model")
        for made in (first, second)
    ]
    assert [arg for each in fetched for arg in each["command"] if arg.startswith("--source")] == [
        "--source=oci://registry/model:1", "--source=oci://registry/tuned:1",
    ]  # fmt: skip
    assert f"--weights-digest=sha256:{'9' * 64}" in fetched[1]["command"]


def test_a_fine_tune_does_not_share_what_has_the_weights_in_it() -> None:
    world = World()
    build_with(world, recipe())
    world.build()
    world.settle()
    world.deploy("tuned", model={"source": "oci://registry/tuned:1"})
    world.settle()
    for job in world.jobs("resolve"):
        world.finish(job, report={"facts": {**FACTS, "weightsDigest": "sha256:" + "9" * 64}})
    world.settle()
    assert len(world.of("BuildArtifact")) == 2


def test_what_a_profile_starts_from_is_built_first_and_once() -> None:
    world = World()
    base = recipe("export", target={"type": "CPU", "vendor": "Generic"}, output={"format": "onnx"})
    build_with(world, recipe(**{"from": "export"}), base)
    (first,) = world.of("BuildArtifact")
    assert first["spec"]["profile"] == "export"
    world.build()
    world.settle()
    derived = next(each for each in world.of("BuildArtifact") if each["spec"]["profile"] == "acme")
    assert derived["spec"]["base"]["name"] == first["metadata"]["name"]
    assert (
        derived["spec"]["base"]["location"]
        == world.objects["BuildArtifact", first["metadata"]["name"]]["status"]["location"]
    )
    world.build()
    world.settle()
    assert world.reason() == "Starting"
    assert len([name for kind, name in world.made if kind == "Job" and name.startswith("b-")]) == 2


GENERIC = {"type": "CPU", "vendor": "G"}


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ([recipe(**{"from": "export"})], "BuildProfile export, which acme starts from, does not exist"),
        ([recipe(**{"from": "acme"})], "BuildProfile acme starts from itself"),
        (
            [recipe(**{"from": "export"}), replace(recipe("export", target=GENERIC), usable=False, reason="broken")],
            "BuildProfile export is not usable: broken",
        ),
        (
            [recipe(**{"from": "export"}), recipe("export", target=GENERIC, shapes={"sequence": [128]})],
            "BuildProfile export compiles no sequence of 1280",
        ),
    ],
)  # fmt: skip
def test_a_profile_that_cannot_start_says_why(profiles: list[ProfileView], said: str) -> None:
    world = World()
    build_with(world, *profiles)
    assert world.reason() == "InvalidSpec"
    assert said in world.condition("ModelDeployment", "hello", "Stalled")["message"]
    assert world.of("BuildArtifact") == []


def test_an_engines_cache_is_put_where_it_looks_for_it() -> None:
    world = World()
    build_with(world, recipe(interface="Warmup", weightsInArtifact=False))
    world.build()
    world.settle()
    pod = world.of("Deployment")[0]["spec"]["template"]["spec"]
    (engine,) = pod["containers"]
    assert "--cache-from=/rma/artifact/cache" in engine["command"]
    assert "--model=/rma/model" in engine["command"]
    assert {"name": "MODEL_DIR", "value": "/rma/model"} in engine["env"]


SIZES = {"sequence": [2048, 4096, 8192], "batch": [8, 32]}


def sized(world: World, name: str, length: int, batch: int = 8) -> tuple[str, ShapeBucket]:
    """Deploys the model for these sizes, has built what is asked for, and tells what the deployment has then."""
    world.deploy(name, requirements={"maxSequenceLength": length, "maxBatchSize": batch})
    world.settle()
    world.resolve_model()
    world.settle()
    world.build()
    world.settle()
    return has(world, name)


def has(world: World, name: str) -> tuple[str, ShapeBucket]:
    artifact = world.objects["ModelDeployment", name]["status"]["artifact"]
    return artifact, ShapeBucket.model_validate(world.objects["BuildArtifact", artifact]["spec"]["shape"])


def shop() -> World:
    world = World()
    world.facts = FACTS | {"maxSequenceLength": 8192}
    world.profiles = [recipe(shapes=SIZES)]
    return world


@pytest.mark.parametrize(
    ("there", "needed", "served"),
    [
        # the one of just these sizes
        ([(4096, 8)], (3000, 8), (4096, 8)),
        # one that covers them
        ([(4096, 8)], (2000, 4), (4096, 8)),
        ([(8192, 32)], (2000, 4), (8192, 32)),
        # of several, the one with the fewest tokens, and not what does not cover
        ([(8192, 32), (4096, 8)], (2000, 4), (4096, 8)),
        ([(2048, 32), (8192, 8)], (2000, 8), (2048, 32)),
        ([(2048, 32)], (4000, 8), (4096, 8)),
        ([(8192, 8)], (2000, 32), (2048, 32)),
    ],
)
def test_what_is_in_the_store_and_covers_what_is_needed_is_not_built_again(
    there: list[tuple[int, int]], needed: tuple[int, int], served: tuple[int, int]
) -> None:
    world = shop()
    # Deployed together, each asks for its own.
    for number, (length, batch) in enumerate(sorted(there)):
        sized(world, f"before-{number}", length, batch)
    jobs = len([kind for kind, _ in world.made if kind == "Job"])
    _, shape = sized(world, "hello", *needed)
    assert (shape.max_sequence_length, shape.max_batch_size) == served
    built = len([kind for kind, _ in world.made if kind == "Job"]) - jobs
    assert built == (0 if served in there else 1)


def test_who_has_a_larger_one_stays_with_it_when_the_exact_one_comes() -> None:
    world = shop()
    large, _ = sized(world, "large", 8192)
    assert sized(world, "small", 2000)[0] == large
    # Somebody whose compiled result must be of just this size had it built before the larger one was there.
    other = shop()
    name, _ = sized(other, "small", 2000)
    exact = other.objects["BuildArtifact", name]
    world.objects["BuildArtifact", name] = exact
    world.settle()
    assert has(world, "small")[0] == large
    # A newcomer takes the one that fits best.
    assert sized(world, "third", 2000)[0] == name


def test_one_that_no_node_loads_any_more_covers_nothing() -> None:
    world = shop()
    large, _ = sized(world, "large", 8192)
    since = {"reason": "NoMatchingNode", "message": "m", "lastTransitionTime": to_timestamp(world.now)}
    world.deploy("small", requirements={"maxSequenceLength": 2000, "maxBatchSize": 8})
    for _ in range(5):
        conditions = world.objects["BuildArtifact", large]["status"]["conditions"]
        conditions[:] = [each for each in conditions if each["type"] != "Stale"]
        conditions.append({"type": "Stale", "status": "True", **since})
        world.step()
    assert has(world, "small")[0] != large


def test_a_deployment_that_asks_for_less_keeps_what_it_has_and_for_more_gets_another() -> None:
    world = shop()
    first, _ = sized(world, "hello", 4096)
    assert sized(world, "hello", 1000)[0] == first
    second, shape = sized(world, "hello", 5000)
    assert (second != first, shape.max_sequence_length) == (True, 8192)


@pytest.mark.parametrize("what", ["tensor_parallel", "pipeline_parallel", "prefill_chunk", "lora"])
def test_covering_is_about_sizes_alone(what: str) -> None:
    wanted, large = ShapeBucket(max_sequence_length=8, max_batch_size=1), {"max_sequence_length": 16}
    other = Lora(max_rank=8, max_adapters=2) if what == "lora" else 2
    assert covers(wanted.model_copy(update=large), wanted)
    assert covers(wanted, wanted)
    assert not covers(wanted, wanted.model_copy(update=large))
    assert not covers(wanted.model_copy(update={**large, what: other}), wanted)
    # Where no length is compiled in, any will do; what has one is no such thing.
    assert not covers(wanted, ShapeBucket(max_batch_size=1))
