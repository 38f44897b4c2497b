"""A suspended deployment frees its devices and starts nothing; the rest stays, and resuming goes on from there."""

import copy
from datetime import timedelta
from typing import Any

import pytest
from chain import World
from rolling import finished, image, roll, served

Object = dict[str, Any]
STATED = {"ModelResolved", "Placed", "ArtifactReady", "Available", "Routed"}


def conditions(world: World) -> dict[str, tuple[str, str]]:
    status = world.of("ModelDeployment")[0]["status"]
    return {entry["type"]: (entry["status"], entry["reason"]) for entry in status["conditions"]}


def test_pods_end_and_the_rest_stays() -> None:
    world = served(replicas=2)
    before = copy.deepcopy(world.of("ModelDeployment")[0]["status"])
    world.made.clear()
    world.deploy(replicas=2, suspend=True)
    roll(world)
    assert world.of("Pod") == []
    assert world.made == []
    assert {obj["kind"] for obj in world.objects.values()} == {
        "ModelDeployment", "Service", "ConfigMap", "BuildArtifact", "ControllerRevision", "Deployment",
    }  # fmt: skip
    status = world.of("ModelDeployment")[0]["status"]
    for kept in ("model", "placement", "artifact", "url", "selector"):
        assert status[kept] == before[kept], kept
    assert (status["replicas"], status["readyReplicas"]) == (0, 0)
    said = conditions(world)
    assert said.keys() == {"Ready", *STATED}, "neither Reconciling nor Stalled"
    assert said["Ready"] == said["Available"] == ("False", "Suspended")
    assert {said[kept][0] for kept in STATED - {"Available"}} == {"True"}
    assert world.of("ModelDeployment")[0]["spec"]["replicas"] == 2
    assert world.of("BuildArtifact")[0]["status"]["referrerCount"] == 1

    world.requeues.clear()
    world.now += timedelta(hours=20)
    assert not world.step()
    assert world.requeues == []

    world.deploy(replicas=2)
    roll(world)
    finished(world)
    assert world.made[0][0] == "Pod", "nothing is resolved, built or rendered anew"
    assert {kind for kind, _ in world.made} == {"Pod"}


def test_in_the_middle_of_a_cut_over_both_variants_end_and_the_new_one_comes_back() -> None:
    world = served(replicas=2)
    image(world, "2")
    world.settle()
    world.run_pods()
    world.step()
    assert len(world.of("Deployment")) == 2
    world.deploy(replicas=2, suspend=True)
    roll(world)
    assert world.of("Pod") == []
    world.deploy(replicas=2)
    roll(world)
    finished(world)


@pytest.mark.parametrize("stage", ["nothing", "resolving", "resolved", "building"])
def test_before_it_serves_no_job_begins(stage: str) -> None:
    world = World()
    world.deploy(suspend=stage == "nothing")
    if stage != "nothing":
        world.settle()
    if stage in ("resolved", "building"):
        world.resolve_model()
    if stage == "building":
        world.settle()
    world.deploy(suspend=True)
    world.made.clear()
    for _ in range(4):
        world.settle()
        world.resolve_model()
        world.build()
        world.run_pods()
    world.settle()
    assert [kind for kind, _ in world.made if kind in ("Job", "BuildArtifact")] == []
    said = conditions(world)
    assert said["Ready"][1] == "Suspended"
    assert {"Reconciling", "Stalled"}.isdisjoint(said)
    world.deploy()
    for _ in range(5):
        world.settle()
        world.resolve_model()
        world.build()
        world.run_pods()
    world.settle()
    finished(world)
    assert len({name for kind, name in world.made if kind == "Job"}) <= 2, "what was running was not run again"


def test_an_artifact_that_only_the_suspended_want_is_not_begun_again() -> None:
    world = World()
    world.deploy("hello")
    world.deploy("other")
    world.settle()
    world.resolve_model()
    world.settle()
    (job,) = world.jobs("build")
    world.finish(job, 75, report={"reason": "Retrying", "message": "the node went away", "retryable": True})
    for name in ("hello", "other"):
        world.deploy(name, suspend=True)
    world.settle()
    world.now += timedelta(minutes=10)
    world.settle()
    assert world.jobs("build") == []
    (artifact,) = world.of("BuildArtifact")
    name = artifact["metadata"]["name"]
    assert world.condition("BuildArtifact", name, "Built")["reason"] == "Suspended"
    assert not world.condition("BuildArtifact", name, "Reconciling")
    assert artifact["status"]["attempts"] == 1
    world.deploy("other")
    world.settle()
    assert len(world.jobs("build")) == 1, "one that is not suspended is enough"
    world.build()
    world.settle()
    assert world.reason("other") == "Starting"
    assert world.reason("hello") == "Suspended"


def test_a_service_of_somebody_else_is_still_told() -> None:
    world = World()
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello", "namespace": "ns"}, "spec": {}}
    world.add(theirs)
    world.deploy(suspend=True)
    world.settle()
    said = conditions(world)
    assert said["Ready"] == ("False", "Suspended")
    assert said["Routed"] == ("False", "NameTaken")
    assert "Stalled" not in said


def test_facts_of_another_version_do_not_stand_in_the_way() -> None:
    world = served()
    del world.of("ModelDeployment")[0]["status"]["model"]["layers"]
    world.deploy(suspend=True)
    roll(world)
    assert conditions(world)["Ready"] == ("False", "Suspended")


def test_another_model_while_suspended_is_not_taken_for_the_old_one() -> None:
    world = served()
    world.deploy(model={"source": "oci://registry/model:2"}, suspend=True)
    roll(world)
    assert "model" not in world.of("ModelDeployment")[0]["status"]
    assert conditions(world)["Ready"] == ("False", "Suspended")
