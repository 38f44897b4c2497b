"""Who is woken when devices become free, and that not everybody is."""

import pytest
from fleet_cluster import Cluster


@pytest.fixture
def full() -> Cluster:
    """Two devices, taken by a pod of somebody else; ``d0`` … wait for them."""
    cluster = Cluster()
    cluster.accelerator("npu", healthy=2)
    cluster.pod("x", "npu", devices=2)
    for number in range(20):
        cluster.deploy(f"d{number}")
        assert cluster.place(f"d{number}") is None
    cluster.drain()
    return cluster


def test_as_many_are_woken_as_devices_are_free_in_the_order_in_which_they_came(full: Cluster) -> None:
    full.pod("x", "npu", devices=1)
    assert full.drain() == ["d0"]
    full.end("x")
    assert full.drain() == ["d1"]
    assert [full.place("d0"), full.place("d1")] == ["npu", "npu"]
    assert full.drain() == []


def test_changes_that_free_nothing_wake_nobody(full: Cluster) -> None:
    full.pod("x", "npu", devices=2, node="elsewhere")
    full.pod("y", "npu", devices=1)
    full.accelerator("npu", healthy=2)
    full.accelerator("npu", healthy=1)
    full.pod("d0-1", "npu", "d0", node="")
    full.end("y")
    assert full.drain() == []


def test_who_does_not_take_the_device_hands_the_wake_up_on(full: Cluster) -> None:
    full.deploy("d0", accelerators={"exclude": ["npu"]})
    full.pod("x", "npu", devices=1)
    assert full.drain() == ["d0"]
    assert full.place("d0") is None
    assert full.drain() == ["d1"]
    full.remove("d1")
    assert full.drain() == ["d2"]
    full.deploy("d2", suspend=True)
    full.fleet.settle(full.deployment("d2"), None, full.now)
    assert full.drain() == ["d3"]


def test_more_devices_and_health_wake_too(full: Cluster) -> None:
    full.accelerator("npu", healthy=5)
    assert full.drain() == ["d0", "d1", "d2"]
    assert full.place("d0") == "npu"
    full.accelerator("npu", healthy=6, ready=False)
    assert full.drain() == []
    full.accelerator("npu", healthy=6)
    assert full.drain() == ["d3"]


def test_a_promise_that_ends_wakes_the_next_and_the_one_it_was_made_to_is_called_in_time(full: Cluster) -> None:
    full.pod("x", "npu", devices=1)
    full.drain()
    full.place("d0", Stalled="True")
    full.decide("d0")
    assert full.later == 300
    full.wait(300)
    full.decide("d0")
    assert full.drain() == ["d1"]


def test_without_a_place_before_with_one_and_movers_come_as_many_as_there_is_room(full: Cluster) -> None:
    full.accelerator("slow", healthy=3, bandwidth=10)
    # d0, d1, d2 take what there is and go on waiting for what is clearly better; the others wait for either
    for name in ("d0", "d1", "d2"):
        assert full.place(name, Ready="True") == "slow"
    full.pod("x", "npu", devices=1)
    assert full.drain() == ["d3"]
    assert full.place("d3") == "npu"
    for number in range(4, 20):
        full.remove(f"d{number}")
    full.remove("d3")
    assert full.drain() == ["d0"]
    # it moves only after a while, and meanwhile nobody else is called for that device
    assert (full.place("d0", Ready="True"), full.later) == ("slow", 300)
    full.accelerator("npu", healthy=2)
    assert full.drain() == []
    full.wait(300)
    assert full.place("d0", Ready="True") == "npu"
    assert full.drain() == []


def test_an_interruption_starts_the_time_of_a_move_anew(full: Cluster) -> None:
    full.accelerator("slow", healthy=1, bandwidth=10)
    assert full.place("d0", Ready="True") == "slow"
    full.end("x")
    full.place("d0", Ready="True")
    full.wait(299)
    full.pod("x", "npu", devices=2)
    full.place("d0", Ready="True")
    full.end("x")
    full.wait(1)
    assert full.place("d0", Ready="True") == "slow"
    full.wait(300)
    assert full.place("d0", Ready="True") == "npu"


def test_where_devices_are_not_counted_everybody_may_come() -> None:
    cluster = Cluster()
    cpu = {"type": "NPU", "resourceName": None}
    cluster.accelerator("cpu", healthy=0, ready=False, **cpu)
    for name in ("a", "b"):
        cluster.deploy(name)
        assert cluster.place(name) is None
    cluster.accelerator("cpu", healthy=1, **cpu)
    assert sorted(cluster.drain()) == ["a", "b"]
    assert [cluster.place("a"), cluster.place("b")] == ["cpu", "cpu"]


def test_who_is_woken_answers_though_nothing_else_has_changed(full: Cluster) -> None:
    """One that passes a device on tells the next, to whom there is no other news."""
    full.pod("x", "npu", devices=1)
    assert full.drain() == ["d0"]
    ticks = full.stores.ticks
    before, slots = ticks.now, [ticks.slot(place) for place in full.fleet.places(full.deployment("d1"))]
    full.fleet.settle(full.deployment("d0"), None, full.now)
    assert full.drain() == ["d1"]
    assert ticks.last(slots) > before
