"""Profiles whose compilers are real: their Jobs run whole, fetch and push included, with a registry for both ends.

Making the environments with the compilers takes a while on a fresh machine; they are kept in the cache.
"""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from build_profile_driver import RUNTIME_IMAGE, Build, Image, Node, Profile, Run, runtime_image
from registry_server import RunningRegistry, running_registry
from rm_abstract.sources import resolve_model
from rm_abstract.store.models import push_model
from rm_api import names
from rm_local_cluster import environments
from rm_operator.plan.artifact import Presence, StoreAnswer
from rma_launch_driver import Binaries, free_port, until
from scripted_model import write_model
from unit.plan import chain

Object = dict[str, Any]


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
            **{
                image: found
                for image in (*profile.images, profile.accelerator.runtime.image)
                for kind, found in images.items()
                if kind in image
            },
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

    def serving_pod(self, files: tuple[str, str], build: Build, run: Run, **deployment: Any) -> Object:
        """The pod that the operator makes once the store has what ``run`` pushed, on ports that nobody has."""
        pushed = run.containers["push"].report
        with mock.patch.object(chain, "SETTINGS", build.node.settings):
            world = Profile.load(*files).deployed(resolve_model(self.source), source=self.source, **deployment)
            name = build.artifact["metadata"]["name"]
            world.store[name] = StoreAnswer(Presence.FOUND, pushed.digest, pushed.sizeBytes, build.spec.key)
            for job in world.jobs("build"):
                world.finish(job, report={"reason": "Built", "digest": pushed.digest})
            world.settle()
            (made,) = world.of("Deployment")
        text = json.dumps(made["spec"]["template"]["spec"])
        for port in (names.SERVE_PORT, names.REPORT_PORT):
            text = text.replace(f'port={port}"', f'port={free_port()}"')
        return dict(json.loads(text))


@contextmanager
def serving(build: Build, pod: Object, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The pod as processes, Ready; gives the base URL of its API."""
    engine = pod["containers"][0]
    build.pod(pod, lambda container: container is not engine).succeeded()
    ports = [word.rpartition("=")[2] for word in engine["command"] if "port=" in word]
    with build.start(engine, environment or {}) as process:
        try:
            until("Ready", lambda: _answered(f"http://127.0.0.1:{ports[1]}{names.READY_PATH}") or process.poll())
            assert process.poll() is None, process.communicate()
            yield f"http://127.0.0.1:{ports[0]}"
        finally:
            process.terminate()
            try:
                process.communicate(timeout=60)
            finally:
                process.kill()


def completion(url: str, prompt: str, tokens: int) -> str:
    """What the server makes of a prompt, the most likely token each time."""
    asked = {"model": "hello", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    answer = _answered(f"{url}/v1/completions", json.dumps(asked).encode())
    assert answer is not None
    return str(json.loads(answer)["choices"][0]["text"])


def _answered(url: str, body: bytes | None = None) -> bytes | None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())
    except OSError:
        return None


@pytest.fixture(scope="module")
def shop(
    binaries: Binaries, registry: RunningRegistry, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> Shop:
    source = f"oci://{registry.host}/models/scripted:1"
    push_model(original, source)
    return Shop(binaries, registry, source, runtime_image(tmp_path_factory.mktemp("ours")))
