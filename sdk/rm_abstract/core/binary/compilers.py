"""Compilers that are only to be had as binaries: driven by a command line, or by a file that they are given."""

import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rm_abstract.core.binary.arguments import GNU, ArgumentStyle
from rm_abstract.core.binary.config_files import ConfigFormat, parse, render
from rm_abstract.core.binary.process import run_tool, search_path
from rm_abstract.core.binary.templates import expand, expand_all
from rm_abstract.core.digests import digests, hash_of
from rm_abstract.core.errors import BadInput, ToolchainFailure
from rm_abstract.core.resource import BuildArtifact, BuildProfile, BuildStep

_Path = str | os.PathLike[str]
_RELEASE: Final = re.compile(r"\d+(?:\.\d+)+[0-9A-Za-z.+-]*")


def build_key(profile: BuildProfile, input_path: Path, **parts: Any) -> str:
    """Hash of what a compilation depends on: profile, content of the input, and ``parts``, values of JSON."""
    about = {**asdict(profile), "input": digests(input_path), "parts": parts}
    try:
        return hash_of(about)
    except (TypeError, ValueError) as error:
        raise BadInput(f"a flag of {profile.compiler} is neither text, number, truth nor a list: {error}") from None


@dataclass(frozen=True)
class Workplace:
    """Where one compilation happens; all of it goes away with the compilation but what is at ``output``."""

    input: Path
    output: Path
    work: Path
    """A directory for what comes between."""

    def variables(self) -> dict[str, str]:
        """Their paths by the names that templates call them."""
        return {
            "MODEL_DIR": str(self.input),
            "INPUT": str(self.input),
            "OUTPUT": str(self.output),
            "WORK": str(self.work),
        }


class BinaryCompilerAdapter(ABC):
    """A compiler that is only to be had as a binary.

    A subclass says whether it is there, and how it is run; ``compile`` does the rest, the same for all.
    """

    output_directory: bool = False
    """True where the compiler wants the directory for its result to be there."""

    def __init__(self, build_profile: BuildProfile) -> None:
        self.build_profile = build_profile

    @abstractmethod
    def available(self) -> bool:
        """True if it is installed."""

    @abstractmethod
    def needs(self) -> list[str]:
        """Names of the programs or libraries that have to be installed."""

    @abstractmethod
    def run(self, place: Workplace) -> None:
        """Compile ``place.input`` into ``place.output``. Raises ToolchainFailure."""

    def versions(self) -> dict[str, str]:
        """Versions of the tools, for the artifact: what the profile says."""
        profile = self.build_profile
        return {profile.compiler: profile.compiler_version} if profile.compiler_version else {}

    def compile(
        self,
        input_path: _Path,
        output_path: _Path,
        key: str = "",
        *,
        model_id: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> BuildArtifact:
        """Compile the model at ``input_path`` into ``output_path``, complete or absent, with its description.

        ``output_path`` must not exist, or be an empty directory; the result is a directory or a file, as the compiler
        makes it. Scratch space is taken beside it. Without a ``key`` it is ``build_key``. Raises BadInput where a path
        is not as it should be, and ToolchainFailure where the compiler fails, or says that it did not and lies.
        """
        source, target = Path(input_path).absolute(), Path(output_path).absolute()
        if not source.exists():
            raise BadInput(f"there is no model at {source}")
        if target.is_file():
            raise BadInput(f"{target} is there already; remove it, or compile to another path")
        if target.is_dir() and any(target.iterdir()):
            raise BadInput(f"{target} is not empty")
        profile = self.build_profile
        key = key or build_key(profile, source)
        versions = self.versions()
        target.parent.mkdir(parents=True, exist_ok=True)
        about = {**(metadata or {}), **({"model_id": model_id} if model_id else {})}
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".rma-build-") as scratch:
            place = Workplace(source, Path(scratch, "result", target.name), Path(scratch, "work"))
            place.work.mkdir()
            (place.output if self.output_directory else place.output.parent).mkdir(parents=True)
            self.run(place)
            if not _holds_something(place.output):
                raise ToolchainFailure(f"{profile.compiler} ended without an error, but left no {target.name}")
            made = BuildArtifact(
                place.output, key, profile.output_format or profile.compiler, profile.products, profile.drivers,
                versions, about,
            )  # fmt: skip
            made.write()
            artifact = replace(made, path=Path(output_path))
            if place.output.is_file():
                # The description first: without the file itself, there is no artifact that could be taken for whole.
                made.description.replace(target.with_name(made.description.name))
                if target.is_dir():
                    target.rmdir()
            place.output.replace(target)
        return artifact


class _ProgramAdapter(BinaryCompilerAdapter):
    """What adapters for programs have in common."""

    def __init__(
        self,
        build_profile: BuildProfile,
        search_paths: Sequence[_Path] = (),
        *,
        cli_name: str = "",
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        version_arguments: Sequence[str] = (),
        output_directory: bool = False,
    ) -> None:
        super().__init__(build_profile)
        self.cli_name = cli_name or build_profile.compiler
        self.timeout = timeout
        self.environment = dict(environment or {})
        self.version_arguments = tuple(version_arguments)
        self.output_directory = output_directory
        self._path = search_path(search_paths)

    def needs(self) -> list[str]:
        """See the base class: the programs that are started."""
        return [self.cli_name]

    def available(self) -> bool:
        """True if every program is found."""
        return all(shutil.which(program, path=self._path) for program in self.needs())

    def versions(self) -> dict[str, str]:
        """What the profile says; with ``version_arguments``, what the program itself answers to them.

        Raises ToolchainFailure where that is no version, or not the profile's: ``2.0`` is any ``2.0.x``.
        """
        if not self.version_arguments:
            return super().versions()
        answer = self._run("its version", [self.cli_name, *self.version_arguments])
        match = _RELEASE.search(answer)
        if match is None:
            raise ToolchainFailure(f"{self.cli_name} does not say its version, but: {answer}")
        wanted = self.build_profile.compiler_version
        if wanted and match[0] != wanted and not match[0].startswith(f"{wanted}."):
            raise ToolchainFailure(f"{self.cli_name} is version {match[0]}, but the profile is for {wanted}")
        return {self.build_profile.compiler: match[0]}

    def _run(self, what: str, argv: Sequence[str], directory: Path | None = None) -> str:
        return run_tool(
            what, argv, path=self._path, timeout=self.timeout, environment=self.environment, directory=directory
        )


class CLICompilerAdapter(_ProgramAdapter):
    """A compiler with a command line: a profile's steps one after the other, or one command made of its flags.

    A profile without steps becomes ``cli_name --input … --output …`` and its flags in the manner of ``style``;
    ``cli_name`` is the profile's compiler where none is given. ``timeout``, in seconds, is for each command.
    ``search_paths`` come before PATH. No shell is involved.
    """

    def __init__(
        self,
        build_profile: BuildProfile,
        search_paths: Sequence[_Path] = (),
        *,
        cli_name: str = "",
        style: ArgumentStyle = GNU,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        version_arguments: Sequence[str] = (),
        output_directory: bool = False,
    ) -> None:
        super().__init__(
            build_profile,
            search_paths,
            cli_name=cli_name,
            timeout=timeout,
            environment=environment,
            version_arguments=version_arguments,
            output_directory=output_directory or bool(build_profile.steps),
        )
        self.style = style

    def needs(self) -> list[str]:
        """See the base class."""
        return sorted({step.command[0] for step in self.build_profile.steps}) or super().needs()

    def run(self, place: Workplace) -> None:
        """See the base class."""
        profile = self.build_profile
        if not profile.steps:
            arguments = self.style.arguments(profile.flags, place.input, place.output)
            self._run("compiling", [self.cli_name, *arguments], place.work)
            return
        variables = {**{name: str(value) for name, value in profile.flags.items()}, **place.variables()}
        for step in profile.steps:
            self._step(step, variables)

    def _step(self, step: BuildStep, variables: Mapping[str, str]) -> None:
        self._run(f"step {step.name}", [expand(argument, variables) for argument in step.command])
        for output in (Path(expand(text, variables)) for text in step.outputs):
            if not _holds_something(output):
                raise ToolchainFailure(f"step {step.name} ended without an error, but left no {output.name}")


class ConfigFileCompilerAdapter(_ProgramAdapter):
    """A compiler that reads what to do from a file: JSON, YAML, TOML or INI, made of a template.

    The template is a mapping, or a text in the format itself. ``${NAME}`` in it is one of the profile's flags, or
    ``INPUT``, ``OUTPUT`` and ``WORK``; a text that is nothing else becomes the flag's value with its type. Without a
    template the file has ``input``, ``output`` and the flags (INI: in the section ``build``). ``arguments`` are those
    of the program, where ``${CONFIG}`` is the file.
    """

    def __init__(
        self,
        build_profile: BuildProfile,
        search_paths: Sequence[_Path] = (),
        *,
        cli_name: str = "",
        config_format: str = ConfigFormat.JSON,
        template: str | Mapping[str, Any] | None = None,
        arguments: Sequence[str] = ("--config", "${CONFIG}"),
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        version_arguments: Sequence[str] = (),
        output_directory: bool = False,
    ) -> None:
        super().__init__(
            build_profile,
            search_paths,
            cli_name=cli_name,
            timeout=timeout,
            environment=environment,
            version_arguments=version_arguments,
            output_directory=output_directory,
        )
        self.config_format = ConfigFormat.of(config_format)
        self.arguments = tuple(arguments)
        self._template = parse(template, self.config_format) if isinstance(template, str) else template

    def config(self, place: Workplace) -> str:
        """The text of the file. Raises BadInput where the format cannot say it, or a name in it has no value."""
        variables = {**self.build_profile.flags, **place.variables()}
        template = self._template
        if template is None:
            flat = {"input": "${INPUT}", "output": "${OUTPUT}"}
            flat.update({name: f"${{{name}}}" for name, value in self.build_profile.flags.items() if value is not None})
            template = {"build": flat} if self.config_format is ConfigFormat.INI else flat
        return render(expand_all(template, variables), self.config_format)

    def run(self, place: Workplace) -> None:
        """See the base class."""
        file = place.work / f"config.{self.config_format.value}"
        file.write_text(self.config(place), encoding="utf-8")
        variables = {**place.variables(), "CONFIG": str(file)}
        self._run("compiling", [self.cli_name, *(expand(each, variables) for each in self.arguments)], place.work)


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0
