"""From what a serving pod says to what its artifact and its deployment say, with a real API server and the operator."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from custom_objects import apply, custom_object
from plugin_pods import free_port
from prometheus_client import generate_latest
from real_api import ApiServer, eventually
from rm_api import names
from rm_operator import controllers
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import BUILD_ARTIFACTS, DEPLOYMENTS, MODEL_DEPLOYMENTS, PODS
from rm_operator.kube.serving_reports import ServingReports
from rm_operator.kube.store import Stores
from whole_operator import WholeOperator, add_cpu, add_facts, build, whole_operator

Object = dict[str, Any]
WRITES = ("POST", "PUT", "PATCH", "DELETE")


class Engines:
    """What answers on the report port of the pods."""

    def __init__(self) -> None:
        self.port = free_port()
        self.said: Object = {}
        self.asked: Counter[str] = Counter()
        self.keeper: ServingReports | None = None
        """Of the operator that asks them."""
        self._runner = web.AppRunner(web.Application())
        self._runner.app.router.add_get(names.REPORT_PATH, self._answer)

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "0.0.0.0", self.port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    def keep(self, stores: Stores) -> ServingReports:
        """Stands for ``ServingReports`` where an operator makes its keeper: one that asks these."""
        self.keeper = ServingReports(stores, port=self.port)
        return self.keeper

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.asked[request.transport.get_extra_info("sockname")[0]] += 1
        return web.Response(body=json.dumps(self.said).encode())


@pytest.fixture
async def engines(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engines]:
    found = Engines()
    await found.start()
    monkeypatch.setattr(controllers, "ServingReports", found.keep)
    yield found
    await found.stop()


def writes(running: WholeOperator) -> float:
    """Requests of the operator that may change something."""
    lines = generate_latest(running.operator.metrics.registry).decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("rest_client_requests_total{") and any(f'method="{verb}"' in line for verb in WRITES)
    )


async def start_pod(client: HttpClient, namespace: str, name: str, address: str) -> None:
    """A ready pod of the deployment that serves, as its ReplicaSet would have made it."""
    template: Object = {}

    async def rolled_out() -> bool:
        for each in (await client.list(DEPLOYMENTS, namespace)).items:
            template.update(each)
        return bool(template)

    await eventually(rolled_out, "there is a Deployment of serving pods")
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{template['metadata']['name']}-5d8f", "uid": "u"}
    made = await client.create(
        PODS,
        {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": namespace, "name": name,
                "labels": template["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {"nodeName": namespace, "containers": [{"name": "engine", "image": "serve:1"}]},
        },
        field_manager="tests",
    )  # fmt: skip
    condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}
    await client.apply_status(PODS, made, status)


async def test_an_artifact_is_verified_by_the_pod_that_serves_it(
    api_server: ApiServer, client: HttpClient, api_namespace: str, engines: Engines
) -> None:
    namespace = api_namespace
    source = "hf://acme/model"

    async def artifact() -> Object:
        (found,) = (await client.list(BUILD_ARTIFACTS, namespace)).items
        return dict(found)

    async def deployment() -> Object:
        return dict(await client.get(MODEL_DEPLOYMENTS, namespace, "hello"))

    async with whole_operator(api_server, namespace) as running:
        await add_cpu(client, namespace)
        await add_facts(client, namespace, source)
        spec = {"model": {"source": source}, "accelerators": {"names": [namespace]}}
        await apply(client, custom_object("ModelDeployment", spec, namespace, "hello"))
        await build(client, namespace, "hello")
        key = (await artifact())["spec"]["key"]
        engines.said = {
            "ready": True, "observedDevice": {"product": "Simulated NPU X1", "serial": "S0"}, "driver": "1.4.0",
            "artifact": {"key": key}, "versions": {"sdk": "7"},
        }  # fmt: skip
        await start_pod(client, namespace, "p1", "127.3.0.1")

        async def verified() -> bool:
            return bool((await artifact())["status"].get("verifications"))

        async def observed() -> bool:
            variants = (await deployment())["status"].get("variants") or [{}]
            return [each.get("observedDevice") for each in variants] == ["Simulated NPU X1, driver 1.4.0"]

        await eventually(verified, "the artifact says what it was seen to run on")
        await eventually(observed, "the deployment says what its pods run on")
        (said,) = (await artifact())["status"]["verifications"]
        assert said["at"]
        assert {**said, "at": ""} == {"product": "Simulated NPU X1", "driver": "1.4.0", "sdk": "7", "at": ""}
        assert engines.asked == {"127.3.0.1": 1}
        await eventually(lambda: running.idle, "all is written")

    before = [await artifact(), await deployment()]
    pod = await client.get(PODS, namespace, "p1")
    async with whole_operator(api_server, namespace) as running:

        async def calm() -> bool:
            assert engines.keeper is not None
            return engines.keeper.of(pod["metadata"]["uid"]) is not None and running.idle

        await eventually(calm, "the next replica has asked, and decided upon it")
        assert writes(running) == 0
        assert [await artifact(), await deployment()] == before
    assert engines.asked == {"127.3.0.1": 2}
