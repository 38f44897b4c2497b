"""A real HorizontalPodAutoscaler scales a ModelDeployment through its scale subresource, and the operator follows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import real_api
from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_api import names
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import DEPLOYMENTS, HORIZONTALPODAUTOSCALERS, MODEL_DEPLOYMENTS
from whole_operator import add_cpu, add_facts, build, whole_operator

Object = dict[str, Any]
CONTROLLER = "horizontal-pod-autoscaler-controller"


@pytest.fixture
def controller_manager(api_server: ApiServer, tmp_path: Path) -> Iterator[None]:
    """kube-controller-manager with nothing but the autoscaler's controller."""
    with real_api.controller_manager(api_server, tmp_path, CONTROLLER, "--horizontal-pod-autoscaler-sync-period=1s"):
        yield


@pytest.mark.usefixtures("controller_manager")
async def test_the_autoscaler_writes_replicas_and_the_operator_follows(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    await add_cpu(client, api_namespace)
    await add_facts(client, api_namespace, "hf://acme/model")
    scaling = {"minReplicas": 2, "maxReplicas": 4, "metrics": [{"name": "requests", "averageValue": "4"}]}
    spec = {
        "model": {"source": "hf://acme/model"}, "accelerators": {"names": [api_namespace]}, "autoscaling": scaling,
    }  # fmt: skip
    wished = custom_object("ModelDeployment", spec, api_namespace, "scaled")
    made = await apply(client, wished)
    assert made["spec"]["replicas"] == 1, "the default, which the autoscaler finds too few"
    async with whole_operator(api_server, api_namespace) as running:
        await build(client, api_namespace, "scaled")
        # Below minReplicas an autoscaler needs no metrics.
        await eventually(lambda: _replicas(client, MODEL_DEPLOYMENTS, api_namespace, "scaled", 2), "it wrote 2", 120)
        await eventually(lambda: _serving(client, api_namespace, 2), "the pods follow", 120)
        autoscaler = await client.get(HORIZONTALPODAUTOSCALERS, api_namespace, "scaled")
        assert autoscaler["spec"]["scaleTargetRef"]["kind"] == "ModelDeployment"
        assert {entry["type"]: entry["status"] for entry in autoscaler["status"]["conditions"]}["AbleToScale"] == "True"

        # The bounds are the deployment's, and the autoscaler hears of them.
        await apply(client, {**wished, "spec": {**spec, "autoscaling": {**scaling, "minReplicas": 3}}})
        await eventually(lambda: _replicas(client, MODEL_DEPLOYMENTS, api_namespace, "scaled", 3), "it wrote 3", 120)
        await eventually(lambda: _serving(client, api_namespace, 3), "the pods follow", 120)
        await eventually(lambda: running.idle, "it comes to rest")
        live = await client.get(MODEL_DEPLOYMENTS, api_namespace, "scaled")
        autoscaler = await client.get(HORIZONTALPODAUTOSCALERS, api_namespace, "scaled")
        assert autoscaler["status"]["desiredReplicas"] == 3
        assert autoscaler["status"]["lastScaleTime"]
        writers = {each["manager"] for each in live["metadata"]["managedFields"] if "f:spec" in each["fieldsV1"]}
        assert writers == {"tests"}, "the operator writes nothing into a spec"

        # Without autoscaling the autoscaler goes, and what it decided last stays.
        await apply(client, {**wished, "spec": {key: value for key, value in spec.items() if key != "autoscaling"}})

        async def gone() -> bool:
            found = await client.list(HORIZONTALPODAUTOSCALERS, api_namespace)
            return not found.items

        await eventually(gone, "the autoscaler is gone")
        assert await _replicas(client, MODEL_DEPLOYMENTS, api_namespace, "scaled", 3)


async def _replicas(client: HttpClient, resource: Any, namespace: str, name: str, number: int) -> bool:
    live = await client.get(resource, namespace, name)
    return bool(live["spec"]["replicas"] == number)


async def _serving(client: HttpClient, namespace: str, number: int) -> bool:
    found = await client.list(DEPLOYMENTS, namespace, label_selector=f"{names.LABEL_DEPLOYMENT}=scaled")
    return [each["spec"]["replicas"] for each in found.items] == [number]
