"""Texts and structures with variables in them."""

import re
from collections.abc import Mapping
from typing import Any, Final

from rm_abstract.core.errors import BadInput

_VARIABLE: Final = re.compile(r"\$\$|\$\{([^}]*)\}")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``text`` with each ``${NAME}`` replaced and ``$$`` a dollar. Raises BadInput for a name that is not given."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return "$" if name is None else str(_value(text, name, variables))

    return _VARIABLE.sub(value, text)


def expand_all(template: Any, variables: Mapping[str, Any]) -> Any:
    """A structure of mappings, lists and texts, expanded. A text that is one variable becomes its value, type and all.

    Raises BadInput for a name that is not given.
    """
    if isinstance(template, Mapping):
        return {expand(str(name), variables): expand_all(value, variables) for name, value in template.items()}
    if isinstance(template, list | tuple):
        return [expand_all(value, variables) for value in template]
    if not isinstance(template, str):
        return template
    match = _VARIABLE.fullmatch(template)
    if match is not None and match.group(1) is not None:
        return _value(template, match.group(1), variables)
    return expand(template, variables)


def _value(text: str, name: str, variables: Mapping[str, Any]) -> Any:
    if name not in variables:
        raise BadInput(
            f"{text!r} names the variable {name}, which has no value; known are {', '.join(sorted(variables))}"
        )
    return variables[name]
