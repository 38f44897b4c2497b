"""Specs generated from the CRDs' schemas: the API server takes the valid ones and refuses the others, and the operator,
which runs meanwhile, brings each of those that were taken to an end that it can explain.

The examples are the same in each run.
"""

import asyncio
import copy
import hashlib
import secrets
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from custom_objects import OF, SMALLEST, Object, custom_object
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from real_api import ApiServer, eventually
from rm_api.crd import KindInfo
from rm_api.kinds import KINDS
from rm_operator.kube.errors import ApiError, Invalid, NotFound
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import of_kind
from structural_schema import Schema, values, violations
from whole_operator import add_cpu, add_facts, whole_operator

CRDS = Path(__file__).parents[2] / "crds"
VALID, INVALID = 15, 25
"""Examples for each kind."""

Overrides = dict[str, st.SearchStrategy[Any] | None]
names_ = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
texts = st.sampled_from(["x", "${WORK}/a", "$$", "-", "ä b", "$HOME", "", "{}", "'"])
lines = st.sampled_from(["x", "a b", "ä", "${WORK}"])
variables = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["LOG_LEVEL", "TZ", "OMP_NUM_THREADS"])}, optional={"value": texts}),
    max_size=3,
    unique_by=lambda each: each["name"],
)
positive = st.one_of(st.integers(1, 10**9), st.sampled_from(["1", "0.5", "80", "999.25"]))
parts = st.sampled_from([0, 1, "0", "0.4", "1"])
tolerations = st.sampled_from(
    [
        {"operator": "Exists"},
        {"key": "a"},
        {"key": "a", "value": "x", "operator": "Equal", "effect": "NoExecute"},
        {"key": "example.com/b", "operator": "Exists", "effect": "NoSchedule"},
    ]
)
labels = st.dictionaries(
    st.sampled_from(["a", "example.com/b", "tests"]), st.sampled_from(["", "x", "A-1"]), max_size=2
)
# Where a CEL rule says more than the schema does, and where a value is only of use within limits.
OVERRIDES: dict[str, Overrides] = {
    "ModelDeployment": {
        ".model.source": st.sampled_from(["hf://acme/model", "oci://registry:5000/a/b:1", "https://host/a/"]),
        ".runtime.env": variables,
        ".workload.requestsPerSecond": positive,
        ".autoscaling.metrics[].averageValue": positive,
    },
    "AcceleratorResource": {
        ".nodeSelector": labels,
        ".tolerations[]": tolerations,
        ".performance.efficiency.compute": parts,
        ".performance.efficiency.bandwidth": parts,
        ".attributes": st.dictionaries(names_, lines, max_size=2),
        ".devicePlugin.hostPaths": st.lists(st.sampled_from(["/dev", "/a-b", "/var/x"]), unique=True, max_size=2),
    },
    "BuildProfile": {
        **{f".steps[].{part}[]": texts for part in ("command", "args")},
        ".steps[].env[].value": texts,
        ".steps[].outputs[]": st.sampled_from(["${OUTPUT}/*", "/rma/work/x", "a", "../b"]),
        ".probe.command[]": texts,
        ".check.command[]": texts,
        ".inputs[].name": st.sampled_from(["calibration", "Layout", "a_b"]),
        ".inputs[].source": st.sampled_from(["https://host/c.json", "hf://acme/data", "s3://bucket/a"]),
        ".configTemplate.content": st.sampled_from(
            ['{"a": "${TP}"}', "a: 1", "[", "x = 1", "$$", "[a]\nb = ${TARGET}"]
        ),
    },
    "BuildArtifact": {},
}


def settled(kind: str, spec: Object) -> Object:
    """``spec`` with what its kind's CEL rules ask for beside the schema."""
    if kind == "ModelDeployment":
        _settle_policy(spec)
        _settle_rollout(spec)
        scaling = spec.get("autoscaling")
        if scaling and scaling.get("minReplicas", 1) > scaling["maxReplicas"]:
            scaling["minReplicas"], scaling["maxReplicas"] = scaling["maxReplicas"], scaling["minReplicas"]
    if kind == "BuildProfile":
        _settle_interface(spec)
    if kind == "AcceleratorResource":
        _settle_devices(spec)
        _settle_runtime(spec)
        _settle_cost(spec)
        power = spec.get("power")
        if power and Decimal(power["idleWatts"]) > Decimal(power["maxWatts"]):
            power["idleWatts"], power["maxWatts"] = power["maxWatts"], power["idleWatts"]
        provisioning = spec.get("provisioning", {})
        if provisioning.get("mode", "Static") != "Elastic":
            provisioning.pop("maxDevices", None)
            provisioning.pop("expectedSeconds", None)
        else:
            provisioning.setdefault("maxDevices", 4)
    return spec


def _settle_devices(spec: Object) -> None:
    if spec["type"] in ("CPU", "REMOTE"):
        for name in ("resourceName", "deviceClassName", "devicePlugin", "observer", "provisioning"):
            spec.pop(name, None)
    elif "resourceName" in spec or "deviceClassName" not in spec:
        spec.setdefault("resourceName", "acme.com/npu")
        spec.pop("deviceClassName", None)
        spec.get("devicePlugin", {}).pop("extendedResourceName", None)
    if "devicePlugin" in spec or "resourceName" not in spec:
        spec.pop("observer", None)


def _settle_runtime(spec: Object) -> None:
    if spec["type"] == "REMOTE":
        spec.pop("runtime", None)
        remote = spec.setdefault(
            "remote", {"endpoint": "https://api.example.com", "models": [{"name": "m", "source": "hf://a/m"}]}
        )
        if not remote["endpoint"].startswith("https://"):
            remote.pop("credentialsSecretRef", None)
        return
    spec.pop("remote", None)
    runtime = spec.setdefault("runtime", {"image": "acme/serve:1"})
    if "command" not in runtime:
        runtime.setdefault("plugin", "acme")
    else:
        runtime.pop("plugin", None)


def _settle_cost(spec: Object) -> None:
    cost = spec.get("cost")
    if cost is None:
        return
    if spec["type"] == "REMOTE":
        cost.pop("perHour", None)
        cost.setdefault("perMillionInputTokens", "1")
        cost.setdefault("perMillionOutputTokens", "1")
    elif "perHour" not in cost and not {"perMillionInputTokens", "perMillionOutputTokens"} <= set(cost):
        cost["perHour"] = "1"


def _settle_interface(spec: Object) -> None:
    if spec.get("interface") == "ConfigFile":
        spec.setdefault("configTemplate", {"format": "JSON", "path": "c.json", "content": "{}"})
    else:
        spec.pop("configTemplate", None)
    if spec.get("interface") not in ("Python", "SharedLibrary"):
        spec.pop("flags", None)
    if spec.get("interface") == "Warmup":
        del spec["steps"][1:]
    if spec.get("binds", "Weights") != "Weights":
        spec["weightsInArtifact"] = False


def _settle_policy(spec: Object) -> None:
    policy = spec.get("policy", {})
    if policy.get("type") == "Weighted":
        weights = policy.setdefault("weights", {})
        if not any(weights.values()):
            weights["cost"] = 1
    else:
        policy.pop("weights", None)


def _settle_rollout(spec: Object) -> None:
    rollout = spec.get("rollout", {})
    if rollout.get("strategy") == "InPlace":
        rollout.pop("maxSurge", None)
        rollout["maxUnavailable"] = max(1, rollout.get("maxUnavailable", 1))


def schema_of(info: KindInfo) -> Schema:
    """The schema of a kind's spec, as it is installed."""
    crd = yaml.safe_load((CRDS / f"{info.crd_name}.yaml").read_text())
    found: Schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """``count`` examples, the same each time."""
    found: list[Any] = []

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(copy.deepcopy(value))

    collect()
    return found


def valid_specs(info: KindInfo) -> list[Object]:
    """Specs that the schema and the rules of the kind admit."""
    found = [settled(info.kind, each) for each in drawn(values(schema_of(info), OVERRIDES[info.kind]), VALID)]
    if info.kind == "BuildArtifact":
        for number, spec in enumerate(found):
            # Their names follow from their keys.
            spec["key"] = hashlib.sha256(str(number).encode()).hexdigest()
    return found


# Invalid ones: a valid one with one place spoiled.

_WRONG: dict[str, tuple[Any, ...]] = {
    "object": ("x", 1, []), "array": ("x", {}, 1), "string": (1, True, {}, ["x"]), "integer": ("x", 1.5, {}, True),
    "boolean": ("true", 0, {}),
}  # fmt: skip


def spoiled(schema: Schema, value: Any) -> Iterator[Any]:
    """Each way to spoil ``value`` or one of its members by what the schema forbids."""
    if schema.get("x-kubernetes-int-or-string"):
        yield from (True, {}, -1, "one", "1" * 40)
        return
    yield from _WRONG[schema["type"]]
    if "enum" in schema:
        yield "Nonsense"
    if schema["type"] == "string":
        yield from (["x" * (schema["maxLength"] + 1)] if "maxLength" in schema else [])
        yield from (["\n\x00 \n"] if "pattern" in schema else [])
    elif schema["type"] == "integer":
        yield from (schema[bound] + step for bound, step in (("minimum", -1), ("maximum", 1)) if bound in schema)
    elif schema["type"] == "array":
        if value and (schema.get("x-kubernetes-list-type") in ("set", "map")):
            yield [*value, value[0]]
        for index, item in enumerate(value):
            for each in spoiled(schema["items"], item):
                yield [*value[:index], each, *value[index + 1 :]]
    elif schema["type"] == "object":
        yield from _spoiled_members(schema, value)


def _spoiled_members(schema: Schema, value: Object) -> Iterator[Object]:
    if "additionalProperties" not in schema:
        yield {**value, "nonsense": 1}
    for name in schema.get("required", ()):
        yield {key: member for key, member in value.items() if key != name}
    for name, member in value.items():
        child = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
        for each in spoiled(child, member):
            yield {**value, name: each}


def invalid_specs(info: KindInfo) -> list[Object]:
    """Specs that the schema does not admit."""
    schema = schema_of(info)
    base = st.one_of(st.just(SMALLEST[info.kind]), values(schema, OVERRIDES[info.kind]))
    one = base.flatmap(lambda spec: st.sampled_from(list(spoiled(schema, settled(info.kind, copy.deepcopy(spec))))))
    return drawn(one, INVALID)


ALL_KINDS = pytest.mark.parametrize("info", KINDS, ids=lambda info: info.kind)


@ALL_KINDS
async def test_what_the_schema_forbids_is_refused(client: HttpClient, api_namespace: str, info: KindInfo) -> None:
    schema, refused = schema_of(info), 0
    for spec in invalid_specs(info):
        assert list(violations(schema, spec)), "a spoiled spec that is as good as before is a mistake of this test"
        with pytest.raises(ApiError) as refusal:
            await _create(client, _object(info, api_namespace, spec))
        assert isinstance(refusal.value, Invalid), f"{spec}: {refusal.value}"
        refused += 1
    assert refused >= INVALID // 2


def _object(info: KindInfo, namespace: str, spec: Any) -> Object:
    if info.kind == "BuildArtifact" and not list(violations(schema_of(info), spec)):
        return custom_object(info.kind, spec, namespace)
    name = "a-" + "a" * 26 if info.kind == "BuildArtifact" else f"f-{secrets.token_hex(6)}"
    return custom_object(info.kind, {}, namespace, name) | {"spec": spec}


async def _create(client: HttpClient, obj: Object) -> Object:
    return await client.create(of_kind(OF[obj["kind"]]), obj, field_manager="tests")


async def test_what_is_taken_comes_to_an_end_that_is_explained(
    api_server: ApiServer, client: HttpClient, api_namespace: str
) -> None:
    """Ready, or not Ready with a reason and a sentence; and the operator never fails."""
    made: list[Object] = []
    await add_cpu(client, api_namespace)
    for source in ("hf://acme/model", "https://host/a/"):
        await add_facts(client, api_namespace, source)
    async with whole_operator(api_server, api_namespace) as running:
        for info in KINDS:
            for spec in valid_specs(info):
                assert list(violations(schema_of(info), spec)) == []
                try:
                    made.append(await _create(client, _object(info, api_namespace, spec)))
                except ApiError as error:
                    raise AssertionError(f"{info.kind} was refused: {error}\n{yaml.safe_dump(spec)}") from error
        await eventually(lambda: running.idle, "everything is reconciled", 120)
        await asyncio.sleep(0.5)
        await eventually(lambda: running.idle, "everything is reconciled", 120)
        ends = [await _end(client, obj) for obj in made]
        try:
            assert {end for end in ends if end.startswith("not explained")} == set()
            reached = {end.partition(":")[0] for end in ends}
            assert {"ModelDeployment", "AcceleratorResource", "BuildProfile"} <= reached
        finally:
            await _clear(client, made)
        await eventually(lambda: running.idle, "the deletions are taken in", 120)


async def _end(client: HttpClient, obj: Object) -> str:
    """Kind and reason of where it ended; 'not explained' with the object where that cannot be told."""
    metadata = obj["metadata"]
    try:
        live = await client.get(of_kind(OF[obj["kind"]]), metadata.get("namespace"), metadata["name"])
    except NotFound:
        # An artifact that nobody asks for goes.
        return "BuildArtifact: gone" if obj["kind"] == "BuildArtifact" else f"not explained: {obj}"
    conditions = {entry["type"]: entry for entry in (live.get("status") or {}).get("conditions") or ()}
    ready = conditions.get("Ready")
    explained = (
        ready is not None
        and live["status"]["observedGeneration"] == live["metadata"]["generation"]
        and (ready["status"] == "True" or (ready["reason"] and ready["message"]))
        and (
            ready["status"] == "True"
            or {"Reconciling", "Stalled"} & conditions.keys()
            or ready["reason"] == "Suspended"
        )
        and not {"Reconciling", "Stalled"} <= conditions.keys()
    )
    return f"{obj['kind']}: {ready['reason']}" if explained and ready else f"not explained: {live}"


async def _clear(client: HttpClient, made: list[Object]) -> None:
    """Cluster-scoped objects would be in the way of other tests."""
    for obj in made:
        metadata = obj["metadata"]
        await client.delete(of_kind(OF[obj["kind"]]), metadata.get("namespace"), metadata["name"])
