"""Configuration files of compilers: a template is read first, and its variables are replaced in what was read.

So a value never breaks the file, whatever characters it has, and two ways of writing the same file are the same.
"""

import configparser
import io
import json
import re
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any, Final

from rm_api.names import expand, variables_in

NUMBERS: Final = frozenset({"TP", "PP", "MAX_SEQ", "MAX_BATCH", "DEVICE_COUNT"})
"""Variables that are whole numbers: a text that is one of them and nothing else becomes a number, null where unset."""

_ALONE = re.compile(r"\$\{([A-Za-z0-9_]+)\}")


class TemplateInvalid(ValueError):
    """The template is not what its format says, or what came of it cannot be written; the message says where."""


def read(format_: str, content: str) -> Any:
    """What ``content`` says, as mappings, lists, texts and numbers. Raises TemplateInvalid."""
    try:
        match format_:
            case "JSON":
                return json.loads(content)
            case "YAML":
                import yaml  # noqa: PLC0415 (only those who have YAML to read need it)

                try:
                    return _plain(yaml.safe_load(content))
                except yaml.YAMLError as error:
                    raise TemplateInvalid(f"no valid YAML: {' '.join(str(error).split())}") from None
            case "TOML":
                return _plain(tomllib.loads(content))
            case "INI":
                return _read_ini(content)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, configparser.Error, RecursionError) as error:
        raise TemplateInvalid(f"no valid {format_}: {' '.join(str(error).split())}") from None
    raise TemplateInvalid(f"there is no format {format_}; there are JSON, YAML, TOML and INI")


def variables_of(data: Any) -> set[str]:
    """Names of the variables in the texts of ``data``, also in the names of members."""
    match data:
        case str():
            return variables_in(data)
        case dict():
            return set().union(*map(variables_of, data.keys()), *map(variables_of, data.values()))
        case list():
            return set().union(*map(variables_of, data))
    return set()


def filled(data: Any, values: Mapping[str, str]) -> Any:
    """``data`` with the variables in ``values`` replaced; others stay, and a dollar is written ``$$`` beside them.

    With every variable in ``values`` it is the file: then a dollar is a dollar, see ``finished``.
    """
    match data:
        case str():
            alone = _ALONE.fullmatch(data)
            if alone and alone[1] in NUMBERS and alone[1] in values:
                return int(values[alone[1]]) if values[alone[1]] else None
            return expand(data, values)
        case dict():
            return {expand(name, values): filled(member, values) for name, member in data.items()}
        case list():
            return [filled(member, values) for member in data]
    return data


def finished(data: Any) -> Any:
    """``data`` with ``$$`` for a dollar undone, once no variable is left."""
    match data:
        case str():
            return data.replace("$$", "$")
        case dict():
            return {finished(name): finished(member) for name, member in data.items()}
        case list():
            return [finished(member) for member in data]
    return data


def write(format_: str, data: Any) -> str:
    """``data`` as a file of the format. Raises TemplateInvalid for what the format cannot say."""
    match format_:
        case "JSON":
            return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        case "YAML":
            import yaml  # noqa: PLC0415

            return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        case "TOML":
            import tomli_w  # noqa: PLC0415

            try:
                return str(tomli_w.dumps(data))
            except TypeError as error:
                raise TemplateInvalid(f"TOML cannot say this: {error}") from None
        case "INI":
            return _write_ini(data)
    raise TemplateInvalid(f"there is no format {format_}")


def _plain(data: Any) -> Any:
    """``data`` with dates as texts, which JSON, and so a key, can be made of."""
    match data:
        case datetime() | date() | time():
            return data.isoformat()
        case dict():
            if not all(isinstance(name, str) for name in data):
                raise TemplateInvalid("the names of members must be texts; put the others into quotes")
            return {name: _plain(member) for name, member in data.items()}
        case list():
            return [_plain(member) for member in data]
        case None | bool() | int() | float() | str():
            return data
    raise TemplateInvalid(f"a {type(data).__name__} cannot be in a configuration file")


def _parser() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="\0", strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    return parser


def _read_ini(content: str) -> dict[str, dict[str, str]]:
    parser = _parser()
    parser.read_string(content)
    return {section: dict(parser[section]) for section in parser.sections()}


def _write_ini(data: Mapping[str, Mapping[str, Any]]) -> str:
    parser = _parser()
    for section, members in data.items():
        parser[section] = {name: "" if value is None else str(value) for name, value in members.items()}
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()
