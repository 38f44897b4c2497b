"""Which versions of driver and libraries a result runs on: classes, pods that keep to them, an update of the fleet."""

from dataclasses import replace
from typing import Any

import pytest
from chain import NPU, PROFILE, World
from rm_api.kinds.accelerator_resource import NodeDevices, NodeVersions
from rm_api.kinds.build_profile import Compatibility
from rm_operator.plan import compatibility
from rm_operator.plan.compatibility import NodeClass, Room
from rm_operator.plan.placement import ProfileView

Object = dict[str, Any]


def versions(**nodes: int) -> tuple[NodeVersions, ...]:
    """Nodes by driver: ``d140=2`` are two with 1.4.0."""
    return tuple(NodeVersions(driver=".".join(name[1:]), nodes=count) for name, count in nodes.items())


OLD, NEW = NodeClass(("1.4.0",)), NodeClass(("1.5.0",))
EACH = {"oneArtifactPer": ["Driver"]}


@pytest.mark.parametrize(
    ("declared", "there", "expected"),
    [
        ({}, versions(d140=2), {NodeClass(): Room()}),
        ({"driver": ["1.4.0"]}, (), {OLD: Room()}),
        ({"driver": ["1.4.0", "1.5.0"]}, versions(d140=1, d150=1), {NodeClass(("1.4.0", "1.5.0")): Room()}),
        (EACH, versions(d140=2, d150=1), {OLD: Room(2), NEW: Room(1)}),
        (EACH | {"driver": ["1.4.0"]}, versions(d140=1, d150=2), {OLD: Room(1)}),
        (EACH | {"driver": ["1.6.0"]}, versions(d140=1, d150=2), {}),
        (EACH, (), {}),
        # What only differs in other things is one class; what is not counted everywhere is not counted.
        (
            EACH,
            (
                NodeVersions(driver="1.4.0", firmware="a", nodes=1, devices=4, free=1),
                NodeVersions(driver="1.4.0", firmware="b", nodes=2, devices=8, free=3),
                NodeVersions(driver="1.5.0", firmware="a", nodes=1, devices=4, free=4),
                NodeVersions(driver="1.5.0", firmware="b", nodes=1),
            ),
            {OLD: Room(3, 12, 4), NEW: Room(2)},
        ),
    ],
)
def test_the_classes_of_a_fleet(
    declared: Object, there: tuple[NodeVersions, ...], expected: dict[NodeClass, Room]
) -> None:
    assert compatibility.rooms(Compatibility.model_validate(declared), there) == expected


def grouped(driver: str, there: dict[int, int], free: dict[int, int]) -> NodeVersions:
    """Nodes of a version: devices of a node → nodes that have so many, and the same of free ones."""
    by_node, free_by_node = (
        [NodeDevices(devices=devices, nodes=nodes) for devices, nodes in each.items()] for each in (there, free)
    )
    return NodeVersions(
        driver=driver, nodes=sum(there.values()),
        devices=sum(devices * nodes for devices, nodes in there.items()), devices_by_node=by_node,
        free=sum(devices * nodes for devices, nodes in free.items()), free_by_node=free_by_node,
    )  # fmt: skip


FOURS, TWOS = grouped("1.4.0", {4: 2}, {4: 1, 1: 1}), grouped("1.5.0", {2: 3}, {2: 2, 1: 1})


@pytest.mark.parametrize(
    ("devices", "there", "expected"),
    [
        (1, (FOURS, TWOS), {OLD: Room(2, 8, 5), NEW: Room(3, 6, 5)}),
        (2, (FOURS, TWOS), {OLD: Room(2, 4, 2), NEW: Room(3, 3, 2)}),
        (3, (FOURS, TWOS), {OLD: Room(2, 2, 1)}),
        (4, (FOURS, TWOS), {OLD: Room(2, 2, 1)}),
        # One that waits for devices waits somewhere, even where there are none that suffice.
        (8, (FOURS, TWOS), {OLD: Room(2, 0, 0), NEW: Room(3, 0, 0)}),
        (4, (TWOS, grouped("1.5.0", {8: 1, 6: 1}, {6: 1, 3: 1})), {NEW: Room(5, 3, 1)}),
        # Nodes with one device each, nodes on which nothing says yet what it has, and what is not counted.
        (2, (FOURS, NodeVersions(driver="1.5.0", nodes=4, devices=4, free=4)), {OLD: Room(2, 4, 2)}),
        (
            2,
            (FOURS, NodeVersions(driver="1.5.0", nodes=1, devices=0, free=0)),
            {OLD: Room(2, 4, 2), NEW: Room(1, 0, 0)},
        ),
        (2, (FOURS, NodeVersions(driver="1.5.0", nodes=1)), {OLD: Room(2, 4, 2), NEW: Room(1)}),
    ],
)
def test_room_for_replicas_of_several_devices(
    devices: int, there: tuple[NodeVersions, ...], expected: dict[NodeClass, Room]
) -> None:
    assert compatibility.rooms(Compatibility.model_validate(EACH), there, devices) == expected


def test_classes_by_driver_and_libraries() -> None:
    there = [
        NodeVersions(driver="1", sdk="a", nodes=1), NodeVersions(driver="1", sdk="b", nodes=2),
        NodeVersions(driver="2", sdk="", nodes=5),
    ]  # fmt: skip
    both = Compatibility.model_validate({"oneArtifactPer": ["Driver", "Sdk"]})
    assert compatibility.rooms(both, there) == {NodeClass(("1",), ("a",)): Room(1), NodeClass(("1",), ("b",)): Room(2)}
    sdk = Compatibility.model_validate({"oneArtifactPer": ["Sdk"], "driver": ["1", "3"]})
    assert set(compatibility.rooms(sdk, there)) == {NodeClass(("1", "3"), ("a",)), NodeClass(("1", "3"), ("b",))}


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        ({}, None),
        ({OLD: Room(2), NEW: Room(1)}, OLD),
        ({OLD: Room(1), NEW: Room(2)}, NEW),
        # Of equals the newer one.
        ({OLD: Room(1), NEW: Room(1)}, NEW),
    ],
)
def test_the_commonest_class(rooms: dict[NodeClass, Room], expected: NodeClass | None) -> None:
    assert compatibility.commonest(rooms) == expected


@pytest.mark.parametrize(
    ("labels", "chosen", "expected"),
    [
        ({}, NodeClass(), []),
        ({}, OLD, [[("driver.rm-abstract.io/npu", "In", ["1.4.0"])]]),
        (
            {"driver": "acme.com/driver"},
            OLD,
            [
                [("acme.com/driver", "In", ["1.4.0"])],
                [("acme.com/driver", "DoesNotExist", None), ("driver.rm-abstract.io/npu", "In", ["1.4.0"])],
            ],
        ),
        # What a label may not have was replaced when it was written.
        ({}, NodeClass(("1.4+git/7",)), [[("driver.rm-abstract.io/npu", "In", ["1.4_git_7"])]]),
        # Nobody says which libraries a node has: that cannot be asked for.
        ({}, NodeClass(("1.4.0",), ("2",)), [[("driver.rm-abstract.io/npu", "In", ["1.4.0"])]]),
    ],
)
def test_pods_are_kept_on_nodes_of_their_class(labels: Object, chosen: NodeClass, expected: list[Any]) -> None:
    spec = NPU.model_validate({**NPU.to_wire(), "versionLabels": labels})
    made = compatibility.affinity("npu", spec, versions(d140=1), chosen)
    if not expected:
        assert made == {}
        return
    terms = made["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    found = [
        [(each["key"], each["operator"], each.get("values")) for each in term["matchExpressions"]] for term in terms
    ]
    assert found == expected


def test_nothing_is_asked_of_nodes_that_say_nothing() -> None:
    assert compatibility.affinity("npu", NPU, (), OLD) == {}


RECIPE = PROFILE.model_validate(
    {
        **PROFILE.to_wire(),
        "target": {**PROFILE.target.to_wire(), "targetString": "x1:driver=${DRIVER}"},
        "compatibility": EACH,
        "steps": [{"name": "compile", "image": "acme/cc:1", "command": ["cc", "--target=${TARGET}"]}],
    }
)


def fleet(world: World, there: tuple[NodeVersions, ...]) -> None:
    world.accelerators = [replace(world.accelerators[0], versions=there)]


def serving(world: World) -> list[str]:
    """Driver that each variant's pods keep to."""
    found = []
    for made in world.of("Deployment"):
        terms = str(made["spec"]["template"]["spec"].get("affinity"))
        found.append(next(version for version in ("1.4.0", "1.5.0") if version in terms))
    return found


def start(there: tuple[NodeVersions, ...]) -> World:
    world = World()
    world.profiles = [ProfileView("acme", RECIPE)]
    fleet(world, there)
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    world.build()
    world.settle()
    return world


def test_an_artifact_is_made_for_the_version_that_it_runs_on() -> None:
    world = start(versions(d140=1))
    (artifact,) = world.of("BuildArtifact")
    assert artifact["spec"]["drivers"] == ["1.4.0"]
    assert artifact["spec"]["target"]["targetString"] == "x1:driver=1.4.0"
    assert serving(world) == ["1.4.0"]


@pytest.mark.parametrize(
    ("declared", "there", "reason", "said"),
    [
        (
            {"driver": ["1.4.0"]}, versions(d150=2), "NoEligibleAccelerator",
            "BuildProfile acme builds for driver 1.4.0; its nodes have driver 1.5.0 on 2 nodes",
        ),
        (EACH, (), "NoEligibleAccelerator", "its nodes do not say which versions they have"),
    ],
)  # fmt: skip
def test_a_fleet_that_no_profile_builds_for_is_told(
    declared: Object, there: tuple[NodeVersions, ...], reason: str, said: str
) -> None:
    world = World()
    recipe = PROFILE.model_validate({**PROFILE.to_wire(), "compatibility": declared})
    world.profiles = [ProfileView("acme", recipe)]
    fleet(world, there)
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.reason() == reason
    assert said in world.condition("ModelDeployment", "hello", "Placed")["message"]
