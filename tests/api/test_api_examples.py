"""The examples of vendors are objects that the API server takes as they are, with every field that they name."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from custom_objects import OF
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import of_kind

EXAMPLES = Path(__file__).parents[2] / "examples"
BODIES = {
    f"{file.parent.name}/{body['kind']}": body
    for file in sorted(EXAMPLES.glob("*/*.yaml"))
    for body in yaml.safe_load_all(file.read_text())
}


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
async def test_an_example_is_taken_as_it_is(client: HttpClient, api_namespace: str, body: dict[str, Any]) -> None:
    metadata = {**body["metadata"], "name": f"{body['metadata']['name']}-{api_namespace}"}
    if body["kind"] == "ModelDeployment":
        metadata["namespace"] = api_namespace
    resource = of_kind(OF[body["kind"]])
    live = await client.apply(resource, {**body, "metadata": metadata}, field_manager="tests")
    try:
        assert _within(body["spec"], live["spec"])
    finally:
        await client.delete(resource, metadata.get("namespace"), metadata["name"])


def _within(said: Any, kept: Any) -> bool:
    """Everything that was said was kept: a field that the CRD does not have is dropped in silence."""
    match said:
        case dict():
            return all(name in kept and _within(value, kept[name]) for name, value in said.items())
        case list():
            return len(said) == len(kept) and all(map(_within, said, kept))
    return bool(said == kept)
