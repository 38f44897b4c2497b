"""A structural schema of a CRD, read independently of the API server: what it refuses, and examples of what it admits.

CEL rules are not part of it: who generates specs has to respect them.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from hypothesis import strategies as st

Schema = Mapping[str, Any]

INT64 = 2**63
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}


def violations(schema: Schema, value: Any, place: str = "") -> Iterator[str]:
    """What the schema has against ``value``, each with its place."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{place}: {value!r} is neither an integer nor a string"
            return
        kind = "integer" if isinstance(value, int) else "string"
    else:
        kind = schema["type"]
        expected = _TYPES[kind]
        if not isinstance(value, expected) or (isinstance(value, bool) and kind != "boolean"):
            yield f"{place}: {value!r} is no {kind}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is not one of {schema['enum']}"
    yield from _CHECKS[kind](schema, value, place)


def _object(schema: Schema, value: Mapping[str, Any], place: str) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{place}.{name}: required"
    if "additionalProperties" in schema:
        yield from _bounds(schema, len(value), "Properties", place)
    for name, member in value.items():
        child = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
        if child is None:
            yield f"{place}.{name}: unknown"
        else:
            yield from violations(child, member, f"{place}.{name}")


def _array(schema: Schema, value: list[Any], place: str) -> Iterator[str]:
    yield from _bounds(schema, len(value), "Items", place)
    for index, item in enumerate(value):
        yield from violations(schema["items"], item, f"{place}[{index}]")
    keys = schema.get("x-kubernetes-list-map-keys")
    if schema.get("x-kubernetes-list-type") == "set":
        identities = [repr(item) for item in value]
    elif keys:
        identities = [repr([item.get(key) for key in keys]) for item in value if isinstance(item, dict)]
    else:
        return
    if len(set(identities)) < len(identities):
        yield f"{place}: twice the same in {identities}"


def _string(schema: Schema, value: str, place: str) -> Iterator[str]:
    yield from _bounds(schema, len(value), "Length", place)
    if "pattern" in schema and not re.search(re.sub(r"\$$", r"\\Z", schema["pattern"]), value):
        yield f"{place}: {value!r} does not match {schema['pattern']}"
    if schema.get("format") == "date-time":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            yield f"{place}: {value!r} is no moment"


def _integer(schema: Schema, value: int, place: str) -> Iterator[str]:
    if not -INT64 <= value < INT64:
        yield f"{place}: {value} has more than 64 bits"
    if value < schema.get("minimum", value) or value > schema.get("maximum", value):
        yield f"{place}: {value} is outside of {schema.get('minimum')}..{schema.get('maximum')}"


def _bounds(schema: Schema, size: int, what: str, place: str) -> Iterator[str]:
    if size < schema.get(f"min{what}", 0) or size > schema.get(f"max{what}", size):
        yield f"{place}: {size} are not {schema.get(f'min{what}', 0)}..{schema.get(f'max{what}')}"


_CHECKS: Mapping[str, Any] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "boolean": lambda *_: iter(()),
}

_SIGNS = "abzAZ019 -_./:${}\"'\\%äß漢😀"


def values(schema: Schema, overrides: Mapping[str, st.SearchStrategy[Any]], place: str = "") -> st.SearchStrategy[Any]:
    """Values that the schema admits. ``overrides`` gives the strategy for a place (``.model.source``, ``.steps[]``)."""
    if place in overrides:
        return overrides[place]
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return st.one_of(_integers(schema), _strings(schema))
    kind = schema["type"]
    if kind == "object":
        return _objects(schema, overrides, place)
    if kind == "array":
        return _arrays(schema, overrides, place)
    return {"string": _strings, "integer": _integers, "boolean": lambda _: st.booleans()}[kind](schema)


def _objects(schema: Schema, overrides: Mapping[str, Any], place: str) -> st.SearchStrategy[Any]:
    if "additionalProperties" in schema:
        member = values(schema["additionalProperties"], overrides, f"{place}.*")
        names = overrides.get(f"{place}.key", st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True))
        return st.dictionaries(names, member, max_size=min(3, schema.get("maxProperties", 3)))
    members = {
        name: values(child, overrides, f"{place}.{name}")
        for name, child in schema.get("properties", {}).items()
        if overrides.get(f"{place}.{name}", True) is not None
    }
    required = {name: members[name] for name in schema.get("required", ())}
    optional = {name: strategy for name, strategy in members.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional)


def _arrays(schema: Schema, overrides: Mapping[str, Any], place: str) -> st.SearchStrategy[Any]:
    least = schema.get("minItems", 0)
    most = min(max(3, least), schema.get("maxItems", 3))
    keys = schema.get("x-kubernetes-list-map-keys")
    unique: Any = None
    if keys:
        unique = lambda item: tuple(item.get(key) for key in keys)  # noqa: E731
    elif schema.get("x-kubernetes-list-type") == "set":
        unique = repr
    items = values(schema["items"], overrides, f"{place}[]")
    return st.lists(items, min_size=least, max_size=most, unique_by=unique)


def _strings(schema: Schema) -> st.SearchStrategy[str]:
    least, most = schema.get("minLength", 0), schema.get("maxLength", 64)
    if schema.get("format") == "date-time":
        return st.just("2026-01-01T00:00:00Z")
    if "pattern" in schema:
        pattern = re.compile(re.sub(r"\$$", r"\\Z", schema["pattern"]))
        found = st.from_regex(pattern, alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]))
        return found.filter(lambda text: least <= len(text) <= most)
    usual = st.text(_SIGNS, min_size=least, max_size=min(most, max(least, 12)))
    return st.one_of(usual, usual, usual, st.just("x" * most) if most <= 4096 else usual)


def _integers(schema: Schema) -> st.SearchStrategy[int]:
    least, most = schema.get("minimum", 0), schema.get("maximum", 2**31)
    return st.one_of(st.integers(least, most), st.integers(least, min(most, least + 9)), st.sampled_from([least, most]))
