"""Other engines than the main job's, in pods of the cluster: each says the model's text, token for token."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import Installed
from rm_cli.kubectl import Kubectl
from scripted_model import SAMPLES, expected_text, write_model
from support import ask, deploy, wait_for

ANSWER = 24
"""Tokens: IREE's program computes the whole of its length for each of them."""


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, for the oracle."""
    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


@pytest.fixture(scope="module")
def iree(installed: Installed, module_namespace: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace whose deployments, and no others, may use IREE on the CPU."""
    objects = [*installed.example("iree/accelerator.yaml"), *installed.example("iree/build-profile.yaml")]
    for each in objects:
        if each["kind"] == "AcceleratorResource":
            each["spec"]["allowedNamespaces"] = [module_namespace.namespace]
        else:
            # Two cores would be the whole node.
            each["spec"]["resources"] = {"cpu": "500m", "memory": "4Gi"}
        module_namespace.apply(each)
    yield module_namespace
    for each in objects:
        module_namespace.delete(each["kind"], each["metadata"]["name"], wait=False)


def test_a_program_that_iree_compiled_says_the_models_text(
    iree: Kubectl, model_source: str, model_directory: Path
) -> None:
    deploy(
        iree,
        "ahead",
        model_source,
        accelerators={"names": ["cpu-iree"]},
        workload={"inputTokens": 96, "outputTokens": ANSWER},
    )
    # The image of the compiler is pulled, which takes more than the compile.
    deployment = wait_for(iree, "ahead", "Ready", timeout=420)
    assert deployment["status"]["placement"]["profile"] == "cpu-iree"
    messages = [{"role": "user", "content": SAMPLES[0].prompt}]
    answer = ask(iree, "ahead", messages, max_tokens=ANSWER)
    assert answer["choices"][0]["message"]["content"] == expected_text(model_directory, messages, ANSWER)
    assert answer["usage"]["completion_tokens"] == ANSWER


def test_what_optimum_exported_says_the_models_text_on_openvino(
    installed: Installed, namespace: Kubectl, model_source: str, model_directory: Path
) -> None:
    """On the CPU itself, by the plugin `openvino`, and not by the simulated NPU that computes with it."""
    deploy(namespace, "exported", model_source, accelerators={"names": ["cpu"]})
    deployment = wait_for(namespace, "exported", "Ready", timeout=420)
    assert deployment["status"]["placement"]["profile"] == "cpu-openvino"
    for sample in SAMPLES:
        messages = [{"role": "user", "content": sample.prompt}]
        answer = ask(namespace, "exported", messages)
        assert answer["choices"][0]["message"]["content"] == expected_text(model_directory, messages)
