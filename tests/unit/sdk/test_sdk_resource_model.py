"""Resources, capabilities, build profiles and artifacts: what they accept, and what they find wrong."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.core.resource import (
    ARTIFACT_FILE,
    DEFAULT_PRIORITY,
    BuildArtifact,
    BuildProfile,
    Capability,
    Resource,
    ResourceType,
)
from rm_api import accelerator_types


def test_the_types_are_those_of_the_api_and_hybrid() -> None:
    assert {member.value for member in ResourceType} == {t.value for t in accelerator_types.AcceleratorType} | {
        "HYBRID"
    }
    usual = {ResourceType(kind.value): number for kind, number in accelerator_types.DEFAULT_PRIORITY.items()}
    assert {**usual, ResourceType.HYBRID: -50} == dict(DEFAULT_PRIORITY)


@pytest.mark.parametrize("word", ["NPU", "npu", "Npu"])
def test_a_type_is_found_whatever_its_case(word: str) -> None:
    assert Resource("a", word).type is ResourceType.NPU  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resource("", ResourceType.CPU), "needs an id"),
        (lambda: Resource("a", "TPU9"), "there are GPU, NPU, PIM"),
        (lambda: Resource("a", ResourceType.CPU, tags="fast"), "list of words"),
        (lambda: Capability(max_batch_size=0), "at least 1"),
        (lambda: Capability(dtype="fp16"), "list of words"),
        (lambda: BuildProfile(ResourceType.NPU, "c", interface="telepathy"), "there are CLI, ConfigFile"),
        (lambda: Resource.hybrid("h", [Resource("a", ResourceType.CPU)]), "at least two members"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        make()


def test_lists_and_tuples_are_the_same() -> None:
    assert Resource("a", ResourceType.NPU, tags=["x"]) == Resource("a", ResourceType.NPU, tags=("x",))
    assert Capability(dtype=["fp16"]) == Capability(dtype=("fp16",))
    assert BuildProfile(ResourceType.NPU, "c", interface="config-file").interface == "ConfigFile"


def test_a_resource_keeps_its_attributes_whatever_happens_to_the_callers() -> None:
    facts = {"vendor": "Acme"}
    resource = Resource("a", ResourceType.GPU, facts)
    facts["vendor"] = "Other"
    assert resource.attributes == {"vendor": "Acme"}
    assert pickle.loads(pickle.dumps(resource)) == resource
    assert resource.with_attributes(driver="2").attributes == {"vendor": "Acme", "driver": "2"}


def test_a_hybrid_resource_is_made_of_others() -> None:
    gpu, npu = (
        Resource("gpu0", ResourceType.GPU, tags=["big"]),
        Resource("npu0", ResourceType.NPU, tags=["fast", "big"]),
    )
    both = Resource.hybrid("both", [gpu, npu])
    assert (both.type, both.members, both.tags) == (ResourceType.HYBRID, ("gpu0", "npu0"), ("big", "fast"))
    assert gpu.members == ()


@pytest.mark.parametrize(
    ("own", "needed", "covered"),
    [
        (Capability(), Capability(8, 4096, ("fp16",)), True),
        (Capability(8, 4096), Capability(8, 4096), True),
        (Capability(8), Capability(9), False),
        (Capability(max_seq_len=4095), Capability(max_seq_len=4096), False),
        (Capability(dtype=("fp16", "int8")), Capability(dtype=("int8", "int4")), True),
        (Capability(dtype=("fp16",)), Capability(dtype=("int8",)), False),
        (Capability(optimized_for=("latency", "cost")), Capability(optimized_for=("latency",)), True),
        (Capability(), Capability(optimized_for=("latency",)), False),
    ],
)
def test_what_a_capability_covers(own: Capability, needed: Capability, covered: bool) -> None:
    assert own.covers(needed) is covered


# Artifacts


@pytest.fixture
def artifact(tmp_path: Path) -> BuildArtifact:
    root = tmp_path / "artifact"
    (root / "deep").mkdir(parents=True)
    (root / "engine.bin").write_bytes(b"engine")
    (root / "deep/table").write_bytes(b"table")
    (root / "latest").symlink_to("engine.bin")
    made = BuildArtifact(root, "k", "f", versions={"c": "2.0"}, metadata={"model_id": "llama"}).sealed()
    made.write()
    return made


def test_a_sealed_artifact_is_read_back_and_valid(artifact: BuildArtifact) -> None:
    read = BuildArtifact.read(artifact.path)
    assert read == artifact
    assert read.model_id == "llama"
    assert set(read.files) == {"engine.bin", "deep/table", "latest"}
    read.validate()


def test_the_digest_is_of_the_content_alone(artifact: BuildArtifact, tmp_path: Path) -> None:
    moved = artifact.path.rename(tmp_path / "elsewhere")
    again = dataclasses.replace(BuildArtifact.read(moved), metadata={"model_id": "other"})
    assert again.sealed().digest == artifact.digest != ""
    (moved / "deep/table").write_bytes(b"tablE")
    assert again.sealed().digest != artifact.digest


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def relink(root: Path) -> None:
    (root / "latest").unlink()
    (root / "latest").symlink_to("deep/table")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (write("engine.bin", b"engina"), "engine.bin is damaged"),
        (write("engine.bin", b"eng"), "engine.bin is damaged"),
        (write("extra", b""), "has grown by extra"),
        (lambda root: (root / "deep/table").unlink(), "lacks deep/table"),
        (relink, "latest is damaged"),
        (lambda root: (root / ARTIFACT_FILE).unlink(), "is no artifact"),
        (lambda root: (root / ARTIFACT_FILE).write_text("{"), "not valid JSON"),
        (
            lambda root: (root / ARTIFACT_FILE).write_text(json.dumps({"schema": 1, "key": "k2", "format": "f"})),
            "its description has changed",
        ),
    ],
)
def test_what_validation_finds(artifact: BuildArtifact, harm: Callable[[Path], object], message: str) -> None:
    harm(artifact.path)
    with pytest.raises(ArtifactMismatch, match=message):
        artifact.validate()


def test_an_artifact_without_digests_must_at_least_hold_something(tmp_path: Path) -> None:
    made = BuildArtifact(tmp_path, "k", "f")
    made.write()
    with pytest.raises(ArtifactMismatch, match="is empty"):
        made.validate()
    (tmp_path / "engine").write_text("x")
    made.validate()
    assert made.digest == ""


def test_an_artifact_of_one_file_is_described_beside_it(tmp_path: Path) -> None:
    engine = tmp_path / "engine.bin"
    engine.write_bytes(b"engine")
    made = BuildArtifact(engine, "k", "f").sealed()
    made.write()
    assert {path.name for path in tmp_path.iterdir()} == {"engine.bin", f"engine.bin.{ARTIFACT_FILE}"}
    BuildArtifact.read(engine).validate()
    engine.write_bytes(b"other")
    with pytest.raises(ArtifactMismatch, match="damaged"):
        made.validate()


def test_metadata_are_json(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must be JSON"):
        BuildArtifact(tmp_path, "k", "f", metadata={"x": object()}).write()
