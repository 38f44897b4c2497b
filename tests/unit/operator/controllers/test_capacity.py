"""Devices are promised once, counted by the pods that take them, and free again when nothing comes of a promise."""

import pytest
from fleet_cluster import Cluster


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.accelerator("npu", healthy=2)
    for name in ("a", "b", "c"):
        made.deploy(name)
    return made


def test_a_promise_counts_before_its_status_is_written(cluster: Cluster) -> None:
    assert [cluster.decide(name).chosen for name in ("a", "b", "c")] == ["npu", "npu", None]
    assert cluster.free("npu") == 0
    assert cluster.view("npu", "a").free == 1


def test_a_promise_survives_status_pods_and_a_restart_and_is_never_counted_twice(cluster: Cluster) -> None:
    for step in (
        lambda: cluster.decide("a"),
        lambda: cluster.write("a", "npu"),
        lambda: cluster.place("a"),
        cluster.restart,
        lambda: cluster.pod("a-1", "npu", "a", node=""),
        lambda: cluster.pod("a-1", "npu", "a", node="n"),
        cluster.restart,
        lambda: cluster.place("a", Ready="True"),
        # its pod goes, and before another comes the device is still its own
        lambda: cluster.end("a-1"),
        lambda: cluster.pod("a-2", "npu", "a"),
    ):
        step()
        assert cluster.free("npu") == 1


def test_pods_that_end_hold_their_device_until_they_are_gone_and_do_not_push_their_own_away(cluster: Cluster) -> None:
    cluster.place("a", Ready="True")
    cluster.pod("a-1", "npu", "a")
    cluster.pod("other", "npu")
    leaving = cluster.pod("a-1", "npu", "a")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert (cluster.free("npu"), cluster.view("npu", "a").free) == (0, 1)
    assert cluster.place("b") is None
    # gone, and its successor waits for a node
    cluster.end("a-1")
    cluster.pod("a-2", "npu", "a", node="")
    assert cluster.decide("a").chosen == "npu"
    assert cluster.place("b") is None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_holds_nothing(cluster: Cluster, phase: str) -> None:
    cluster.pod("other", "npu", devices=2)
    assert cluster.free("npu") == 0
    cluster.pod("other", "npu", devices=2, phase=phase)
    assert cluster.free("npu") == 2


@pytest.mark.parametrize("spec", [{"replicas": 0}, {"suspend": True}])
def test_whoever_runs_nothing_holds_nothing_and_asks_again_when_it_does(cluster: Cluster, spec: dict[str, int]) -> None:
    cluster.deploy("a", replicas=2)
    cluster.place("a")
    assert cluster.free("npu") == 0
    cluster.deploy("a", **spec)
    assert cluster.free("npu") == 2
    assert [cluster.place(name) for name in ("a", "b", "c")] == ["npu"] * 3
    # it wants two again, others have them: it goes nowhere, and is not promised what is not there
    cluster.deploy("a", replicas=2)
    assert cluster.view("npu", "a").taken
    assert cluster.place("a") is None
    assert cluster.free("npu") == 0


def test_a_growing_deployment_gets_what_is_free_and_not_what_is_promised(cluster: Cluster) -> None:
    cluster.place("a")
    cluster.place("b")
    cluster.deploy("a", replicas=5)
    assert cluster.place("a") == "npu"
    assert cluster.free("npu") == 0
    cluster.remove("b")
    assert cluster.place("a") == "npu"
    assert (cluster.free("npu"), cluster.place("c")) == (0, None)


@pytest.mark.parametrize(
    ("conditions", "seconds"),
    [({"Stalled": "True"}, 300), ({"ArtifactReady": "False"}, 1800), ({"Ready": "False"}, 1800)],
)
def test_a_promise_of_which_nothing_comes_ends(cluster: Cluster, conditions: dict[str, str], seconds: int) -> None:
    cluster.place("a", **conditions)
    cluster.decide("a")
    assert cluster.later == pytest.approx(seconds)
    cluster.wait(seconds - 1)
    assert cluster.free("npu") == 1
    cluster.wait(1)
    assert cluster.free("npu") == 2
    # it stays where it is, without a claim, for as long as there is a device for it
    assert cluster.place("a", **conditions) == "npu"
    assert [cluster.place("b"), cluster.place("c")] == ["npu", "npu"]
    assert cluster.place("a", **conditions) is None
    # neither a restart nor time revives it
    cluster.restart()
    assert cluster.free("npu") == 0


def test_a_build_may_take_its_time(cluster: Cluster) -> None:
    cluster.put("BuildArtifact", "art", {"timeoutSeconds": 7200}, {}, namespace="ns")
    cluster.decide("a")
    obj = cluster.deployment("a")
    cluster.put("ModelDeployment", "a", obj["spec"], {"artifact": "art"}, namespace="ns")
    cluster.write("a", "npu", ArtifactReady="False")
    cluster.wait(7200 + 1799)
    assert cluster.free("npu") == 1
    cluster.wait(1)
    assert cluster.free("npu") == 2


def test_a_decision_that_was_never_written_ends_and_what_was_written_holds_meanwhile(cluster: Cluster) -> None:
    cluster.place("a", Ready="True")
    cluster.accelerator("better", healthy=1, bandwidth=4000)
    cluster.decide("a")
    cluster.wait(300)
    assert cluster.decide("a").chosen == "better"
    assert (cluster.free("npu"), cluster.free("better")) == (1, 0)
    cluster.wait(300)
    assert (cluster.free("npu"), cluster.free("better")) == (1, 1)


def test_progress_renews_a_promise_only_as_far_as_there_are_devices(cluster: Cluster) -> None:
    cluster.place("a", Stalled="True")
    cluster.wait(300)
    assert [cluster.place("b"), cluster.place("c")] == ["npu", "npu"]
    cluster.write("a", "npu", Stalled="False")
    assert cluster.free("npu") == 0
    cluster.remove("b")
    assert cluster.free("npu") == 1
    assert cluster.place("a", Stalled="False") == "npu"
    assert cluster.free("npu") == 0


def test_whoever_lost_its_devices_to_others_goes_elsewhere(cluster: Cluster) -> None:
    cluster.accelerator("slow", healthy=1, bandwidth=10)
    cluster.place("a")
    # the promise binds deployments; pods of somebody else do not know of it
    cluster.pod("x", "npu", devices=1)
    assert cluster.decide("a").chosen == "npu"
    cluster.pod("y", "npu", devices=1)
    assert cluster.decide("a").chosen == "slow"


def test_a_device_that_is_sick_for_a_moment_moves_nobody(cluster: Cluster) -> None:
    cluster.accelerator("slow", healthy=1, bandwidth=10)
    cluster.place("a")
    cluster.pod("x", "npu", devices=1)
    cluster.accelerator("npu", healthy=1, total=2)
    assert cluster.decide("a").chosen == "npu"
    cluster.accelerator("npu", healthy=0, total=2, ready=False)
    assert cluster.decide("a").chosen == "npu"


def test_kinds_that_share_a_resource_are_told_apart_by_their_nodes() -> None:
    cluster = Cluster()
    for kind in ("big", "small"):
        cluster.accelerator(kind, healthy=2, resourceName="red.com/npu", nodeSelector={"kind": kind})
        cluster.put("Node", f"{kind}-1", labels={"kind": kind})
    cluster.pod("x", "npu", node="big-1")
    assert (cluster.free("big"), cluster.free("small")) == (1, 2)
    # one that has no node yet may come to either
    cluster.pod("y", "npu", node="")
    assert (cluster.free("big"), cluster.free("small")) == (0, 1)
    cluster.pod("y", "npu", node="small-1")
    assert (cluster.free("big"), cluster.free("small")) == (1, 1)
    cluster.put("Node", "big-1", labels={"kind": "small"})
    assert (cluster.free("big"), cluster.free("small")) == (2, 0)
    # ours say which kind they are on
    cluster.deploy("a", accelerators={"names": ["big"]})
    cluster.place("a")
    assert (cluster.free("big"), cluster.free("small")) == (1, 0)


@pytest.mark.parametrize(("limit", "placed"), [({"maxDevices": 2}, 2), ({"maxDevices": 1}, 1), ({}, 3)])
def test_elastic_kinds_are_promised_up_to_what_they_may_grow_to(limit: dict[str, int], placed: int) -> None:
    cluster = Cluster()
    cluster.accelerator("npu", healthy=0, ready=False, provisioning={"mode": "Elastic", **limit})
    for name in ("a", "b", "c"):
        cluster.deploy(name)
    assert [cluster.place(name) for name in ("a", "b", "c")] == ["npu"] * placed + [None] * (3 - placed)
    cluster.pod("a-1", "npu", "a", node="")
    assert cluster.place("a") == "npu"
