"""Installs this checkout into a cluster: images, chart, and the examples with the images that were built."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rm_local_cluster import Cluster, images

from rm_cli.kubectl import CommandFailed, Kubectl, helm, run
from rm_cli.store_access import Store

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
    """The chart's registry as a place for models that every namespace reads."""

    cluster: Cluster

    def push(self, directory: Path, repository: str, tag: str) -> str:
        """Puts a model there; returns the source that a ModelDeployment names."""
        kubectl = Kubectl(self.cluster)
        store = Store.find(kubectl)
        if store is None:
            raise CommandFailed("the chart's registry is not there: install the chart first")
        source = f"oci://{store.host}/{repository}:{tag}"
        with store.reached(kubectl) as variables:
            command = [sys.executable, "-m", "rm_cli", "models", "push", str(directory), source]
            run(command, environment={**os.environ, **variables})
        return source
