"""Nodes, claims and slices in a real API server, and the rights that documents promise to be enough."""

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import Any, Self

from real_api import START_SECONDS, ApiServer, eventually
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import Resource

NAMESPACES = Resource("", "v1", "namespaces", "Namespace", False)
NODES = Resource("", "v1", "nodes", "Node", False)
ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount", True)
ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", False)
BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", False)
SLICES = Resource("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", False)
CLAIMS = Resource("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim", True)

DRIVER = "simulator.rm-abstract.io"
ACCOUNT = "dra-driver"
DOCUMENT = Path(__file__).parents[3] / "docs" / "dra.md"

Json = dict[str, Any]


def documented_rules() -> list[Json]:
    """The rules of the ClusterRole, as the document's table says them."""
    rules = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1].startswith("`") and cells[0].strip("`").split("/")[-1] in (
            "resourceslices", "resourceclaims", "nodes",
        ):  # fmt: skip
            group, _, resource = cells[0].strip("`").rpartition("/")
            verbs = [verb.strip(" `") for verb in cells[1].split(",")]
            rules.append({"apiGroups": [group], "resources": [resource], "verbs": verbs})
    assert len(rules) == 3
    return rules


def install_rights(server: ApiServer) -> None:
    """The account of the driver, with what the document names and nothing else."""
    asyncio.run(prepare(server))


async def prepare(server: ApiServer) -> None:
    """Waits until it serves, and makes the account."""
    async with HttpClient(server.connection()) as client:

        async def ready() -> bool:
            try:
                await client.get(NAMESPACES, None, "default")
            except ApiError:
                return False
            return True

        await eventually(ready, "the API server serves", START_SECONDS)
        subject = {"kind": "ServiceAccount", "namespace": "default", "name": ACCOUNT}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT}
        for resource, body in (
            (ACCOUNTS, {"metadata": {"name": ACCOUNT, "namespace": "default"}}),
            (ROLES, {"metadata": {"name": ACCOUNT}, "rules": documented_rules()}),
            (BINDINGS, {"metadata": {"name": ACCOUNT}, "subjects": [subject], "roleRef": role}),
        ):
            whole = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
            await client.create(resource, whole, field_manager="tests")


class Cluster:
    """One node and one namespace, both with names of their own."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.client = HttpClient(server.connection())
        self.node = f"node-{secrets.token_hex(4)}.example"
        self.namespace = f"t-{secrets.token_hex(4)}"

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        await self.make_node()
        await self._create(
            NAMESPACES,
            {"metadata": {"name": self.namespace, "labels": {"resource.kubernetes.io/admin-access": "true"}}},
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        for each in await self.slices():
            await self.client.delete(SLICES, None, each["metadata"]["name"])
        await self.client.__aexit__(None, None, None)

    async def _create(self, resource: Resource, body: Json) -> Json:
        whole = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        return await self.client.create(resource, whole, field_manager="tests")

    async def make_node(self) -> str:
        """Makes the node, anew if it is there; its UID."""
        with contextlib.suppress(ApiError):
            await self.client.delete(NODES, None, self.node)
        made = await self._create(NODES, {"metadata": {"name": self.node}})
        return str(made["metadata"]["uid"])

    async def token(self) -> str:
        """A token of the driver's account, as the kubelet gets it for a pod."""
        path = f"/api/v1/namespaces/default/serviceaccounts/{ACCOUNT}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        return str((await self.raw("POST", path, body))["status"]["token"])

    async def raw(self, method: str, path: str, body: Json | None = None) -> Json:
        """A request that the client has no method for."""
        import aiohttp

        connection = self.server.connection()
        headers = {"Authorization": f"Bearer {await connection.credentials.token()}"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, f"{self.server.url}{path}", json=body, headers=headers, ssl=connection.tls
            ) as answer,
        ):
            found: Json = await answer.json()
            assert answer.status < 300, found
            return found

    async def slices(self) -> list[Json]:
        """All ResourceSlices of the node, by name."""
        items = (await self.client.list(SLICES)).items
        ours = [each for each in items if each["spec"].get("nodeName") == self.node]
        return sorted(ours, key=lambda each: str(each["metadata"]["name"]))

    async def devices(self) -> dict[str, Json]:
        """What the slices say, by the device's name."""
        return {device["name"]: device for each in await self.slices() for device in each["spec"].get("devices") or ()}

    async def claim(self, devices: dict[str, list[str]], *, name: str = "", **result: object) -> Json:
        """A claim to which the scheduler has allocated the devices: names in the pool, by request."""
        named = name or f"claim-{secrets.token_hex(4)}"
        admin = bool(result.get("adminAccess"))
        requests = [
            {"name": each, "exactly": {"deviceClassName": "npu", "allocationMode": "ExactCount", "count": len(wanted)}}
            for each, wanted in devices.items()
        ]
        if admin:
            for request in requests:
                request["exactly"]["adminAccess"] = True  # type: ignore[index]
        body = {"metadata": {"name": named, "namespace": self.namespace}, "spec": {"devices": {"requests": requests}}}
        made = await self._create(CLAIMS, body)
        await self.allocate(made, devices, **result)
        return made

    async def allocate(self, claim: Json, devices: dict[str, list[str]], **result: object) -> None:
        """Writes the allocation into the claim's status."""
        results = [
            {"request": request, "driver": DRIVER, "pool": self.node, "device": device, **result}
            for request, names in devices.items()
            for device in names
        ]
        path = f"/apis/resource.k8s.io/v1/namespaces/{self.namespace}/resourceclaims/{claim['metadata']['name']}"
        now = await self.raw("GET", path)
        now["status"] = {"allocation": {"devices": {"results": results}}} if results else {}
        await self.raw("PUT", f"{path}/status", now)

    async def delete_claim(self, claim: Json) -> None:
        """Deletes it, with the finalizer that the scheduler has put on it where there is one."""
        await self.client.delete(CLAIMS, self.namespace, claim["metadata"]["name"])
