"""Deployments that all come at once, over an API server: none gets a device that another one was promised."""

from typing import Any

from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import MODEL_DEPLOYMENTS, NODES
from whole_operator import WholeOperator, add_facts, whole_operator

Object = dict[str, Any]

DEVICES = 3
DEPLOYMENTS = 12


async def _add_devices(client: HttpClient, ns: str) -> None:
    resource = f"{ns}.com/npu"
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": ns, "labels": {"tests": ns}}}
    made = await client.create(NODES, node, field_manager="tests")
    count = {resource: str(DEVICES)}
    await client.apply_status(NODES, made, {"capacity": count, "allocatable": count})
    target = {"type": "NPU", "vendor": ns}
    spec = {
        **target, "product": "x", "resourceName": resource, "nodeSelector": {"tests": ns},
        "runtime": {"plugin": "p", "image": "serve:1"},
    }  # fmt: skip
    step = {"name": "compile", "image": "cc:1", "command": ["cc"]}
    await apply(client, custom_object("AcceleratorResource", spec, ns, ns))
    await apply(
        client, custom_object("BuildProfile", {"target": target, "steps": [step], "output": {"format": "f"}}, ns, ns)
    )


async def _placed(client: HttpClient, ns: str) -> dict[str, str]:
    """Deployments by what Placed says of them: its reason, empty while nothing is said."""
    found = {}
    for each in (await client.list(MODEL_DEPLOYMENTS, ns)).items:
        conditions = (each.get("status") or {}).get("conditions") or []
        found[each["metadata"]["name"]] = next((c["reason"] for c in conditions if c["type"] == "Placed"), "")
    return found


async def _settled(client: HttpClient, operator: WholeOperator, ns: str, without: str = "") -> set[str]:
    """The deployments that have a place, but for ``without``, once these are as many as there are devices."""

    async def done() -> bool:
        reasons = {name: reason for name, reason in (await _placed(client, ns)).items() if name != without}
        placed = list(reasons.values()).count("Placed")
        return operator.idle and set(reasons.values()) == {"Placed", "NoEligibleAccelerator"} and placed == DEVICES

    await eventually(done, f"{DEVICES} deployments have a place")
    return {name for name, reason in (await _placed(client, ns)).items() if reason == "Placed"} - {without}


async def test_devices_are_promised_once_and_pass_on_when_they_become_free(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    ns = api_namespace
    await _add_devices(client, ns)
    await add_facts(client, ns, "hf://acme/model")
    spec = {"model": {"source": "hf://acme/model"}, "accelerators": {"names": [ns]}}
    async with whole_operator(api_server, ns) as running:
        for number in range(DEPLOYMENTS):
            await apply(client, custom_object("ModelDeployment", spec, ns, f"d{number}"))
        first = await _settled(client, running, ns)
        gone, held, *_ = sorted(first)
        await client.delete(MODEL_DEPLOYMENTS, ns, gone)
        second = await _settled(client, running, ns)
        assert first - {gone} < second
        # One that is suspended gives its promise back.
        await apply(client, custom_object("ModelDeployment", {**spec, "suspend": True}, ns, held))
        third = await _settled(client, running, ns, without=held)
        assert second - {held} < third
    # Another process tells the same from the cluster alone.
    async with whole_operator(api_server, ns) as again:
        await apply(client, custom_object("ModelDeployment", spec, ns, "late"))

        async def told() -> bool:
            return again.idle and (await _placed(client, ns)).get("late") == "NoEligibleAccelerator"

        await eventually(told, "there is no device for a newcomer")
        assert await _settled(client, again, ns, without=held) == third
