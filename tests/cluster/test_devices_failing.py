"""A device fails under a model that serves, on a real Kubernetes: who asks does not notice, and who looks sees it on
node, accelerator and deployment.

The tests build on one another, in order: the device that fails in the first is well again in the second.
"""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from installation import Installed
from rm_cli.kubectl import Kubectl, condition, wait_until
from scripted_model import SAMPLES, expected_text, write_model
from support import NPU, asking, deploy, serving_pods, wait_for

COMPILE_SECONDS = 300
REPLACEMENT_SECONDS = 180
SECONDS = 60
KIND = "simulated-npu"
MESSAGES = [{"role": "user", "content": SAMPLES[0].prompt}]


@pytest.fixture(scope="module")
def text() -> str:
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        return expected_text(Path(directory), MESSAGES)


@pytest.fixture(scope="module")
def steady(module_namespace: Kubectl, model_source: str) -> Kubectl:
    """The namespace with a deployment `steady` of one pod."""
    deploy(module_namespace, "steady", model_source, **NPU)
    wait_for(module_namespace, "steady", "Ready", timeout=COMPILE_SECONDS)
    return module_namespace


@pytest.fixture(scope="module")
def failing(steady: Kubectl, installed: Installed) -> tuple[str, str]:
    """The pod that serves at first, and the index of its device."""
    (pod,) = serving_pods(steady, "steady")
    return pod["metadata"]["name"], _device(steady, pod["metadata"]["name"], "DEVICE_INDEXES")


def _device(kubectl: Kubectl, pod: str, variable: str) -> str:
    command = ["exec", pod, "-c", "engine", "--", "python3", "-c", f"import os; print(os.environ['{variable}'])"]
    return kubectl.run(*command).strip()


def _simulator(installed: Installed, *arguments: str) -> None:
    selector = f"rm-abstract.io/accelerator={KIND}"
    pod = installed.system.list("pods", selector=selector)[0]["metadata"]["name"]
    installed.system.run("exec", pod, "--", "rma-sim", "set", "--root=/var/lib/rma-simulator", *arguments)


def _node(kubectl: Kubectl, pod: str) -> dict[str, Any]:
    """The node that a pod is on."""
    found = kubectl.get("pod", pod)
    assert found is not None
    node = kubectl.get("node", found["spec"]["nodeName"])
    assert node is not None
    return node


def _events(kubectl: Kubectl, reason: str, about: dict[str, Any], device: str) -> list[str]:
    """Events with the reason about an object, on this device."""
    fields = f"--field-selector=reason={reason},regarding.name={about['metadata']['name']}"
    said = kubectl.run("get", "events.v1.events.k8s.io", "--all-namespaces", fields, "-o", "jsonpath={.items[*].note}")
    return [said] if device in said else []


def test_its_pod_is_replaced_on_another_device_and_nobody_who_asks_notices(
    steady: Kubectl, installed: Installed, text: str, failing: tuple[str, str]
) -> None:
    before, index = failing
    device = _device(steady, before, "DEVICE_IDS")
    node = _node(steady, before)
    assert node["metadata"]["labels"][f"driver.rm-abstract.io/{KIND}"] == "1.4.0"

    def replaced() -> str:
        pods = serving_pods(steady, "steady")
        settled = condition(steady.get("mdep", "steady"), "Ready").get("reason") == "Ready"
        names = [pod["metadata"]["name"] for pod in pods]
        return names[0] if settled and len(names) == 1 and names != [before] else ""

    with asking(steady, "steady", MESSAGES, text) as wrong:
        _simulator(installed, f"--device={index}", "--health=failed", "--failure=Dead")
        after = wait_until("the pod is not replaced", replaced, timeout=REPLACEMENT_SECONDS)
    assert wrong == []
    assert _device(steady, after, "DEVICE_IDS") != device
    assert steady.list("bart")[0]["status"]["attempts"] == 1, "nothing was compiled again"

    def told() -> dict[str, Any] | None:
        found = installed.system.get("accel", KIND) or {"status": {}}
        status = found["status"]
        on_node = condition(_node(steady, after), "rm-abstract.io/AcceleratorUnhealthy")
        sick = [(each["device"], each["failure"]) for each in status.get("unhealthy", [])]
        return (
            found
            if sick == [(device, "Dead")]
            and status["devices"]["healthy"] == 3
            and condition(found, "DevicesHealthy")["reason"] == "DeviceUnhealthy"
            and (on_node["status"], on_node["reason"]) == ("True", "DeviceUnhealthy")
            and device in on_node["message"]
            else None
        )

    accelerator = wait_until("accelerator and node do not tell of the device", told, timeout=SECONDS)
    for about in (node, accelerator):
        wait_until(
            "no Event tells it", lambda it=about: _events(steady, "DeviceUnhealthy", it, device), timeout=SECONDS
        )


def test_once_the_device_is_well_everybody_says_so_and_the_pod_stays(
    steady: Kubectl, installed: Installed, failing: tuple[str, str]
) -> None:
    (pod,) = serving_pods(steady, "steady")
    _simulator(installed, f"--device={failing[1]}", "--health=ok", "--failure=Unknown")

    def well() -> bool:
        accelerator = installed.system.get("accel", KIND)
        on_node = condition(_node(steady, pod["metadata"]["name"]), "rm-abstract.io/AcceleratorUnhealthy")
        return (
            accelerator is not None
            and condition(accelerator, "DevicesHealthy").get("reason") == "AllHealthy"
            and accelerator["status"]["devices"]["healthy"] == 4
            and not accelerator["status"].get("unhealthy")
            and on_node["status"] == "False"
        )

    wait_until("somebody still says that a device is not well", well, timeout=SECONDS)
    (still,) = serving_pods(steady, "steady")
    assert still["metadata"]["uid"] == pod["metadata"]["uid"]
