"""A deployment on nodes of several classes: an artifact and a variant for each, one rollout over their sum."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from chain import NPU, PROFILE, World
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_api import names
from rm_api.kinds import BuildProfileSpec
from rm_operator.plan import ownership, serving
from rm_operator.plan.placement import ProfileView

Object = dict[str, Any]

repeatable = settings(deadline=None, derandomize=True, max_examples=60, database=None)
OLD, NEW = "1.4.0", "1.5.0"
RECIPE = PROFILE.model_validate(
    {
        **PROFILE.to_wire(),
        "target": {**PROFILE.target.to_wire(), "targetString": "x1:driver=${DRIVER}"},
        "compatibility": {"oneArtifactPer": ["Driver"]},
    }
)


class Mixed(World):
    """A world whose nodes have drivers and devices; pods go where their affinity lets them."""

    def __init__(self, **fleet: tuple[str, int]) -> None:
        super().__init__()
        self.profiles = [ProfileView("acme", RECIPE)]
        self.fleet = dict(fleet)
        """Node → driver and devices."""
        self.others: Counter[str] = Counter()
        """Node → devices that others have."""

    def _taken(self, node: str) -> int:
        mine = [pod for pod in self.of("Pod") if pod["spec"].get("nodeName") == node]
        return self.others[node] + sum(serving.devices_of([pod]) for pod in mine)

    def step(self) -> bool:
        self.look()
        return super().step()

    def look(self) -> None:
        """What the status of the accelerator says."""
        view = self.accelerators[0]
        label = f"{names.NODE_LABEL_DRIVER}/{view.name}"
        nodes = [{"metadata": {"name": name, "labels": {label: driver}}} for name, (driver, _) in self.fleet.items()]
        there = {node: (devices, max(0, devices - self._taken(node))) for node, (_, devices) in self.fleet.items()}
        self.accelerators = [
            replace(
                view,
                versions=tuple(ownership.versions(view.name, view.spec, nodes, there)),
                healthy=sum(devices for devices, _ in there.values()),
                free=sum(max(0, devices - self.others[node]) for node, (devices, _) in there.items()),
                nodes=len(self.fleet),
                largest=max(devices for devices, _ in there.values()),
            )
        ]

    def drain(self, node: str) -> None:
        """The pods of a node are evicted, as before an update of its driver."""
        for pod in self.of("Pod"):
            if pod["spec"].get("nodeName") == node:
                self.remove("Pod", pod["metadata"]["name"])

    def run_pods(self, **_: Any) -> bool:  # type: ignore[override]
        before = str(self.objects)
        for pod in self.of("Pod"):
            if "deletionTimestamp" in pod["metadata"]:
                self.remove("Pod", pod["metadata"]["name"])
        for each in self.of("Deployment"):
            self._replicate(each)
        for pod in self.of("Pod"):
            if names.LABEL_VARIANT not in pod["metadata"]["labels"] or "nodeName" in pod["spec"]:
                continue
            node = next(
                (
                    name
                    for name, (driver, devices) in sorted(self.fleet.items())
                    if driver == self.driver_of(pod) and self._taken(name) + serving.devices_of([pod]) <= devices
                ),
                None,
            )
            if node is not None:
                pod["spec"]["nodeName"] = node
                self._set_ready(pod, True)
            else:
                message = "0/2 nodes are available: 2 Insufficient acme.com/npu."
                condition = {"type": "PodScheduled", "status": "False", "message": message}
                pod["status"] = {"phase": "Pending", "conditions": [condition]}
        return str(self.objects) != before

    def driver_of(self, pod: Object) -> str:
        """The driver that a pod's affinity asks for."""
        variant = pod["metadata"]["labels"][names.LABEL_VARIANT]
        (deployment,) = [
            each for each in self.of("Deployment") if each["metadata"]["labels"][names.LABEL_VARIANT] == variant
        ]
        (found,) = re.findall(r"'values': \['([0-9.]+)'\]", str(deployment["spec"]["template"]["spec"]["affinity"]))
        return str(found)

    def serving_by_driver(self) -> dict[str, int]:
        """Pods to which requests go."""
        return dict(Counter(self.driver_of(pod) for pod in self.of("Pod") if serving.serves(pod)))

    def go_on(self, *, build: bool = True, floor: int = 0) -> int:
        """Until nothing changes; the fewest pods that served, which never are less than ``floor``."""
        least = len(self.routed())
        for _ in range(80):
            moved = self.step()
            self.resolve_model()
            if build and self.jobs("build"):
                self.build()
                moved = True
            moved = self.run_pods() or moved
            least = min(least, len(self.routed()))
            assert least >= floor
            if not moved:
                return least
        raise AssertionError("it never ends")

    def drivers_built(self) -> list[str]:
        """Drivers that there are artifacts for."""
        return sorted(each["spec"]["drivers"][0] for each in self.of("BuildArtifact"))

    def status(self) -> Object:
        found: Object = self.of("ModelDeployment")[0]["status"]
        return found

    def build_jobs_made(self) -> int:
        return sum(kind == "Job" and name.startswith("b-") for kind, name in self.made)


def in_groups(world: Mixed, tensor: int) -> Mixed:
    """A replica has so many devices from now on."""
    linked = NPU.model_copy(update={"capability": NPU.capability.model_copy(update={"max_tensor_parallel": tensor})})
    world.accelerators = [replace(world.accelerators[0], spec=linked)]
    recipe = BuildProfileSpec.model_validate({**RECIPE.to_wire(), "shapes": {"tensorParallel": [tensor]}})
    world.profiles = [ProfileView("acme", recipe)]
    return world


def started(world: Mixed, **spec: Any) -> Mixed:
    world.look()
    world.deploy(**spec)
    for _ in range(4):
        world.go_on()
    return world


def test_a_mixed_fleet_gets_an_artifact_and_a_variant_for_each_class_that_is_needed() -> None:
    world = started(Mixed(one=(OLD, 2), two=(NEW, 2)), replicas=3)
    assert world.reason() == "Ready"
    assert world.drivers_built() == [OLD, NEW]
    assert world.serving_by_driver() == {OLD: 1, NEW: 2}
    status = world.status()
    assert [(each["drivers"], each["replicas"]) for each in status["classes"]] == [([NEW], 2), ([OLD], 1)]
    assert status["artifact"] == status["classes"][0]["artifact"]
    assert (status["replicas"], status["readyReplicas"]) == (3, 3)
    lines = {each["artifact"]: (each["drivers"], each["ready"], each["active"]) for each in status["variants"]}
    assert lines == {each["artifact"]: (each["drivers"], each["replicas"], True) for each in status["classes"]}
    before = dict(world.objects)
    assert not world.step()
    assert world.objects == before


@pytest.mark.parametrize(
    ("tensor", "replicas", "fleet", "others", "served", "built"),
    [
        (2, 3, {"a": (OLD, 4), "b": (NEW, 2)}, {}, {OLD: 2, NEW: 1}, [OLD, NEW]),
        # For a class none of whose nodes takes a replica nothing is built, however many devices they have together.
        (4, 1, {"a": (OLD, 4), "b": (NEW, 2)}, {}, {OLD: 1}, [OLD]),
        (4, 1, {"a": (OLD, 4), "b": (NEW, 2), "c": (NEW, 2), "d": (NEW, 2)}, {}, {OLD: 1}, [OLD]),
        (4, 3, {"a": (OLD, 8), "b": (NEW, 4), "c": (NEW, 2)}, {}, {OLD: 2, NEW: 1}, [OLD, NEW]),
        # What others leave has to be of one node, too.
        (2, 2, {"a": (OLD, 4), "b": (NEW, 2)}, {"a": 1}, {OLD: 1, NEW: 1}, [OLD, NEW]),
        (2, 2, {"a": (OLD, 2), "b": (OLD, 2), "c": (NEW, 4)}, {"a": 1, "b": 1}, {NEW: 2}, [OLD, NEW]),
    ],
)
def test_replicas_of_several_devices_are_given_to_classes_that_have_them_on_one_node(
    tensor: int,
    replicas: int,
    fleet: dict[str, tuple[str, int]],
    others: dict[str, int],
    served: dict[str, int],
    built: list[str],
) -> None:
    world = in_groups(Mixed(**fleet), tensor)
    world.others.update(others)
    started(world, replicas=replicas)
    assert world.reason() == "Ready"
    assert world.serving_by_driver() == served
    assert world.drivers_built() == built
    assert ("classes" in world.status()) == (len(built) > 1)
    assert not world.step(), "and so it stays"


def test_devices_that_it_holds_are_room_for_as_many_replicas_as_they_are() -> None:
    world = in_groups(Mixed(one=(NEW, 4), two=(OLD, 2)), 2)
    world.others["one"] = 2
    started(world, replicas=1)
    assert world.serving_by_driver() == {NEW: 1}
    world.deploy(replicas=2)
    world.step()
    assert {each["drivers"][0]: each["replicas"] for each in world.status()["classes"]} == {OLD: 1, NEW: 1}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_a_change_of_the_devices_of_a_replica_rolls_over_as_any_other(before: int, after: int) -> None:
    world = started(in_groups(Mixed(one=(OLD, 8), two=(NEW, 8)), before), replicas=3)
    assert world.reason() == "Ready"
    in_groups(world, after)
    world.go_on(floor=3)
    assert world.reason() == "Ready"
    assert {serving.devices_of([pod]) for pod in world.of("Pod")} == {after}
    assert not world.step(), "and so it stays"


def test_a_fleet_of_one_class_says_nothing_of_classes() -> None:
    world = started(Mixed(one=(OLD, 4), two=(OLD, 4)), replicas=3)
    assert "classes" not in world.status()
    assert world.drivers_built() == [OLD]


def test_who_finds_room_in_one_class_has_one_variant_and_the_other_artifact_is_there() -> None:
    world = started(Mixed(one=(OLD, 4), two=(NEW, 4)), replicas=3)
    assert len(world.of("Deployment")) == 1
    assert world.drivers_built() == [OLD, NEW]
    assert [each["replicas"] for each in world.status()["classes"]] == [3, 0]


def test_the_class_that_is_warm_serves_first_and_the_other_joins() -> None:
    world = Mixed(one=(OLD, 2), two=(NEW, 2))
    world.look()
    world.deploy(replicas=4)
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.drivers_built() == [OLD, NEW]
    slow, fast = world.jobs("build")
    name = fast["metadata"]["labels"][names.LABEL_ARTIFACT]
    world.push(name)
    world.finish(fast, report={"reason": "Built", "digest": "sha256:" + "f" * 64})
    world.go_on(build=False)
    assert len(world.routed()) == 2, "it does not wait for the slower one"
    assert world.reason() == "Building"
    assert not world.condition("ModelDeployment", "hello", "Stalled")
    assert slow["metadata"]["name"] in {each["metadata"]["name"] for each in world.jobs("build")}
    waiting = next(each["spec"]["drivers"][0] for each in world.of("BuildArtifact") if each["metadata"]["name"] != name)
    assert f"driver {waiting}" in world.condition("ModelDeployment", "hello", "ArtifactReady")["message"]
    world.go_on(floor=2)
    assert world.reason() == "Ready"
    assert world.serving_by_driver() == {OLD: 2, NEW: 2}


def test_a_build_that_fails_for_one_class_is_told_and_the_other_serves() -> None:
    world = Mixed(one=(OLD, 2), two=(NEW, 2))
    world.look()
    world.deploy(replicas=4)
    world.settle()
    world.resolve_model()
    world.settle()
    for job in world.jobs("build"):
        name = job["metadata"]["labels"][names.LABEL_ARTIFACT]
        if world.objects["BuildArtifact", name]["spec"]["drivers"] == [NEW]:
            world.finish(job, 64, report={"reason": "UnsupportedModel", "message": "no kernel"})
        else:
            world.push(name)
            world.finish(job, report={"reason": "Built", "digest": "sha256:" + "f" * 64})
    world.go_on(build=False)
    assert world.serving_by_driver() == {OLD: 2}
    assert world.reason() == "NoDevice", "there is no other class to have devices in"


@pytest.mark.parametrize("rollout", [{}, {"maxSurge": 2}, {"maxUnavailable": 1}])
def test_a_driver_update_node_by_node_keeps_what_is_promised(rollout: Object) -> None:
    """Each node is emptied before; what was on it serves elsewhere, or is short meanwhile, for that is the drain's."""
    world = started(Mixed(one=(OLD, 2), two=(OLD, 2), three=(OLD, 2)), replicas=4, rollout=rollout)
    assert world.serving_by_driver() == {OLD: 4}
    floor = 4 - rollout.get("maxUnavailable", 0)
    for number, node in enumerate(("one", "two", "three")):
        held = sum(pod["spec"].get("nodeName") == node for pod in world.of("Pod"))
        world.drain(node)
        world.fleet[node] = (NEW, 2)
        least = world.go_on(floor=min(floor, 4 - held))
        assert least >= 4 - held - rollout.get("maxUnavailable", 0)
        assert world.drivers_built() == [OLD, NEW], "it is built as soon as the first node has gone over"
        assert world.reason() == "Ready", number
        assert world.serving_by_driver().get(NEW, 0) == [0, 2, 4][number]
    assert world.build_jobs_made() == 2
    # And back: the earlier artifact is there.
    for node in ("one", "two", "three"):
        world.drain(node)
        world.fleet[node] = (OLD, 2)
        world.go_on()
        assert world.reason() == "Ready"
    assert world.serving_by_driver() == {OLD: 4}
    assert world.build_jobs_made() == 2, "nothing is built again"


def test_pods_on_a_node_that_went_over_under_them_serve_on_until_others_do() -> None:
    world = started(Mixed(one=(OLD, 2), two=(OLD, 2)), replicas=4)
    world.fleet["two"] = (NEW, 2)
    world.go_on(build=False)
    assert len(world.routed()) == 4, "the old class serves on while it is built for the new one"
    # Nothing can begin there before something ends; a device more, and it goes on.
    world.fleet["three"] = (NEW, 2)
    world.go_on(floor=4)
    assert world.reason() == "Ready"
    assert world.serving_by_driver() == {OLD: 2, NEW: 2}


def test_a_change_of_the_engine_rolls_over_all_classes_together() -> None:
    world = started(Mixed(one=(OLD, 3), two=(NEW, 3)), replicas=5)
    assert world.serving_by_driver() == {OLD: 2, NEW: 3}
    shares = [(each["drivers"], each["replicas"]) for each in world.status()["classes"]]
    before = {each["metadata"]["name"] for each in world.of("Deployment")}
    world.deploy(replicas=5, servedName="other", model={"source": "oci://registry/model:1", "servedName": "other"})
    world.go_on(floor=5)
    assert world.reason() == "Ready"
    assert not before & {each["metadata"]["name"] for each in world.of("Deployment")}
    assert len(world.of("Deployment")) == 2
    assert sum(replicas for _, replicas in shares) == 5 == len(world.routed())


def test_scaling_fills_the_other_class_and_empties_it_again() -> None:
    world = started(Mixed(one=(OLD, 2), two=(NEW, 2)), replicas=1)
    assert len(world.of("Deployment")) == 1
    (first,) = world.serving_by_driver()
    for replicas, expected in ((4, 4), (2, 2), (0, 0)):
        world.deploy(replicas=replicas)
        world.go_on()
        assert world.reason() == "Ready"
        assert world.status()["replicas"] == expected == len(world.routed())
        if replicas == 2:
            assert sum(world.serving_by_driver().values()) == 2
    world.deploy(replicas=1)
    world.go_on()
    assert world.reason() == "Ready"
    assert first in (OLD, NEW)


def test_devices_that_others_take_first_are_looked_for_in_the_other_class() -> None:
    world = started(Mixed(one=(OLD, 4), two=(NEW, 1)), replicas=2)
    assert world.serving_by_driver() == {OLD: 2}
    world.others["one"] = 2
    world.deploy(replicas=3)
    world.go_on()
    assert world.reason() == "Ready"
    assert world.serving_by_driver() == {OLD: 2, NEW: 1}


def test_one_suspended_holds_nothing_and_finds_both_again() -> None:
    world = started(Mixed(one=(OLD, 2), two=(NEW, 2)), replicas=4)
    classes = world.status()["classes"]
    world.deploy(replicas=4, suspend=True)
    world.go_on()
    assert world.routed() == frozenset()
    assert world.status()["classes"] == classes
    world.deploy(replicas=4)
    world.go_on()
    assert world.serving_by_driver() == {OLD: 2, NEW: 2}
    assert world.build_jobs_made() == 2


moves = st.one_of(
    st.tuples(st.just("driver"), st.sampled_from(["one", "two", "three"]), st.sampled_from([OLD, NEW])),
    # One device fewer than there are: a rollout needs one to spare.
    st.tuples(st.just("replicas"), st.integers(0, 5), st.just("")),
    st.tuples(st.just("steps"), st.integers(1, 3), st.just("")),
    st.tuples(st.just("engine"), st.integers(1, 3), st.just("")),
)


@repeatable
@given(
    st.lists(moves, max_size=8), st.sampled_from([{}, {"maxSurge": 2}, {"maxUnavailable": 1}]), st.sampled_from([1, 2])
)
def test_whatever_happens_to_the_fleet_no_pod_is_taken_that_is_needed(
    story: list[Any], rollout: Object, tensor: int
) -> None:
    """The operator takes nobody below the floor by its own doing, and it ends with all of them where they may be."""
    devices = 2 * tensor
    fleet = Mixed(one=(OLD, devices), two=(OLD, devices), three=(NEW, devices))
    world = started(in_groups(fleet, tensor), replicas=3, rollout=rollout)
    wanted, name = 3, "hello"

    def decide() -> None:
        before = len(world.routed())
        world.step()
        assert len(world.routed()) >= min(before, wanted - rollout.get("maxUnavailable", 0))
        shares = world.status().get("classes") or []
        assert not shares or sum(each["replicas"] for each in shares) >= wanted

    for what, first, second in story:
        if what == "driver":
            world.fleet[str(first)] = (second, devices)
        elif what == "replicas":
            wanted = int(first)
        elif what == "engine":
            name = f"engine-{first}"
        model = {"source": "oci://registry/model:1", "servedName": name}
        world.deploy(replicas=wanted, rollout=rollout, model=model)
        for _ in range(int(first) if what == "steps" else 1):
            decide()
            world.resolve_model()
            world.build()
            world.run_pods()
    # Whoever updates a driver drains the node in the end.
    for pod in world.of("Pod"):
        node = pod["spec"].get("nodeName")
        if node and world.fleet[node][0] != world.driver_of(pod):
            world.remove("Pod", pod["metadata"]["name"])
    for _ in range(3):
        world.go_on()
    assert len(world.routed()) == wanted
    assert world.reason() == "Ready"
    assert not world.step(), "at rest there is nothing to do"
