"""Failures of builds: which are tried again, where, and with how much memory; and that each is counted once."""

from datetime import timedelta
from typing import Any

import pytest
from chain import PROFILE, World
from rm_api.kinds import BuildProfileSpec
from rm_operator.plan.placement import ProfileView
from rm_operator.plan.verdict import MOST_FAILURES

Object = dict[str, Any]
CRASH = {"reason": "ToolchainFailed", "message": "compile ended with 139"}
OTHER = {"reason": "ToolchainFailed", "message": "no output"}
NODES = [{"metadata": {"name": name, "labels": {}}} for name in ("n1", "n2")]


def building(*, memory: str | None = None, most: str | None = None, **profile: Any) -> World:
    """A build whose first Job runs."""
    world = World()
    wire = {**PROFILE.to_wire(), **profile, **({"maxMemory": most} if most else {})}
    if memory:
        wire["steps"] = [{**step, "resources": {"memory": memory}} for step in wire["steps"]]
    world.profiles = [ProfileView("acme", BuildProfileSpec.model_validate(wire))]
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    return world


def job_of(world: World) -> Object:
    (job,) = world.jobs("build")
    return job


def status_of(world: World) -> Object:
    (artifact,) = world.of("BuildArtifact")
    return dict(artifact["status"])


def ready(world: World) -> Object:
    return next(each for each in status_of(world)["conditions"] if each["type"] == "Ready")


def stalled(world: World) -> bool:
    return any(each["type"] == "Stalled" for each in status_of(world)["conditions"])


def fail(world: World, code: int, report: Object | None = None, **how: Any) -> None:
    world.finish(job_of(world), code, report=report, **({} if report else {"message": ""}), **how)
    world.settle()


def memory_of(job: Object) -> str:
    containers = {each["name"]: each for each in job["spec"]["template"]["spec"]["initContainers"]}
    return str(containers["compile"]["resources"]["limits"]["memory"])


def terms(job: Object, strength: str) -> list[Object]:
    affinity = job["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    return list(affinity.get(f"{strength}DuringSchedulingIgnoredDuringExecution") or [])


def excluded(job: Object) -> list[str]:
    required = job["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    found = required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return [value for term in found for each in term["matchExpressions"] for value in each["values"]]


def avoided(job: Object) -> list[str]:
    found = [term["preference"]["matchExpressions"][0] for term in terms(job, "preferred")]
    return [value for each in found if each["operator"] == "NotIn" for value in each["values"]]


# Memory.


@pytest.mark.parametrize(
    "killed", [{"killed": "OOMKilled"}, {"report": {"reason": "OutOfMemory"}}], ids=["kubelet", "launcher"]
)
def test_memory_is_doubled_up_to_what_the_profile_allows(killed: Object) -> None:
    world = building(memory="2Gi", most="7Gi")
    given = [memory_of(job_of(world))]
    while not stalled(world):
        fail(world, 137 if "killed" in killed else 75, container="compile", **killed)
        given += [memory_of(job) for job in world.jobs("build")]
    assert given == ["2Gi", "4Gi", "7Gi"]
    assert ready(world)["reason"] == "OutOfMemory"
    assert "7Gi of memory are too little, and maxMemory allows no more" in ready(world)["message"]
    assert status_of(world)["memory"] == "7Gi"


def test_a_build_that_got_more_memory_comes_to_its_end() -> None:
    world = building(memory="2Gi", most="8Gi")
    fail(world, 137, container="compile", killed="OOMKilled")
    world.build()
    world.settle()
    assert ready(world)["status"] == "True"
    assert (status_of(world)["memory"], status_of(world)["failures"]) == ("4Gi", 0)


def test_without_a_limit_on_doubling_there_is_none() -> None:
    world = building(memory="2Gi")
    fail(world, 137, container="compile", killed="OOMKilled")
    assert stalled(world)
    assert "raise resources.memory of the step, or set maxMemory" in ready(world)["message"]


def test_too_little_memory_on_a_node_is_tried_once_elsewhere() -> None:
    """Nobody limited it: it was the node's memory."""
    world = building()
    fail(world, 137, container="compile", killed="OOMKilled", node="n1")
    assert avoided(job_of(world)) == ["n1"]
    fail(world, 137, container="compile", killed="OOMKilled", node="n2")
    assert stalled(world)


def test_more_memory_is_not_for_those_who_fetch() -> None:
    world = building(memory="2Gi", most="8Gi")
    fail(world, 137, container="fetch", killed="OOMKilled")
    assert memory_of(job_of(world)) == "2Gi"


# Nodes.


@pytest.mark.parametrize(("code", "reason"), [(66, "DeviceMissing"), (67, "DriverMismatch")])
def test_a_node_that_is_not_right_is_left_out(code: int, reason: str) -> None:
    world = building()
    world.nodes = NODES
    fail(world, code, {"reason": reason, "message": "driver 1.3, 1.4 is needed"}, node="n1")
    assert excluded(job_of(world)) == ["n1"]
    fail(world, code, {"reason": reason, "message": "driver 1.3, 1.4 is needed"}, node="n2")
    assert world.jobs("build") == []
    assert not stalled(world), "a node may come"
    assert ready(world)["reason"] == "Unschedulable"
    assert "every node is one that could not run it; without n1, n2" in ready(world)["message"]
    world.nodes = [*NODES, {"metadata": {"name": "new", "labels": {"kubernetes.io/hostname": "n3"}}}]
    world.settle()
    assert excluded(job_of(world)) == ["n1", "n2"]


def test_an_unknown_failure_gets_one_more_chance_elsewhere() -> None:
    world = building()
    fail(world, 70, CRASH, container="compile", node="n1")
    assert avoided(job_of(world)) == ["n1"]
    assert excluded(job_of(world)) == []
    fail(world, 70, CRASH, container="compile", node="n2")
    assert stalled(world)
    assert "(attempt 2; the same input would fail again)" in ready(world)["message"]


def test_the_same_failure_is_remembered_whatever_happened_in_between() -> None:
    world = building()
    fail(world, 70, CRASH, container="compile")
    fail(world, 75, {"reason": "Retrying", "message": "terminated"})
    world.now += timedelta(minutes=10)
    world.settle()
    fail(world, 70, CRASH, container="compile")
    assert stalled(world)
    assert status_of(world)["attempts"] == 3


def test_another_failure_is_another_matter() -> None:
    world = building()
    fail(world, 70, CRASH, container="compile", node="n1")
    fail(world, 70, {**OTHER, "reason": "ReportMissing"}, container="compile", node="n2")
    assert avoided(job_of(world)) == ["n1", "n2"]
    assert not stalled(world)


# What passes.


@pytest.mark.parametrize("code", [137, 143])
def test_a_signal_is_somebody_elses_doing(code: int) -> None:
    world = building()
    for _ in range(3):
        fail(world, code, container="compile")
        assert not stalled(world)
        assert status_of(world)["retryAt"]
        world.now += timedelta(minutes=10)
        world.settle()
    assert job_of(world)["metadata"]["name"].endswith("-4")


def test_what_ends_without_a_report_and_by_itself_is_tried_twice() -> None:
    world = building()
    fail(world, 1, container="fetch")
    fail(world, 1, container="fetch")
    assert stalled(world)


def test_what_passes_by_itself_is_not_tried_for_ever() -> None:
    world = building()
    for _ in range(MOST_FAILURES):
        assert not stalled(world)
        fail(world, 75, {"reason": "Retrying", "message": "a licence server is busy"}, container="compile")
        world.now += timedelta(minutes=10)
        world.settle()
    assert stalled(world)
    assert f"it has failed {MOST_FAILURES} times" in ready(world)["message"]


def test_a_source_may_be_away_for_any_time() -> None:
    world = building()
    for _ in range(2 * MOST_FAILURES):
        fail(world, 69, {"reason": "SourceUnreachable", "message": "hub: no route", "retryable": True})
        world.now += timedelta(minutes=10)
        world.settle()
    assert not stalled(world)
    assert status_of(world)["failures"] == 0
    assert status_of(world)["attempts"] == 2 * MOST_FAILURES + 1


def test_a_pause_is_kept_over_a_restart_and_without_its_job() -> None:
    world = building()
    fail(world, 75, {"reason": "Retrying", "message": "terminated"}, container="compile")
    due = status_of(world)["retryAt"]
    world.remove("Job", world.jobs("build", running=False)[0]["metadata"]["name"])
    world.settle()
    assert world.jobs("build") == []
    assert f"the next attempt is due at {due}" in ready(world)["message"]
    world.now += timedelta(minutes=10)
    world.settle()
    assert job_of(world)["metadata"]["name"].endswith("-2"), "the first attempt had failed, whether or not it is there"


def test_a_store_that_is_away_makes_nothing_forgotten() -> None:
    world = building()
    fail(world, 64, {"reason": "UnsupportedModel", "message": "no kernel"})
    world.store_up = False
    world.settle()
    assert stalled(world)
    world.store_up = True
    world.settle()
    assert world.jobs("build") == []
    assert ready(world)["reason"] == "UnsupportedModel"


def test_time_that_went_by_before_anything_ran_is_no_time_out() -> None:
    world = building()
    job = job_of(world)
    world.finish(job)
    del job["status"]
    pod = world.objects["Pod", f"{job['metadata']['name']}-pod"]
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient memory"}
    pod["status"] = {"phase": "Pending", "conditions": [unscheduled]}
    world.settle()
    world.remove("Pod", pod["metadata"]["name"])
    when = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", **when}]}
    world.settle()
    assert not stalled(world)
    assert world.of("BuildArtifact")[0]["status"]["failures"] == 1


# What is told.


def test_the_line_that_tells_most_reaches_the_deployment() -> None:
    world = building()
    tail = "loading\nRuntimeError: no kernel for FooForCausalLM\ncleaning up"
    fail(world, 64, {"reason": "SourceInvalid", "message": "compile ended with 3", "facts": {"logTail": tail}})
    assert "compile ended with 3: RuntimeError: no kernel for FooForCausalLM" in ready(world)["message"]
    message = world.condition("ModelDeployment", "hello", "ArtifactReady")["message"]
    assert "RuntimeError: no kernel for FooForCausalLM" in message
    assert status_of(world)["logTail"] == tail.splitlines()


def test_a_line_that_the_message_has_is_not_said_twice() -> None:
    world = building()
    report = {"reason": "UnsupportedModel", "message": "TypeError: no", "facts": {"logTail": "TypeError: no"}}
    fail(world, 64, report)
    assert ready(world)["message"].count("TypeError") == 1


def test_seconds_of_all_attempts_are_counted_and_each_once() -> None:
    world = building()
    fail(world, 70, CRASH, container="compile")
    assert float(status_of(world)["spentSeconds"]) == 5
    fail(world, 75, {"reason": "Retrying", "message": "terminated"})
    world.settle()
    assert float(status_of(world)["spentSeconds"]) == 10
    world.now += timedelta(minutes=10)
    world.settle()
    world.build()
    world.settle()
    assert float(status_of(world)["spentSeconds"]) == 15
    assert float(status_of(world)["buildSeconds"]) == 5


def test_what_is_at_work_and_since_when() -> None:
    world = building()
    world.expected = 77
    began = status_of(world)["startedAt"]
    assert began
    job = job_of(world)
    world.finish(job)
    del job["status"]
    running = [{"name": "compile", "image": "x", "state": {"running": {}}}]
    pod = world.objects["Pod", f"{job['metadata']['name']}-pod"]
    pod["status"] = {"phase": "Pending", "initContainerStatuses": running}
    world.now += timedelta(minutes=1)
    world.settle()
    assert (status_of(world)["stage"], status_of(world)["startedAt"]) == ("compile", began)
    fail(world, 70, CRASH, container="compile")
    assert status_of(world)["startedAt"] != began
    assert status_of(world)["expectedSeconds"] == 77
    world.build()
    world.settle()
    assert not {"stage", "startedAt", "expectedSeconds", "retryAt"} & status_of(world).keys()
