"""Fixtures of the tests of the driver for dynamic resource allocation."""

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The API server of the tests' own is started by the helpers of another tier.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "api"))

import dra_cluster
from dra_cluster import Cluster
from dra_kubelet import PluginWatcher
from dra_process import Node
from real_api import ApiServer


@pytest.fixture(scope="session")
def dra_api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real kube-apiserver, of which the driver sees its slices and claims."""
    server = ApiServer(tmp_path_factory.mktemp("dra-api"))
    try:
        server.start()
        dra_cluster.install_rights(server)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def cdi_runtime(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What a container runtime makes of a directory of CDI files and names of devices in it."""
    import json

    program = tmp_path_factory.mktemp("cdi") / "cdi-runtime"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    sources = Path(__file__).parent / "cdi_runtime"
    subprocess.run(["go", "build", "-trimpath", "-o", str(program), "."], cwd=sources, env=environment, check=True)

    def container(directory: Path, *devices: str) -> dict[str, Any]:
        done = subprocess.run([str(program), str(directory), *devices], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    return container


@pytest.fixture
async def dra(dra_api_server: ApiServer) -> AsyncIterator[Cluster]:
    """A node and a namespace of the test's own, with an administrator's client."""
    async with Cluster(dra_api_server) as cluster:
        yield cluster


@pytest.fixture
def node(dra: Cluster) -> Iterator[Node]:
    """The node's directories, on which drivers are started. A socket's path has room for a short one only."""
    with tempfile.TemporaryDirectory(prefix="dra") as directory:
        yield Node(dra, Path(directory))


@pytest.fixture
async def watcher(node: Node) -> AsyncIterator[PluginWatcher]:
    """The kubelet, as drivers see it."""
    async with PluginWatcher(node.kubelet_dir) as found:
        yield found
