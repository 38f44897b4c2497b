"""Simulated devices on a real kubelet, through the DaemonSet that the operator makes: what pods get, and what node and
pods show when devices change. After each test no device is in two containers, by every record that there is.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from installation import Installed
from rm_cli.kubectl import Kubectl, wait_until
from support_devices import Devices, allocations, start
from support_kubelet import SECONDS, Witness

MANY = 256
# What the kernel's devices of major 1 do: what four bytes read and written give, by minor.
BEHAVIOUR = {3: ("", 4), 5: ("00000000", 4), 7: ("00000000", "ENOSPC"), 8: (None, 4), 9: (None, 4)}
USE_DEVICES = """
import errno, json, os
found = {}
for name in os.listdir("/dev/rma-sim"):
    path = f"/dev/rma-sim/{name}"
    handle = os.open(path, os.O_RDWR)
    read = os.read(handle, 4).hex()
    try:
        wrote = os.write(handle, b"four")
    except OSError as error:
        wrote = errno.errorcode[error.errno]
    device = os.stat(path)
    found[name] = [os.getuid(), device.st_uid, os.minor(device.st_rdev), read, wrote]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def witness(installed: Installed) -> Iterator[Witness]:
    found = Witness.start(installed)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def few(installed: Installed, witness: Witness) -> Iterator[Devices]:
    """Four devices."""
    devices = Devices(installed, witness, "few")
    devices.roll_out(4)
    devices.wait_for(4, 4)
    yield devices
    devices.remove()


@pytest.fixture(scope="module")
def many(installed: Installed, witness: Witness) -> Iterator[Devices]:
    """As many devices as the largest nodes have."""
    devices = Devices(installed, witness, "many")
    devices.roll_out(MANY)
    devices.wait_for(MANY, MANY)
    yield devices
    devices.remove()


@pytest.fixture
def here(module_namespace: Kubectl, few: Devices) -> Iterator[Kubectl]:
    """The namespace, without pods at the beginning; at the end what they have is looked at."""
    yield module_namespace
    try:
        allocations(module_namespace, few)
    finally:
        module_namespace.run("delete", "pods", "--all")


@pytest.fixture
def there(module_namespace: Kubectl, many: Devices) -> Iterator[Kubectl]:
    """As `here`, for the many."""
    yield module_namespace
    try:
        allocations(module_namespace, many)
    finally:
        module_namespace.run("delete", "pods", "--all")


def test_a_pod_without_rights_reads_and_writes_its_devices_and_finds_no_others(few: Devices, here: Kubectl) -> None:
    ours = few.installed.cluster.driver == "node"
    if ours:
        # Most drivers give their nodes to root only. A pod gets one of its own, if the container runtime is told to.
        few.exec("sh", "-c", f"chmod 600 {few.root}/dev/*")
    start(here, few.pod("one", 1), few.pod("three", 3))
    driver = {device["uuid"]: device for device in few.status()}
    for (pod, container), ids in allocations(here, few).items():
        found = json.loads(here.run("exec", pod, "-c", container, "--", "python3", "-c", USE_DEVICES))
        assert set(found) == {driver[each]["node"] for each in ids}
        for each in ids:
            user, owner, minor, read, wrote = found[driver[each]["node"]]
            reads, writes = BEHAVIOUR[minor]
            assert (user, owner) == (65532, 65532 if ours else 0)
            assert minor == driver[each]["minor"]
            assert (read, wrote) == (reads or read, writes)


def _health(kubectl: Kubectl, pod: str) -> dict[str, str]:
    """Device → health, as the pod's status tells it."""
    (container,) = kubectl.get("pod", pod)["status"]["containerStatuses"]  # type: ignore[index]
    return {
        each["resourceID"]: each["health"]
        for resource in container.get("allocatedResourcesStatus", [])
        for each in resource["resources"]
    }


def _wait_for_health(kubectl: Kubectl, pod: str, health: dict[str, str]) -> None:
    wait_until(f"{pod}'s status does not say {health}", lambda: _health(kubectl, pod) == health, timeout=SECONDS)


def _unschedulable(kubectl: Kubectl, pod: str) -> str:
    for entry in kubectl.get("pod", pod)["status"].get("conditions", []):  # type: ignore[index]
        if entry["type"] == "PodScheduled" and entry["status"] == "False":
            return str(entry["message"])
    return ""


def test_an_unhealthy_device_is_told_to_its_pod_and_given_to_nobody_until_it_recovers(
    few: Devices, here: Kubectl
) -> None:
    start(here, few.pod("holder", 1))
    ((device,),) = allocations(here, few).values()
    (index,) = [each["index"] for each in few.status() if each["uuid"] == device]
    _wait_for_health(here, "holder", {device: "Healthy"})
    few.set(f"--device={index}", "--health=failed")
    few.wait_for(4, 3)
    _wait_for_health(here, "holder", {device: "Unhealthy"})
    start(here, few.pod("beside", 2))
    here.apply(few.pod("waiting", 1))
    wait_until("it is given a device", lambda: few.resource in _unschedulable(here, "waiting"), timeout=SECONDS)
    few.set(f"--device={index}", "--health=ok")
    few.wait_for(4, 4)
    _wait_for_health(here, "holder", {device: "Healthy"})
    here.run("wait", "--for=condition=Ready", "pod/waiting", f"--timeout={SECONDS}s", timeout=SECONDS + 10)
    pods: list[dict[str, Any]] = here.list("pods")
    assert all(each["status"]["containerStatuses"][0]["restartCount"] == 0 for each in pods), "none is disturbed"


def test_devices_are_added_and_taken_away_while_pods_run(few: Devices, here: Kubectl) -> None:
    start(here, few.pod("before", 4))
    few.exec("rma-sim", "init", f"--root={few.root}", "--devices=5")
    few.wait_for(5, 5)
    start(here, few.pod("added", 1))
    (added,) = allocations(here, few)["added", "c0"]
    here.delete("pod", "added")
    few.inject("remove", added)
    # Gone is not forgotten: a card that comes back is the same one.
    few.wait_for(5, 4)
    few.inject("add", added)
    few.wait_for(5, 5)
    few.inject("remove", added)
    few.wait_for(5, 4)
    with_less_memory = Devices(few.installed, few.witness, few.name, {"forgetAfterSeconds": 0})
    with_less_memory.roll_out(4)
    few.wait_for(4, 4)


def test_one_pod_gets_most_of_many_devices(many: Devices, there: Kubectl) -> None:
    start(there, many.pod("most", 200), many.pod("rest", 50, 6))
    assert len(set().union(*allocations(there, many).values())) == MANY


def test_many_pods_at_once_share_them_out_and_hand_them_on(many: Devices, there: Kubectl) -> None:
    shapes = [(24,), (14, 10), (6, 8, 10), (12, 12)]
    first = {f"first-{number}": shapes[number % 4] for number in range(10)}
    start(there, *(many.pod(name, *counts) for name, counts in first.items()), many.pod("rest", 16))
    before = allocations(there, many)
    assert len(set().union(*before.values())) == MANY
    # Nothing is free: each of these waits for what one that goes gives back.
    going = list(first)[::2]
    there.run("delete", "--wait=false", *(f"pod/{name}" for name in going))
    second = {name.replace("first", "second"): first[name] for name in going}
    start(there, *(many.pod(name, *counts) for name, counts in second.items()))
    wait_until(
        "pods that go are there", lambda: not {p["metadata"]["name"] for p in there.list("pods")} & {*going}, timeout=60
    )
    after = allocations(there, many)
    assert len(set().union(*after.values())) == MANY
    assert {holder: ids for holder, ids in before.items() if holder in after} == {
        holder: ids for holder, ids in after.items() if holder in before
    }, "what stays keeps its devices"
