"""Adapters for compilers and runtimes that come as binaries: no source, only a command line or a library."""

import os
import re
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rm_abstract.core.errors import BadInput, ToolchainFailure
from rm_abstract.core.resource import BuildArtifact, BuildProfile

_VARIABLE: Final = re.compile(r"\$\$|\$\{([^}]*)\}")
_LOG_LINES: Final = 20


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``text`` with each ``${NAME}`` replaced and ``$$`` a dollar. Raises BadInput for a name that is not given."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        if name not in variables:
            raise BadInput(
                f"{text!r} names the variable {name}, which has no value; known are {', '.join(sorted(variables))}"
            )
        return variables[name]

    return _VARIABLE.sub(value, text)


class BinaryCompilerAdapter(ABC):
    """A compiler that is only to be had as a binary."""

    def __init__(self, build_profile: BuildProfile) -> None:
        self.build_profile = build_profile

    @abstractmethod
    def available(self) -> bool:
        """True if it is installed."""

    @abstractmethod
    def compile(self, input_path: Path, output_path: Path, key: str) -> BuildArtifact:
        """Compile the model in ``input_path`` into ``output_path``, complete or absent. Raises ToolchainFailure."""


class CLICompilerAdapter(BinaryCompilerAdapter):
    """A compiler with a command line: runs a profile's steps one after the other, without a shell."""

    def __init__(self, build_profile: BuildProfile, search_paths: Sequence[str] = ()) -> None:
        super().__init__(build_profile)
        self._path = os.pathsep.join([*search_paths, os.environ.get("PATH", os.defpath)])

    def programs(self) -> list[str]:
        """Names of the programs that the steps start."""
        return sorted({step.command[0] for step in self.build_profile.steps})

    def available(self) -> bool:
        """True if every program is found."""
        return all(shutil.which(program, path=self._path) for program in self.programs())

    def compile(self, input_path: Path, output_path: Path, key: str) -> BuildArtifact:
        """See the base class. ``output_path`` must be empty or absent; a scratch directory is made beside it."""
        if output_path.exists() and any(output_path.iterdir()):
            raise BadInput(f"{output_path} is not empty")
        profile = self.build_profile
        output_path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output_path.parent, prefix=".rma-build-") as scratch:
            work, result = Path(scratch, "work"), Path(scratch, "output")
            work.mkdir()
            result.mkdir()
            variables = {**profile.flags, "MODEL_DIR": str(input_path), "OUTPUT": str(result), "WORK": str(work)}
            for step in profile.steps:
                self._run(step.name, [expand(argument, variables) for argument in step.command])
                for output in (Path(expand(text, variables)) for text in step.outputs):
                    if not output.exists() or not (any(output.iterdir()) if output.is_dir() else output.stat().st_size):
                        raise ToolchainFailure(f"step {step.name} ended without an error, but left no {output.name}")
            artifact = BuildArtifact(output_path, key, profile.output_format, profile.products, profile.drivers)
            BuildArtifact(result, key, artifact.format, artifact.products, artifact.drivers).write()
            result.replace(output_path)
        return artifact

    def _run(self, name: str, argv: list[str]) -> None:
        program = shutil.which(argv[0], path=self._path)
        if program is None:
            raise ToolchainFailure(f"step {name}: {argv[0]} is not installed")
        tail: deque[str] = deque(maxlen=_LOG_LINES)
        with subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            tail.extend(line.rstrip() for line in process.stdout)
        if process.returncode:
            raise ToolchainFailure(f"step {name}: {argv[0]} ended with {process.returncode}: {' | '.join(tail)}")


class BinaryRuntimeAdapter(ABC):
    """An engine that is only to be had as a binary: loads a compiled file on one device and runs it.

    A context manager: loaded inside, unloaded after.
    """

    def __init__(self, engine_path: Path, device_id: str) -> None:
        self.engine_path = engine_path
        self.device_id = device_id

    @abstractmethod
    def load(self) -> None:
        """Load the file on the device. Raises ArtifactMismatch, DeviceMissing or DriverMismatch."""

    @abstractmethod
    def run(self, inputs: Any, **options: Any) -> Any:
        """Run it once."""

    @abstractmethod
    def unload(self) -> None:
        """Free the device. Harmless where nothing is loaded."""

    def __enter__(self) -> Self:
        self.load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()
