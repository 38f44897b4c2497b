"""Profiles of vendors whose compilers are closed: their very steps, on stand-ins that follow the documented interfaces.

What each stand-in follows, and what ran for real, is in docs/compilers.md.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from build_profile_driver import (
    EXAMPLES,
    RUNTIME_IMAGE,
    STAND_INS,
    Build,
    Image,
    Node,
    Profile,
    edited,
    facts_of,
    files_in,
    runtime_image,
    stand_ins,
)
from rm_api.conditions import Reason
from rma_launch_driver import Binaries
from scripted_model import write_model
from system_packages import need
from upmem_support import COMPILER

Object = dict[str, Any]
PYTHON = {"PYTHONPATH": str(STAND_INS / "python")}


@pytest.fixture(scope="module", autouse=True)
def host_compiler() -> None:
    """The stand-in of UPMEM's compiler is the host's."""
    need(COMPILER)


@dataclass(frozen=True)
class Vendor:
    """A profile, what stands in for its images, and what a build leaves."""

    profile: str
    accelerator: str
    programs: Mapping[str, Mapping[str, str]]
    """For each image of the profile, by what its name has in it: the stand-in behind each of its programs; none where
    the image is ours, whose programs are real."""
    leaves: frozenset[str]
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files that the images have at fixed places."""
    environment: Mapping[str, str] = field(default_factory=dict)
    deployment: Object = field(default_factory=dict)
    device: Mapping[str, str] = field(default_factory=dict)
    """What the vendor's device plugin sets for a step on a device."""
    version: str | None = None

    def load(self) -> Profile:
        return Profile.load(self.profile, self.accelerator)


EXPORTED = {"config.json", "tokenizer.json", "tokenizer_config.json"}
OPTIMUM = {"optimum_cli": "optimum_cli"}
TRTLLM_EXAMPLES = "/app/tensorrt_llm/examples/models/core/llama"
CANN = "/usr/local/Ascend/ascend-toolkit/latest/x86_64-linux/ascend_toolkit_install.info"

VENDORS = {
    "rebellions": Vendor(
        "rebellions/build-profile.yaml",
        "adopt-rebellions/accelerator.yaml",
        {"rbln-compiler": {"optimum_rbln_cli": "optimum_rbln_cli"}},
        frozenset({"prefill.rbln", "decoder_batch_8.rbln", "rbln_config.json"}),
        version="0.12.0",
    ),
    "tensorrt-llm": Vendor(
        "tensorrt-llm/build-profile.yaml",
        "tensorrt-llm/accelerator.yaml",
        {"tensorrt-llm": {"trtllm_build": "trtllm_build"}},
        frozenset({"rank0.engine", "config.json", "tokenizer.json", "tokenizer_config.json"}),
        files={f"{TRTLLM_EXAMPLES}/convert_checkpoint.py": STAND_INS / "convert_checkpoint.py"},
        device={"NVIDIA_VISIBLE_DEVICES": "GPU-6f8e7c1a"},
        version="1.0.0",
    ),
    "upmem": Vendor(
        "upmem/build-profile.yaml",
        "upmem/accelerator.yaml",
        {"upmem-sdk": {"dpu_upmem_dpurte_clang": "dpu_upmem_dpurte_clang"}, "rm-abstract/pim": {}},
        frozenset({"weights.pim", "layout.json", "host.safetensors", "gemv.dpu", "generation_config.json"})
        | EXPORTED
        | {"special_tokens_map.json"},
        deployment={"requirements": {"dtype": "int8"}},
        version="12.0.0",
    ),
    "neuron": Vendor(
        "neuron/build-profile.yaml",
        "neuron/accelerator.yaml",
        {"neuron-compiler": {**OPTIMUM, "neuronx_cc": "neuronx_cc"}},
        frozenset({"model.pt", "neuron_config.json", "config.json", "tokenizer.json"}),
        version="2.20.9961.0+0acef03a",
    ),
    "qaic": Vendor(
        "qaic/build-profile.yaml",
        "qaic/accelerator.yaml",
        {"optimum-onnx": OPTIMUM, "qaic-apps-sdk": {"qaic_compile": "qaic_compile"}},
        frozenset({"qpc/programqpc.bin", *EXPORTED}),
    ),
    "ascend": Vendor(
        "ascend/build-profile.yaml",
        "ascend/accelerator.yaml",
        {"optimum-onnx": OPTIMUM, "cann-toolkit": {"atc": "atc"}},
        frozenset({"model.om", *EXPORTED}),
        version="8.5.0",
    ),
    "any-chip": Vendor(
        "any-chip/build-profile.yaml",
        "any-chip/accelerator.yaml",
        {"acme/compiler": {"acme_cc": "acme_cc"}},
        frozenset({"model.bin", "tokenizer.json"}),
    ),
}
WARMED_UP = {"vllm-cpu/build-profile.yaml", "nvidia-vllm/build-profile.yaml"}
"""Their compiler is the engine itself, which has no stand-in: on the CPU it really is warmed up, in slow_engines.py; on
a GPU it has not been."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A model that every profile takes, and one that none does."""
    root = tmp_path_factory.mktemp("hub")
    for variant in ("base", "unsupported"):
        write_model(root / variant, variant=variant)
    return {variant: root / variant for variant in ("base", "unsupported")}


@pytest.fixture(scope="module")
def facts(models: Mapping[str, Path]) -> Object:
    return facts_of(models["base"])


Attempt = Callable[..., Build]


@pytest.fixture
def attempt(binaries: Binaries, models: Mapping[str, Path], facts: Object, tmp_path: Path) -> Attempt:
    """An attempt of a vendor at the model, with faults of the tool and other words in the profile."""

    @functools.cache
    def ours() -> Image:
        return runtime_image(tmp_path / "ours")

    def make(name: str, fault: str = "", profile: Profile | None = None, model: str = "base") -> Build:
        vendor = VENDORS[name]
        profile = profile or vendor.load()
        images = {RUNTIME_IMAGE: ours()}
        for image in profile.images:
            (kind,) = [each for each in vendor.programs if each in image]
            made = stand_ins(tmp_path / kind, **vendor.programs[kind]) if vendor.programs[kind] else ours()
            faulty = {"STAND_IN_FAULT": fault} if fault else {}
            files = {**vendor.files, "/opt/qti-aic/exec/qaic-compile": made.programs[0] / "qaic-compile"}
            images[image] = Image(made.programs, {**PYTHON, **vendor.environment, **faulty}, files)
        artifact = profile.artifact(facts, **vendor.deployment)
        return Node(binaries.launcher, tmp_path, images).build(artifact).lay(models[model])

    return make


@pytest.mark.parametrize("name", VENDORS)
def test_the_steps_make_what_the_vendor_says(name: str, attempt: Attempt) -> None:
    build = attempt(name)
    reached: list[str] = []
    for stage in range(build.stages):
        reached += build.vendor(stage, device=VENDORS[name].device if stage else None).succeeded().containers
    wanted = [step.name for step in build.spec.steps]
    assert [container for container in reached if container in wanted] == wanted
    assert files_in(build.output) == VENDORS[name].leaves


@pytest.mark.parametrize("name", VENDORS)
def test_the_shapes_of_the_artifact_reach_the_tool(name: str, attempt: Attempt, facts: Object) -> None:
    """Whichever way the tool is told: a build for other shapes is another command line, and another key."""
    build = attempt(name)
    shape = build.spec.shape
    values = {str(value) for value in (shape.max_sequence_length, shape.max_batch_size) if value}
    words = " ".join(
        word + environment["value"]
        for stage in range(build.stages)
        for container in build.template(stage)["initContainers"]
        for word in container["command"]
        for environment in container["env"]
    )
    assert values
    assert all(value in words for value in values)
    workload = {"inputTokens": 128, "outputTokens": 64, "concurrency": 1}
    smaller = VENDORS[name].load().artifact(facts, **{**VENDORS[name].deployment, "workload": workload})
    assert smaller["spec"]["key"] != build.spec.key


@pytest.mark.parametrize("name", [name for name, vendor in VENDORS.items() if vendor.version])
def test_the_version_is_read(name: str, attempt: Attempt, tmp_path: Path) -> None:
    vendor = VENDORS[name]
    install = tmp_path / "ascend_toolkit_install.info"
    install.write_text("package_name=Ascend-cann-toolkit\nversion=8.5.0\ninnerversion=V100R001C23\narch=x86_64\n")
    metadata = tmp_path / "site" / "tensorrt_llm-1.0.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.0.0\n")
    build = attempt(name)
    probe = vendor.load().spec.version_probe
    assert probe is not None
    image = build.node.images[probe.image]
    image = Image(image.programs, {"PYTHONPATH": str(metadata.parent)}, {CANN: install})
    report = build.probe_version(probe, image)
    assert report.versions == {"toolchain": vendor.version}


def test_a_program_in_two_files_is_an_output(attempt: Attempt) -> None:
    """Above a size atc adds the platform to the name."""
    build = attempt("ascend", "large")
    build.vendor().succeeded()
    assert "model_linux_x86_64.om" in files_in(build.output)


UNSUPPORTED, FAILED = (64, Reason.UNSUPPORTED_MODEL), (70, Reason.TOOLCHAIN_FAILED)
INVALID = (64, Reason.SOURCE_INVALID)


@dataclass(frozen=True)
class Failure:
    """What goes wrong, and what must come out."""

    name: str
    what: str
    container: str
    code: tuple[int, Reason]
    words: tuple[str, ...]
    fault: str = ""
    model: str = "base"
    lacks: str = ""
    """A file that is not in the model."""
    args: tuple[str, str] = ("", "")
    """A word of a step's arguments, and what it says in its place."""
    device: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.what}".replace(" ", "-")


NO_CONFIG: Object = {"what": "no config", "lacks": "config.json"}
NO_WEIGHTS: Object = {"what": "no weights", "lacks": "model.safetensors"}
STRANGER: Object = {"what": "a model it does not know", "model": "unsupported"}
SILENT: Object = {"what": "no output", "fault": "silent"}
EMPTY: Object = {"what": "an empty output", "fault": "empty"}
LIAR: Object = {"what": "0 with an error in the log", "fault": "liar"}
NO_FILE = "no file named model.safetensors"
SOC = "--soc_version=${TARGET}"
UNKNOWN_TYPE = "model type `tape_recorder`"

FAILURES = [
    Failure("rebellions", container="check", code=UNSUPPORTED, words=("RBLNTapeRecorderForCausalLM",), **STRANGER),
    Failure("rebellions", container="check", code=UNSUPPORTED, words=("Could not infer RBLN class",), **NO_CONFIG),
    Failure("rebellions", container="compile", code=FAILED, words=(NO_FILE,), **NO_WEIGHTS),
    Failure("rebellions", container="compile", code=FAILED, words=("*.rbln", "missing"), **SILENT),
    Failure("rebellions", container="compile", code=FAILED, words=(".rbln", "empty"), **EMPTY),
    Failure("rebellions", container="compile", code=FAILED, words=("success pattern", "ran out of"), **LIAR),
    Failure("tensorrt-llm", container="build", code=FAILED, words=("TapeRecorderForCausalLM",), **STRANGER),
    Failure("tensorrt-llm", container="convert", code=FAILED, words=("config.json",), **NO_CONFIG),
    Failure("tensorrt-llm", container="convert", code=FAILED, words=(NO_FILE,), **NO_WEIGHTS),
    Failure("tensorrt-llm", container="convert", code=FAILED, words=("checkpoint/config.json", "missing"), **SILENT),
    Failure("tensorrt-llm", container="convert", code=FAILED, words=("checkpoint/config.json", "empty"), **EMPTY),
    Failure("tensorrt-llm", container="build", code=FAILED, words=("failure pattern", "Engine building"), **LIAR),
    Failure("tensorrt-llm", "no GPU", "build", FAILED, ("No CUDA GPUs are available",), device=False),
    Failure("upmem", container="check", code=UNSUPPORTED, words=("TapeRecorderForCausalLM",), **STRANGER),
    Failure("upmem", container="check", code=INVALID, words=("config.json",), **NO_CONFIG),
    Failure("upmem", "no rank", "layout", INVALID, ("0 ranks",), args=("--ranks=${DEVICE_COUNT}", "--ranks=0")),
    Failure("upmem", container="layout", code=INVALID, words=("no safetensors file",), **NO_WEIGHTS),
    Failure("upmem", "no kernel", "compile", FAILED, ("no such file",), args=("${WORK}/gemv_int8.c", "${WORK}/x.c")),
    Failure("upmem", "an error in it", "compile", FAILED, ("error:",), args=("-DBATCH=${MAX_BATCH}", "-DBATCH=x")),
    Failure("upmem", container="compile", code=FAILED, words=("gemv.dpu", "missing"), **SILENT),
    Failure("upmem", container="compile", code=FAILED, words=("gemv.dpu", "empty"), **EMPTY),
    Failure("any-chip", container="compile", code=FAILED, words=("TapeRecorderForCausalLM",), **STRANGER),
    Failure("any-chip", container="compile", code=FAILED, words=("config.json: No such file",), **NO_CONFIG),
    Failure("any-chip", container="compile", code=FAILED, words=("no safetensors file",), **NO_WEIGHTS),
    Failure("any-chip", container="compile", code=FAILED, words=("model.bin", "missing"), **SILENT),
    Failure("any-chip", container="compile", code=FAILED, words=("model.bin", "empty"), **EMPTY),
    Failure("neuron", container="check", code=UNSUPPORTED, words=(UNKNOWN_TYPE,), **STRANGER),
    Failure("neuron", container="check", code=UNSUPPORTED, words=("config.json",), **NO_CONFIG),
    Failure("neuron", container="export", code=FAILED, words=(NO_FILE,), **NO_WEIGHTS),
    Failure("neuron", "an unknown target", "export", FAILED, ("invalid choice: 'trn9'",), args=("${TARGET}", "trn9")),
    Failure("neuron", container="export", code=FAILED, words=("model.pt", "missing"), **SILENT),
    Failure("neuron", container="export", code=FAILED, words=("model.pt", "empty"), **EMPTY),
    Failure("neuron", container="export", code=FAILED, words=("failure pattern", "NCC_EXTP004"), **LIAR),
    Failure("qaic", container="check", code=UNSUPPORTED, words=(UNKNOWN_TYPE,), **STRANGER),
    Failure("qaic", container="check", code=UNSUPPORTED, words=("config.json",), **NO_CONFIG),
    Failure("qaic", container="export", code=FAILED, words=(NO_FILE,), **NO_WEIGHTS),
    Failure("qaic", "an operator, and 0", "compile", FAILED, ("Unsupported op",), args=("--opset=17", "--opset=23")),
    Failure("qaic", "a flag it lacks", "compile", FAILED, ("unknown command line",), args=("-aic-hw", "-aic-hardware")),
    Failure("qaic", container="export", code=FAILED, words=("model.onnx", "missing"), **SILENT),
    Failure("qaic", container="export", code=FAILED, words=("model.onnx", "empty"), **EMPTY),
    Failure("qaic", container="compile", code=FAILED, words=("failure pattern", "does not fit"), **LIAR),
    Failure("ascend", container="check", code=UNSUPPORTED, words=(UNKNOWN_TYPE,), **STRANGER),
    Failure("ascend", container="check", code=UNSUPPORTED, words=("config.json",), **NO_CONFIG),
    Failure("ascend", container="export", code=FAILED, words=(NO_FILE,), **NO_WEIGHTS),
    Failure("ascend", "an operator", "compile", FAILED, ("E19010",), args=("--opset=17", "--opset=23")),
    Failure("ascend", "an unknown chip", "compile", FAILED, ("EE1001",), args=(SOC, "--soc_version=X")),
    Failure("ascend", container="export", code=FAILED, words=("model.onnx", "missing"), **SILENT),
    Failure("ascend", container="export", code=FAILED, words=("model.onnx", "empty"), **EMPTY),
    Failure("ascend", container="compile", code=FAILED, words=("failure pattern", "E19010"), **LIAR),
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_what_goes_wrong_is_said(failure: Failure, attempt: Attempt) -> None:
    vendor = VENDORS[failure.name]
    profile = vendor.load()
    if failure.args[0]:
        profile = edited(profile, steps=replaced(profile, *failure.args))
    build = attempt(failure.name, failure.fault, profile, failure.model)
    if failure.lacks:
        (build.model / failure.lacks).unlink()
    for stage in range(build.stages):
        name, ended = build.vendor(stage, device=vendor.device if stage and failure.device else None).last
        if ended.code:
            break
    assert name == failure.container, (name, ended)
    ended.failed(*failure.code, *failure.words)


def replaced(profile: Profile, word: str, other: str) -> list[Object]:
    """The profile's steps with another word in their arguments."""
    steps = [step.to_wire() for step in profile.spec.steps]
    found = 0
    for step in steps:
        found += (step.get("args") or []).count(word)
        step["args"] = [other if each == word else each for each in step.get("args") or []]
    assert found, word
    return steps


def test_every_profile_of_a_vendor_is_tested() -> None:
    from test_build_profiles_furiosa import FURIOSA
    from test_build_profiles_iree import IREE
    from test_build_profiles_openvino import OPENVINO
    from test_serve_embeddings import EMBEDDINGS

    compiled = {OPENVINO[0], IREE[0], FURIOSA[0], "simulated-npu/cpu.yaml", EMBEDDINGS}
    tested = {vendor.profile for vendor in VENDORS.values()} | compiled | WARMED_UP
    assert tested == {
        str(file.relative_to(EXAMPLES))
        for file in EXAMPLES.glob("*/*.yaml")
        if any(body["kind"] == "BuildProfile" for body in yaml.safe_load_all(file.read_text()))
    }
