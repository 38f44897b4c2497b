"""What stands in the way of an object is said in its status and in an Event, once, and heals by itself."""

import asyncio
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest
from operators import model, running
from real_api import ApiServer, eventually
from rm_local_cluster import build, families
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS, MODEL_DEPLOYMENTS, Resource

POLICIES = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False
)
BINDINGS = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", False
)
QUOTAS = Resource("", "v1", "resourcequotas", "ResourceQuota", True)


async def conditions(client: HttpClient, namespace: str, name: str) -> dict[str, dict[str, Any]]:
    live = await client.get(MODEL_DEPLOYMENTS, namespace, name)
    return {entry["type"]: entry for entry in (live.get("status") or {}).get("conditions") or ()}


async def ready_says(client: HttpClient, namespace: str, name: str, status: str, reason: str) -> bool:
    ready = (await conditions(client, namespace, name)).get("Ready")
    return ready is not None and (ready["status"], ready["reason"]) == (status, reason)


class Policy:
    """Refuses ConfigMaps in one namespace, with a word that tells which."""

    def __init__(self, client: HttpClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self.name = f"no-children-{secrets.token_hex(4)}"

    async def install(self) -> None:
        rule = {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE"],
            "resources": ["configmaps"],
        }
        selector = {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}}
        spec = {
            "matchConstraints": {"namespaceSelector": selector, "resourceRules": [rule]},
            "validations": [{"expression": "false", "message": "house rule 7"}],
        }
        binding = {"policyName": self.name, "validationActions": ["Deny"]}
        for resource, body in ((POLICIES, spec), (BINDINGS, binding)):
            obj = {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {"name": self.name},
                "spec": body,
            }
            await self._client.create(resource, obj, field_manager="tests")
        await eventually(self.refuses, "the policy is in force", 90)

    async def remove(self) -> None:
        await self._client.delete(BINDINGS, None, self.name)
        await self._client.delete(POLICIES, None, self.name)
        await eventually(self._takes, "the policy is gone", 90)

    async def refuses(self) -> bool:
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": self._namespace, "name": f"probe-{secrets.token_hex(4)}"},
        }
        try:
            await self._client.create(CONFIGMAPS, body, field_manager="tests")
        except Exception as error:
            return "house rule 7" in str(error)
        return False

    async def _takes(self) -> bool:
        return not await self.refuses()


@pytest.mark.parametrize("status_first", [False, True])
async def test_a_policy_that_refuses_a_child_is_named_and_costs_two_attempts(
    api_server: ApiServer, client: HttpClient, api_namespace: str, tmp_path: Path, status_first: bool
) -> None:
    ns, policy = api_namespace, Policy(client, api_namespace)
    await policy.install()
    async with running(api_server, ns) as found:
        found.controller.status_first = status_first
        await client.create(MODEL_DEPLOYMENTS, model(ns, "m"), field_manager="tests")
        await eventually(lambda: ready_says(client, ns, "m", "False", "Refused"), "it is said")
        said = await conditions(client, ns, "m")
        assert "house rule 7" in said["Ready"]["message"]
        assert said["Stalled"]["status"] == "True"
        assert "Reconciling" not in said
        # It comes to rest: neither the status nor the attempts go on.
        await eventually(lambda: found.operator.queue.idle, "nothing is in line")
        await asyncio.sleep(1)
        version = (await client.get(MODEL_DEPLOYMENTS, ns, "m"))["metadata"]["resourceVersion"]
        calls = found.controller.calls.count(f"{ns}/m")
        assert calls <= 5
        await asyncio.sleep(3)
        assert (await client.get(MODEL_DEPLOYMENTS, ns, "m"))["metadata"]["resourceVersion"] == version
        assert found.controller.calls.count(f"{ns}/m") == calls

        # A person reads it where a person looks.
        described = await asyncio.to_thread(_describe, api_server, tmp_path, ns, "m")
        assert "house rule 7" in described.split("Events:")[0]
        assert "Warning  Refused" in described.split("Events:")[1]

        # When the policy is gone a change is enough, and everything that was said against it is gone.
        await policy.remove()
        await client.apply(MODEL_DEPLOYMENTS, model(ns, "m", replicas=2), field_manager="tests")
        await eventually(lambda: ready_says(client, ns, "m", "True", "Ready"), "it heals")
        assert "Stalled" not in await conditions(client, ns, "m")


def _describe(server: ApiServer, directory: Path, namespace: str, name: str) -> str:
    kubectl = build.ensure([families.KUBERNETES], print)["kubectl"]
    config = server.kubeconfig(directory / f"kubeconfig-{namespace}")
    argv = [str(kubectl), "--kubeconfig", str(config), "-n", namespace, "describe", "modeldeployment", name]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stdout


async def test_a_quota_that_is_used_up_is_said_and_passes(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    ns = api_namespace
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": ns, "name": "none"},
        "spec": {"hard": {"count/configmaps": "0"}},
    }
    made = await client.create(QUOTAS, quota, field_manager="tests")
    # The controller manager would count; here nobody else does.
    await client.apply_status(QUOTAS, made, {"hard": {"count/configmaps": "0"}, "used": {"count/configmaps": "0"}})
    async with running(api_server, ns):
        await client.create(MODEL_DEPLOYMENTS, model(ns, "m"), field_manager="tests")
        await eventually(lambda: ready_says(client, ns, "m", "False", "Refused"), "it is said")
        said = await conditions(client, ns, "m")
        assert "exceeded quota" in said["Ready"]["message"]
        assert "Stalled" not in said, "it is tried again"
        assert said["Reconciling"]["status"] == "True"
        await client.delete(QUOTAS, ns, "none")
        await eventually(lambda: ready_says(client, ns, "m", "True", "Ready"), "it heals by itself", 120)


async def test_a_defect_is_said_and_stays_with_its_object(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    ns, broken = api_namespace, True

    def fail(name: str) -> None:
        if broken and name == "bad":
            raise ZeroDivisionError("of all things")

    async with running(api_server, ns) as found:
        found.controller.on_decide = fail
        for name in ("bad", "good"):
            await client.create(MODEL_DEPLOYMENTS, model(ns, name), field_manager="tests")
        await eventually(lambda: ready_says(client, ns, "bad", "False", "InternalError"), "it is said")
        await eventually(lambda: ready_says(client, ns, "good", "True", "Ready"), "the other one is served")
        assert "of all things" in (await conditions(client, ns, "bad"))["Ready"]["message"]

        async def stalled() -> bool:
            # A change is tried at once, whatever the back-off.
            body = model(ns, "bad", replicas=1 + len(found.controller.calls))
            await client.apply(MODEL_DEPLOYMENTS, body, field_manager="tests")
            return "Stalled" in await conditions(client, ns, "bad")

        await eventually(stalled, "a defect that stays is no progress", 120)
        broken = False
        await client.apply(MODEL_DEPLOYMENTS, model(ns, "bad", replicas=1), field_manager="tests")
        await eventually(lambda: ready_says(client, ns, "bad", "True", "Ready"), "it heals", 120)
        assert {"Stalled", "Reconciling"}.isdisjoint(await conditions(client, ns, "bad"))
