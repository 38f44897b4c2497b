"""Other engines than the main job's, in pods of the cluster: each says the model's text, token for token, or computes
its vectors; and none is given what was compiled for another one of the same processor.
"""

from collections.abc import Iterator
from pathlib import Path

import embedding_model
import pytest
from installation import Installed
from rm_cli import release
from rm_cli.kubectl import Kubectl
from scripted_model import SAMPLES, expected_text
from support import ask, deploy, serving_pods, wait_for

ANSWER = 24
"""Tokens: IREE's program computes the whole of its length for each of them."""


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


def test_an_engine_is_not_given_what_is_compiled_for_another_one(iree: Kubectl, model_source: str) -> None:
    """Both profiles are for the same processor; whoever insists on the wrong one is told, and no pod ends for it."""
    deploy(iree, "misplaced", model_source, accelerators={"names": ["cpu-iree"]}, buildProfile="cpu-openvino")
    deployment = wait_for(iree, "misplaced", "NoEligibleAccelerator", on="Placed")
    said = {each["name"]: each["reason"] for each in deployment["status"]["placement"]["candidates"]}
    assert said["cpu-iree"].startswith("its runtime plugin iree does not serve openvino-ir")
    assert "spec.output.format is one of iree-vmfb" in said["cpu-iree"]
    assert "artifact" not in deployment["status"]
    assert not serving_pods(iree, "misplaced")


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


@pytest.fixture
def embeddings(installed: Installed, namespace: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace, while the CPU has a profile for models that embed."""
    (profile,) = installed.example("openvino-embeddings/build-profile.yaml")
    namespace.apply(profile)
    yield namespace
    namespace.delete("bprof", "cpu-openvino-embeddings", wait=False)


def test_an_embedding_model_computes_its_vectors(installed: Installed, embeddings: Kubectl, tmp_path: Path) -> None:
    """From its files to `/v1/embeddings` through the Service; the oracle is arithmetic that knows no engine."""
    embedding_model.write(tmp_path)
    source = release.ModelRegistry(installed.cluster).push(tmp_path, "models/tiny-bert", "1")
    deploy(embeddings, "vectors", source, accelerators={"names": ["cpu"]}, requirements={"dtype": "fp32"})
    deployment = wait_for(embeddings, "vectors", "Ready", timeout=420)
    status = deployment["status"]
    assert status["model"]["task"] == "Embed"
    assert status["placement"]["profile"] == "cpu-openvino-embeddings", "and not the one for models that generate"
    texts = ["a b c", "t h e z", "m"]
    asked = {"model": "vectors", "input": texts, "encoding_format": "float"}
    answer = embeddings.post("vectors:http", "/v1/embeddings", asked)
    ids = [embedding_model.tokens(text) for text in texts]
    for found, wanted in zip(answer["data"], ids, strict=True):
        assert found["embedding"] == pytest.approx(embedding_model.embedding(wanted), abs=1e-4)
    assert answer["usage"]["total_tokens"] == sum(map(len, ids))
