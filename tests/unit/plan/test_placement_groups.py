"""Several devices for one replica: how many, of what it follows, and why not."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_fleet import FLEET, GPU, LLAMA_8B, accelerator, candidate, figures, profile, request
from rm_api.conditions import Reason
from rm_api.dtypes import DType
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.accelerator_resource import NodeDevices, NodeVersions
from rm_api.kinds.build_artifact import ShapeBucket
from rm_api.placement import Workload
from rm_operator.plan.buckets import ONE_DEVICE, Group, Shape, chunk_of
from rm_operator.plan.placement import AcceleratorView, PlacementResult, place
from rm_operator.plan.placement.estimate import estimate, work_of
from rm_operator.plan.placement.machine import machine_of

LLAMA_70B = LLAMA_8B.model_copy(
    update={
        "parameters": 70_000_000_000, "active_parameters": 70_000_000_000, "weight_bytes": 140_000_000_000,
        "layers": 80, "heads": 64,
    }
)  # fmt: skip
BUSY = {"concurrency": 64}
"""With these, the cache of the 70B model takes 27 GB beside its 140."""
LINKED = {**figures(80, 2000, 1000), "linkGBps": 450}


def gpu(**members: Any) -> AcceleratorView:
    """A GPU of 80 GiB, eight of them on a node, linked."""
    views = {key: members.pop(key) for key in ("largest", "roomiest") if key in members}
    base = {"performance": LINKED, "power": {"idleWatts": 60, "maxWatts": 700}, "cost": {"perHour": "4"}}
    counts = {"free": 16, "healthy": 16, "nodes": 2}
    return replace(accelerator("gpu", "GPU", "Green", **(base | counts | members)), **({"largest": 8} | views))


def green(**shapes: list[int]) -> tuple[Any, ...]:
    return (profile("green", "GPU", "Green", shapes=shapes),)


def big(*views: AcceleratorView, **members: Any) -> PlacementResult:
    usual = {"facts": LLAMA_70B, "workload": BUSY, "profiles": green()}
    return place(request(fleet=views, **(usual | members)))


def test_where_no_speed_is_known_an_objective_asks_for_no_further_device() -> None:
    result = big(gpu(performance={"memoryGiB": 512, "linkGBps": 450}), slo={"tpotMs": 10})
    assert result.reason is Reason.PLACED
    assert result.devices_each == 1


def test_a_model_that_does_not_fit_one_device_gets_the_fewest_on_which_it_does() -> None:
    result = big(gpu())
    assert result.reason is Reason.PLACED
    assert result.bucket == ShapeBucket(tensor_parallel=4)
    assert result.devices_each == 4
    assert "4 devices for each replica" in result.message
    terms = {term.name: (float(term.value), term.unit) for term in candidate(result, "gpu").terms}
    assert terms["tensorParallel"] == (4, "devices")
    assert "pipelineParallel" not in terms
    # of each device: a quarter of 140 GB and of 64 · 1280 · 2·80·8·128·2 bytes, and 1 GiB
    assert terms["memory"][0] == pytest.approx((140e9 / 4 + 64 * 1280 * 327_680 / 4) / 2**30 + 1, rel=1e-3)
    assert terms["memoryLimit"][0] == pytest.approx(72)


def test_it_has_no_place_where_nodes_have_too_few() -> None:
    result = big(gpu(largest=2))
    assert result.reason is Reason.NO_ELIGIBLE_ACCELERATOR
    assert "GiB on each of 2 devices" in result.message
    assert "it would fit 4 devices of one node, and no node has more than 2 of green.com/gpu" in result.message


def versions(*there: tuple[str, list[int]]) -> tuple[NodeVersions, ...]:
    """Drivers, each with the devices of its nodes."""
    return tuple(
        NodeVersions(
            driver=driver,
            nodes=len(nodes),
            devices=sum(nodes),
            devices_by_node=[NodeDevices(devices=each, nodes=1) for each in nodes] if max(nodes) > 1 else None,
        )
        for driver, nodes in there
    )


@pytest.mark.parametrize(
    ("there", "compatibility", "placed"),
    [
        ([("1", [8]), ("2", [2])], {}, True),
        ([("1", [8]), ("2", [2])], {"driver": ["1"]}, True),
        ([("1", [8]), ("2", [2])], {"driver": ["2"]}, False),
        ([("1", [8]), ("2", [2])], {"driver": ["1", "2"]}, True),
        ([("1", [8]), ("2", [1])], {"driver": ["2"]}, False),
        ([("1", [8]), ("2", [2, 4])], {"driver": ["2"]}, True),
        # where each version has an artifact of its own, one whose nodes suffice is enough
        ([("1", [8]), ("2", [2])], {"oneArtifactPer": ["Driver"]}, True),
        ([("1", [2]), ("2", [2])], {"oneArtifactPer": ["Driver"]}, False),
        # a node that does not say which version it has is taken at its devices
        ([("", [8]), ("2", [2])], {"driver": ["2"]}, True),
    ],
)
def test_the_devices_of_one_node_are_those_of_nodes_that_the_result_runs_on(
    there: list[tuple[str, list[int]]], compatibility: dict[str, list[str]], placed: bool
) -> None:
    recipes = (profile("green", "GPU", "Green", compatibility=compatibility),)
    largest = max(most for _, nodes in there for most in nodes)
    result = big(replace(gpu(largest=largest), versions=versions(*there)), profiles=recipes)
    assert (result.reason is Reason.PLACED) is placed, result.message
    if not placed and largest == 8:
        assert "no node with a version that is built for has more than" in result.message


def test_an_answer_that_is_remembered_is_not_that_of_other_nodes() -> None:
    recipes = (profile("green", "GPU", "Green", compatibility={"driver": ["2"]}),)
    few = replace(gpu(), versions=versions(("1", [8]), ("2", [2])))
    enough = replace(few, versions=versions(("1", [8]), ("2", [4])))
    reasons = [big(view, profiles=recipes).reason for view in (few, enough, few)]
    assert reasons == [Reason.NO_ELIGIBLE_ACCELERATOR, Reason.PLACED, Reason.NO_ELIGIBLE_ACCELERATOR]


@pytest.mark.parametrize(
    ("view", "shapes", "group"),
    [
        # the profile's own numbers, and no others
        ({}, {"tensorParallel": [1, 2, 8]}, Group(8)),
        ({}, {"tensorParallel": [2], "pipelineParallel": [1, 2, 4]}, Group(2, 2)),
        # of as many devices, those that compute together: they are faster
        ({}, {"tensorParallel": [1, 2, 4], "pipelineParallel": [1, 2, 4]}, Group(4)),
        # devices that are not linked can still have layers one after the other
        ({"performance": figures(80, 2000, 1000)}, {"pipelineParallel": [1, 2, 4]}, Group(1, 4)),
        ({"capability": {"maxTensorParallel": 2}}, {"pipelineParallel": [1, 2]}, Group(2, 2)),
        # what is declared holds without a bandwidth, too
        ({"performance": figures(80, 2000, 1000), "capability": {"maxTensorParallel": 8}}, {}, Group(4)),
        # a node that is not known bounds nothing
        ({"largest": None}, {}, Group(4)),
    ],
    ids=str,
)
def test_what_the_profile_compiles_and_the_accelerator_links(
    view: dict[str, Any], shapes: dict[str, list[int]], group: Group
) -> None:
    bucket = big(gpu(**view), profiles=green(**shapes)).bucket
    assert bucket is not None
    assert (bucket.tensor_parallel or 1, bucket.pipeline_parallel or 1) == group


@pytest.mark.parametrize(
    ("view", "shapes", "sentence"),
    [
        ({}, {"tensorParallel": [3, 6]}, "heads not divisible; the model has 64 heads, 8 of keys and values"),
        ({}, {"tensorParallel": [4], "pipelineParallel": [81]}, "81 stages: heads not divisible"),
        (
            {"capability": {"maxTensorParallel": 2}},
            {"tensorParallel": [4, 8]},
            "for 4, 8 devices to a layer, it links 2",
        ),
        ({"performance": figures(80, 2000, 1000)}, {"tensorParallel": [4]}, "it links 1; correct its capability"),
        ({"largest": 2}, {"tensorParallel": [4]}, "needs 4 devices of one node, and no node has more than 2 of"),
        ({"performance": figures(80, 2000, 1000)}, {}, "the model needs 156.39 GiB (weights"),
        ({"free": 3}, {}, "3 devices of green.com/gpu are free, a replica needs 4"),
        (
            {"free": 6, "roomiest": 3},
            {},
            "no node has 4 free devices of green.com/gpu, which a replica needs on one node (3",
        ),
        ({"free": 0, "roomiest": 0}, {}, "no device of green.com/gpu is free"),
    ],
    ids=str,
)
def test_each_obstacle_has_its_sentence(view: dict[str, Any], shapes: dict[str, list[int]], sentence: str) -> None:
    result = big(gpu(**view), profiles=green(**shapes))
    assert result.chosen is None
    assert sentence in candidate(result, "gpu").reason


def test_whoever_waits_says_how_many_devices_it_waits_for() -> None:
    result = big(gpu(free=3))
    assert (result.waits_for, result.devices) == (("gpu",), {"gpu": 4})
    assert big(gpu(free=3), replicas=0).chosen == "gpu", "nothing is wanted now"
    assert big(gpu(free=3), current="gpu").chosen == "gpu", "its own place it keeps"
    elastic = gpu(free=None, healthy=0, largest=None, provisioning={"mode": "Elastic"})
    assert big(elastic).bucket == ShapeBucket(tensor_parallel=4)


@pytest.mark.parametrize("policy", ["Latency", "Throughput", "Energy", "Cost"])
def test_a_policy_alone_takes_no_second_device_and_an_objective_as_many_as_it_needs(policy: str) -> None:
    one = place(request(fleet=(gpu(),), policy={"type": policy}))
    assert (one.bucket, one.devices_each) == (ShapeBucket(), 1)
    # 16 GB over 1.2 TB/s take 13 ms, and the cache a little: 8 ms want two devices
    two = place(request(fleet=(gpu(),), policy={"type": policy}, slo={"tpotMs": 10}))
    assert two.bucket == ShapeBucket(tensor_parallel=2)
    out = place(request(fleet=(gpu(),), policy={"type": policy}, slo={"tpotMs": 1}))
    assert out.reason is Reason.SLO_UNREACHABLE
    tpot = float(candidate(out, "gpu").reason.split("per token is ")[1].split(" ms")[0])
    assert tpot < 6, "it says the best that can be had"


def test_what_declares_no_link_is_placed_as_ever() -> None:
    plain = place(request())
    nodes = tuple(replace(view, largest=8, roomiest=2) for view in FLEET)
    assert place(request(fleet=nodes)) == plain
    assert place(request(fleet=nodes, slo={"tpotMs": 1})) == place(request(slo={"tpotMs": 1}))


def test_more_of_it_on_one_node_changes_no_choice() -> None:
    assert [big(gpu(largest=largest, roomiest=largest)).devices_each for largest in (4, 8, 16)] == [4, 4, 4]
    placed = big(gpu())
    again = big(gpu(free=0), current="gpu", current_policy="Latency", led_for=1e9)
    assert (again.chosen, again.bucket, again.leader) == (placed.chosen, placed.bucket, None)


def test_who_is_short_of_devices_for_all_replicas_is_told_in_devices() -> None:
    assert "only 6 of the 8 devices that spec.replicas needs are free" in big(gpu(free=6), replicas=2).message


@pytest.mark.parametrize(
    ("chunks", "prompt", "chosen"),
    [([], 1024, None), ([512, 2048], 1024, 2048), ([512, 1024], 1024, 1024), ([256, 512], 1024, 512)],
)
def test_a_prompt_is_computed_at_once_where_that_is_compiled_and_else_in_the_largest_pieces(
    chunks: list[int], prompt: int, chosen: int | None
) -> None:
    assert chunk_of(prompt, chunks) == chosen
    result = place(request(fleet=(GPU,), profiles=green(prefillChunk=chunks), workload={"inputTokens": prompt}))
    assert result.bucket == ShapeBucket(prefill_chunk=chosen)


def of(link: float = 100, memory: int = 80, tflops: int = 4, bandwidth: int = 200) -> AcceleratorResourceSpec:
    """After efficiency 1 Tflop/s and 100 GB/s for each 4 and 200."""
    performance = figures(memory, bandwidth, tflops, {"compute": "0.25", "bandwidth": "0.5"})
    return AcceleratorResourceSpec.model_validate(
        {
            "type": "GPU", "vendor": "v", "product": "p", "resourceName": "v.com/p",
            "runtime": {"plugin": "p", "image": "i"}, "performance": {**performance, "linkGBps": link},
            "power": {"idleWatts": 5, "maxWatts": 100}, "cost": {"perHour": "3.6"},
        }
    )  # fmt: skip


WORKLOAD = Workload(input_tokens=1000, output_tokens=200, concurrency=10)
SMALL = LLAMA_8B.model_copy(
    update={
        "parameters": 10**9, "active_parameters": 10**9, "weight_bytes": 2 * 10**9, "layers": 10, "heads": 20,
        "kv_heads": 4, "head_dim": 50,
    }
)  # fmt: skip


def test_figures_of_two_devices_by_hand() -> None:
    work = work_of(SMALL, DType.BF16, WORKLOAD, Shape(1200, 10))
    one, two = (estimate(work, machine_of(of()), group) for group in (ONE_DEVICE, Group(2)))
    # A token is 20·50·2 = 2000 bytes between layers, and is told 2·10 times, half of it twice: 40 kB over 100 GB/s
    # and 2·10·10 µs a pass. A prompt of 1000: 0.6 ms.
    assert two.ttft == pytest.approx(2.02 / 2 + 0.001 + 0.0006)
    # The step moves 20.88 / 2 ms, more than it computes; ten tokens: 20·(10 µs + 0.2 µs)
    assert two.tpot == pytest.approx(0.01044 + 0.001 + 0.000204)
    assert two.rate is not None
    assert two.joules_per_token == pytest.approx(2 * 100 / (200 * two.rate))
    assert two.price == pytest.approx(2 * 0.001 / (200 * two.rate) * 10**6)
    # In two stages it is no faster, and as hungry; one hand-over of 2 MB and 20 kB.
    stages = estimate(work, machine_of(of()), Group(1, 2))
    assert stages.tpot == pytest.approx((one.tpot or 0) + 0.00001 + 10 * 2000 / 1e11)
    assert stages.ttft == pytest.approx((one.ttft or 0) + 0.00001 + 1000 * 2000 / 1e11)
    assert (stages.joules_per_token or 0) > 1.99 * (one.joules_per_token or 0)


def test_without_a_link_the_speed_of_several_is_not_known_and_said_to_be() -> None:
    work = work_of(SMALL, DType.BF16, WORKLOAD, Shape(1200, 10))
    found = estimate(work, machine_of(of(link=0)), Group(2))
    assert (found.ttft, found.rate, found.missing) == (None, None, ("performance.linkGBps",))
    assert found.memory == work.memory.on_each(Group(2), 4)


def test_a_prompt_in_pieces_reads_the_weights_for_each() -> None:
    work = work_of(SMALL, DType.BF16, WORKLOAD, Shape(1200, 10))
    slow = machine_of(of(bandwidth=2, tflops=4000))
    whole, four = estimate(work, slow), estimate(work, slow, prefill_chunk=256)
    assert four.ttft == pytest.approx(4 * (whole.ttft or 0))
    assert estimate(work, slow, prefill_chunk=1000) == whole


def test_a_head_of_keys_and_values_is_there_twice_rather_than_divided() -> None:
    memory = work_of(SMALL, DType.BF16, WORKLOAD, Shape(1200, 10)).memory
    eight = memory.on_each(Group(8), 4)
    assert (eight.weights, eight.kv_cache, eight.reserve) == (
        memory.weights / 8, memory.kv_cache / 4, memory.reserve,
    )  # fmt: skip
    assert memory.on_each(Group(2, 4), 4).kv_cache == memory.kv_cache / 8


groups_of_devices = st.builds(Group, st.sampled_from((1, 2, 4, 8)), st.sampled_from((1, 2, 4)))


@settings(max_examples=50, deadline=None)
@given(groups_of_devices, st.integers(1, 10**4), st.integers(1, 10**4), st.integers(1, 8))
def test_more_devices_need_no_more_memory_each_and_a_better_link_makes_nothing_worse(
    group: Group, link: int, more: int, kv_heads: int
) -> None:
    facts = SMALL.model_copy(update={"kv_heads": kv_heads})
    work = work_of(facts, DType.BF16, WORKLOAD, Shape(1200, 10))
    base, better = (estimate(work, machine_of(of(link=each)), group) for each in (link, link + more))
    for name in ("ttft", "tpot", "answer", "joules_per_token", "price"):
        assert getattr(better, name) <= getattr(base, name) * (1 + 1e-9)
    for larger in (group._replace(tensor=2 * group.tensor), group._replace(pipeline=2 * group.pipeline)):
        assert work.memory.on_each(larger, kv_heads).total <= work.memory.on_each(group, kv_heads).total


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 400), st.sampled_from((None, 1, 2, 4, 8)), st.integers(1, 64))
def test_it_is_the_fewest_that_fit_and_a_node_has_them(memory: int, largest: int | None, concurrency: int) -> None:
    result = big(
        gpu(performance={**LINKED, "memoryGiB": memory}, largest=largest), workload={"concurrency": concurrency}
    )
    work = work_of(LLAMA_70B, DType.BF16, Workload(concurrency=concurrency), result.shape)
    fit = [n for n in (1, 2, 4, 8, 16, 32, 64) if work.memory.on_each(Group(n), 8).total <= 0.9 * memory * 2**30]
    fit = [n for n in fit if n <= (largest or 64)]
    # Sixteen are free.
    assert (result.devices_each if result.chosen else None) == (fit[0] if fit and fit[0] <= 16 else None)
