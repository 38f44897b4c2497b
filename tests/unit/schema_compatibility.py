"""Compares two versions of a CRD: what was valid stays valid and means the same. Run as a program, renews the baseline.

    .venv/bin/python tests/unit/schema_compatibility.py

takes the schemas of now as the baseline that later ones are held to. It refuses where that would break somebody's
objects, and names each break. Where breaking them is what is wanted (before v1beta1, with a word in docs/decisions
and a way to move the objects), ``--break`` does it all the same.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rm_api.crd import KindInfo
from rm_api.crdgen import custom_resource_definition
from rm_api.kinds import KINDS
from rm_api.names import VERSION

Schema = dict[str, Any]
BASELINE = Path(__file__).parent / "schema" / VERSION

# Keywords that say nothing about which objects are valid, or what they mean.
_WORDS = frozenset({"description", "title", "example", "externalDocs"})
_LOWER = ("minimum", "minLength", "minItems", "minProperties")
_UPPER = ("maximum", "maxLength", "maxItems", "maxProperties")
# Any change of these changes which objects are valid, what they mean, or how writers share them.
_FIXED = (
    "type", "default", "nullable", "multipleOf", "uniqueItems", "exclusiveMinimum", "exclusiveMaximum",
    "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource",
)  # fmt: skip
# To take these away admits more; to add or change one may refuse what was valid.
_RESTRICTING = ("pattern", "format")
_QUOTED = re.compile(r"'[^']*'")
_CHILDREN = ("properties", "items", "additionalProperties")
_KNOWN = _WORDS | {*_LOWER, *_UPPER, *_FIXED, *_RESTRICTING, *_CHILDREN} | {
    "enum", "required", "x-kubernetes-validations",
}  # fmt: skip


def breaks(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What of ``new`` breaks users of ``old``, both of them CustomResourceDefinitions; empty where nothing does.

    Raises ValueError for a keyword that it was not taught: it cannot tell then.
    """
    return list(_crd(old["spec"], new["spec"]))


def _crd(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for member in ("group", "scope"):
        if old[member] != new[member]:
            yield f"{member} was {old[member]}, and is {new[member]}"
    for member in ("kind", "plural", "singular", "listKind"):
        if old["names"].get(member) != new["names"].get(member):
            yield f"names.{member} was {old['names'].get(member)}, and is {new['names'].get(member)}"
    for member in ("shortNames", "categories"):
        for gone in sorted(set(old["names"].get(member, ())) - set(new["names"].get(member, ()))):
            yield f"names.{member} has lost {gone}"
    versions = {version["name"]: version for version in new["versions"]}
    for version in old["versions"]:
        name = version["name"]
        if name not in versions or (version["served"] and not versions[name]["served"]):
            yield f"{name} is not served any more"
        else:
            yield from _version(version, versions[name])


def _version(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name, subresource in old.get("subresources", {}).items():
        if new.get("subresources", {}).get(name) != subresource:
            yield f"subresource {name} was {subresource}, and is {new.get('subresources', {}).get(name)}"
    still = [field["jsonPath"] for field in new.get("selectableFields", ())]
    for field in old.get("selectableFields", ()):
        if field["jsonPath"] not in still:
            yield f"{field['jsonPath']} cannot be selected by any more"
    yield from _node(old["schema"]["openAPIV3Schema"], new["schema"]["openAPIV3Schema"], "")


def _node(old: Schema, new: Schema, path: str) -> Iterator[str]:
    place = path or "the object"
    for schema in (old, new):
        if unknown := schema.keys() - _KNOWN:
            raise ValueError(f"{place}: what {', '.join(sorted(unknown))} does to compatibility is not known here")
    for keyword in _FIXED:
        if old.get(keyword) != new.get(keyword):
            yield f"{place}: {keyword} was {old.get(keyword)}, and is {new.get(keyword)}"
    for keyword in _RESTRICTING:
        if keyword in new and old.get(keyword) != new[keyword]:
            yield f"{place}: {keyword} was {old.get(keyword)}, and is {new[keyword]}"
    for keyword in _LOWER:
        if keyword in new and (keyword not in old or new[keyword] > old[keyword]) and new[keyword] > _least(keyword):
            yield f"{place}: {keyword} was {old.get(keyword)}, and is {new[keyword]}"
    for keyword in _UPPER:
        if keyword in new and (keyword not in old or new[keyword] < old[keyword]):
            yield f"{place}: {keyword} was {old.get(keyword)}, and is {new[keyword]}"
    if "enum" in new:
        if "enum" not in old:
            yield f"{place}: only {new['enum']} are left of all values"
        for value in old.get("enum", ()):
            if value not in new["enum"]:
                yield f"{place}: {value} is not admitted any more"
    yield from _required(old, new, place)
    yield from _rules(old, new, place)
    for keyword in ("items", "additionalProperties"):
        if keyword in old:
            if keyword in new:
                yield from _node(old[keyword], new[keyword], f"{path}[]")
            else:
                yield f"{place}: {keyword} is gone"
    properties = new.get("properties", {})
    for name, child in old.get("properties", {}).items():
        if name in properties:
            yield from _node(child, properties[name], f"{path}.{name}")
        else:
            yield f"{path}.{name} is gone"


def _least(keyword: str) -> float:
    # A length of zero is no bound; a number has none by itself.
    return float("-inf") if keyword == "minimum" else 0


def _required(old: Schema, new: Schema, place: str) -> Iterator[str]:
    for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        if "default" not in new.get("properties", {}).get(name, {}):
            yield f"{place}: {name} is required now"


def _rules(old: Schema, new: Schema, place: str) -> Iterator[str]:
    before = {_text(rule) for rule in old.get("x-kubernetes-validations", ())}
    for rule in new.get("x-kubernetes-validations", ()):
        # A rule that compares with what was there lets it stay as it is.
        if _text(rule) in before or rule.get("optionalOldSelf") or "oldSelf" in rule["rule"]:
            continue
        if _is_about_a_new_value(_text(rule), old, before):
            continue
        kept = _is_about_what_is_new(rule["rule"], old) or _asks_for_what_was_required(rule["rule"], old)
        if not kept and not _admits_more(_text(rule), before):
            yield f"{place}: the rule {_text(rule)!r} is new, and may refuse what was valid"


def _admits_more(rule: str, before: set[str]) -> bool:
    """True for ``OLD || …``, where OLD was a rule. A ternary binds less than that."""
    return "?" not in _QUOTED.sub("", rule) and any(rule.startswith(f"{old} || ") for old in before)


def _text(rule: Mapping[str, Any]) -> str:
    return " ".join(str(rule["rule"]).split())


def _is_about_what_is_new(rule: str, old: Schema) -> bool:
    """True for ``!has(self.name) || …``, where there was no such name."""
    head, has, _ = rule.partition(") || ")
    name = head.removeprefix("!has(self.")
    return bool(has) and name != head and name.isidentifier() and name not in old.get("properties", {})


def _is_about_a_new_value(rule: str, old: Schema, before: set[str]) -> bool:
    """True for ``self.name == 'VALUE' ? (…) : (OLD)``, where there was no such value, and OLD was a rule."""
    head, _, tail = rule.partition(" ? (")
    found = re.fullmatch(r"self\.(\w+) == '(\w+)'", head)
    values = old.get("properties", {}).get(found[1], {}).get("enum", ()) if found else ()
    if found is None or not values or found[2] in values:
        return False
    asked = next((tail.removesuffix(f") : ({each})") for each in before if tail.endswith(f") : ({each})")), None)
    return asked is not None and "?" not in _QUOTED.sub("", asked)


def _asks_for_what_was_required(rule: str, old: Schema) -> bool:
    """True for ``has(self.name) || …``, where every object had to have the name."""
    head, has, _ = rule.partition(") || ")
    name = head.removeprefix("has(self.")
    return bool(has) and "?" not in _QUOTED.sub("", rule) and name != head and name in old.get("required", ())


def _without_words(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_words(member) for member in value]
    if not isinstance(value, dict):
        return value
    # A property may have the name of a keyword.
    return {
        key: {name: _without_words(child) for name, child in member.items()}
        if key == "properties"
        else _without_words(member)
        for key, member in value.items()
        if key not in _WORDS or not isinstance(member, str)
    }


def contract(info: KindInfo) -> dict[str, Any]:
    """The CRD of a kind as of now, without what may change freely: descriptions, printer columns, messages."""
    crd: dict[str, Any] = _without_words(custom_resource_definition(info))
    for version in crd["spec"]["versions"]:
        version.pop("additionalPrinterColumns", None)
    return _without_messages(crd)


def _without_messages(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_messages(member) for member in value]
    if not isinstance(value, dict):
        return value
    return {
        key: [{name: part for name, part in rule.items() if name != "message"} for rule in member]
        if key == "x-kubernetes-validations"
        else _without_messages(member)
        for key, member in value.items()
    }


def baseline() -> dict[str, dict[str, Any]]:
    """CRDs that users were given, by their names."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted(BASELINE.glob("*.yaml"))}


def all_breaks() -> list[str]:
    """What the models of now break of the baseline."""
    now = {info.crd_name: contract(info) for info in KINDS}
    found = []
    for name, old in baseline().items():
        found += [f"{name}: {each}" for each in breaks(old, now[name])] if name in now else [f"{name} is gone"]
    return found


def main(arguments: list[str]) -> int:
    """Renews the baseline; 1 where that breaks something and ``--break`` is not given."""
    if arguments not in ([], ["--break"]):
        sys.stderr.write(f"{__doc__}\n")
        return 64
    found = all_breaks()
    sys.stderr.writelines(f"{each}\n" for each in found)
    if found and not arguments:
        return 1
    BASELINE.mkdir(parents=True, exist_ok=True)
    for path in BASELINE.glob("*.yaml"):
        path.unlink()
    for info in KINDS:
        text = yaml.safe_dump(contract(info), sort_keys=False, width=120)
        (BASELINE / f"{info.crd_name}.yaml").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
