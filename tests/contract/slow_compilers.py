"""What takes minutes, and so is no part of ``make test``: ``make test-slow-compilers``.

FuriosaAI's compiler on the CPU of this machine: a decode kernel of Llama 3.1 8B (a minute), and a bundle of the kernels
for one token at a time through the steps of its profile (an hour and a quarter, almost all of it one kernel for
attention in one thread; 3 GB of memory).
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from build_profile_driver import Build, Image, Node, Profile, edited, facts_of
from build_profile_shop import programs_of
from rma_launch_driver import Binaries
from system_packages import need
from test_build_profiles_furiosa import FURIOSA, write_llama

DECODE = ["--tokenwise-buckets=1", "--attention-buckets=(1,1024,1)", "--skip-bucket-validation"]
"""Kernels for one token at a time only: enough to see the compiler work, and no bundle to serve from."""


HOURS = 4
"""A bundle took 73 minutes of CPU time, most of them one after the other."""


@pytest.fixture
def attempt(binaries: Binaries, tmp_path: Path) -> Build:
    """FuriosaAI's profile, restricted to decode kernels, at a model without weights."""
    # Its last stage calls a compiler for the card's own processors.
    need({"aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"})
    profile = Profile.load(*FURIOSA)
    (step,) = profile.spec.steps
    profile = edited(profile, steps=[{**step.to_wire(), "args": [*step.args, *DECODE]}])
    llama = write_llama(tmp_path / "hub" / "llama")
    images = {image: Image((programs_of("compiler-furiosa"),)) for image in profile.images}
    # Within the one attention bucket of DECODE.
    short = {"inputTokens": 512, "outputTokens": 256}
    node = Node(binaries.launcher, tmp_path, images, patience=HOURS * 3600)
    return node.build(profile.artifact(facts_of(llama), workload=short)).lay(llama)


def test_a_decode_kernel(attempt: Build, tmp_path: Path) -> None:
    programs, kernels = programs_of("compiler-furiosa"), tmp_path / "kernels"
    arguments = [*DECODE, "--max-model-len=1024", "--optim-level=O0", f"--dump-tc={kernels}", "--dry-run"]
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}
    run: Callable[..., object] = lambda *argv: subprocess.run(argv, check=True, env=environment)  # noqa: E731
    run("fxb", "build", str(attempt.model), str(tmp_path / "none.fxb"), *arguments)
    made = tmp_path / "kernel.edf"
    kernel = kernels / "mid_tokenwise__tw1.tc"
    run("furiosa-tcc", str(kernel), "--target-npu", str(attempt.spec.target.target_string), "--output", str(made))
    assert made.stat().st_size > 100_000


def test_a_bundle(attempt: Build) -> None:
    run = attempt.vendor(only=["build", "probe"]).succeeded()
    assert (attempt.output / "model.fxb").stat().st_size > 100_000
    assert "full_attention" in run.containers["probe"].stdout
