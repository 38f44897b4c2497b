"""A kind cluster, where a Docker engine answers, with a registry beside it as kind documents it."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

import yaml

from . import build, existing
from .build import Progress
from .errors import LocalClusterError
from .families import KIND
from .model import Cluster
from .paths import NodePaths
from .shell import run

REGISTRY_IMAGE = "docker.io/library/registry:3"
# From this version on, kind's nodes read /etc/containerd/certs.d without being told.
_MINIMUM_KIND = (0, 27)
_CREATE_SECONDS = 900


class Run(Protocol):
    """How commands are run; `shell.run`."""

    def __call__(
        self, argv: Sequence[str | Path], *, check: bool = True, stdin: str | None = None, timeout: float = 120
    ) -> CompletedProcess[str]:
        """Run a command to its end."""


def docker_answers() -> bool:
    """Whether a Docker engine answers."""
    if shutil.which("docker") is None:
        return False
    try:
        return run(["docker", "info", "--format", "{{.ServerVersion}}"], check=False, timeout=20).returncode == 0
    except LocalClusterError:
        return False


def kind_command(progress: Progress) -> Path:
    """kind itself: the machine's own when it is recent enough, else built."""
    found = shutil.which("kind")
    if found is not None and is_recent(run([found, "version"], check=False).stdout):
        return Path(found)
    return build.ensure([KIND], progress)["kind"]


def is_recent(version_output: str) -> bool:
    """Whether the output of `kind version` tells of one that sets up registries by itself."""
    found = re.search(r"\bv(\d+)\.(\d+)\.", version_output)
    return found is not None and (int(found[1]), int(found[2])) >= _MINIMUM_KIND


class Kind:
    """One kind cluster and its registry, both named after the cluster's name."""

    def __init__(self, paths: NodePaths, kind: Path, runner: Run = run) -> None:
        self._paths = paths
        self._kind = kind
        self._run = runner
        self._cluster = f"rm-abstract-{paths.name}"
        self._registry = f"{self._cluster}-registry"

    def up(self, tools: Callable[[], tuple[Path, Path]], registry_image: str, progress: Progress) -> Cluster:
        """Create what is missing, and return the cluster. `tools` gives the paths of kubectl and helm."""
        kubectl, helm = tools()
        self._paths.root.mkdir(parents=True, exist_ok=True)
        kubeconfig = self._paths.kubeconfig
        if self.exists():
            progress(f"kind cluster {self._cluster} is there")
            self._run([self._kind, "export", "kubeconfig", "--name", self._cluster, "--kubeconfig", kubeconfig])
        else:
            progress(f"creating kind cluster {self._cluster}")
            argv: list[str | Path] = [
                self._kind,
                "create",
                "cluster",
                "--name",
                self._cluster,
                "--kubeconfig",
                kubeconfig,
            ]
            self._run([*argv, "--wait", "180s"], timeout=_CREATE_SECONDS)
        port = self._start_registry(registry_image, progress)
        registry = f"localhost:{port}"
        nodes = self._lines([self._kind, "get", "nodes", "--name", self._cluster])
        for node in nodes:
            self._tell_node(node, registry)
        self._announce(kubectl, registry)
        control_plane = next(node for node in nodes if node.endswith("-control-plane"))
        return Cluster(
            name=self._paths.name,
            driver="kind",
            kubeconfig=kubeconfig,
            kubectl=kubectl,
            helm=helm,
            image_registry_push=registry,
            image_registry_pull=registry,
            node_ip=self._address(control_plane),
            node_exec=("docker", "exec", "--interactive", control_plane),
        )

    def exists(self) -> bool:
        """Whether the cluster has been created."""
        return self._cluster in self._lines([self._kind, "get", "clusters"])

    def down(self) -> None:
        """Delete the cluster and its registry, with the images in it."""
        self._run([self._kind, "delete", "cluster", "--name", self._cluster], timeout=300)
        self._run(["docker", "rm", "--force", "--volumes", self._registry], check=False)

    def _lines(self, argv: Sequence[str | Path]) -> list[str]:
        return self._run(argv).stdout.split()

    def _start_registry(self, image: str, progress: Progress) -> int:
        state = self._run(["docker", "inspect", "--format", "{{.State.Running}}", self._registry], check=False)
        if state.returncode != 0:
            progress(f"starting the registry {self._registry}")
            publish = ["--publish", "127.0.0.1::5000"]
            argv = ["docker", "run", "--detach", "--restart=always", *publish, "--name", self._registry, image]
            self._run(argv, timeout=_CREATE_SECONDS)
        elif state.stdout.strip() != "true":
            self._run(["docker", "start", self._registry])
        networks = self._run(
            ["docker", "inspect", "--format", "{{json .NetworkSettings.Networks}}", self._registry]
        ).stdout
        if "kind" not in json.loads(networks):
            self._run(["docker", "network", "connect", "kind", self._registry])
        published = self._lines(["docker", "port", self._registry, "5000/tcp"])
        if not published:
            raise LocalClusterError(
                f"the registry {self._registry} publishes no port; `docker rm -f {self._registry}` and try again"
            )
        return int(published[0].rpartition(":")[2])

    def _tell_node(self, node: str, registry: str) -> None:
        # In a node, localhost is the node; containerd is told which container is meant.
        directory = f"/etc/containerd/certs.d/{registry}"
        self._run(["docker", "exec", node, "mkdir", "-p", directory])
        hosts = f'[host."http://{self._registry}:5000"]\n'
        self._run(["docker", "exec", "--interactive", node, "cp", "/dev/stdin", f"{directory}/hosts.toml"], stdin=hosts)

    def _announce(self, kubectl: Path, registry: str) -> None:
        hosting = {"host": registry, "help": "https://kind.sigs.k8s.io/docs/user/local-registry/"}
        document = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "local-registry-hosting", "namespace": "kube-public"},
            "data": {"localRegistryHosting.v1": yaml.safe_dump(hosting)},
        }
        argv: list[str | Path] = [kubectl, "--kubeconfig", self._paths.kubeconfig, "apply", "--server-side", "-f", "-"]
        self._run(argv, stdin=yaml.safe_dump(document))

    def _address(self, node: str) -> str:
        template = '{{(index .NetworkSettings.Networks "kind").IPAddress}}'
        return self._run(["docker", "inspect", "--format", template, node]).stdout.strip()


def tools(progress: Progress) -> Callable[[], tuple[Path, Path]]:
    """The machine's kubectl and helm, else built ones, when they are asked for."""
    return lambda: existing.tools(progress)
