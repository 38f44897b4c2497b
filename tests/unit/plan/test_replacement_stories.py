"""Devices fall ill under a whole operator: the real controllers, stores and ledger, over a cluster in memory.

The kubelet's own word is what it goes by here: ``allocatedResourcesStatus`` in the status of the pods.
"""

from datetime import timedelta

import pytest
from memory_cluster import NAMESPACE, Installation, Object, at, is_ready
from rm_api import names
from rm_operator.plan.rejected import EVIDENCE_SECONDS
from rm_operator.plan.replacement import ANNOTATION_SINCE


def pods(cluster: Installation, name: str = "hello") -> dict[str, int | None]:
    """Serving pods of a deployment, and the numbers of their devices."""
    return {
        pod["metadata"]["name"]: cluster.surroundings.allocated.get(pod["metadata"]["uid"])
        for pod in cluster.api.of("Pod")
        if pod["metadata"]["labels"].get(names.LABEL_DEPLOYMENT) == name
        and names.LABEL_VARIANT in pod["metadata"]["labels"]
        and pod.get("status", {}).get("phase") != "Failed"
    }


def keeps(cluster: Installation, least: int, name: str = "hello") -> None:
    """From now on at least so many pods are reached, after every move of anybody."""

    def check() -> None:
        ready = {pod["metadata"]["name"] for pod in cluster.api.of("Pod") if is_ready(pod)}
        assert len(cluster.surroundings.routed(name) & ready) >= least

    cluster.watch = check


def templates(cluster: Installation) -> list[Object]:
    return [each["data"] for each in cluster.api.of("ControllerRevision")]


def test_a_pod_moves_to_another_device_without_a_dip() -> None:
    cluster = at("ready", 2).fork()
    before, remembered = pods(cluster), templates(cluster)
    keeps(cluster, 2)
    cluster.surroundings.devices_are({0})
    began = cluster.api.now
    cluster.settle()
    after = pods(cluster)
    assert sorted(after.values()) == [1, 2]
    assert [before[name] for name in before.keys() - after.keys()] == [0]
    assert cluster.api.now - began >= timedelta(seconds=30), "a kubelet does not say whether a device may recover"
    assert cluster.reason() == "Ready"
    assert cluster.reason(condition="DevicesHealthy") == "AllHealthy"
    assert ("Warning", "DeviceUnhealthy") in cluster.replica.events.said
    assert templates(cluster) == remembered


def test_a_device_that_recovers_in_time_moves_nobody() -> None:
    cluster = at("ready", 2).fork()
    before = pods(cluster)
    cluster.surroundings.devices_are({0})
    cluster.surroundings.move()
    cluster.replica.work()
    marked = [pod for pod in cluster.api.of("Pod") if ANNOTATION_SINCE in (pod["metadata"].get("annotations") or {})]
    assert [before[pod["metadata"]["name"]] for pod in marked] == [0]
    cluster.surroundings.devices_are(())
    cluster.settle()
    assert pods(cluster) == before
    assert not any(ANNOTATION_SINCE in (pod["metadata"].get("annotations") or {}) for pod in cluster.api.of("Pod"))
    assert {each["spec"]["replicas"] for each in cluster.api.of("Deployment")} == {2}


def test_one_free_device_serves_two_deployments_one_after_the_other() -> None:
    """Each holds a sick device; the one that is free is enough for one, and what that one leaves behind for none."""
    cluster = at("ready", 1).fork()
    cluster.deploy("again")
    cluster.settle()
    cluster.surroundings.devices_are((), number=3)
    cluster.settle()
    assert sorted([*pods(cluster).values(), *pods(cluster, "again").values()]) == [0, 1]
    keeps(cluster, 1)
    cluster.surroundings.devices_are({0, 1})
    cluster.settle()
    devices = {name: sorted(pods(cluster, name).values()) for name in ("hello", "again")}
    assert sorted(devices.values()) in ([[0], [2]], [[1], [2]])
    (stays,) = [name for name, held in devices.items() if held != [2]]
    assert cluster.reason(stays) == "Ready"
    assert cluster.reason(stays, "DevicesHealthy") == "DeviceUnhealthy"
    keeps(cluster, 1, stays)
    cluster.surroundings.devices_are({0, 1}, number=4)
    cluster.settle()
    assert list(pods(cluster, stays).values()) == [3]


@pytest.mark.parametrize("what", ["scaled", "suspended", "cut over"])
def test_whatever_is_wanted_meanwhile_it_ends_on_healthy_devices(what: str) -> None:
    cluster = at("ready", 2).fork()
    cluster.surroundings.held = {"starts"}
    cluster.surroundings.devices_are({0})
    cluster.settle()
    assert len(pods(cluster)) == 3, "the successor is starting"
    cluster.surroundings.held = set()
    if what == "scaled":
        keeps(cluster, 2)
        cluster.deploy(replicas=3)
    elif what == "suspended":
        cluster.deploy(replicas=2, suspend=True)
        cluster.settle()
        assert pods(cluster) == {}
        cluster.deploy(replicas=2)
    else:
        keeps(cluster, 2)
        cluster.engine_image("acme/serve:2")
    cluster.settle()
    assert cluster.reason() == "Ready"
    assert len(pods(cluster)) == (3 if what == "scaled" else 2)
    assert 0 not in pods(cluster).values()
    assert len(cluster.api.of("Deployment")) == 1


def refused(cluster: Installation) -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in cluster.api.of("Pod")
        if (pod.get("status") or {}).get("reason") == "UnexpectedAdmissionError"
    ]


def available(cluster: Installation) -> str:
    conditions = cluster.api.objects["ModelDeployment", NAMESPACE, "hello"]["status"]["conditions"]
    return str(next(entry["message"] for entry in conditions if entry["type"] == "Available"))


def test_pods_that_the_kubelet_refuses_again_and_again_do_not_pile_up() -> None:
    cluster = at("ready", 1).fork()
    failures = cluster.replica.metrics.admission_failures.labels("acme.com/npu", "UnexpectedAdmissionError")
    counted = failures._value.get()
    keeps(cluster, 1)
    cluster.surroundings.refusing = 150
    cluster.deploy(replicas=2)
    most = 0
    for _ in range(150):
        cluster.replica.work()
        cluster.surroundings.move()
        most = max(most, len(refused(cluster)))
        cluster.api.now += timedelta(seconds=1)
        cluster.replica.wake_due()
    assert most < 40
    assert "the kubelet of node node refuses pods again and again: UnexpectedAdmissionError" in available(cluster)
    events = [reason for _, reason in cluster.replica.events.said if reason == "PodsRefused"]
    assert 1 <= len(events) < 15, "not one for each pod"
    cluster.settle()
    assert cluster.reason() == "Ready"
    assert len(refused(cluster)) == 2, "evidence"
    cluster.api.now += EVIDENCE_SECONDS
    cluster.replica.wake_due()
    cluster.settle()
    assert refused(cluster) == []
    assert failures._value.get() - counted == 150, "each once"
    assert available(cluster) == "2 of 2 pods ready on npu"
