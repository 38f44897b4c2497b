"""Generates ``crds/*.yaml`` from the pydantic models: ``python -m rm_api.crdgen DIRECTORY...``.

A CRD's schema is structural: no references, a type at every node, keywords of JSON Schema that the API server
does not know are an error, so the transformation below fails on anything it has not been taught.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rm_api.base import UNSERVED, ApiModel, cel, unserved_values, validations
from rm_api.crd import SERVICE_NAME, KindInfo
from rm_api.kinds import KINDS
from rm_api.names import CATEGORY, GROUP, VERSION

Schema = dict[str, Any]

# Keywords that mean the same in a structural schema; everything beginning with x-kubernetes- passes too.
_KEPT = frozenset(
    {
        "type", "format", "pattern", "minimum", "maximum", "minLength", "maxLength",
        "minItems", "maxItems", "minProperties", "maxProperties", "description",
    }
)  # fmt: skip
_DROPPED = frozenset({"title", "$defs"})
_UNSERVED = next(iter(UNSERVED))
_UNSERVED_VALUES = next(iter(unserved_values()))


def openapi_schema(model: type[ApiModel]) -> Schema:
    """The structural schema of ``model``. Raises ValueError naming the place of anything that has no equivalent."""
    document = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(document, document.get("$defs", {}), model.__name__, ())


def _structural(node: Mapping[str, Any], definitions: Mapping[str, Any], place: str, seen: tuple[str, ...]) -> Schema:
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name in seen:
            raise ValueError(f"{place}: {name} refers to itself; a CRD cannot")
        merged = {**definitions[name], **{key: value for key, value in node.items() if key != "$ref"}}
        return _structural(merged, definitions, place, (*seen, name))
    if "anyOf" in node:
        # Optional members: absent is the only way to say "none", since the API server drops null.
        variants = [variant for variant in node["anyOf"] if variant.get("type") != "null"]
        if len(variants) != 1:
            raise ValueError(f"{place}: a union has no structural schema; use optional members and a CEL rule")
        rest = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        return _structural({**variants[0], **rest}, definitions, place, seen)

    schema: Schema = {}
    hidden = {name for name, child in node.get("properties", {}).items() if _UNSERVED in child}
    for keyword, value in node.items():
        if keyword in _KEPT or keyword.startswith("x-kubernetes-"):
            schema[keyword] = value
        elif keyword == "properties":
            schema["properties"] = {
                name: _structural(child, definitions, f"{place}.{name}", seen)
                for name, child in value.items()
                if name not in hidden
            }
        elif keyword == "items":
            schema["items"] = _structural(value, definitions, f"{place}[]", seen)
        elif keyword == "additionalProperties":
            if isinstance(value, Mapping):
                schema["additionalProperties"] = _structural(value, definitions, f"{place}.*", seen)
        elif keyword == "propertyNames":
            # A structural schema cannot say it; the values are bounded, and so is their number.
            continue
        elif keyword == "required":
            schema["required"] = sorted(set(value) - hidden)
        elif keyword == "enum":
            schema["enum"] = [each for each in value if each not in node.get(_UNSERVED_VALUES, [])]
        elif keyword == _UNSERVED_VALUES:
            continue
        elif keyword == "default":
            if (default := _without_empty(value)) not in (None, [], {}):
                schema["default"] = default
        elif keyword == "const":
            schema["enum"] = [value]
        elif keyword not in _DROPPED:
            raise ValueError(f"{place}: {keyword} has no equivalent in a structural schema")
    if "type" not in schema and not schema.get("x-kubernetes-int-or-string"):
        raise ValueError(f"{place}: no type")
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    return schema


def _without_defaults(schema: Schema) -> Schema:
    return {
        keyword: {name: _without_defaults(child) for name, child in value.items()}
        if keyword == "properties"
        else (_without_defaults(value) if keyword in ("items", "additionalProperties") else value)
        for keyword, value in schema.items()
        if keyword != "default"
    }


def _without_empty(value: Any) -> Any:
    # Defaults are for what decides something; an empty list or object says the same as an absent one.
    if isinstance(value, Mapping):
        cleaned = {key: _without_empty(member) for key, member in value.items()}
        return {key: member for key, member in cleaned.items() if member not in (None, [], {})}
    return value


def _name_rules(info: KindInfo) -> list[dict[str, Any]]:
    if info.name_pattern is None:
        return []
    letters = "the name may have lower-case letters, digits and hyphens only"
    if info.name_pattern == SERVICE_NAME:
        letters += ", and begins with a letter: a Service bears it"
    return [
        cel(
            f"self.metadata.name.size() <= {info.max_name}",
            f"the name may have {info.max_name} characters; names of children start with it",
        ),
        cel(f"self.metadata.name.matches('{info.name_pattern}')", letters),
    ]


def custom_resource_definition(info: KindInfo) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    spec = openapi_schema(info.spec)
    # The API server must not fill in a status: only what the operator wrote there is true. But for this: what waits for
    # objects takes one without conditions for done, unless its status says that it is about another generation.
    status = _without_defaults(openapi_schema(info.status)) | {"default": {"observedGeneration": -1}}
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {
                "name": column.name,
                "type": column.type,
                "jsonPath": column.json_path,
                **({"priority": column.priority} if column.priority else {}),
            }
            for column in info.columns
        ],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": spec["description"],
                "required": ["spec"],
                **validations(*_name_rules(info), *info.rules),
                "properties": {
                    "apiVersion": {
                        "type": "string",
                        "description": "Version of the API that this object is written in.",
                    },
                    "kind": {"type": "string", "description": f"{info.kind}."},
                    "metadata": {"type": "object"},
                    "spec": spec,
                    "status": status,
                },
            }
        },
    }
    if info.scale:
        version["subresources"]["scale"] = {
            "specReplicasPath": info.scale.spec_replicas,
            "statusReplicasPath": info.scale.status_replicas,
            "labelSelectorPath": info.scale.selector,
        }
    if info.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in info.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": info.crd_name},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if info.namespaced else "Cluster",
            "names": {
                "kind": info.kind,
                "listKind": f"{info.kind}List",
                "plural": info.plural,
                "singular": info.kind.lower(),
                "shortNames": list(info.short_names),
                "categories": [CATEGORY],
            },
            "versions": [version],
        },
    }


def render(info: KindInfo) -> str:
    """The CRD as YAML, with a note where it comes from."""
    body = yaml.safe_dump(custom_resource_definition(info), sort_keys=False, width=120, allow_unicode=True)
    return f"# Generated from crds/rm_api by `make crds`; do not edit.\n{body}"


def main(arguments: list[str]) -> int:
    """Writes one file per kind into each directory that is named."""
    if not arguments:
        sys.stderr.write("usage: python -m rm_api.crdgen DIRECTORY...\n")
        return 64
    for directory in map(Path, arguments):
        for info in KINDS:
            (directory / f"{info.crd_name}.yaml").write_text(render(info))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
