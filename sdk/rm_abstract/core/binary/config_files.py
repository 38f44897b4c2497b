"""Configuration files as vendors' tools read them: structures to text, and templates to structures."""

import configparser
import io
import json
import math
import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from rm_abstract.core.errors import BadInput

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


class ConfigFormat(StrEnum):
    """Format of a configuration file; the value is the usual ending of its name."""

    JSON = "json"
    YAML = "yaml"
    TOML = "toml"
    INI = "ini"

    @classmethod
    def of(cls, name: str) -> "ConfigFormat":
        """The format of this name. Raises BadInput where there is none."""
        try:
            return cls(name.lower())
        except ValueError:
            raise BadInput(f"the format {name!r} is not known; there are {', '.join(cls)}") from None


class _CaseKept(configparser.ConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def parse(text: str, config_format: ConfigFormat) -> Any:
    """The structure that ``text`` writes. Raises BadInput where it is not valid."""
    try:
        match config_format:
            case ConfigFormat.JSON:
                return json.loads(text)
            case ConfigFormat.TOML:
                return tomllib.loads(text)
            case ConfigFormat.YAML:
                yaml = _yaml()
                try:
                    return yaml.safe_load(text)
                except yaml.YAMLError as error:
                    raise ValueError(str(error)) from None
            case ConfigFormat.INI:
                parser = _parser()
                parser.read_string(text)
                return {section: dict(parser.items(section)) for section in parser.sections()}
    except (ValueError, configparser.Error) as error:
        raise BadInput(f"the template is not valid {config_format.upper()}: {error}") from None


def render(structure: Any, config_format: ConfigFormat) -> str:
    """The text of a structure. Raises BadInput where the format cannot say it."""
    try:
        match config_format:
            case ConfigFormat.JSON:
                return json.dumps(structure, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            case ConfigFormat.YAML:
                yaml = _yaml()
                try:
                    return str(yaml.safe_dump(structure, sort_keys=False, allow_unicode=True))
                except yaml.YAMLError as error:
                    raise ValueError(str(error)) from None
            case ConfigFormat.TOML:
                return _toml(structure)
            case ConfigFormat.INI:
                return _ini(structure)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{config_format.upper()} cannot say this configuration: {error}") from None


def _yaml() -> Any:
    try:
        import yaml  # noqa: PLC0415 (not every installation has it)
    except ImportError:
        raise BadInput("configuration in YAML needs PyYAML; install it, or use JSON, TOML or INI") from None
    return yaml


def _parser() -> configparser.ConfigParser:
    return _CaseKept(interpolation=None, delimiters=("=",), default_section="")


def _ini(structure: Any) -> str:
    if not isinstance(structure, Mapping) or not all(isinstance(part, Mapping) for part in structure.values()):
        raise ValueError("it needs sections, each with options")
    parser = _parser()
    for section, options in structure.items():
        if not section or set(section) & set("]\n"):
            raise ValueError(f"{section!r} cannot be the name of a section")
        parser.add_section(section)
        for name, value in options.items():
            text = _ini_value(name, value)
            if "\n" in text or text != text.strip() or not name or name != name.strip() or set(name) & set("=:[]#;\n"):
                raise ValueError(f"{name} = {text!r} would be read back as something else")
            parser.set(section, name, text)
    file = io.StringIO()
    parser.write(file)
    return file.getvalue()


def _ini_value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(_ini_value(name, part) for part in value)
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"{name} is a {type(value).__name__}")


def _toml(structure: Any) -> str:
    if not isinstance(structure, Mapping):
        raise ValueError("it needs names at its top")
    lines: list[str] = []
    _toml_table(structure, (), lines)
    return "\n".join(lines) + "\n"


def _toml_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    # A table's own values come before its tables: what follows a header belongs to that header.
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    lines.extend(f"{_toml_key(name)} = {_toml_value(value)}" for name, value in table.items() if name not in inner)
    for name, value in inner.items():
        lines.append(f"[{'.'.join(map(_toml_key, (*path, name)))}]")
        _toml_table(value, (*path, name), lines)


def _toml_key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml_text(name)


def _toml_text(text: str) -> str:
    # JSON escapes what TOML does, but for the one control character that JSON leaves alone.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _toml_text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return "nan" if math.isnan(value) else f"{'-' if value < 0 else ''}inf"
        return repr(value) if any(sign in repr(value) for sign in ".e") else f"{value!r}.0"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml_key(name)} = {_toml_value(inner)}' for name, inner in value.items())}}}"
    raise ValueError(f"there is no {type(value).__name__} in it")
