"""What the benchmarks write into etcd is as large as what the API server and its controllers make of the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import real_api
from real_api import ApiServer, eventually
from rm_api.names import FIELD_MANAGER
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import (
    BUILD_ARTIFACTS,
    CONTROLLERREVISIONS,
    DEPLOYMENTS,
    MODEL_DEPLOYMENTS,
    SERVICES,
    Resource,
)
from scale import objects, settled

Object = dict[str, Any]
TOLD = ("name", "namespace", "labels", "annotations")


@pytest.fixture
def controller_manager(api_server: ApiServer, tmp_path: Path) -> Iterator[None]:
    with real_api.controller_manager(api_server, tmp_path, "deployment-controller,replicaset-controller"):
        yield


@pytest.fixture
async def written(api_namespace: str) -> dict[Resource, Object]:
    """One object of each kind, as a benchmark has it."""
    found = await settled.settled(1, replicas=0, model={"source": objects.SOURCE, "servedName": "llama"})
    return dict(found.copies(api_namespace, "cccccccc"))


async def _made(client: HttpClient, resource: Resource, written: Object) -> Object:
    """The same, by way of the API server."""
    metadata = {name: value for name, value in written["metadata"].items() if name in TOLD}
    # Nothing of that uid is there: the garbage collector does not run.
    metadata["ownerReferences"] = written["metadata"].get("ownerReferences", [])
    metadata["annotations"] = {
        name: value for name, value in (metadata.get("annotations") or {}).items() if "kubernetes.io" not in name
    }
    intent = {name: value for name, value in written.items() if name not in ("metadata", "status")}
    made = await client.apply(resource, {**intent, "metadata": metadata}, field_manager=FIELD_MANAGER)
    if resource in (MODEL_DEPLOYMENTS, BUILD_ARTIFACTS):
        return await client.apply_status(resource, made, written["status"])
    return made


@pytest.mark.usefixtures("controller_manager")
async def test_objects_of_benchmarks_have_the_size_of_real_ones(
    client: HttpClient, api_namespace: str, written: dict[Resource, Object]
) -> None:
    for resource in (MODEL_DEPLOYMENTS, BUILD_ARTIFACTS, CONTROLLERREVISIONS, DEPLOYMENTS, SERVICES):
        name = written[resource]["metadata"]["name"]
        real = await _made(client, resource, written[resource])
        if resource is DEPLOYMENTS:

            async def told(resource: Resource = resource, name: str = name) -> bool:
                live = await client.get(resource, api_namespace, name)
                return len(live.get("status", {}).get("conditions", ())) == 2

            await eventually(told, "the Deployment has its conditions")
            real = await client.get(resource, api_namespace, name)
        for what, theirs, ours in (
            ("all", real, written[resource]),
            ("managedFields", real["metadata"]["managedFields"], written[resource]["metadata"]["managedFields"]),
        ):
            sizes = len(orjson.dumps(ours)), len(orjson.dumps(theirs))
            assert sizes[0] == pytest.approx(sizes[1], rel=0.15), f"{resource.kind}, {what}: {sizes}"
