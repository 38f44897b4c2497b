"""Profiles whose compilers are real: their Jobs run whole, fetch and push included, with a registry for both ends.

Making the environments with the compilers takes a while on a fresh machine; they are kept in the cache.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from build_profile_driver import RUNTIME_IMAGE, Build, Image, Node, Profile, Run, runtime_image
from registry_server import RunningRegistry, running_registry
from rm_abstract.sources import resolve_model
from rm_abstract.store.models import push_model
from rm_local_cluster import environments
from rma_launch_driver import Binaries
from scripted_model import write_model


def say(line: str) -> None:
    # Making an environment takes a while on a fresh machine: whoever watches sees where it is.
    os.write(2, f"{line}\n".encode())


def programs_of(name: str) -> Path:
    return environments.ensure(name, say) / "bin"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / "scripted"
    write_model(directory)
    return directory


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of an architecture that no compiler knows."""
    directory = tmp_path_factory.mktemp("hub") / "stranger"
    write_model(directory, variant="unsupported")
    return directory


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with (
        running_registry(tmp_path_factory.mktemp("store")) as running,
        mock.patch.dict(os.environ, {"RMA_PLAIN_HTTP_HOSTS": running.host}),
    ):
        yield running


@dataclass
class Shop:
    """Where profiles are built: the model in a registry, which is the store, too."""

    binaries: Binaries
    registry: RunningRegistry
    source: str
    ours: Image

    def build(self, directory: Path, files: tuple[str, str], images: Mapping[str, Image], **deployment: Any) -> Build:
        profile = Profile.load(*files)
        made = {
            RUNTIME_IMAGE: self.ours,
            **{image: found for image in profile.images for kind, found in images.items() if kind in image},
        }
        node = Node(self.binaries.launcher, directory, made, self.registry.host)
        return node.build(profile.artifact(resolve_model(self.source), source=self.source, **deployment))

    def fetched(self, build: Build, run: Run, directory: Path) -> Path:
        """The artifact, as a serving pod fetches it."""
        digest = run.containers["push"].report.digest
        reference = build.template()["containers"][0]["command"][3].partition("=")[2].rpartition(":")[0]
        command = ["rm-abstract", "fetch", "artifact", f"--reference={reference}@{digest}", f"--key={build.spec.key}"]
        program = str(self.ours.programs[0] / command[0])
        subprocess.run([program, *command[1:], f"--dest={directory}"], check=True, capture_output=True)
        return directory


@pytest.fixture(scope="module")
def shop(
    binaries: Binaries, registry: RunningRegistry, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> Shop:
    source = f"oci://{registry.host}/models/scripted:1"
    push_model(original, source)
    return Shop(binaries, registry, source, runtime_image(tmp_path_factory.mktemp("ours")))
