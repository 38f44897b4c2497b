"""``python -m rm_abstract.native``: a library from the command line, for build steps and for those who write one."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rm_api.conditions import Reason
from rm_api.report import Report

from rm_abstract.core.errors import BadInput, PluginError, WorkloadError
from rm_abstract.core.session import FinishReason, GenerationRequest, generate
from rm_abstract.native.library import NativeLibrary
from rm_abstract.native.session import NativeSession
from rm_abstract.plugins.loading import open_library
from rm_abstract.reporting import run_reported


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is one of the workload contract. A build leaves a report, as in our images."""
    parser = argparse.ArgumentParser(prog="python -m rm_abstract.native", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "info": "say what a library says of itself",
        "probe": "say which devices it finds",
        "compile": "compile a model",
        "generate": "continue a text",
    }
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in about.items()}
    for command in parsers.values():
        command.add_argument("library", type=Path, help="the library, or a directory with a plugin.json that names it")
    parsers["compile"].add_argument("--model", type=Path, required=True, help="directory of the model")
    parsers["compile"].add_argument("--output", type=Path, required=True, help="empty directory for the result")
    parsers["compile"].add_argument("--target", default="")
    parsers["compile"].add_argument("--key", default="")
    for name in _LIMITS:
        parsers["compile"].add_argument(f"--{name}", metavar="N", help="what the result need not take more than")
    parsers["generate"].add_argument("--artifact", type=Path, required=True, help="directory of the compiled model")
    parsers["generate"].add_argument("--prompt", required=True)
    parsers["generate"].add_argument("--max-tokens", type=int, default=64)
    for name in ("compile", "generate"):
        parsers[name].add_argument("--dtype", default="")
        parsers[name].add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args(argv)
    if arguments.command == "compile":
        return int(run_reported(lambda: _compile(arguments)))
    try:
        _ask(arguments)
    except WorkloadError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return int(error.code)
    return 0


def _ask(arguments: argparse.Namespace) -> None:
    library, info = open_library(arguments.library)
    with library:
        if arguments.command == "info":
            _show({**asdict(info), **{name: str(getattr(info, name) or "") for name in _VERSIONS}})
        elif arguments.command == "probe":
            _show(library.probe())
        else:
            print(_generate(library, arguments))


_LIMITS = ("max-sequence-length", "max-batch-size")
_VERSIONS = ("version", "min_host_version", "max_host_version")


def _show(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    print()


def _options(arguments: argparse.Namespace) -> dict[str, str]:
    if any("=" not in option for option in arguments.option):
        raise BadInput("an option is written NAME=VALUE")
    return dict(option.split("=", maxsplit=1) for option in arguments.option)


def _limits(arguments: argparse.Namespace) -> dict[str, int | None]:
    limits: dict[str, int | None] = {}
    for name in _LIMITS:
        member = name.replace("-", "_")
        value = getattr(arguments, member)
        if value is not None and not (value.isascii() and value.isdigit() and int(value) > 0):
            raise BadInput(f"--{name} is {value!r}, but must be a whole number of at least 1")
        limits[member] = None if value is None else int(value)
    return limits


def _compile(arguments: argparse.Namespace) -> Report:
    limits = _limits(arguments)
    if not arguments.model.is_dir():
        raise BadInput(f"there is no directory {arguments.model}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if any(arguments.output.iterdir()):
        raise BadInput(f"{arguments.output} is not empty")
    library, info = open_library(arguments.library)
    with library:
        answer = library.compile(
            arguments.model.absolute(), arguments.output.absolute(), key=arguments.key,
            target=arguments.target, dtype=arguments.dtype, options=_options(arguments), **limits,
        )  # fmt: skip
    said = {str(name): str(version) for name, version in (answer.get("versions") or {}).items()}
    return Report(Reason.BUILT, f"compiled by {info}", versions={info.name: str(info.version), **said})


def _generate(library: NativeLibrary, arguments: argparse.Namespace) -> str:
    devices = [str(device["id"]) for device in library.probe()]
    model = library.open(arguments.artifact.absolute(), devices, dtype=arguments.dtype, options=_options(arguments))
    session = NativeSession(model)
    try:
        prompt = session.tokenizer.encode(arguments.prompt, add_special_tokens=True)
        tokens, finish = generate(session, GenerationRequest(prompt, arguments.max_tokens))
        if finish is FinishReason.ERROR:
            raise PluginError(f"the generation failed: {session.failure or 'the log says why'}")
        return session.tokenizer.decode(tokens)
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main())
