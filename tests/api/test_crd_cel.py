"""Every CEL rule of the four kinds: what it refuses, where and with which words, and what it lets pass.

The rules are read from the CRDs: one without a row here fails, and so does a row whose rule is gone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from custom_objects import SMALLEST, STEP, Object, apply, changed, custom_object
from rm_operator.kube.errors import Invalid
from rm_operator.kube.http import HttpClient
from rm_operator.plan.key import artifact_name

CRDS = Path(__file__).parents[2] / "crds"
M, A, P, B = "ModelDeployment", "AcceleratorResource", "BuildProfile", "BuildArtifact"
KEY = "0123456789abcdef" * 4


FLAG: Object = {"name": "opt", "value": "3"}
INPUT: Object = {"name": "calibration", "source": "https://example.org/c.json", "digest": f"sha256:{KEY}"}


def _template(content: str) -> Object:
    return {"format": "JSON", "path": "c.json", "content": content}


@dataclass(frozen=True)
class Rule:
    """One rule and objects around it. Members are changes of the smallest spec, or a name where they are texts."""

    kind: str
    path: str
    """Where it stands; ``[]`` is any member of a list, and the whole object is empty."""
    message: str
    """How its message begins."""
    refused: tuple[Object | str, ...]
    accepted: tuple[Object | str, ...]


def _each(path: str, *values: Any) -> tuple[Object, ...]:
    return tuple({path: value} for value in values)


def _env(value: str) -> Object:
    return {"steps": [{**STEP, "env": [{"name": "A", "value": value}]}]}


def _steps(member: str, *texts: str) -> tuple[Object, ...]:
    return tuple({"steps": [{**STEP, member: [text]}]} for text in texts)


def _engine(*names: str) -> Object:
    return {"runtime__env": [{"name": name, "value": "1"} for name in names]}


def _metric(value: Any) -> Object:
    return {"autoscaling": {"maxReplicas": 2, "metrics": [{"name": "m", "averageValue": value}]}}


def _scaled(low: int | None, high: int) -> Object:
    bounds = {"maxReplicas": high} if low is None else {"minReplicas": low, "maxReplicas": high}
    return {"autoscaling": {**bounds, "metrics": [{"name": "m", "averageValue": 1}]}}


def _tolerations(*members: Object) -> tuple[Object, ...]:
    return tuple({"tolerations": [member]} for member in members)


LONGEST = "n" * 50
LABELS = ("a", "0", "llama-3-1-8b", "0-a", LONGEST)
NO_LABELS = ("llama-3.1-8b", "a.b")
ENDPOINT: Object = {"endpoint": "https://api.example.com/v1", "models": [{"source": "hf://a/b", "name": "b-1"}]}
REMOTE: Object = {"type": "REMOTE", "remote": ENDPOINT, "resourceName": None, "runtime": None}
CPU = {"type": "CPU", "resourceName": None}
BY_CLASS = {"resourceName": None, "deviceClassName": "npu.acme.com"}
PLUGIN = {"image": "acme/plugin:1"}
EFFICIENCIES = ((2, "2", "1.000001"), (0, 1, "0", "1", "0.4", "1.0"))
DECIMALS = ((0, "0", "0.0", "0.000000"), (1, "1", "0.5", "0.000001", 10))
VARIABLES = (
    ("${CC}", "${}", "$$${NOPE}", "${WORK}${WORKS}", "${WORK", "${work}", "${DEVICE_IDS}", "\n${NOPE}"),
    ("", "$", "$$", "$HOME", "a$$${WORK}b", "$${ANY}", "${CACHE_DIR}${OUTPUT}", "5$ of\n${TP}"),
)
HARMFUL = (
    "LD_PRELOAD", "PATH", "HTTP_PROXY", "VLLM_PLUGINS", "tz", "log_level", "LOG_LEVEL_FILE", "XLOG_LEVEL", "_LOG_LEVEL",
    "TZDIR",
)  # fmt: skip
RULES = (
    *(
        Rule(kind, "", "the name may have 50 characters", (f"{LONGEST}n",), (LONGEST,))
        for kind in (M, A, P)
    ),
    *(Rule(kind, "", "the name may have lower-case letters", NO_LABELS, LABELS) for kind in (A, P)),
    Rule(
        M, "", "the name may have lower-case letters, digits and hyphens only, and begins with a letter",
        (*NO_LABELS, "0", "0-a"), ("a", "llama-3-1-8b", LONGEST),
    ),
    Rule(
        M, "spec.model.source", "source must be hf://organisation/model, oci://registry/repository:tag, https",
        _each(
            "model__source", "http://host/path", "file:///etc/passwd", "hf:///model", "acme/model",
            "s3://BUCKET/model", "s3://b/model", "s3:///model", "s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/.",
            "s3://bucket/a?versionId=1", "s3://key:secret@bucket/a",
            "pvc://Claim/a", "pvc:///models/a", "pvc://-claim/a", "pvc://claim/a/../../b", "pvc://claim/./a",
            "pvc://claim//a", f"pvc://{'c' * 254}/a",
        ),
        _each(
            "model__source", "hf://acme/model", "oci://registry:5000/a/b:1", "https://host/path/",
            "s3://bucket", "s3://my.bucket-1/a/B_c/.hidden/..x/...", "s3://bucket/a/",
            "pvc://claim", "pvc://my.claim-1/models/Llama-3.1/", f"pvc://{'c' * 253}/a",
        ),
    ),
    Rule(
        M, "spec.policy", "type Weighted needs weights",
        (
            {"policy__type": "Weighted"}, {"policy__weights": {"cost": 1}},
            {"policy": {"type": "Cost", "weights": {"cost": 1}}},
        ),
        ({"policy": {"type": "Weighted", "weights": {"cost": 1}}}, {"policy__type": "Cost"}),
    ),
    Rule(
        M, "spec.policy.weights", "at least one weight must be above 0",
        _each("policy", *({"type": "Weighted", "weights": weights} for weights in ({}, {"energy": 0}))),
        _each(
            "policy",
            *({"type": "Weighted", "weights": {name: 100}} for name in ("latency", "throughput", "energy", "cost")),
        ),
    ),
    Rule(
        M, "spec.workload.requestsPerSecond", "requestsPerSecond must be above 0",
        _each("workload__requestsPerSecond", *DECIMALS[0]), _each("workload__requestsPerSecond", *DECIMALS[1]),
    ),
    Rule(
        M, "spec.autoscaling.metrics[].averageValue", "averageValue must be above 0",
        tuple(map(_metric, (0, "0", "0m", "0.0Ki"))), tuple(map(_metric, (1, "500m", "0.5", "10Ki", "10"))),
    ),
    Rule(
        M, "spec.autoscaling", "minReplicas is more than maxReplicas",
        (_scaled(2, 1), _scaled(10000, 9999)), (_scaled(1, 1), _scaled(None, 1), _scaled(2, 10000)),
    ),
    Rule(
        M, "spec.rollout", "strategy InPlace frees devices before it takes others",
        _each("rollout", {"strategy": "InPlace"}, {"strategy": "InPlace", "maxUnavailable": 0}),
        _each("rollout", {"strategy": "InPlace", "maxUnavailable": 1}, {"maxUnavailable": 0}, {}),
    ),
    Rule(
        M, "spec.rollout", "maxSurge is for strategy Surge",
        _each("rollout", {"strategy": "InPlace", "maxUnavailable": 1, "maxSurge": 1}),
        _each("rollout", {"strategy": "Surge", "maxSurge": 1}, {"maxSurge": 10000, "maxUnavailable": 1}),
    ),
    Rule(
        M, "spec.runtime.env", "only TZ and variables that end in LOG_LEVEL, LOGGING_LEVEL or NUM_THREADS",
        (_engine("TZ", "PATH"), *map(_engine, HARMFUL)),
        (_engine("LOG_LEVEL", "TZ", "OMP_NUM_THREADS", "VLLM_LOGGING_LEVEL", "OPENVINO_LOG_LEVEL", "RBLN_LOG_LEVEL"),),
    ),
    Rule(
        A, "spec", "exactly one of resourceName and deviceClassName is required for every type but CPU",
        (
            {"resourceName": None}, {"type": "CPU"}, {"deviceClassName": "npu.acme.com"},
            {**CPU, "deviceClassName": "x"}, {**REMOTE, "remote": None}, {**REMOTE, "resourceName": "a.com/b"},
            {**REMOTE, "deviceClassName": "x"}, {**REMOTE, "runtime": {"plugin": "p", "image": "i"}},
            {**REMOTE, "cost": {"perHour": 1}},
        ),
        (CPU, {"type": "GPU"}, BY_CLASS, REMOTE),
    ),
    Rule(A, "spec", "remote is for type REMOTE", ({"remote": ENDPOINT},), (REMOTE,)),
    Rule(A, "spec", "runtime is required for every type but REMOTE", ({"runtime": None},), (REMOTE, {})),
    Rule(
        A, "spec.remote", "credentialsSecretRef needs an endpoint with https://",
        ({**REMOTE, "remote": {**ENDPOINT, "endpoint": "http://a.example/v1", "credentialsSecretRef": "key"}},),
        (
            {**REMOTE, "remote": {**ENDPOINT, "credentialsSecretRef": "key"}},
            {**REMOTE, "remote": {**ENDPOINT, "endpoint": "http://a.example/v1"}},
        ),
    ),
    Rule(
        A, "spec.cost", "cost has perHour, or for type REMOTE",
        ({"cost": {"currency": "EUR"}}, {**REMOTE, "cost": {"perMillionInputTokens": "1"}}),
        ({"cost": {"perHour": 1}}, {**REMOTE, "cost": {"perMillionInputTokens": 1, "perMillionOutputTokens": 0}}),
    ),
    Rule(
        A, "spec.runtime", "plugin, which knows how its engine is started, or command is required",
        ({"runtime__plugin": None},), ({"runtime__plugin": None, "runtime__command": ["serve"]}, {}),
    ),
    Rule(
        A, "spec.runtime", "command takes the place of plugin",
        ({"runtime__command": ["serve"]},), ({"runtime__plugin": None, "runtime__command": ["serve", "${PORT}"]},),
    ),
    Rule(
        A, "spec", "devicePlugin needs the resourceName or the deviceClassName",
        ({**CPU, "devicePlugin": PLUGIN},), ({"devicePlugin": PLUGIN}, {**BY_CLASS, "devicePlugin": PLUGIN}),
    ),
    Rule(
        A, "spec", "devicePlugin.extendedResourceName needs deviceClassName",
        ({"devicePlugin": {**PLUGIN, "extendedResourceName": "acme.com/npu"}},),
        ({**BY_CLASS, "devicePlugin": {**PLUGIN, "extendedResourceName": "acme.com/npu"}},),
    ),
    Rule(
        A, "spec", "observer is for a resourceName without devicePlugin",
        ({"devicePlugin": PLUGIN, "observer": PLUGIN}, {**BY_CLASS, "observer": PLUGIN}, {**CPU, "observer": PLUGIN}),
        ({"observer": PLUGIN}, {"observer": {**PLUGIN, "args": ["--vendor=nvidia"]}}),
    ),
    Rule(
        A, "spec.attributes", "an attribute's name has 63 characters at most",
        _each("attributes", {"a" * 64: "1"}), _each("attributes", {"a" * 63: "1", "Formfaktor, in mm": "2"}),
    ),
    Rule(
        A, "spec.nodeSelector", "nodeSelector has a key that is no label",
        _each("nodeSelector", *({key: ""} for key in ("", "a/b/c", "-a", "a/", "/a", "a b", "a" * 64))),
        _each("nodeSelector", {"a": ""}, {"feature.node.kubernetes.io/pci-1200.present": "true"}, {"A_b.c": "D-e"}),
    ),
    Rule(
        A, "spec.tolerations[]", "a toleration with operator Equal, the default, needs a key",
        _tolerations({}, {"value": "x"}, {"operator": "Equal"}, {"operator": "Exists", "key": "a", "value": "x"}),
        _tolerations({"key": "a"}, {"key": "a", "value": "x", "effect": "NoExecute"}, {"operator": "Exists"}),
    ),
    *(
        Rule(
            A, f"spec.performance.efficiency.{part}", "an efficiency is a part of the peak",
            _each(f"performance__efficiency__{part}", *EFFICIENCIES[0]),
            _each(f"performance__efficiency__{part}", *EFFICIENCIES[1]),
        )
        for part in ("compute", "bandwidth")
    ),
    Rule(
        A, "spec.power", "idleWatts is more than maxWatts",
        _each("power", *({"idleWatts": idle, "maxWatts": most} for idle, most in ((10, 9), ("10", 9), (1, "0.9")))),
        _each("power", *({"idleWatts": idle, "maxWatts": most} for idle, most in ((9, 10), ("9.5", 10), (5, "5.0")))),
    ),
    Rule(
        A, "spec.provisioning", "maxDevices and expectedSeconds need mode Elastic",
        _each("provisioning", {"maxDevices": 1}, {"mode": "Static", "expectedSeconds": 1}),
        _each("provisioning", {}, {"mode": "Elastic"}, {"mode": "Elastic", "maxDevices": 8, "expectedSeconds": 300}),
    ),
    Rule(
        P, "spec", "a step names a variable that does not exist; there are CACHE_DIR, ",
        _steps("command", "${CC}") + _steps("args", *VARIABLES[0]),
        _steps("command", "${TARGET}") + _steps("args", *VARIABLES[1]),
    ),
    Rule(
        P, "spec", "a step's environment names a variable that does not exist; there are CACHE_DIR, ",
        (_env("${HOME}/x"), {"steps": [STEP, {**_env("${OUTPUT")["steps"][0], "name": "b"}]}),
        (_env("${WORK}/x and $${ANY}"), _env("")),
    ),
    Rule(
        P, "spec", "a step's output names a variable that does not exist; there are CACHE_DIR, ",
        _steps("outputs", "${OUT}/x"), _steps("outputs", "${OUTPUT}/*", "/rma/work/x"),
    ),
    Rule(
        P, "spec", "the probe names a variable that does not exist; there are CACHE_DIR, ",
        _each("probe", {"image": "i", "command": ["check", "${OUT}"]}),
        _each("probe", {"image": "i", "command": ["check", "${OUTPUT}"]}),
    ),
    Rule(
        P, "spec", "the check names a variable that does not exist; there are CACHE_DIR, ",
        _each("check", {"image": "i", "command": ["check", "${OUT}"]}),
        _each("check", {"image": "i", "command": ["check", "${MODEL_DIR}"]}),
    ),
    *(
        Rule(
            kind, "spec.check.env", "the check's environment names a variable that does not exist; there are CACHE",
            _each("check", {"image": "i", "command": ["check"], "env": [{"name": "A", "value": "${HOME}"}]}),
            _each(
                "check",
                {"image": "i", "command": ["c"], "env": [{"name": "A", "value": "${INPUT_x}"}, {"name": "B"}]},
            ),
        )
        for kind in (P, B)
    ),
    Rule(
        P, "spec", "the template names a variable that does not exist; there are CACHE_DIR, ",
        ({"interface": "ConfigFile", "configTemplate": _template("{\"a\": \"${NOPE}\"}")},),
        ({"interface": "ConfigFile", "configTemplate": _template("{\"a\": \"${TP}, ${INPUT_x} and $$5\"}")},),
    ),
    Rule(
        P, "spec", "configTemplate is for the interface ConfigFile, which needs it",
        ({"interface": "ConfigFile"}, {"configTemplate": _template("{}")}),
        ({"interface": "ConfigFile", "configTemplate": _template("{}")}, {}),
    ),
    Rule(
        P, "spec", "flags are for the interfaces Python and SharedLibrary; the others have command lines",
        ({"flags": [FLAG]}, {"interface": "Warmup", "flags": [FLAG]}),
        ({"interface": "Python", "flags": [FLAG]}, {"interface": "SharedLibrary", "flags": [FLAG]}, {"flags": []}),
    ),
    Rule(
        P, "spec", "the interface Warmup has one step, which starts the engine",
        ({"interface": "Warmup", "steps": [STEP, {**STEP, "name": "b"}]},),
        ({"interface": "Warmup"}, {"steps": [STEP, {**STEP, "name": "b"}]}),
    ),
    Rule(
        P, "spec", "an input cannot be called from: that is the other profile's artifact",
        ({"inputs": [{**INPUT, "name": "from"}]},), ({"inputs": [INPUT]}, {"inputs": [{**INPUT, "name": "From"}]}),
    ),
    Rule(
        P, "spec", "a result with the weights in it depends on them: set weightsInArtifact to false, or binds to",
        ({"binds": "Structure"}, {"binds": "Scales", "weightsInArtifact": True}),
        ({"binds": "Structure", "weightsInArtifact": False}, {"binds": "Weights"}, {"weightsInArtifact": False}),
    ),
    Rule(
        P, "spec.inputs[].source", "source must be hf://organisation/name, oci://registry/repository:tag, ",
        _each("inputs", *([{**INPUT, "source": each}] for each in ("x", "http://h/x", "https://u@h/x", "file:///x"))),
        _each("inputs", *([{**INPUT, "source": each}] for each in ("https://h/x", "s3://b/x", "hf://o/x", "oci://r/x:1"))),
    ),
    Rule(
        B, "", "the name is a- and 26 letters of the key's hash in base32",
        ("a", "a-b.c", f"{LONGEST}n", artifact_name("1" * 64), artifact_name(KEY), "a-" + 25 * "a", "a-" + 27 * "a"),
        (artifact_name("0" * 64),),
    ),
)  # fmt: skip
IMMUTABLE = (B, "spec", "an artifact is what its name is the hash of; it cannot be changed")


def _declared() -> set[tuple[str, str, str]]:
    def walk(kind: str, schema: Object, path: str) -> Iterator[tuple[str, str, str]]:
        for rule in schema.get("x-kubernetes-validations", ()):
            yield kind, path, rule["message"]
        for name, child in schema.get("properties", {}).items():
            yield from walk(kind, child, f"{path}.{name}".lstrip("."))
        for keyword in ("items", "additionalProperties"):
            if isinstance(schema.get(keyword), dict):
                yield from walk(kind, schema[keyword], f"{path}[]")

    found = set()
    for file in CRDS.glob("*.yaml"):
        crd = yaml.safe_load(file.read_text())
        for version in crd["spec"]["versions"]:
            found |= set(walk(crd["spec"]["names"]["kind"], version["schema"]["openAPIV3Schema"], ""))
    return found


def test_every_rule_has_a_row_and_every_row_a_rule() -> None:
    declared = _declared()
    assert len(declared) > 20
    rows = {(rule.kind, rule.path, rule.message) for rule in RULES} | {IMMUTABLE}

    def same(row: tuple[str, str, str], rule: tuple[str, str, str]) -> bool:
        return row[:2] == rule[:2] and rule[2].startswith(row[2])

    assert [rule for rule in declared if not any(same(row, rule) for row in rows)] == []
    assert [row for row in rows if not any(same(row, rule) for rule in declared)] == []
    assert [rule for rule in RULES if not (rule.refused and rule.accepted)] == []


def _object(kind: str, case: Object | str, namespace: str) -> Object:
    if isinstance(case, str):
        return custom_object(kind, SMALLEST[kind], namespace, case)
    return custom_object(kind, changed(kind, **case), namespace)


def _cases(which: str) -> list[Any]:
    return [
        pytest.param(rule, case, id=f"{rule.kind}-{rule.path or 'object'}-{number}")
        for rule in RULES
        for number, case in enumerate(getattr(rule, which))
    ]


@pytest.mark.parametrize(("rule", "case"), _cases("refused"))
async def test_refused(client: HttpClient, api_namespace: str, rule: Rule, case: Object | str) -> None:
    place = re.escape(rule.path or "<nil>").replace(r"\[\]", r"\[\d+\]")
    with pytest.raises(Invalid) as refusal:
        await apply(client, _object(rule.kind, case, api_namespace))
    assert re.search(f"(^| ){place}: Invalid value: [^,]*{re.escape(rule.message)}", str(refusal.value))


@pytest.mark.parametrize(("rule", "case"), _cases("accepted"))
async def test_accepted(client: HttpClient, api_namespace: str, rule: Rule, case: Object | str) -> None:
    await apply(client, _object(rule.kind, case, api_namespace))


async def test_an_artifact_cannot_be_changed(client: HttpClient, api_namespace: str) -> None:
    kind, _, message = IMMUTABLE
    obj = custom_object(kind, SMALLEST[kind], api_namespace)
    await apply(client, obj)
    await apply(client, {**obj, "metadata": {**obj["metadata"], "labels": {"a": "b"}}})
    for changes in ({"format": "other"}, {"timeoutSeconds": 11}, {"probe": {"image": "i", "command": ["c"]}}):
        with pytest.raises(Invalid, match=message):
            await apply(client, {**obj, "spec": changed(kind, **changes)})


@pytest.mark.parametrize("key", [KEY, "f" * 64, "8" + "0" * 63, "0" * 32 + "4" + "0" * 31, "0" * 32 + "3" + "f" * 31])
async def test_the_name_of_an_artifact_is_that_of_its_key_to_the_last_bit(
    client: HttpClient, api_namespace: str, key: str
) -> None:
    spec = changed(B, key=key)
    await apply(client, custom_object(B, spec, api_namespace, artifact_name(key)))
    for bit in (0, 4, 5, 63, 64, 126, 129):
        other = f"{int(key, 16) ^ (1 << (255 - bit)):064x}"
        with pytest.raises(Invalid, match="26 letters of the key's hash in base32"):
            await apply(client, custom_object(B, spec, api_namespace, artifact_name(other)))
    beyond = f"{int(key, 16) ^ (1 << (255 - 130)):064x}"
    assert artifact_name(beyond) == artifact_name(key)
