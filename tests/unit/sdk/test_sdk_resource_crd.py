"""Values of the SDK as objects of the cluster, and back: nothing is lost on either way."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_abstract.core.crd import ANNOTATION, capability_from_crd, from_crd, to_crd
from rm_abstract.core.errors import BadInput
from rm_abstract.core.resource import (
    BuildArtifact,
    BuildProfile,
    BuildStep,
    Capability,
    Resource,
    ResourceType,
)
from rm_api.kinds import accelerator_resource, build_artifact, build_profile

ROOT = Path(__file__).parents[3]
DIGEST = "sha256:" + "0" * 64

ACCELERATOR: dict[str, Any] = {
    "apiVersion": "rm-abstract.io/v1alpha1",
    "kind": "AcceleratorResource",
    "metadata": {"name": "npu", "labels": {"team": "a"}},
    "spec": {
        "type": "NPU",
        "vendor": "Acme",
        "product": "X1",
        "tags": ["fast"],
        "attributes": {"rack": "7"},
        "resourceName": "acme.com/npu",
        "nodeSelector": {"acme": "yes"},
        "capability": {"dtypes": ["fp16"], "maxBatchSize": 8, "features": ["lora"]},
        "performance": {"memoryGiB": "32"},
        "runtime": {"plugin": "acme", "image": "acme/runtime:1"},
    },
}
PROFILE: dict[str, Any] = {
    "apiVersion": "rm-abstract.io/v1alpha1",
    "kind": "BuildProfile",
    "metadata": {"name": "acme"},
    "spec": {
        "target": {"type": "NPU", "vendor": "Acme", "products": ["X1"], "targetString": "x1"},
        "supports": {"architectures": ["LlamaForCausalLM"]},
        "steps": [
            {"name": "a", "image": "acme/sdk:2", "command": ["accc"], "args": ["${MODEL_DIR}"], "env": [{"name": "A"}]},
            {"name": "b", "image": "acme/sdk:2", "command": ["link", "${OUTPUT}"], "outputs": ["${OUTPUT}/e"]},
        ],
        "compatibility": {"driver": ["1.4"]},
        "output": {"format": "acme-bin"},
        "scratch": "5Gi",
    },
}
ARTIFACT: dict[str, Any] = {
    "apiVersion": "rm-abstract.io/v1alpha1",
    "kind": "BuildArtifact",
    "metadata": {"name": "a-" + "a" * 26, "namespace": "team"},
    "spec": {
        "key": "0" * 64,
        "keySchema": 1,
        "model": {
            "source": "hf://org/model",
            "revision": "main",
            "configDigest": DIGEST,
            "tensorsDigest": DIGEST,
            "weightsDigest": DIGEST,
            "architecture": "LlamaForCausalLM",
        },
        "profile": "acme",
        "target": {"type": "NPU", "vendor": "Acme", "products": ["X1"]},
        "dtype": "fp16",
        "drivers": ["1.4"],
        "format": "acme-bin",
        "steps": [{"name": "a", "image": "i", "command": ["c"]}],
    },
    "status": {"attempts": 2, "versions": {"accc": "2.0"}, "digest": DIGEST},
}
MODELS = {
    "AcceleratorResource": (accelerator_resource.AcceleratorResourceSpec, None),
    "BuildProfile": (build_profile.BuildProfileSpec, None),
    "BuildArtifact": (build_artifact.BuildArtifactSpec, build_artifact.BuildArtifactStatus),
}


def as_models_write_it(manifest: dict[str, Any]) -> dict[str, Any]:
    spec, status = MODELS[manifest["kind"]]
    written = {**manifest, "spec": spec.model_validate(manifest["spec"]).to_wire()}
    if status is not None and "status" in manifest:
        written["status"] = status.model_validate(manifest["status"]).to_wire()
    return written


@pytest.mark.parametrize("manifest", [ACCELERATOR, PROFILE, ARTIFACT], ids=lambda each: each["kind"])
def test_an_object_survives(manifest: dict[str, Any]) -> None:
    before = copy.deepcopy(manifest)
    assert to_crd(from_crd(manifest), manifest) == as_models_write_it(manifest)
    assert manifest == before, "the base is not changed"


def test_what_the_sdk_reads_of_objects() -> None:
    facts = {"vendor": "Acme", "product": "X1", "rack": "7"}
    assert from_crd(ACCELERATOR) == Resource("npu", ResourceType.NPU, facts, ("fast",))
    assert capability_from_crd(ACCELERATOR) == Capability(8, None, ("fp16",))
    steps = (BuildStep("a", ("accc", "${MODEL_DIR}")), BuildStep("b", ("link", "${OUTPUT}"), ("${OUTPUT}/e",)))
    assert from_crd(PROFILE) == BuildProfile(
        ResourceType.NPU,
        "acme",
        steps,
        flags={"TARGET": "x1"},
        output_format="acme-bin",
        products=("X1",),
        drivers=("1.4",),
    )
    here = Path("/artifact")
    expected = BuildArtifact(here, "0" * 64, "acme-bin", ("X1",), ("1.4",), {"accc": "2.0"})
    assert from_crd(ARTIFACT, path=here) == expected


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/**/*.yaml"), key=str), ids=lambda path: path.name)
def test_the_examples_survive(file: Path) -> None:
    for manifest in yaml.safe_load_all(file.read_text()):
        if isinstance(manifest, dict) and manifest.get("kind") in ("AcceleratorResource", "BuildProfile"):
            assert to_crd(from_crd(manifest), manifest) == as_models_write_it(manifest)


def test_an_object_from_nothing_but_what_it_needs() -> None:
    resource = Resource("npu0", ResourceType.CPU, {"vendor": "Acme", "product": "X1", "memory_bytes": 2**35})
    runtime = {"spec": {"runtime": {"plugin": "acme", "image": "acme/runtime:1"}}}
    made = to_crd(resource, runtime, capability=Capability(4, optimized_for=("latency",)))
    assert made["metadata"]["name"] == "npu0"
    assert from_crd(made) == resource
    assert capability_from_crd(made) == Capability(4, optimized_for=("latency",))
    profile = BuildProfile(ResourceType.NPU, "accc", (BuildStep("a", ("c",)),), "2.0", output_format="f")
    made = to_crd(profile, {"spec": {"target": {"vendor": "Acme"}}}, image="acme/sdk:2")
    assert made["spec"]["steps"][0]["image"] == "acme/sdk:2"
    assert made["metadata"]["annotations"] == {ANNOTATION: '{"compiler_version":"2.0"}'}
    assert from_crd(made) == profile


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_line = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)
_word = st.from_regex(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,20}", fullmatch=True)
_words = st.lists(_word, max_size=4, unique=True).map(tuple)
_name = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
_number = st.none() | st.integers(1, 65536)

_resources = st.builds(
    lambda id_, kind, vendor, product, more, tags: Resource(
        id_, kind, {**more, "vendor": vendor, "product": product}, tags
    ),
    st.text(min_size=1, max_size=10),
    st.sampled_from([kind for kind in ResourceType if kind is not ResourceType.HYBRID]),
    _line,
    _line,
    st.dictionaries(st.text(max_size=70), _json | st.text(max_size=300), max_size=40),
    _words,
)
_capabilities = st.builds(
    Capability,
    _number,
    _number,
    st.lists(st.sampled_from(["fp32", "fp16", "bf16", "int8"]), unique=True).map(tuple),
    st.booleans(),
    _words,
)
_steps = st.builds(
    BuildStep,
    _name,
    st.lists(st.text(max_size=8), min_size=1, max_size=80).map(tuple),
    st.lists(_line, max_size=3, unique=True).map(tuple),
)
_profiles = st.builds(
    BuildProfile,
    st.sampled_from([kind for kind in ResourceType if kind is not ResourceType.HYBRID]),
    st.text(max_size=10),
    st.lists(_steps, min_size=1, max_size=4, unique_by=lambda step: step.name).map(tuple),
    st.text(max_size=5),
    flags=st.dictionaries(st.text(max_size=5) | st.just("TARGET"), _json, max_size=4),
    output_format=_line,
    products=_words,
    drivers=_words,
)
_artifacts = st.builds(
    BuildArtifact,
    st.just(Path()),
    st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    _line,
    _words,
    _words,
    st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=4),
    st.dictionaries(st.text(max_size=5), _json, max_size=4),
    st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=4),
)


@settings(max_examples=120, deadline=None)
@given(_resources, st.none() | _capabilities)
def test_every_resource_survives(resource: Resource, capability: Capability | None) -> None:
    made = to_crd(resource, ACCELERATOR, capability=capability)
    assert from_crd(made) == resource
    assert capability_from_crd(made) == (capability or capability_from_crd(ACCELERATOR))
    assert to_crd(resource, made) == made, "and the second time nothing changes"
    assert made["spec"]["nodeSelector"] == {"acme": "yes"}, "what the SDK does not know stays"


@settings(max_examples=120, deadline=None)
@given(_profiles)
def test_every_profile_survives(profile: BuildProfile) -> None:
    made = to_crd(profile, PROFILE, image="other")
    assert from_crd(made) == profile
    assert to_crd(from_crd(made), made) == made
    assert made["spec"]["scratch"] == "5Gi"


@settings(max_examples=120, deadline=None)
@given(_artifacts)
def test_every_artifact_survives(artifact: BuildArtifact) -> None:
    made = to_crd(artifact, ARTIFACT)
    assert from_crd(made, path=artifact.path) == artifact
    assert to_crd(from_crd(made), made) == made
    assert made["status"]["attempts"] == 2


def without(manifest: dict[str, Any], part: str) -> dict[str, Any]:
    return {**manifest, "spec": {name: value for name, value in manifest["spec"].items() if name != part}}


FACTS = {"vendor": "A", "product": "P"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: to_crd(Resource("h", ResourceType.HYBRID, FACTS), ACCELERATOR), "each member"),
        (lambda: to_crd(Resource("a", ResourceType.NPU, {"vendor": "A"}), ACCELERATOR), "needs the attribute product"),
        (lambda: to_crd(Resource("a", ResourceType.NPU, FACTS)), "runtime: Field required; .* must be in the base"),
        (lambda: to_crd(Resource("a", ResourceType.NPU, FACTS, ("x", "x")), ACCELERATOR), "tag is there twice"),
        (lambda: to_crd(Resource("a", ResourceType.NPU, {**FACTS, "x": {1: 2}}), ACCELERATOR), "must be JSON"),
        (lambda: to_crd(Resource("a", ResourceType.NPU, {**FACTS, "x": object()}), ACCELERATOR), "must be JSON"),
        (lambda: to_crd(Resource("a", ResourceType.NPU, {**FACTS, "x": "y" * 300_000}), ACCELERATOR), "larger than"),
        (lambda: to_crd(Resource("A b", ResourceType.NPU, FACTS), {"kind": "AcceleratorResource"}), "no name"),
        (lambda: to_crd(Resource("a", ResourceType.NPU, FACTS), PROFILE), "base of a AcceleratorResource is a Build"),
        (lambda: to_crd(BuildProfile(ResourceType.NPU, "c"), PROFILE), "has no steps"),
        (lambda: to_crd(BuildArtifact(Path(), "AB", "f"), ARTIFACT), "key: String should match"),
        (lambda: to_crd(BuildArtifact(Path(), "k", "f")), "SHA-256 in hexadecimal"),
        (lambda: from_crd({"kind": "Pod"}), "kind Pod has no counterpart"),
        (lambda: from_crd(without(PROFILE, "output")), "output: Field required"),
        (lambda: capability_from_crd(PROFILE), "this is a BuildProfile"),
        (lambda: from_crd({**ACCELERATOR, "metadata": {"name": "a", "annotations": {ANNOTATION: "["}}}), "no JSON"),
        (
            lambda: from_crd({**ACCELERATOR, "metadata": {"name": "a", "annotations": {ANNOTATION: '{"x":1}'}}}),
            "does not fit a AcceleratorResource",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


def test_nobody_else_loads_the_models() -> None:
    modules = (
        "resource",
        "resource_pool",
        "policies",
        "routing",
        "pipeline",
        "cooperation",
        "artifacts",
        "binary_adapter",
    )
    code = (
        f"import sys\nfor name in {modules}: __import__('rm_abstract.core.' + name)\nprint('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
