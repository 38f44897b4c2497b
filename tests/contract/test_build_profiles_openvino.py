"""OpenVINO's real compiler, and a blob bound to a product and a driver: where it does not fit, it does not serve."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from build_profile_driver import ROOT, Build, Image, Profile, Run, edited, files_in, program
from build_profile_shop import Shop, completion, original, programs_of, registry, serving, shop
from rm_abstract.sources import resolve_model
from rm_api.conditions import Reason
from rm_device_plugins.simulator_tool import change, initialise
from rma_launch_driver import Ended
from scripted_model.oracle import expected_text
from scripted_model.texts import SAMPLES

FIXTURES = (original, registry, shop)

Object = dict[str, Any]
OPENVINO = ("simulated-npu/build-profile.yaml", "simulated-npu/accelerator.yaml")
PRODUCT = "Simulated NPU X1"


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
    return Npu(build, run, shop.serving_pod(OPENVINO, build, run))


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
    prompt = SAMPLES[0].prompt
    with serving(replace(npu.build, directory=tmp_path / "pod"), npu.server, device[1]) as url:
        assert completion(url, prompt, 64) == expected_text(original, prompt, 64)


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
    assert [word.replace("${WORK}/ir", "${OUTPUT}") for word in (*bound.command, *bound.args)] == [
        *cpu.command,
        *cpu.args,
    ]
