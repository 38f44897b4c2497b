"""Fixtures of all tiers: one cluster for the session, a fresh namespace for each test that asks for one."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import distribution
import pytest
import rm_local_cluster
from installation import Installed
from rm_cli import release
from rm_cli.kubectl import Kubectl
from rm_local_cluster import Cluster


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means."""
    return distribution.processes()


def pytest_configure(config: pytest.Config) -> None:
    """With `-n`, this is the process that was called, or one of its children."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(distribution.Worker())
    elif config.option.numprocesses:
        config.pluginmanager.register(distribution.Controller())


def _say(line: str) -> None:
    # Set-up takes minutes on a fresh machine: whoever watches sees where it is (pytest captures stdout only).
    os.write(2, f"{line}\n".encode())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real Kubernetes, not the one of `make demo`. It is stopped at the end if this session started it."""
    os.environ.setdefault("RM_LOCAL_CLUSTER_NAME", distribution.CLUSTER)
    was_running = rm_local_cluster.status().phase == "Running"
    kubeconfig = os.environ.get("RM_KUBECONFIG")
    found = rm_local_cluster.up(kubeconfig=Path(kubeconfig) if kubeconfig else None, progress=_say)
    yield found
    if not was_running and not distribution.keeps_cluster():
        rm_local_cluster.down()


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Installed:
    """Images, chart and the simulated NPU: everything but a deployment."""
    references = release.build_images(cluster, _say)
    release.install(cluster, references)
    found = Installed(cluster, references)
    for name in ("accelerator", "build-profile", "cpu"):
        found.system.apply(*found.example(f"simulated-npu/{name}.yaml"))
    found.system.run("wait", "--for=condition=Ready", "accel/simulated-npu", "--timeout=120s", timeout=130)
    return found


@pytest.fixture(scope="session")
def model_source(installed: Installed) -> str:
    """The scripted model in the cluster's registry."""
    return _push(installed, "scripted-llama", "base")


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as files, for the oracle."""
    from scripted_model import write_model

    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


@pytest.fixture(scope="session")
def unsupported_source(installed: Installed) -> str:
    """A model that the compiler rejects."""
    return _push(installed, "unsupported", "unsupported")


def _push(installed: Installed, name: str, variant: str) -> str:
    from scripted_model import write_model

    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory), variant=variant)
        return release.ModelRegistry(installed.cluster).push(Path(directory), f"models/{name}", "1")


def _new_namespace(cluster: Cluster) -> Kubectl:
    name = f"t-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    Kubectl(cluster).apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return Kubectl(cluster, name)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Kubectl]:
    """kubectl in a fresh namespace under the restricted Pod Security standard."""
    kubectl = _new_namespace(cluster)
    yield kubectl
    Kubectl(cluster).delete("namespace", str(kubectl.namespace), wait=False)


@pytest.fixture(scope="module")
def module_namespace(cluster: Cluster) -> Iterator[Kubectl]:
    """As `namespace`, shared by the tests of a module, which build on what the earlier ones compiled."""
    kubectl = _new_namespace(cluster)
    yield kubectl
    Kubectl(cluster).delete("namespace", str(kubectl.namespace), wait=False)
