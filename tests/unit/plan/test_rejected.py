"""Pods that kubelets refused: told with node and reason, cleared away in batches, and no last evidence untold."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_api import names
from rm_api.conditions import Reason
from rm_operator.plan.model import to_timestamp
from rm_operator.plan.rejected import BATCH, BATCH_SECONDS, EVIDENCE_SECONDS, NODES, clear, rejection_of
from rm_operator.plan.trouble import trouble
from rolling import message, roll, served

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NO_DEVICES = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices acme.com/npu"


def refused(
    name: str, node: str = "n1", *, age: float = 0, reason: str = "UnexpectedAdmissionError", **changes: Any
) -> Object:
    """A pod of ours that a kubelet refused ``age`` seconds before NOW."""
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": True}
    labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_VARIANT: "v", names.LABEL_DEPLOYMENT: "hello"}
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "labels": labels, "ownerReferences": [owner]}
    began = to_timestamp(NOW - timedelta(seconds=age))
    limits = {"acme.com/npu": "1"}
    spec = {"nodeName": node, "containers": [{"name": "engine", "resources": {"limits": limits}}]}
    status = {
        "phase": "Failed", "reason": reason, "message": f"Pod was rejected: {NO_DEVICES}", "startTime": began,
        **changes,
    }  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata | {"creationTimestamp": began}, "spec": spec,
        "status": status,
    }  # fmt: skip


RAN = [{"name": "engine", "state": {"terminated": {"exitCode": 1}}}]
WAITED = [{"name": "engine", "state": {"waiting": {"reason": "ContainerCreating"}}}]


@pytest.mark.parametrize(
    ("reason", "changes", "expected"),
    [
        ("UnexpectedAdmissionError", {}, Reason.NO_DEVICE),
        ("TopologyAffinityError", {}, Reason.NO_DEVICE),
        ("OutOfacme.com/npu", {}, Reason.NO_DEVICE),
        ("OutOfcpu", {}, Reason.UNSCHEDULABLE),
        ("NodeAffinity", {}, Reason.UNSCHEDULABLE),
        ("UnexpectedAdmissionError", {"containerStatuses": WAITED}, Reason.NO_DEVICE),
        # What is not the kubelet's refusal of a pod.
        ("Evicted", {"containerStatuses": RAN}, None),
        ("UnexpectedAdmissionError", {"phase": "Running"}, None),
        ("Terminated", {}, None),
        ("DeadlineExceeded", {}, None),
        ("", {}, None),
    ],
)
def test_which_pods_were_refused_and_what_for(reason: str, changes: Object, expected: Reason | None) -> None:
    pod = refused("p", reason=reason, **changes)
    found = rejection_of(pod)
    assert (found is not None) == (expected is not None)
    if found is not None:
        assert (found.node, found.reason, found.resource, found.at) == ("n1", reason, "acme.com/npu", NOW)
        assert found.message == NO_DEVICES
        assert trouble([pod], "acme.com/npu").reason is expected


def test_which_node_refuses_again_and_again_is_said() -> None:
    pods = [refused("a"), refused("b", age=5), refused("c", "n2")]
    said = clear(pods, (), NOW, removals=99).said
    assert set(said) == {
        f"the kubelet of node n1 refuses pods again and again: UnexpectedAdmissionError: {NO_DEVICES}",
        f"the kubelet of node n2 refused a pod: UnexpectedAdmissionError: {NO_DEVICES}",
    }
    assert trouble(pods, "acme.com/npu").message in said


def gone(pods: list[Object], *said: str, removals: int = 999) -> set[str]:
    conditions = [{"type": "Available", "message": each} for each in said]
    return {each.name for each in clear(pods, conditions, NOW, removals=removals).delete}


def test_they_go_in_batches_but_for_the_newest_two_of_each_node() -> None:
    few = [refused(f"p{number}", age=number) for number in range(6)]
    assert gone(few) == set()
    assert clear(few, (), NOW, removals=99).after == BATCH_SECONDS.total_seconds() - 5
    old = [refused(f"p{number}", age=number + 57) for number in range(5)]
    assert gone(old) == {"p2", "p3", "p4"}
    many = [refused(f"p{number:02}", f"n{number % 2}", age=2 * number) for number in range(BATCH + 4)]
    assert gone(many) == {f"p{number:02}" for number in range(4, BATCH + 4)}
    assert gone(many[:-1]) == set()
    nodes = [refused(f"p{number}", f"n{number}", age=100 + number) for number in range(NODES + 2)]
    assert gone(nodes) == {f"p{number}" for number in range(NODES, NODES + 2)}, "the newest nodes are told of"
    left = [pod for pod in old if pod["metadata"]["name"] not in gone(old)]
    assert clear(left, (), NOW, removals=0).said == clear(old, (), NOW, removals=0).said


def test_the_last_evidence_goes_when_it_is_old_and_was_told() -> None:
    young, old = EVIDENCE_SECONDS.total_seconds() - 1, EVIDENCE_SECONDS.total_seconds()
    told = clear([refused("p")], (), NOW, removals=0).said[0]
    assert gone([refused("p", age=young)], told) == set()
    assert gone([refused("p", age=old)]) == set()
    assert gone([refused("p", age=old)], "2 of 3 pods ready: the kubelet of node n10 refused a pod") == set()
    assert gone([refused("p", age=old)], f"2 of 3 pods ready: {told}") == {"p"}
    assert clear([refused("p", age=young)], (), NOW, removals=9).after == 1


def test_an_event_tells_of_a_batch_and_the_count_by_reason() -> None:
    pods = [refused(f"p{number:02}", "n1" if number % 4 else "n2", age=100 + number) for number in range(30)]
    pods += [refused("cpu", "n1", age=400, reason="OutOfcpu")]
    found = clear(pods, (), NOW, removals=99)
    (event,) = found.events
    assert (event.type, event.reason) == ("Warning", "PodsRefused")
    assert "27 pods that kubelets had refused were cleared away: node n1 21, last for Unexpected" in event.message
    assert "node n2 6" in event.message
    assert found.cleared == {("acme.com/npu", "UnexpectedAdmissionError"): 26, ("acme.com/npu", "OutOfcpu"): 1}


def test_not_more_than_may_be_and_the_oldest_first() -> None:
    pods = [refused(f"p{number:02}", age=100 + number) for number in range(30)]
    assert gone(pods, removals=3) == {"p27", "p28", "p29"}
    assert clear(pods, (), NOW, removals=3).after == 1
    assert gone(pods, removals=0) == gone(pods, removals=-4) == set()


@pytest.mark.parametrize("part", ["ownerReferences", "labels", "deletionTimestamp", "job"])
def test_none_but_ours(part: str) -> None:
    pods = [refused(f"p{number}", age=900 - number) for number in range(3)]
    for pod in pods:
        metadata = pod["metadata"]
        if part == "deletionTimestamp":
            metadata[part] = "2026-01-01T00:00:00Z"
        elif part == "job":
            metadata["ownerReferences"][0]["kind"] = "Job"
        else:
            del metadata[part]
    found = clear(pods, (), NOW, removals=99)
    assert (found.delete, found.said, found.after) == ((), (), None)


a_pod = st.tuples(st.integers(0, 40), st.integers(1, 6), st.floats(0, 2000), st.booleans())


@settings(deadline=None, derandomize=True, max_examples=100, database=None)
@given(st.lists(a_pod, max_size=60, unique_by=lambda each: each[0]), st.integers(0, 60), st.sets(st.integers(1, 6)))
def test_of_each_node_that_is_told_of_evidence_stays_until_it_was_told(
    drawn: list[tuple[int, int, float, bool]], removals: int, told: set[int]
) -> None:
    pods = [
        refused(f"p{number}", f"n{node}", age=age, phase="Failed" if failed else "Running")
        for number, node, age, failed in drawn
    ]
    conditions = [{"message": f"the kubelet of node n{node} refused a pod: x"} for node in told]
    found = clear(pods, conditions, NOW, removals=removals)
    deleted = {each.name for each in found.delete}
    assert len(deleted) == len(found.delete) == sum(found.cleared.values()) <= removals
    left = [pod for pod in pods if pod["metadata"]["name"] not in deleted]
    assert {pod["metadata"]["name"] for pod in pods if rejection_of(pod) is None} <= {
        pod["metadata"]["name"] for pod in left
    }
    newest = sorted((pod for pod in pods if rejection_of(pod)), key=lambda pod: pod["status"]["startTime"])[-1:]
    for pod in newest:
        assert pod in left or int(pod["spec"]["nodeName"][1:]) in told
    assert all("the kubelet of node" in each for each in found.said)
    # Nothing more is done at once; what is left comes to an end.
    if len(deleted) < removals:
        assert clear(left, conditions, NOW, removals=99).delete == () or found.after is not None


def test_what_was_refused_long_ago_is_told_but_is_no_trouble_of_those_that_start() -> None:
    world = served(replicas=2)
    world.deploy(replicas=3)
    world.settle()
    world.run_pods(ready=lambda pod: pod["metadata"]["name"] in world.routed())
    variant = world.of("Deployment")[0]["metadata"]["labels"][names.LABEL_VARIANT]
    pod = refused("gone")
    pod["metadata"]["labels"][names.LABEL_VARIANT] = variant
    world.objects["Pod", "gone"] = pod
    world.settle()
    assert world.reason() == "NoDevice"
    assert message(world).count("the kubelet of node n1 refused a pod") == 1
    assert world.requeues[-1] <= 60
    world.now += timedelta(seconds=61)
    world.settle()
    assert world.reason() == "Starting"
    assert "the kubelet of node n1 refused a pod" in message(world)
    roll(world)
    assert world.reason() == "Ready"
    assert "the kubelet of node n1 refused a pod" in message(world, "Available")
    assert ("Pod", "gone") in world.objects
    world.now += EVIDENCE_SECONDS
    world.settle()
    assert ("Pod", "gone") not in world.objects
    assert "refused" not in message(world, "Available")
