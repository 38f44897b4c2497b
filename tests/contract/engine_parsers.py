"""The real parsers of engines' command lines, asked in the engines' own environments.

Run as ``PYTHON engine_parsers.py NAME``: takes a JSON list of commands (lists of words, the program's name first)
from standard input and prints a list of what the engine understood of each, as an object, or of what it says to one
that it does not take, as a text.
"""

import argparse
import contextlib
import io
import json
import sys
import types

PLAIN = (str, int, float, bool, list, type(None))


def vllm() -> argparse.ArgumentParser:
    """``vllm serve``, as ``vllm.entrypoints.cli.main`` puts it together."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser("vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="command", required=True))
    return parser


def furiosa_llm() -> argparse.ArgumentParser:
    """``furiosa-llm serve``, as ``furiosa_llm.cli.main`` puts it together.

    What checks the options for images loads transformers and PyTorch, which the environment is without; none of these
    options is ever used here.
    """
    images = types.ModuleType("furiosa_llm.mm_options")
    for name in ("validate_media_io_kwargs", "validate_mm_processor_kwargs", "validate_modality_kwargs"):
        setattr(images, name, None)
    sys.modules[images.__name__] = images
    from furiosa_llm.cli.serve import add_serve_args

    parser = argparse.ArgumentParser("furiosa-llm")
    add_serve_args(parser.add_subparsers(dest="command", required=True).add_parser("serve"))
    return parser


def main() -> None:
    """Parse what is asked."""
    parser = {"vllm": vllm, "furiosa-llm": furiosa_llm}[sys.argv[1]]()
    options = known(parser)
    print(json.dumps([parsed(parser, options, words) for _, *words in json.load(sys.stdin)]))


def parsed(parser: argparse.ArgumentParser, options: set[str], words: list[str]) -> dict[str, object] | str:
    """What the command line comes to, or what is wrong with it. An abbreviation counts as wrong."""
    if unknown := {word.partition("=")[0] for word in words if word.startswith("--")} - options:
        return f"no such option: {', '.join(sorted(unknown))}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            told = vars(parser.parse_args(words))
    except SystemExit:
        return said.getvalue()
    return {name: value for name, value in told.items() if isinstance(value, PLAIN)}


def known(parser: argparse.ArgumentParser) -> set[str]:
    """The options of ``serve``, as they are written."""
    commands = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    return {word for action in commands.choices["serve"]._actions for word in action.option_strings}


if __name__ == "__main__":
    main()
