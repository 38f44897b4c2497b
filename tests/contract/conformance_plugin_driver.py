"""The plugin in ``conformance_plugin/``, built once, and devices for it."""

import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path

from rm_device_plugins.conformance.launch import CommandLauncher
from rm_device_plugins.conformance.model import Timing
from rm_device_plugins.conformance.runner import Target

SOURCES = Path(__file__).parent / "conformance_plugin"
RESOURCE = "example.com/npu"
HARDWARE = re.compile(r".*(card[0-9])-.*")

GENEROUS = Timing(allowance=600, patience=60, quiet=1.2, settle=0.4, away=0.2, refusing=1, give_up=60)
"""Short where something is looked on at, long where something must happen: nothing here depends on a quick machine."""


@functools.cache
def binary() -> str:
    """The program; Go's own cache makes the second time quick."""
    directory = tempfile.mkdtemp(prefix="rma-conformance-plugin-")
    path = f"{directory}/plugin"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    subprocess.run(
        ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "."], cwd=SOURCES, env=environment, check=True
    )
    return path


def command(state: Path, defect: str = "") -> list[str]:
    """What starts it, with the suite's placeholders."""
    options = ["-state", str(state), "-dir", "{socket_dir}", "-resource", "{resource}"]
    return [binary(), "serve", *options, *(["-defect", defect] if defect else [])]


def hook(state: Path) -> list[str]:
    """Its fault hook."""
    return [binary(), "inject", "-state", str(state), "{action}", "{device}"]


def hardware(device: str) -> str:
    """The card behind an ID."""
    match = HARDWARE.fullmatch(device)
    return match[1] if match else device


def target(state: Path, defect: str = "") -> Target:
    """The plugin over devices of its own, which are made in ``state``."""
    subprocess.run([binary(), "init", "-state", str(state)], check=True)
    return Target(CommandLauncher(command(state, defect), {}), None, hook(state), RESOURCE, hardware)
