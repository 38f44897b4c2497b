"""What ends and begins again around devices on a real kubelet: the kubelet, the plugin, the whole node. Pods keep what
they have, and what they have is theirs alone.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from installation import Installed
from rm_cli.kubectl import Kubectl, wait_until
from support_devices import Devices, allocations, start
from support_kubelet import SECONDS, NodeWatch, Witness, kill, reboot, restart_kubelet, say


@pytest.fixture(scope="module")
def witness(installed: Installed) -> Iterator[Witness]:
    found = Witness.start(installed)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def devices(installed: Installed, witness: Witness) -> Iterator[Devices]:
    """Four devices."""
    found = Devices(installed, witness, "restarted")
    found.roll_out(4)
    found.wait_for(4, 4)
    yield found
    found.remove()


@pytest.fixture
def here(module_namespace: Kubectl, devices: Devices) -> Iterator[Kubectl]:
    """The namespace, without pods at the beginning; at the end what they have is looked at."""
    yield module_namespace
    try:
        allocations(module_namespace, devices)
    finally:
        module_namespace.run("delete", "deployments,pods", "--all")
        wait_until("pods are left", lambda: not module_namespace.list("pods"), timeout=SECONDS)


def _containers(kubectl: Kubectl) -> set[str]:
    """Container IDs of all pods: another one shows that a container was made again."""
    # A pod that the kubelet refused has none.
    statuses = [pod["status"].get("containerStatuses") or [] for pod in kubectl.list("pods")]
    return {each["containerID"] for found in statuses for each in found if "containerID" in each}


def _allocatable(state: dict[str, Any], devices: Devices) -> int:
    return int((state["allocatable"] or {}).get(devices.resource, 0))


def _serving(devices: Devices, replicas: int) -> dict[str, Any]:
    """A Deployment whose pods have a device each."""
    labels = {"devices": devices.name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "serving"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": devices.pod_spec(1)},
        },
    }


def _wait_for_serving(kubectl: Kubectl) -> None:
    kubectl.run("rollout", "status", "deployment/serving", f"--timeout={SECONDS}s", timeout=SECONDS + 10)


def test_a_kubelet_that_restarts_is_told_of_the_devices_again(devices: Devices, here: Kubectl) -> None:
    start(here, devices.pod("one", 1), devices.pod("two", 2))
    before, containers = allocations(here, devices), _containers(here)
    known = devices.witness.changes()[-1]["kubelet"]
    restart_kubelet(devices.installed.cluster)
    devices.witness.wait_for_kubelet()

    def registered() -> list[dict[str, Any]]:
        since = [each for each in devices.witness.changes() if each["kubelet"] not in (None, known)]
        return [each for each in since if _allocatable(each, devices) == 4]

    (first, *_) = wait_until("the devices do not come back", registered, timeout=SECONDS)
    say(f"from the kubelet's socket to all devices: {first['at'] - first['kubelet']:.2f} s")
    devices.wait_for(4, 4)
    assert allocations(here, devices) == before
    start(here, devices.pod("after", 1))
    assert allocations(here, devices).items() > before.items()
    assert _containers(here) > containers, "what ran goes on"


def test_a_plugin_that_is_killed_comes_back_and_pods_go_on(devices: Devices, here: Kubectl) -> None:
    start(here, devices.pod("one", 1), devices.pod("two", 2))
    before, containers = allocations(here, devices), _containers(here)
    (plugin,) = devices.plugin_pods()
    (status,) = plugin["status"]["containerStatuses"]
    at = time.time()
    kill(devices.installed.cluster, status["containerID"])
    # Whatever the kubelet answers to the pods of the moment, their controller gets one that runs.
    here.apply(_serving(devices, 1))

    def restarted() -> bool:
        (found,) = devices.plugin_pods()[0]["status"]["containerStatuses"]
        return bool(found["restartCount"] == status["restartCount"] + 1 and found["ready"])

    wait_until("the plugin does not come back", restarted, timeout=SECONDS)
    wait_until(
        "the devices do not come back",
        lambda: _allocatable(devices.witness.changes()[-1], devices) == 4,
        timeout=SECONDS,
    )
    since = [each for each in devices.witness.changes() if each["at"] > at]
    say(f"from the plugin's end to all devices: {since[-1]['at'] - at:.2f} s")
    assert 0 in [_allocatable(each, devices) for each in since], "the kubelet noticed"
    devices.wait_for(4, 4)
    _wait_for_serving(here)
    assert allocations(here, devices).items() >= before.items()
    assert _containers(here) >= containers


def test_an_upgrade_of_the_plugin_takes_no_device_away_for_a_moment(devices: Devices, here: Kubectl) -> None:
    start(here, devices.pod("before", 2))
    before, containers = allocations(here, devices), _containers(here)
    at, started = time.time(), 0
    with NodeWatch(Kubectl(devices.installed.cluster), devices.witness.node).open() as watch:
        revision = devices.begin_to_roll_out(4, "2")
        while not devices.is_rolled_out(revision):
            start(here, devices.pod("meanwhile", 2))
            started += 1
            assert not set(allocations(here, devices)["meanwhile", "c0"]) & set(*before.values())
            here.delete("pod", "meanwhile")
    say(f"pods that were started during the upgrade: {started}")
    assert set(watch.counts(devices.resource)) == {(4, 4)}
    assert {_allocatable(each, devices) for each in devices.witness.changes() if each["at"] > at} <= {4}
    start(here, devices.pod("after", 2))
    assert allocations(here, devices).items() > before.items()
    assert _containers(here) > containers


def test_after_a_reboot_what_a_controller_owns_runs_again_and_nothing_is_given_twice(
    devices: Devices, here: Kubectl, installed: Installed
) -> None:
    if installed.cluster.driver != "node":
        return
    here.apply(_serving(devices, 3))
    _wait_for_serving(here)
    containers = _containers(here)
    at = time.time()
    reboot(installed.cluster)

    def back() -> bool:
        pods = [pod for pod in here.list("pods") if pod["status"]["phase"] == "Running"]
        statuses = [each for pod in pods for each in pod["status"].get("containerStatuses", [])]
        return (
            len(statuses) == 3
            and all(each["ready"] for each in statuses)
            and not {each["containerID"] for each in statuses} & containers
        )

    wait_until("the pods do not come back", back, timeout=SECONDS)
    say(f"from the reboot to all pods: {time.time() - at:.1f} s")
    failed = [pod["status"].get("reason") for pod in here.list("pods") if pod["status"]["phase"] == "Failed"]
    say(f"pods that the kubelet refused after the reboot: {failed}")
    assert set(failed) <= {"UnexpectedAdmissionError"}
    devices.witness.wait_for_kubelet()
    devices.wait_for(4, 4)
    for namespace in (installed.system.namespace, "kube-system"):
        kubectl = Kubectl(installed.cluster, namespace)
        kubectl.run(
            "wait", "--for=condition=Available", "deployments", "--all", f"--timeout={SECONDS}s", timeout=SECONDS + 10
        )
    installed.system.run(
        "wait", "--for=condition=Ready", "accel/simulated-npu", f"--timeout={SECONDS}s", timeout=SECONDS + 10
    )
