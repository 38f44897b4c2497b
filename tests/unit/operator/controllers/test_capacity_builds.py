"""Builds and deployments are promised devices by one count: no device twice, none kept for what does not come."""

from collections.abc import Callable
from itertools import takewhile

import pytest
from fleet_cluster import Cluster
from rm_api import names
from rm_operator.controllers.capacity import ASSUMED_SECONDS

Act = Callable[[Cluster], object]


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.accelerator("npu", healthy=2)
    for name in ("a", "b", "c"):
        made.deploy(name)
    return made


# What happens to a build, in its order, and how many of two devices others may have after each.
STORY: tuple[tuple[str, Act, int], ...] = (
    ("it is decided on", lambda c: c.claim("x", "npu"), 1),
    ("and once more", lambda c: c.claim("x", "npu"), 1),
    ("its Job is there", lambda c: c.job("x", "npu"), 1),
    ("nothing more is decided", lambda c: c.claim("x", None), 1),
    ("the operator starts anew", lambda c: c.restart(), 1),
    ("its pod waits for a node", lambda c: c.build_pod("x", "npu", node=""), 1),
    ("its pod has a device", lambda c: c.build_pod("x", "npu"), 1),
    ("time goes by", lambda c: c.wait(ASSUMED_SECONDS + 1), 1),
    ("the operator starts anew", lambda c: c.restart(), 1),
    ("the Job is over", lambda c: c.job("x", "npu", over=True), 1),
    ("its pod is gone", lambda c: c.end("x-pod"), 2),
    ("the next attempt is decided on", lambda c: c.claim("x", "npu"), 1),
    ("the Job before it goes", lambda c: c.end_job("x"), 1),
    ("its Job is there", lambda c: c.job("x", "npu"), 1),
    ("no pod ever comes", lambda c: c.wait(ASSUMED_SECONDS + 1), 2),
)


def test_a_build_has_its_device_from_the_decision_to_the_end_of_its_pod(cluster: Cluster) -> None:
    for what, act, free in STORY:
        act(cluster)
        assert cluster.free("npu") == free, what
        # Its own device is not in its way.
        assert cluster.spoken_for("x") == {"npu": 0}, what
        assert cluster.spoken_for("y") == {"npu": 2 - free}, what


@pytest.mark.parametrize("reached", [what for what, _, free in STORY if free == 1])
def test_a_deployment_is_not_promised_what_a_build_goes_for(cluster: Cluster, reached: str) -> None:
    for _, act, _ in (*takewhile(lambda each: each[0] != reached, STORY), next(e for e in STORY if e[0] == reached)):
        act(cluster)
    assert [cluster.decide(name).chosen for name in ("a", "b")] == ["npu", None]


def test_a_build_is_not_given_what_deployments_were_promised(cluster: Cluster) -> None:
    cluster.decide("a")
    assert cluster.spoken_for("x") == {"npu": 1}
    cluster.write("a", "npu")
    cluster.place("b")
    assert cluster.spoken_for("x") == {"npu": 2}
    cluster.pod("b-1", "npu", "b")
    assert cluster.spoken_for("x") == {"npu": 2}
    cluster.remove("a")
    assert cluster.spoken_for("x") == {"npu": 1}


def test_a_build_may_use_what_those_were_promised_who_wait_for_it(cluster: Cluster) -> None:
    cluster.place("a")
    cluster.place("b")
    assert cluster.spoken_for("x", "a") == {"npu": 1}
    assert cluster.spoken_for("x", "a", "b") == {"npu": 0}
    # What a has pods for, it does not lend.
    cluster.pod("a-1", "npu", "a")
    assert cluster.spoken_for("x", "a") == {"npu": 2}


def test_whose_only_device_its_own_build_has_keeps_its_place_and_nobody_else_gets_it(cluster: Cluster) -> None:
    cluster.accelerator("npu", healthy=1)
    cluster.place("a")
    cluster.claim("x", "npu")
    cluster.job("x", "npu")
    cluster.build_pod("x", "npu")
    for _ in range(2):
        assert not cluster.view("npu", "a").taken
        assert cluster.place("a") == "npu"
        assert cluster.place("b") is None
        cluster.restart()
    # The build is over, and the deployment has its device.
    cluster.job("x", "npu", over=True)
    cluster.end("x-pod")
    assert cluster.view("npu", "a").free == 1
    assert cluster.place("b") is None


def test_a_claim_of_which_nothing_comes_ends(cluster: Cluster) -> None:
    cluster.claim("x", "npu", 2)
    cluster.wait(ASSUMED_SECONDS - 1)
    assert cluster.free("npu") == 0
    cluster.wait(2)
    assert cluster.free("npu") == 2
    cluster.claim("x", "npu", 2)
    cluster.claim("x", None)
    assert cluster.free("npu") == 2


def test_builds_that_wait_are_woken_by_a_device_that_is_given_back_and_so_are_deployments(cluster: Cluster) -> None:
    cluster.place("a")
    cluster.claim("x", "npu")
    assert cluster.place("b") is None
    cluster.drain()
    cluster.builds_woken = 0
    cluster.claim("x", None)
    assert cluster.drain() == ["b"]
    assert cluster.builds_woken
    cluster.place("b")
    cluster.builds_woken = 0
    cluster.remove("a")
    assert cluster.builds_woken


def test_a_pod_that_only_says_that_it_is_a_build_counts_like_anybody_elses(cluster: Cluster) -> None:
    pod = cluster.build_pod("x", "npu")
    cluster.put("Pod", "x-pod", pod["spec"], pod["status"], namespace="ns", labels={names.LABEL_ROLE: "build"})
    assert cluster.free("npu") == 1
    assert cluster.spoken_for("x") == {"npu": 1}
