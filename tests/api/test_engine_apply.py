"""Children and statuses against a real API server: applied once, mended when changed, foreign things left alone."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from rm_api.names import ANNOTATION_APPLIED_HASH, FIELD_MANAGER, LABEL_MANAGED_BY, MANAGED_BY
from rm_operator.kube.apply import Action, apply_children, write_status
from rm_operator.kube.auth import Connection
from rm_operator.kube.client import Object
from rm_operator.kube.covers import differences
from rm_operator.kube.errors import Conflict, Invalid, NotFound, Terminal
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS, DEPLOYMENTS, JOBS, SERVICES, Resource
from rm_operator.kube.store import Store, Stores


class Counting(HttpClient):
    """Counts what it sends."""

    def __init__(self, connection: Connection) -> None:
        self.sent: list[str] = []
        super().__init__(connection, observe=lambda verb, *_: self.sent.append(verb))

    def take(self) -> list[str]:
        """What was sent since the last call."""
        sent, self.sent[:] = list(self.sent), []
        return sent


@pytest.fixture
async def counting(api_server: Any) -> Any:
    async with Counting(api_server.connection()) as opened:
        yield opened


@pytest.fixture
def stores() -> Stores:
    return Stores(Store(resource) for resource in (DEPLOYMENTS, SERVICES, CONFIGMAPS, JOBS))


@pytest.fixture
async def owner(counting: Counting, api_namespace: str) -> dict[str, Any]:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": api_namespace, "name": "owner"}}
    return await counting.create(CONFIGMAPS, body, field_manager="tests")


def deployment(namespace: str, **changes: Any) -> dict[str, Any]:
    """A Deployment in which as much as possible is written otherwise than the API server writes it."""
    labels = {"app": "x"}
    container = {
        "name": "engine",
        "image": "registry/engine:1",
        "command": ["/rma/bin/rma-launch"],
        "args": ["engine", "--", "serve"],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "EMPTY", "value": ""}],
        "ports": [{"containerPort": 8000, "name": "http"}, {"containerPort": 9009}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 9009}, "initialDelaySeconds": 0, "periodSeconds": 2},
        "resources": {
            "requests": {"cpu": "1000m", "memory": "2048Mi"},
            "limits": {"vendor.com/npu": 2, "memory": "2048Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "work", "mountPath": "/work", "readOnly": False},
            {"name": "cfg", "mountPath": "/cfg"},
        ],
    }
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "nodeSelector": {},
        "imagePullSecrets": [],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [{"name": "fetch", "image": "registry/runtime:1", "args": []}],
        "containers": [container],
        "tolerations": [{"key": "npu", "operator": "Exists"}],
        "terminationGracePeriodSeconds": 30,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
        ],
        "volumes": [
            {"name": "work", "emptyDir": {"sizeLimit": "1024Mi"}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "cfg", "configMap": {"name": "cfg"}},
            {
                "name": "token",
                "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "rma"}}]},
            },
        ],
    }
    body: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": namespace, "name": "d", "labels": labels},
        "spec": {
            "replicas": 1,
            "minReadySeconds": 0,
            "paused": False,
            "progressDeadlineSeconds": 600,
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    body["spec"].update(changes)
    return body


def service(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": "s"},
        "spec": {
            "selector": {"app": "x"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "report", "port": 9009}],
            "publishNotReadyAddresses": False,
        },
    }


def job(namespace: str) -> dict[str, Any]:
    template = copy.deepcopy(deployment(namespace)["spec"]["template"])
    template["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": namespace, "name": "j"},
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": 600,
            "ttlSecondsAfterFinished": 3600,
            "template": template,
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64, 70]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                ]
            },
        },
    }


def config_map(namespace: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": "c"}, "data": data}


class TestUnchanged:
    @pytest.mark.parametrize("make", [deployment, service, job, config_map], ids=lambda make: make.__name__)
    async def test_what_the_server_made_of_an_intent_covers_it(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object, make: Any
    ) -> None:
        (made,) = await apply_children(counting, stores, [make(api_namespace)], owner=owner)
        assert made.action is Action.CREATED
        assert differences(made.object, make(api_namespace)) == ()

    async def test_costs_no_request(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        desired = [deployment(api_namespace), service(api_namespace), job(api_namespace), config_map(api_namespace)]
        await apply_children(counting, stores, desired, owner=owner)
        counting.take()
        for _ in range(3):
            results = await apply_children(counting, stores, desired, owner=owner)
            assert [result.action for result in results] == [Action.UNCHANGED] * 4
        assert counting.take() == []

    async def test_also_where_the_server_writes_it_in_a_way_nobody_foresaw(
        self, counting: Counting, stores: Stores, api_namespace: str
    ) -> None:
        # Zero means "the default" here, and the server writes the default down.
        desired = [deployment(api_namespace)]
        desired[0]["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["failureThreshold"] = 0
        (made,) = await apply_children(counting, stores, desired)
        assert [path[-1] for path, _ in differences(made.object, desired[0])] == ["failureThreshold"]
        counting.take()
        (result,) = await apply_children(counting, stores, desired)
        assert (result.action, counting.take()) == (Action.UNCHANGED, [])
        # What somebody else makes of that very field is still mended.
        edited = deployment(api_namespace)
        edited["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["failureThreshold"] = 9
        stores.put(await counting.apply(DEPLOYMENTS, edited, field_manager="somebody"))
        counting.take()
        (result,) = await apply_children(counting, stores, desired)
        assert (result.action, counting.take()) == (Action.UPDATED, ["PATCH"])
        assert result.object["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["failureThreshold"] == 3


class TestMending:
    async def change(self, client: HttpClient, resource: Resource, obj: Mapping[str, Any]) -> dict[str, Any]:
        return await client.apply(resource, obj, field_manager="somebody")

    async def test_a_field_of_ours_that_was_changed_is_put_back(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        desired = [deployment(api_namespace)]
        await apply_children(counting, stores, desired, owner=owner)
        edited = deployment(api_namespace, replicas=7)
        edited["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
        stores.put(await self.change(counting, DEPLOYMENTS, edited))
        (result,) = await apply_children(counting, stores, desired, owner=owner)
        assert result.action is Action.UPDATED
        live = await counting.get(DEPLOYMENTS, api_namespace, "d")
        assert live["spec"]["replicas"] == 1
        assert live["spec"]["template"]["spec"]["containers"][0]["image"] == "registry/engine:1"

    async def test_what_others_added_stays_and_is_no_reason_to_write(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        desired = [deployment(api_namespace)]
        await apply_children(counting, stores, desired, owner=owner)
        theirs: dict[str, Any] = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "namespace": api_namespace,
                "name": "d",
                "labels": {"team": "a"},
                "annotations": {"note": "n"},
                "finalizers": ["example.com/theirs"],
            },
            "spec": {
                "revisionHistoryLimit": 3,
                "selector": {"matchLabels": {"app": "x"}},
                "template": {
                    "metadata": {"annotations": {"injected": "yes"}},
                    "spec": {"containers": [{"name": "sidecar", "image": "sidecar:1"}]},
                },
            },
        }
        stores.put(await self.change(counting, DEPLOYMENTS, theirs))
        counting.take()
        (result,) = await apply_children(counting, stores, desired, owner=owner)
        assert (result.action, counting.take()) == (Action.UNCHANGED, [])
        # Also a real change of ours leaves theirs alone.
        await apply_children(counting, stores, [deployment(api_namespace, replicas=2)], owner=owner)
        live = await counting.get(DEPLOYMENTS, api_namespace, "d")
        names = {container["name"] for container in live["spec"]["template"]["spec"]["containers"]}
        assert names == {"engine", "sidecar"}
        assert live["metadata"]["labels"]["team"] == "a"
        assert live["spec"]["replicas"] == 2

    async def test_a_field_that_we_no_longer_set_is_removed(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        await apply_children(counting, stores, [config_map(api_namespace, a="1", b="2")], owner=owner)
        await apply_children(counting, stores, [config_map(api_namespace, a="1")], owner=owner)
        assert (await counting.get(CONFIGMAPS, api_namespace, "c"))["data"] == {"a": "1"}

    async def test_a_hash_that_was_tampered_with_costs_one_apply(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        desired = [config_map(api_namespace, a="1")]
        await apply_children(counting, stores, desired, owner=owner)
        metadata = {"namespace": api_namespace, "name": "c", "annotations": {ANNOTATION_APPLIED_HASH: "0"}}
        stores.put(
            await self.change(counting, CONFIGMAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        )
        counting.take()
        await apply_children(counting, stores, desired, owner=owner)
        await apply_children(counting, stores, desired, owner=owner)
        assert counting.take() == ["PATCH"]


class TestForeign:
    async def test_an_object_that_we_did_not_make_is_not_taken_over(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        theirs = await counting.create(CONFIGMAPS, config_map(api_namespace, theirs="yes"), field_manager="somebody")
        with pytest.raises(Terminal, match="was not made by RM Abstract") as caught:
            await apply_children(counting, stores, [config_map(api_namespace, ours="yes")], owner=owner)
        assert caught.value.reason == "NameTaken"
        live = await counting.get(CONFIGMAPS, api_namespace, "c")
        assert live["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]

    @pytest.mark.parametrize("known", [True, False])
    async def test_nor_is_the_child_of_another_owner(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object, known: bool
    ) -> None:
        await apply_children(counting, stores, [config_map(api_namespace, a="1")], owner=owner)
        if not known:
            stores[CONFIGMAPS].replace([], stores[CONFIGMAPS].resource_version or "0")
            stores = Stores([Store(CONFIGMAPS)])
        other = {**owner, "metadata": {**owner["metadata"], "uid": "another"}}
        with pytest.raises(Terminal, match="belongs to ConfigMap owner"):
            await apply_children(counting, stores, [config_map(api_namespace, a="2")], owner=other)

    async def test_a_child_of_ours_that_the_store_does_not_know_yet_is_adopted(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        await apply_children(counting, stores, [config_map(api_namespace, a="1")], owner=owner)
        fresh = Stores([Store(CONFIGMAPS)])
        (result,) = await apply_children(counting, fresh, [config_map(api_namespace, a="1")], owner=owner)
        assert result.action is Action.UPDATED
        assert fresh[CONFIGMAPS].get(api_namespace, "c") is not None


class TestMarks:
    async def test_children_bear_label_owner_and_manager(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        await apply_children(counting, stores, [config_map(api_namespace)], owner=owner)
        live = await counting.get(CONFIGMAPS, api_namespace, "c")
        assert live["metadata"]["labels"] == {LABEL_MANAGED_BY: MANAGED_BY}
        (reference,) = live["metadata"]["ownerReferences"]
        assert (reference["uid"], reference["controller"]) == (owner["metadata"]["uid"], True)
        (managed,) = live["metadata"]["managedFields"]
        assert (managed["manager"], managed["operation"]) == (FIELD_MANAGER, "Apply")

    async def test_an_owner_cannot_own_across_namespaces(
        self, counting: Counting, stores: Stores, owner: Object
    ) -> None:
        with pytest.raises(ValueError, match="must be in its owner's namespace"):
            await apply_children(counting, stores, [config_map("default")], owner=owner)

    async def test_what_the_schema_does_not_know_is_terminal(
        self, counting: Counting, stores: Stores, api_namespace: str, owner: Object
    ) -> None:
        with pytest.raises(Invalid, match=r"spec\.replicaz"):
            await apply_children(counting, stores, [deployment(api_namespace, replicaz=1)], owner=owner)
        assert counting.take().count("PATCH") == 1, "it is not tried again"


class TestStatus:
    @pytest.fixture
    async def profile(self, counting: Counting, api_namespace: str) -> Any:
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": api_namespace, "name": "st"},
            "spec": deployment(api_namespace)["spec"],
        }
        return await counting.create(DEPLOYMENTS, body, field_manager="tests")

    async def test_is_written_once_and_what_it_lacks_is_removed(
        self, counting: Counting, stores: Stores, profile: dict[str, Any]
    ) -> None:
        key = profile["metadata"]["namespace"], "st"
        counting.take()
        assert await write_status(counting, stores, profile, {"replicas": 2, "readyReplicas": 1})
        known = stores[DEPLOYMENTS].get(*key)
        assert known is not None
        assert not await write_status(counting, stores, known, {"replicas": 2, "readyReplicas": 1})
        assert counting.take() == ["PATCH"]
        assert await write_status(counting, stores, known, {"replicas": 2})
        live = await counting.get(DEPLOYMENTS, *key)
        assert live["status"] == {"replicas": 2}
        assert live["metadata"]["generation"] == profile["metadata"]["generation"]

    async def test_is_not_written_to_a_successor_of_the_same_name(
        self, counting: Counting, stores: Stores, profile: dict[str, Any]
    ) -> None:
        namespace = profile["metadata"]["namespace"]
        await counting.delete(DEPLOYMENTS, namespace, "st")
        body = {**profile, "metadata": {"namespace": namespace, "name": "st"}, "status": {}}
        await counting.create(DEPLOYMENTS, body, field_manager="tests")
        with pytest.raises(Conflict):
            await write_status(counting, stores, profile, {"replicas": 1})

    async def test_of_an_object_that_is_gone_is_not_found(
        self, counting: Counting, stores: Stores, profile: dict[str, Any]
    ) -> None:
        await counting.delete(DEPLOYMENTS, profile["metadata"]["namespace"], "st")
        with pytest.raises(NotFound):
            await write_status(counting, stores, profile, {"replicas": 1})
