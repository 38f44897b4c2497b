"""Image volumes with a real API server: asked for, they are in the pods' template as it keeps it; or it is too old."""

from typing import Any

import pytest
from aiohttp import web
from api_proxy import ApiProxy
from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_api import names
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import DEPLOYMENTS
from test_api_device_classes import _Behind
from whole_operator import DIGEST, add_cpu, add_facts, build, whole_operator

Object = dict[str, Any]
AUTO = {"image_volumes": "Auto", "image_volumes_pull_secret": "registry-login"}


class Version(ApiProxy):
    """The API server, which says of itself that it is of another version."""

    def __init__(self, server: ApiServer, minor: str) -> None:
        super().__init__(server)
        self._minor = minor
        self.asked = 0

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/version":
            self.asked += 1
            if self.asked == 1:
                return web.json_response({"kind": "Status", "code": 503}, status=503)
            return web.json_response({"major": "1", "minor": self._minor})
        return await super()._handle(request)


async def _template(client: HttpClient, namespace: str, name: str) -> Object:
    found: list[Object] = []

    async def made() -> bool:
        live = (await client.list(DEPLOYMENTS, namespace)).items
        found[:] = [each for each in live if each["metadata"]["labels"].get(names.LABEL_DEPLOYMENT) == name]
        return bool(found)

    await eventually(made, "it has its pods")
    template: Object = found[0]["spec"]["template"]["spec"]
    return template


@pytest.mark.parametrize(("minor", "mounted"), [("34+", False), ("35", True)])
async def test_what_the_api_server_knows_decides(
    api_server: ApiServer, client: HttpClient, api_namespace: str, minor: str, mounted: bool
) -> None:
    await add_cpu(client, api_namespace)
    await add_facts(client, api_namespace, "hf://acme/model")
    spec = {"model": {"source": "hf://acme/model"}, "accelerators": {"names": [api_namespace]}}
    async with (
        Version(api_server, minor) as proxy,
        whole_operator(_Behind(proxy), api_namespace, **AUTO),  # type: ignore[arg-type]
    ):
        await apply(client, custom_object("ModelDeployment", spec, api_namespace, "d"))
        await build(client, api_namespace, "d")
        template = await _template(client, api_namespace, "d")
    (volume,) = [each for each in template["volumes"] if each["name"] == "artifact"]
    fetches = [each["name"] for each in template["initContainers"] if each["name"] == "fetch"]
    if not mounted:
        assert (volume, fetches) == ({"name": "artifact", "emptyDir": {}}, ["fetch"])
        assert "imagePullSecrets" not in template
        return
    assert fetches == []
    assert volume["image"]["reference"].endswith(f"@{DIGEST}")
    assert volume["image"]["pullPolicy"] == "IfNotPresent"
    assert template["imagePullSecrets"] == [{"name": "registry-login"}]
