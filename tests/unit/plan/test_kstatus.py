"""What tools that wait for objects (kubectl wait, Flux, Helm, Argo) make of our statuses.

``kstatus`` here is the documented order of checks, written anew: deletion, then a generation that was not observed,
then Reconciling, then Stalled, then Ready.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from memory_cluster import NAMESPACE, Installation, at, is_ready
from rm_api import names
from rm_api.kinds import KINDS

Object = dict[str, Any]
FAILURE = (70, {"reason": "ToolchainFailed", "message": "internal error 7"})
AWAY = (69, {"reason": "SourceUnreachable", "message": "no route", "retryable": True})
WRONG = (64, {"reason": "SourceInvalid", "message": "no config.json"})


def kstatus(obj: Object) -> str:
    """InProgress, Current, Failed or Terminating."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    conditions = {entry["type"]: entry["status"] for entry in status.get("conditions") or ()}
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if status.get("observedGeneration") != metadata["generation"]:
        return "InProgress"
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    ready = conditions.get("Ready")
    return "Current" if ready is None or ready == "True" else "InProgress"


def _waiting_for(stage: str) -> Callable[[], Installation]:
    def there() -> Installation:
        cluster = at(stage).fork()
        cluster.surroundings.held = {stage}
        cluster.settle()
        return cluster

    return there


def _after(stage: str, act: Callable[[Installation], None]) -> Callable[[], Installation]:
    def there() -> Installation:
        cluster = at(stage).fork()
        act(cluster)
        cluster.settle()
        return cluster

    return there


def _nobody_has_looked() -> Installation:
    cluster = at("nothing").fork()
    cluster.deploy()
    return cluster


def _new_spec_not_seen() -> Installation:
    cluster = at("ready").fork()
    cluster.deploy(replicas=2)
    return cluster


def _deleted_and_held() -> Installation:
    cluster = at("ready").fork()
    key = ("ModelDeployment", NAMESPACE, "hello")
    cluster.api.update(key, lambda live: live["metadata"].update(finalizers=["example.com/theirs"]))
    cluster.api.remove(key)
    cluster.settle()
    return cluster


def _outcomes(role: str, *outcomes: tuple[int, Object]) -> Callable[[Installation], None]:
    return lambda cluster: cluster.surroundings.outcomes.update({role: list(outcomes)})


def _no_device() -> Installation:
    cluster = at("pods").fork()
    cluster.surroundings.devices = 0
    cluster.settle()
    return cluster


def _no_device_for_long() -> Installation:
    cluster = _no_device()
    cluster.api.now += timedelta(hours=1)
    cluster.replica.wake_due()
    cluster.settle()
    return cluster


def _accelerator_deleted(cluster: Installation) -> None:
    cluster.api.remove(("AcceleratorResource", "", "npu"))


def _no_devices_anywhere(cluster: Installation) -> None:
    cluster.api.update(("Node", "", "node"), lambda live: live.update(status={}))


def _wrong_profile(cluster: Installation) -> None:
    cluster.api.update(("BuildProfile", "", "acme"), lambda live: live["spec"]["steps"][0].update(name="fetch"))


def _held_cut_over(cluster: Installation) -> None:
    cluster.surroundings.held = {"starts"}
    cluster.engine_image("acme/serve:2")


def _held_source_away() -> Installation:
    cluster = at("resolve").fork()
    cluster.surroundings.outcomes[names.ROLE_RESOLVE] = [AWAY]
    while not cluster.surroundings.ran:
        cluster.replica.work()
        cluster.surroundings.move()
    cluster.replica.work()
    return cluster


def _theirs(cluster: Installation) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken", "namespace": NAMESPACE}}
    cluster.api.create({**service, "spec": {"ports": []}})
    cluster.deploy("taken")


M, A, P, B = "ModelDeployment", "AcceleratorResource", "BuildProfile", "BuildArtifact"
TABLE: tuple[tuple[str, Callable[[], Installation], str, str], ...] = (
    ("nobody has looked at it", _nobody_has_looked, M, "InProgress"),
    ("the model is being resolved", _waiting_for("resolve"), M, "InProgress"),
    ("the source is away for a while", _held_source_away, M, "InProgress"),
    ("it is being compiled", _waiting_for("build"), M, "InProgress"),
    ("no pods yet", _waiting_for("pods"), M, "InProgress"),
    ("pods are starting", _waiting_for("starts"), M, "InProgress"),
    ("no device is free", _no_device, M, "InProgress"),
    ("no device is free for an hour", _no_device_for_long, M, "Failed"),
    ("it serves", _after("ready", lambda cluster: None), M, "Current"),
    ("scaled to zero", _after("ready", lambda cluster: cluster.deploy(replicas=0)), M, "Current"),
    # Who waits for a deployment that somebody suspended waits until it is resumed.
    ("suspended", _after("ready", lambda cluster: cluster.deploy(suspend=True)), M, "InProgress"),
    ("a new spec that was not seen", _new_spec_not_seen, M, "InProgress"),
    ("a cut-over is under way", _after("ready", _held_cut_over), M, "InProgress"),
    ("the source is wrong", _after("resolve", _outcomes(names.ROLE_RESOLVE, WRONG)), M, "Failed"),
    ("the toolchain fails each time", _after("build", _outcomes(names.ROLE_BUILD, FAILURE, FAILURE)), M, "Failed"),
    ("somebody has the Service's name", _after("ready", _theirs), f"{M} taken", "Failed"),
    ("it is deleted, and somebody holds it", _deleted_and_held, M, "Terminating"),
    ("its compile Job runs", _waiting_for("build"), B, "InProgress"),
    ("it is built", _after("ready", lambda cluster: None), B, "Current"),
    ("it cannot be built", _after("build", _outcomes(names.ROLE_BUILD, FAILURE, FAILURE)), B, "Failed"),
    ("a node has devices of it", _after("nothing", lambda cluster: None), A, "Current"),
    ("no node has devices of it", _after("nothing", _no_devices_anywhere), A, "InProgress"),
    ("it is deleted and in use", _after("ready", _accelerator_deleted), A, "Terminating"),
    ("it can be used", _after("nothing", lambda cluster: None), P, "Current"),
    ("it cannot be used as written", _after("nothing", _wrong_profile), P, "Failed"),
)


@pytest.mark.parametrize(("there", "which", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_who_waits_is_told_the_truth(there: Callable[[], Installation], which: str, expected: str) -> None:
    cluster = there()
    kind, _, name = which.partition(" ")
    (obj,) = [each for each in cluster.api.of(kind) if kind != M or each["metadata"]["name"] == (name or "hello")]
    assert kstatus(obj) == expected
    if kind == M and expected == "Current":
        assert sum(map(is_ready, cluster.api.of("Pod"))) == obj["spec"]["replicas"]


def test_every_answer_is_expected_somewhere() -> None:
    assert {row[3] for row in TABLE} == {"InProgress", "Current", "Failed", "Terminating"}
    assert {row[2].partition(" ")[0] for row in TABLE} == {info.kind for info in KINDS}
