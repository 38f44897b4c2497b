"""Runtimes for applications: over plugins and over binary stacks, and the example that goes from device to device."""

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from native_support import EXAMPLE_C, build_c, greedy
from rm_abstract.core.artifacts import ArtifactCache
from rm_abstract.core.binary_adapter import (
    BinaryRuntimeAdapter,
    DummyRuntimeAdapter,
    LibraryCompilerAdapter,
)
from rm_abstract.core.device_runtime import BinaryDeviceRuntime, DeviceRuntime, PluginRuntime
from rm_abstract.core.errors import BadInput, ToolchainFailure
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata
from rm_abstract.core.resource import BuildArtifact, BuildProfile, BuildStep, Resource, ResourceType
from rm_abstract.core.session import Session
from scripted_session import ScriptedSession

EXAMPLE = Path(__file__).parents[3] / "examples/sdk/migration.py"
CORPUS = "the cat sat on the mat\nthe dog sat on the log\n"


class ShoutPlugin(Plugin):
    """Compiles by copying, and says prompts in capitals."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @classmethod
    def metadata(cls) -> PluginMetadata:
        return PluginMetadata("shout", "Shout", "1.0.0", device_types=("npu",), formats=("shout",))

    def is_available(self) -> bool:
        return True

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        step = BuildStep("copy", ("cp", "-r", "${MODEL_DIR}", "${OUTPUT}/model"), ("${OUTPUT}/model",))
        return [BuildProfile(ResourceType.NPU, "cp", (step,), output_format="shout")]

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        self.events.append("probe")
        return [Resource("npu0", ResourceType.NPU)]

    def initialize(self) -> None:
        self.events.append("initialize")

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> Any:
        self.events.append("prepare")
        return resource

    def create_session(self, resource: Any) -> Session:
        return ScriptedSession()

    def release_resource(self, resource: Any) -> None:
        self.events.append("release")

    def cleanup(self) -> None:
        self.events.append("cleanup")


class WholePlugin(ShoutPlugin):
    """The same without sessions."""

    create_session = Plugin.create_session  # type: ignore[assignment]

    def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
        return f"{inputs.upper()}:{kwargs['max_tokens']}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "letters"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": ["X"]}))
    (directory / "corpus.txt").write_text(CORPUS)
    return directory


def test_a_plugin_as_a_runtime(tmp_path: Path, model: Path) -> None:
    plugin = ShoutPlugin()
    with PluginRuntime(plugin, cache_dir=tmp_path / "cache") as runtime:
        assert runtime.device == "Shout"
        with pytest.raises(BadInput, match="call load_model"):
            runtime.generate("x", 1)
        runtime.load_model(model)
        assert runtime.generate("hello", 3) == "HEL"
        assert "".join(runtime.stream("hello", 50)) == "HELLO"
        runtime.load_model(model)
        assert runtime.generate("again", 50) == "AGAIN"
    assert plugin.events == ["initialize", "probe", "prepare", "release", "probe", "prepare", "release", "cleanup"]
    assert len(ArtifactCache(tmp_path / "cache").entries()) == 1, "compiled once"
    runtime.cleanup()
    assert plugin.events.count("cleanup") == 1


def test_a_plugin_without_sessions_as_a_runtime(tmp_path: Path, model: Path) -> None:
    BuildArtifact(model, "k", "shout").write()
    with PluginRuntime(WholePlugin()) as runtime:
        runtime.load_model(model)
        assert runtime.generate("hello", 3) == "HELLO:3"
        assert list(runtime.stream("hello", 3)) == ["HELLO:3"]


def test_a_model_to_compile_needs_a_place_for_the_result(model: Path) -> None:
    with PluginRuntime(ShoutPlugin()) as runtime, pytest.raises(BadInput, match="give a cache_dir"):
        runtime.load_model(model)
    with pytest.raises(BadInput, match="give the runtime an ArtifactCache"):
        BinaryDeviceRuntime(DummyRuntimeAdapter, compiler=LibraryCompilerAdapter(PROFILE, "x.so"))
    with pytest.raises(BadInput, match="no plugin for tpu9"):
        PluginRuntime("tpu9")


PROFILE = BuildProfile(ResourceType.NPU, "ngram", interface="SharedLibrary", output_format="byte-ngram")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_c(EXAMPLE_C / "ngram.c", tmp_path_factory.mktemp("lib") / "libngram.so")


def test_a_binary_stack_as_a_runtime(tmp_path: Path, model: Path, library: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache", max_bytes=0)
    compiler = LibraryCompilerAdapter(PROFILE, "libngram.so", search_paths=[library.parent])
    assert compiler.available()
    runtime: DeviceRuntime = BinaryDeviceRuntime(
        lambda engine: BinaryRuntimeAdapter(engine, 0, library), compiler=compiler, cache=cache, device="C"
    )
    with runtime:
        runtime.load_model(model)
        assert runtime.generate("the d", 30) == greedy(CORPUS, "the d", 30)
        assert "".join(runtime.stream("the c", 30)) == greedy(CORPUS, "the c", 30)
        (entry,) = cache.entries()
        assert cache.collect().kept == {(entry.key, 1): "in use"}
    assert cache.collect().removed == ((entry.key, 1),), "given back with the device"
    with pytest.raises(BadInput, match="call load_model"):
        runtime.generate("x", 1)


def test_a_library_as_a_compiler(tmp_path: Path, model: Path, library: Path) -> None:
    artifact = LibraryCompilerAdapter(PROFILE, library).compile(model, tmp_path / "out", model_id="letters")
    artifact.validate()
    assert (artifact.format, artifact.model_id) == ("byte-ngram", "letters")
    assert artifact.versions
    assert all(version.count(".") == 2 for version in artifact.versions.values())
    (model / "corpus.txt").unlink()
    with pytest.raises((BadInput, ToolchainFailure), match=r"corpus\.txt"):
        LibraryCompilerAdapter(PROFILE, library).compile(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not LibraryCompilerAdapter(PROFILE, "libnothing.so").available()
    wrong = BuildProfile(ResourceType.NPU, "ngram", flags={"max_batch_size": "many"})
    with pytest.raises(BadInput, match="max_batch_size is a str, but must be a int"):
        LibraryCompilerAdapter(wrong, library).compile(model, tmp_path / "other")


def test_the_migration_example() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines if line[1:2] == "."] == list("12345")
    said = dict(itertools.pairwise(lines))
    expected = "the d" + greedy(CORPUS, "the d", 30)
    for begin in ("1. The original", "2. The application on: GPU (", "3. The application on: NPU ("):
        (heading,) = [line for line in lines if line.startswith(begin)]
        assert said[heading] == expected
    assert all("stands in" in line or "dummy" in line for line in lines if "The application on" in line)
    (last,) = [number for number, line in enumerate(lines) if line.startswith("5.")]
    assert [line.split(":")[0] for line in lines[last + 1 : last + 4]] == ["GPU", "NPU", "PIM"]
    assert lines[last + 1].split(":")[1] == lines[last + 2].split(":")[1]
    assert lines[-1] == "GPU and NPU say what the original code said"
