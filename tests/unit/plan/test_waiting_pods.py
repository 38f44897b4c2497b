"""Jobs that do not get on: a Secret or volume that is not there, and models that take long to read."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chain import SETTINGS, World
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds.model_deployment import ModelSource
from rm_operator.plan import resolve
from rm_operator.plan.attempt import START_SECONDS, Attempt, observe
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.model import to_timestamp
from rm_operator.plan.trouble import trouble

Object = dict[str, Any]
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LATER = BEGAN + timedelta(seconds=START_SECONDS)
MODEL = ModelSource(source="pvc://claim/model")
PRIVATE = ModelSource(source="hf://org/model", credentials_secret_ref="token")
WAITS = {"waiting": {"reason": "PodInitializing"}}


class Resolve:
    """One deployment's resolve, attempt after attempt."""

    def __init__(self, model: ModelSource = MODEL) -> None:
        self.model = model
        self.deployment: Object = {"metadata": {"name": "hello", "generation": 1}}
        self.attempts: list[Attempt] = []

    def plan(self, now: datetime) -> resolve.Resolution:
        conditions = Conditions(self.deployment, now)
        outcome = resolve.plan(
            self.model, namespace="ns", sharers=(("hello", "uid"),), config_map=None, attempts=self.attempts,
            conditions=conditions, settings=SETTINGS, now=now,
        )  # fmt: skip
        self.deployment = {**self.deployment, "status": {"conditions": conditions.to_list()}}
        return outcome

    @property
    def said(self) -> Object:
        conditions: list[Object] = self.deployment["status"]["conditions"]
        return next(each for each in conditions if each["type"] == ConditionType.MODEL_RESOLVED)

    def runs(self, job: Object, *statuses: Object, **conditions: str) -> None:
        """The Job's pod is on a node."""
        job = {**job, "metadata": {**job["metadata"], "creationTimestamp": to_timestamp(BEGAN)}}
        self.attempts = [observe(job, [pod(*statuses, **conditions)])]

    def times_out(self, job: Object, at: datetime) -> None:
        """The Job controller ends it, and its pod."""
        ended = {
            "type": "Failed",
            "status": "True",
            "reason": "DeadlineExceeded",
            "lastTransitionTime": to_timestamp(at),
        }
        self.attempts = [observe({**job, "status": {"conditions": [ended]}}, [])]


def pod(*statuses: Object, **conditions: str) -> Object:
    known = {"PodScheduled": "True", **conditions}
    return {
        "metadata": {"name": "pod"},
        "spec": {"nodeName": "node-1"},
        "status": {
            "conditions": [
                {"type": name, "status": status, "lastTransitionTime": to_timestamp(BEGAN)}
                for name, status in known.items()
            ],
            "containerStatuses": list(statuses),
        },
    }


@pytest.mark.parametrize(
    ("model", "named"),
    [(PRIVATE, "the Secret token with the key netrc"), (MODEL, "the claim claim")],
    ids=["Secret", "volume"],
)
def test_what_a_pod_waits_for_on_its_node_is_named_after_a_while(model: ModelSource, named: str) -> None:
    world = Resolve(model)
    (job,) = world.plan(BEGAN).apply
    world.runs(job, {"name": "resolve", "image": "i", "state": WAITS}, PodReadyToStartContainers="False")
    outcome = world.plan(BEGAN + timedelta(seconds=1))
    assert world.said["reason"] == Reason.RESOLVING
    assert outcome.requeue_after == START_SECONDS - 1, "it is looked at again when that is too long"
    world.plan(LATER)
    assert world.said["reason"] == Reason.STARTING
    assert f"it needs {named}" in world.said["message"]
    assert "on node-1" in world.said["message"]
    assert (
        f"kubectl describe pod -n ns -l batch.kubernetes.io/job-name={job['metadata']['name']}" in world.said["message"]
    )
    before = world.said
    world.plan(LATER + timedelta(hours=1))
    assert world.said == before, "it says nothing that changes by itself"


@pytest.mark.parametrize(
    ("status", "conditions"),
    [
        (WAITS, {"PodReadyToStartContainers": "True"}),
        ({"running": {"startedAt": to_timestamp(BEGAN)}}, {}),
        (WAITS, {"PodScheduled": "False"}),
    ],
    ids=["image is pulled", "runs", "no node"],
)
def test_nothing_is_missing_where_a_pod_gets_on_or_waits_for_something_else(
    status: Object, conditions: dict[str, str]
) -> None:
    world = Resolve()
    (job,) = world.plan(BEGAN).apply
    world.runs(job, {"name": "resolve", "image": "i", "state": status}, **conditions)
    assert world.plan(LATER + timedelta(hours=1)).requeue_after is None
    assert world.said["reason"] != Reason.STARTING


@pytest.mark.parametrize("why", ["CreateContainerConfigError", "CreateContainerError"])
def test_what_a_container_refers_to_and_is_not_there_is_said(why: str) -> None:
    status = {"name": "resolve", "image": "i", "state": {"waiting": {"reason": why, "message": 'secret "x" not found'}}}
    world = Resolve()
    (job,) = world.plan(BEGAN).apply
    world.runs(job, status)
    world.plan(BEGAN)
    assert world.said["message"] == 'resolve cannot be started: secret "x" not found'
    serving = trouble([pod(status)], None)
    assert (serving.reason, 'secret "x" not found' in serving.message) == (Reason.ENGINE_FAILED, True)


def deadlines(world: Resolve, number: int) -> list[int]:
    """Deadlines of the attempts, each of which exceeds its own."""
    now, found = BEGAN, []
    (job,) = world.plan(now).apply
    for _ in range(number):
        seconds = job["spec"]["activeDeadlineSeconds"]
        found.append(seconds)
        now += timedelta(seconds=seconds)
        world.times_out(job, now)
        outcome = world.plan(now)
        assert outcome.requeue_after is not None
        now += timedelta(seconds=outcome.requeue_after)
        (job,) = world.plan(now).apply
    return found


def test_a_model_that_takes_longer_to_read_gets_more_time() -> None:
    assert deadlines(Resolve(), 6) == [900, 3600, 14400, 57600, 86400, 86400]


def test_time_that_went_by_before_anything_was_read_asks_for_no_more() -> None:
    world = Resolve()
    (job,) = world.plan(BEGAN).apply
    world.runs(job, {"name": "resolve", "image": "i", "state": WAITS})
    world.plan(LATER)
    world.times_out(job, LATER)
    for _ in range(3):
        outcome = world.plan(LATER)
        assert not outcome.stalled
    assert world.said["reason"] == Reason.STARTING
    assert world.said["message"].count("; attempt 1 failed") == 1
    assert outcome.requeue_after is not None
    (again,) = world.plan(LATER + timedelta(seconds=outcome.requeue_after)).apply
    assert again["spec"]["activeDeadlineSeconds"] == resolve.DEADLINE_SECONDS


def test_it_stalls_only_where_no_more_time_is_given() -> None:
    world = Resolve()
    (job,) = world.plan(BEGAN).apply
    world.times_out(job, LATER)
    assert not world.plan(LATER).stalled
    world.times_out({**job, "spec": {**job["spec"], "activeDeadlineSeconds": resolve.MOST_DEADLINE_SECONDS}}, LATER)
    assert world.plan(LATER).stalled
    assert world.said["reason"] == Reason.BUILD_TIMED_OUT


def test_a_build_whose_pod_never_began_says_why_and_is_tried_again() -> None:
    world = World()
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    (job,) = world.jobs("build")
    name = world.of("BuildArtifact")[0]["metadata"]["name"]
    waiting = pod({"name": "fetch", "image": "i", "state": WAITS})
    label = {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    world.objects["Pod", "waits"] = {
        **waiting, "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "waits", "namespace": "ns", "uid": "waits", "labels": label, "ownerReferences": []},
    }  # fmt: skip
    world.now = LATER
    world.settle()
    said = world.condition("BuildArtifact", name, "Built")
    assert (said["reason"], "has not begun" in said["message"]) == ("Starting", True)
    assert world.reason(condition="ArtifactReady") == "Starting", "the deployment says so, too"
    del world.objects["Pod", "waits"]
    ended = {
        "type": "Failed",
        "status": "True",
        "reason": "DeadlineExceeded",
        "lastTransitionTime": to_timestamp(LATER),
    }
    world.objects["Job", job["metadata"]["name"]]["status"] = {"conditions": [ended]}
    world.settle()
    status = world.of("BuildArtifact")[0]["status"]
    assert status["ended"]["final"] is False
    assert "has not begun" in status["ended"]["message"]
