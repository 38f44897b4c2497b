"""Code that comes with a model: run only where tenant and owner both say so, and never other code than was resolved."""

from dataclasses import replace
from typing import Any

import chain
import pytest
from chain import NPU, PROFILE, World
from rm_api.kinds import AcceleratorResourceSpec, ModelDeploymentSpec, ModelFacts
from rm_operator.plan.placement import AcceleratorView, PlacementRequest, PlacementResult, ProfileView, place

Object = dict[str, Any]
CODE = "sha256:" + "c" * 64
ASKS, ALLOWS = {"trustRemoteCode": True}, {"allowRemoteCode": True}
BRINGS = {"remoteCode": True, "remoteCodeDigest": CODE}
COMMAND = {"plugin": None, "command": ["acme-server", "--model=${MODEL_DIR}", "--port=${PORT}"]}


def kind(runtime: Object, **spec: Any) -> AcceleratorResourceSpec:
    wire = {**NPU.to_wire(), "runtime": {"image": "acme/serve:1", "plugin": "vllm", **runtime}, **spec}
    return AcceleratorResourceSpec.model_validate(wire)


def placed(facts: Object, asks: Object, runtime: Object, **capability: Any) -> PlacementResult:
    spec = ModelDeploymentSpec.model_validate({"model": {"source": "hf://o/m"}, "runtime": asks})
    known = ModelFacts.model_validate({**chain.FACTS, "source": "hf://o/m", "architecture": "TheirOwn", **facts})
    return place(
        PlacementRequest(
            deployment="hello",
            spec=spec,
            facts=known,
            accelerators=(AcceleratorView("npu", kind(runtime, capability=capability), free=4, healthy=4, nodes=1),),
            profiles=(ProfileView("acme", PROFILE),),
        )
    )


@pytest.mark.parametrize(
    ("facts", "asks", "runtime", "capability", "reason", "sentence"),
    [
        (BRINGS, ASKS, ALLOWS, {}, "Placed", ""),
        (BRINGS, {}, ALLOWS, {}, "RemoteCodeNotAllowed", "set spec.runtime.trustRemoteCode"),
        (BRINGS, ASKS, {}, {}, "RemoteCodeNotAllowed", "administers it can set its spec.runtime.allowRemoteCode"),
        (BRINGS, ASKS, {"allowRemoteCode": False}, {}, "RemoteCodeNotAllowed", "does not allow code"),
        (BRINGS, {"trustRemoteCode": False}, ALLOWS, {}, "RemoteCodeNotAllowed", "set spec.runtime.trustRemoteCode"),
        ({"remoteCode": True}, ASKS, ALLOWS, {}, "RemoteCodeNotAllowed", "cannot be pinned"),
        (BRINGS, ASKS, {**ALLOWS, "plugin": "acme"}, {}, "RemoteCodeNotAllowed", "runtime plugin acme cannot be told"),
        # Of a command nothing is known but what its owner says.
        (BRINGS, {}, COMMAND, {}, "RemoteCodeNotAllowed", "lists the architecture in capability.architectures"),
        (BRINGS, {}, {**COMMAND, **ALLOWS}, {}, "RemoteCodeNotAllowed", "set spec.runtime.trustRemoteCode"),
        (BRINGS, ASKS, COMMAND, {}, "RemoteCodeNotAllowed", "administers it can set its spec.runtime.allowRemoteCode"),
        (BRINGS, ASKS, {**COMMAND, **ALLOWS}, {}, "Placed", ""),
        (BRINGS, {}, COMMAND, {"architectures": ["TheirOwn"]}, "Placed", ""),
        # Served without the code, by an engine that has the architecture itself.
        ({**BRINGS, "architecture": "LlamaForCausalLM"}, {}, {}, {}, "Placed", ""),
        (BRINGS, {}, {}, {"architectures": ["TheirOwn"]}, "Placed", ""),
        # What the owner lists is all that it serves, code or not.
        (BRINGS, ASKS, ALLOWS, {"architectures": ["Other"]}, "UnsupportedModel", "capability.architectures lack"),
        # Without code there is nothing to ask for or to allow.
        ({"architecture": "LlamaForCausalLM"}, ASKS, {}, {}, "Placed", ""),
    ],
)  # fmt: skip
def test_both_have_to_say_so(
    facts: Object, asks: Object, runtime: Object, capability: Object, reason: str, sentence: str
) -> None:
    result = placed(facts, asks, runtime, **capability)
    assert result.reason == reason
    assert sentence in result.candidates[0].reason


def served(monkeypatch: pytest.MonkeyPatch, facts: Object, asks: Object, runtime: Object, **profile: Any) -> World:
    for name, value in facts.items():
        monkeypatch.setitem(chain.FACTS, name, value)
    world = World()
    world.accelerators = [replace(world.accelerators[0], spec=kind(runtime))]
    if profile:
        spec = type(PROFILE).model_validate({**PROFILE.to_wire(), **profile})
        world.profiles = [replace(world.profiles[0], spec=spec)]
    world.serve(runtime=asks)
    return world


def commands(world: World, kind_: str) -> dict[str, list[str]]:
    """Of all containers of the last object of a kind, by the container's name."""
    pod = world.of(kind_)[-1]["spec"]["template"]["spec"]
    return {each["name"]: each["command"] for each in [*pod["initContainers"], *pod["containers"]]}


def of_build(world: World) -> Object:
    (artifact,) = world.of("BuildArtifact")
    spec: Object = artifact["spec"]
    return spec


def test_the_code_is_pinned_in_the_key_fetched_and_the_engine_told(monkeypatch: pytest.MonkeyPatch) -> None:
    world = served(monkeypatch, BRINGS, ASKS, ALLOWS)
    assert of_build(world)["model"]["codeDigest"] == CODE
    assert "--trust-remote-code" in commands(world, "Deployment")["engine-command"]
    other = served(monkeypatch, {"remoteCodeDigest": "sha256:" + "d" * 64}, ASKS, ALLOWS)
    assert of_build(other)["key"] != of_build(world)["key"]
    assert other.of("Deployment")[0]["metadata"]["name"] != world.of("Deployment")[0]["metadata"]["name"]


def test_the_build_fetches_the_code_that_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BRINGS.items():
        monkeypatch.setitem(chain.FACTS, name, value)
    found = {}
    for asks in ({}, ASKS):
        world = World()
        world.accelerators = [replace(world.accelerators[0], spec=kind(ALLOWS))]
        world.deploy(runtime=asks)
        world.settle()
        world.resolve_model()
        world.settle()
        found[bool(asks)] = world.jobs("build")[0]["spec"]["template"]["spec"]["initContainers"]
    fetch = {asked: next(c["command"] for c in each if c["name"] == "fetch") for asked, each in found.items()}
    assert f"--code-digest={CODE}" in fetch[True]
    assert not [word for word in fetch[False] if word.startswith("--code-digest")]


@pytest.mark.parametrize("asks", [{}, ASKS], ids=["not asked for", "asked for"])
def test_weights_beside_the_artifact_come_with_the_code_only_where_it_is_run(
    monkeypatch: pytest.MonkeyPatch, asks: Object
) -> None:
    world = served(monkeypatch, BRINGS, asks, ALLOWS, weightsInArtifact=False, binds="Structure")
    assert (f"--code-digest={CODE}" in commands(world, "Deployment")["fetch-model"]) is bool(asks)


def test_what_is_not_used_changes_neither_key_nor_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner who allows it, and a tenant who asks for it without need, restart and rebuild nothing."""
    worlds = [served(monkeypatch, {}, asks, runtime) for asks in ({}, ASKS) for runtime in ({}, ALLOWS)]
    worlds.append(served(monkeypatch, BRINGS, {}, ALLOWS))
    assert len({of_build(world)["key"] for world in worlds}) == 1
    assert len({world.of("Deployment")[0]["metadata"]["name"] for world in worlds}) == 1
    assert not [w for w in worlds if "--trust-remote-code" in commands(w, "Deployment")["engine-command"]]
