"""Engines of vendors, unmodified: the pod that the operator makes of an example, run as processes.

The init container that works the command out is this checkout's; the engine's container has a stand-in at the vendor's
command line, the real rma-launch, and no Python package of ours.
"""

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from build_profile_driver import RUNTIME_IMAGE, Build, Image, Node, inside, program, read, runtime_image
from rm_abstract.core.resource import BuildArtifact
from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec, BuildProfileSpec
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rma_launch_driver import Binaries, Engine, Launch, free_port
from unit.plan.chain import World

Object = dict[str, Any]
STAND_INS = Path(__file__).with_name("engine_stand_ins.py")
SAYS = "Once upon a time."
CONFIG = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, "vocab_size": 9}


@dataclass(frozen=True)
class Case:
    """An example, and what the vendor's engine has to be told for it."""

    accelerator: str
    profile: str
    program: str
    artifact: Mapping[str, object]
    told: Mapping[str, object]
    device: Mapping[str, str]
    environment: Mapping[str, str]


CASES = {
    "vllm": Case(
        "nvidia-vllm", "nvidia-vllm", "vllm", {},
        {
            "model": "/rma/model", "served_model_name": ["hello"], "dtype": "bfloat16", "max_model_len": 2048,
            "max_num_seqs": 32, "gpu_memory_utilization": 0.9, "enforce_eager": None,
        },
        {"NVIDIA_VISIBLE_DEVICES": "GPU-1", "DEVICE_INDEXES": "3"},
        {"HF_HUB_OFFLINE": "1", "VLLM_CACHE_ROOT": "/rma/cache/vllm"},
    ),
    "tensorrt-llm": Case(
        "tensorrt-llm", "tensorrt-llm", "trtllm-serve",
        {"config.json": {"pretrained_config": {}}, "rank0.engine": "", "says.txt": SAYS},
        {
            "model": "/rma/artifact", "tokenizer": "/rma/artifact", "backend": "tensorrt", "host": "0.0.0.0",
            "max_seq_len": 2048, "max_batch_size": 8,
        },
        {},
        {"HF_HUB_OFFLINE": "1"},
    ),
    "rebellions": Case(
        "rebellions", "rebellions", "vllm",
        {"config.json": CONFIG, "rbln_config.json": {}, "prefill.rbln": "", "says.txt": SAYS},
        {"model": "/rma/artifact", "served_model_name": ["hello"], "max_model_len": 2048, "max_num_seqs": 8},
        {"RBLN_VISIBLE_DEVICES": "2", "DEVICE_INDEXES": "2"},
        {"RBLN_VISIBLE_DEVICES": "2", "HF_HUB_OFFLINE": "1", "VLLM_CACHE_ROOT": "/rma/cache/vllm"},
    ),
    "furiosa": Case(
        "furiosa", "furiosa", "furiosa-llm", {"model.fxb": "kernels"},
        {
            "model": "/rma/model", "served_model_name": "hello", "fxb": "/rma/artifact/model.fxb",
            "max_model_len": 2048, "devices": "npu:1",
        },
        {"DEVICE_INDEXES": "1"},
        {"HF_HUB_OFFLINE": "1"},
    ),
    "a command": Case(
        "any-chip", "any-chip", "acme-serve", {"model.bin": "program", "says.txt": SAYS},
        {
            "program": "/rma/artifact/model.bin", "model": "/rma/artifact", "served_model_name": "hello",
            "max_tokens": 2048,
        },
        {},
        {},
    ),
}  # fmt: skip


def pod_of(case: Case) -> tuple[Object, Object]:
    """The serving pod of an example, and its artifact's object."""
    world = World()
    accelerator = AcceleratorResourceSpec.model_validate(
        read(f"{case.accelerator}/accelerator.yaml", "AcceleratorResource")["spec"]
    )
    profile = BuildProfileSpec.model_validate(read(f"{case.profile}/build-profile.yaml", "BuildProfile")["spec"])
    # How it is built is another test's business.
    steps = [{**step.to_wire(), "requiresDevice": False} for step in profile.steps]
    wire = {**profile.to_wire(), "steps": steps, "versionProbe": None, "check": None, "compatibility": {}}
    world.accelerators = [AcceleratorView("accelerator", accelerator, free=4, healthy=4, nodes=1)]
    world.profiles = [replace(ProfileView("profile", profile), spec=BuildProfileSpec.model_validate(wire))]
    world.serve()
    (made,), (artifact,) = world.of("Deployment"), world.of("BuildArtifact")
    return made["spec"]["template"]["spec"], artifact


@contextmanager
def serving(case: Case, binaries: Binaries, directory: Path) -> Iterator[tuple[Engine, Object]]:
    """The pod's engine, once its init containers are through; and what it was told."""
    template, artifact = pod_of(case)
    vendor = directory / "vendor"
    program(vendor / case.program, "/usr/bin/env", "python3", "-SE", str(STAND_INS), case.program)
    (container,) = template["containers"]
    images = {RUNTIME_IMAGE: runtime_image(directory / "ours"), container["image"]: Image((vendor,))}
    build = Build(Node(binaries.launcher, directory, images), artifact, directory / "pod")
    for place, files in ((build.place(names.ARTIFACT_DIR), case.artifact), (build.model, {"config.json": CONFIG})):
        place.mkdir(parents=True)
        for name, content in files.items():
            (place / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (build.model / "says.txt").write_text(SAYS)
    cache = build.place(f"{names.ARTIFACT_DIR}/cache")
    if any(word.startswith("--cache-from") for word in container["command"]):
        cache.mkdir()
        (cache / "kernel").write_text("compiled")
    spec = build.spec
    BuildArtifact(build.place(names.ARTIFACT_DIR), spec.key, spec.format).write()

    port, report_port = free_port(), free_port()

    def moved(text: str) -> str:
        return text.replace("8000", str(port)).replace("9009", str(report_port))

    for each in (*template["initContainers"], container):
        each["image"] = RUNTIME_IMAGE if each["image"] == "runtime:1" else each["image"]
        each["command"] = [moved(word) for word in each["command"]]
        for variable in each["env"]:
            variable["value"] = moved(variable["value"])
    # No device is here whose numbers could be looked at; that is tested with the launcher.
    container["command"] = ["--require-devices=0" if "--require-devices" in w else w for w in container["command"]]
    build.pod({**template, "containers": []}, lambda each: each["name"] == "engine-command").succeeded()
    container["command"][0] = "/rma-launch"
    engine = Engine(Launch(binaries, directory), "hello", port, report_port)
    process = build.start(container, case.device)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("{"), line + process.stdout.read()
        engine.wait_ready()
        yield engine, json.loads(line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", CASES)
def test_an_engine_is_told_what_its_vendor_documents(name: str, binaries: Binaries, tmp_path: Path) -> None:
    case = CASES[name]
    with serving(case, binaries, tmp_path) as (engine, started):
        told = {**started["told"], "port": engine.port}
        expected = {key: inside(value, tmp_path / "pod") if isinstance(value, str) else value
                    for key, value in case.told.items()}  # fmt: skip
        assert {key: told[key] for key in expected} == expected
        wanted = {key: inside(value, tmp_path / "pod") for key, value in case.environment.items()}
        assert started["environment"] == wanted
        assert not any("rm_abstract" in entry or entry.endswith("/sdk") for entry in started["path"])
        report = engine.report()
        assert report["ready"]
        assert report["versions"]["engine"] == "1.2.3"
