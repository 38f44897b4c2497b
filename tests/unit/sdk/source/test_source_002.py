"""The code samples of document 002, the orchestrator of resources, with our package names, run as they stand."""

import inspect
import sys
from pathlib import Path

import pytest
from native_support import EXAMPLE_C, build_c, greedy
from rm_abstract import BuildArtifact, BuildProfile, Capability, Resource, ResourceType
from rm_abstract.core.binary_adapter import (
    BinaryCompilerAdapter,
    BinaryRuntimeAdapter,
    CLICompilerAdapter,
    ConfigFileCompilerAdapter,
    DummyRuntimeAdapter,
)
from rm_abstract.core.device_runtime import BinaryDeviceRuntime, DeviceRuntime
from rm_abstract.core.plugin import BackendConfig, Plugin
from rm_abstract.core.policies import PREFERRED, PolicyType
from rm_abstract.core.resource_pool import ResourcePool

CORPUS = "the cat sat on the mat\nthe dog sat on the log\n"
NPU_COMPILE = """#!{python}
import argparse, tempfile
from pathlib import Path
from rm_abstract.native.library import NativeLibrary

parser = argparse.ArgumentParser()
parser.add_argument("--input", type=Path, required=True)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--precision", choices=["fp16"], required=True)
parser.add_argument("--optimization-level", type=int, choices=[3], required=True)
given = parser.parse_args()
with tempfile.TemporaryDirectory() as model, NativeLibrary("{library}") as library:
    Path(model, "corpus.txt").write_bytes(given.input.read_bytes())
    given.output.mkdir()
    library.compile(Path(model), given.output)
"""


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vendor's stack under /opt/npu: a compiler with a command line, a library without source; and a model."""
    library = build_c(EXAMPLE_C / "ngram.c", tmp_path / "opt/npu/lib/libnpu_runtime.so")
    tool = tmp_path / "opt/npu/bin/npu_compile"
    tool.parent.mkdir()
    tool.write_text(NPU_COMPILE.format(python=sys.executable, library=library))
    tool.chmod(0o755)
    (tmp_path / "model.onnx").write_text(CORPUS)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_resources_capabilities_and_profiles_are_defined_like_this() -> None:
    resource = Resource(
        id="npu-rbln-0",
        type=ResourceType.NPU,
        attributes={"vendor": "Rebellions", "memory_gb": 32},
        tags=["low-latency", "fp16-optimized"],
    )
    capability = Capability(
        max_batch_size=8,
        max_seq_len=4096,
        dtype=["fp16", "int8"],
        requires_precompile=True,
        optimized_for=["latency"],
    )
    profile = BuildProfile(
        target_resource_type=ResourceType.NPU,
        compiler="vendor_npu_compiler",
        compiler_version="2.0",
        flags={"precision": "fp16", "optimization_level": 3},
        interface="cli",  # Binary-only compiler
    )
    assert [kind.name for kind in ResourceType if kind is not ResourceType.FPGA] == [
        "GPU", "NPU", "PIM", "CPU", "REMOTE", "HYBRID",
    ]  # fmt: skip
    assert (profile.flags["optimization_level"], profile.steps) == (3, ())
    pool = ResourcePool()
    pool.add(resource, capability)
    assert pool.find_by_type(ResourceType.NPU) == pool.find_by_tag("low-latency") == [resource]
    assert pool.find_by_attributes(vendor="Rebellions") == pool.find_by_capability(Capability(8, 4096)) == [resource]


def test_a_model_is_compiled_and_run_like_this(vendor: Path) -> None:
    profile = BuildProfile(
        target_resource_type=ResourceType.NPU,
        compiler="vendor_npu_compiler",
        compiler_version="2.0",
        flags={"precision": "fp16", "optimization_level": 3},
        interface="cli",
    )
    compiler = CLICompilerAdapter(
        build_profile=profile,
        cli_name="npu_compile",
        search_paths=[str(vendor / "opt/npu/bin")],
    )
    artifact = compiler.compile(
        input_path="model.onnx",
        output_path="engine.bin",
        model_id="llama-7b",
    )
    runtime = BinaryRuntimeAdapter(
        engine_path=artifact.path,
        device_id=0,
        runtime_so="libnpu_runtime.so",
    )
    runtime.load()
    inputs = "the d"
    output = runtime.run(inputs, max_tokens=100)
    runtime.unload()
    assert output == greedy(CORPUS, "the d", 100)
    assert (artifact.path, artifact.model_id) == (Path("engine.bin"), "llama-7b")
    assert artifact.versions == {"vendor_npu_compiler": "2.0"}
    artifact.validate()


def test_the_adapters_are_these() -> None:
    assert issubclass(CLICompilerAdapter, BinaryCompilerAdapter)
    assert issubclass(ConfigFileCompilerAdapter, BinaryCompilerAdapter)
    assert inspect.isabstract(BinaryCompilerAdapter)
    assert issubclass(DummyRuntimeAdapter, BinaryRuntimeAdapter)


def test_an_application_does_not_change_with_its_device(vendor: Path) -> None:
    class GpuTorchRuntime(DeviceRuntime):
        model = ""

        def load_model(self, model_path: object) -> None:
            self.model = str(model_path)

        def generate(self, prompt: str, max_tokens: int) -> str:
            return f"{self.model} on the GPU: {prompt}"[:max_tokens]

        def cleanup(self) -> None:
            self.model = ""

    class NpuRuntime(BinaryDeviceRuntime):
        def __init__(self) -> None:
            super().__init__(lambda engine: BinaryRuntimeAdapter(engine, 0, "libnpu_runtime.so"))

    class PimRuntime(BinaryDeviceRuntime):
        def __init__(self) -> None:
            super().__init__(DummyRuntimeAdapter)

    class LLMApplication:
        def __init__(self, runtime: DeviceRuntime) -> None:
            self.runtime = runtime

        def process_request(self, prompt: str, max_tokens: int) -> str:
            return self.runtime.generate(prompt, max_tokens)

    profile = BuildProfile(ResourceType.NPU, "npu_compile", flags={"precision": "fp16", "optimization_level": 3})
    engine = CLICompilerAdapter(profile, [vendor / "opt/npu/bin"]).compile("model.onnx", "engine.bin").path
    said = []
    for runtime in (GpuTorchRuntime(), NpuRuntime(), PimRuntime()):
        with runtime:
            runtime.load_model(engine)
            app = LLMApplication(runtime=runtime)
            said.append(app.process_request("the d", 30))
    assert said == ["engine.bin on the GPU: the d", greedy(CORPUS, "the d", 30), " ".join(["the", "d"] * 15)]


def test_the_plugin_interface_has_these_methods() -> None:
    expected = {
        "metadata": [],
        "is_available": [],
        "initialize": [],
        "prepare_resource": ["resource", "config"],
        "execute": ["resource", "inputs", "kwargs"],
        "cleanup": [],
        "probe": ["resources"],
        "required_build_profiles": ["config"],
        "get_capability": ["resources", "config", "artifacts"],
        "create_session": ["resource"],
    }
    for name, parameters in expected.items():
        found = [each for each in inspect.signature(getattr(Plugin, name)).parameters if each != "self"]
        assert found == parameters, name

    class Least(Plugin):
        @classmethod
        def metadata(cls) -> object:  # type: ignore[override]
            raise NotImplementedError

        def is_available(self) -> bool:
            return True

        def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> object:
            return resource

    plugin = Least()
    resources = [Resource("npu0", ResourceType.NPU)]
    assert plugin.probe(resources) == resources
    assert plugin.required_build_profiles(BackendConfig()) == []
    assert plugin.get_capability(resources, BackendConfig(), []) == Capability()


def test_the_policies_prefer_what_the_document_says() -> None:
    npu, gpu, pim, cpu, remote = (ResourceType(word) for word in ("NPU", "GPU", "PIM", "CPU", "REMOTE"))
    expected = {
        PolicyType.LATENCY: (npu,),
        PolicyType.THROUGHPUT: (gpu,),
        PolicyType.ENERGY: (npu, pim),
        PolicyType.COST: (cpu, remote),
    }
    assert expected == PREFERRED
