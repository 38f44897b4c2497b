"""What people see of a change of variant: who serves meanwhile, what is said, when it counts as failed."""

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from chain import NPU, World
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_api import names
from rm_operator.plan import serving
from rolling import finished, image, message, roll, served

Object = dict[str, Any]


@pytest.mark.parametrize(
    ("rollout", "least", "most"),
    [
        ({}, 3, 4),
        ({"maxSurge": 2}, 3, 5),
        ({"maxUnavailable": 1}, 2, 4),
        ({"strategy": "InPlace", "maxUnavailable": 1}, 2, 3),
        ({"strategy": "InPlace", "maxUnavailable": 2}, 1, 3),
    ],
)
def test_between_two_variants_no_fewer_serve_and_no_more_run_than_promised(
    rollout: Object, least: int, most: int
) -> None:
    world = served(replicas=3, rollout=rollout)
    image(world, "2")
    seen = roll(world)
    assert min(serving_ for serving_, _ in seen) == least
    # A pod that ends holds its device for one more move.
    ending = max(1, rollout.get("maxUnavailable", 0), rollout.get("maxSurge", 1))
    assert most <= max(holding for _, holding in seen) <= most + ending
    finished(world)


@pytest.mark.parametrize(
    "rollout",
    [
        {}, {"maxUnavailable": 2}, {"strategy": "InPlace", "maxUnavailable": 1},
        {"strategy": "InPlace", "maxUnavailable": 2},
    ],
)  # fmt: skip
def test_as_long_as_the_promised_pods_serve_it_is_available_and_ready_only_at_the_end(rollout: Object) -> None:
    world = served(replicas=3, rollout=rollout)
    old = {pod["metadata"]["name"] for pod in world.of("Pod")}
    image(world, "2")
    moved, steps = True, 0
    while moved:
        moved = world.step()
        available = world.condition("ModelDeployment", "hello", "Available")
        assert (available["status"], available["reason"]) == ("True", "Serving")
        taken_over = len(world.routed() - old) >= 3
        assert (world.reason() == "Ready") == taken_over
        steps += world.reason() == "RollingOut"
        moved = world.run_pods() or moved
    assert steps > 1
    finished(world)


def test_without_enough_old_pods_it_is_not_available() -> None:
    world = served(replicas=2)
    image(world, "2")
    roll(world, devices=2)
    assert world.condition("ModelDeployment", "hello", "Available")["status"] == "True"
    for entry in world.objects["Pod", min(world.routed())]["status"]["conditions"]:
        entry["status"] = "False"
    world.step()
    assert world.condition("ModelDeployment", "hello", "Available")["status"] == "False"
    assert world.reason() == world.reason(condition="Available")


@pytest.mark.parametrize("replicas", [0, 2])
def test_while_nothing_can_take_over_it_is_available_if_old_pods_serve(replicas: int) -> None:
    world = served(replicas=replicas)
    world.profiles = []
    world.settle()
    assert world.condition("ModelDeployment", "hello", "Placed")["status"] == "False"
    available = world.condition("ModelDeployment", "hello", "Available")
    assert available["status"] == ("True" if replicas else "Unknown")
    assert world.condition("ModelDeployment", "hello", "Ready")["status"] == "False"
    for pod in world.of("Pod"):
        for entry in pod["status"]["conditions"]:
            entry["status"] = "False"
    world.settle()
    available = world.condition("ModelDeployment", "hello", "Available")
    assert (available["status"], available["reason"]) == ("Unknown", "WaitingForArtifact")


def test_a_pod_leaves_the_service_before_it_ends() -> None:
    world = served(replicas=2)
    old = world.routed()
    image(world, "2")
    world.settle()
    world.run_pods()
    world.slices = old
    world.settle()
    (leaving,) = old - world.routed()
    pod = world.objects["Pod", leaving]
    assert pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"] == "-1"
    world.run_pods()
    assert old <= {name for kind, name in world.objects if kind == "Pod"}, "requests may still be on their way to it"
    world.slices = None
    world.settle()
    world.run_pods()
    assert "deletionTimestamp" in world.objects["Pod", leaving]["metadata"], "of the two, the one that left ends"
    roll(world)
    finished(world)


def test_without_a_spare_device_it_says_so_and_in_place_goes_on() -> None:
    world = served(replicas=2)
    image(world, "2")
    roll(world, devices=2)
    assert world.reason() == "NoSpareDevice"
    assert world.condition("ModelDeployment", "hello", "Reconciling")["reason"] == "NoSpareDevice"
    for part in (
        "0 of 2 pods ready",
        "acme.com/npu",
        "rollout.strategy InPlace",
        "2 pods of the previous variant keep",
    ):
        assert part in message(world)
    assert len(world.routed()) == 2
    world.deploy(replicas=2, rollout={"strategy": "InPlace", "maxUnavailable": 1})
    seen = roll(world, devices=2)
    assert min(serving_ for serving_, _ in seen) == 1
    finished(world)


@pytest.mark.parametrize("cut_over", [False, True])
def test_a_device_that_the_kubelet_refuses_is_none(cut_over: bool) -> None:
    """Such a pod has ended, and its ReplicaSet makes another one at once."""
    world = served() if cut_over else World()
    if cut_over:
        image(world, "2")
    else:
        world.deploy()
        world.settle()
        world.resolve_model()
        world.settle()
        world.build()
    world.settle()
    world.run_pods(ready=lambda pod: False if not cut_over else pod["metadata"]["name"] in world.routed())
    new = max(world.of("Pod"), key=lambda pod: str(pod["metadata"]["name"])[-4:])
    refused = copy.deepcopy(new)
    refused["metadata"] |= {"name": "refused", "uid": "uid-refused"}
    refused["status"] = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy device"}
    world.objects["Pod", "refused"] = refused
    world.settle()
    assert world.reason() == ("NoSpareDevice" if cut_over else "NoDevice")
    assert "no healthy device" in message(world)
    status = world.of("ModelDeployment")[0]["status"]
    assert status["replicas"] == (2 if cut_over else 1), "what has ended is no replica"


def test_a_device_that_becomes_free_is_enough() -> None:
    world = served(replicas=2)
    image(world, "2")
    roll(world, devices=2)
    assert world.reason() == "NoSpareDevice"
    roll(world, devices=3)
    finished(world)


def test_in_place_is_no_help_where_the_old_pods_hold_other_devices() -> None:
    world = served()
    other = NPU.model_copy(update={"resource_name": "acme.com/npu-2"})
    world.accelerators = [replace(world.accelerators[0], spec=other)]
    world.settle()
    world.run_pods(devices=1)
    for pod in world.of("Pod"):
        for entry in pod["status"]["conditions"]:
            entry["message"] = str(entry.get("message")).replace("acme.com/npu", "acme.com/npu-2")
    world.settle()
    assert world.reason() == "NoSpareDevice"
    assert "acme.com/npu-2 is free" in message(world)
    assert "InPlace" not in message(world)


def test_a_device_that_is_about_to_be_free_is_waited_for() -> None:
    world = served(replicas=2)
    image(world, "2")
    world.settle()
    for number in range(20):
        world.run_pods(devices=3)
        for pod in world.of("Pod"):
            if "deletionTimestamp" in pod["metadata"]:
                pod["metadata"]["deletionTimestamp"] = "later"
        world.settle()
        assert world.reason() in ("RollingOut", "Ready"), number
    finished(world)


@pytest.mark.parametrize("change", ["replicas", "rollback", "third", "zero"])
@pytest.mark.parametrize("rounds", range(9))
def test_a_change_of_mind_in_the_middle(change: str, rounds: int) -> None:
    world = served(replicas=3)
    first = {pod["metadata"]["name"] for pod in world.of("Pod")}
    image(world, "2")
    for _ in range(rounds):
        world.step()
        world.run_pods()
    there = {pod["metadata"]["name"] for pod in world.of("Pod")} & first
    floor = 3
    if change == "replicas":
        world.deploy(replicas=5)
    elif change == "rollback":
        image(world, "1")
    elif change == "third":
        image(world, "3")
    else:
        world.deploy(replicas=0)
        floor = 0
    seen = roll(world)
    assert min(serving_ for serving_, _ in seen) >= floor
    finished(world)
    if change == "rollback" and rounds < 3:
        assert there <= {pod["metadata"]["name"] for pod in world.of("Pod")}, "who runs already is not started anew"


def test_a_pod_that_was_on_its_way_out_is_taken_back() -> None:
    world = served(replicas=2)
    before = {pod["metadata"]["name"] for pod in world.of("Pod")}
    image(world, "2")
    world.settle()
    world.run_pods()
    world.slices = frozenset(before)
    world.settle()
    assert len(before & world.routed()) == 1
    image(world, "1")
    world.settle()
    assert before <= world.routed()
    world.slices = None
    roll(world)
    assert {pod["metadata"]["name"] for pod in world.of("Pod")} == before
    assert all(serving.serves(pod) for pod in world.of("Pod"))


def test_of_the_old_pods_one_that_does_not_serve_goes_and_no_other_in_its_place() -> None:
    world = served(replicas=2)
    first, second = sorted(world.routed())
    image(world, "2")
    world.settle()
    world.run_pods(ready=lambda pod: pod["metadata"]["name"] != second)
    world.slices = frozenset({first, second})
    world.settle()
    assert second not in world.routed()
    # It recovers while the EndpointSlices still name it.
    world.run_pods()
    world.settle()
    assert first in world.routed()
    assert not serving.is_active(world.objects["Pod", second])
    world.slices = None
    roll(world)
    finished(world)


def test_in_place_a_device_that_others_took_is_no_spare_one() -> None:
    world = served(replicas=2, rollout={"strategy": "InPlace", "maxUnavailable": 1})
    image(world, "2")
    for _ in range(6):
        world.step()
        world.run_pods(devices=1)
    world.step()
    assert world.reason() == "NoDevice"
    assert "1 pods of the previous variant keep serving" in message(world)


def test_who_takes_a_pod_out_by_hand_finds_it_back() -> None:
    world = served(replicas=2)
    world.of("Pod")[0]["metadata"]["labels"][names.LABEL_ACTIVE] = "false"
    roll(world)
    assert len(world.routed()) == 2
    finished(world)


def test_a_new_variant_that_crashes_takes_nothing_over() -> None:
    world = served(replicas=3)
    old = world.routed()
    image(world, "2")
    for _ in range(10):
        world.step()
        world.run_pods(ready=lambda pod: pod["metadata"]["name"] in old)
    assert world.routed() == old
    assert world.reason() == "RollingOut"
    assert "3 pods of the previous variant keep serving" in message(world)


def _crashing(world: World) -> None:
    """The new variant's pods never become ready."""
    old = world.routed()
    image(world, "2")
    for _ in range(3):
        world.step()
        world.run_pods(ready=lambda pod: pod["metadata"]["name"] in old)


def test_a_rollout_without_progress_times_out_and_the_old_pods_serve_on() -> None:
    world = served(replicas=2, rollout={"deadlineSeconds": 600})
    old = world.routed()
    began = world.now
    _crashing(world)
    assert world.requeues[-1] == 600
    world.now += timedelta(seconds=599)
    world.settle()
    assert world.reason() == "RollingOut"
    assert world.requeues[-1] == 1
    world.now += timedelta(seconds=1)
    world.requeues.clear()
    world.settle()
    assert world.reason() == world.reason(condition="Stalled") == "RolloutTimedOut"
    assert not world.condition("ModelDeployment", "hello", "Reconciling")
    until = (began + timedelta(seconds=600)).strftime("%H:%M:%S")
    assert f"no further pod became ready within 600 seconds, until 2026-01-01T{until}Z" in message(world)
    assert "2 pods of the previous variant keep serving" in message(world)
    assert world.routed() == old
    assert ("Warning", "RolloutTimedOut") in world.events
    assert world.requeues == []
    world.now += timedelta(hours=20)
    assert not world.step(), "nothing is written of one that waits for a person"


def test_a_pod_that_becomes_ready_heals_it() -> None:
    world = served(replicas=2, rollout={"deadlineSeconds": 600})
    _crashing(world)
    world.now += timedelta(seconds=601)
    world.settle()
    assert world.reason() == "RolloutTimedOut"
    world.run_pods()
    world.step()
    assert world.reason() == "RollingOut"
    assert not world.condition("ModelDeployment", "hello", "Stalled")
    roll(world)
    finished(world)


@pytest.mark.parametrize(
    "change",
    [
        {"rollout": {"deadlineSeconds": 700}},
        {"rollout": {"deadlineSeconds": 600, "maxSurge": 2}},
        {"rollout": {"deadlineSeconds": 600}, "policy": {"type": "Energy"}},
    ],
)
def test_another_spec_is_another_try(change: Object) -> None:
    world = served(replicas=2, rollout={"deadlineSeconds": 600})
    _crashing(world)
    world.now += timedelta(seconds=601)
    world.settle()
    world.deploy(replicas=2, **change)
    world.requeues.clear()
    world.settle()
    assert world.reason() == "RollingOut"
    assert not world.condition("ModelDeployment", "hello", "Stalled")
    limit = change["rollout"]["deadlineSeconds"]
    assert world.requeues[-1] == limit
    world.now += timedelta(seconds=limit)
    world.settle()
    assert world.reason() == "RolloutTimedOut"


def test_another_variant_is_another_try() -> None:
    world = served(replicas=2, rollout={"deadlineSeconds": 600})
    _crashing(world)
    world.now += timedelta(seconds=601)
    world.settle()
    assert world.reason() == "RolloutTimedOut"
    image(world, "3")
    world.settle()
    world.settle()
    assert world.reason() == "RollingOut"
    roll(world)
    finished(world)


def test_each_pod_that_becomes_ready_is_progress_as_long_as_it_stays_so() -> None:
    world = served(replicas=3, rollout={"deadlineSeconds": 600})
    good = set(world.routed())

    def run(*, only: bool) -> None:
        world.run_pods(ready=lambda pod: not only or pod["metadata"]["name"] in good)
        world.step()

    image(world, "2")
    for _ in range(2):
        for _ in range(4):
            run(only=True)
        world.now += timedelta(seconds=500)
        run(only=True)
        assert world.reason() == "RollingOut", "five hundred seconds since the last one"
        run(only=False)
        good |= world.routed()
    for _ in range(4):
        run(only=True)
    world.now += timedelta(seconds=599)
    run(only=True)
    assert world.reason() == "RollingOut"
    # One of those that were counted on crashes: what it had contributed is gone.
    (latest,) = {name for name in good if name.endswith(max(each[-4:] for each in good))}
    good.remove(latest)
    run(only=True)
    assert world.reason() == "RolloutTimedOut"


def test_a_first_start_and_a_scale_up_have_the_same_deadline() -> None:
    world = World()
    world.deploy(rollout={"deadlineSeconds": 60})
    world.settle()
    world.resolve_model()
    world.settle()
    world.now += timedelta(hours=2)
    world.build()
    world.settle()
    world.run_pods(ready=lambda pod: False)
    world.settle()
    assert world.reason() == "Starting", "the build's time is not the rollout's"
    world.now += timedelta(seconds=60)
    world.settle()
    assert world.reason() == "RolloutTimedOut"
    world.run_pods()
    world.settle()
    assert world.reason() == "Ready"
    world.now += timedelta(hours=2)
    world.deploy(replicas=2, rollout={"deadlineSeconds": 60})
    world.settle()
    world.run_pods(devices=1)
    world.settle()
    assert world.reason() == "NoDevice", "nothing is rolled out: there is one variant"
    assert world.requeues[-1] == 60


def test_the_deployments_of_kubernetes_wait_as_long_as_we_do() -> None:
    world = served(rollout={"deadlineSeconds": 600})
    assert world.of("Deployment")[0]["spec"]["progressDeadlineSeconds"] == 600
    world.deploy(rollout={"deadlineSeconds": 900})
    world.settle()
    (deployment,) = world.of("Deployment")
    assert deployment["spec"]["progressDeadlineSeconds"] == 900


def test_replicas_are_a_plain_scale() -> None:
    world = served(replicas=2)
    names_before = {pod["metadata"]["name"] for pod in world.of("Pod")}
    world.deploy(replicas=4)
    roll(world)
    assert names_before <= {pod["metadata"]["name"] for pod in world.of("Pod")}
    world.deploy(replicas=0)
    roll(world)
    assert world.of("Pod") == []
    assert world.reason() == "Ready"
    assert message(world, "Available") == "scaled to zero"
    assert len(world.of("Deployment")) == 1
    world.deploy(replicas=1)
    roll(world)
    finished(world)


def test_while_a_successor_is_built_what_serves_is_scaled() -> None:
    world = served(replicas=2)
    world.deploy(replicas=2, requirements={"maxSequenceLength": 2048})
    step = world.profiles[0].spec.steps[0].model_copy(update={"args": ["--better"]})
    world.profiles = [replace(world.profiles[0], spec=world.profiles[0].spec.model_copy(update={"steps": [step]}))]
    roll(world)
    assert world.reason() == "Building"
    assert len(world.routed()) == 2
    for replicas in (3, 0, 1):
        world.deploy(replicas=replicas)
        roll(world)
        assert world.reason() == "Building"
        assert len(world.routed()) == replicas
    world.build()
    roll(world)
    finished(world)


def test_hands_off_what_serves_while_its_successor_is_built() -> None:
    world = served(replicas=2)
    world.profiles = []
    world.settle()
    assert world.condition("ModelDeployment", "hello", "Placed")["status"] == "False"
    deployment = world.of("Deployment")[0]
    before = copy.deepcopy(deployment["spec"])
    deployment["spec"]["replicas"] = 7
    world.settle()
    assert world.of("Deployment")[0]["spec"] == before


# The whole of it, whatever happens: a crash, a full cluster, other wishes; requests always find a pod.
EVENTS = st.one_of(
    st.tuples(st.just("image"), st.integers(1, 3)),
    st.tuples(st.just("replicas"), st.integers(0, 4)),
    st.tuples(st.just("devices"), st.integers(0, 6)),
    st.tuples(st.just("crash"), st.integers(0, 9)),
    st.tuples(st.just("recover"), st.just(0)),
    st.tuples(st.just("lag"), st.just(0)),
    st.tuples(st.just("follow"), st.just(0)),
    st.tuples(st.just("operator"), st.just(0)),
    st.tuples(st.just("cluster"), st.just(0)),
)


@settings(deadline=None, derandomize=True, max_examples=60, database=None)
@given(st.integers(1, 3), st.booleans(), st.lists(EVENTS, max_size=40))
def test_the_operator_never_takes_a_pod_that_is_needed(
    replicas: int, in_place: bool, story: list[tuple[str, int]]
) -> None:
    rollout = {"strategy": "InPlace", "maxUnavailable": 1} if in_place else {}
    world = served(replicas=replicas, rollout=rollout)
    sick: set[str] = set()
    devices = 6
    for event, number in story:
        if event == "image":
            image(world, str(number))
        elif event == "replicas":
            replicas = number
            world.deploy(replicas=replicas, rollout=rollout)
        elif event == "devices":
            devices = number
        elif event == "crash" and (pods := world.of("Pod")):
            sick.add(pods[number % len(pods)]["metadata"]["name"])
        elif event == "recover":
            sick.clear()
        elif event == "lag":
            world.slices = world.routed()
        elif event == "follow":
            world.slices = None
        elif event == "operator":
            before = len(world.routed())
            world.step()
            floor = replicas - (1 if in_place else 0)
            assert len(world.routed()) >= min(before, floor)
        else:
            world.run_pods(devices=devices, ready=lambda pod: pod["metadata"]["name"] not in sick)
    world.slices = None
    for _ in range(3):
        # What had to be Stalled is given time by whoever changes the spec.
        roll(world)
    finished(world)
