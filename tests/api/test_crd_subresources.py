"""What else the API server does for the four kinds: status, scale, selecting, merging, `kubectl wait` and `explain`."""

import json
import subprocess
from pathlib import Path

import pytest
from custom_objects import SMALLEST, Object, apply, changed, custom_object
from real_api import ApiServer
from rm_api import names
from rm_api.base import UNSERVED
from rm_api.crd import KindInfo
from rm_api.kinds import KINDS, MODEL_DEPLOYMENT
from rm_local_cluster import existing
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import of_kind

ALL_KINDS = pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)
M = "ModelDeployment"

READY = {
    "type": "Ready", "status": "True", "reason": "Serving", "message": "all is well",
    "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
}  # fmt: skip
STATUS: dict[str, Object] = {
    "ModelDeployment": {
        "observedGeneration": 1, "url": "http://x/v1", "placement": {"policy": "Latency", "chosen": "npu"},
        "artifact": "a-1", "replicas": 3, "readyReplicas": 2, "selector": "rm-abstract.io/deployment=x",
        "conditions": [READY],
    },
    "AcceleratorResource": {
        "observedGeneration": 1, "nodes": 7, "devices": {"total": 28, "healthy": 27, "allocated": 5},
        "conditions": [READY],
    },
    "BuildProfile": {"observedGeneration": 1, "artifacts": 11, "conditions": [READY]},
    "BuildArtifact": {
        "observedGeneration": 1, "attempts": 13, "referrerCount": 17, "sizeBytes": 12345,
        "location": "store/a@sha256:0", "conditions": [READY],
    },
}  # fmt: skip


@ALL_KINDS
async def test_the_status_is_written_apart_from_the_spec(
    client: HttpClient, api_namespace: str, info: KindInfo
) -> None:
    made = await apply(client, custom_object(info.kind, SMALLEST[info.kind], api_namespace))
    assert made["status"] == {"observedGeneration": -1}, "nobody has looked at it yet"
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


async def test_an_autoscaler_and_replicas_coexist(client: HttpClient, api_namespace: str, kubectl: Kubectl) -> None:
    scaling = {"minReplicas": 2, "maxReplicas": 9, "metrics": [{"name": "requests", "averageValue": 4}]}
    obj = custom_object(M, changed(M, autoscaling=scaling), api_namespace)
    assert (await apply(client, obj))["spec"]["replicas"] == 1
    kubectl("scale", f"mdep/{obj['metadata']['name']}", "-n", api_namespace, "--replicas=7")
    again = await apply(client, {**obj, "spec": {**obj["spec"], "suspend": True}})
    assert again["spec"]["replicas"] == 7, "who leaves replicas out leaves them to the autoscaler"
    assert again["spec"]["autoscaling"] == scaling
    both = await apply(client, {**obj, "spec": {**obj["spec"], "replicas": 7}})
    assert (both["spec"]["replicas"], both["spec"]["autoscaling"]) == (7, scaling)


async def test_lists_merge_by_their_keys(client: HttpClient, api_namespace: str) -> None:
    def metric(name: str, value: int) -> Object:
        return {"name": name, "averageValue": value}

    obj = custom_object(M, changed(M, runtime__env=[{"name": "TZ", "value": "UTC"}]), api_namespace)
    obj["spec"]["autoscaling"] = {"maxReplicas": 9, "metrics": [metric("requests", 4)]}
    await apply(client, obj)
    other = {
        **obj,
        "spec": {
            "runtime": {"env": [{"name": "LOG_LEVEL", "value": "debug"}]},
            "autoscaling": {"metrics": [metric("tokens", 100)]},
        },
    }
    resource = of_kind(MODEL_DEPLOYMENT)
    merged = (await client.apply(resource, other, field_manager="another"))["spec"]
    assert [variable["name"] for variable in merged["runtime"]["env"]] == ["TZ", "LOG_LEVEL"]
    assert merged["autoscaling"]["metrics"] == [metric("requests", 4), metric("tokens", 100)]
    spec = changed(M, runtime__env=[], autoscaling={"maxReplicas": 9, "metrics": [metric("requests", 5)]})
    left = (await apply(client, {**obj, "spec": spec}))["spec"]
    assert left["runtime"]["env"] == [{"name": "LOG_LEVEL", "value": "debug"}]
    assert left["autoscaling"]["metrics"] == [metric("requests", 5), metric("tokens", 100)]


SELECTED: dict[str, tuple[Object, Object]] = {
    "ModelDeployment": (
        {"model__source": "hf://acme/other", "policy": {"type": "Cost"}, "buildProfile": "fast"},
        {"placement": {"policy": "Cost", "chosen": "npu"}},
    ),
    "AcceleratorResource": ({"type": "PIM", "vendor": "Someone Else"}, {}),
    "BuildProfile": ({"target": {"type": "FPGA", "vendor": "Nobody Else"}}, {}),
    "BuildArtifact": ({"profile": "fast", "key": "1" * 64}, {}),
}  # fmt: skip


@ALL_KINDS
async def test_every_field_to_select_by_selects(
    client: HttpClient, api_namespace: str, kubectl: Kubectl, info: KindInfo
) -> None:
    changes, status = SELECTED[info.kind]
    wanted = custom_object(info.kind, changed(info.kind, **changes), api_namespace)
    for obj in (wanted, custom_object(info.kind, SMALLEST[info.kind], api_namespace)):
        stored = await apply(client, obj)
    if status:
        await client.apply_status(of_kind(info), await client.get(of_kind(info), api_namespace, _name(wanted)), status)
    for path in info.selectable:
        value = {"spec": changed(info.kind, **changes), "status": status}
        for member in path.strip(".").split("."):
            value = value[member]
        found = kubectl("get", info.plural, "-n", api_namespace, "-o", "name", f"--field-selector={path[1:]}={value}")
        assert [line.rpartition("/")[2] for line in found.split()] == [_name(wanted)], path
        others = kubectl("get", info.plural, "-n", api_namespace, "-o", "name", f"--field-selector={path[1:]}!={value}")
        assert _name(stored) in others, path


def _name(obj: Object) -> str:
    return str(obj["metadata"]["name"])


async def test_kubectl_waits_for_ready(client: HttpClient, api_namespace: str, kubectl: Kubectl) -> None:
    obj = await apply(client, custom_object(M, SMALLEST[M], api_namespace))
    wait = ("wait", "--for=condition=Ready", f"mdep/{_name(obj)}", "-n", api_namespace)
    await client.apply_status(of_kind(MODEL_DEPLOYMENT), obj, {"conditions": [{**READY, "status": "False"}]})
    with pytest.raises(AssertionError, match="timed out waiting"):
        kubectl(*wait, "--timeout=1s")
    obj = await client.get(of_kind(MODEL_DEPLOYMENT), api_namespace, _name(obj))
    await client.apply_status(of_kind(MODEL_DEPLOYMENT), obj, {"conditions": [READY]})
    assert "condition met" in kubectl(*wait, "--timeout=60s")


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
