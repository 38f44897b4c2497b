"""Devices for pods that are to take over from others: what is spare, and who is woken when something is."""

from typing import Any

import pytest
from fleet_cluster import Cluster
from rm_operator.plan.replacement import ANNOTATION_SINCE

SICK = {ANNOTATION_SINCE: "2026-01-01T00:00:00Z"}


def mark(cluster: Cluster, name: str, deployment: str, *, node: str = "n", **metadata: Any) -> None:
    """The device of a pod is not well, and the pod was told."""
    pod = cluster.pod(name, "npu", deployment, node=node)
    further = {"labels": pod["metadata"]["labels"], "annotations": SICK, **metadata}
    cluster.put("Pod", name, pod["spec"], pod["status"], namespace="ns", **further)


def spare(cluster: Cluster) -> int | None:
    return cluster.view("npu", "a").spare


@pytest.fixture
def cluster() -> Cluster:
    """Two deployments with a pod each on four devices."""
    made = Cluster()
    made.accelerator("npu", healthy=4)
    for name in ("a", "b"):
        made.deploy(name)
        made.place(name, Ready="True")
        made.pod(f"{name}-1", "npu", name)
    return made


def test_what_somebody_has_waits_for_or_was_promised_is_not_spare(cluster: Cluster) -> None:
    assert spare(cluster) == 2
    cluster.pod("other", "npu")
    assert spare(cluster) == 1
    cluster.deploy("c")
    cluster.place("c")
    assert spare(cluster) == 0
    cluster.pod("c-1", "npu", "c", node="")
    assert spare(cluster) == 0


def test_a_pod_on_a_sick_device_takes_none_of_the_healthy_ones(cluster: Cluster) -> None:
    # Two of the devices fall ill, the two that are in use.
    cluster.accelerator("npu", healthy=2, total=4)
    assert spare(cluster) == 0
    mark(cluster, "a-1", "a")
    assert spare(cluster) == 1
    mark(cluster, "b-1", "b")
    assert spare(cluster) == 2
    # Who takes over counts as soon as it is asked for, and who left when it is gone.
    cluster.pod("a-2", "npu", "a", node="")
    assert spare(cluster) == 1
    mark(cluster, "a-1", "a", deletionTimestamp="2026-01-01T00:01:00Z")
    assert spare(cluster) == 1
    cluster.end("a-1")
    assert spare(cluster) == 1
    cluster.restart()
    assert spare(cluster) == 1
    # The other one recovers, and with it its device.
    cluster.pod("b-1", "npu", "b")
    cluster.accelerator("npu", healthy=3, total=4)
    assert spare(cluster) == 1


def test_a_device_that_the_kubelet_still_offers_is_none_for_others(cluster: Cluster) -> None:
    """It says so some seconds after the plugin; and it may offer again what has recovered before the pod is told."""
    cluster.accelerator("npu", healthy=2, total=2)
    mark(cluster, "a-1", "a")
    assert spare(cluster) == 0
    cluster.accelerator("npu", healthy=1, total=2)
    assert spare(cluster) == 0
    cluster.accelerator("npu", healthy=2, total=2)
    assert spare(cluster) == 0
    cluster.accelerator("npu", healthy=2, total=3)
    assert spare(cluster) == 1


def test_one_healthy_device_is_enough_for_one_of_two_that_need_it(cluster: Cluster) -> None:
    cluster.accelerator("npu", healthy=1, total=3)
    mark(cluster, "a-1", "a")
    mark(cluster, "b-1", "b")
    assert [cluster.view("npu", name).spare for name in ("a", "b")] == [1, 1]
    cluster.pod("a-2", "npu", "a")
    assert [cluster.view("npu", name).spare for name in ("a", "b")] == [0, 0]


def test_where_devices_are_not_counted_or_come_when_needed_there_is_no_limit(cluster: Cluster) -> None:
    cluster.accelerator("npu", healthy=1, provisioning={"mode": "Elastic"})
    assert spare(cluster) is None
    cluster.accelerator("npu", healthy=1, provisioning={"mode": "Elastic", "maxDevices": 3})
    assert spare(cluster) == 1


def test_who_has_a_pod_on_a_sick_device_is_woken_when_there_is_another(cluster: Cluster) -> None:
    cluster.pod("other", "npu")
    cluster.pod("another", "npu")
    cluster.accelerator("npu", healthy=3, total=4)
    mark(cluster, "a-1", "a")
    cluster.drain()
    cluster.pod("other", "npu", phase="Running")
    cluster.accelerator("npu", healthy=2, total=4)
    assert "a" not in cluster.drain(), "nothing is spare"
    cluster.accelerator("npu", healthy=3, total=4)
    cluster.drain()
    cluster.end("other")
    assert cluster.drain() == ["a"]
    cluster.pod("other", "npu")
    cluster.drain()
    cluster.accelerator("npu", healthy=4, total=5)
    assert cluster.drain() == ["a"]
    # It is well again: what becomes free is no news to it.
    cluster.pod("a-1", "npu", "a")
    cluster.drain()
    cluster.end("other")
    assert cluster.drain() == []


def test_two_do_not_ask_for_the_same_spare_device(cluster: Cluster) -> None:
    cluster.accelerator("npu", healthy=1, total=3)
    mark(cluster, "a-1", "a")
    mark(cluster, "b-1", "b")
    result = cluster.decide("a")
    cluster.fleet.settle(cluster.deployment("a"), result, cluster.now, replacing=("npu", 2))
    assert [cluster.view("npu", name).spare for name in ("a", "b")] == [0, 0]
    cluster.pod("a-2", "npu", "a")
    assert spare(cluster) == 0, "counted once"
    cluster.end("a-1")
    cluster.drain()
    cluster.fleet.settle(cluster.deployment("a"), result, cluster.now)
    assert spare(cluster) == 0
    cluster.end("a-2")
    cluster.remove("a")
    assert cluster.view("npu", "b").spare == 1
    assert "b" in cluster.drain()
