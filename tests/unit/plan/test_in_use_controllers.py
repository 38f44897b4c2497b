"""What is in use, with the real controllers and stores over a cluster in memory: who is woken, what is written."""

from typing import Any

import pytest
from memory_cluster import NAMESPACE, Installation, at
from rm_api.names import FINALIZER_IN_USE

Object = dict[str, Any]
ACCELERATOR = ("AcceleratorResource", "", "npu")
PROFILE = ("BuildProfile", "", "acme")
HELLO = ("ModelDeployment", NAMESPACE, "hello")
BOTH = pytest.mark.parametrize("key", [ACCELERATOR, PROFILE], ids=["accelerator", "profile"])


def ready(cluster: Installation, key: tuple[str, str, str]) -> Object:
    conditions = cluster.api.objects[key]["status"]["conditions"]
    return next(entry for entry in conditions if entry["type"] == "Ready")


def finalizers(cluster: Installation, key: tuple[str, str, str]) -> list[str]:
    return list(cluster.api.objects[key]["metadata"].get("finalizers") or [])


@BOTH
@pytest.mark.parametrize(("stage", "used"), [("nothing", False), ("resolve", False), ("build", True), ("ready", True)])
def test_it_is_protected_from_the_placement_on(key: tuple[str, str, str], stage: str, used: bool) -> None:
    assert finalizers(at(stage), key) == ([FINALIZER_IN_USE] if used else [])


def test_an_idle_operator_writes_nothing_even_after_a_restart() -> None:
    cluster = at("ready").fork()
    cluster.settle()
    writes = cluster.api.writes
    cluster.restart()
    cluster.settle()
    assert cluster.api.writes == writes


@BOTH
def test_the_last_user_takes_it_along(key: tuple[str, str, str]) -> None:
    cluster = at("ready").fork()
    cluster.deploy("second")
    cluster.settle()
    cluster.api.remove(key)
    cluster.settle()
    assert "used by ns/hello, ns/second;" in ready(cluster, key)["message"]
    assert ready(cluster, key)["reason"] == "InUse"
    assert (cluster.reason("hello"), cluster.reason("second")) == ("Ready", "Ready")
    cluster.api.remove(HELLO)
    cluster.settle()
    assert "used by ns/second;" in ready(cluster, key)["message"]
    cluster.api.remove(("ModelDeployment", NAMESPACE, "second"))
    cluster.settle()
    assert key not in cluster.api.objects


@BOTH
def test_nobody_new_is_placed_on_what_goes_until_it_is_made_again(key: tuple[str, str, str]) -> None:
    cluster = at("ready").fork()
    spec = cluster.api.objects[key]["spec"]
    cluster.api.remove(key)
    cluster.settle()
    cluster.deploy("late")
    cluster.settle()
    assert cluster.reason("late", "Placed") in ("NoEligibleAccelerator", "ProfileNotFound")
    assert not [
        pod for pod in cluster.api.of("Pod") if pod["metadata"]["labels"]["rm-abstract.io/deployment"] == "late"
    ]
    cluster.api.remove(HELLO)
    cluster.settle()
    assert key not in cluster.api.objects
    cluster.api.create(
        {"apiVersion": "rm-abstract.io/v1alpha1", "kind": key[0], "metadata": {"name": key[2]}, "spec": spec}
    )
    cluster.settle()
    assert cluster.reason("late") == "Ready"
    assert finalizers(cluster, key) == [FINALIZER_IN_USE]


def test_unused_it_goes_at_once() -> None:
    cluster = at("nothing").fork()
    for key in (ACCELERATOR, PROFILE):
        cluster.api.remove(key)
    cluster.settle()
    assert not {ACCELERATOR, PROFILE} & cluster.api.objects.keys()


@BOTH
def test_a_finalizer_that_is_taken_off_by_hand_comes_back(key: tuple[str, str, str]) -> None:
    cluster = at("ready").fork()
    cluster.api.update(key, lambda live: live["metadata"].update(finalizers=[]))
    cluster.settle()
    assert finalizers(cluster, key) == [FINALIZER_IN_USE]


@BOTH
def test_one_that_was_left_is_free_again(key: tuple[str, str, str]) -> None:
    cluster = at("build").fork()
    assert finalizers(cluster, key) == [FINALIZER_IN_USE]
    cluster.api.remove(HELLO)
    cluster.settle()
    assert finalizers(cluster, key) == []
    assert cluster.api.of("BuildArtifact") == []


def test_a_suspended_one_is_a_user_still() -> None:
    cluster = at("ready").fork()
    cluster.deploy(suspend=True)
    cluster.settle()
    assert cluster.reason() == "Suspended"
    assert finalizers(cluster, ACCELERATOR) == [FINALIZER_IN_USE]
