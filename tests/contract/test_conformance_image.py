"""``rm-abstract conformance --image``: the plugin in containers, which are gone afterwards, however the suite ends.

The container runtime is a stand-in at the process boundary: a program that takes docker's documented commands and
options alone, and gives the plugin a mount namespace of its own.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import conformance_plugin_driver as driver
import pytest

DOCKER = Path(__file__).with_name("conformance_docker.py")
PLUGIN_DIR = "/var/lib/kubelet/device-plugins"
CASES = ("registration.registers", "registration.kubelet-restart", "registration.bad-*", "lifecycle.*")


class Machine:
    """A machine with docker and an image of the plugin."""

    def __init__(self, directory: Path, temporary: Path) -> None:
        self.state, self.image, self.containers = directory / "state", directory / "image", directory / "containers"
        for path in (self.image, self.containers, directory / "bin"):
            path.mkdir()
        subprocess.run([driver.binary(), "init", "-state", str(self.state)], check=True)
        serve = [driver.binary(), "serve", "-state", str(self.state), "-dir", PLUGIN_DIR]
        _program(self.image / "entrypoint", f'exec {shlex.join(serve)} -resource "$RESOURCE" "$@"')
        _program(directory / "bin/docker", f'exec {sys.executable} -IS {DOCKER} "$@"')
        self.environment = {
            **os.environ, "PATH": f"{directory / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(temporary),
            "STAND_IN_CONTAINERS": str(self.containers),
        }  # fmt: skip
        self.temporary = temporary

    def conformance(self, *options: str) -> "subprocess.Popen[str]":
        """The suite over the image, with docker, in a process of its own."""
        argv = [sys.executable, "-m", "rm_cli", "conformance", "--image", str(self.image), "--runtime", "docker"]
        argv += ["--resource", driver.RESOURCE, "--env", "RESOURCE={resource}", "--run-option=--network=none"]
        argv += ["--allowance", "600", "--patience", "60", "--quiet-seconds", "1", *options]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="rma-im-") as temporary:  # its path is short, as those of sockets must be
        yield Machine(tmp_path, Path(temporary))


def test_a_plugin_in_containers_keeps_the_rules_and_no_container_is_left(machine: Machine) -> None:
    cases = [word for case in CASES for word in ("--case", case)]
    hook = shlex.join([*driver.hook(machine.state)[:-2]]) + " {action} {device}"
    with machine.conformance(*cases, "--inject", hook, "--json", "-", "--jobs", "6") as suite:
        output, errors = suite.communicate(timeout=280)
    assert suite.returncode == 0, output + errors
    verdicts = {case["id"]: (case["verdict"], case["message"]) for case in json.loads(output)["cases"]}
    assert {name: message for name, (verdict, message) in verdicts.items() if verdict != "passed"} == {}
    assert {"registration.kubelet-restart", "lifecycle.stale-socket", "lifecycle.flat"} <= verdicts.keys()
    assert list(machine.containers.iterdir()) == []
    assert list(machine.temporary.iterdir()) == []


def test_a_suite_that_is_asked_to_end_takes_its_containers_with_it(machine: Machine) -> None:
    with machine.conformance("--jobs", "2") as suite:
        _until(lambda: len(list(machine.containers.iterdir())) == 2, "two containers run")
        suite.send_signal(signal.SIGTERM)
        _, errors = suite.communicate(timeout=120)
    assert suite.returncode == 2
    assert "what was started has been ended" in errors
    assert list(machine.containers.iterdir()) == []
    assert list(machine.temporary.iterdir()) == []


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
