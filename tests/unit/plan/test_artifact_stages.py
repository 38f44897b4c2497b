"""Builds of several Jobs: steps that need a device have Jobs of their own, which go on with what the store has."""

from datetime import timedelta
from typing import Any

import pytest
from chain import NPU, PROFILE, World
from rm_api import names
from rm_api.kinds import BuildArtifactSpec, BuildProfileSpec
from rm_operator.plan import build_devices
from rm_operator.plan.placement import ProfileView
from test_artifact_failures import CRASH, NODES, excluded, fail, job_of, ready, stalled, status_of

Object = dict[str, Any]
STEP = PROFILE.steps[0].to_wire()
STEPS = [
    {**STEP, "name": "compile"},
    {**STEP, "name": "tune", "requiresDevice": True},
    {**STEP, "name": "pack"},
]


def kind(name: str = "npu", *, free: int = 1, versions: tuple[str, ...] = (), **spec: Any) -> Object:
    """An AcceleratorResource with devices."""
    said = {"type": "DevicesAdvertised", "status": "True", "reason": "Advertised"}
    return {
        "metadata": {"name": name, "uid": name},
        "spec": {**NPU.to_wire(), **spec},
        "status": {
            "nodes": 1,
            "devices": {"total": 4, "healthy": 4, "allocated": 4 - free},
            "versions": [{"driver": driver, "nodes": 1} for driver in versions],
            "conditions": [said],
        },
    }


def tuning(*kinds: Object, steps: list[Object] | None = None) -> World:
    """A build of three Jobs, the second of them on a device; the first one runs."""
    world = World()
    world.profiles = [
        ProfileView("acme", BuildProfileSpec.model_validate({**PROFILE.to_wire(), "steps": steps or STEPS}))
    ]
    world.kinds = list(kinds) or [kind()]
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    return world


def limits(job: Object) -> dict[str, Object]:
    return {
        container["name"]: container.get("resources", {}).get("limits", {})
        for container in job["spec"]["template"]["spec"]["initContainers"]
    }


def steps_of(job: Object) -> list[str]:
    return [name for name in limits(job) if name in ("compile", "tune", "pack")]


def suffix(job: Object) -> str:
    return str(job["metadata"]["name"]).split("-", 2)[2]


def test_one_job_after_another() -> None:
    world = tuning()
    seen = []
    while jobs := world.jobs("build"):
        (job,) = jobs
        seen.append((suffix(job), steps_of(job)))
        world.build()
        world.settle()
    assert seen == [("1", ["compile"]), ("1-2", ["tune"]), ("1-3", ["pack"])]
    assert ready(world)["status"] == "True"
    assert world.jobs("build", running=False) == []
    assert status_of(world)["attempts"] == 1
    assert float(status_of(world)["buildSeconds"]) == float(status_of(world)["spentSeconds"]) == 15


def test_only_the_stage_on_a_device_asks_for_one() -> None:
    world = tuning()
    assert limits(job_of(world)).get("compile") == {}
    world.build()
    world.settle()
    assert limits(job_of(world))["tune"] == {"acme.com/npu": "1"}
    world.build()
    world.settle()
    assert limits(job_of(world)).get("pack") == {}


def test_the_next_job_does_not_begin_before_the_store_has_what_it_goes_on_with() -> None:
    world = tuning()
    world.finish(job_of(world), report={"reason": "Built"})
    world.settle()
    assert world.jobs("build") == []
    assert ready(world)["reason"] == "ArtifactMissing"
    assert "what the next one goes on with" in ready(world)["message"]
    world.now += timedelta(minutes=10)
    world.settle()
    assert suffix(job_of(world)) == "2"


def test_a_retry_goes_on_from_what_the_store_has() -> None:
    world = tuning()
    world.build()
    world.settle()
    fail(world, 70, CRASH, container="tune")
    assert (suffix(job_of(world)), steps_of(job_of(world))) == ("2-2", ["tune"])
    world.build()
    world.settle()
    fail(world, 75, {"reason": "Retrying", "message": "terminated"}, container="pack")
    world.held = dict.fromkeys(world.held, 1)
    world.now += timedelta(minutes=10)
    world.settle()
    assert (suffix(job_of(world)), steps_of(job_of(world))) == ("3-2", ["tune"]), "the store lost the second stage"


def test_a_build_of_an_earlier_life_is_gone_on_with() -> None:
    world = tuning()
    name = world.of("BuildArtifact")[0]["metadata"]["name"]
    world.remove("ModelDeployment", "hello")
    world.settle()
    world.remove("BuildArtifact", name)
    assert world.of("Job") == []
    world.held = {name: 2}
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    assert steps_of(job_of(world)) == ["pack"]


def test_a_job_that_somebody_deleted_is_not_taken_for_another() -> None:
    world = tuning()
    world.build()
    world.settle()
    world.remove("Job", job_of(world)["metadata"]["name"])
    world.settle()
    assert suffix(job_of(world)) == "1-2"


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("cut", range(5))
def test_an_operator_that_dies_between_two_writes_makes_each_job_once(stage: int, cut: int) -> None:
    world = tuning()
    for _ in range(stage - 1):
        world.build()
        world.settle()
    world.build()
    (made,) = world.of("BuildArtifact")
    world.carry_out(made, world.plan(made), writes=cut)
    for _ in range(4):
        world.settle()
        world.build()
    world.settle()
    assert ready(world)["status"] == "True"
    jobs = sorted(name.split("-", 2)[2] for kind_, name in world.made if kind_ == "Job" and name.startswith("b-"))
    assert jobs == ["1", "1-2", "1-3"]
    assert float(status_of(world)["spentSeconds"]) == 15


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        ([kind(free=0)], "no device of npu is free"),
        ([kind(vendor="Other")], "no AcceleratorResource that namespace ns may use is a Acme NPU X1"),
        ([kind(product="X2")], "no AcceleratorResource that namespace ns may use is a Acme NPU X1"),
        ([kind(allowedNamespaces=["theirs"])], "no AcceleratorResource that namespace ns may use"),
        ([kind(versions=("1.3.0",))], "no Acme NPU X1 has driver 1.4.0 : npu has driver 1.3.0 on 1 node"),
    ],
    ids=["taken", "vendor", "product", "namespace", "driver"],
)
def test_without_a_device_a_stage_waits_and_says_for_what(kinds: list[Object], reason: str) -> None:
    world = tuning(*kinds)
    world.build()
    world.settle()
    assert world.jobs("build") == []
    assert not stalled(world)
    assert ready(world)["reason"] == "Unschedulable"
    assert reason in ready(world)["message"]
    assert "startedAt" not in status_of(world)
    world.kinds = [kind(versions=("1.3.0", "1.4.0"))]
    world.settle()
    assert suffix(job_of(world)) == "1-2"


def found(*kinds: Object) -> Object:
    spec = BuildArtifactSpec.model_validate(tuning().of("BuildArtifact")[0]["spec"])
    devices = build_devices.find(spec, "ns", kinds).devices
    assert devices is not None
    return {**devices.limits, **devices.node_selector}


def test_the_kind_with_most_free_devices_is_taken() -> None:
    kinds = [kind("a", free=1, nodeSelector={"kind": "a"}), kind("b", free=3, nodeSelector={"kind": "b"})]
    assert found(*kinds)["kind"] == "b"
    assert found(*kinds[::-1])["kind"] == "b"


def test_where_nodes_can_come_the_build_waits_for_one() -> None:
    elastic = kind("b", free=0, nodeSelector={"kind": "b"}, provisioning={"mode": "Elastic"})
    assert found(kind("a", free=0), elastic)["kind"] == "b"
    assert found(kind("a", free=1, nodeSelector={"kind": "a"}), elastic)["kind"] == "a"


def test_a_stage_on_a_device_is_kept_to_nodes_that_the_result_is_for() -> None:
    world = tuning(kind(versions=("1.3.0", "1.4.0")))
    world.nodes = NODES
    assert excluded(job_of(world)) == []
    world.build()
    world.settle()
    fail(world, 67, {"reason": "DriverMismatch", "message": "it has 1.3.0"}, container="tune", node="n1")
    affinity = job_of(world)["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [(each["key"], each["operator"], each["values"]) for each in term["matchExpressions"]] == [
        (f"{names.NODE_LABEL_DRIVER}/npu", "In", ["1.4.0"]),
        (names.LABEL_HOSTNAME, "NotIn", ["n1"]),
    ]


def test_a_stage_without_a_device_leaves_nodes_with_devices_to_others() -> None:
    world = tuning()
    (term,) = job_of(world)["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    (expression,) = term["preference"]["matchExpressions"]
    assert expression == {"key": f"{names.NODE_LABEL_DRIVER}/npu", "operator": "DoesNotExist"}


def test_what_is_at_work_says_which_job_it_is() -> None:
    world = tuning()
    world.build()
    world.settle()
    job = job_of(world)
    world.finish(job)
    del job["status"]
    running = [{"name": "tune", "image": "x", "state": {"running": {}}}]
    pod = world.objects["Pod", f"{job['metadata']['name']}-pod"]
    pod["status"] = {"phase": "Pending", "initContainerStatuses": running}
    world.settle()
    assert status_of(world)["stage"] == "2/3 tune"


def test_versions_and_seconds_of_all_jobs_are_the_artifacts() -> None:
    world = tuning()
    (made,) = world.of("BuildArtifact")
    world.held[made["metadata"]["name"]] = 1
    world.finish(job_of(world), report={"reason": "Built", "versions": {"cc": "1.2"}}, container="compile")
    world.settle()
    world.build()
    world.settle()
    world.push(made["metadata"]["name"])
    world.finish(job_of(world), report={"reason": "Built", "versions": {"pack": "7"}}, container="pack")
    world.settle()
    assert status_of(world)["versions"] == {"cc": "1.2", "pack": "7"}
    assert set(status_of(world)["stageSeconds"]) == {"compile", "push", "pack"}
