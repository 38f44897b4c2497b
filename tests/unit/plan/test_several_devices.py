"""A replica of several devices, all the way: artifact, build, pods, and what the status says of it."""

from dataclasses import replace
from typing import Any

import pytest
from chain import NPU, PROFILE, World
from rm_api.kinds import BuildProfileSpec
from rm_api.kinds.accelerator_resource import DevicePlugin
from rm_operator.plan import serving
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rolling import served
from test_replacement import Hospital

Object = dict[str, Any]
LIMITS: Object = {"resources": {"limits": {"acme.com/npu": "4"}}}
LINKED = NPU.model_copy(
    update={
        "capability": NPU.capability.model_copy(update={"max_tensor_parallel": 4}),
        "device_plugin": DevicePlugin(image="acme.example.com/plugin:1"),
    }
)
STEP: Object = {**PROFILE.steps[0].to_wire(), "args": ["--tp=${TP}", "--pp=${PP}", "--devices=${DEVICE_COUNT}"]}


def recipe(**members: Any) -> BuildProfileSpec:
    return BuildProfileSpec.model_validate({**PROFILE.to_wire(), "steps": [STEP], **members})


def world(spec: BuildProfileSpec, *before: ProfileView, **view: Any) -> World:
    made = World()
    usual: Object = {"free": 8, "healthy": 8, "nodes": 1, "largest": 8}
    made.accelerators = [AcceleratorView("npu", LINKED, **(usual | view))]
    made.profiles = [ProfileView("acme", spec), *before]
    return made


def engine(made: World) -> Object:
    (deployment,) = made.of("Deployment")
    container: Object = deployment["spec"]["template"]["spec"]["containers"][0]
    return container


def test_from_the_placement_to_the_pods() -> None:
    made = world(recipe(shapes={"tensorParallel": [2], "pipelineParallel": [2], "prefillChunk": [512]}))
    made.deploy()
    made.settle()
    made.resolve_model()
    made.settle()
    (artifact,) = made.of("BuildArtifact")
    assert artifact["spec"]["shape"] == {"prefillChunk": 512, "tensorParallel": 2, "pipelineParallel": 2}
    (job,) = made.jobs("build")
    step = next(each for each in job["spec"]["template"]["spec"]["initContainers"] if each["name"] == "compile")
    said = {each["name"]: each["value"] for each in step["env"]}
    assert [said[name] for name in ("TP", "PP", "DEVICE_COUNT")] == ["2", "2", "4"]
    for act in (made.build, made.start_pods):
        act()
        made.settle()
    assert made.reason() == "Ready"
    container = engine(made)
    assert container["resources"]["limits"]["acme.com/npu"] == "4"
    assert {"--require-devices=4", "--tensor-parallel=2", "--pipeline-parallel=2", "--prefill-chunk=512"} <= {
        *container["command"]
    }
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert [environment[name] for name in ("TP", "PP", "DEVICE_COUNT")] == ["2", "2", "4"]
    placement = made.objects["ModelDeployment", "hello"]["status"]["placement"]
    assert (placement["tensorParallel"], placement["pipelineParallel"]) == (2, 2)
    assert not made.step(), "and so it stays"


def test_one_device_is_said_nowhere() -> None:
    made = world(recipe(shapes={"tensorParallel": [1, 2]}))
    made.serve()
    (artifact,) = made.of("BuildArtifact")
    assert artifact["spec"]["shape"] == {}
    container = engine(made)
    assert "--require-devices=1" in container["command"]
    assert not [each for each in container["command"] if "parallel" in each or "chunk" in each]
    assert "tensorParallel" not in made.objects["ModelDeployment", "hello"]["status"]["placement"]


@pytest.mark.parametrize(
    ("free", "reason"), [(4, None), (3, "4 devices are needed: no device of npu is free, or too few")]
)
def test_a_step_on_a_device_has_as_many_as_the_result_is_for(free: int, reason: str | None) -> None:
    made = world(recipe(shapes={"tensorParallel": [4]}, steps=[{**STEP, "requiresDevice": True}]))
    said = {"type": "DevicesAdvertised", "status": "True", "reason": "Advertised"}
    devices = {"total": 8, "healthy": 8, "allocated": 8 - free, "mostOnNode": 8}
    status = {"nodes": 1, "devices": devices, "conditions": [said]}
    made.kinds = [{"metadata": {"name": "npu", "uid": "npu"}, "spec": LINKED.to_wire(), "status": status}]
    made.deploy()
    for _ in range(3):
        made.settle()
        made.resolve_model()
    jobs = made.jobs("build")
    assert len(jobs) == (reason is None)
    for job in jobs:
        step = next(each for each in job["spec"]["template"]["spec"]["initContainers"] if each["name"] == "compile")
        assert step["resources"]["limits"]["acme.com/npu"] == "4"
    if reason is not None:
        assert reason in made.condition("ModelDeployment", "hello", "Ready")["message"]


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({}, None),
        ({"tensorParallel": [1, 2]}, None),
        (
            {"tensorParallel": [1, 4]},
            "BuildProfile base does not compile for tensorParallel 2; add it to its spec.shapes.",
        ),
    ],
)
def test_what_it_starts_from_is_for_the_same_devices(shapes: Object, problem: str | None) -> None:
    base = ProfileView("base", recipe(shapes=shapes, target={"type": "NPU", "vendor": "Other"}))
    made = world(recipe(shapes={"tensorParallel": [2]}, **{"from": "base"}), base)
    made.serve()
    if problem is None:
        assert [each["spec"]["shape"] for each in made.of("BuildArtifact")] == [{"tensorParallel": 2}] * 2
        return
    assert made.reason(condition="ArtifactReady") == "InvalidSpec"
    assert problem in made.condition("ModelDeployment", "hello", "ArtifactReady")["message"]


def test_pods_tell_how_many_devices_each_has() -> None:
    made = world(recipe(shapes={"tensorParallel": [4]}))
    made.serve()
    (deployment,) = made.of("Deployment")
    pod = {"spec": deployment["spec"]["template"]["spec"]}
    assert serving.devices_of([pod]) == 4
    assert serving.devices_of([]) == serving.devices_of([{"spec": {"containers": [{"name": "engine"}]}}]) == 1


def test_a_build_says_the_number_format_as_its_tools_do_and_the_engine_as_we_do() -> None:
    made = world(recipe(steps=[{**STEP, "args": ["--dtype=${DTYPE}"]}], dtypeNames=[{"dtype": "fp16", "name": "half"}]))
    made.deploy()
    made.settle()
    made.resolve_model()
    made.settle()
    (artifact,) = made.of("BuildArtifact")
    assert (artifact["spec"]["dtype"], artifact["spec"]["dtypeName"]) == ("fp16", "half")
    (job,) = made.jobs("build")
    step = next(each for each in job["spec"]["template"]["spec"]["initContainers"] if each["name"] == "compile")
    assert {"name": "DTYPE", "value": "half"} in step["env"]
    for act in (made.build, made.start_pods):
        act()
        made.settle()
    assert {"name": "DTYPE", "value": "fp16"} in engine(made)["env"]


@pytest.mark.parametrize(("buckets", "compiled"), [([1024], 1024), ([2048], 2048), ([512, 4096], 2048), ([], None)])
def test_nothing_longer_is_compiled_than_the_model_was_made_for(buckets: list[int], compiled: int | None) -> None:
    before = ProfileView("base", recipe(shapes={"sequence": [8192]}, target={"type": "NPU", "vendor": "Other"}))
    made = world(recipe(shapes={"sequence": buckets}, **{"from": "base"}), before)
    made.serve(requirements={"maxSequenceLength": 1024})
    shapes = {each["spec"]["profile"]: each["spec"]["shape"] for each in made.of("BuildArtifact")}
    assert shapes["acme"].get("maxSequenceLength") == compiled
    assert shapes["base"]["maxSequenceLength"] == 2048


class Ward(Hospital):
    """A world whose pods have four devices each; one of each pod falls ill."""

    short = 0
    """Devices by which what is spare is less than whole pods of it."""

    def _deployment_snapshot(self, obj: Object) -> Any:
        for pod in self.of("Pod"):
            if serving.variant_label(pod):
                pod["spec"]["containers"] = [{"name": "engine", **LIMITS}]
        snapshot = super()._deployment_snapshot(obj)
        views = [replace(view, spare=4 * (view.spare or 0) - self.short) for view in snapshot.accelerators]
        return replace(snapshot, accelerators=views)


@pytest.mark.parametrize(("short", "replaced"), [(0, True), (1, False)])
def test_a_pod_on_a_sick_device_is_replaced_where_there_are_devices_for_a_whole_one(short: int, replaced: bool) -> None:
    made, other = Ward(), served(replicas=2)
    made.__dict__ |= {key: value for key, value in other.__dict__.items() if key not in ("devices", "ill")}
    # Places for three pods: one spare, and the device that is ill is none that can be had.
    made.devices, made.short = 3, short
    before = made.names()
    made.fail(before[0])
    reached = made.run()
    assert min(reached) == 2
    assert (before[0] not in made.names()) is replaced
    asked = {plan.replacing for plan in made.plans} - {None}
    assert asked <= {("npu", 8), ("npu", 12)}
    assert bool(asked) is replaced
    if not replaced:
        assert (
            "no other device of npu is free" in made.condition("ModelDeployment", "hello", "DevicesHealthy")["message"]
        )
