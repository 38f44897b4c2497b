"""Changing what serves, on a real Kubernetes: nobody who asks notices, and what stands in the way is said.

The tests build on one another, in order, on the four devices of the simulated NPU.
"""

import tempfile
from pathlib import Path

import pytest
from installation import Installed
from rm_cli.kubectl import Kubectl, condition, wait_until
from scripted_model import SAMPLES, expected_text, write_model
from support import NPU, ask, asking, deploy, serving_pods, wait_for

COMPILE_SECONDS = 300
ROLLOUT_SECONDS = 180
MESSAGES = [{"role": "user", "content": SAMPLES[0].prompt}]


@pytest.fixture(scope="module")
def text() -> str:
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        return expected_text(Path(directory), MESSAGES)


@pytest.fixture(scope="module")
def roll(module_namespace: Kubectl, model_source: str) -> Kubectl:
    """The namespace with a deployment `roll` of two pods."""
    deploy(module_namespace, "roll", model_source, replicas=2, **NPU)
    wait_for(module_namespace, "roll", "Ready", timeout=COMPILE_SECONDS)
    return module_namespace


def _change(kubectl: Kubectl, patch: str) -> None:
    kubectl.run("patch", "mdep", "roll", "--type=merge", "-p", patch)


def _log_level(kubectl: Kubectl, level: str) -> None:
    """Asks for other pods, without another artifact."""
    _change(kubectl, f'{{"spec":{{"runtime":{{"env":[{{"name":"LOG_LEVEL","value":"{level}"}}]}}}}}}')


def _levels(kubectl: Kubectl) -> set[str | None]:
    """LOG_LEVEL of the pods that serve."""
    found = set()
    for pod in serving_pods(kubectl, "roll"):
        env = {each["name"]: each.get("value") for each in pod["spec"]["containers"][0].get("env") or []}
        found.add(env.get("LOG_LEVEL"))
    return found


def _rolled_out(kubectl: Kubectl, level: str, pods: int) -> None:
    def done() -> bool:
        found = serving_pods(kubectl, "roll")
        current = kubectl.get("mdep", "roll")
        return (
            len(found) == pods and _levels(kubectl) == {level} and condition(current, "Ready").get("reason") == "Ready"
        )

    wait_until(f"not every pod has LOG_LEVEL={level}", done, timeout=ROLLOUT_SECONDS)


def test_a_surge_loses_no_request(roll: Kubectl, text: str) -> None:
    with asking(roll, "roll", MESSAGES, text) as wrong:
        _log_level(roll, "debug")
        _rolled_out(roll, "debug", 2)
    assert wrong == []


def test_without_a_spare_device_it_says_so_and_goes_on_serving(roll: Kubectl, text: str) -> None:
    roll.run("scale", "mdep/roll", "--replicas=4")
    _rolled_out(roll, "debug", 4)
    with asking(roll, "roll", MESSAGES, text) as wrong:
        _log_level(roll, "info")
        deployment = wait_for(roll, "roll", "NoSpareDevice", timeout=ROLLOUT_SECONDS)
        message = condition(deployment, "Ready")["message"]
        assert "rm-abstract.io/simulated-npu" in message
        assert "InPlace" in message, "it says what helps"
        assert deployment["status"]["readyReplicas"] == 4
        _change(roll, '{"spec":{"rollout":{"strategy":"InPlace","maxSurge":null,"maxUnavailable":1}}}')
        _rolled_out(roll, "info", 4)
    assert wrong == []


def test_suspended_it_frees_its_devices_and_resumed_it_serves_again(roll: Kubectl, text: str) -> None:
    roll.run("scale", "mdep/roll", "--replicas=1")
    _rolled_out(roll, "info", 1)
    _change(roll, '{"spec":{"suspend":true}}')
    wait_for(roll, "roll", "Suspended")
    wait_until("pods are left", lambda: not serving_pods(roll, "roll"), timeout=120)
    (artifact,) = roll.list("bart")
    _change(roll, '{"spec":{"suspend":false}}')
    wait_for(roll, "roll", "Ready", timeout=ROLLOUT_SECONDS)
    assert ask(roll, "roll", MESSAGES)["choices"][0]["message"]["content"] == text
    (after,) = roll.list("bart")
    assert after["metadata"]["uid"] == artifact["metadata"]["uid"]
    assert after["status"]["attempts"] == 1


def test_an_autoscaler_scales_it_through_the_scale_subresource(roll: Kubectl) -> None:
    autoscaling = '{"minReplicas":2,"maxReplicas":3,"metrics":[{"name":"requests_running","averageValue":"4"}]}'
    _change(roll, f'{{"spec":{{"autoscaling":{autoscaling}}}}}')
    # Nobody serves the metric here; below its minimum the autoscaler acts without one.
    _rolled_out(roll, "info", 2)
    deployment = roll.get("mdep", "roll")
    assert deployment is not None
    assert deployment["spec"]["replicas"] == 2
    _change(roll, '{"spec":{"autoscaling":null}}')
    wait_until("the autoscaler is left", lambda: not roll.list("horizontalpodautoscalers"), timeout=60)


def test_what_is_in_use_cannot_vanish(roll: Kubectl, installed: Installed) -> None:
    used = {"accel": "simulated-npu", "bprof": "simulated-npu-openvino"}
    for kind, name in used.items():
        roll.delete(kind, name, wait=False)

    def said() -> bool:
        return all(
            condition(installed.system.get(kind, name), "Ready").get("reason") == "InUse" for kind, name in used.items()
        )

    wait_until("nothing is said", said, timeout=60)
    for kind, name in used.items():
        assert f"{roll.namespace}/roll" in condition(installed.system.get(kind, name), "Ready")["message"]
    assert condition(roll.get("mdep", "roll"), "Ready")["status"] == "True", "what serves goes on"
    roll.delete("mdep", "roll")
    for kind, name in used.items():
        wait_until(
            f"{name} is kept without users", lambda k=kind, n=name: installed.system.get(k, n) is None, timeout=120
        )
    for example in ("accelerator", "build-profile"):
        installed.system.apply(*installed.example(f"simulated-npu/{example}.yaml"))

    def counted() -> bool:
        devices = (installed.system.get("accel", "simulated-npu") or {}).get("status", {}).get("devices", {})
        return bool(devices.get("healthy") == 4 and devices.get("allocated") == 0)

    wait_until("the devices do not come back", counted, timeout=120)
