"""Artifacts that all namespaces share, with a real API server and the whole operator."""

from typing import Any

from custom_objects import apply, custom_object
from real_api import NAMESPACES, ApiServer, eventually
from rm_api import names
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import BUILD_ARTIFACTS, BUILD_PROFILES, DEPLOYMENTS, MODEL_DEPLOYMENTS
from whole_operator import DIGEST, add_cpu, add_facts, whole_operator

Object = dict[str, Any]
SOURCE = "hf://acme/model"


async def add_namespace(client: HttpClient, name: str) -> str:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await client.create(NAMESPACES, body, field_manager="tests")
    return name


async def share(client: HttpClient, profile: str) -> None:
    live = await client.get(BUILD_PROFILES, None, profile)
    spec = {**live["spec"], "sharing": "Cluster"}
    await apply(client, {**custom_object("BuildProfile", spec, "", profile)})


async def deploy(client: HttpClient, namespace: str, vendor: str, **model: Any) -> None:
    spec = {"model": {"source": SOURCE, **model}, "accelerators": {"names": [vendor]}}
    await apply(client, custom_object("ModelDeployment", spec, namespace, "hello"))
    if not model:
        await add_facts(client, namespace, SOURCE)


async def status(client: HttpClient, namespace: str) -> Object:
    return dict((await client.get(MODEL_DEPLOYMENTS, namespace, "hello")).get("status") or {})


def said(status: Object, type_: str) -> Object:
    return next((each for each in status.get("conditions") or () if each["type"] == type_), {})


async def test_two_namespaces_use_one_artifact_that_neither_has(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    shared = await add_namespace(client, f"{api_namespace}-builds")
    tenants = [await add_namespace(client, f"{api_namespace}-{each}") for each in ("a", "b")]
    vendor = await add_cpu(client, api_namespace)
    await share(client, vendor)
    async with whole_operator(api_server, api_namespace, builds_namespace=shared):
        for namespace in tenants:
            await deploy(client, namespace, vendor)

        async def asked() -> bool:
            return all([(await status(client, each)).get("artifactNamespace") == shared for each in tenants])

        await eventually(asked, "both name an artifact that they share")

        async def there() -> list[Object]:
            return list((await client.list(BUILD_ARTIFACTS, shared)).items)

        async def one() -> bool:
            return len(await there()) == 1

        await eventually(one, "it is there")
        for namespace in tenants:
            assert (await client.list(BUILD_ARTIFACTS, namespace)).items == []

        async def built() -> bool:
            (artifact,) = await there()
            done = {"status": "True", "reason": "Built", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            location = f"store/artifacts/{shared}/{artifact['metadata']['name']}@{DIGEST}"
            conditions = [{"type": kind, **done} for kind in ("Ready", "Built")]
            try:
                written = {"digest": DIGEST, "location": location, "conditions": conditions}
                await client.apply_status(BUILD_ARTIFACTS, artifact, written)
            except ApiError:
                return False
            return True

        await eventually(built, "it is built")

        async def serves() -> bool:
            found = [(await client.list(DEPLOYMENTS, each)).items for each in tenants]
            return all(found)

        await eventually(serves, "both have pods of it")
        for namespace in tenants:
            (deployment,) = (await client.list(DEPLOYMENTS, namespace)).items
            labels = deployment["metadata"]["labels"]
            assert labels[names.LABEL_ARTIFACT_NAMESPACE] == shared
            fetch = deployment["spec"]["template"]["spec"]["initContainers"][1]["command"]
            assert f"--reference=store/artifacts/{shared}/{labels[names.LABEL_ARTIFACT]}@{DIGEST}" in fetch

        async def counted() -> bool:
            (artifact,) = await there()
            wanted = f"used by {', '.join(f'{each}/hello' for each in tenants)}"
            return (artifact["status"].get("referrerCount"), artifact["status"].get("keptBecause")) == (2, wanted)

        await eventually(counted, "it says who uses it, wherever that is")


async def test_a_namespace_for_builds_that_is_not_there_is_said_to_be_missing(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    vendor = await add_cpu(client, api_namespace)
    await share(client, vendor)
    missing = f"{api_namespace}-missing"
    async with whole_operator(api_server, api_namespace, builds_namespace=missing):
        await deploy(client, api_namespace, vendor)

        async def told() -> bool:
            return f'namespaces "{missing}" not found' in said(await status(client, api_namespace), "Ready")["message"]

        async def says() -> bool:
            return bool(said(await status(client, api_namespace), "Ready")) and await told()

        await eventually(says, "the deployment says that the namespace is missing")
