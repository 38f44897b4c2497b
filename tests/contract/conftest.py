"""Fixtures of the contract tests."""

import os
import subprocess
from pathlib import Path

import pytest

pytest.register_assert_rewrite("rma_launch_driver", "build_profile_driver")

from rma_launch_driver import LAUNCHER_SOURCES, Binaries, Launch  # noqa: E402 (its assertions explain themselves only so)


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Binaries:
    """Both programs, built as the image builds them; Go's own cache makes the second time quick."""
    directory = tmp_path_factory.mktemp("rma-launch")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    for name, package in (("rma-launch", "."), ("testchild", "./testchild")):
        subprocess.run(
            ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(directory / name), package],
            cwd=LAUNCHER_SOURCES, env=environment, check=True,
        )  # fmt: skip
    return Binaries(str(directory / "rma-launch"), str(directory / "testchild"))


@pytest.fixture
def launch(binaries: Binaries, tmp_path: Path) -> Launch:
    """The launcher, with a directory for this test."""
    return Launch(binaries, tmp_path)
