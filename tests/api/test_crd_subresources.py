"""What else the API server does for the four kinds: status, scale, `kubectl get` and `kubectl explain`."""

import json
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from custom_objects import SMALLEST, Object, apply, custom_object
from real_api import ApiServer
from rm_api import names
from rm_api.base import UNSERVED
from rm_api.crd import KindInfo
from rm_api.kinds import KINDS, MODEL_DEPLOYMENT
from rm_local_cluster import existing
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import of_kind

ALL_KINDS = pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
M, P = "ModelDeployment", "BuildProfile"

READY = {
    "type": "Ready", "status": "True", "reason": "Serving", "message": "all is well",
    "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
}  # fmt: skip
STATUS: dict[str, Object] = {
    "ModelDeployment": {
        "url": "http://x/v1", "placement": {"policy": "Latency", "chosen": "npu"}, "artifact": "a-1", "replicas": 3,
        "readyReplicas": 2, "selector": "rm-abstract.io/deployment=x", "conditions": [READY],
    },
    "AcceleratorResource": {
        "nodes": 7, "devices": {"total": 28, "healthy": 27, "allocated": 5}, "conditions": [READY],
    },
    "BuildProfile": {"artifacts": 11, "conditions": [READY]},
    "BuildArtifact": {
        "attempts": 13, "referrerCount": 17, "sizeBytes": 12345, "location": "store/a@sha256:0", "conditions": [READY],
    },
}  # fmt: skip


@ALL_KINDS
async def test_the_status_is_written_apart_from_the_spec(
    client: HttpClient, api_namespace: str, info: KindInfo
) -> None:
    made = await apply(client, custom_object(info.kind, SMALLEST[info.kind], api_namespace))
    assert "status" not in made, "the API server fills in no status"
    resource = of_kind(info)
    written = await client.apply_status(resource, made, STATUS[info.kind])
    assert written["status"] == STATUS[info.kind]
    assert (written["spec"], written["metadata"]["generation"]) == (made["spec"], made["metadata"]["generation"])
    once_more = custom_object(info.kind, SMALLEST[info.kind], api_namespace, made["metadata"]["name"])
    again = await apply(client, {**once_more, "status": {"conditions": []}})
    assert again["status"] == STATUS[info.kind], "a write of the spec leaves the status"


class Kubectl:
    """kubectl against the tests' own API server."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(existing.tools(print)[0]), "--kubeconfig", str(kubeconfig)]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def kubectl(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    return Kubectl(api_server.kubeconfig(tmp_path_factory.mktemp("kubectl") / "kubeconfig"))


def _at(obj: Object, path: str) -> str:
    if "conditions[?" in path:
        return str(READY[path.rpartition(".")[2]])
    place: Any = obj
    for name in path.strip(".").split("."):
        place = (place or {}).get(name)
    return "<none>" if place is None else json.dumps(place) if isinstance(place, list) else str(place)


@ALL_KINDS
async def test_printer_columns_show_what_the_object_says(
    client: HttpClient, api_namespace: str, kubectl: Kubectl, info: KindInfo
) -> None:
    spec = deepcopy(SMALLEST[info.kind])
    if info.kind == P:
        spec["target"]["products"] = ["X1"]
    obj = await apply(client, custom_object(info.kind, spec, api_namespace))
    obj = await client.apply_status(of_kind(info), obj, STATUS[info.kind])
    header, line = kubectl(
        "get", info.short_names[0], obj["metadata"]["name"], "-n", api_namespace, "-o", "wide"
    ).splitlines()
    starts = [header.index(f" {column.name.upper()} ".rstrip()) + 1 if column is info.columns[-1]
              else header.index(f" {column.name.upper()} ") + 1 for column in info.columns if column.name]  # fmt: skip
    order = sorted(zip(starts, info.columns, strict=True), key=lambda each: each[0])
    ends = [start for start, _ in order[1:]] + [len(line)]
    shown = {column.name: line[start:end].strip() for (start, column), end in zip(order, ends, strict=True)}
    shown.pop("Age")
    assert shown == {column.name: _at(obj, column.json_path) for column in info.columns if column.name != "Age"}


async def test_the_scale_subresource_reads_and_writes_replicas(
    client: HttpClient, api_namespace: str, kubectl: Kubectl
) -> None:
    obj = await apply(client, custom_object(M, SMALLEST[M], api_namespace))
    name = obj["metadata"]["name"]
    await client.apply_status(of_kind(MODEL_DEPLOYMENT), obj, STATUS[M])
    path = f"/apis/{names.API_VERSION}/namespaces/{api_namespace}/modeldeployments/{name}/scale"
    scale = json.loads(kubectl("get", "--raw", path))
    assert scale["spec"] == {"replicas": 1}
    assert scale["status"] == {"replicas": 3, "selector": "rm-abstract.io/deployment=x"}
    kubectl("scale", f"mdep/{name}", "-n", api_namespace, "--replicas=5")
    stored = await client.get(of_kind(MODEL_DEPLOYMENT), api_namespace, name)
    assert stored["spec"]["replicas"] == 5
    assert stored["metadata"]["generation"] == 2


@ALL_KINDS
def test_kubectl_explains_every_field(kubectl: Kubectl, info: KindInfo) -> None:
    for part, model in (("spec", info.spec), ("status", info.status)):
        explained = " ".join(kubectl("explain", f"{info.plural}.{part}").split())
        assert " ".join(str(model.__doc__).split()) in explained
        for name, field in model.model_fields.items():
            if UNSERVED.items() <= (field.json_schema_extra or {}).items():
                continue
            assert f" {field.alias or name} <" in explained
            assert " ".join(str(field.description).split()) in explained
