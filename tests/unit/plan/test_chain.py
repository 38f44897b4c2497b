"""The life of a deployment as the planners see it: the whole chain, its failures, and a crash at any write."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from chain import NPU, PROFILE, World
from rm_api import names
from rm_operator.plan import artifact, remembered
from rm_operator.plan.placement import AcceleratorView, ProfileView

Object = dict[str, Any]

READY = {"ModelDeployment", "Service", "ConfigMap", "BuildArtifact", "ControllerRevision", "Deployment", "Pod"}


def test_from_nothing_to_ready() -> None:
    world = World()
    world.deploy()
    world.settle()
    assert world.reason() == "Resolving"
    assert [job["metadata"]["name"] for job in world.of("Job")] == [
        "r-" + world.jobs("resolve")[0]["metadata"]["labels"][names.LABEL_MODEL] + "-1"
    ]

    world.resolve_model()
    world.settle()
    assert world.reason() == "Building"
    placement = world.of("ModelDeployment")[0]["status"]["placement"]
    assert (placement["chosen"], placement["profile"]) == ("npu", "acme")

    world.build()
    world.settle()
    assert world.reason() == "Starting"

    world.start_pods()
    world.settle()
    status = world.of("ModelDeployment")[0]["status"]
    assert world.reason() == "Ready"
    assert status["url"] == "http://hello.ns.svc.cluster.local/v1"
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    assert {entry["type"] for entry in status["conditions"]}.isdisjoint({"Reconciling", "Stalled"})
    assert {obj["kind"] for obj in world.objects.values()} == READY, "no Job is left"


def test_nothing_changes_once_it_is_ready() -> None:
    world = World()
    world.serve()
    before = copy.deepcopy(world.objects)
    world.now += timedelta(hours=1)
    assert not world.step()
    assert world.objects == before


def test_a_second_deployment_reuses_facts_and_artifact() -> None:
    world = World()
    world.serve("hello")
    world.made.clear()
    world.deploy("again")
    world.settle()
    world.start_pods()
    world.settle()
    assert world.reason("again") == "Ready"
    assert [kind for kind, _ in world.made if kind in ("Job", "BuildArtifact", "ConfigMap")] == []
    assert world.of("BuildArtifact")[0]["status"]["referrerCount"] == 2


def test_deployments_that_come_together_share_one_build() -> None:
    world = World()
    for number in range(20):
        world.deploy(f"d-{number:02}")
    world.settle()
    assert len(world.jobs("resolve")) == 1
    world.resolve_model()
    world.settle()
    assert len(world.jobs("build")) == 1
    world.build()
    world.settle()
    world.start_pods()
    world.settle()
    assert {world.reason(f"d-{number:02}") for number in range(20)} == {"Ready"}
    assert [kind for kind, _ in world.made].count("Job") == 2


def _at_stage(stage: str) -> World:
    world = World()
    world.deploy()
    world.settle()
    if stage != "resolve":
        world.resolve_model()
        world.settle()
    if stage in ("start", "ready"):
        world.build()
        world.settle()
    if stage == "ready":
        world.start_pods()
        world.settle()
    return world


@pytest.mark.parametrize(
    ("stage", "left"),
    [("resolve", set()), ("build", set()), ("start", {"BuildArtifact"}), ("ready", {"BuildArtifact"})],
)
def test_deletion_leaves_nothing_but_what_was_built(stage: str, left: set[str]) -> None:
    world = _at_stage(stage)
    world.remove("ModelDeployment", "hello")
    world.settle()
    assert {obj["kind"] for obj in world.objects.values()} == left


@pytest.mark.parametrize("stage", ["resolve", "build", "start"])
def test_a_crash_after_any_write_ends_in_the_same_place(stage: str) -> None:
    """Every plan on the way is cut off after each of its writes, and the rest of the way is walked from there."""
    reference = World()
    reference.serve()
    expected = {key for key in reference.objects if key[0] != "Pod"}
    for cut in range(6):
        world = _at_stage(stage)
        {"resolve": world.resolve_model, "build": world.build, "start": world.start_pods}[stage]()
        for obj in [*world.of("ModelDeployment"), *world.of("BuildArtifact")]:
            world.carry_out(obj, world.plan(obj), writes=cut)
        for _ in range(4):
            world.settle()
            world.resolve_model()
            world.build()
            world.start_pods()
        world.settle()
        assert world.reason() == "Ready", cut
        assert {key for key in world.objects if key[0] != "Pod"} == expected, cut
        assert len([key for key in world.made if key[0] == "Job"]) == 2, cut


def _requested() -> World:
    """An artifact was asked for, and nobody has looked at it yet."""
    world = _at_stage("resolve")
    world.resolve_model()
    world.step()
    (hello,) = world.of("ModelDeployment")
    world.carry_out(hello, world.plan(hello))
    return world


def test_an_attempt_is_in_the_status_before_its_job_exists() -> None:
    world = _requested()
    plan = world.plan(world.of("BuildArtifact")[0])
    assert plan.status_first
    assert plan.status is not None
    assert plan.status["attempts"] == 1
    assert [child["metadata"]["name"][-2:] for child in plan.apply] == ["-1"]


def test_an_unreachable_source_is_tried_again_with_growing_pauses() -> None:
    world = World()
    world.deploy()
    pauses = []
    for number in range(1, 5):
        world.settle()
        (job,) = world.jobs("resolve")
        assert job["metadata"]["name"].endswith(f"-{number}")
        world.finish(
            job, 69, report={"reason": "SourceUnreachable", "message": "registry: no route", "retryable": True}
        )
        world.requeues.clear()
        world.settle()
        assert world.reason() == "SourceUnreachable"
        assert not world.condition("ModelDeployment", "hello", "Stalled")
        pauses.append(round(world.requeues[-1]))
        world.now += timedelta(seconds=world.requeues[-1])
    assert pauses == [15, 25, 45, 85], "the pause counts from the end of the attempt, five seconds from now"
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.reason() == "Building"
    assert len(world.jobs("resolve", running=False)) == 0


def test_a_source_that_is_wrong_stalls_and_a_new_one_heals() -> None:
    world = World()
    world.deploy()
    world.settle()
    world.finish(world.jobs("resolve")[0], 64, report={"reason": "SourceInvalid", "message": "no config.json"})
    world.settle()
    assert world.reason() == "SourceInvalid"
    assert "no config.json" in world.condition("ModelDeployment", "hello", "Stalled")["message"]
    assert ("Warning", "SourceInvalid") in world.events
    world.deploy(model={"source": "oci://registry/model:2"})
    world.settle()
    assert world.reason() == "Resolving"
    world.resolve_model()
    world.settle()
    assert world.reason() == "Building"
    assert len(world.of("ConfigMap")) == 1, "what was known of the first source is gone"


def test_a_report_without_facts_is_no_answer() -> None:
    world = World()
    world.deploy()
    world.settle()
    world.finish(world.jobs("resolve")[0], report={"facts": {"layers": 2}})
    world.settle()
    assert world.reason() == "ResolveFailed"
    assert "architecture" in world.condition("ModelDeployment", "hello", "Ready")["message"]


@pytest.mark.parametrize("data", [{}, {"model.json": "{}"}, {"model.json": "not JSON"}, None])
def test_facts_that_cannot_be_read_are_asked_for_again(data: dict[str, str] | None) -> None:
    world = World()
    world.serve()
    running = world.routed()
    (kept,) = world.of("ConfigMap")
    before = kept["data"]
    kept["data"] = data
    world.settle()
    assert world.reason() == "Resolving"
    assert len(world.jobs("resolve")) == 1
    assert world.routed() == running
    world.resolve_model()
    world.settle()
    assert world.reason() == "Ready"
    assert world.of("ConfigMap")[0]["data"] == before


@pytest.mark.parametrize(
    ("code", "report", "reason", "attempts"),
    [
        (64, {"reason": "UnsupportedModel", "message": "no kernel for FooForCausalLM"}, "UnsupportedModel", 1),
        (70, {"reason": "ToolchainFailed", "message": "internal error 7"}, "ToolchainFailed", 2),
        (75, {"reason": "OutOfMemory", "message": "killed"}, "OutOfMemory", 2),
        (75, {"reason": "Retrying", "message": "a licence server is busy"}, "Retrying", 3),
        (69, {"reason": "SourceUnreachable", "message": "hub is away", "retryable": True}, "SourceUnreachable", 3),
        (70, None, "ReportMissing", 2),
    ],
)
def test_failed_builds(code: int, report: dict[str, Any] | None, reason: str, attempts: int) -> None:
    world = _at_stage("build")
    for _ in range(3):
        for job in world.jobs("build"):
            world.finish(job, code, report=report, message=None if report else "Segmentation fault")
        world.settle()
        world.now += timedelta(minutes=5)
        assert world.reason() in (reason, "Building")
        world.settle()
    artifact_ = world.of("BuildArtifact")[0]
    assert artifact_["status"]["attempts"] >= attempts
    stalled = bool(world.condition("BuildArtifact", artifact_["metadata"]["name"], "Stalled"))
    assert stalled == (reason in ("UnsupportedModel", "ToolchainFailed", "OutOfMemory", "ReportMissing"))
    if stalled:
        assert artifact_["status"]["attempts"] == attempts
        assert world.reason() == reason
        assert world.condition("ModelDeployment", "hello", "Stalled")["reason"] == reason
        assert (report or {"message": "no report"})["message"] in world.condition("ModelDeployment", "hello", "Ready")[
            "message"
        ]


def test_the_compilers_last_lines_are_kept() -> None:
    world = _at_stage("build")
    report = {"reason": "UnsupportedModel", "message": "no", "facts": {"logTail": "loading\nno such kernel"}}
    world.finish(world.jobs("build")[0], 64, report=report)
    world.settle()
    assert world.of("BuildArtifact")[0]["status"]["logTail"] == ["loading", "no such kernel"]


def test_a_failure_is_remembered_without_its_job() -> None:
    world = _at_stage("build")
    world.finish(world.jobs("build")[0], 64, report={"reason": "UnsupportedModel", "message": "no"})
    world.settle()
    world.remove("Job", world.jobs("build", running=False)[0]["metadata"]["name"])
    world.now += timedelta(days=1)
    world.settle()
    assert world.jobs("build") == []
    assert world.reason() == "UnsupportedModel"


def test_words_of_another_version_in_a_status_are_lived_with() -> None:
    world = _at_stage("build")
    world.finish(world.jobs("build")[0], 64, report={"reason": "UnsupportedModel", "message": "no"})
    world.settle()
    (failed,) = world.of("BuildArtifact")
    for entry in failed["status"]["conditions"]:
        entry["reason"] = "SaidByAnotherVersion"
    failed["status"]["ended"]["outcome"] = "SaidByAnotherVersion"
    failed["status"]["conditions"].append({**failed["status"]["conditions"][0], "type": "Foreseen"})
    world.remove("Job", world.jobs("build", running=False)[0]["metadata"]["name"])
    world.settle()
    assert world.jobs("build") == []
    assert world.reason() == "ToolchainFailed"


def test_a_mended_profile_heals_a_failed_build() -> None:
    world = _at_stage("build")
    world.finish(world.jobs("build")[0], 64, report={"reason": "UnsupportedModel", "message": "no"})
    world.settle()
    (failed,) = world.of("BuildArtifact")
    assert world.reason() == "UnsupportedModel"
    step = PROFILE.steps[0].model_copy(update={"args": ["--legacy"]})
    world.profiles = [ProfileView("acme", PROFILE.model_copy(update={"steps": [step]}))]
    world.settle()
    (other,) = world.of("BuildArtifact")
    assert other["metadata"]["name"] != failed["metadata"]["name"], "other steps are another artifact"
    world.build()
    world.settle()
    assert world.reason() == "Starting"


def test_a_longer_time_limit_makes_a_failed_artifact_anew() -> None:
    world = _at_stage("build")
    world.finish(world.jobs("build")[0], 64, report={"reason": "SourceInvalid", "message": "no"})
    world.settle()
    before = world.of("BuildArtifact")[0]["metadata"]
    world.profiles = [ProfileView("acme", PROFILE.model_copy(update={"timeout_seconds": 7200}))]
    world.settle()
    after = world.of("BuildArtifact")[0]
    assert (after["metadata"]["name"], after["spec"]["timeoutSeconds"]) == (before["name"], 7200)
    assert after["metadata"]["uid"] != before["uid"]
    assert len(world.jobs("build")) == 1


def test_a_store_that_is_down_stops_builds_and_says_so() -> None:
    world = _at_stage("resolve")
    world.store_up = False
    world.resolve_model()
    world.settle()
    assert world.reason() == "StoreUnreachable"
    assert "connection refused" in world.condition("ModelDeployment", "hello", "Ready")["message"]
    assert world.jobs("build") == []
    assert world.requeues[-1] <= 10
    world.store_up = True
    world.settle()
    assert len(world.jobs("build")) == 1


def test_what_the_store_has_already_is_adopted() -> None:
    first = World()
    first.serve()
    world = World()
    world.store = dict(first.store)
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.reason() == "Starting"
    assert not any(kind == "Job" and name.startswith("b-") for kind, name in world.made)
    (adopted,) = world.of("BuildArtifact")
    assert world.condition("BuildArtifact", adopted["metadata"]["name"], "Built")["reason"] == "Adopted"


def test_an_artifact_of_another_key_in_the_store_is_not_believed() -> None:
    world = _requested()
    name = world.of("BuildArtifact")[0]["metadata"]["name"]
    world.store[name] = artifact.StoreAnswer(artifact.Presence.FOUND, "sha256:" + "e" * 64, 1, "another key")
    world.settle()
    assert len(world.jobs("build")) == 1


def test_a_job_that_pushed_nothing_has_failed() -> None:
    world = _at_stage("build")
    world.finish(world.jobs("build")[0], report={"reason": "Built", "digest": "sha256:" + "f" * 64})
    world.settle()
    assert world.reason() == "ArtifactMissing"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (65, "ArtifactMismatch"),
        (66, "DeviceMissing"),
        (67, "DriverMismatch"),
        (69, "StoreUnreachable"),
        (1, "EngineFailed"),
    ],
)
def test_why_pods_do_not_become_ready(code: int, reason: str) -> None:
    world = _at_stage("start")
    ended = {"exitCode": code, "message": f'{{"reason":"{reason}","message":"because"}}'}
    state = {
        "name": "engine",
        "image": "x",
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }
    world.start_pods(ready=False, containerStatuses=[state])
    world.settle()
    assert world.reason() == reason
    assert "because" in world.condition("ModelDeployment", "hello", "Ready")["message"]
    assert world.condition("ModelDeployment", "hello", "Ready")["status"] == "False"


def test_no_free_device_is_said() -> None:
    world = _at_stage("start")
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient acme.com/npu."}
    world.start_pods(ready=False)
    for pod in world.of("Pod"):
        pod["status"] = {"phase": "Pending", "conditions": [unscheduled]}
    world.settle()
    assert world.reason() == "NoDevice"


@pytest.mark.parametrize("written", [remembered.data_of, lambda template: {"template": template}])
def test_a_new_template_of_the_operator_restarts_nobody(written: Callable[[Object], Object]) -> None:
    """Nor does one that remembers templates in another way."""
    world = World()
    world.serve()
    (revision,), (serving_,) = world.of("ControllerRevision"), world.of("Deployment")
    template = copy.deepcopy(serving_["spec"]["template"])
    template["metadata"]["labels"]["rendered-by"] = "an earlier version"
    revision["data"] = data = written(template)
    world.settle()
    (serving_,) = world.of("Deployment")
    assert serving_["spec"]["template"] == template
    assert world.of("ControllerRevision")[0]["data"] == data, "it cannot be changed"


def test_a_cut_over_keeps_the_old_pods_until_the_new_ones_serve() -> None:
    world = World()
    world.serve()
    (old,) = world.of("Deployment")
    world.accelerators = [
        AcceleratorView(
            "npu",
            NPU.model_copy(update={"runtime": NPU.runtime.model_copy(update={"image": "acme/serve:2"})}),
            free=4,
            healthy=4,
        )
    ]
    world.settle()
    assert len(world.of("Deployment")) == 2
    assert world.reason() == "RollingOut"
    assert (
        "1 pods of the previous variant keep serving" in world.condition("ModelDeployment", "hello", "Ready")["message"]
    )
    old_pods = [pod["metadata"]["name"] for pod in world.of("Pod")]
    assert set(old_pods) <= world.routed()

    world.start_pods()
    world.step()
    assert ("Deployment", old["metadata"]["name"]) in world.objects, "its pods drain first"
    assert set(old_pods).isdisjoint(world.routed())
    world.settle()
    assert [each["metadata"]["name"] for each in world.of("Deployment")] != [old["metadata"]["name"]]
    assert len(world.of("Deployment")) == len(world.of("ControllerRevision")) == 1
    assert world.reason() == "Ready"


def test_somebody_elses_service_is_not_touched() -> None:
    world = World()
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hello", "namespace": "ns"},
        "spec": {"ports": []},
    }
    world.add(theirs)
    world.serve()
    assert world.reason() == "NameTaken"
    assert world.objects["Service", "hello"]["spec"] == {"ports": []}
    world.remove("Service", "hello")
    world.settle()
    assert world.reason() == "Ready"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"accelerators": {"types": ["GPU"]}}, "NoEligibleAccelerator"),
        ({"buildProfile": "missing"}, "ProfileNotFound"),
        ({"requirements": {"maxSequenceLength": 100000}}, "NoEligibleAccelerator"),
    ],
)
def test_what_cannot_be_placed_says_why_and_heals(change: dict[str, Any], reason: str) -> None:
    world = World()
    world.deploy(**change)
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.reason() == reason
    assert world.of("BuildArtifact") == []
    world.deploy()
    world.settle()
    assert world.reason() == "Building"


def test_a_spec_that_cannot_be_placed_stops_nothing_that_runs() -> None:
    world = World()
    world.serve()
    running = world.routed()
    world.deploy(accelerators={"types": ["GPU"]})
    world.settle()
    assert world.reason() == "NoEligibleAccelerator"
    assert world.routed() == running


def test_scaling_to_zero_is_ready() -> None:
    world = World()
    world.serve(replicas=0)
    assert world.reason() == "Ready"
    assert world.of("ModelDeployment")[0]["status"]["replicas"] == 0


def test_an_accelerator_without_devices_is_said() -> None:
    world = World()
    world.accelerators = [
        replace(world.accelerators[0], ready=False, reason="no node advertises it", free=0, healthy=0)
    ]
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.reason() == "NoEligibleAccelerator"
    assert "no node advertises it" in str(world.of("ModelDeployment")[0]["status"]["placement"])
