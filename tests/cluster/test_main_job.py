"""The main job on a real Kubernetes: resolve, place, compile, store, serve, answer; then again from the artifact.

The tests build on one another, in order: the namespace is the module's, and the model is compiled in it once.
"""

import json
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest
from installation import Installed
from rm_abstract.store.reference import Reference
from rm_cli.kubectl import Kubectl, condition, wait_until
from scripted_model import SAMPLES, expected_text
from support import NPU, PATIENCE, ask, deploy, in_the_store, left_over, restart_engine, serving_pods, wait_for

# The first compile on a cold node pulls an image of two gigabytes.
COMPILE_SECONDS = 300
START_SECONDS = 120


@pytest.fixture(scope="module")
def hello(module_namespace: Kubectl, model_source: str) -> Kubectl:
    """The namespace with a deployment `hello` that serves."""
    deploy(module_namespace, "hello", model_source)
    wait_for(module_namespace, "hello", "Ready", timeout=COMPILE_SECONDS)
    return module_namespace


def test_it_answers_with_the_models_text(hello: Kubectl, model_directory: Path) -> None:
    for sample in SAMPLES:
        messages = [{"role": "user", "content": sample.prompt}]
        answer = ask(hello, "hello", messages)
        assert answer["choices"][0]["message"]["content"] == expected_text(model_directory, messages)
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_the_official_client_streams_the_same_text(hello: Kubectl, model_directory: Path) -> None:
    messages: Any = [{"role": "user", "content": SAMPLES[0].prompt}]
    with hello.port_forward("svc/hello", 80) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["hello"]
        stream = client.chat.completions.create(
            model="hello", messages=messages, temperature=0, max_tokens=128, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert len(pieces) > 5, "it comes in pieces"
        assert "".join(pieces) == expected_text(model_directory, messages)
        prompt = "Tell me about the moon."
        plain = client.completions.create(model="hello", prompt=prompt, temperature=0, max_tokens=128)
        assert plain.choices[0].text == expected_text(model_directory, prompt)


def test_it_was_placed_on_the_npu_and_says_why(hello: Kubectl) -> None:
    status = wait_for(hello, "hello", "Ready")["status"]
    placement = status["placement"]
    assert (placement["chosen"], placement["profile"]) == ("simulated-npu", "simulated-npu-openvino")
    candidates = {candidate["name"]: candidate for candidate in placement["candidates"]}
    assert set(candidates) >= {"simulated-npu", "cpu"}
    assert all(candidate["reason"] for candidate in candidates.values())
    terms = {term["name"]: term["unit"] for term in candidates["simulated-npu"]["terms"]}
    assert terms["ttft"] == "ms"
    assert float(candidates["simulated-npu"]["score"]) > float(candidates["cpu"]["score"])


def test_the_kubelet_gave_its_pod_a_device(hello: Kubectl) -> None:
    (pod,) = serving_pods(hello, "hello")
    assert pod["spec"]["containers"][0]["resources"]["limits"]["rm-abstract.io/simulated-npu"] == "1"
    with (
        hello.port_forward(f"pod/{pod['metadata']['name']}", 9009) as port,
        urllib.request.urlopen(f"http://127.0.0.1:{port}/rma/v1/report", timeout=60) as response,
    ):
        report = json.load(response)
    assert report["ready"] is True
    assert report["observedDevice"]["product"] == "Simulated NPU X1"
    assert report["observedDevice"]["serial"].startswith("SIMX1-")
    assert report["driver"] == "1.4.0"
    accelerator = hello.get("accel", "simulated-npu")
    assert accelerator is not None
    assert accelerator["status"]["devices"]["allocated"] >= 1


def test_it_is_written_down_what_the_artifact_was_seen_to_run_on(hello: Kubectl) -> None:
    def told() -> bool:
        deployment = hello.get("mdep", "hello")
        variants = deployment["status"]["variants"] if deployment is not None else []
        return bool(hello.list("bart")[0]["status"].get("verifications")) and all(
            each.get("observedDevice") for each in variants
        )

    wait_until("the artifact and the deployment to say what their pod runs on", told, timeout=60)
    (verified,) = hello.list("bart")[0]["status"]["verifications"]
    assert (verified["product"], verified["driver"]) == ("Simulated NPU X1", "1.4.0")
    assert verified["at"]
    deployment = hello.get("mdep", "hello")
    assert deployment is not None
    (variant,) = deployment["status"]["variants"]
    assert variant["observedDevice"] == "Simulated NPU X1, driver 1.4.0"


def test_the_artifact_is_the_one_in_the_store(hello: Kubectl, installed: Installed) -> None:
    artifact = hello.list("bart")[0]
    status = artifact["status"]
    assert status["attempts"] == 1
    assert {"fetch", "export", "bind", "push"} <= set(status["stageSeconds"])
    repository = f"artifacts/{hello.namespace}/{artifact['metadata']['name']}"
    with in_the_store(installed.cluster) as (host, registry):
        manifest = registry.manifest(Reference.parse(f"{host}/{repository}:v1"))
    assert manifest.digest == status["digest"]
    assert manifest.annotations["io.rm-abstract.artifact.key"] == artifact["spec"]["key"]
    assert status["location"] == f"{host}/{repository}@{status['digest']}"


def test_applied_again_under_another_name_it_reuses_the_artifact(
    hello: Kubectl, model_source: str, model_directory: Path
) -> None:
    deploy(hello, "again", model_source)
    status = wait_for(hello, "again", "Ready", timeout=START_SECONDS)["status"]
    (artifact,) = hello.list("bart")
    assert status["artifact"] == artifact["metadata"]["name"]
    assert artifact["status"]["attempts"] == 1, "no second Job was made"
    assert artifact["status"]["referrerCount"] == 2
    messages = [{"role": "user", "content": SAMPLES[1].prompt}]
    answer = ask(hello, "again", messages)
    assert answer["choices"][0]["message"]["content"] == expected_text(model_directory, messages)
    hello.delete("mdep", "again")


def test_deleted_while_it_starts_it_leaves_nothing(hello: Kubectl, model_source: str) -> None:
    deploy(hello, "brief", model_source)
    wait_for(hello, "brief", "Built", on="ArtifactReady")
    hello.delete("mdep", "brief")
    kinds = "pods,deployments,services,controllerrevisions"
    selector = "rm-abstract.io/deployment=brief"
    wait_until("objects are left", lambda: not hello.list(kinds, selector=selector), timeout=120)
    assert len(hello.list("bart")) == 1


def test_kubectl_tells_what_a_person_asks_first(hello: Kubectl) -> None:
    line = hello.run("get", "mdep", "hello", "--no-headers", "-o", "wide")
    for word in ("oci://", "simulated-npu", "True", "Ready", "http://hello."):
        assert word in line
    assert "SimulatedNPU" in hello.run("get", "accel", "simulated-npu", "--no-headers").replace(" ", "")
    hello.run("wait", "--for=condition=Ready", "mdep/hello", "--timeout=60s")
    explained = hello.run("explain", "mdep.spec.policy.type")
    assert "Latency, Throughput, Energy, Cost" in explained


def test_a_hand_edited_child_is_mended_and_foreign_fields_stay(hello: Kubectl) -> None:
    (service,) = hello.list("services", selector="rm-abstract.io/deployment=hello")
    hello.run("annotate", "service", "hello", "example.com/note=kept")
    hello.run("patch", "service", "hello", "--type=merge", "-p", '{"spec":{"selector":{"rm-abstract.io/active":"no"}}}')

    def mended() -> bool:
        current = hello.get("service", "hello")
        assert current is not None
        return bool(current["spec"]["selector"] == service["spec"]["selector"])

    wait_until("the Service is not mended", mended, timeout=60)
    current = hello.get("service", "hello")
    assert current is not None
    assert current["metadata"]["annotations"]["example.com/note"] == "kept"


def _simulator(installed: Installed, *arguments: str) -> None:
    pod = installed.system.list("pods", selector="rm-abstract.io/accelerator=simulated-npu")[0]["metadata"]["name"]
    installed.system.run("exec", pod, "--", "rma-sim", "set", "--root=/var/lib/rma-simulator", *arguments)


def _device(kubectl: Kubectl, pod: str) -> tuple[str, str]:
    """Number and ID of the device that a pod was given."""
    told = "import os; print(os.environ['DEVICE_INDEXES'], os.environ['DEVICE_IDS'])"
    index, id_ = kubectl.run("exec", pod, "-c", "engine", "--", "python3", "-c", told).split()
    return index, id_


@pytest.fixture(scope="module")
def pinned(hello: Kubectl, model_source: str) -> Kubectl:
    """`hello` may go nowhere else from here on: it would move to the CPU as soon as the NPU is not what it needs."""
    deploy(hello, "hello", model_source, **NPU)
    return hello


def test_a_driver_that_is_not_right_prevents_ready(pinned: Kubectl, installed: Installed) -> None:
    pod = serving_pods(pinned, "hello")[0]["metadata"]["name"]

    def refused() -> str | None:
        deployment = pinned.get("mdep", "hello")
        assert deployment is not None
        ready = condition(deployment, "Ready")
        return ready["message"] if ready["reason"] in ("DriverMismatch", "NoEligibleAccelerator") else None

    _simulator(installed, "--driver=2.0.0")
    try:
        restart_engine(pinned, pod)
        # The engine notices it when it starts, and the device plugin at its next look: either says so first.
        message = wait_until("it does not say that the driver is not right", refused, timeout=PATIENCE)
        assert "1.4.0" in message
        assert "2.0.0" in message
    finally:
        _simulator(installed, "--driver=1.4.0")
    # It would come back by itself, but the kubelet's back-off may have grown to minutes.
    pinned.delete("pod", pod)
    wait_for(pinned, "hello", "Ready", timeout=START_SECONDS)


def test_a_device_that_is_another_one_is_left_for_one_that_is_right(pinned: Kubectl, installed: Installed) -> None:
    pod = serving_pods(pinned, "hello")[0]["metadata"]["name"]
    index, device = _device(pinned, pod)
    _simulator(installed, f"--device={index}", "--serial=ANOTHER-ONE")
    try:
        restart_engine(pinned, pod)

        def replaced() -> str | None:
            found = {each["metadata"]["name"]: each for each in serving_pods(pinned, "hello")}
            ready = [name for name, each in found.items() if condition(each, "Ready").get("status") == "True"]
            return ready[0] if pod not in found and ready else None

        successor = wait_until("no pod on another device takes over", replaced, timeout=START_SECONDS)
        # That may have the same number: a card with another serial is a device like any other, once it is listed.
        assert _device(pinned, successor)[1] != device
    finally:
        _simulator(installed, f"--device={index}", f"--serial=SIMX1-{int(index):04}")
    wait_for(pinned, "hello", "Ready", timeout=START_SECONDS)


def test_without_a_free_device_it_says_so(pinned: Kubectl) -> None:
    pinned.run("scale", "mdep/hello", "--replicas=5")
    deployment = wait_for(pinned, "hello", "NoDevice")
    assert "rm-abstract.io/simulated-npu" in condition(deployment, "Ready")["message"]
    pinned.run("scale", "mdep/hello", "--replicas=1")
    wait_for(pinned, "hello", "Ready", timeout=START_SECONDS)


def test_the_operator_killed_in_the_middle_loses_nothing(
    hello: Kubectl, installed: Installed, model_source: str, model_directory: Path
) -> None:
    # Another shape bucket is another artifact.
    deploy(hello, "killed", model_source, requirements={"maxSequenceLength": 800}, **NPU)

    def kill() -> None:
        selector = "app.kubernetes.io/component=operator"
        installed.system.run("delete", "pods", "-l", selector, "--grace-period=0", "--force", "--wait=false")

    kill()
    wait_for(hello, "killed", "Building", timeout=90)
    kill()
    status = wait_for(hello, "killed", "Ready", timeout=COMPILE_SECONDS)["status"]
    artifact = hello.get("bart", status["artifact"])
    assert artifact is not None
    assert artifact["status"]["attempts"] == 1
    messages = [{"role": "user", "content": SAMPLES[2].prompt}]
    assert ask(hello, "killed", messages)["choices"][0]["message"]["content"] == expected_text(
        model_directory, messages
    )
    hello.delete("mdep", "killed")


def test_deleted_it_leaves_the_artifact_and_nothing_else(hello: Kubectl) -> None:
    hello.delete("mdep", "hello")
    wait_until("objects are left", lambda: not left_over(hello), timeout=120)
    assert len(hello.list("bart")) == 2
