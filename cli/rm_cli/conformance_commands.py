"""``rm-abstract conformance``: does a device plugin keep the rules?"""

import asyncio
import re
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from rm_device_plugins.conformance.model import Result
    from rm_device_plugins.conformance.runner import Report, Target

FAILED: Final = 1
COULD_NOT_RUN: Final = 2

_EPILOG: Final = """\
\b
Examples:
  rm-abstract conformance --command 'my-plugin --dir {socket_dir}' --inject 'my-faults {action} {device}'
  rm-abstract conformance --image registry.example.com/my-plugin:1 --run-option=--privileged
  rm-abstract conformance --socket /tmp/dp/my-plugin.sock --case 'allocate.*'

Ends with 0 if every case that applies passed, 1 if not, 2 if the suite could not run.
"""


def _pairs(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for name, separator, _ in pairs:
        if not (name and separator):
            raise click.BadParameter(f"{name!r} is not NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _expression(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> "Callable[[str], str] | None":
    if value is None:
        return None
    try:
        found = re.compile(value)
    except re.error as error:
        raise click.BadParameter(f"{value!r} is not a regular expression: {error}") from error
    if found.groups != 1:
        raise click.BadParameter(f"{value!r} must have one group, which is the hardware's part of an ID")

    def hardware(device: str) -> str:
        match = found.fullmatch(device)
        return match[1] if match else device

    return hardware


def _file(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A file that can be written, or ``-``; said before the suite runs and not after it."""
    if value not in (None, "-") and not Path(str(value)).absolute().parent.is_dir():
        raise click.BadParameter(f"{value}: there is no directory {Path(str(value)).absolute().parent}")
    return value


@click.command(epilog=_EPILOG)
@click.option("--command", help="Start the plugin with this command; {socket_dir}, {resource}, {port}, {work_dir}.")
@click.option("--image", help="Start the plugin from this image, with docker, podman, nerdctl or ctr.")
@click.option("--socket", type=click.Path(path_type=Path), help="Test the plugin that listens here already.")
@click.option("--inject", help="The fault hook: a command with {action} and {device}.")
@click.option(
    "--resource", default="", help="The resource that the plugin must register; without it, what it registers."
)
@click.option("--env", multiple=True, callback=_pairs, help="NAME=VALUE for the plugin; placeholders as in --command.")
@click.option(
    "--arg", "arguments", multiple=True, help="Argument for the image's plugin; placeholders as in --command."
)
@click.option("--runtime", help="The container runtime's command; the first that is on the PATH, without it.")
@click.option("--run-option", "run_options", multiple=True, help="Option of the runtime's run, such as --privileged.")
@click.option(
    "--shared-by",
    "siblings",
    callback=_expression,
    metavar="REGEX",
    help="IDs that share hardware: the group in it is the hardware's part of an ID, as in '(.*)::[0-9]+'.",
)
@click.option("--case", "patterns", multiple=True, metavar="PATTERN", help="Only these cases, and what they build on.")
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Plugins that run at a time.")
@click.option(
    "--allowance",
    type=click.FloatRange(1, 1000),
    default=5.0,
    show_default=True,
    help="Stretches the times of the rules: 1 on a quiet machine, more on a busy one.",
)
@click.option(
    "--patience",
    type=click.FloatRange(1, 3600),
    default=30.0,
    show_default=True,
    help="Seconds for what the rules give no time for.",
)
@click.option(
    "--quiet-seconds",
    type=click.FloatRange(1, 3600),
    default=12.0,
    show_default=True,
    help="How long a stream is watched for messages without news.",
)
@click.option(
    "--json", "json_file", callback=_file, metavar="FILE", help="Write the results as JSON; - is standard output."
)
@click.option("--junit", "junit_file", callback=_file, metavar="FILE", help="Write the results as JUnit XML.")
@click.option("--list", "listed", is_flag=True, help="List the cases with their rules, and end.")
def conformance(
    command: str | None,
    image: str | None,
    socket: Path | None,
    inject: str | None,
    resource: str,
    env: dict[str, str],
    arguments: tuple[str, ...],
    runtime: str | None,
    run_options: tuple[str, ...],
    siblings: "Callable[[str], str] | None",
    patterns: tuple[str, ...],
    jobs: int,
    allowance: float,
    patience: float,
    quiet_seconds: float,
    json_file: str | None,
    junit_file: str | None,
    listed: bool,
) -> None:
    """Test a device plugin, in any language, in front of a kubelet's device manager."""
    from rm_device_plugins.conformance.model import CannotRun, Timing
    from rm_device_plugins.conformance.runner import run, select

    try:
        chosen = select(patterns)
        if listed:
            for case in chosen:
                click.echo(f"{case.id}\n    {case.rule}\n    Why: {case.why}\n    See: {case.reference}")
            return
        target = _target(command, image, socket, inject, resource, env, arguments, runtime, run_options, siblings)
        timing = Timing(allowance=allowance, patience=patience, quiet=quiet_seconds)
        progress = _progress(len(chosen))
        work = run(target, chosen if patterns else None, timing, jobs=jobs, progress=progress)
        result = asyncio.run(_until_signal(work))
    except CannotRun as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(COULD_NOT_RUN)
    except asyncio.CancelledError:
        click.echo("Error: asked to end; what was started has been ended", err=True)
        sys.exit(COULD_NOT_RUN)
    _write(result, json_file, junit_file)
    sys.exit(0 if result.passed else FAILED)


async def _until_signal(work: "Coroutine[None, None, Report]") -> "Report":
    """The result of ``work``. SIGTERM cancels it, as Ctrl-C does, so that no plugin and no container is left behind."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _progress(cases: int) -> "Callable[[Result], None]":
    """A line on a terminal that tells what ended last, and is gone at the end; nothing elsewhere."""
    ended = 0

    def tell(result: "Result") -> None:
        nonlocal ended
        ended += 1
        if sys.stderr.isatty():
            text = f"{ended} of {max(ended, cases)}  {result.case.id}"
            click.echo(f"\r{text:<60}\r" if ended < cases else f"\r{'':<60}\r", err=True, nl=False)

    return tell


def _target(
    command: str | None,
    image: str | None,
    socket: Path | None,
    inject: str | None,
    resource: str,
    env: dict[str, str],
    arguments: tuple[str, ...],
    runtime: str | None,
    run_options: tuple[str, ...],
    siblings: "Callable[[str], str] | None",
) -> "Target":
    """Raises click.UsageError and CannotRun for what does not fit together."""
    from rm_device_plugins.config import ConfigError, check_resource_name
    from rm_device_plugins.conformance import template
    from rm_device_plugins.conformance.faults import Hook
    from rm_device_plugins.conformance.launch import CommandLauncher, ImageLauncher, Launcher
    from rm_device_plugins.conformance.model import CannotRun
    from rm_device_plugins.conformance.runner import Target

    if sum(option is not None for option in (command, image, socket)) != 1:
        raise click.UsageError("one of --command, --image and --socket is needed: how to reach the plugin")
    if image is None and (runtime or run_options or arguments):
        raise click.UsageError("--runtime, --run-option and --arg belong to --image")
    if socket is not None and (env or resource):
        raise click.UsageError("--env and --resource are for a plugin that the suite starts, not for --socket")
    if resource:
        try:
            check_resource_name(resource)
        except ConfigError as error:
            raise CannotRun(f"--resource: {error}") from error
    hook = template.split("--inject", inject) if inject is not None else None
    Hook(hook, 1)  # so that a hook without {action} is refused before anything is started
    launcher: Launcher | None = None
    if command is not None:
        launcher = CommandLauncher(template.split("--command", command), env)
    elif image is not None:
        prefix = template.split("--runtime", runtime) if runtime is not None else None
        launcher = ImageLauncher(image, arguments, env, prefix, run_options)
    if launcher is not None and launcher.takes_resource and not resource:
        raise CannotRun("{resource} is used: say with --resource which name the plugin is to register")
    return Target(launcher, socket, hook, resource, siblings)


def _write(result: "Report", json_file: str | None, junit_file: str | None) -> None:
    from rm_device_plugins.conformance import report

    for name, text in ((json_file, report.as_json), (junit_file, report.as_junit)):
        if name is None:
            continue
        if name == "-":
            click.echo(text(result), nl=False)
        else:
            Path(name).write_text(text(result), encoding="utf-8")
    if "-" not in (json_file, junit_file):
        click.echo(report.table(result, shutil.get_terminal_size((120, 24)).columns - 24), nl=False)
