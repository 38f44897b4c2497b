"""How a serving pod's engine is started: by its own server, by ours, or as the accelerator says."""

from dataclasses import replace
from typing import Any

import pytest
from chain import NPU, World
from rm_api.kinds import AcceleratorResourceSpec

Object = dict[str, Any]


def template(runtime: Object, /, *, weights: bool = True, further: Object | None = None, **deployment: Any) -> Object:
    """The pod of a deployment on an accelerator with this runtime."""
    world = World()
    wire = {**NPU.to_wire(), "runtime": {"image": "acme/serve:1", **runtime}, **(further or {})}
    world.accelerators = [replace(world.accelerators[0], spec=AcceleratorResourceSpec.model_validate(wire))]
    if not weights:
        spec = world.profiles[0].spec
        changed = type(spec).model_validate({**spec.to_wire(), "weightsInArtifact": False, "binds": "Structure"})
        world.profiles = [replace(world.profiles[0], spec=changed)]
    world.serve(**deployment)
    (made,) = world.of("Deployment")
    spec_: Object = made["spec"]["template"]["spec"]
    return spec_


def engine(pod: Object) -> list[str]:
    (container,) = pod["containers"]
    return list(container["command"])


def before(pod: Object) -> list[str]:
    return [container["name"] for container in pod["initContainers"]]


def test_a_plugin_without_a_server_of_its_own_is_behind_ours() -> None:
    pod = template({"plugin": "acme", "args": ["--fast"]})
    command = engine(pod)
    assert command[command.index("--") + 1 :] == [
        "rm-abstract", "serve", "--plugin=acme", "--artifact=/rma/artifact", "--served-name=hello", "--port=8000",
        "--fast",
    ]  # fmt: skip
    assert before(pod) == ["launcher", "fetch"]


@pytest.mark.parametrize("plugin", ["vllm", "vllm-cpu", "rebellions", "furiosa-llm", "tensorrt-llm", "TensorRT_LLM"])
def test_the_command_of_an_engines_own_server_is_worked_out_where_our_code_is(plugin: str) -> None:
    pod = template({"plugin": plugin, "args": ["--seed", "$1"]})
    assert before(pod) == ["launcher", "fetch", "engine-command"]
    worked_out = pod["initContainers"][2]
    assert worked_out["image"] == "runtime:1"
    assert worked_out["command"] == [
        "rm-abstract", "engine-command", f"--plugin={plugin}", "--artifact=/rma/artifact", "--served-name=hello",
        "--port=8000", "--dtype=fp16", "--output=/rma/bin/engine.json",
    ]  # fmt: skip
    command = engine(pod)
    assert not any("rm-abstract" in word for word in command), "the vendor's image has nothing of ours"
    assert command[command.index("--command-file=/rma/bin/engine.json") + 1 :] == ["--", "--seed", "$$1"]
    # What the engine is started with, it cannot change.
    mounts = {mount["name"]: mount.get("readOnly", False) for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["bin"]
    assert {m["name"]: m.get("readOnly", False) for m in worked_out["volumeMounts"]} == {
        "bin": False, "tmp": False, "artifact": True,
    }  # fmt: skip


def test_an_engines_own_server_without_further_arguments() -> None:
    assert engine(template({"plugin": "vllm"}))[-1] == "--command-file=/rma/bin/engine.json"


def test_the_model_beside_the_artifact_is_there_before_the_command_is_worked_out() -> None:
    pod = template({"plugin": "furiosa-llm"}, weights=False)
    assert before(pod) == ["launcher", "fetch", "fetch-model", "engine-command"]
    worked_out = pod["initContainers"][3]
    assert "--model=/rma/model" in worked_out["command"]
    assert {"name": "model", "mountPath": "/rma/model", "readOnly": True} in worked_out["volumeMounts"]


@pytest.mark.parametrize(("said", "flag"), [(True, "--prefix-caching"), (False, "--no-prefix-caching")])
def test_a_tenants_options_reach_the_plugin(said: bool, flag: str) -> None:
    pod = template({"plugin": "vllm"}, runtime={"prefixCaching": said})
    assert flag in pod["initContainers"][2]["command"]


def test_a_command_takes_the_place_of_a_plugin() -> None:
    command = ["acme-serve", "--model=${ARTIFACT_DIR}", "--name=${SERVED_NAME}", "--port=${PORT}", "--cost=$5"]
    pod = template({"command": command, "args": ["--devices=${DEVICE_INDEXES}"]})
    assert before(pod) == ["launcher", "fetch"]
    started = engine(pod)
    assert started[started.index("--") + 1 :] == [
        "acme-serve", "--model=$${ARTIFACT_DIR}", "--name=$${SERVED_NAME}", "--port=$${PORT}", "--cost=$$5",
        "--devices=$${DEVICE_INDEXES}",
    ]  # fmt: skip


@pytest.mark.parametrize(("device_plugin", "required"), [(None, 0), ({"image": "acme/plugin:1"}, 1)])
def test_devices_are_checked_where_a_plugin_of_ours_says_which_they_are(device_plugin: Object, required: int) -> None:
    """A vendor's own plugin, which is adopted, sets none of the variables that the check goes by."""
    pod = template({"plugin": "acme"}, further={"devicePlugin": device_plugin} if device_plugin else {})
    assert f"--require-devices={required}" in engine(pod)
    assert pod["containers"][0]["resources"]["limits"] == {"acme.com/npu": "1"}
