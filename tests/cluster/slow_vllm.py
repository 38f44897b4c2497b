"""The real vLLM on the CPU in pods of the cluster, and a remote accelerator in front of it; each says the model's text.

What takes minutes, and so is no part of ``make test``: ``make test-slow-vllm``. The tests build on one another.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import vllm_cpu_image
from installation import Installed
from rm_cli.kubectl import Kubectl, condition
from scripted_model import SAMPLES, expected_text
from support import deploy, serving_pods, wait_for

LOCAL, REMOTE = "cpu-vllm", "vllm-elsewhere"
SOURCE = "hf://vendor/large-1"
START_SECONDS = 2400
"""The image of 6 GB is pulled, and vLLM starts twice on two cores."""
Object = dict[str, Any]


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())


def _example(installed: Installed, name: str) -> Object:
    (found,) = installed.example(name)
    return found


@pytest.fixture(scope="module")
def vllm(installed: Installed, module_namespace: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace whose deployments, and no others, may use vLLM on the CPU."""
    image = vllm_cpu_image.reference(installed.cluster, _say)
    accelerator, profile = (_example(installed, f"vllm-cpu/{name}.yaml") for name in ("accelerator", "build-profile"))
    accelerator["spec"]["allowedNamespaces"] = [module_namespace.namespace]
    profile["spec"]["versionProbe"]["image"] = image
    # The same options in both: the engine finds by them what it has compiled.
    for container in (accelerator["spec"]["runtime"], *profile["spec"]["steps"]):
        container["image"] = image
        for variable in container["env"]:
            if variable["name"] == "VLLM_CPU_KVCACHE_SPACE":
                variable["value"] = "1"
    for step in profile["spec"]["steps"]:
        # Two cores would be the whole node.
        step["resources"] = {"cpu": "500m", "memory": "8Gi"}
    module_namespace.apply(accelerator, profile)
    yield module_namespace
    module_namespace.delete("mdep", "warm")
    for each in (accelerator, profile):
        module_namespace.delete(each["kind"], each["metadata"]["name"], wait=False)


@pytest.fixture(scope="module")
def tenant(installed: Installed, vllm: Kubectl) -> Iterator[Kubectl]:
    """A namespace of others, who have that vLLM as an endpoint that they did not set up."""
    kubectl = Kubectl(installed.cluster, f"{vllm.namespace}-tenant")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    accelerator = {
        "apiVersion": "rm-abstract.io/v1alpha1",
        "kind": "AcceleratorResource",
        "metadata": {"name": REMOTE},
        "spec": {
            "type": "REMOTE",
            "vendor": "Generic",
            "product": "vLLM elsewhere",
            "remote": {
                "endpoint": f"http://warm.{vllm.namespace}.svc/v1",
                "protocol": "VLLM",
                "models": [{"source": SOURCE, "name": "warm"}],
            },
            "cost": {"perMillionInputTokens": "0", "perMillionOutputTokens": "0"},
            "allowedNamespaces": [kubectl.namespace],
        },
    }
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": kubectl.namespace, "labels": labels}})
    try:
        kubectl.apply(accelerator)
        yield kubectl
    finally:
        kubectl.delete("mdep", "ours")
        kubectl.delete("accel", REMOTE)
        kubectl.delete("namespace", str(kubectl.namespace), wait=False)


def _says_the_models_text(kubectl: Kubectl, name: str, model_directory: Path) -> None:
    """To the official client: vLLM refuses a body that does not say that it is JSON, as kubectl sends one."""
    with (
        kubectl.port_forward(f"svc/{name}", 80) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, max_retries=0) as client,
    ):
        for sample in SAMPLES:
            messages: Any = [{"role": "user", "content": sample.prompt}]
            answer = client.chat.completions.create(model=name, messages=messages, temperature=0, max_tokens=128)
            assert answer.choices[0].message.content == expected_text(model_directory, messages)
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0


def test_vllm_in_a_pod_says_the_models_text(vllm: Kubectl, model_source: str, model_directory: Path) -> None:
    """Of a cache that a Job has made with the same engine."""
    deploy(vllm, "warm", model_source, accelerators={"names": [LOCAL]})
    deployment = wait_for(vllm, "warm", "Ready", timeout=START_SECONDS)
    assert deployment["status"]["placement"]["profile"] == "vllm-cpu-warm"
    (pod,) = serving_pods(vllm, "warm")
    running = vllm.run("exec", pod["metadata"]["name"], "-c", "engine", "--", "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert "vllm" in running
    _says_the_models_text(vllm, "warm", model_directory)


def test_a_remote_accelerator_in_front_of_it_says_the_same(
    tenant: Kubectl, vllm: Kubectl, model_directory: Path
) -> None:
    deploy(tenant, "ours", SOURCE, accelerators={"types": ["REMOTE"]})
    deployment = wait_for(tenant, "ours", "Ready", timeout=300)
    assert deployment["status"]["placement"]["chosen"] == REMOTE
    assert condition(deployment, "ArtifactReady")["reason"] == "NotNeeded"
    _says_the_models_text(tenant, "ours", model_directory)
