"""What is in use does not vanish, says who uses it, takes nobody new, and goes with the last user."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from chain import NPU, PROFILE, SETTINGS, World
from rm_api.names import API_VERSION, FINALIZER_IN_USE
from rm_operator.plan import accelerator, profile
from rm_operator.plan.in_use import NOBODY, Users, some
from rm_operator.plan.model import Plan, Protection
from rolling import finished, roll, served

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIVE = some([f"ns/d-{number}" for number in (4, 2, 0, 1, 3)], 5)


def cluster_object(world: World, kind: str, name: str, spec: Object) -> Object:
    return world.add({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})


def furnished() -> World:
    """A world whose accelerator and profile are objects, too."""
    world = World()
    cluster_object(world, "AcceleratorResource", "npu", NPU.to_wire())
    cluster_object(world, "BuildProfile", "acme", PROFILE.to_wire())
    return world


def finalizers(world: World) -> list[list[str]]:
    objects = [*world.of("AcceleratorResource"), *world.of("BuildProfile")]
    return [obj["metadata"].get("finalizers") or [] for obj in objects]


def test_it_is_protected_before_anything_rests_on_it() -> None:
    world = furnished()
    world.deploy()
    world.settle()
    assert finalizers(world) == [[], []], "what the model is has not to do with it"
    world.resolve_model()
    world.settle()
    placed = next(plan for plan in world.plans if plan.protect)
    assert [(each.kind, each.name, each.present, each.resource_version) for each in placed.protect] == [
        ("AcceleratorResource", "npu", True, None),
        ("BuildProfile", "acme", True, None),
    ]
    assert placed.status_first, "who looks for users finds this one"
    assert placed.status is not None
    assert placed.status["placement"]["chosen"] == "npu"
    assert [child["kind"] for child in placed.apply if child["kind"] == "BuildArtifact"] == ["BuildArtifact"]
    assert finalizers(world) == [[FINALIZER_IN_USE]] * 2


def test_once_is_enough() -> None:
    world = furnished()
    world.serve()
    assert len([plan for plan in world.plans if plan.protect]) == 1
    world.deploy("second")
    world.settle()
    assert len([plan for plan in world.plans if plan.protect]) == 1


def test_a_finalizer_that_somebody_took_off_comes_back() -> None:
    world = furnished()
    world.serve()
    world.objects["AcceleratorResource", "npu"]["metadata"]["finalizers"] = []
    world.settle()
    assert finalizers(world) == [[FINALIZER_IN_USE]] * 2


def test_who_uses_one_that_goes_stays_and_nobody_comes() -> None:
    world = furnished()
    world.serve()
    world.objects["AcceleratorResource", "npu"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.deploy("late")
    world.settle()
    assert world.reason("hello") == "Ready"
    assert world.reason("late") == "NoEligibleAccelerator"
    assert "being deleted" in str(world.objects["ModelDeployment", "late"]["status"]["placement"])
    # It may even be scaled.
    world.deploy("hello", replicas=2)
    world.settle()
    world.start_pods()
    world.settle()
    assert world.reason("hello") == "Ready"


def test_a_profile_that_goes_is_used_up_by_whom_it_serves() -> None:
    world = furnished()
    world.serve()
    world.objects["BuildProfile", "acme"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.deploy("late")
    world.settle()
    assert world.reason("hello") == "Ready"
    assert world.condition("ModelDeployment", "late", "Placed")["status"] == "False"
    assert "being deleted" in world.condition("ModelDeployment", "late", "Ready")["message"]


def test_another_accelerator_takes_over_from_one_that_was_left() -> None:
    world = served()
    world.accelerators.append(replace(world.accelerators[0], name="spare"))
    world.deploy(accelerators={"names": ["spare"]})
    world.settle()
    status = world.of("ModelDeployment")[0]["status"]
    assert status["placement"]["chosen"] == "spare"
    assert {variant["accelerator"] for variant in status["variants"]} == {"npu", "spare"}, "both are used meanwhile"
    roll(world)
    finished(world)
    status = world.of("ModelDeployment")[0]["status"]
    assert {variant["accelerator"] for variant in status["variants"]} == {"spare"}


def _accelerator(**metadata: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "AcceleratorResource",
        "metadata": {"name": "npu", "uid": "u", "generation": 1, "resourceVersion": "7", **metadata},
        "spec": {**NPU.to_wire(), "devicePlugin": {"image": "plugin:1"}},
    }


def _profile(**metadata: Any) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": "BuildProfile",
        "metadata": {"name": "npu", "uid": "u", "generation": 1, "resourceVersion": "7", **metadata},
        "spec": PROFILE.to_wire(),
    }


def _plan_accelerator(obj: Object, users: Users) -> Plan:
    child = {
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "device-plugin-npu", "namespace": "system", "uid": "d"},
    }  # fmt: skip
    node: Object = {
        "metadata": {"name": "n"},
        "status": {each: {"acme.com/npu": "4"} for each in ("capacity", "allocatable")},
    }
    container = {"name": "c", "resources": {"limits": {"acme.com/npu": "2"}}}
    pod: Object = {"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [container]}}
    snapshot = accelerator.AcceleratorSnapshot(
        accelerator=obj,
        nodes=[node],
        requesting=[pod],
        plugin_pods=[],
        children=[child],
        settings=SETTINGS,
        users=users,
    )
    return accelerator.plan(snapshot, NOW)


def _plan_profile(obj: Object, users: Users) -> Plan:
    return profile.plan(profile.ProfileSnapshot(obj, 3, SETTINGS, users), NOW)


BOTH = pytest.mark.parametrize(
    ("make", "plan"), [(_accelerator, _plan_accelerator), (_profile, _plan_profile)], ids=["accelerator", "profile"]
)
GOING = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER_IN_USE]}


def _ready(made: Plan) -> Object:
    assert made.status is not None
    return next(entry for entry in made.status["conditions"] if entry["type"] == "Ready")


@BOTH
@pytest.mark.parametrize(
    ("metadata", "users", "present"),
    [
        ({}, NOBODY, None),
        ({}, FIVE, True),
        ({"finalizers": ["somebody/else"]}, FIVE, True),
        ({"finalizers": [FINALIZER_IN_USE]}, FIVE, None),
        ({"finalizers": [FINALIZER_IN_USE]}, NOBODY, False),
        (GOING, FIVE, None),
        (GOING, NOBODY, False),
        # Where it is too late, there is nothing to hold on to.
        ({**GOING, "finalizers": ["foregroundDeletion"]}, FIVE, None),
        ({**GOING, "finalizers": ["foregroundDeletion"]}, NOBODY, None),
    ],
)
def test_the_finalizer_follows_the_users(
    make: Any, plan: Any, metadata: Object, users: Users, present: bool | None
) -> None:
    made = plan(make(**metadata), users)
    if present is None:
        assert made.protect == ()
        return
    (protection,) = made.protect
    kind = make()["kind"]
    # Taken off only as it was looked at; put on whatever else was changed.
    assert protection == Protection(API_VERSION, kind, "npu", "u", present, None if present else "7")


@BOTH
def test_what_goes_unused_is_left_to_go(make: Any, plan: Any) -> None:
    made = plan(make(**GOING), NOBODY)
    assert (made.status, made.apply, made.delete, made.events) == (None, (), (), ())


@BOTH
@pytest.mark.parametrize(
    ("users", "named"),
    [
        (some(["ns/only"], 1), "used by ns/only;"),
        (FIVE, "used by ns/d-0, ns/d-1, ns/d-2, ns/d-3, ns/d-4;"),
        (some([f"ns/d-{number}" for number in range(8)], 8), "ns/d-3, ns/d-4 and 3 more;"),
    ],
)
def test_what_goes_says_who_uses_it_and_what_to_do(make: Any, plan: Any, users: Users, named: str) -> None:
    made = plan(make(**GOING), users)
    entry = _ready(made)
    assert (entry["status"], entry["reason"]) == ("False", "InUse")
    assert entry["message"].startswith("npu is being deleted, and ")
    assert named in entry["message"]
    assert "takes no new users and goes when they are deleted or" in entry["message"]
    assert [(event.type, event.reason) for event in made.events if event.reason == "InUse"] == [("Warning", "InUse")]
    assert {entry["type"] for entry in made.status["conditions"]}.isdisjoint({"Reconciling", "Stalled"})


def test_the_device_plugin_stays_as_long_as_its_devices_are_used() -> None:
    made = _plan_accelerator(_accelerator(**GOING), FIVE)
    assert made.delete == ()
    assert made.apply == (), "nor is it made again, where the garbage collector takes it"
    assert made.status is not None
    assert made.status["devices"] == {"total": 4, "healthy": 4, "allocated": 2, "usedOutOfBand": 0, "mostOnNode": 4}
    (advertised,) = [entry for entry in made.status["conditions"] if entry["type"] == "DevicesAdvertised"]
    assert advertised["status"] == "True", "who is placed on it may stay"
