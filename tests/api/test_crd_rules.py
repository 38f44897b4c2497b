"""What the API server takes of the four kinds, what it refuses, and what it says then."""

import json
import secrets
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from real_api import ApiServer
from rm_api import names
from rm_api.crd import KindInfo
from rm_api.kinds import ACCELERATOR_RESOURCE, BUILD_ARTIFACT, BUILD_PROFILE, KINDS, MODEL_DEPLOYMENT
from rm_local_cluster import existing
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import of_kind

Object = dict[str, Any]

DIGEST = "sha256:" + "a" * 64
STEP: Object = {"name": "compile", "image": "acme/cc:1", "command": ["cc", "${MODEL_DIR}"]}
TARGET: Object = {"type": "NPU", "vendor": "Acme"}
SMALLEST: dict[str, Object] = {
    "ModelDeployment": {"model": {"source": "hf://acme/model"}},
    "AcceleratorResource": {
        "type": "NPU", "vendor": "Acme", "product": "X1", "resourceName": "acme.com/npu",
        "runtime": {"plugin": "acme", "image": "acme/serve:1"},
    },
    "BuildProfile": {"target": TARGET, "steps": [STEP], "output": {"format": "acme"}},
    "BuildArtifact": {
        "key": "0" * 64, "keySchema": 1, "profile": "p", "target": TARGET, "dtype": "fp16", "format": "acme",
        "steps": [STEP],
        "model": {
            "source": "hf://acme/model", "revision": "main", "configDigest": DIGEST, "tensorsDigest": DIGEST,
            "weightsDigest": DIGEST, "architecture": "LlamaForCausalLM",
        },
    },
}  # fmt: skip
OF = {info.kind: info for info in KINDS}
ALL_KINDS = pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)


def _with(kind: str, **changes: Any) -> Object:
    """The smallest spec with members set by path (``a__b`` is a.b); None takes one away."""
    spec = deepcopy(SMALLEST[kind])
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = spec
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return spec


def _object(kind: str, spec: Object, namespace: str, name: str | None = None) -> Object:
    metadata = {"name": name or f"x-{secrets.token_hex(6)}"}
    if OF[kind].namespaced:
        metadata["namespace"] = namespace
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


async def _apply(client: HttpClient, obj: Object) -> Object:
    return await client.apply(of_kind(OF[obj["kind"]]), obj, field_manager="tests")


def _env(value: str) -> Object:
    return {**STEP, "env": [{"name": "A", "value": value}]}


M, A, P, B = "ModelDeployment", "AcceleratorResource", "BuildProfile", "BuildArtifact"
CPU = {"type": "CPU", "resourceName": None}
ACCEPTED: list[tuple[str, Object]] = [
    *((kind, {}) for kind in SMALLEST),
    (M, {"model__source": "oci://registry:5000/a/b:1"}),
    (M, {"model__source": "https://host/path/"}),
    (M, {"policy__type": "Cost", "replicas": 0, "requirements__dtype": "int4"}),
    (M, {"workload__concurrency": 65536, "workload__inputTokens": 1}),
    (M, {"runtime__env": [{"name": name, "value": "1"} for name in ("LOG_LEVEL", "TZ", "OMP_NUM_THREADS")]}),
    (A, CPU),
    (A, {"devicePlugin": {"image": "acme/plugin:1"}}),
    *((A, {"performance__memoryGiB": number}) for number in (0, 16, "16", "0.5", "999999999999.123456")),
    (A, {"cost__perHour": "0.40", "priority": -1000}),
    *(
        (P, {"steps": [{**STEP, "args": [text]}]})
        for text in ("", "$", "$$", "$HOME", "a$$${WORK}b", "$${ANY}", "${CACHE_DIR}${OUTPUT}", "5$ of\n${TP}")
    ),
    (P, {"steps": [_env("${WORK}/x and $${ANY}")]}),
    (P, {"steps": [{**STEP, "outputs": ["${OUTPUT}/*", "/rma/work/x"]}]}),
    (P, {"probe": {"image": "acme/cc:1", "command": ["check", "${OUTPUT}"]}}),
    (P, {"resources__cpu": 2, "resources__memory": "4Gi"}),
    (P, {"scratch": 10**9, "steps": [{**STEP, "resources": {"cpu": "500m"}}]}),
    (P, {"exitCodes": [{"code": 3, "meaning": "Transient"}], "scratch": "500Mi", "timeoutSeconds": 10}),
]  # fmt: skip

VARIABLE = "names a variable that does not exist; there are CACHE_DIR, "
REFUSED: list[tuple[str, Object, str]] = [
    (M, {"model": None}, "spec.model: Required value"),
    (M, {"model__source": None}, "spec.model.source: Required value"),
    *(
        (M, {"model__source": source}, "source must be hf://organisation/model, oci://registry/repository:tag or https")
        for source in ("s3://bucket/model", "http://host/path", "file:///etc/passwd", "hf:///model", "acme/model")
    ),
    (M, {"model__source": "hf://acme/my model"}, "spec.model.source"),
    (M, {"model__source": "hf://" + "a" * 2048}, "spec.model.source: Too long"),
    (M, {"runtime__env": [{"name": "LD_PRELOAD", "value": "x"}]}, "only LOG_LEVEL, TZ, OMP_NUM_THREADS"),
    (M, {"runtime__env": [{"name": "TZ"}, {"name": "TZ"}]}, "duplicate entries for key"),
    (M, {"policy__type": "Fastest"}, 'Unsupported value: "Fastest"'),
    (M, {"requirements__dtype": "fp64"}, 'Unsupported value: "fp64"'),
    (M, {"replicas": -1}, "should be greater than or equal to 0"),
    (M, {"replicas": 10001}, "should be less than or equal to 10000"),
    (M, {"replicas": 1.5}, "must be of type integer"),
    (M, {"workload__concurrency": 0}, "should be greater than or equal to 1"),
    (M, {"buildProfile": "Not A Name"}, "spec.buildProfile"),
    (M, {"model__credentialsSecretRef": "../x"}, "spec.model.credentialsSecretRef"),
    (M, {"accelerators__types": ["TPU"]}, 'Unsupported value: "TPU"'),
    (A, {"resourceName": None}, "resourceName is required for every type but CPU, which has none"),
    (A, {"type": "CPU"}, "resourceName is required for every type but CPU, which has none"),
    (A, {**CPU, "devicePlugin": {"image": "acme/plugin:1"}}, "devicePlugin needs the resourceName"),
    (A, {"type": "TPU"}, 'Unsupported value: "TPU"'),
    (A, {"resourceName": "npu"}, "spec.resourceName"),
    (A, {"runtime__image": "two words"}, "spec.runtime.image"),
    (A, {"priority": 1001}, "should be less than or equal to 1000"),
    (A, {"cost": {"perHour": 1, "currency": "euro"}}, "spec.cost.currency"),
    (A, {"devicePlugin": {"image": "i", "hostPaths": ["relative"]}}, "hostPaths"),
    *(
        (A, {"performance__memoryGiB": number}, "spec.performance.memoryGiB")
        for number in (1.5, -1, 10**12, "-1", "1e3", "", "16Gi", ".5", "1.", "NaN", True, "1" * 13, "0.1234567")
    ),
    *(
        (P, {"steps": [{**STEP, where: [text]}]}, f"a step {VARIABLE}")
        for where, text in (
            ("command", "${CC}"), ("args", "${}"), ("args", "$$${NOPE}"), ("args", "${WORK}${WORKS}"),
            ("args", "${WORK"), ("args", "${work}"), ("args", "${DEVICE_IDS}"), ("args", "\n${NOPE}"),
        )
    ),
    (P, {"steps": [_env("${HOME}/x")]}, f"a step's environment {VARIABLE}"),
    (P, {"steps": [STEP, {**_env("${OUTPUT"), "name": "b"}]}, f"a step's environment {VARIABLE}"),
    (P, {"steps": [{**STEP, "outputs": ["${OUT}/x"]}]}, f"a step's output {VARIABLE}"),
    (P, {"probe": {"image": "i", "command": ["check", "${OUT}"]}}, f"the probe {VARIABLE}"),
    (P, {"steps": []}, "should have at least 1 items"),
    (P, {"steps": [STEP, STEP]}, "duplicate entries for key"),
    (P, {"steps": [{**STEP, "name": "Compile"}]}, "spec.steps[0].name"),
    (P, {"steps": [{**STEP, "command": []}]}, "should have at least 1 items"),
    (P, {"interface": "Python"}, 'Unsupported value: "Python"'),
    (P, {"timeoutSeconds": 9}, "should be greater than or equal to 10"),
    (P, {"scratch": "much"}, "spec.scratch"),
    (P, {"exitCodes": [{"code": 0, "meaning": "Transient"}]}, "should be greater than or equal to 1"),
    (P, {"exitCodes": [{"code": 3, "meaning": "Fine"}]}, 'Unsupported value: "Fine"'),
    (P, {"shapes__sequence": [0]}, "should be greater than or equal to 1"),
    (P, {"supports__dtypes": ["fp16", "fp16"]}, "duplicate entries for key"),
    (P, {"resources__cpu": -1}, "spec.resources.cpu"),
    (P, {"resources__memory": "4 GiB"}, "spec.resources.memory"),
    (B, {"key": "0" * 63}, "spec.key"),
    (B, {"model__weightsDigest": "md5:0"}, "spec.model.weightsDigest"),
    (B, {"keySchema": 0}, "should be greater than or equal to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes"), ACCEPTED)
async def test_accepted(client: HttpClient, api_namespace: str, kind: str, changes: Object) -> None:
    spec = _with(kind, **changes)
    stored = (await _apply(client, _object(kind, spec, api_namespace)))["spec"]
    # What was written is there, and the operator's models read it.
    assert _covers(stored, spec)
    OF[kind].spec.model_validate(stored)


def _covers(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return all(name in live and _covers(live[name], value) for name, value in wanted.items())
    if isinstance(wanted, list):
        return len(live) == len(wanted) and all(map(_covers, live, wanted))
    return bool(live == wanted)


@pytest.mark.parametrize(("kind", "changes", "said"), REFUSED)
async def test_refused(client: HttpClient, api_namespace: str, kind: str, changes: Object, said: str) -> None:
    with pytest.raises(ApiError) as refusal:
        await _apply(client, _object(kind, _with(kind, **changes), api_namespace))
    assert said in str(refusal.value)


@ALL_KINDS
async def test_names_leave_room_for_those_of_children(client: HttpClient, api_namespace: str, info: KindInfo) -> None:
    spec = SMALLEST[info.kind]
    await _apply(client, _object(info.kind, spec, api_namespace, "n" * 42 + secrets.token_hex(4)))
    with pytest.raises(ApiError, match="the name may have 50 characters; names of children start with it"):
        await _apply(client, _object(info.kind, spec, api_namespace, "n" * 43 + secrets.token_hex(4)))


async def test_an_artifact_cannot_be_changed(client: HttpClient, api_namespace: str) -> None:
    obj = _object(B, SMALLEST[B], api_namespace)
    await _apply(client, obj)
    await _apply(client, obj)
    with pytest.raises(ApiError, match="an artifact is what its name is the hash of; it cannot be changed"):
        await _apply(client, {**obj, "spec": _with(B, format="other")})


async def test_the_smallest_deployment_gets_the_documented_defaults(client: HttpClient, api_namespace: str) -> None:
    stored = await _apply(client, _object(M, {"model": {"source": "hf://acme/model"}}, api_namespace))
    assert stored["spec"] == {
        "model": {"source": "hf://acme/model"},
        "policy": {"type": "Latency"},
        "workload": {"inputTokens": 1024, "outputTokens": 256, "concurrency": 8},
        "replicas": 1,
    }


@ALL_KINDS
async def test_what_is_not_in_the_schema_is_refused_by_name(
    client: HttpClient, api_namespace: str, info: KindInfo
) -> None:
    with pytest.raises(ApiError, match="nonsense"):
        await _apply(client, _object(info.kind, {**SMALLEST[info.kind], "nonsense": 1}, api_namespace))


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
    made = await _apply(client, _object(info.kind, SMALLEST[info.kind], api_namespace))
    assert "status" not in made, "the API server fills in no status"
    resource = of_kind(info)
    written = await client.apply_status(resource, made, STATUS[info.kind])
    assert written["status"] == STATUS[info.kind]
    assert (written["spec"], written["metadata"]["generation"]) == (made["spec"], made["metadata"]["generation"])
    again = await _apply(client, {**_object(info.kind, SMALLEST[info.kind], api_namespace, made["metadata"]["name"]),
                                  "status": {"conditions": []}})  # fmt: skip
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
    obj = await _apply(client, _object(info.kind, spec, api_namespace))
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
    obj = await _apply(client, _object(M, SMALLEST[M], api_namespace))
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
            assert f" {field.alias or name} <" in explained
            assert " ".join(str(field.description).split()) in explained


def test_every_kind_is_tried() -> None:
    kinds = {info.kind for info in (MODEL_DEPLOYMENT, ACCELERATOR_RESOURCE, BUILD_PROFILE, BUILD_ARTIFACT)}
    assert {kind for kind, _ in ACCEPTED} == {kind for kind, _, _ in REFUSED} == kinds == set(STATUS)
