"""Command lines with placeholders, as people give them."""

import re
import shlex
from collections.abc import Mapping

from rm_device_plugins.conformance.model import CannotRun

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def split(option: str, text: str) -> tuple[str, ...]:
    """The words of a command line; raises CannotRun where quotes are open, or nothing is there."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise CannotRun(f"{option} {text!r} cannot be read as a command line: {error}") from error
    if not words:
        raise CannotRun(f"{option} is empty; give a command line")
    return words


def placeholders(text: str) -> frozenset[str]:
    """Names in braces; only lower-case letters and underscores, so that JSON and shell braces are left alone."""
    return frozenset(_PLACEHOLDER.findall(text))


def check(option: str, text: str, known: Mapping[str, str]) -> None:
    """Raises CannotRun for a placeholder that is not among ``known`` (name → what it stands for)."""
    unknown = sorted(placeholders(text) - known.keys())
    if unknown:
        offered = ", ".join(f"{{{name}}} ({meaning})" for name, meaning in known.items())
        raise CannotRun(f"{option} has the unknown placeholder {{{unknown[0]}}}; there are {offered}")


def fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its placeholders replaced; each must have a value."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)
