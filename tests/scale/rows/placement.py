"""Placement: one decision over a large fleet, and a thousand deployments that all come at once."""

import time
from collections.abc import Sequence
from dataclasses import replace

from rm_api.kinds import AcceleratorResourceSpec, BuildProfileSpec, ModelDeploymentSpec
from rm_api.kinds.model_deployment import ModelFacts
from rm_operator.kube.resources import MODEL_DEPLOYMENTS
from rm_operator.plan.placement import AcceleratorView, PlacementRequest, ProfileView, place

from scale import objects, settled
from scale.report import Row, percentile
from scale.sizes import Sizes

KINDS = 50
PROFILES = 8
SAMPLES = 300
DEPLOYMENTS = 1000


def _accelerators() -> list[objects.Object]:
    """Kinds that differ in speed and price; every profile has some that it compiles for."""
    return [
        objects.accelerator(
            f"npu-{number:02d}",
            product=f"X{number % PROFILES}",
            resourceName=f"acme.com/npu-{number:02d}",
            performance={
                "memoryGiB": 16 + number, "bandwidthGBps": 500 + 20 * number,
                "tflops": [{"dtype": "fp16", "value": 100 + 5 * number}, {"dtype": "bf16", "value": 100 + 5 * number}],
            },
        )
        for number in range(KINDS)
    ]  # fmt: skip


def _profiles() -> list[objects.Object]:
    return [
        objects.profile(
            f"acme-{number}",
            target={"type": "NPU", "vendor": "Acme", "products": [f"X{number}"], "targetString": f"x{number}"},
        )
        for number in range(PROFILES)
    ]


async def run(sizes: Sizes) -> Sequence[Row]:
    """Times of this process's CPU."""
    first, again = _plans()
    seconds, placed = await _fleet(sizes)
    name = f"one plan, {KINDS} kinds × {PROFILES} profiles"
    return [
        Row("placement", f"{name}, not asked before", percentile(first, 50), "ms", "<=", 2,
            f"P99 {percentile(first, 99):.2f} ms"),
        Row("placement", f"{name}, asked before", percentile(again, 50), "ms", "<=", 2,
            f"P99 {percentile(again, 99):.2f} ms"),
        Row("placement", f"{DEPLOYMENTS} deployments over {sizes.nodes} nodes", seconds, "s", "<=", 5,
            "events, plans and statuses, without an API server"),
        Row("placement", "deployments without a place", DEPLOYMENTS - placed, "", "<=", 0),
    ]  # fmt: skip


def _plans() -> tuple[list[float], list[float]]:
    """Milliseconds of questions that nobody has asked before, and of the same ones asked once more."""
    request = PlacementRequest(
        deployment="model",
        spec=ModelDeploymentSpec.model_validate({"model": {"source": objects.SOURCE}}),
        facts=ModelFacts.model_validate(objects.FACTS),
        accelerators=tuple(
            AcceleratorView(
                each["metadata"]["name"], AcceleratorResourceSpec.model_validate(each["spec"]),
                free=1000, healthy=1000, nodes=100,
            )
            for each in _accelerators()
        ),
        profiles=tuple(
            ProfileView(each["metadata"]["name"], BuildProfileSpec.model_validate(each["spec"])) for each in _profiles()
        ),
    )  # fmt: skip
    first: list[float] = []
    again: list[float] = []
    for number in range(SAMPLES):
        wish = {"model": {"source": objects.SOURCE}, "workload": {"inputTokens": 1000 + number}}
        asked = replace(request, spec=ModelDeploymentSpec.model_validate(wish))
        for times in (first, again):
            began = time.process_time()
            result = place(asked)
            times.append((time.process_time() - began) * 1000)
            assert result.chosen is not None, result.message
    return first, again


async def _fleet(sizes: Sizes) -> tuple[float, int]:
    """CPU seconds until every deployment has a place in its status, and how many have one."""
    engine = settled.Engine()
    for each in [*_accelerators(), *_profiles()]:
        engine.put(each)
    for number in range(sizes.nodes):
        engine.put(objects.node(number, resource_name=f"acme.com/npu-{number % KINDS:02d}"))
    spaces = objects.namespaces("scale", 10)
    for space in spaces:
        engine.put(objects.facts_map(space))
    await engine.settle()
    began = time.process_time()
    for obj in objects.in_namespaces(spaces, DEPLOYMENTS // len(spaces)):
        engine.put(obj)
    await engine.settle()
    seconds = time.process_time() - began
    await engine.close()
    statuses = [each.get("status") or {} for each in engine.stores[MODEL_DEPLOYMENTS]]
    return seconds, sum(bool((each.get("placement") or {}).get("chosen")) for each in statuses)
