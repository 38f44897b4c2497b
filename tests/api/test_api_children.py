"""Children of the running operator in a real API server: hand-edits are mended, what others added stays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from custom_objects import apply, custom_object
from real_api import ApiServer, eventually
from rm_api import names
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_PROFILES,
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    DAEMONSETS,
    DEPLOYMENTS,
    HORIZONTALPODAUTOSCALERS,
    JOBS,
    SERVICES,
    Resource,
)
from whole_operator import WholeOperator, add_cpu, add_facts, build, whole_operator

Object = dict[str, Any]
SCALING = {"minReplicas": 1, "maxReplicas": 4, "metrics": [{"name": "requests", "averageValue": "4"}]}


@dataclass(frozen=True)
class Child:
    """A kind that the operator applies, and what somebody else does to one."""

    resource: Resource
    label: tuple[str, str]
    """A label that tells the child of this test from others of its kind."""
    owned: Object = field(default_factory=dict)
    """Fields of ours, changed by hand."""
    foreign: Object = field(default_factory=dict)
    """Fields that we do not set."""
    kept: bool = True
    """False for a Job: it is made once, and nothing that it says afterwards makes it another one."""


ENGINE = {"spec": {"template": {"spec": {"containers": [{"name": "engine", "image": "evil:1"}]}}}}
SERVES = (names.LABEL_DEPLOYMENT, "serving")
PLUGIN = (names.LABEL_ROLE, names.ROLE_DEVICE_PLUGIN)
CHILDREN = (
    Child(DEPLOYMENTS, SERVES, ENGINE, {"spec": {"minReadySeconds": 7}}),
    Child(SERVICES, SERVES, {"spec": {"selector": {names.LABEL_ACTIVE: "no"}}}, {
        "spec": {"sessionAffinity": "ClientIP"},
    }),
    Child(HORIZONTALPODAUTOSCALERS, SERVES, {"spec": {"maxReplicas": 99}}, {
        "spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 7}}},
    }),
    Child(CONTROLLERREVISIONS, SERVES),
    Child(JOBS, (names.LABEL_ROLE, names.ROLE_RESOLVE), {}, {"spec": {"ttlSecondsAfterFinished": 777}}, kept=False),
    Child(CONFIGMAPS, PLUGIN, {"data": {"config.yaml": "evil"}}, {"data": {"theirs": "x"}}),
    Child(DAEMONSETS, PLUGIN, {
        "spec": {"template": {"spec": {"containers": [{"name": "device-plugin", "image": "evil:1"}]}}},
    }, {"spec": {"minReadySeconds": 7}}),
)  # fmt: skip


@asynccontextmanager
async def children(server: ApiServer, client: HttpClient, ns: str) -> AsyncIterator[WholeOperator]:
    """An operator with one deployment that has its pods, one that is being resolved, and one device plugin."""
    await add_cpu(client, ns)
    await add_facts(client, ns, "hf://acme/model")
    plugin = {
        "type": "NPU", "vendor": ns, "product": "x", "resourceName": f"{ns}.com/npu",
        "runtime": {"plugin": "p", "image": "serve:1"}, "devicePlugin": {"image": "plugin:1", "config": "a: 1"},
    }  # fmt: skip
    await apply(client, custom_object("AcceleratorResource", plugin, ns, f"{ns}-npu"))
    only = {"accelerators": {"names": [ns]}}
    serving = {"model": {"source": "hf://acme/model"}, "autoscaling": SCALING, **only}
    await apply(client, custom_object("ModelDeployment", serving, ns, "serving"))
    await apply(client, custom_object("ModelDeployment", {"model": {"source": "hf://acme/other"}}, ns, "resolving"))
    async with whole_operator(server, ns) as found:
        await build(client, ns, "serving")
        yield found
    for resource, name in ((ACCELERATOR_RESOURCES, ns), (ACCELERATOR_RESOURCES, f"{ns}-npu"), (BUILD_PROFILES, ns)):
        live = await client.get(resource, None, name)
        if live["metadata"].get("finalizers"):
            # Nobody is left to release it.
            bare = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": {"name": name}}
            await client.apply(resource, {**bare, "spec": live["spec"]}, field_manager=names.FIELD_MANAGER)
        await client.delete(resource, None, name)


async def _child(client: HttpClient, namespace: str, child: Child) -> Object:
    selector = f"{child.label[0]}={child.label[1]}"

    async def there() -> bool:
        return bool((await client.list(child.resource, namespace, label_selector=selector)).items)

    await eventually(there, f"the {child.resource.kind} is there")
    (found,) = (await client.list(child.resource, namespace, label_selector=selector)).items
    return await client.get(child.resource, namespace, found["metadata"]["name"])


def _covers(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            name in live and _covers(live[name], each) for name, each in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and all(any(_covers(item, each) for item in live) for each in wanted)
    return bool(live == wanted)


async def test_hand_edits_are_mended_and_foreign_fields_stay(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    async with children(api_server, client, api_namespace) as running:
        for child in CHILDREN:
            kind = child.resource.kind
            ours = await _child(client, api_namespace, child)
            assert not _covers(ours, child.foreign) or not child.foreign, f"{kind}: it is a field of ours"
            metadata = {"namespace": api_namespace, "name": ours["metadata"]["name"]}
            typed = {"apiVersion": child.resource.api_version, "kind": kind}
            theirs = {"labels": {"team": "a"}, "annotations": {"example.com/note": "n"}}
            added = {**typed, "metadata": {**metadata, **theirs}, **child.foreign}
            await client.apply(child.resource, added, field_manager="somebody")
            if not child.kept:
                continue
            # Of every child the labels are ours, and by its role we find it again.
            edits = {**typed, "metadata": {**metadata, "labels": {names.LABEL_ROLE: "evil"}}, **child.owned}
            await client.apply(child.resource, edits, field_manager="mischief")

            async def mended(child: Child = child, ours: Object = ours, edits: Object = edits) -> bool:
                live = await client.get(child.resource, api_namespace, ours["metadata"]["name"])
                label = live["metadata"]["labels"].get(names.LABEL_ROLE)
                return label == ours["metadata"]["labels"][names.LABEL_ROLE] and (
                    not child.owned or not _covers(live, child.owned)
                )

            await eventually(mended, f"{kind}: what was edited by hand is as it was")
            live = await client.get(child.resource, api_namespace, ours["metadata"]["name"])
            assert _covers(live, {**child.foreign, "metadata": theirs}), f"{kind}: what somebody else added is gone"
            assert live["metadata"]["uid"] == ours["metadata"]["uid"], f"{kind}: it was mended, not made anew"
        await eventually(lambda: running.idle, "it comes to rest")


async def test_what_is_deleted_by_hand_is_made_again(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    async with children(api_server, client, api_namespace):
        for child in CHILDREN:
            ours = await _child(client, api_namespace, child)
            name, uid = ours["metadata"]["name"], ours["metadata"]["uid"]
            await client.delete(child.resource, api_namespace, name, uid=uid)

            async def again(child: Child = child, name: str = name, uid: str = uid) -> bool:
                found = (await client.list(child.resource, api_namespace)).items
                return any(each["metadata"]["name"] == name and each["metadata"]["uid"] != uid for each in found)

            await eventually(again, f"{child.resource.kind} {name} is there again")
