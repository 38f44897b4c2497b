"""The API keeps its word: objects that were valid stay valid and mean the same.

``tests/unit/schema/v1alpha1`` has the schemas that users were given. After a change that breaks nobody, such as a new
optional field or a wider bound, renew them: ``.venv/bin/python tests/unit/schema_compatibility.py``. It refuses what
breaks somebody, unless it is told ``--break``: then the same commit says in docs/decisions why, and how objects of the
earlier schema are moved.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import schema_compatibility
from rm_api.crd import KindInfo
from rm_api.kinds import KINDS
from schema_compatibility import baseline, breaks, contract

Schema = dict[str, Any]
Change = Callable[[Schema], Any]


def test_nobody_is_broken() -> None:
    assert schema_compatibility.all_breaks() == [], "see the top of this file"


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_the_baseline_knows_all_that_users_were_given(info: KindInfo) -> None:
    # What is added today is relied upon tomorrow.
    assert baseline().get(info.crd_name) == contract(info), "renew the baseline: see the top of this file"


def _crd() -> Schema:
    """A CRD with everything that the comparison looks at."""
    spec: Schema = {
        "type": "object",
        "required": ["name"],
        "x-kubernetes-validations": [{"rule": "self.low <= self.high"}],
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 63, "pattern": "^[a-z]+$"},
            "mode": {"type": "string", "enum": ["A", "B"], "default": "A"},
            "free": {"type": "string"},
            "low": {"type": "integer", "minimum": 1, "maximum": 10},
            "high": {"type": "integer"},
            "amount": {"x-kubernetes-int-or-string": True, "minimum": 0},
            "when": {"type": "string", "format": "date-time", "nullable": True},
            "tags": {"type": "array", "maxItems": 8, "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "env": {
                "type": "array",
                "minItems": 1,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "value": {"type": "string", "maxLength": 9}},
                },
            },
            "labels": {
                "type": "object",
                "maxProperties": 4,
                "additionalProperties": {"type": "string", "maxLength": 63},
            },
        },
    }
    version = {
        "name": "v1", "served": True, "storage": True,
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.low"}},
        "selectableFields": [{"jsonPath": ".spec.mode"}],
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
    }  # fmt: skip
    return {
        "spec": {
            "group": "g", "scope": "Cluster",
            "names": {"kind": "K", "plural": "ks", "shortNames": ["k"], "categories": ["all"]},
            "versions": [version],
        }
    }  # fmt: skip


def _spec(crd: Schema) -> Schema:
    spec: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def _at(crd: Schema, path: str) -> Schema:
    place = _spec(crd)
    for name in path.split("."):
        place = place[name] if name in ("items", "additionalProperties") else place["properties"][name]
    return place


def sets(path: str, **keywords: Any) -> Change:
    """Sets keywords of the field at ``path``; a None takes one away. Dashes are written as underscores."""

    def change(crd: Schema) -> None:
        node = _at(crd, path) if path else _spec(crd)
        for keyword, value in keywords.items():
            name = keyword.replace("_", "-") if keyword.startswith("x_") else keyword
            if value is None:
                node.pop(name)
            else:
                node[name] = value

    return change


def adds(name: str, schema: Schema, *, required: bool = False) -> Change:
    def change(crd: Schema) -> None:
        _spec(crd)["properties"][name] = schema
        if required:
            _spec(crd)["required"].append(name)

    return change


def drops(name: str, path: str = "") -> Change:
    return lambda crd: (_at(crd, path) if path else _spec(crd))["properties"].pop(name)


def rules(*added: Schema, path: str = "") -> Change:
    return lambda crd: (_at(crd, path) if path else _spec(crd)).setdefault("x-kubernetes-validations", []).extend(added)


def version(**members: Any) -> Change:
    return lambda crd: crd["spec"]["versions"][0].update(members)


def names(**members: Any) -> Change:
    return lambda crd: crd["spec"]["names"].update(members)


def another_version(crd: Schema) -> None:
    crd["spec"]["versions"].append({**deepcopy(crd["spec"]["versions"][0]), "name": "v2", "storage": False})


BREAKING: dict[str, tuple[Change, str]] = {
    "a field is gone": (drops("free"), ".spec.free is gone"),
    "a field of a list's members is gone": (drops("value", "env.items"), ".spec.env[].value is gone"),
    "a type": (sets("high", type="string"), ".spec.high: type was integer"),
    "a number that may be a text no more": (sets("amount", x_kubernetes_int_or_string=None), "int-or-string was True"),
    "a list of something else": (sets("tags.items", type="integer"), ".spec.tags[]: type was string"),
    "values of something else": (sets("labels.additionalProperties", type="integer"), ".spec.labels[]: type"),
    "a map of anything": (sets("labels", additionalProperties=None), ".spec.labels: additionalProperties is gone"),
    "a list of nothing": (sets("tags", items=None), ".spec.tags: items is gone"),
    "null": (sets("when", nullable=None), ".spec.when: nullable was True"),
    "a value less": (sets("mode", enum=["A"]), ".spec.mode: B is not admitted any more"),
    "a value's case": (sets("mode", enum=["A", "b"]), ".spec.mode: B is not admitted any more"),
    "values where all were": (sets("free", enum=["A"]), ".spec.free: only ['A'] are left"),
    "required": (sets("", required=["name", "free"]), ".spec: free is required now"),
    "required in members": (sets("env.items", required=["name", "value"]), ".spec.env[]: value is required now"),
    "new and required": (adds("new", {"type": "string"}, required=True), ".spec: new is required now"),
    "minimum": (sets("low", minimum=2), ".spec.low: minimum was 1, and is 2"),
    "a first minimum": (sets("high", minimum=0), ".spec.high: minimum was None, and is 0"),
    "exclusive": (sets("low", exclusiveMinimum=True), ".spec.low: exclusiveMinimum was None"),
    "multiples": (sets("low", multipleOf=2), ".spec.low: multipleOf was None"),
    "maximum": (sets("low", maximum=9), ".spec.low: maximum was 10, and is 9"),
    "a first maximum": (sets("high", maximum=10**9), ".spec.high: maximum was None"),
    "shorter": (sets("name", maxLength=62), ".spec.name: maxLength was 63"),
    "longer": (sets("name", minLength=3), ".spec.name: minLength was 2"),
    "a first length": (sets("free", minLength=1), ".spec.free: minLength was None"),
    "shorter values": (sets("labels.additionalProperties", maxLength=62), ".spec.labels[]: maxLength was 63"),
    "fewer": (sets("tags", maxItems=7), ".spec.tags: maxItems was 8"),
    "a first number of members": (sets("tags", minItems=1), ".spec.tags: minItems was None"),
    "more": (sets("env", minItems=2), ".spec.env: minItems was 1"),
    "fewer members": (sets("labels", maxProperties=3), ".spec.labels: maxProperties was 4"),
    "another pattern": (sets("name", pattern="^[a-y]+$"), ".spec.name: pattern was ^[a-z]+$"),
    "a first pattern": (sets("free", pattern="^a"), ".spec.free: pattern was None"),
    "another format": (sets("when", format="date"), ".spec.when: format was date-time"),
    "another default": (sets("mode", default="B"), ".spec.mode: default was A, and is B"),
    "no default": (sets("mode", default=None), ".spec.mode: default was A"),
    "a first default": (sets("free", default="x"), ".spec.free: default was None"),
    "an atomic list": (sets("tags", x_kubernetes_list_type="atomic"), "list-type was set"),
    "another key": (sets("env", x_kubernetes_list_map_keys=["name", "value"]), "list-map-keys was ['name']"),
    "an atomic map": (sets("labels", x_kubernetes_map_type="atomic"), "map-type was None"),
    "a stricter rule": (sets("", x_kubernetes_validations=[{"rule": "self.low < self.high"}]), "self.low < self.high"),
    "a rule that admits more of this and less of that": (
        sets("", x_kubernetes_validations=[{"rule": "self.low <= self.high || true ? self.low < 9 : true"}]),
        "is new, and may refuse",
    ),
    "another rule": (rules({"rule": "self.high < 9"}), ".spec: the rule 'self.high < 9' is new"),
    "a first rule": (rules({"rule": "self > 1"}, path="high"), ".spec.high: the rule 'self > 1' is new"),
    "a rule that asks for an old field": (rules({"rule": "has(self.free) || has(self.low)"}), "is new, and may refuse"),
    "a rule that asks for a required field, or not": (
        rules({"rule": "has(self.name) || true ? self.low < 9 : true"}),
        "is new, and may refuse",
    ),
    "a rule about an old field": (rules({"rule": "!has(self.free) || false"}), "is new, and may refuse"),
    "not served": (version(served=False), "v1 is not served any more"),
    "another version": (version(name="v2"), "v1 is not served any more"),
    "no status": (version(subresources={"scale": {"specReplicasPath": ".spec.low"}}), "subresource status was {}"),
    "scale": (version(subresources={"status": {}, "scale": {"specReplicasPath": ".spec.high"}}), "subresource scale"),
    "not selectable": (version(selectableFields=[]), ".spec.mode cannot be selected by any more"),
    "a short name": (names(shortNames=["kk"]), "names.shortNames has lost k"),
    "a category": (names(categories=[]), "names.categories has lost all"),
    "a plural": (names(plural="kays"), "names.plural was ks"),
    "a kind": (names(kind="L"), "names.kind was K"),
    "a scope": (lambda crd: crd["spec"].update(scope="Namespaced"), "scope was Cluster"),
    "a group": (lambda crd: crd["spec"].update(group="h"), "group was g"),
}
HARMLESS: dict[str, Change] = {
    "nothing": lambda crd: None,
    "a new field": adds("new", {"type": "string", "maxLength": 1, "x-kubernetes-validations": [{"rule": "false"}]}),
    "a new field with a default": adds("new", {"type": "string", "default": "x"}, required=True),
    "a new value": sets("mode", enum=["A", "B", "C"]),
    "any value": sets("mode", enum=None),
    "optional": sets("", required=[]),
    "wider numbers": sets("low", minimum=0, maximum=11),
    "no bounds": sets("low", minimum=None, maximum=None),
    "longer texts": sets("name", minLength=1, maxLength=64),
    "more members": sets("tags", maxItems=9),
    "a length of nothing": sets("free", minLength=0),
    "no pattern": sets("name", pattern=None),
    "no format": sets("when", format=None),
    "no rule": sets("", x_kubernetes_validations=None),
    "a rule that asks for what was required": rules({"rule": "has(self.name) || has(self.other)"}),
    "a rule's message": sets("", x_kubernetes_validations=[{"rule": " self.low\n<= self.high ", "message": "m"}]),
    "a rule that compares": rules({"rule": "self.high >= oldSelf.high"}),
    "a rule with an optional past": rules({"rule": "self.high < 9", "optionalOldSelf": True}),
    "a rule that admits more": sets(
        "", x_kubernetes_validations=[{"rule": "self.low <= self.high || self.low == 9 || 'a?' == 'b'"}]
    ),
    "a rule about a new field": rules({"rule": "!has(self.new) || self.new > 1"}),
    "words": sets("free", description="other words"),
    "another selectable field": version(selectableFields=[{"jsonPath": ".spec.mode"}, {"jsonPath": ".spec.free"}]),
    "another short name": names(shortNames=["k", "kk"]),
    "a version beside": another_version,
    "columns": version(additionalPrinterColumns=[{"name": "A", "type": "string", "jsonPath": ".spec.free"}]),
}


def _changed(change: Change) -> Schema:
    crd = _crd()
    change(crd)
    return crd


@pytest.mark.parametrize(("change", "said"), BREAKING.values(), ids=BREAKING)
def test_what_breaks_somebody_is_found_and_nothing_else_is_said(change: Change, said: str) -> None:
    (found,) = breaks(_crd(), _changed(change))
    assert said in found


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_breaks_nobody_is_let_through(change: Change) -> None:
    assert breaks(_crd(), _changed(change)) == []


def test_a_keyword_that_is_not_known_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match=r"\.spec\.free: what not does to compatibility"):
        breaks(_crd(), _changed(sets("free", **{"not": {"type": "integer"}})))


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_every_field_of_the_baseline_is_guarded(info: KindInfo) -> None:
    """Taking away any one field of the real schemas is found."""
    old = baseline()[info.crd_name]

    def fields(schema: Schema, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        found = []
        for name, child in schema.get("properties", {}).items():
            found += [(*path, "properties", name), *fields(child, (*path, "properties", name))]
        for keyword in ("items", "additionalProperties"):
            if keyword in schema:
                found += fields(schema[keyword], (*path, keyword))
        return found

    all_fields = fields(old["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    assert len(all_fields) > 30
    for field in all_fields:
        new = deepcopy(old)
        place = new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for name in field[:-1]:
            place = place[name]
        del place[field[-1]]
        assert any(each.endswith(f".{field[-1]} is gone") for each in breaks(old, new)), field


def test_renewing_refuses_to_break_unless_it_is_told_to(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(schema_compatibility, "BASELINE", tmp_path / "v1")
    assert schema_compatibility.main([]) == 0
    assert baseline() == {info.crd_name: contract(info) for info in KINDS}
    path = tmp_path / "v1/modeldeployments.rm-abstract.io.yaml"
    path.write_text(path.read_text().replace("maximum: 10000", "maximum: 20000"))
    before = path.read_text()
    assert schema_compatibility.main([]) == 1
    assert ".spec.replicas: maximum was 20000, and is 10000" in capsys.readouterr().err
    assert path.read_text() == before
    assert schema_compatibility.main(["--break"]) == 0
    assert schema_compatibility.all_breaks() == []
    assert schema_compatibility.main(["--force"]) == 64
