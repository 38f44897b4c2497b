"""Configuration files of compilers: a template is read first, and its variables are replaced in what was read.

So a value never breaks the file, whatever characters it has, and two ways of writing the same file are the same.
"""

import configparser
import io
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any, Final

from rm_api.names import expand, variables_in

NUMBERS: Final = frozenset({"TP", "PP", "MAX_SEQ", "MAX_BATCH", "DEVICE_COUNT"})
"""Variables that are whole numbers: a text that is one of them and nothing else becomes a number, null where unset."""

_ALONE = re.compile(r"\$\{([A-Za-z0-9_]+)\}")
_DEEPEST: Final = 64
_MOST: Final = 100_000
"""Values in a template. With aliases, a few lines of YAML say any number of them."""


class TemplateInvalid(ValueError):
    """The template is not what its format says, or what came of it cannot be written; the message says where."""


def read(format_: str, content: str) -> Any:
    """What ``content`` says, as mappings, lists, texts and numbers. Raises TemplateInvalid."""
    try:
        match format_:
            case "JSON":
                data = json.loads(
                    content, object_pairs_hook=_members, parse_constant=_no_number, parse_float=_finite_number
                )
            case "YAML":
                data = _read_yaml(content)
            case "TOML":
                data = tomllib.loads(content)
            case "INI":
                data = _read_ini(content)
            case _:
                raise TemplateInvalid(f"there is no format {format_}; there are JSON, YAML, TOML and INI")
        return _Plain().of(data)
    except TemplateInvalid:
        raise
    except (ValueError, configparser.Error, RecursionError) as error:
        raise TemplateInvalid(f"no valid {format_}: {' '.join(str(error).split())}") from None


def render(format_: str, content: str, values: Mapping[str, str]) -> str:
    """The file that the template ``content`` makes with these values. Raises TemplateInvalid."""
    data = read(format_, content)
    unset = sorted(variables_of(data) - values.keys())
    if unset:
        raise TemplateInvalid(f"it names {', '.join(unset)}, which is not set; a dollar before a brace is written $$")
    made = finished(filled(data, values))
    if _members_in(made) != _members_in(data):
        raise TemplateInvalid("two members come to have the same name")
    return write(format_, made)


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

    With every variable in ``values`` it is the file: then a dollar is a dollar, see ``finished``. Raises
    TemplateInvalid where a value that must be a number is none.
    """
    match data:
        case str():
            alone = _ALONE.fullmatch(data)
            if alone and alone[1] in NUMBERS and alone[1] in values:
                return _number(alone[1], values[alone[1]])
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
    """``data`` as a file of the format, which ``read`` reads as the same. TemplateInvalid where it cannot say that."""
    _check_texts(data)
    match format_:
        case "JSON":
            return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        case "YAML":
            import yaml  # noqa: PLC0415 (only those who have YAML to write need it)

            # Not allow_unicode: the library reads some of what it then writes (U+0085) as a blank.
            return str(yaml.safe_dump(data, sort_keys=False))
        case "TOML":
            import tomli_w  # noqa: PLC0415

            try:
                return str(tomli_w.dumps(data))
            except TypeError as error:
                raise TemplateInvalid(f"TOML cannot say this: {error}") from None
        case "INI":
            return _write_ini(data)
    raise TemplateInvalid(f"there is no format {format_}")


def _members_in(data: Any) -> int:
    match data:
        case dict():
            return len(data) + sum(map(_members_in, data.values()))
        case list():
            return sum(map(_members_in, data))
    return 0


def _number(name: str, value: str) -> int | None:
    if not value:
        return None
    try:
        return int(value)
    except ValueError:
        raise TemplateInvalid(f"{name} is {value!r}, which is no whole number") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = next((name for name, count in Counter(name for name, _ in pairs).items() if count > 1), None)
    if twice is not None:
        raise TemplateInvalid(f"there are two members {twice!r} in one place")
    return dict(pairs)


def _no_number(text: str) -> Any:
    raise TemplateInvalid(f"no valid JSON: {text} is no number")


def _finite_number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise TemplateInvalid(f"the number {text} is too large")
    return number


class _Plain:
    """Copies what was read, and sees to its size."""

    def __init__(self) -> None:
        self._left = _MOST

    def of(self, data: Any, depth: int = 0) -> Any:
        """``data`` with dates as texts, which JSON, and so a key, can be made of."""
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise TemplateInvalid(f"it says more than {_MOST} things, or nests them more than {_DEEPEST} deep")
        match data:
            case datetime() | date() | time():
                return data.isoformat()
            case dict():
                if not all(isinstance(name, str) for name in data):
                    raise TemplateInvalid("the names of members must be texts; put the others into quotes")
                return {name: self.of(member, depth + 1) for name, member in data.items()}
            case list():
                return [self.of(member, depth + 1) for member in data]
            case None | bool() | int() | float() | str():
                return data
        raise TemplateInvalid(f"a {type(data).__name__} cannot be in a configuration file")


def _check_texts(data: Any) -> None:
    """Raise TemplateInvalid for a text that is no Unicode: half of a surrogate pair, or bytes of a variable."""
    match data:
        case str():
            try:
                data.encode()
            except UnicodeEncodeError:
                raise TemplateInvalid(f"{data!r} is no Unicode text") from None
        case dict():
            for name, member in data.items():
                _check_texts(name)
                _check_texts(member)
        case list():
            for member in data:
                _check_texts(member)


def _read_yaml(content: str) -> Any:
    import yaml  # noqa: PLC0415 (only those who have YAML to read need it)

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            _members([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            return node

    try:
        return yaml.load(content, Loader)  # noqa: S506 (a safe one)
    except yaml.YAMLError as error:
        raise TemplateInvalid(f"no valid YAML: {' '.join(str(error).split())}") from None


def _parser() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="\0", strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    return parser


def _read_ini(content: str) -> dict[str, dict[str, str]]:
    parser = _parser()
    parser.read_file(io.StringIO(content, newline=None))
    return {section: dict(parser[section]) for section in parser.sections()}


def _write_ini(data: Mapping[str, Mapping[str, Any]]) -> str:
    said = {
        section: {name: "" if value is None else str(value) for name, value in members.items()}
        for section, members in data.items()
    }
    parser = _parser()
    text = io.StringIO()
    try:
        parser.read_dict(said)
        parser.write(text)
        kept = _read_ini(text.getvalue())
    except (configparser.Error, ValueError):
        kept = {}
    # INI has no way to quote: blanks at the ends, comments in later lines, brackets in a section's name.
    for section, members in said.items():
        for name, value in members.items():
            if kept.get(section, {}).get(name) != value:
                raise TemplateInvalid(f"INI cannot say {name} = {value!r} in the section {section!r}")
    if kept != said:
        raise TemplateInvalid("INI cannot say these names of sections and members")
    return text.getvalue()
