"""Replicas of several devices: counted by device, promised as wholes, and woken when one node has enough."""

from typing import Any

import pytest
from fleet_cluster import FACTS, Cluster, Object

NODES = ("n1", "n2")
LINKED = {
    "bandwidthGBps": 1000, "tflops": [{"dtype": "bf16", "value": 1000}], "memoryGiB": "1.7", "linkGBps": 100,
}  # fmt: skip
"""Of each device 1.53 GiB may be used, one of which is kept: the model's 2 GB take four."""


def kind(cluster: Cluster, on_nodes: tuple[int, ...], **members: Any) -> Object:
    """The kind, with so many devices on each of its nodes."""
    for name, devices in zip(NODES, on_nodes, strict=False):
        counts = {"red.com/npu": str(devices)}
        cluster.put("Node", name, {}, {"capacity": counts, "allocatable": counts}, labels={})
    obj = cluster.accelerator("npu", sum(on_nodes), performance=LINKED, **members)
    status = {**obj["status"], "nodes": len(on_nodes)}
    status["devices"] = {**status["devices"], "mostOnNode": max(on_nodes)}
    return cluster.put("AcceleratorResource", "npu", obj["spec"], status)


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    kind(made, (8, 8))
    for name in ("a", "b", "c", "d", "e"):
        made.deploy(name)
    return made


def test_each_replica_is_promised_all_of_its_devices(cluster: Cluster) -> None:
    assert FACTS.weight_bytes == 2 * 10**9
    assert cluster.decide("a").devices_each == 4
    assert cluster.free("npu") == 12
    cluster.write("a", "npu", 4)
    cluster.restart()
    assert cluster.free("npu") == 12, "the status says it, too"
    cluster.pod("a-1", "npu", "a", devices=4, node="n1")
    assert cluster.free("npu") == 12, "and the pod, which is counted once"
    cluster.deploy("a", replicas=3)
    cluster.place("a")
    assert cluster.free("npu") == 4
    cluster.deploy("a", replicas=0)
    cluster.place("a")
    cluster.end("a-1")
    assert cluster.free("npu") == 16


def test_a_part_of_a_replica_is_promised_to_nobody(cluster: Cluster) -> None:
    cluster.pod("x", "npu", devices=2, node="n1")
    cluster.deploy("a", replicas=9)
    cluster.place("a")
    assert cluster.free("npu") == 2, "of fourteen three replicas"


def test_what_is_free_on_several_nodes_is_no_place_for_a_replica(cluster: Cluster) -> None:
    cluster.pod("x", "npu", devices=6, node="n1")
    cluster.pod("y", "npu", devices=5, node="n2")
    assert cluster.view("npu", "a").roomiest == 3
    result = cluster.decide("a")
    assert result.chosen is None
    assert "no node has 4 free devices of red.com/npu" in result.message
    cluster.drain()
    cluster.end("x")
    assert cluster.drain() == ["a"]
    assert cluster.place("a") == "npu"


def test_who_needs_more_than_there_is_is_left_asleep_and_keeps_its_place(cluster: Cluster) -> None:
    cluster.pod("x", "npu", devices=8, node="n1")
    cluster.pod("y", "npu", devices=8, node="n2")
    for name in ("a", "b"):
        assert cluster.place(name) is None
    cluster.drain()
    cluster.pod("y", "npu", devices=5, node="n2")
    assert cluster.drain() == [], "three are too few for both"
    cluster.pod("y", "npu", devices=4, node="n2")
    assert cluster.drain() == ["a"]
    assert cluster.place("a") == "npu"
    assert cluster.drain() == []
    cluster.end("x")
    assert cluster.drain() == ["b"]


def test_nodes_are_followed(cluster: Cluster) -> None:
    def node(name: str, devices: int, **labels: str) -> None:
        counts = {"red.com/npu": str(devices)}
        cluster.put("Node", name, {}, {"capacity": counts, "allocatable": counts}, labels=labels)

    node("n1", 2)
    node("n2", 3)
    assert cluster.view("npu", "a").roomiest == 3
    assert cluster.place("a") is None
    cluster.drain()
    node("n2", 8)
    assert cluster.view("npu", "a").roomiest == 8
    assert cluster.drain() == ["a"]
    kind(cluster, (8, 8), nodeSelector={"zone": "1"})
    assert cluster.view("npu", "a").roomiest == 0
    node("n1", 6, zone="1")
    assert cluster.view("npu", "a").roomiest == 6


def test_where_nothing_is_linked_nobody_counts_by_node(cluster: Cluster) -> None:
    obj = cluster.accelerator("npu", 16)
    status = {**obj["status"], "devices": {**obj["status"]["devices"], "mostOnNode": 8}}
    cluster.put("AcceleratorResource", "npu", obj["spec"], status)
    view = cluster.view("npu", "a")
    assert (view.largest, view.roomiest) == (8, None)
    assert cluster.decide("a").devices_each == 1


def test_pods_of_ours_count_on_their_node_and_end_there(cluster: Cluster) -> None:
    cluster.place("a")
    cluster.pod("a-1", "npu", "a", devices=4, node="")
    assert cluster.view("npu", "b").roomiest == 8, "it is of no node yet"
    cluster.pod("a-1", "npu", "a", devices=4, node="n1")
    cluster.pod("x", "npu", devices=8, node="n2")
    assert cluster.view("npu", "b").roomiest == 4
    cluster.end("a-1")
    assert cluster.view("npu", "b").roomiest == 8
