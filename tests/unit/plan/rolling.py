"""Moves of a deployment that serves, for tests of what changes under it."""

from dataclasses import replace
from typing import Any

from chain import NPU, World
from rm_api import names
from rm_operator.plan import serving

Object = dict[str, Any]


def image(world: World, tag: str) -> None:
    """Asks for other pods without another artifact: the accelerator's engine is another one."""
    runtime = NPU.runtime.model_copy(update={"image": f"acme/serve:{tag}"})
    world.accelerators = [replace(world.accelerators[0], spec=NPU.model_copy(update={"runtime": runtime}))]


def engine_of(pod: Object) -> str:
    return str(pod["metadata"]["labels"][names.LABEL_VARIANT])


def served(**spec: Any) -> World:
    """A deployment that is Ready."""
    world = World()
    world.deploy(**spec)
    for _ in range(12):
        world.settle()
        world.resolve_model()
        world.build()
        world.run_pods()
    assert world.reason() == "Ready"
    return world


def message(world: World, condition: str = "Ready") -> str:
    return str(world.condition("ModelDeployment", "hello", condition)["message"])


def roll(world: World, *, rounds: int = 60, devices: int = 1000) -> list[tuple[int, int]]:
    """Goes on until nothing changes; the pods that serve and those that hold a device after each round."""
    seen = []
    for _ in range(rounds):
        moved = world.step()
        moved = world.run_pods(devices=devices) or moved
        holding = sum("nodeName" in pod["spec"] for pod in world.of("Pod"))
        seen.append((len(world.routed()), holding))
        if not moved:
            return seen
    raise AssertionError("it never ends")


def finished(world: World) -> None:
    """One variant, all of its pods, nothing else."""
    assert world.reason() == "Ready"
    (deployment,) = world.of("Deployment")
    (revision,) = world.of("ControllerRevision")
    assert deployment["metadata"]["name"] == revision["metadata"]["name"]
    variant = deployment["metadata"]["labels"][names.LABEL_VARIANT]
    pods = world.of("Pod")
    assert {engine_of(pod) for pod in pods} <= {variant}
    assert len(pods) == deployment["spec"]["replicas"] == world.of("ModelDeployment")[0]["spec"].get("replicas", 1)
    assert all(serving.serves(pod) for pod in pods)
