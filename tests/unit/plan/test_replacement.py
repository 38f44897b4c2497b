"""Pods whose device is not well are replaced: when, by how many at a time, and what is said of it meanwhile."""

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from chain import World
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_api.kinds.accelerator_resource import DeviceFailure
from rm_operator.plan import replacement, serving
from rm_operator.plan.device_report import UnhealthyUse
from rm_operator.plan.model import to_timestamp
from rolling import finished, image, message, roll, served

Object = dict[str, Any]
COST = "controller.kubernetes.io/pod-deletion-cost"
TRANSIENT, DEAD, RESET, UNKNOWN = (
    DeviceFailure.TRANSIENT, DeviceFailure.DEAD, DeviceFailure.NEEDS_RESET, DeviceFailure.UNKNOWN,
)  # fmt: skip


class Hospital(World):
    """A world whose devices fall ill: each pod that has a place has a device of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = 8
        self.ill: dict[str, DeviceFailure] = {}
        """Pods by name."""

    def fail(self, pod: str, failure: DeviceFailure = DEAD) -> None:
        self.ill[pod] = failure

    def _deployment_snapshot(self, obj: Object) -> Any:
        # As the ledger counts: what healthy pods have or wait for, and what was promised.
        pods = [pod for pod in self.of("Pod") if "engine" in str(pod["spec"]) or serving.variant_label(pod)]
        marked = sum(replacement.is_marked(pod) for pod in pods)
        demand = max(len(pods), obj["spec"].get("replicas", 1))
        spare = self.devices - len(self.ill) - (demand - marked)
        self.accelerators = [replace(view, spare=spare) for view in self.accelerators]
        sick = {
            pod["metadata"]["uid"]: UnhealthyUse("npu", "n1", "npu0", "ECC", self.ill[pod["metadata"]["name"]])
            for pod in pods
            if pod["metadata"]["name"] in self.ill
        }
        return replace(super()._deployment_snapshot(obj), sick=sick)

    def run(self, *, ready: Any = lambda pod: True, rounds: int = 40) -> list[int]:
        """Goes on, with time, until nothing changes; how many pods were reached after each move."""
        seen, still = [], 0
        for _ in range(rounds):
            moved = self.step()
            seen.append(len(self.routed()))
            moved = self.run_pods(devices=self.devices, ready=ready) or moved
            seen.append(len(self.routed()))
            still = 0 if moved else still + 1
            if still > 2:
                return seen
            self.now += timedelta(seconds=5 if moved else 20)
        raise AssertionError("it never ends")

    def names(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.of("Pod")]


def hospital(**spec: Any) -> Hospital:
    world, other = Hospital(), served(**spec)
    world.__dict__ |= {key: value for key, value in other.__dict__.items() if key not in ("devices", "ill")}
    return world


def revisions(world: World) -> Object:
    return {each["metadata"]["name"]: copy.deepcopy(each["data"]) for each in world.of("ControllerRevision")}


@pytest.mark.parametrize("spec", [{}, {"rollout": {"strategy": "InPlace", "maxUnavailable": 1}}])
@pytest.mark.parametrize("failure", list(DeviceFailure))
def test_it_is_replaced_without_a_dip_and_nobody_else_is(failure: DeviceFailure, spec: Object) -> None:
    world = hospital(replicas=3, **spec)
    before, templates = world.names(), revisions(world)
    world.fail(before[1], failure)
    seen = world.run()
    assert min(seen) == 3
    finished(world)
    assert set(before) - set(world.names()) == {before[1]}, "just the one"
    assert revisions(world) == templates
    assert not any(replacement.is_marked(pod) for pod in world.of("Pod"))


@pytest.mark.parametrize(("failure", "seconds"), [(TRANSIENT, 30), (UNKNOWN, 30), (RESET, 0), (DEAD, 0)])
def test_one_that_may_recover_is_given_time(failure: DeviceFailure, seconds: int) -> None:
    world = hospital(replicas=1)
    (name,) = world.names()
    world.fail(name, failure)
    world.settle()
    asked = [each["spec"]["replicas"] for each in world.of("Deployment")]
    if seconds:
        assert asked == [1]
        assert world.requeues[-1] == seconds
        assert "it is replaced if that lasts" in message(world, "DevicesHealthy")
        world.now += timedelta(seconds=seconds)
        world.settle()
    assert [each["spec"]["replicas"] for each in world.of("Deployment")] == [2]
    assert "another pod takes over" in message(world, "DevicesHealthy")


def test_one_that_recovers_in_time_is_left_alone() -> None:
    world = hospital(replicas=2)
    before = world.names()
    world.fail(before[0], TRANSIENT)
    world.run_pods()
    world.settle()
    world.now += timedelta(seconds=29)
    world.settle()
    world.ill.clear()
    world.run()
    finished(world)
    assert world.names() == before
    assert world.reason(condition="DevicesHealthy") == "AllHealthy"
    # Falling ill again begins anew.
    world.fail(before[0], TRANSIENT)
    world.settle()
    world.now += timedelta(seconds=29)
    world.settle()
    assert [each["spec"]["replicas"] for each in world.of("Deployment")] == [2]


def test_one_that_recovers_while_its_successor_starts_stays() -> None:
    world = hospital(replicas=2)
    before = world.names()
    world.fail(before[0])
    world.settle()
    world.run_pods(ready=lambda pod: pod["metadata"]["name"] in before)
    world.settle()
    assert len(world.names()) == 3
    world.ill.clear()
    seen = world.run(ready=lambda pod: pod["metadata"]["name"] in before)
    assert min(seen) == 2
    assert world.names() == before, "the successor is not needed any more"
    finished(world)


def test_it_leaves_the_service_before_it_ends_and_no_other_ends_in_its_place() -> None:
    world = hospital(replicas=2)
    ill, other = world.names()
    world.fail(ill)
    world.settle()
    world.run_pods()
    world.slices = frozenset(world.names())
    world.settle()
    pod = world.objects["Pod", ill]
    assert not serving.is_active(pod)
    assert pod["metadata"]["annotations"][COST] == "-1"
    for _ in range(3):
        world.run_pods()
        world.settle()
        assert {ill, other} <= set(world.names()), "requests may still be on their way to it"
    world.slices = None
    seen = world.run()
    assert min(seen) == 2
    finished(world)
    assert other in world.names()


def test_where_no_other_device_is_free_it_serves_on_and_that_is_said() -> None:
    world = hospital(replicas=2)
    world.devices = 2
    before = world.names()
    world.fail(before[0], RESET)
    world.run()
    assert world.names() == before
    assert len(world.routed()) == 2
    assert world.reason() == "Ready", "it serves"
    assert world.reason(condition="DevicesHealthy") == "DeviceUnhealthy"
    said = message(world, "DevicesHealthy")
    for part in (before[0], "npu0 of node n1", "NeedsReset", "ECC", "serves on", "reset the device"):
        assert part in said
    assert ("Warning", "DeviceUnhealthy") in world.events
    # Another device is there: that is enough.
    world.devices = 3
    assert min(world.run()) == 2
    finished(world)
    assert before[0] not in world.names()


@pytest.mark.parametrize("devices", [1, 2])
def test_one_that_does_not_serve_is_ended_only_where_that_helps(devices: int) -> None:
    world = hospital(replicas=1)
    world.devices = devices
    (name,) = world.names()
    world.now += timedelta(minutes=5)
    world.fail(name, TRANSIENT)
    world.run(ready=lambda pod: pod["metadata"]["name"] != name)
    if devices == 2:
        assert name not in world.names()
        finished(world)
        return
    assert world.names() == [name]
    assert world.reason() == "DeviceUnhealthy"
    assert "no other device of npu is free" in message(world)


def test_one_that_was_given_such_a_device_is_not_ended_again_and_again() -> None:
    """The kubelet does not know: it would give the same device to the next pod."""
    world = hospital(replicas=1)
    ended = 0
    for _ in range(30):
        for name in world.names():
            world.fail(name)
        before = set(world.names())
        world.step()
        world.run_pods(ready=lambda pod: False)
        ended += len(before - set(world.names()))
        world.devices = 8 + len(world.ill)
        world.now += timedelta(seconds=2)
    assert ended <= 3, "one in thirty seconds"


def test_several_are_replaced_a_few_at_a_time() -> None:
    world = hospital(replicas=4, rollout={"maxSurge": 2})
    before = world.names()
    for name in before:
        world.fail(name)
    most = 0
    for _ in range(30):
        world.step()
        world.run_pods(devices=20)
        most = max(most, *(each["spec"]["replicas"] for each in world.of("Deployment")))
        assert len(world.routed()) >= 4
        world.now += timedelta(seconds=1)
    finished(world)
    assert most == 6
    assert not set(before) & set(world.names())


def test_no_more_are_replaced_than_devices_are_free() -> None:
    world = hospital(replicas=3, rollout={"maxSurge": 3})
    before = world.names()
    world.devices = 5
    for name in before:
        world.fail(name)
    world.run()
    assert len(set(before) & set(world.names())) == 1, "two were free"
    assert len(world.routed()) == 3
    assert [each["spec"]["replicas"] for each in world.of("Deployment")] == [3]
    assert "serves on" in message(world, "DevicesHealthy")


@pytest.mark.parametrize("replicas", [0, 1, 2, 4])
@pytest.mark.parametrize("moves", range(6))
def test_an_autoscaler_may_scale_at_any_moment(replicas: int, moves: int) -> None:
    world = hospital(replicas=3)
    ill = world.names()[0]
    world.fail(ill)
    for _ in range(moves):
        world.step()
        world.run_pods()
    world.deploy(replicas=replicas)
    seen = world.run()
    assert min(seen) >= min(3, replicas)
    finished(world)
    assert ill not in world.names()


def test_scaled_down_the_sick_one_goes() -> None:
    world = hospital(replicas=3)
    world.devices = 3
    ill = world.names()[1]
    world.fail(ill)
    world.run()
    assert ill in world.names()
    world.deploy(replicas=2)
    world.run()
    assert ill not in world.names()
    finished(world)


def test_of_one_that_is_suspended_nothing_is_replaced() -> None:
    world = hospital(replicas=2)
    world.fail(world.names()[0])
    world.deploy(replicas=2, suspend=True)
    world.run()
    assert world.names() == []
    assert not world.condition("ModelDeployment", "hello", "DevicesHealthy")
    world.ill.clear()
    world.deploy(replicas=2)
    world.run()
    finished(world)


def test_in_a_cut_over_the_sick_ones_of_the_old_variant_go_first() -> None:
    world = hospital(replicas=3)
    before = world.names()
    image(world, "2")
    world.settle()
    world.fail(before[2])
    world.run_pods()
    world.step()
    assert before[2] not in world.routed()
    assert {*before[:2]} <= world.routed()
    world.run()
    finished(world)


def test_in_a_cut_over_one_of_the_new_variant_is_replaced_afterwards_or_at_once_if_it_does_not_serve() -> None:
    world = hospital(replicas=3)
    before = set(world.names())
    image(world, "2")
    world.settle()
    world.run_pods()
    (new,) = set(world.names()) - before
    world.fail(new)
    seen = world.run()
    assert min(seen) == 3
    finished(world)
    assert new not in world.names()

    world = hospital(replicas=2)
    before = set(world.names())
    image(world, "2")
    world.settle()
    world.run_pods(ready=lambda pod: pod["metadata"]["name"] in before)
    (new,) = set(world.names()) - before
    world.now += timedelta(minutes=1)
    world.fail(new)
    world.settle()
    world.run_pods(ready=lambda pod: pod["metadata"]["name"] in before)
    assert "deletionTimestamp" in world.objects["Pod", new]["metadata"] if new in world.names() else True
    world.run()
    finished(world)
    assert new not in world.names()


def test_while_a_successor_is_built_it_is_replaced() -> None:
    world = hospital(replicas=2)
    world.deploy(replicas=2, requirements={"maxSequenceLength": 2048})
    step = world.profiles[0].spec.steps[0].model_copy(update={"args": ["--better"]})
    world.profiles = [replace(world.profiles[0], spec=world.profiles[0].spec.model_copy(update={"steps": [step]}))]
    world.run()
    assert world.reason() == "Building"
    ill = world.names()[0]
    world.fail(ill)
    assert min(world.run()) == 2
    assert world.reason() == "Building"
    assert ill not in world.names()
    assert len(world.names()) == 2


def test_a_mark_that_somebody_overwrote_is_made_anew() -> None:
    for odd in ("", "x", "2026-01-01", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00"):
        world = hospital(replicas=1)
        (name,) = world.names()
        world.fail(name, TRANSIENT)
        world.settle()
        world.objects["Pod", name]["metadata"]["annotations"][replacement.ANNOTATION_SINCE] = odd
        world.settle()
        marked = world.objects["Pod", name]["metadata"]["annotations"][replacement.ANNOTATION_SINCE]
        assert marked == to_timestamp(world.now)


def test_of_many_a_few_are_named() -> None:
    world = hospital(replicas=6)
    world.devices = 6
    for name in world.names():
        world.fail(name)
    world.settle()
    assert message(world, "DevicesHealthy").endswith("; and 3 more")


EVENTS = st.one_of(
    st.tuples(st.just("fails"), st.integers(0, 9)),
    st.tuples(st.just("may recover"), st.integers(0, 9)),
    st.tuples(st.just("recovers"), st.integers(0, 9)),
    st.tuples(st.just("crash"), st.integers(0, 9)),
    st.tuples(st.just("runs again"), st.just(0)),
    st.tuples(st.just("replicas"), st.integers(0, 4)),
    st.tuples(st.just("image"), st.integers(1, 2)),
    st.tuples(st.just("devices"), st.integers(0, 9)),
    st.tuples(st.just("lag"), st.just(0)),
    st.tuples(st.just("follow"), st.just(0)),
    st.tuples(st.just("time"), st.integers(1, 60)),
    st.tuples(st.just("operator"), st.just(0)),
    st.tuples(st.just("operator"), st.just(0)),
    st.tuples(st.just("cluster"), st.just(0)),
    st.tuples(st.just("cluster"), st.just(0)),
)


@settings(deadline=None, derandomize=True, max_examples=100, database=None)
@given(st.integers(1, 3), st.integers(1, 3), st.lists(EVENTS, max_size=30))
def test_whatever_happens_no_pod_is_taken_that_is_needed_and_it_ends_on_healthy_devices(
    replicas: int, surge: int, story: list[tuple[str, int]]
) -> None:
    rollout = {"maxSurge": surge}
    world = hospital(replicas=replicas, rollout=rollout)
    crashed: set[str] = set()

    def ready(pod: Object) -> bool:
        return pod["metadata"]["name"] not in crashed

    for event, number in story:
        pods = world.names()
        some = pods[number % len(pods)] if pods else ""
        if event in ("fails", "may recover") and some:
            world.fail(some, DEAD if event == "fails" else TRANSIENT)
        elif event == "recovers":
            world.ill.pop(some, None)
        elif event == "crash" and some:
            crashed.add(some)
        elif event == "runs again":
            crashed.clear()
        elif event == "replicas":
            replicas = number
            world.deploy(replicas=replicas, rollout=rollout)
        elif event == "image":
            image(world, str(number))
        elif event == "devices":
            world.devices = number + len(world.ill)
        elif event == "lag":
            world.slices = world.routed()
        elif event == "follow":
            world.slices = None
        elif event == "time":
            world.now += timedelta(seconds=number)
        elif event == "operator":
            before = len(world.routed())
            asked = sum(each["spec"]["replicas"] for each in world.of("Deployment"))
            world.step()
            assert len(world.routed()) >= min(before, replicas)
            assert sum(each["spec"]["replicas"] for each in world.of("Deployment")) <= max(asked, replicas + surge)
            once = {(each["kind"], each["metadata"]["name"]) for each in world.plans[-1].apply}
            assert len(once) == len(world.plans[-1].apply), "one intent for each object"
        else:
            world.run_pods(devices=world.devices, ready=ready)
    world.slices = None
    crashed.clear()
    world.devices = 9 + len(world.ill)
    for _ in range(3):
        # What had to be Stalled is given time by whoever changes the spec.
        world.run()
    finished(world)
    assert not set(world.names()) & set(world.ill)
    assert not world.step(), "nothing is left to do"


def test_a_pod_is_not_touched_that_nobody_decided_on() -> None:
    world = hospital(replicas=2)
    before = copy.deepcopy(world.of("Pod"))
    roll(world)
    assert world.of("Pod") == before
