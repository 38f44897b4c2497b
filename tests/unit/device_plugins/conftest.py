"""Fixtures of the tests of vendors' modules: a host with NVIDIA's GPUs."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from nvml_driver import Driver
from vendor_process import VendorProcess


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the stand-in for libnvidia-ml.so.1."""
    directory = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parent / "stand_ins" / "nvml.c"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(directory / "libnvidia-ml.so.1"), str(source)],
        check=True,
    )
    return directory


@pytest.fixture
def driver(tmp_path: Path, nvml_library: Path) -> Driver:
    """NVIDIA's driver with two GPUs."""
    return Driver(tmp_path, nvml_library)


@pytest.fixture
def start(driver: Driver) -> Iterator[Callable[..., VendorProcess]]:
    """Starts NVIDIA's module over that driver."""
    with ExitStack() as running:

        def start(**settings: object) -> VendorProcess:
            return running.enter_context(VendorProcess("nvidia", {**driver.settings, **settings}, **driver.environment))

        yield start
