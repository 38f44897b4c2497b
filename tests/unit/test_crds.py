"""The CRDs: what is committed is what the models say, and what the API server needs of a schema holds."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field
from rm_api import crdgen
from rm_api.base import ApiModel
from rm_api.crd import KindInfo
from rm_api.dtypes import DType
from rm_api.kinds import KINDS
from rm_api.remote import RemoteProtocol

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("directory", ["crds", "charts/rm-abstract/files/crds"])
@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_committed_crd_is_what_the_models_say(info: KindInfo, directory: str) -> None:
    committed = (ROOT / directory / f"{info.crd_name}.yaml").read_text()
    assert committed == crdgen.render(info), "run `make crds`"


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in (schema.get("properties") or {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield from _nodes(schema[keyword], f"{path}[]")


def _schemas(info: KindInfo) -> list[tuple[str, dict[str, Any]]]:
    schema = crdgen.custom_resource_definition(info)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return list(_nodes(schema))


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_every_field_is_described_and_bounded(info: KindInfo) -> None:
    for path, node in _schemas(info):
        if path and not path.endswith("[]") and path != ".metadata":
            assert node.get("description"), f"{path} has no description"
        assert node.get("type") != "number", f"{path} is a float"
        if node.get("type") == "array":
            assert "maxItems" in node, f"{path} is not bounded"
            assert "x-kubernetes-list-type" in node, f"{path} does not say how it merges"
        if isinstance(node.get("additionalProperties"), dict):
            assert "maxProperties" in node, f"{path} is not bounded"
        if node.get("type") == "string" and path.startswith(".spec"):
            assert "maxLength" in node or "enum" in node, f"{path} is not bounded"
        if (node.get("type") == "integer" or node.get("x-kubernetes-int-or-string")) and path.startswith(".spec"):
            assert {"minimum", "maximum"} <= node.keys(), f"{path} is not bounded"


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_choices_are_in_pascal_case(info: KindInfo) -> None:
    # Number formats and protocols have the names that everybody knows them by.
    for path, node in _schemas(info):
        for choice in set(node.get("enum", ())) - set(DType) - set(RemoteProtocol):
            assert re.fullmatch(r"([A-Z][a-z]+)+|[A-Z]+", choice), f"{path}: {choice}"


# Number formats are called the same everywhere.
_SAY_THEMSELVES = (".dtype", ".dtypes")


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_descriptions_are_documentation(info: KindInfo) -> None:
    # `kubectl explain` is the reference: a description says more than the field's name, and each choice by its name.
    nodes = dict(_schemas(info))
    for path, node in nodes.items():
        if not path or path.endswith("[]") or path in (".metadata", ".kind"):
            continue
        description = node["description"]
        name = path.rpartition(".")[2]
        said = {word.lower().rstrip("s") for word in re.findall(r"[A-Za-z]+", description)} - {"the", "of", "a", "it"}
        own = {word.lower().rstrip("s") for word in re.findall(r"[A-Z]?[a-z]+", name)}
        assert len(said - own) >= 2, f"{path} says no more than its name: {description}"
        assert description[0].isupper(), f"{path}: {description}"
        assert description.endswith("."), f"{path}: {description}"
        for choice in [*node.get("enum", ()), *node.get("items", {}).get("enum", ())]:
            if path.startswith(".spec") and not path.endswith(_SAY_THEMSELVES):
                assert choice in description, f"{path} does not say what {choice} is: {description}"


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_a_status_says_that_nobody_looked_yet_and_has_no_other_default(info: KindInfo) -> None:
    defaults = {path: node["default"] for path, node in _schemas(info) if "default" in node}
    assert {path: value for path, value in defaults.items() if path.startswith(".status")} == {
        ".status": {"observedGeneration": -1}
    }


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_list_map_keys_are_required_or_defaulted(info: KindInfo) -> None:
    for path, node in _schemas(info):
        for key in node.get("x-kubernetes-list-map-keys", []):
            items = node["items"]
            assert key in items.get("required", []) or "default" in items["properties"][key], path


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_printer_columns_name_fields_that_exist(info: KindInfo) -> None:
    paths = {path for path, _ in _schemas(info)}
    for column in info.columns:
        if column.json_path.startswith(".metadata") or "conditions[?" in column.json_path:
            continue
        assert column.json_path.replace("[0]", "[]") in paths, f"{column.name} reads {column.json_path}"


@pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
def test_fields_to_select_by_are_single_values_that_exist(info: KindInfo) -> None:
    nodes = dict(_schemas(info))
    assert 1 <= len(info.selectable) <= 8
    for path in info.selectable:
        assert nodes[path]["type"] in ("string", "integer", "boolean"), path


def test_what_nothing_serves_is_in_the_models_and_not_admitted() -> None:
    # Serving one of them takes a line from here and a marker from the models: then it is admitted.
    left_out: dict[str, list[str]] = defaultdict(list)
    for info in KINDS:
        served = dict(_schemas(info))
        for part, model in ((".spec", info.spec), (".status", info.status)):
            document = model.model_json_schema(by_alias=True)
            for path, node in _nodes(_inlined(document, document["$defs"]), part):
                if path not in served:
                    left_out[info.kind].append(path)
                elif missing := set(node.get("enum", ())) - set(served[path].get("enum", ())):
                    assert missing <= {"REMOTE", "Measured"}, path
                    left_out[info.kind] += [f"{path}={value}" for value in missing]
    assert left_out == {
        "ModelDeployment": [".status.placement.candidates[].provenance=Measured"],
        "BuildProfile": [
            ".spec.target.type=REMOTE", ".spec.shapes.lora", ".spec.shapes.lora[]", ".spec.shapes.lora[].maxRank",
            ".spec.shapes.lora[].maxAdapters",
        ],
        "BuildArtifact": [
            ".spec.target.type=REMOTE", ".spec.shape.lora", ".spec.shape.lora.maxRank", ".spec.shape.lora.maxAdapters",
        ],
    }  # fmt: skip


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema with references and optional members written out, so that its paths are those of a CRD."""
    if isinstance(node, list):
        return [_inlined(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    merged = {key: value for key, value in node.items() if key not in ("$defs", "$ref", "anyOf")}
    if "$ref" in node:
        return _inlined({**definitions[node["$ref"].rpartition("/")[2]], **merged}, definitions)
    if "anyOf" in node:
        return _inlined({**node["anyOf"][0], **merged}, definitions)
    return {key: _inlined(value, definitions) for key, value in merged.items()}


class _Recursive(ApiModel):
    """Refers to itself."""

    child: "list[_Recursive]" = Field(default=[], max_length=1)
    """Itself."""


class _Union(ApiModel):
    """A union."""

    value: int | str
    """Either."""


class _Float(ApiModel):
    """A dictionary with a pattern for its keys has no equivalent, a oneOf neither."""

    value: int = Field(default=1, json_schema_extra={"oneOf": [{"minimum": 1}]})
    """A number."""


@pytest.mark.parametrize(
    ("model", "message"),
    [(_Recursive, "refers to itself"), (_Union, "union"), (_Float, "oneOf has no equivalent")],
)
def test_what_a_crd_cannot_say_fails_and_names_the_place(model: type[ApiModel], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crdgen.openapi_schema(model)


def test_chart_and_repository_hold_the_same_crds() -> None:
    directories = [ROOT / "crds", ROOT / "charts/rm-abstract/files/crds"]
    found = [{path.name: yaml.safe_load(path.read_text()) for path in each.glob("*.yaml")} for each in directories]
    assert found[0] == found[1]
    assert len(found[0]) == len(KINDS)
