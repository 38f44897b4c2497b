"""What the planner of rollouts relies on, against a real API server: finalizers, labels of pods, the autoscaler."""

import sys
from pathlib import Path
from typing import Any

import pytest
from custom_objects import SMALLEST
from rm_api.names import (
    ANNOTATION_APPLIED_HASH,
    API_VERSION,
    FINALIZER_IN_USE,
    LABEL_ACTIVE,
    LABEL_MANAGED_BY,
    MANAGED_BY,
)
from rm_operator.controllers.protection import carry_out
from rm_operator.kube.apply import Action, apply_children
from rm_operator.kube.errors import Conflict, Invalid
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, HORIZONTALPODAUTOSCALERS, PODS
from rm_operator.kube.store import Store, Stores
from rm_operator.plan.in_use import NOBODY, Users, protection
from rm_operator.plan.replacement import labelled

sys.path.append(str(Path(__file__).parents[1] / "unit/plan"))
from chain import World

Object = dict[str, Any]
USED = Users(1, ("ns/d",))
COST = "controller.kubernetes.io/pod-deletion-cost"


@pytest.fixture
def stores() -> Stores:
    return Stores(Store(resource) for resource in (ACCELERATOR_RESOURCES, HORIZONTALPODAUTOSCALERS, PODS))


@pytest.fixture
async def accelerator(client: HttpClient, api_namespace: str) -> Object:
    """One of its own name, with a finalizer of somebody else."""
    body = {
        "apiVersion": API_VERSION,
        "kind": "AcceleratorResource",
        "metadata": {"name": api_namespace, "finalizers": ["tests/theirs"]},
        "spec": {**SMALLEST["AcceleratorResource"], "resourceName": f"{api_namespace}.test/npu"},
    }
    return await client.create(ACCELERATOR_RESOURCES, body, field_manager="tests")


async def _now(client: HttpClient, obj: Object) -> Object:
    return await client.get(ACCELERATOR_RESOURCES, None, obj["metadata"]["name"])


async def test_the_finalizer_comes_once_and_goes_alone(client: HttpClient, stores: Stores, accelerator: Object) -> None:
    put = protection(accelerator, USED)
    await carry_out(client, stores, put)
    used = await _now(client, accelerator)
    assert sorted(used["metadata"]["finalizers"]) == sorted(["tests/theirs", FINALIZER_IN_USE])
    assert used["metadata"]["generation"] == accelerator["metadata"]["generation"]
    assert used["spec"] == accelerator["spec"]
    assert stores[ACCELERATOR_RESOURCES].get(None, used["metadata"]["name"]) is not None, "seen before the watch tells"
    assert protection(used, USED) == ()

    await carry_out(client, stores, put)
    assert (await _now(client, accelerator))["metadata"]["resourceVersion"] == used["metadata"]["resourceVersion"]

    await carry_out(client, stores, protection(used, NOBODY))
    assert (await _now(client, accelerator))["metadata"]["finalizers"] == ["tests/theirs"]


async def test_it_is_not_taken_off_what_was_changed_meanwhile(
    client: HttpClient, stores: Stores, accelerator: Object
) -> None:
    await carry_out(client, stores, protection(accelerator, USED))
    seen = await _now(client, accelerator)
    change = {
        "apiVersion": API_VERSION,
        "kind": "AcceleratorResource",
        "metadata": {"name": seen["metadata"]["name"], "annotations": {"a": "b"}},
    }
    await client.apply(ACCELERATOR_RESOURCES, change, field_manager="tests-2")
    with pytest.raises(Conflict):
        await carry_out(client, stores, protection(seen, NOBODY))
    assert FINALIZER_IN_USE in (await _now(client, accelerator))["metadata"]["finalizers"]


async def test_what_is_deleted_waits_for_its_last_user(client: HttpClient, stores: Stores, accelerator: Object) -> None:
    name = accelerator["metadata"]["name"]
    await carry_out(client, stores, protection(accelerator, USED))
    assert await client.delete(ACCELERATOR_RESOURCES, None, name)
    going = await _now(client, accelerator)
    assert "deletionTimestamp" in going["metadata"]
    assert protection(going, USED) == ()
    await carry_out(client, stores, protection(going, NOBODY))
    left = await _now(client, accelerator)
    assert left["metadata"]["finalizers"] == ["tests/theirs"], "what others hold it by is theirs"
    assert protection(left, NOBODY) == ()


async def test_who_comes_too_late_learns_of_it(client: HttpClient, stores: Stores, accelerator: Object) -> None:
    await client.delete(ACCELERATOR_RESOURCES, None, accelerator["metadata"]["name"])
    with pytest.raises(Invalid, match="being deleted"):
        await carry_out(client, stores, protection(accelerator, USED))
    successor = {**accelerator, "metadata": {**accelerator["metadata"], "uid": "another"}}
    with pytest.raises(Conflict):
        await carry_out(client, stores, protection(successor, USED))
    gone = {**accelerator, "metadata": {**accelerator["metadata"], "name": "no-such-accelerator"}}
    with pytest.raises(Conflict):
        await carry_out(client, stores, protection(gone, USED))


async def test_a_pod_that_is_taken_back_is_as_if_it_had_never_left(
    client: HttpClient, stores: Stores, api_namespace: str
) -> None:
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "u", "controller": True}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": api_namespace,
            "name": "p",
            "labels": {LABEL_ACTIVE: "true", LABEL_MANAGED_BY: MANAGED_BY, "theirs": "stays"},
            "ownerReferences": [owner],
        },
        "spec": {"containers": [{"name": "engine", "image": "engine:1"}]},
    }
    made = await client.create(PODS, body, field_manager="replicaset-controller")
    stores.put(made)

    async def switch(active: bool) -> Object:
        (applied,) = await apply_children(client, stores, [labelled(made, active=active)])
        assert applied.action is Action.UPDATED
        (again,) = await apply_children(client, stores, [labelled(made, active=active)])
        assert again.action is Action.UNCHANGED
        return await client.get(PODS, api_namespace, "p")

    out = await switch(False)
    assert (out["metadata"]["labels"][LABEL_ACTIVE], out["metadata"]["annotations"][COST]) == ("false", "-1")
    back = await switch(True)
    assert back["metadata"]["labels"] == made["metadata"]["labels"]
    assert set(back["metadata"]["annotations"]) == {ANNOTATION_APPLIED_HASH}
    assert back["metadata"]["ownerReferences"] == made["metadata"]["ownerReferences"]
    assert back["spec"] == made["spec"]


async def test_the_autoscaler_is_applied_once_and_mended(
    client: HttpClient, stores: Stores, api_namespace: str
) -> None:
    world = World()
    metrics = [{"name": "requests_running", "averageValue": "1500m"}, {"name": "queue", "averageValue": "4"}]
    obj = world.deploy(autoscaling={"maxReplicas": 3, "metrics": metrics})
    (wanted,) = [child for child in world.plan(obj).apply if child["kind"] == "HorizontalPodAutoscaler"]
    wanted["metadata"]["namespace"] = api_namespace

    async def apply() -> Action:
        (applied,) = await apply_children(client, stores, [wanted])
        return applied.action

    assert [await apply(), await apply()] == [Action.CREATED, Action.UNCHANGED]
    edited = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"namespace": api_namespace, "name": "hello", "labels": {"theirs": "stays"}},
        "spec": {**wanted["spec"], "maxReplicas": 9},
    }
    stores.put(await client.apply(HORIZONTALPODAUTOSCALERS, edited, field_manager="somebody"))
    assert [await apply(), await apply()] == [Action.UPDATED, Action.UNCHANGED]
    mended = await client.get(HORIZONTALPODAUTOSCALERS, api_namespace, "hello")
    assert mended["spec"]["maxReplicas"] == 3
    assert mended["metadata"]["labels"]["theirs"] == "stays"
