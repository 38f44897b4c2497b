"""Models in claims, with the scheduler of Kubernetes: a claim that no pod can have is told of by its deployment."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import real_api
from custom_objects import apply, custom_object
from real_api import NAMESPACES, ApiServer, eventually, free_port
from rm_local_cluster import build, families
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import MODEL_DEPLOYMENTS, NODES, PODS, Resource
from whole_operator import whole_operator

Object = dict[str, Any]
SECONDS = 180
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", True)
VOLUMES = Resource("", "v1", "persistentvolumes", "PersistentVolume", False)
SIZE = {"storage": "1Gi"}


@contextmanager
def scheduler(server: ApiServer, directory: Path) -> Iterator[None]:
    """kube-scheduler; fails if it ends by itself."""
    argv = (
        str(build.ensure([families.KUBERNETES], print)["kube-scheduler"]),
        f"--kubeconfig={server.kubeconfig(directory / 'scheduler.kubeconfig')}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port()}",
        f"--cert-dir={directory}",
    )
    log = directory / "kube-scheduler.log"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield
        assert process.poll() is None, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def pods_are_scheduled(api_server: ApiServer, tmp_path: Path) -> Iterator[None]:
    """Jobs get pods, and pods get nodes."""
    with ExitStack() as stack:
        stack.enter_context(real_api.controller_manager(api_server, tmp_path, "job-controller"))
        stack.enter_context(scheduler(api_server, tmp_path))
        yield


@asynccontextmanager
async def node_of(client: HttpClient, name: str) -> AsyncIterator[None]:
    """A node that takes pods, until the end of the block."""
    labels = {"kubernetes.io/hostname": name}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}}
    created = await client.create(NODES, node, field_manager="tests")
    room = {"cpu": "4", "memory": "8Gi", "pods": "10"}
    ready = {"type": "Ready", "status": "True", "reason": "Up", "message": ""}
    times = dict.fromkeys(("lastHeartbeatTime", "lastTransitionTime"), "2026-01-01T00:00:00Z")
    status = {"capacity": room, "allocatable": room, "conditions": [{**ready, **times}]}
    await client.apply_status(NODES, created, status)
    # Nobody is here to take the taint away that a new node has.
    taint = b'{"spec":{"taints":null}}'
    await client._request(
        "PATCH", NODES, NODES.path(None, name), body=taint, content_type="application/merge-patch+json"
    )
    try:
        yield
    finally:
        await client.delete(NODES, None, name)


async def _add_claim(client: HttpClient, namespace: str, name: str, node: str) -> None:
    """A claim that is bound to a volume which only ``node`` has."""
    modes = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    volume = f"{namespace}-{name}"
    bound = {"pv.kubernetes.io/bind-completed": "yes"}
    claim = await client.create(
        CLAIMS,
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace, "annotations": bound},
            "spec": {**modes, "volumeName": volume, "resources": {"requests": SIZE}},
        },
        field_manager="tests",
    )  # fmt: skip
    term = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    reference = {"kind": "PersistentVolumeClaim", "name": name, "namespace": namespace, "uid": claim["metadata"]["uid"]}
    await client.create(
        VOLUMES,
        {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
            "spec": {
                **modes, "capacity": SIZE, "local": {"path": "/models"}, "claimRef": reference,
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}},
            },
        },
        field_manager="tests",
    )  # fmt: skip
    await client.apply_status(CLAIMS, claim, {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": SIZE})


async def _deploy(client: HttpClient, namespace: str, name: str, source: str) -> None:
    await apply(client, custom_object("ModelDeployment", {"model": {"source": source}}, namespace, name))


async def _resolved(client: HttpClient, namespace: str, name: str) -> tuple[str, str]:
    """Reason and message of what is said of the model."""
    live = await client.get(MODEL_DEPLOYMENTS, namespace, name)
    for entry in (live.get("status") or {}).get("conditions") or []:
        if entry["type"] == "ModelResolved":
            return entry["reason"], entry["message"]
    return "", ""


@pytest.mark.usefixtures("pods_are_scheduled")
async def test_what_is_wrong_with_a_claim_is_in_the_deployments_condition(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    ns, other, node = api_namespace, f"{api_namespace}-other", f"{api_namespace}-node"
    await client.create(
        NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}}, field_manager="tests"
    )
    await _add_claim(client, other, "theirs", node)
    await _add_claim(client, ns, "far", "elsewhere")
    await _add_claim(client, ns, "near", node)
    said = {
        "missing": ("pvc://shelf/llms/tiny", 'persistentvolumeclaim "shelf" not found'),
        "foreign": ("pvc://theirs/llms/tiny", 'persistentvolumeclaim "theirs" not found'),
        "far": ("pvc://far/llms/tiny", "1 node(s) didn't match PersistentVolume's node affinity"),
    }
    async with whole_operator(api_server, ns), node_of(client, node):
        for name, (source, _) in said.items():
            await _deploy(client, ns, name, source)
        await _deploy(client, ns, "near", "pvc://near/llms/tiny")
        for name, (_, message) in said.items():

            async def told(name: str = name, message: str = message) -> bool:
                reason, found = await _resolved(client, ns, name)
                return reason == "Unschedulable" and found.startswith("no node takes the pod: ") and message in found

            await eventually(told, f"{name} says why", SECONDS)

        async def placed() -> bool:
            pods = (await client.list(PODS, ns)).items
            return [pod["spec"].get("nodeName") for pod in pods if "pvc://near" in str(pod["spec"])] == [node]

        await eventually(placed, "the pod that reads a claim of the node is on it", SECONDS)

        # A claim that is made later is waited for: nothing has to be deployed again.
        await _add_claim(client, ns, "shelf", node)

        async def begun() -> bool:
            return (await _resolved(client, ns, "missing")) == ("Resolving", "reading pvc://shelf/llms/tiny")

        await eventually(begun, "the pod has its claim", SECONDS)
