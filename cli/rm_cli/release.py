"""Installs this checkout into a cluster: images, chart, and the examples with the images that were built."""

import base64
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rm_api.names import ENV_REGISTRY_CA
from rm_local_cluster import Cluster, images

from rm_cli.kubectl import Kubectl, helm, run

ROOT = Path(__file__).resolve().parents[2]
"""The checkout; these commands are for people who have one."""
SYSTEM_NAMESPACE = "rm-abstract-system"
RELEASE = "rm-abstract"
PUBLIC_PREFIX = "ghcr.io/rm-abstract/"
REGISTRY_SERVICE = f"{RELEASE}-registry"
STORE_HOST = f"{REGISTRY_SERVICE}.{SYSTEM_NAMESPACE}.svc:5000"

CHART_IMAGES = ("operator", "runtime", "launcher", "registry")
"""What the chart itself runs or puts into pods."""

References = Mapping[str, str]
"""Image name → reference in the cluster's registry."""


def build_images(cluster: Cluster, progress: Callable[[str], None], names: Sequence[str] | None = None) -> References:
    """Builds and pushes what changed of these images, by default of all; their references."""
    return images.build(names, push=cluster.image_registry_push, pull=cluster.image_registry_pull, progress=progress)


def with_images(value: Any, references: References) -> Any:
    """``value`` with every public image of ours replaced by the one that was built here."""
    if isinstance(value, str) and value.startswith(PUBLIC_PREFIX):
        name = value.removeprefix(PUBLIC_PREFIX).partition(":")[0]
        return references[name]
    if isinstance(value, Mapping):
        return {key: with_images(member, references) for key, member in value.items()}
    if isinstance(value, list):
        return [with_images(member, references) for member in value]
    return value


def example(name: str, references: References) -> list[dict[str, Any]]:
    """The objects of ``examples/NAME``, with the images that were built here."""
    objects = list(yaml.safe_load_all((ROOT / "examples" / name).read_text()))
    return [with_images(each, references) for each in objects]


def install(cluster: Cluster, references: References, *further: str) -> None:
    """``helm upgrade --install`` of the chart; returns when everything in it is ready."""
    values = [f"--set=images.{name}={references[name]}" for name in CHART_IMAGES]
    helm(
        cluster, "upgrade", "--install", RELEASE, str(ROOT / "charts" / "rm-abstract"),
        "--namespace", SYSTEM_NAMESPACE, "--create-namespace", "--wait", "--timeout", "5m", *values, *further,
    )  # fmt: skip


@dataclass(frozen=True)
class ModelRegistry:
    """The chart's registry as a place for models."""

    cluster: Cluster

    def push(self, directory: Path, repository: str, tag: str) -> str:
        """Puts a model there; returns the source that a ModelDeployment names."""
        system = Kubectl(self.cluster, SYSTEM_NAMESPACE)
        with system.port_forward(f"svc/{REGISTRY_SERVICE}", 5000) as port:
            host = f"127.0.0.1:{port}"
            command = [
                sys.executable,
                "-m",
                "rm_cli",
                "models",
                "push",
                str(directory),
                f"oci://{host}/{repository}:{tag}",
            ]
            run(command, environment={**os.environ, **self._way_in(system, host)})
        return f"oci://{STORE_HOST}/{repository}:{tag}"

    @staticmethod
    def _way_in(system: Kubectl, host: str) -> dict[str, str]:
        """Variables for the client: the registry's authority where it speaks TLS."""
        certificates = system.get("secret", f"{REGISTRY_SERVICE}-tls")
        if certificates is None:
            return {"RMA_PLAIN_HTTP_HOSTS": host}
        return {ENV_REGISTRY_CA: base64.b64decode(certificates["data"]["ca.crt"]).decode()}
