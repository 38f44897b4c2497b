"""Devices that pods request by class, on a real Kubernetes: driver, slices, claims, CDI, a model that is served.

The tests build on one another, in order, on the three devices of the example's kind.
"""

import json
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import Installed
from rm_cli.kubectl import Kubectl, condition, wait_until
from scripted_model import SAMPLES, expected_text, write_model
from support import ask, deploy, serving_pods, wait_for

KIND = "simulated-npu-dra"
CLASS = "simulated-npu.rm-abstract.io"
IMPLIED = f"deviceclass.resource.kubernetes.io/{CLASS}"
EXTENDED = "rm-abstract.io/simulated-npu-by-class"
ROOT = "/var/lib/rma-simulator-dra"
SECONDS = 120
COMPILE_SECONDS = 300
MESSAGES = [{"role": "user", "content": SAMPLES[0].prompt}]


@pytest.fixture(scope="module")
def by_class(installed: Installed) -> Iterator[Installed]:
    """With the kind of the example, whose devices are there."""
    system = installed.system
    system.apply(*installed.example(f"{KIND}/accelerator.yaml"))
    _become(installed, healthy=3, allocated=0)
    yield installed
    _driver(installed, "rm", "-rf", f"{ROOT}/dev", f"{ROOT}/driver")
    system.delete("accel", KIND)
    wait_until("its class is left", lambda: system.get("deviceclass", CLASS) is None, timeout=SECONDS)


@pytest.fixture(scope="module")
def served(by_class: Installed, module_namespace: Kubectl, model_source: str) -> Kubectl:
    """The namespace with a deployment ``dra`` that serves on a device of the class."""
    deploy(module_namespace, "dra", model_source, accelerators={"names": [KIND]})
    wait_for(module_namespace, "dra", "Ready", timeout=COMPILE_SECONDS)
    return module_namespace


def _counts(installed: Installed) -> dict[str, int]:
    return dict(((installed.system.get("accel", KIND) or {}).get("status") or {}).get("devices") or {})


def _become(installed: Installed, **counts: int) -> None:
    def reached() -> bool:
        return counts.items() <= _counts(installed).items()

    wait_until(f"the counts are {_counts(installed)}, and not {counts}", reached, timeout=SECONDS)


def _drivers(installed: Installed) -> list[dict[str, Any]]:
    selector = f"rm-abstract.io/accelerator={KIND},rm-abstract.io/role=device-plugin"
    return installed.system.list("pods", selector=selector)


def _driver(installed: Installed, *command: str) -> str:
    pods = [each for each in _drivers(installed) if "deletionTimestamp" not in each["metadata"]]
    return installed.system.run("exec", pods[0]["metadata"]["name"], "--", *command)


def _claim_of(kubectl: Kubectl, pod: dict[str, Any]) -> dict[str, Any]:
    """The claim that the scheduler made for a pod."""
    claim = kubectl.get("resourceclaim", pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"])
    assert claim is not None
    return claim


def _devices_of(claim: dict[str, Any]) -> set[str]:
    return {result["device"] for result in claim["status"]["allocation"]["devices"]["results"]}


def _attributes(installed: Installed) -> dict[str, dict[str, Any]]:
    """What slices say of each device, by its name in the pool."""
    driver = f"{KIND}.rm-abstract.io"
    slices = [each for each in Kubectl(installed.cluster).list("resourceslices") if each["spec"]["driver"] == driver]
    return {
        device["name"]: {
            name: next(iter(value.values())) for name, value in (device.get("attributes") or {}).items()
        }
        for each in slices
        for device in each["spec"]["devices"]
    }  # fmt: skip


def _guest(installed: Installed, name: str, resource: str) -> dict[str, Any]:
    """A pod of somebody who knows nothing of RM Abstract, with one device."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "guest",
                    "image": installed.references["device-plugin"],
                    "command": ["sh", "-c", "exec sleep infinity"],
                    "resources": {"limits": {resource: "1"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }  # fmt: skip


_OPEN = """
import json, os, stat
found = {"uid": os.getuid(), "ids": os.environ["DEVICE_IDS"].split(","), "opened": []}
for each in os.environ["RMA_DEVICE_NODES"].split(","):
    path, _, number = each.partition("=")
    descriptor = os.open(path, os.O_RDWR)
    device = os.fstat(descriptor).st_rdev
    assert f"{os.major(device)}:{os.minor(device)}" == number, (each, device)
    assert stat.S_ISCHR(os.fstat(descriptor).st_mode)
    found["opened"].append(path)
print(json.dumps(found))
"""


def _opened(kubectl: Kubectl, pod: str, container: str) -> dict[str, Any]:
    """What a process in the container has of its devices, each of which it has opened."""
    found: dict[str, Any] = json.loads(kubectl.run("exec", pod, "-c", container, "--", "python3", "-c", _OPEN))
    return found


def test_its_class_selects_what_the_driver_publishes(by_class: Installed) -> None:
    found = by_class.system.get("deviceclass", CLASS)
    assert found is not None
    assert found["spec"]["extendedResourceName"] == EXTENDED
    assert len(_attributes(by_class)) == 3
    accelerator = by_class.system.get("accel", KIND)
    assert accelerator is not None
    assert accelerator["status"]["nodes"] == 1
    assert IMPLIED in condition(accelerator, "DevicesAdvertised")["message"]


def test_a_model_is_compiled_and_served_on_a_claimed_device(by_class: Installed, served: Kubectl) -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        text = expected_text(Path(directory), MESSAGES)
    assert ask(served, "dra", MESSAGES)["choices"][0]["message"]["content"] == text
    (pod,) = serving_pods(served, "dra")
    assert pod["spec"]["containers"][0]["resources"]["limits"][IMPLIED] == "1"
    (device,) = _devices_of(_claim_of(served, pod))
    attributes = _attributes(by_class)[device]
    opened = _opened(served, pod["metadata"]["name"], "engine")
    assert opened["uid"] == 65532
    assert opened["ids"] == [attributes["uuid"]]
    assert len(opened["opened"]) == 1
    with (
        served.port_forward(f"pod/{pod['metadata']['name']}", 9009) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/rma/v1/report", timeout=60) as response,
    ):
        report = json.load(response)
    assert report["ready"] is True
    assert report["observedDevice"]["serial"] == attributes["serial"]
    assert report["driver"] == "1.4.0"
    _become(by_class, total=3, healthy=3, allocated=1)


@pytest.mark.parametrize(("name", "resource"), [("extended", EXTENDED), ("implied", IMPLIED)])
def test_an_ordinary_pod_gets_a_device_of_its_own(
    by_class: Installed, served: Kubectl, name: str, resource: str
) -> None:
    served.run("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
    served.apply(_guest(by_class, name, resource))
    served.run("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={SECONDS}s", timeout=SECONDS + 10)
    pods = [*serving_pods(served, "dra"), *(served.get("pod", each) for each in ("extended", "implied"))]
    taken = [_devices_of(_claim_of(served, pod)) for pod in pods if pod is not None]
    assert len(set().union(*taken)) == len(taken), "nobody has what another one has"
    assert _opened(served, name, "guest")["uid"] == 65532
    _become(by_class, allocated=len(taken))


def test_when_all_are_taken_nobody_is_placed_and_nobody_disturbed(
    by_class: Installed, served: Kubectl, model_source: str
) -> None:
    deploy(served, "late", model_source, accelerators={"names": [KIND]})
    late = wait_for(served, "late", "NoEligibleAccelerator", on="Placed")
    assert IMPLIED in condition(late, "Placed")["message"]
    served.delete("pod", "implied")
    wait_for(served, "late", "Ready", timeout=SECONDS)
    served.delete("mdep", "late")
    served.delete("pod", "extended")
    _become(by_class, allocated=1)


def test_the_driver_restarts_and_nobody_notices(by_class: Installed, served: Kubectl) -> None:
    (before,) = _drivers(by_class)
    (serving,) = serving_pods(served, "dra")
    by_class.system.delete("pod", before["metadata"]["name"])

    def restarted() -> bool:
        found = _drivers(by_class)
        return [each["metadata"]["uid"] for each in found] != [before["metadata"]["uid"]] and all(
            condition(each, "Ready").get("status") == "True" for each in found
        )

    wait_until("the driver does not come back", restarted, timeout=SECONDS)
    _become(by_class, total=3, healthy=3, allocated=1)
    served.apply(_guest(by_class, "after", EXTENDED))
    served.run("wait", "--for=condition=Ready", "pod/after", f"--timeout={SECONDS}s", timeout=SECONDS + 10)
    served.delete("pod", "after")
    _become(by_class, allocated=1)
    (still,) = serving_pods(served, "dra")
    assert still["metadata"]["uid"] == serving["metadata"]["uid"]
    assert condition(served.get("mdep", "dra"), "Ready")["status"] == "True"


def test_a_sick_device_leaves_the_capacity_until_it_is_well(by_class: Installed, served: Kubectl) -> None:
    (pod,) = serving_pods(served, "dra")
    taken = _devices_of(_claim_of(served, pod))
    index = next(each["index"] for name, each in _attributes(by_class).items() if name not in taken)
    _driver(by_class, "rma-sim", "set", f"--root={ROOT}", f"--device={index}", "--health=failed")
    _become(by_class, total=3, healthy=2, allocated=1)
    _driver(by_class, "rma-sim", "set", f"--root={ROOT}", f"--device={index}", "--health=ok")
    _become(by_class, total=3, healthy=3, allocated=1)
    served.delete("mdep", "dra")
    _become(by_class, allocated=0)


def test_a_node_does_not_offer_one_name_by_both(by_class: Installed) -> None:
    plugged = by_class.system.get("accel", "simulated-npu")
    assert plugged is not None
    name = plugged["spec"]["resourceName"]
    (both,) = by_class.example(f"{KIND}/accelerator.yaml")
    spec: Any = both["spec"]
    spec["devicePlugin"]["extendedResourceName"] = name
    by_class.system.apply(both)

    def told() -> bool:
        return condition(by_class.system.get("accel", KIND), "Ready").get("reason") == "ResourceNameConflict"

    wait_until("it is not told", told, timeout=SECONDS)
    assert name in condition(by_class.system.get("accel", KIND), "Ready")["message"]
    by_class.system.apply(*by_class.example(f"{KIND}/accelerator.yaml"))
    by_class.system.run("wait", "--for=condition=Ready", f"accel/{KIND}", "--timeout=60s")
