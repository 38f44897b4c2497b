"""What the API server takes of the four kinds, what it refuses, and what it says then."""

import secrets
from copy import deepcopy
from typing import Any

import pytest
from custom_objects import OF, SMALLEST, STEP, Object, apply, custom_object
from rm_api.crd import KindInfo
from rm_api.kinds import KINDS
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient

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
    stored = (await apply(client, custom_object(kind, spec, api_namespace)))["spec"]
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
        await apply(client, custom_object(kind, _with(kind, **changes), api_namespace))
    assert said in str(refusal.value)


@ALL_KINDS
async def test_names_leave_room_for_those_of_children(client: HttpClient, api_namespace: str, info: KindInfo) -> None:
    spec = SMALLEST[info.kind]
    await apply(client, custom_object(info.kind, spec, api_namespace, "n" * 42 + secrets.token_hex(4)))
    with pytest.raises(ApiError, match="the name may have 50 characters; names of children start with it"):
        await apply(client, custom_object(info.kind, spec, api_namespace, "n" * 43 + secrets.token_hex(4)))


async def test_an_artifact_cannot_be_changed(client: HttpClient, api_namespace: str) -> None:
    obj = custom_object(B, SMALLEST[B], api_namespace)
    await apply(client, obj)
    await apply(client, obj)
    with pytest.raises(ApiError, match="an artifact is what its name is the hash of; it cannot be changed"):
        await apply(client, {**obj, "spec": _with(B, format="other")})


async def test_the_smallest_deployment_gets_the_documented_defaults(client: HttpClient, api_namespace: str) -> None:
    stored = await apply(client, custom_object(M, {"model": {"source": "hf://acme/model"}}, api_namespace))
    assert stored["spec"] == {
        "model": {"source": "hf://acme/model"},
        "policy": {"type": "Latency"},
        "workload": {"inputTokens": 1024, "outputTokens": 256, "concurrency": 8},
        "replicas": 1,
        "rollout": {"strategy": "Surge", "maxUnavailable": 0, "deadlineSeconds": 1800},
        "suspend": False,
    }


@ALL_KINDS
async def test_what_is_not_in_the_schema_is_refused_by_name(
    client: HttpClient, api_namespace: str, info: KindInfo
) -> None:
    with pytest.raises(ApiError, match="nonsense"):
        await apply(client, custom_object(info.kind, {**SMALLEST[info.kind], "nonsense": 1}, api_namespace))


def test_every_kind_is_tried() -> None:
    assert {kind for kind, _ in ACCEPTED} == {kind for kind, _, _ in REFUSED} == set(OF) == set(SMALLEST)
