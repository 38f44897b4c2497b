"""Fixtures of the tests on real devices: environments with the real engines, a model with known text, a node."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_scripts import ROOT, Engines
from rm_device_plugins.simulator_tool import initialise
from rm_local_cluster import environments
from scripted_model import write_model

PRODUCT = "Simulated NPU X1"


def _say(line: str) -> None:
    # Making an environment takes a while on a fresh machine: whoever watches sees where it is.
    os.write(2, f"{line}\n".encode())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripted model, as it would come from a hub."""
    directory = tmp_path_factory.mktemp("hub") / "scripted-llama"
    write_model(directory)
    return directory


@pytest.fixture(scope="session")
def openvino(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Engines]:
    """Real transformers, PyTorch, OpenVINO with its exporter, and the simulated NPU's compiler and status tool."""
    return _engines("pytorch-openvino", tmp_path_factory, model)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Engines]:
    """Real transformers and vLLM on the CPU."""
    return _engines("vllm-cpu", tmp_path_factory, model)


def _engines(name: str, factory: pytest.TempPathFactory, model: Path) -> Engines:
    python = environments.ensure(name, _say) / "bin" / "python"
    directory = factory.mktemp(name)
    programs = directory / "bin"
    programs.mkdir()
    node = directory / "node"
    initialise(node, 1, PRODUCT, "1.4.0")
    _program(programs / "rma-sim", sys.executable, "rm_device_plugins.simulator_tool", f"--driver-dir {node}/driver")
    _program(programs / "rma-sim-compile", str(python), "rm_abstract.backends.simulated_npu.compiler", "")
    variables = {
        "RMA_SIM_TOOL": str(programs / "rma-sim"),
        "RMA_DEVICE_NODES": f"{node}/dev/npu0=1:3",
        "RMA_DEVICE_SERIALS": "SIMX1-0000",
        "RMA_DEVICE_PRODUCT": PRODUCT,
    }
    return Engines(python, model, directory / "cache", directory, programs, variables)


def _program(path: Path, python: str, module: str, arguments: str) -> None:
    start = f"import sys; from {module} import main; sys.exit(main())"
    path.write_text(f"#!/bin/sh\nPYTHONPATH={ROOT}/sdk:{ROOT}/crds exec {python} -c '{start}' \"$@\" {arguments}\n")
    path.chmod(0o755)
