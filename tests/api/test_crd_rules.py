"""What the API server takes of the four kinds, what it refuses, and what it says then: all but CEL rules."""

from typing import Any

import pytest
from custom_objects import OF, SMALLEST, STEP, Object, apply, changed, custom_object
from rm_api.crd import KindInfo
from rm_api.kinds import KINDS
from rm_operator.kube.errors import ApiError
from rm_operator.kube.http import HttpClient

ALL_KINDS = pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)


METRIC: Object = {"name": "requests", "averageValue": 4}
M, A, P, B = "ModelDeployment", "AcceleratorResource", "BuildProfile", "BuildArtifact"
ENDPOINT: Object = {"endpoint": "https://api.example.com/v1", "models": [{"source": "hf://a/b", "name": "b-1"}]}
REMOTE: Object = {"type": "REMOTE", "remote": ENDPOINT, "resourceName": None, "runtime": None}
ACCEPTED: list[tuple[str, Object]] = [
    (A, REMOTE),
    (A, {**REMOTE, "cost": {"perMillionInputTokens": "0.5", "perMillionOutputTokens": "1.5"}}),
    (A, {**REMOTE, "remote": {**ENDPOINT, "credentialsSecretRef": "key", "requestsPerMinute": 60}}),
    (M, {"accelerators__types": ["REMOTE"]}),
    *((kind, {}) for kind in SMALLEST),
    (M, {"policy__type": "Cost", "replicas": 0, "requirements__dtype": "int4"}),
    (M, {"replicas": 10000, "autoscaling": {"minReplicas": 2, "maxReplicas": 4, "metrics": [METRIC]}}),
    (M, {"autoscaling": {"maxReplicas": 10000, "metrics": [METRIC, {**METRIC, "name": "vllm:num_requests_waiting"}]}}),
    (M, {"slo": {"ttftMs": 1, "tpotMs": 86400000}, "workload__requestsPerSecond": "2.5", "suspend": True}),
    (M, {"requirements__features": ["lora", "speculative-decoding"], "priorityClassName": "team.high"}),
    (M, {"rollout": {"deadlineSeconds": 30, "maxUnavailable": 10000, "maxSurge": 1}}),
    (M, {"rollout": {"deadlineSeconds": 86400}, "policy": {"type": "Weighted", "weights": {"cost": 0, "energy": 100}}}),
    (A, {"allowedNamespaces": ["team-a", "0"], "capability__features": ["lora"]}),
    (M, {"workload__concurrency": 65536, "workload__inputTokens": 1}),
    *((A, {"performance__memoryGiB": number}) for number in (0, 16, "16", "0.5", "999999999999.123456")),
    (A, {"cost__perHour": "0.40", "priority": -1000}),
    (A, {"performance__linkGBps": "450", "capability__maxTensorParallel": 8}),
    (P, {"shapes": {"tensorParallel": [1, 8], "pipelineParallel": [1, 2], "prefillChunk": [512]}}),
    (P, {"dtypeNames": [{"dtype": "fp16", "name": "float16"}, {"dtype": "int4", "name": "q4_k"}]}),
    (B, {"shape": {"tensorParallel": 2, "pipelineParallel": 1024, "prefillChunk": 1}, "dtypeName": "float16"}),
    *((P, {"resources__cpu": 2, "resources__memory": size}) for size in ("4Gi", "512Ki", "1k", "1.5G", 4096)),
    (P, {"scratch": 10**9, "steps": [{**STEP, "resources": {"cpu": "500m"}}]}),
    (P, {"exitCodes": [{"code": 3, "meaning": "Transient"}], "scratch": "500Mi", "timeoutSeconds": 10}),
]  # fmt: skip

REFUSED: list[tuple[str, Object, str]] = [
    (A, {"resourceName": None, "deviceClassName": "a" * 64}, "spec.deviceClassName: Too long"),
    (A, {"resourceName": None, "deviceClassName": "NPU"}, "spec.deviceClassName"),
    (M, {"model": None}, "spec.model: Required value"),
    (M, {"model__source": None}, "spec.model.source: Required value"),
    (M, {"model__source": "hf://acme/my model"}, "spec.model.source"),
    (M, {"model__source": "hf://" + "a" * 2048}, "spec.model.source: Too long"),
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
    *(
        (M, {"policy__type": other}, f'Unsupported value: "{other}": supported values: "Latency"')
        for other in ("latency", "COST", "weighted", "Hybrid")
    ),
    *((M, {"policy__weights__cost": weight}, "spec.policy.weights.cost") for weight in (-1, 101, 1.5, "1")),
    *((M, {"rollout__strategy": other}, 'supported values: "Surge", "InPlace"') for other in ("surge", "Recreate")),
    (M, {"rollout__maxUnavailable": -1}, "should be greater than or equal to 0"),
    (M, {"rollout__maxSurge": 0}, "should be greater than or equal to 1"),
    (M, {"rollout__maxSurge": "25%"}, "spec.rollout.maxSurge: expected numeric"),
    (M, {"rollout__deadlineSeconds": 29}, "should be greater than or equal to 30"),
    (M, {"rollout__deadlineSeconds": 86401}, "should be less than or equal to 86400"),
    (M, {"suspend": "yes"}, "spec.suspend: expected boolean"),
    (M, {"priorityClassName": "High"}, "spec.priorityClassName"),
    *((M, {"slo": {name: 0}}, f"spec.slo.{name}") for name in ("ttftMs", "tpotMs")),
    (M, {"slo__ttftMs": "0.5"}, "spec.slo.ttftMs: expected numeric"),
    *((M, {"workload__requestsPerSecond": number}, "requestsPerSecond") for number in (0.5, "-1", "1/s", 10**12)),
    (M, {"requirements__features": ["a", "a"]}, "duplicate entries for key"),
    (M, {"requirements__features": ["two words"]}, "spec.requirements.features[0]"),
    (M, {"autoscaling": {"metrics": [METRIC]}}, "spec.autoscaling.maxReplicas: Required value"),
    (M, {"autoscaling": {"maxReplicas": 2}}, "spec.autoscaling.metrics: Required value"),
    (M, {"autoscaling": {"maxReplicas": 2, "metrics": []}}, "should have at least 1 items"),
    (M, {"autoscaling": {"maxReplicas": 2, "metrics": [METRIC, METRIC]}}, "duplicate entries for key"),
    (M, {"autoscaling": {"maxReplicas": 2, "metrics": [{**METRIC, "name": "a/b"}]}}, "autoscaling.metrics[0].name"),
    (M, {"autoscaling": {"minReplicas": 0, "maxReplicas": 2, "metrics": [METRIC]}}, "spec.autoscaling.minReplicas"),
    (M, {"autoscaling": {"maxReplicas": 10001, "metrics": [METRIC]}}, "should be less than or equal to 10000"),
    # In the models, for what is pure; nothing in a cluster acts on them.
    (P, {"target__type": "REMOTE"}, 'Unsupported value: "REMOTE"'),
    (A, {"type": "REMOTE"}, "REMOTE, which has remote instead"),
    (A, {"remote": ENDPOINT}, "remote is for type REMOTE"),
    (A, {"runtime": None}, "runtime is required for every type but REMOTE"),
    (A, {**REMOTE, "runtime": {"plugin": "p", "image": "i"}}, "and neither runtime nor cost.perHour"),
    (A, {**REMOTE, "cost": {"perHour": "1"}}, "and neither runtime nor cost.perHour"),
    *(
        (A, {**REMOTE, "remote": {**ENDPOINT, "endpoint": url}}, "spec.remote.endpoint")
        for url in ("https://user:key@api.example.com/v1", "https://api.example.com/v1?key=a", "ftp://a.example", "/v1")
    ),
    (A, {"remote": {**ENDPOINT, "models": []}}, "should have at least 1 items"),
    (A, {"remote": {**ENDPOINT, "endpoint": "http://a.example", "credentialsSecretRef": "s"}}, "over TLS only"),
    (A, {"cost": {"currency": "EUR"}}, "cost has perHour"),
    *((A, {"provisioning__mode": mode}, 'supported values: "Static", "Elastic"') for mode in ("elastic", "Auto")),
    (A, {"provisioning": {"mode": "Elastic", "maxDevices": 0}}, "should be greater than or equal to 1"),
    (A, {"provisioning": {"mode": "Elastic", "expectedSeconds": 86401}}, "should be less than or equal to 86400"),
    (A, {"allowedNamespaces": ["Team_A"]}, "spec.allowedNamespaces[0]"),
    (A, {"allowedNamespaces": ["a", "a"]}, "duplicate entries for key"),
    (A, {"nodeSelector": {"a": "two words"}}, "spec.nodeSelector.a"),
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
    (P, {"steps": []}, "should have at least 1 items"),
    (P, {"steps": [STEP, STEP]}, "duplicate entries for key"),
    (P, {"steps": [{**STEP, "name": "Compile"}]}, "spec.steps[0].name"),
    (P, {"steps": [{**STEP, "command": []}]}, "should have at least 1 items"),
    (P, {"interface": "Shell"}, 'Unsupported value: "Shell"'),
    (P, {"timeoutSeconds": 9}, "should be greater than or equal to 10"),
    (P, {"scratch": "much"}, "spec.scratch"),
    (P, {"exitCodes": [{"code": 0, "meaning": "Transient"}]}, "should be greater than or equal to 1"),
    (P, {"exitCodes": [{"code": 3, "meaning": "Fine"}]}, 'Unsupported value: "Fine"'),
    (P, {"shapes__sequence": [0]}, "should be greater than or equal to 1"),
    (P, {"shapes__tensorParallel": [0]}, "should be greater than or equal to 1"),
    (P, {"shapes__tensorParallel": [2, 2]}, "duplicate entries for key"),
    (P, {"shapes__pipelineParallel": [1025]}, "should be less than or equal to 1024"),
    (P, {"shapes__prefillChunk": ["512"]}, "expected numeric"),
    (P, {"dtypeNames": [{"dtype": "fp16", "name": "a b"}]}, "spec.dtypeNames[0].name"),
    (P, {"dtypeNames": [{"dtype": "fp16", "name": "a"}, {"dtype": "fp16", "name": "b"}]}, "duplicate entries for key"),
    (A, {"capability__maxTensorParallel": 0}, "should be greater than or equal to 1"),
    (B, {"shape": {"tensorParallel": 1}}, "should be greater than or equal to 2"),
    (P, {"supports__dtypes": ["fp16", "fp16"]}, "duplicate entries for key"),
    (P, {"resources__cpu": -1}, "spec.resources.cpu"),
    *((P, {"resources__memory": size}, "spec.resources.memory") for size in ("4 GiB", "4ki", "4K", "1e3")),
    (B, {"key": "0" * 63}, "spec.key"),
    (B, {"model__weightsDigest": "md5:0"}, "spec.model.weightsDigest"),
    (B, {"keySchema": 0}, "should be greater than or equal to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes"), ACCEPTED)
async def test_accepted(client: HttpClient, api_namespace: str, kind: str, changes: Object) -> None:
    spec = changed(kind, **changes)
    stored = (await apply(client, custom_object(kind, spec, api_namespace)))["spec"]
    # What was written is there, and what was left out is the same to the operator's models as to the API server.
    assert _covers(stored, spec)
    assert OF[kind].spec.model_validate(stored) == OF[kind].spec.model_validate(spec)


def _covers(live: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return all(name in live and _covers(live[name], value) for name, value in wanted.items())
    if isinstance(wanted, list):
        return len(live) == len(wanted) and all(map(_covers, live, wanted))
    return bool(live == wanted)


@pytest.mark.parametrize(("kind", "changes", "said"), REFUSED)
async def test_refused(client: HttpClient, api_namespace: str, kind: str, changes: Object, said: str) -> None:
    with pytest.raises(ApiError) as refusal:
        await apply(client, custom_object(kind, changed(kind, **changes), api_namespace))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (A, {"provisioning": {"mode": "Static"}}),
        (
            P,
            {
                "priority": 0, "interface": "CLI", "sharing": "Namespace", "binds": "Weights",
                "weightsInArtifact": True, "scratch": "20Gi", "timeoutSeconds": 3600,
            },
        ),
        (B, {"interface": "CLI", "weightsInArtifact": True, "scratch": "20Gi", "timeoutSeconds": 3600}),
    ],
)  # fmt: skip
async def test_defaults_are_few_and_written_out(
    client: HttpClient, api_namespace: str, kind: str, defaults: Object
) -> None:
    stored = await apply(client, custom_object(kind, SMALLEST[kind], api_namespace))
    assert {name: value for name, value in stored["spec"].items() if name not in SMALLEST[kind]} == defaults


@pytest.mark.parametrize(
    ("kind", "written", "stored"),
    [
        (
            M, {"policy": {"type": "Weighted", "weights": {"cost": 1}}},
            {"type": "Weighted", "weights": {"latency": 0, "throughput": 0, "energy": 0, "cost": 1}},
        ),
        (
            M, {"autoscaling": {"maxReplicas": 2, "metrics": [METRIC]}},
            {"minReplicas": 1, "maxReplicas": 2, "metrics": [METRIC]},
        ),
        (
            M, {"rollout": {"maxSurge": 2}},
            {"strategy": "Surge", "maxUnavailable": 0, "maxSurge": 2, "deadlineSeconds": 1800},
        ),
        (M, {"workload": {"concurrency": 2}}, {"inputTokens": 1024, "outputTokens": 256, "concurrency": 2}),
        (A, {"cost": {"perHour": 1}}, {"perHour": 1, "currency": "USD"}),
        (A, {"tolerations": [{"key": "a"}]}, [{"key": "a", "operator": "Equal"}]),
        (A, {"provisioning": {"mode": "Elastic"}}, {"mode": "Elastic"}),
    ],
)  # fmt: skip
async def test_what_is_begun_is_completed(
    client: HttpClient, api_namespace: str, kind: str, written: Object, stored: Any
) -> None:
    made = await apply(client, custom_object(kind, changed(kind, **written), api_namespace))
    (name,) = written
    assert made["spec"][name] == stored


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
