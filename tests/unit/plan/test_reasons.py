"""The vocabularies are closed, and every word of them is said by some plan: what nothing can say does not exist."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chain import FACTS, NPU, PROFILE, SETTINGS, World
from endpoints import endpoint_plan, endpoint_view
from rm_api.conditions import ConditionType, Reason
from rm_operator.controllers.refusals import refusal_of
from rm_operator.kube.errors import Invalid
from rm_operator.plan import accelerator, profile
from rm_operator.plan.build_queue import Line
from rm_operator.plan.device_class import ClassView
from rm_operator.plan.in_use import NOBODY, some
from rm_operator.plan.refusal import stated
from rolling import image, roll, served

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# An engine that was asked to stop reports this, and ends with 0: a word of reports, not of conditions.
REPORTED_ONLY = {Reason.DELETING}


def deployed(stage: str = "resolve", **spec: Any) -> World:
    """A deployment whose next thing is ``stage``: to be resolved, built, or started."""
    world = World()
    world.deploy(**spec)
    world.settle()
    if stage in ("build", "start"):
        world.resolve_model()
        world.settle()
    if stage == "start":
        world.build()
        world.settle()
    return world


def failed(stage: str, code: int, reason: str | None, **report: Any) -> World:
    """The Job of a stage ended with ``code``; without a reason it left no report."""
    world = deployed(stage)
    (job,) = world.jobs(stage)
    if reason is None:
        world.finish(job, code, message="Segmentation fault")
    else:
        world.finish(job, code, report={"reason": reason, "message": "because", **report})
    world.settle()
    return world


def pod_of_a_build(**status: Any) -> World:
    """The pod of a build is in a state."""
    world = deployed("build")
    (job,) = world.jobs("build")
    world.finish(job)
    del job["status"]
    world.objects["Pod", f"{job['metadata']['name']}-pod"]["status"] = {"phase": "Pending", **status}
    world.settle()
    return world


def engine_ended(code: int) -> World:
    """The engine of a serving pod ended with ``code``."""
    world = deployed("start")
    ended = {"exitCode": code, "message": '{"reason":"x","message":"because"}'}
    world.start_pods(ready=False, containerStatuses=[{"name": "engine", "state": {"terminated": ended}}])
    world.settle()
    return world


def out_of_memory() -> World:
    """Twice, on two nodes."""
    world = failed("build", 75, "OutOfMemory")
    world.finish(world.jobs("build")[0], 75, report={"reason": "OutOfMemory"})
    world.settle()
    return world


def timed_out_build() -> World:
    world = deployed("build")
    (job,) = world.jobs("build")
    when = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", **when}]}
    world.settle()
    return world


def adopted() -> World:
    first = World()
    first.serve()
    world = World()
    world.store = dict(first.store)
    world.serve()
    return world


def queued() -> World:
    world = deployed("resolve")
    world.lines = [Line("in namespace ns", 1, building=1, before=0)]
    world.resolve_model()
    world.settle()
    return world


def store_down() -> World:
    world = deployed("resolve")
    world.store_up = False
    world.resolve_model()
    world.settle()
    return world


def nothing_pushed() -> World:
    world = deployed("build")
    world.finish(world.jobs("build")[0], report={"reason": "Built"})
    world.settle()
    return world


def code_of_its_own() -> World:
    world = deployed("resolve")
    world.finish(world.jobs("resolve")[0], report={"facts": {**FACTS, "remoteCode": True}})
    world.settle()
    return world


def too_slow() -> World:
    world = World()
    performance = {"memoryGiB": 16, "bandwidthGBps": 1, "tflops": [{"dtype": "fp16", "value": "0.001"}]}
    spec = NPU.model_validate({**NPU.to_wire(), "performance": performance})
    world.accelerators = [replace(world.accelerators[0], spec=spec)]
    world.deploy(slo={"ttftMs": 1})
    world.settle()
    world.resolve_model()
    world.settle()
    return world


def without_accelerators() -> World:
    world = World()
    world.accelerators = []
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    return world


def full_cluster(*, spare: int, **spec: Any) -> World:
    """Another variant is wanted, or the first one, and the devices do not suffice."""
    if not spare:
        world = deployed("start")
        world.run_pods(devices=0)
        world.settle()
        return world
    world = served(**spec)
    image(world, "2")
    roll(world, devices=spare)
    return world


def late() -> World:
    world = full_cluster(spare=1)
    world.now += timedelta(hours=1)
    world.settle()
    return world


def rolling_out() -> World:
    world = served()
    image(world, "2")
    world.settle()
    return world


def suspended() -> World:
    return deployed(suspend=True)


def taken() -> World:
    world = World()
    world.add({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello", "namespace": "ns"}, "spec": {}})
    world.deploy()
    world.settle()
    return world


def an_accelerator(*, devices: int = 0, sick: int = 0, users: int = 0, crashing: bool = False) -> list[Object]:
    """Conditions of an AcceleratorResource."""
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if users else {}
    obj = {"metadata": {"name": "npu", "uid": "u", **going}, "spec": NPU.to_wire()}
    amount, healthy = {"acme.com/npu": str(devices)}, {"acme.com/npu": str(devices - sick)}
    node = {"metadata": {"name": "n"}, "status": {"capacity": amount, "allocatable": healthy}}
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    pod = {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"state": state}]}}
    made = accelerator.plan(
        accelerator.AcceleratorSnapshot(
            accelerator=obj, nodes=[node], requesting=[], plugin_pods=[pod] if crashing else [], children=[],
            settings=SETTINGS, users=some(["ns/d"], users) if users else NOBODY,
        ),
        NOW,
    )  # fmt: skip
    assert made.status is not None
    return list(made.status["conditions"])


def in_conflict(*, older: bool = False, stranger: bool = False) -> list[Object]:
    """Conditions of an AcceleratorResource whose devices somebody else claims."""
    spec = {**NPU.to_wire(), "devicePlugin": {"image": "acme/plugin:1"}} if stranger else NPU.to_wire()
    node = {"metadata": {"name": "n"}, "status": {"allocatable": {"acme.com/npu": "1"}}}
    other = {"metadata": {"name": "a", "uid": "v"}, "spec": NPU.to_wire()}
    obj = {"apiVersion": "v", "kind": "k", "metadata": {"name": "npu", "uid": "u"}, "spec": spec}
    snapshot = accelerator.AcceleratorSnapshot(
        accelerator=obj, nodes=[node], requesting=[], plugin_pods=[], children=[], settings=SETTINGS,
        others=[other] if older else [],
    )  # fmt: skip
    made = accelerator.plan(snapshot, NOW)
    assert made.status is not None
    return list(made.status["conditions"])


def accelerator_by_class() -> list[Object]:
    """Conditions of one whose DeviceClass selects in a way that cannot be counted."""
    spec = {**NPU.to_wire(), "resourceName": None, "deviceClassName": "npu"}
    made = accelerator.plan(
        accelerator.AcceleratorSnapshot(
            accelerator={"metadata": {"name": "npu", "uid": "u"}, "spec": spec}, nodes=[], requesting=[],
            plugin_pods=[], children=[], settings=SETTINGS,
            by_class=ClassView(device_class={"spec": {"selectors": [{"cel": {"expression": "1 == 1"}}]}}),
        ),
        NOW,
    )  # fmt: skip
    assert made.status is not None
    return list(made.status["conditions"])


def a_profile(**step: Any) -> list[Object]:
    """Conditions of a BuildProfile."""
    spec = PROFILE.to_wire()
    spec["steps"] = [{**spec["steps"][0], **step}]
    made = profile.plan(profile.ProfileSnapshot({"metadata": {"name": "p"}, "spec": spec}, 0, SETTINGS), NOW)
    assert made.status is not None
    return list(made.status["conditions"])


def probed() -> list[Object]:
    """Conditions of a BuildProfile whose toolchain is not known yet."""
    spec = {**PROFILE.to_wire(), "versionProbe": {"image": "acme/cc:1", "command": ["cc", "--version"]}}
    obj = {"apiVersion": "v", "kind": "BuildProfile", "metadata": {"name": "p", "uid": "u"}, "spec": spec}
    made = profile.plan(profile.ProfileSnapshot(obj, 0, SETTINGS), NOW)
    assert made.status is not None
    return list(made.status["conditions"])


def refused(error: Exception) -> list[Object]:
    """Conditions of an object whose plan could not be carried out."""
    refusal = refusal_of(error, times=1)
    assert refusal is not None
    return list(stated({"metadata": {"name": "x"}}, {}, refusal, NOW)[0]["conditions"])


def stale() -> World:
    """The nodes' driver has been updated under an artifact."""
    world = served()
    versions = [{"driver": "9.9.9", "nodes": 1}]
    world.kinds = [{"metadata": {"name": "npu", "uid": "u"}, "spec": NPU.to_wire(), "status": {"versions": versions}}]
    world.settle()
    return world


KEY_REFUSED = {"message": '{"reason":"CredentialsRefused","message":"it refuses the key"}'}


def on_an_endpoint() -> World:
    """A deployment of a model that only an endpoint has."""
    world = World()
    world.accelerators = [endpoint_view()]
    world.deploy()
    world.settle()
    return world


def an_endpoint(status: Object) -> list[Object]:
    """An AcceleratorResource of type REMOTE, and the pod of its proxy."""
    pod = {"metadata": {"name": "remote-vendor-1", "namespace": "system"}, "status": status}
    return endpoint_plan([pod]).status["conditions"]


SAID_BY: dict[Reason, Callable[[], World | list[Object]]] = {
    # progress
    Reason.RESOLVING: deployed,
    Reason.PROBING: probed,
    Reason.WAITING_FOR_MODEL: deployed,
    Reason.WAITING_FOR_PLACEMENT: deployed,
    Reason.WAITING_FOR_ARTIFACT: deployed,
    Reason.BUILDING: lambda: deployed("build"),
    Reason.STARTING: lambda: deployed("start"),
    Reason.RETRYING: lambda: failed("build", 75, "Retrying", retryable=True),
    Reason.SUSPENDED: suspended,
    Reason.QUEUED: queued,
    Reason.ROLLING_OUT: rolling_out,
    # success
    Reason.RESOLVED: served,
    Reason.PLACED: served,
    Reason.BUILT: served,
    Reason.ADOPTED: adopted,
    Reason.SERVING: served,
    Reason.SERVICE_READY: served,
    Reason.READY: served,
    Reason.ACCEPTED: a_profile,
    Reason.ADVERTISED: lambda: an_accelerator(devices=1),
    Reason.ALL_HEALTHY: lambda: an_accelerator(devices=1),
    Reason.NOT_COUNTED: accelerator_by_class,
    # the model
    Reason.UNKNOWN_SOURCE: lambda: failed("resolve", 64, "UnknownSource"),
    Reason.SOURCE_INVALID: lambda: failed("resolve", 64, "SourceInvalid"),
    Reason.SOURCE_UNREACHABLE: lambda: failed("resolve", 69, "SourceUnreachable"),
    Reason.RESOLVE_FAILED: lambda: failed("resolve", 0, "Resolved", facts={"layers": 1}),
    # placement
    Reason.NO_ACCELERATOR: without_accelerators,
    Reason.NO_ELIGIBLE_ACCELERATOR: lambda: deployed("build", accelerators={"types": ["GPU"]}),
    Reason.SLO_UNREACHABLE: too_slow,
    Reason.REMOTE_CODE_NOT_ALLOWED: code_of_its_own,
    Reason.PROFILE_NOT_FOUND: lambda: deployed("build", buildProfile="missing"),
    # build
    Reason.UNSUPPORTED_MODEL: lambda: failed("build", 64, "UnsupportedModel"),
    Reason.TOOLCHAIN_FAILED: lambda: failed("build", 64, "ToolchainFailed"),
    Reason.BUILD_TIMED_OUT: timed_out_build,
    Reason.OUT_OF_MEMORY: out_of_memory,
    Reason.IMAGE_PULL_FAILED: lambda: pod_of_a_build(
        initContainerStatuses=[{"name": "compile", "state": {"waiting": {"reason": "ErrImagePull"}}}]
    ),
    Reason.STORE_UNREACHABLE: store_down,
    Reason.REPORT_MISSING: lambda: failed("build", 64, None),
    Reason.UNSCHEDULABLE: lambda: pod_of_a_build(conditions=[{"type": "PodScheduled", "status": "False"}]),
    Reason.ARTIFACT_MISSING: nothing_pushed,
    Reason.NO_MATCHING_NODE: stale,
    # serving
    Reason.NO_DEVICE: lambda: full_cluster(spare=0),
    Reason.NO_SPARE_DEVICE: lambda: full_cluster(spare=1),
    Reason.ROLLOUT_TIMED_OUT: late,
    Reason.DEVICE_MISSING: lambda: engine_ended(66),
    Reason.DRIVER_MISMATCH: lambda: engine_ended(67),
    Reason.ARTIFACT_MISMATCH: lambda: engine_ended(65),
    Reason.ENGINE_FAILED: lambda: engine_ended(1),
    Reason.NAME_TAKEN: taken,
    # specs, and what holds them
    Reason.INVALID_SPEC: lambda: a_profile(name="push"),
    Reason.IN_USE: lambda: an_accelerator(devices=1, users=1),
    Reason.PLUGIN_NOT_READY: lambda: an_accelerator(crashing=True),
    Reason.NO_DEVICES: an_accelerator,
    Reason.DEVICE_UNHEALTHY: lambda: an_accelerator(devices=2, sick=1),
    Reason.RESOURCE_NAME_CONFLICT: lambda: in_conflict(stranger=True),
    Reason.NODE_CONFLICT: lambda: in_conflict(older=True),
    # endpoints
    Reason.NOT_NEEDED: on_an_endpoint,
    Reason.PROXY_NOT_READY: lambda: an_endpoint({"containerStatuses": []}),
    Reason.CREDENTIALS_REFUSED: lambda: an_endpoint({"containerStatuses": [{"state": {"terminated": KEY_REFUSED}}]}),
    Reason.REFUSED: lambda: refused(Invalid(422, "Invalid", "spec.replicas: must be less than 5")),
    Reason.INTERNAL_ERROR: lambda: refused(ZeroDivisionError("division by zero")),
}


def conditions(found: World | list[Object]) -> Iterable[Object]:
    """All conditions that are stated."""
    if isinstance(found, World):
        statuses = [obj.get("status") or {} for kind in ("ModelDeployment", "BuildArtifact") for obj in found.of(kind)]
        return [entry for status in statuses for entry in status.get("conditions") or []]
    return found


@pytest.mark.parametrize("reason", SAID_BY, ids=str)
def test_it_is_said(reason: Reason) -> None:
    said = list(conditions(SAID_BY[reason]()))
    assert reason in {entry["reason"] for entry in said}
    assert {entry["reason"] for entry in said} <= set(Reason) - REPORTED_ONLY
    assert {entry["type"] for entry in said} <= set(ConditionType)


def test_every_reason_has_its_scenario() -> None:
    assert set(SAID_BY) | REPORTED_ONLY == set(Reason)


def test_every_type_is_stated() -> None:
    accelerator_ = an_accelerator(devices=1)
    found = [served(), failed("build", 64, "UnsupportedModel"), deployed(), accelerator_, a_profile(), stale()]
    found.append(an_endpoint({}))
    stated_types = {entry["type"] for each in found for entry in conditions(each)}
    assert stated_types == set(ConditionType)
