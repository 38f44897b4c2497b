"""``rm-abstract stage``: how the Jobs of one build hand over what they have."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click
from rm_api.conditions import Reason
from rm_api.report import Report

if TYPE_CHECKING:
    from rm_abstract.store import PushedArtifact, StageStore

_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,62}"


def _directories(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    directories: dict[str, Path] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not (re.fullmatch(_NAME, name) and separator and path):
            raise click.BadParameter(f"{value!r} is not NAME=PATH, with a name such as work or output-2")
        if name in directories:
            raise click.BadParameter(f"the name {name!r} is given twice")
        directories[name] = Path(path)
    if len({path.resolve() for path in directories.values()}) < len(directories):
        raise click.BadParameter("two names have the same directory")
    return directories


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--dir", "directories", multiple=True, required=True, callback=_directories,
            help="NAME=PATH of a directory; several times.",
        ),
        click.option("--stage", "number", type=click.IntRange(1), required=True, help="Number of the stage."),
        click.option("--key", required=True, help="The key of the artifact that is being built."),
        click.option("--reference", required=True, help="HOST/REPOSITORY:TAG"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def stage() -> None:
    """Hand what a build has come to from one Job to the next."""


@stage.command("push")
@_options
def push_stage(reference: str, key: str, number: int, directories: dict[str, Path]) -> None:
    """Push directories for the next Job."""
    _run(Reason.BUILT, lambda store: store.push(directories, reference, key=key, stage=number))


@stage.command("fetch")
@_options
def fetch_stage(reference: str, key: str, number: int, directories: dict[str, Path]) -> None:
    """Fetch the directories that the Job before has pushed, complete or not at all."""
    _run(Reason.READY, lambda store: store.fetch(directories, reference, key=key, stage=number))


def _run(reason: Reason, do: "Callable[[StageStore], PushedArtifact]") -> NoReturn:
    from rm_abstract.reporting import run_reported
    from rm_abstract.store import StageStore

    def action() -> Report:
        with StageStore() as store:
            done = do(store)
        return Report(reason=reason, digest=done.digest, sizeBytes=done.size_bytes)

    sys.exit(run_reported(action))
