"""A fleet with two drivers over an API server: an artifact and a Deployment for each, and an update node by node."""

from typing import Any

from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import BUILD_ARTIFACTS, DEPLOYMENTS, MODEL_DEPLOYMENTS, NODES
from whole_operator import DIGEST, add_facts, whole_operator

Object = dict[str, Any]

DEVICES = 2
OLD, NEW = "1.4.0", "1.5.0"


async def _set_driver(client: HttpClient, ns: str, node: str, driver: str) -> None:
    labels = {"tests": ns, f"{ns}.com/driver": driver}
    obj = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{ns}-{node}", "labels": labels}}
    await client.apply(NODES, obj, field_manager="tests")


async def _add_fleet(client: HttpClient, ns: str) -> None:
    resource = f"{ns}.com/npu"
    for node, driver in (("a", OLD), ("b", NEW)):
        await _set_driver(client, ns, node, driver)
        count = {resource: str(DEVICES)}
        made = await client.get(NODES, None, f"{ns}-{node}")
        await client.apply_status(NODES, made, {"capacity": count, "allocatable": count})
    target = {"type": "NPU", "vendor": ns}
    spec = {
        **target, "product": "x", "resourceName": resource, "nodeSelector": {"tests": ns},
        "versionLabels": {"driver": f"{ns}.com/driver"}, "runtime": {"plugin": "p", "image": "serve:1"},
    }  # fmt: skip
    recipe = {
        "target": {**target, "targetString": "x:driver=${DRIVER}"},
        "steps": [{"name": "compile", "image": "cc:1", "command": ["cc", "${TARGET}"]}],
        "compatibility": {"oneArtifactPer": ["Driver"]},
        "output": {"format": "f"},
    }
    await apply(client, custom_object("AcceleratorResource", spec, ns, ns))
    await apply(client, custom_object("BuildProfile", recipe, ns, ns))


async def _artifacts(client: HttpClient, ns: str) -> dict[str, Object]:
    """Artifacts by driver."""
    return {each["spec"]["drivers"][0]: each for each in (await client.list(BUILD_ARTIFACTS, ns)).items}


async def _is_built(client: HttpClient, ns: str, driver: str) -> bool:
    said = {"status": "True", "reason": "Built", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    artifact = (await _artifacts(client, ns)).get(driver)
    if artifact is None:
        return False
    status = {
        "digest": DIGEST, "location": f"store/artifacts/{artifact['metadata']['name']}@{DIGEST}",
        "conditions": [{"type": kind, **said} for kind in ("Ready", "Built")],
    }  # fmt: skip
    try:
        await client.apply_status(BUILD_ARTIFACTS, artifact, status)
    except ApiError:
        return False
    return True


async def _variants(client: HttpClient, ns: str) -> dict[str, int]:
    """Replicas of the Deployments, by the driver that the affinity of their pods asks for."""
    found = {}
    for each in (await client.list(DEPLOYMENTS, ns)).items:
        affinity = each["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
        terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        expression = terms[0]["matchExpressions"][0]
        assert (expression["key"], expression["operator"]) == (f"{ns}.com/driver", "In")
        found[expression["values"][0]] = each["spec"]["replicas"]
    return found


async def test_an_artifact_and_a_variant_for_each_driver_and_the_way_back(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    ns = api_namespace
    await _add_fleet(client, ns)
    await add_facts(client, ns, "hf://acme/model")
    spec = {"model": {"source": "hf://acme/model"}, "accelerators": {"names": [ns]}, "replicas": 3}
    async with whole_operator(api_server, ns) as running:
        await apply(client, custom_object("ModelDeployment", spec, ns, "mixed"))

        async def status() -> Object:
            return (await client.get(MODEL_DEPLOYMENTS, ns, "mixed")).get("status") or {}

        async def shares() -> dict[str, int]:
            return {each["drivers"][0]: each["replicas"] for each in (await status()).get("classes") or []}

        async def both_asked_for() -> bool:
            return running.idle and set(await _artifacts(client, ns)) == {OLD, NEW}

        await eventually(both_asked_for, "there is an artifact for each driver")
        made = await _artifacts(client, ns)
        assert {driver: each["spec"]["target"]["targetString"] for driver, each in made.items()} == {
            OLD: f"x:driver={OLD}", NEW: f"x:driver={NEW}",
        }  # fmt: skip
        assert sorted((await shares()).values()) == [1, 2]

        # The one that is there first serves first.
        await eventually(lambda: _is_built(client, ns, OLD), "the first is built")

        async def first_serves() -> bool:
            return running.idle and await _variants(client, ns) == {OLD: 2}

        await eventually(first_serves, "the class that is warm serves")
        await eventually(lambda: _is_built(client, ns, NEW), "the second is built")

        async def both_serve() -> bool:
            return running.idle and await _variants(client, ns) == {OLD: 2, NEW: 1} == await shares()

        await eventually(both_serve, "both classes serve")

        # The last node with the old driver goes over: there are devices enough.
        await _set_driver(client, ns, "a", NEW)

        async def gone_over() -> bool:
            found = await status()
            wanted = made[NEW]["metadata"]["name"]
            return running.idle and found.get("artifact") == wanted and "classes" not in found

        await eventually(gone_over, "all that is wanted is the new driver's")

        async def stale() -> bool:
            conditions = (await _artifacts(client, ns))[OLD]["status"]["conditions"]
            return any(each["type"] == "Stale" and each["status"] == "True" for each in conditions)

        await eventually(stale, "the old driver's artifact is Stale")

        for node in ("a", "b"):
            await _set_driver(client, ns, node, OLD)

        async def back() -> bool:
            found = await status()
            return running.idle and found.get("artifact") == made[OLD]["metadata"]["name"] and "classes" not in found

        await eventually(back, "the earlier artifact is found")
        after = await _artifacts(client, ns)
        assert {each["metadata"]["uid"] for each in after.values()} == {
            each["metadata"]["uid"] for each in made.values()
        }, "nothing was made anew"
        assert all(not each["status"].get("attempts") for each in after.values()), "and no Job began"
