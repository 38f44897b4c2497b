"""Running scripts in an environment with real engines."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scripted_model import expected_text

ROOT = Path(__file__).resolve().parents[2]
UNCHANGED = ROOT / "examples" / "sdk" / "unchanged_script.py"
SCRIPTS = Path(__file__).parent / "scripts"
SECONDS = 600
"""For one script: far more than any needs, on a machine that is busy with something else."""


@cache
def expected(model: Path, prompt: str, max_new_tokens: int = 60) -> str:
    """What the model says, worked out without any engine."""
    return expected_text(model, prompt, max_new_tokens)


@dataclass(frozen=True)
class Done:
    """A script that has ended well."""

    output: str
    errors: str

    @property
    def lines(self) -> list[str]:
        """What it printed."""
        return self.output.splitlines()

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object in its last line."""
        value: dict[str, Any] = json.loads(self.lines[-1])
        return value


@dataclass(frozen=True)
class Engines:
    """An environment, and what scripts find in it."""

    python: Path
    model: Path
    cache: Path
    """Of compiled models, shared by the scripts that do not ask for one of their own."""
    directory: Path
    programs: Path
    device: Mapping[str, str]
    """Variables that a device plugin sets in a container which was given the simulated NPU."""

    def command(self, *arguments: object) -> list[str]:
        return [str(self.python), *(str(argument) for argument in arguments)]

    def environment(self, **variables: object) -> dict[str, str]:
        """Of a process that finds the SDK, as if it were installed, and no package index or hub."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RM_", "RMA_", "PYTHON"))}
        return {
            **kept,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}/sdk:{ROOT}/crds",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "RM_CACHE_DIR": str(self.cache),
            **{name: str(value) for name, value in variables.items()},
        }

    def start(self, *arguments: object, **variables: object) -> "subprocess.Popen[str]":
        """Start Python with these arguments."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
        )

    def attempt(self, *arguments: object, **variables: object) -> "subprocess.CompletedProcess[str]":
        """Run Python with these arguments to its end."""
        process = self.start(*arguments, **variables)
        try:
            output, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def run(self, *arguments: object, **variables: object) -> Done:
        """As ``attempt``; it must end well."""
        done = self.attempt(*arguments, **variables)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return Done(done.stdout, done.stderr)

    def script(self, name: str, *arguments: object, **variables: object) -> Done:
        """Run one of the tests' scripts on the model."""
        return self.run(SCRIPTS / name, self.model, *arguments, **variables)


def processes_with(variable: str, value: str) -> list[int]:
    """Processes that have this environment variable."""
    wanted = f"{variable}={value}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
