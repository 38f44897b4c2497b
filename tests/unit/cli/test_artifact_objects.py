"""Objects and image names on their way to another cluster: what is carried, what is renamed, and what keys count."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from rm_api.kinds import BuildArtifactSpec, BuildProfileSpec, ModelFacts
from rm_api.names import API_VERSION
from rm_cli.kubectl import CommandFailed, Kubectl
from rm_cli.offline_export import Selection, images
from rm_cli.offline_import import operator_store
from rm_cli.offline_objects import images_of, key_of, mirrored, model_reference, move_images, places, portable
from rm_local_cluster import Cluster
from rm_operator.plan.compatibility import NodeClass
from rm_operator.plan.key import KeyInputs, artifact_key

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
PROFILE: dict[str, Any] = {
    "apiVersion": API_VERSION, "kind": "BuildProfile", "metadata": {"name": "cc"},
    "spec": {
        "target": {"type": "NPU", "vendor": "Acme"}, "output": {"format": "f"},
        "steps": [{"name": "one", "image": "acme/cc:1", "command": ["cc"]}],
        "probe": {"image": "quay.io/acme/check:1", "command": ["c"]},
        "check": {"image": "quay.io/acme/dry:1", "command": ["c"]},
    },
}  # fmt: skip
ACCELERATOR: dict[str, Any] = {
    "apiVersion": API_VERSION, "kind": "AcceleratorResource", "metadata": {"name": "npu"},
    "spec": {
        "type": "NPU", "vendor": "Acme", "product": "X1", "resourceName": "acme.com/npu",
        "runtime": {"plugin": "p", "image": "acme/serve:1"}, "devicePlugin": {"image": "acme/plugin:1"},
    },
}  # fmt: skip
FACTS = {
    "source": "hf://a/b", "revision": "main", "architecture": "LlamaForCausalLM", "parameters": 1000,
    "activeParameters": 1000, "weightBytes": 2000, "dtype": "fp16", "layers": 2, "heads": 4, "kvHeads": 2,
    "headDim": 64, "maxSequenceLength": 2048, "configDigest": DIGEST, "tensorsDigest": DIGEST, "weightsDigest": DIGEST,
}  # fmt: skip


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("quay.io/acme/cc:1", "r.example.com/acme/cc:1"),
        (f"quay.io/acme/cc:1@{DIGEST}", f"r.example.com/acme/cc:1@{DIGEST}"),
        ("localhost/x", "r.example.com/x"),
        ("10.0.0.1:5000/a/b/c", "r.example.com/a/b/c"),
        ("acme/cc", "r.example.com/acme/cc"),
        ("docker.io/acme/cc:1", "r.example.com/acme/cc:1"),
        ("busybox:1", "r.example.com/library/busybox:1"),
        ("docker.io/library/busybox:1", "r.example.com/library/busybox:1"),
    ],
)
def test_an_images_name_in_a_mirror(image: str, name: str) -> None:
    assert mirrored(image, "r.example.com") == name
    assert mirrored(image, "r.example.com/p/") == name.replace("r.example.com", "r.example.com/p")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://Org/My.Model_7B", "models/org/my-model-7b"),
        ("oci://reg.example.com:5000/team/x:v1", "models/team/x"),
        (f"oci://reg.example.com/team/x@{DIGEST}", "models/team/x"),
        ("https://host.example.com/a//b/", "models/a/b"),
        ("s3://bucket/some/Prefix/", "models/bucket/some/prefix"),
        ("pvc://claim/models/tiny", "models/claim/models/tiny"),
        ("https://host.example.com/___/", "models/model"),
    ],
)
def test_a_models_place(source: str, name: str) -> None:
    assert model_reference(source, DIGEST) == f"{name}:{'a' * 16}"


def artifact_spec(profile: dict[str, Any], isa: str = "x86_64", **changes: Any) -> BuildArtifactSpec:
    """What an operator would have written."""
    spec = BuildProfileSpec.model_validate(profile["spec"])
    shape = {"maxSequenceLength": 4096, "maxBatchSize": 8}
    made = {
        "key": "0" * 64, "keySchema": 1, "profile": "cc", "target": profile["spec"]["target"], "dtype": "fp16",
        "format": "f", "steps": profile["spec"]["steps"], "shape": shape,
        "model": {**{name: FACTS[name] for name in ("source", "revision", "architecture")}, "configDigest": DIGEST,
                  "tensorsDigest": DIGEST, "weightsDigest": DIGEST},
        **changes,
    }  # fmt: skip
    artifact = BuildArtifactSpec.model_validate(made)
    key = artifact_key(
        KeyInputs.from_profile(
            spec, facts(), artifact.dtype, artifact.shape, isa, toolchain=artifact.toolchain,
            base=artifact.base.key if artifact.base else None,
            chosen=NodeClass(tuple(artifact.drivers), tuple(artifact.sdks)),
        )
    )  # fmt: skip
    return artifact.model_copy(update={"key": key})


def facts(**changes: Any) -> ModelFacts:
    return ModelFacts.model_validate({**FACTS, **changes})


TOOLCHAIN = {"versions": {"cc": "1.2"}, "images": [{"image": "acme/cc:1", "digest": OTHER}]}
BASE = {"name": "a-base", "key": "1" * 64, "location": "r/x@" + DIGEST}


@pytest.mark.parametrize("isa", ["x86_64", "aarch64"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"toolchain": TOOLCHAIN}, {"base": BASE}, {"drivers": ["1.4"], "sdks": ["2"]}],
    ids=["plain", "probed", "based", "of a class"],
)
def test_the_key_is_found_again(isa: str, changes: dict[str, Any]) -> None:
    made = artifact_spec(PROFILE, isa, **changes)
    assert key_of(PROFILE, made, facts()) == made.key
    # Where the model was does not matter, what it is does.
    assert key_of(PROFILE, made, facts(source="oci://elsewhere/x:1", revision=DIGEST)) == made.key
    assert key_of(PROFILE, made, facts(weightsDigest=OTHER)) != made.key
    changed = deepcopy(PROFILE)
    changed["spec"]["steps"][0]["command"] = ["cc", "-O3"]
    assert key_of(changed, made, facts()) != made.key


@pytest.mark.parametrize("probed", [False, True])
def test_images_are_moved_but_for_those_that_keys_count(probed: bool) -> None:
    profile, accelerator = deepcopy(PROFILE), deepcopy(ACCELERATOR)
    changes: dict[str, Any] = {}
    if probed:
        profile["spec"]["versionProbe"] = {"image": "acme/cc:1", "command": ["cc", "--version"]}
        images = [{"image": each, "digest": OTHER} for each in ("acme/cc:1", "quay.io/acme/check:1")]
        changes = {"toolchain": {"versions": {}, "images": images}}
    made = artifact_spec(profile, **changes)
    objects = [accelerator, profile]
    before = {what: holder["image"] for obj in objects for holder, what, _ in places(obj)}
    move_images(objects, lambda image: mirrored(image, "m.example.com"))
    after = {what: holder["image"] for obj in objects for holder, what, _ in places(obj)}
    kept = {what for what in before if before[what] == after[what]}
    steps = {"BuildProfile cc: step one"}
    of_probing = {f"BuildProfile cc: {part}" for part in ("probe", "check", "versionProbe")}
    assert kept == (steps | of_probing if probed else steps)
    assert after["AcceleratorResource npu: runtime"] == "m.example.com/acme/serve:1"
    assert after["AcceleratorResource npu: devicePlugin"] == "m.example.com/acme/plugin:1"
    assert key_of(profile, made, facts()) == made.key


def test_a_clusters_additions_stay_behind() -> None:
    live = {
        **ACCELERATOR,
        "metadata": {
            "name": "npu", "uid": "u", "resourceVersion": "7", "generation": 3, "managedFields": [{}],
            "finalizers": ["rm-abstract.io/in-use"], "labels": {"team": "a"},
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}", "rm-abstract.io/applied-hash": "h",
                "example.com/why": "because",
            },
        },
        "status": {"conditions": []},
    }  # fmt: skip
    assert portable(live) == {
        "apiVersion": API_VERSION, "kind": "AcceleratorResource", "spec": ACCELERATOR["spec"],
        "metadata": {"name": "npu", "labels": {"team": "a"}, "annotations": {"example.com/why": "because"}},
    }  # fmt: skip


def test_the_list_of_images() -> None:
    workload = {
        "kind": "Deployment", "metadata": {"namespace": "rma", "name": "operator"},
        "spec": {"template": {"spec": {
            "initContainers": [{"name": "init", "image": "acme/init:1"}],
            "containers": [{
                "name": "operator", "image": f"acme/operator@{DIGEST}",
                "env": [{"name": "RMA_RUNTIME_IMAGE", "value": "acme/runtime:1"}, {"name": "HOME", "value": "/tmp"}],
            }],
        }}},
    }  # fmt: skip
    pod = {
        "spec": {"containers": [{"name": "engine", "image": "acme/serve:1"}, {"name": "side", "image": "acme/cc:1"}]},
        "status": {
            "containerStatuses": [
                {"name": "engine", "imageID": f"docker.io/acme/serve@{OTHER}"},
                # Imported by hand: the node knows an id of its configuration, and no digest to pull by.
                {"name": "side", "imageID": OTHER},
            ]
        },
    }
    found = {each.image: each for each in images_of([ACCELERATOR, PROFILE], [workload], [pod])}
    assert {image: each.digest for image, each in found.items()} == {
        "acme/cc:1": None, "acme/init:1": None, f"acme/operator@{DIGEST}": DIGEST, "acme/plugin:1": None,
        "acme/runtime:1": None, "acme/serve:1": OTHER, "quay.io/acme/check:1": None, "quay.io/acme/dry:1": None,
    }  # fmt: skip
    assert found["acme/runtime:1"].used_by == ["Deployment rma/operator: runtime"]
    assert found["acme/cc:1"].used_by == ["BuildProfile cc: step one"]


def test_an_installation_that_may_not_be_seen_is_said_to_be_missing(tmp_path: Path) -> None:
    tool = tmp_path / "kubectl"
    tool.write_text("#!/bin/sh\necho 'Error from server (Forbidden): not you' >&2\nexit 1\n")
    tool.chmod(0o755)
    kubectl, said = Kubectl(Cluster("x", "existing", tmp_path / "kubeconfig", tool, tool)), list[str]()
    with pytest.raises(CommandFailed, match="not you"):
        kubectl.run("get", "pods")
    selection = Selection(profiles={"cc": PROFILE}, accelerators={"npu": ACCELERATOR})
    found = images(selection, kubectl, said.append)
    assert [each.image for each in found] == [
        "acme/cc:1", "acme/plugin:1", "acme/serve:1", "quay.io/acme/check:1", "quay.io/acme/dry:1",
    ]  # fmt: skip
    assert "the list of images lacks what pods would tell: Error from server (Forbidden): not you" in said
    assert operator_store(kubectl, said.append) is None
    assert "which store the operator there uses is not known" in said[-1]
