"""Profiles whose compilers are real here: OpenVINO, IREE, FuriosaAI. Their Jobs run whole, fetch and push included.

Making the environments with the compilers takes a while on a fresh machine; they are kept in the cache.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import unit.plan.chain as chain
from build_profile_driver import ROOT, RUNTIME_IMAGE, Build, Image, Node, Profile, Run, edited, facts_of, program, runtime_image
from registry_server import RunningRegistry, running_registry
from rm_abstract.sources import resolve_model
from rm_abstract.store.models import push_model
from rm_api import names
from rm_api.conditions import Reason
from rm_device_plugins.simulator_tool import change, initialise
from rm_local_cluster import environments
from rm_operator.plan.artifact import Presence, StoreAnswer
from rma_launch_driver import Binaries, Ended, free_port, until
from scripted_model import write_model
from scripted_model.oracle import expected_text, greedy
from scripted_model.texts import SAMPLES
from scripted_model.tokenizer import Tokenizer

Object = dict[str, Any]
OPENVINO = ("simulated-npu/build-profile.yaml", "simulated-npu/accelerator.yaml")
IREE = ("iree/build-profile.yaml", "iree/accelerator.yaml")
FURIOSA = ("furiosa/build-profile.yaml", "adopt-furiosa/accelerator.yaml")
COMPILED = (OPENVINO[0], IREE[0], FURIOSA[0], "simulated-npu/cpu.yaml")
PRODUCT = "Simulated NPU X1"
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
"""What its publisher says of Llama 3.1 8B; no weights are needed."""


def say(line: str) -> None:
    # Making an environment takes a while on a fresh machine: whoever watches sees where it is.
    os.write(2, f"{line}\n".encode())


def programs_of(name: str) -> Path:
    return environments.ensure(name, say) / "bin"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / "scripted"
    write_model(directory)
    return directory


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of an architecture that no compiler knows."""
    directory = tmp_path_factory.mktemp("hub") / "stranger"
    write_model(directory, variant="unsupported")
    return directory


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("store")) as running:
        with mock.patch.dict(os.environ, {"RMA_PLAIN_HTTP_HOSTS": running.host}):
            yield running


@dataclass
class Shop:
    """Where profiles are built: the model in a registry, which is the store, too."""

    binaries: Binaries
    registry: RunningRegistry
    source: str
    ours: Image

    def build(self, directory: Path, files: tuple[str, str], images: Mapping[str, Image], **deployment: Any) -> Build:
        profile = Profile.load(*files)
        made = {RUNTIME_IMAGE: self.ours, **{image: found for image in images_of(profile) for kind, found in images.items() if kind in image}}
        node = Node(self.binaries.launcher, directory, made, self.registry.host)
        return node.build(profile.artifact(resolve_model(self.source), source=self.source, **deployment))

    def fetched(self, build: Build, run: Run, directory: Path) -> Path:
        """The artifact, as a serving pod fetches it."""
        digest = run.containers["push"].report.digest
        reference = build.template()["containers"][0]["command"][3].partition("=")[2].rpartition(":")[0]
        command = ["rm-abstract", "fetch", "artifact", f"--reference={reference}@{digest}", f"--key={build.spec.key}"]
        program = str(self.ours.programs[0] / command[0])
        subprocess.run([program, *command[1:], f"--dest={directory}"], check=True, capture_output=True)
        return directory


def images_of(profile: Profile) -> set[str]:
    spec = profile.spec
    others = [each.image for each in (spec.check, spec.probe, spec.version_probe) if each]
    return {step.image for step in spec.steps} | set(others)


@pytest.fixture(scope="module")
def shop(
    binaries: Binaries, registry: RunningRegistry, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> Shop:
    source = f"oci://{registry.host}/models/scripted:1"
    push_model(original, source)
    return Shop(binaries, registry, source, runtime_image(tmp_path_factory.mktemp("ours")))


def files_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


# --- OpenVINO, bound to a product and a driver ---------------------------------------------------------------------


@dataclass
class Npu:
    """What the simulated NPU's profile made, and a pod that serves it."""

    build: Build
    run: Run
    server: Object

    def pod(self, directory: Path, device: Mapping[str, str]) -> Ended:
        """The pod that serves, up to the end of its engine."""
        return replace(self.build, directory=directory / "pod").pod(self.server, lambda _: True, device).last[1]


@pytest.fixture(scope="module")
def npu(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Npu:
    directory = tmp_path_factory.mktemp("npu")
    ours = directory / "image"
    start = "import sys; from rm_abstract.backends.simulated_npu.compiler import main; sys.exit(main())"
    path = {"PYTHONPATH": f"{ROOT}/sdk:{ROOT}/crds"}
    program(ours / "rma-sim-compile", sys.executable, "-c", start, environment=path)
    images = {
        "/openvino-compiler:": Image((programs_of("pytorch-openvino"),)),
        "/openvino:": Image((ours, *shop.ours.programs)),
    }
    build = shop.build(directory, OPENVINO, images)
    run = build.run().succeeded()
    return Npu(build, run, serving_pod(shop, build, run))


def serving_pod(shop: Shop, build: Build, run: Run) -> Object:
    """The pod that the operator makes once the store has the artifact, on ports that nobody has."""
    pushed = run.containers["push"].report
    with mock.patch.object(chain, "SETTINGS", build.node.settings):
        world = Profile.load(*OPENVINO).deployed(resolve_model(shop.source), source=shop.source)
        name = build.artifact["metadata"]["name"]
        world.store[name] = StoreAnswer(Presence.FOUND, pushed.digest, pushed.sizeBytes, build.spec.key)
        for job in world.jobs("build"):
            world.finish(job, report={"reason": "Built", "digest": pushed.digest})
        world.settle()
        (deployment,) = world.of("Deployment")
    text = json.dumps(deployment["spec"]["template"]["spec"])
    for port in (names.SERVE_PORT, names.REPORT_PORT):
        text = text.replace(f'port={port}"', f'port={free_port()}"')
    return dict(json.loads(text))


@pytest.fixture
def device(npu: Npu, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A node's directory of the simulated driver, and what the device plugin sets."""
    root = tmp_path / "sim"
    initialise(root, 1, PRODUCT, "1.4.0")
    path = {"PYTHONPATH": os.pathsep.join((f"{ROOT}/device_plugins", f"{ROOT}/crds"))}
    command = [sys.executable, "-m", "rm_device_plugins.simulator_tool"]
    tool = program(tmp_path / "rma-sim", *command, behind=["--driver-dir", f"{root}/driver"], environment=path)
    return root, {
        "RMA_SIM_TOOL": str(tool),
        "RMA_DEVICE_NODES": f"{root}/dev/npu0=1:3",
        "RMA_DEVICE_SERIALS": "SIMX1-0000",
        "RMA_DEVICE_PRODUCT": PRODUCT,
    }


def test_openvino_makes_a_blob(npu: Npu) -> None:
    assert list(npu.run.containers) == ["launcher", "fetch", "export", "bind", "push"]
    assert {"model.simx", "openvino_tokenizer.xml", "config.json"} <= files_in(npu.build.output)


def test_on_the_device_and_the_driver_that_it_is_for_it_serves(
    npu: Npu, device: tuple[Path, dict[str, str]], original: Path, tmp_path: Path
) -> None:
    build, prompt = replace(npu.build, directory=tmp_path / "pod"), SAMPLES[0].prompt
    engine = npu.server["containers"][0]
    build.pod(npu.server, lambda container: container is not engine).succeeded()
    ports = [word.rpartition("=")[2] for word in engine["command"] if "port=" in word]
    with build.start(engine, device[1]) as process:
        try:
            until("Ready", lambda: answered(f"http://127.0.0.1:{ports[1]}{names.READY_PATH}") or process.poll())
            assert process.poll() is None
            asked = {"model": "hello", "prompt": prompt, "max_tokens": 64, "temperature": 0}
            answer = answered(f"http://127.0.0.1:{ports[0]}/v1/completions", json.dumps(asked).encode())
            assert answer is not None
            assert json.loads(answer)["choices"][0]["text"] == expected_text(original, prompt, 64)
        finally:
            process.terminate()
            process.communicate(timeout=60)


def answered(url: str, body: bytes | None = None) -> bytes | None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())
    except OSError:
        return None


@pytest.mark.parametrize(
    ("happen", "code", "words"),
    [
        (lambda root, _: change(root, driver="1.5.0"), (67, Reason.DRIVER_MISMATCH), ("1.5.0",)),
        (lambda root, _: change(root, device=0, serial="SIMX1-9999"), (66, Reason.DEVICE_MISSING), ("SIMX1-9999",)),
        (lambda root, _: (root / "dev/npu0").unlink(), (66, Reason.DEVICE_MISSING), ("npu0",)),
        (lambda _, variables: variables.clear(), (66, Reason.DEVICE_MISSING), ("RMA_DEVICE_NODES",)),
    ],
    ids=["another driver", "another device", "no device", "none allocated"],
)
def test_where_it_does_not_fit_it_does_not_serve(
    npu: Npu,
    device: tuple[Path, dict[str, str]],
    tmp_path: Path,
    happen: Callable[[Path, dict[str, str]], object],
    code: tuple[int, Reason],
    words: tuple[str, ...],
) -> None:
    happen(*device)
    npu.pod(tmp_path, device[1]).failed(*code, *words)


def test_a_blob_for_another_driver_than_its_artifact_says_does_not_serve(
    npu: Npu, shop: Shop, device: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """The profile compiles for one driver and promises another: the blob itself is bound to the first."""
    profile = Profile.load(*OPENVINO)
    wire = profile.spec.to_wire()
    wrong = edited(profile, target={**wire["target"], "targetString": "simx1:driver=1.3.0"})
    artifact = wrong.artifact(resolve_model(shop.source), source=shop.source)
    build = replace(npu.build, artifact=artifact, directory=tmp_path / "build")
    shutil.copytree(npu.build.work, build.work)
    run = build.run(wanted=lambda container: container["name"] in ("bind", "push")).succeeded()
    text = json.dumps(npu.server).replace(npu.build.spec.key, build.spec.key)
    text = text.replace(npu.run.containers["push"].report.digest, run.containers["push"].report.digest)
    server = json.loads(text.replace(npu.build.artifact["metadata"]["name"], artifact["metadata"]["name"]))
    ended = replace(npu, server=server).pod(tmp_path, device[1])
    ended.failed(65, Reason.ARTIFACT_MISMATCH, "is bound to", "1.3.0")


def test_what_was_not_exported_is_not_bound(npu: Npu, tmp_path: Path) -> None:
    build = replace(npu.build, directory=tmp_path / "pod")
    ended = build.vendor(only=["bind"]).last[1]
    ended.failed(64, Reason.TOOLCHAIN_FAILED, "is no model that optimum-cli exported")


def test_the_cpus_profile_exports_in_the_same_way() -> None:
    cpu, bound = (Profile.load(file, OPENVINO[1]).spec.steps[0] for file in ("simulated-npu/cpu.yaml", OPENVINO[0]))
    assert [word.replace("${WORK}/ir", "${OUTPUT}") for word in (*bound.command, *bound.args)] == [*cpu.command, *cpu.args]


# --- IREE ---------------------------------------------------------------------------------------------------------


@dataclass
class Built:
    build: Build
    run: Run
    artifact: Path
    programs: Path


@pytest.fixture(scope="module")
def iree(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Built:
    programs, directory = programs_of("compiler-iree"), tmp_path_factory.mktemp("iree")
    build = shop.build(directory, IREE, {"iree-compiler": Image((programs,))})
    run = build.run().succeeded()
    return Built(build, run, shop.fetched(build, run, directory / "artifact"), programs)


def test_iree_makes_a_program_of_the_model(iree: Built) -> None:
    assert list(iree.run.containers) == [
        "launcher", "fetch-config", "check", "fetch", "export", "import", "compile", "tokenizer", "probe", "push",
    ]  # fmt: skip
    assert files_in(iree.artifact) == {
        "model.vmfb", "config.json", "tokenizer.json", "tokenizer_config.json", "rma-artifact.json",
    }  # fmt: skip


def test_what_iree_compiled_says_what_the_model_does(iree: Built, original: Path, tmp_path: Path) -> None:
    """The text of the oracle, token by token: from the pushed and fetched program alone, on IREE's own runtime."""
    tokenizer = Tokenizer(iree.artifact)
    ids = tokenizer.encode(SAMPLES[0].prompt)
    wanted = greedy(original, ids, 6)
    for want in wanted:
        assert next_token(iree, ids, tmp_path / "logits.npy") == want
        ids.append(want)


def next_token(iree: Built, ids: list[int], output: Path) -> int:
    def tensor(values: list[int]) -> str:
        return f"--input=1x{len(ids)}xi64={','.join(map(str, values))}"

    command = [
        str(iree.programs / "iree-run-module"), f"--module={iree.artifact}/model.vmfb", "--device=local-task",
        "--function=main_graph", tensor(ids), tensor([1] * len(ids)), tensor(list(range(len(ids)))), f"--output=@{output}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return int(np.argmax(np.load(output)[0, -1]))


def test_irees_version_is_read(iree: Built) -> None:
    probe = Profile.load(*IREE).spec.version_probe
    assert probe is not None
    assert iree.build.probe_version(probe, Image((iree.programs,))).versions["toolchain"].startswith("3.13.0")


def test_a_model_that_transformers_does_not_know_is_refused_before_it_is_fetched(
    iree: Built, stranger: Path, tmp_path: Path
) -> None:
    build = replace(iree.build, directory=tmp_path / "pod").lay(stranger)
    name, ended = build.vendor().last
    assert name == "check"
    ended.failed(64, Reason.UNSUPPORTED_MODEL, "model type `tape_recorder`")


def test_weights_that_are_not_there_fail_the_export(iree: Built, original: Path, tmp_path: Path) -> None:
    build = replace(iree.build, directory=tmp_path / "pod").lay(original)
    (build.model / "model.safetensors").unlink()
    _, ended = build.vendor(only=["export"]).last
    ended.failed(70, Reason.TOOLCHAIN_FAILED, "Error no file named", "model.safetensors")


@pytest.mark.parametrize(
    ("container", "damage", "words"),
    [
        ("import", lambda build: (build.work / "onnx/model.onnx").write_bytes(b"no model"), ("DecodeError",)),
        ("import", lambda build: (build.work / "onnx/model.onnx").unlink(), ("No such file",)),
        ("compile", lambda build: (build.work / "model.mlir").write_text("func.func @main() { bogus.op }"), ("bogus",)),
        ("compile", lambda build: (build.work / "model.mlir").unlink(), ("No such file or directory",)),
        ("probe", lambda build: os.truncate(build.output / "model.vmfb", 5000), ("INVALID_ARGUMENT",)),
        ("probe", lambda build: (build.output / "model.vmfb").write_bytes(b""), ("INVALID_ARGUMENT",)),
    ],
    ids=["no ONNX", "no file", "unknown operator", "no MLIR", "truncated", "empty"],
)
def test_what_iree_refuses(
    iree: Built, tmp_path: Path, container: str, damage: Callable[[Build], object], words: tuple[str, ...]
) -> None:
    shutil.copytree(iree.build.directory, tmp_path / "pod", symlinks=True)
    build = replace(iree.build, directory=tmp_path / "pod")
    damage(build)
    name, ended = build.vendor(only=[container]).last
    assert name == container
    ended.failed(70, Reason.TOOLCHAIN_FAILED, *words)


# --- FuriosaAI ----------------------------------------------------------------------------------------------------


def write_llama(directory: Path, **changes: Any) -> Path:
    """Llama 3.1 8B without its weights: all that FuriosaAI's compiler looks at."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**LLAMA_8B, **changes}))
    header = json.dumps({"model.norm.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return directory


@pytest.fixture(scope="module")
def furiosa(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Build]:
    """An attempt of FuriosaAI's profile at a model, up to the check: what compiles takes a quarter of an hour."""
    llama = write_llama(tmp_path_factory.mktemp("hub") / "llama")
    images = {image: Image((programs_of("compiler-furiosa"),)) for image in images_of(Profile.load(*FURIOSA))}
    artifact = Profile.load(*FURIOSA).artifact(facts_of(llama))

    def make(directory: Path) -> Build:
        return Node(binaries.launcher, directory, images).build(artifact)

    return make


def test_fxb_takes_a_model_by_its_config(furiosa: Callable[[Path], Build], tmp_path: Path) -> None:
    build = furiosa(tmp_path).lay(write_llama(tmp_path / "model"))
    (build.model / "model.safetensors").unlink()
    ended = build.vendor(only=["check"]).succeeded().containers["check"]
    assert "TCL kernels successfully" in ended.stdout
    assert "Dry run: skipping compilation" in ended.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "tape_recorder", "architectures": ["TapeRecorderForCausalLM"]}, ("TapeRecorder",)),
        ({"max_position_embeddings": 512}, ("exceeds max_position_embeddings=512",)),
        ({"vocab_size": 1000}, ("eos_token_ids",)),
        ({"head_dim": 128}, ("head_dim",)),
    ],
    ids=["an unknown architecture", "too long", "tokens that are none", "a member it does not know"],
)
def test_fxb_refuses_in_seconds(
    furiosa: Callable[[Path], Build], tmp_path: Path, changes: Object, words: tuple[str, ...]
) -> None:
    build = furiosa(tmp_path).lay(write_llama(tmp_path / "model", **changes))
    build.vendor(only=["check"]).last[1].failed(64, Reason.UNSUPPORTED_MODEL, *words)


def test_fxb_without_a_config(furiosa: Callable[[Path], Build], tmp_path: Path) -> None:
    build = furiosa(tmp_path).lay(write_llama(tmp_path / "model"))
    (build.model / "config.json").unlink()
    ended = build.vendor(only=["check"]).last[1]
    ended.failed(64, Reason.UNSUPPORTED_MODEL, "failed to read config file")


def test_a_bundle_that_is_none_is_not_pushed(furiosa: Callable[[Path], Build], tmp_path: Path) -> None:
    build = furiosa(tmp_path).lay(write_llama(tmp_path / "model"))
    build.output.mkdir(parents=True)
    (build.output / "model.fxb").write_bytes(b"PK\3\4 no bundle")
    build.vendor(only=["probe"]).last[1].failed(70, Reason.TOOLCHAIN_FAILED, "error")


def test_fxbs_version_is_read(furiosa: Callable[[Path], Build], tmp_path: Path) -> None:
    build, probe = furiosa(tmp_path), Profile.load(*FURIOSA).spec.version_probe
    assert probe is not None
    build.directory.mkdir()
    report = build.probe_version(probe, Image((programs_of("compiler-furiosa"),)))
    assert report.versions == {"toolchain": "2026.4.0"}


def test_fine_tunes_share_a_bundle(tmp_path: Path) -> None:
    """The result has no weights in it: it is the structure's."""
    profile = Profile.load(*FURIOSA)
    model = write_llama(tmp_path / "hub" / "base")
    tuned = write_llama(tmp_path / "hub" / "tuned")
    content = (tuned / "model.safetensors").read_bytes()
    (tuned / "model.safetensors").write_bytes(content[:-1] + b"\1")
    keys = {profile.artifact(facts_of(each))["spec"]["key"] for each in (model, tuned)}
    assert len(keys) == 1
