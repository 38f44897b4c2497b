"""An update of the driver on a real Kubernetes: what serves goes on while it is compiled anew, and back is no compile.

There is one node, so an update is one of the whole fleet: the simulated NPU's driver gets another version under pods
that run. The tests build on one another, in order; the last one leaves the driver as the others of the session know it.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from installation import Installed
from rm_cli.kubectl import Kubectl, condition, wait_until
from scripted_model import SAMPLES, expected_text, write_model
from support import NPU, asking, deploy, restart_engine, serving_pods, wait_for

Object = dict[str, Any]

# As in test_main_job: the first compile on a cold node pulls an image of two gigabytes.
COMPILE_SECONDS = 300
CUT_OVER_SECONDS = 180
SECONDS = 60
KIND = "simulated-npu"
DRIVER_LABEL = f"driver.rm-abstract.io/{KIND}"
OLD, NEW = "1.4.0", "1.5.0"
MESSAGES = [{"role": "user", "content": SAMPLES[0].prompt}]


@pytest.fixture(scope="module")
def text() -> str:
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory))
        return expected_text(Path(directory), MESSAGES)


@pytest.fixture(scope="module")
def bound(installed: Installed, module_namespace: Kubectl, model_source: str) -> Iterator[Kubectl]:
    """The namespace with a deployment `bound` of one pod, whose profile makes one artifact for each driver."""
    name = f"per-driver-{module_namespace.namespace}"
    (profile,) = installed.example("simulated-npu/build-profile.yaml")
    spec: Any = profile["spec"]
    spec["target"]["targetString"] = "simx1:driver=${DRIVER}"
    # Nobody chooses it who does not name it.
    spec.update(priority=-100, compatibility={"oneArtifactPer": ["Driver"]})
    module_namespace.apply({**profile, "metadata": {"name": name}})
    deploy(module_namespace, "bound", model_source, buildProfile=name, **NPU)
    wait_for(module_namespace, "bound", "Ready", timeout=COMPILE_SECONDS)
    try:
        yield module_namespace
    finally:
        _set_driver(installed, OLD)
        module_namespace.delete("mdep", "bound")
        module_namespace.delete("bprof", name, wait=False)
        wait_until("the node does not say the old driver again", lambda: _node_says(installed, OLD), timeout=SECONDS)


def _set_driver(installed: Installed, version: str) -> None:
    pod = installed.system.list("pods", selector=f"rm-abstract.io/accelerator={KIND}")[0]["metadata"]["name"]
    installed.system.run("exec", pod, "--", "rma-sim", "set", "--root=/var/lib/rma-simulator", f"--driver={version}")


def _node_says(installed: Installed, version: str) -> bool:
    return any(
        node["metadata"].get("labels", {}).get(DRIVER_LABEL) == version for node in installed.system.list("nodes")
    )


def _artifact_for(kubectl: Kubectl, driver: str) -> Object:
    (found,) = [each for each in kubectl.list("bart") if each["spec"].get("drivers") == [driver]]
    return found


def _serves_only(kubectl: Kubectl, driver: str) -> Callable[[], bool]:
    """Whether the deployment is Ready with one variant, that of the driver, and nothing else runs."""

    def reached() -> bool:
        status = (kubectl.get("mdep", "bound") or {}).get("status") or {}
        variants = status.get("variants") or []
        return (
            condition({"status": status}, "Ready").get("reason") == "Ready"
            and [(each.get("drivers"), each["ready"], each["active"]) for each in variants] == [([driver], 1, True)]
            and len(serving_pods(kubectl, "bound")) == 1
        )

    return reached


def _affinity(pod: Object) -> list[list[tuple[str, str, tuple[str, ...]]]]:
    """What the pod asks of the labels of its node."""
    required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return [
        [(each["key"], each["operator"], tuple(each.get("values", ()))) for each in term["matchExpressions"]]
        for term in required["nodeSelectorTerms"]
    ]


def _build_jobs(kubectl: Kubectl, artifact: Object) -> list[str]:
    selector = f"rm-abstract.io/role=build,rm-abstract.io/artifact={artifact['metadata']['name']}"
    return [job["metadata"]["name"] for job in kubectl.list("jobs", selector=selector)]


def test_what_is_built_is_for_the_driver_that_the_node_has(bound: Kubectl) -> None:
    artifact = _artifact_for(bound, OLD)
    assert artifact["spec"]["target"]["targetString"] == f"simx1:driver={OLD}"
    assert condition(artifact, "Stale") == {}
    deployment = bound.get("mdep", "bound")
    assert deployment is not None
    status = deployment["status"]
    assert status["artifact"] == artifact["metadata"]["name"]
    assert [each["drivers"] for each in status["variants"]] == [[OLD]]
    assert "classes" not in status, "there is one class, and nothing to share out"
    (pod,) = serving_pods(bound, "bound")
    assert _affinity(pod) == [[(DRIVER_LABEL, "In", (OLD,))]]


def test_after_an_update_it_is_built_anew_and_cut_over_and_nobody_who_asks_notices(
    bound: Kubectl, installed: Installed, text: str
) -> None:
    before = _artifact_for(bound, OLD)
    (pod,) = serving_pods(bound, "bound")
    with asking(bound, "bound", MESSAGES, text) as wrong:
        _set_driver(installed, NEW)
        wait_for(bound, "bound", "Building", timeout=SECONDS)
        serving = {each["metadata"]["uid"] for each in serving_pods(bound, "bound")}
        assert serving == {pod["metadata"]["uid"]}, "what runs goes on running"
        wait_until(
            "it does not serve for the new driver", _serves_only(bound, NEW), timeout=COMPILE_SECONDS + CUT_OVER_SECONDS
        )
    assert wrong == []

    after = _artifact_for(bound, NEW)
    assert after["spec"]["target"]["targetString"] == f"simx1:driver={NEW}"
    assert after["status"]["attempts"] == 1
    (successor,) = serving_pods(bound, "bound")
    assert _affinity(successor) == [[(DRIVER_LABEL, "In", (NEW,))]]

    def stale() -> bool:
        said = condition(_artifact_for(bound, OLD), "Stale")
        return said.get("reason") == "NoMatchingNode" and OLD in said["message"] and NEW in said["message"]

    wait_until("the earlier artifact is not Stale", stale, timeout=SECONDS)
    kept = _artifact_for(bound, OLD)
    assert kept["metadata"]["uid"] == before["metadata"]["uid"], "it is kept for the way back"


def test_back_again_finds_the_earlier_artifact_without_a_job(bound: Kubectl, installed: Installed, text: str) -> None:
    before = _artifact_for(bound, OLD)
    jobs: set[str] = set()

    def back() -> bool:
        jobs.update(_build_jobs(bound, before))
        return _serves_only(bound, OLD)()

    with asking(bound, "bound", MESSAGES, text) as wrong:
        _set_driver(installed, OLD)
        wait_until("it does not serve for the old driver again", back, timeout=CUT_OVER_SECONDS)
    assert wrong == []
    assert jobs == set()
    after = _artifact_for(bound, OLD)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["attempts"] == before["status"]["attempts"] == 1
    wait_until(
        "the artifact is still Stale", lambda: condition(_artifact_for(bound, OLD), "Stale") == {}, timeout=SECONDS
    )
    assert len(bound.list("bart")) == 2


def test_an_engine_that_starts_on_the_wrong_driver_says_so_and_is_replaced(
    bound: Kubectl, installed: Installed
) -> None:
    (pod,) = serving_pods(bound, "bound")
    name = pod["metadata"]["name"]
    _set_driver(installed, NEW)
    restart_engine(bound, name)

    def refused() -> Object | None:
        # It is there until its successor serves, which takes longer than to see this.
        status = ((bound.get("pod", name) or {}).get("status") or {}).get("containerStatuses") or []
        for each in status:
            for state in (each.get("state") or {}, each.get("lastState") or {}):
                ended: Object = state.get("terminated") or {}
                if ended.get("exitCode") == 67:
                    return ended
        return None

    ended = wait_until("no engine ends with 67", refused, timeout=SECONDS)
    assert "DriverMismatch" in ended["message"]
    assert OLD in ended["message"]
    assert NEW in ended["message"]
    wait_until("no pod for the new driver takes over", _serves_only(bound, NEW), timeout=CUT_OVER_SECONDS)
    assert {each["status"]["attempts"] for each in bound.list("bart")} == {1}, "nothing was compiled again"
