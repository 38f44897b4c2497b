"""Placement as tables: what each policy picks, and the sentence of each filter."""

from dataclasses import replace
from typing import Any

import pytest
from placement_fleet import (
    CPU,
    FLEET,
    GPU,
    LLAMA_8B,
    NPU_FAST,
    PROFILES,
    REMOTE,
    accelerator,
    candidate,
    cost,
    endpoint,
    figures,
    profile,
    request,
)
from rm_api.conditions import Reason
from rm_api.kinds.build_artifact import ShapeBucket
from rm_api.placement import Placement, PolicyType
from rm_operator.plan.placement import ProfileView, place


@pytest.mark.parametrize(
    ("policy", "chosen", "figure"),
    [
        ("Latency", "npu-fast", "latency"),
        ("Throughput", "gpu", "rate"),
        ("Energy", "pim", "joulesPerToken"),
        ("Cost", "remote", "pricePerMillionTokens"),
    ],
)
def test_each_policy_picks_another_accelerator_of_one_fleet(policy: str, chosen: str, figure: str) -> None:
    result = place(request(policy={"type": policy}))
    assert (result.chosen, result.reason) == (chosen, Reason.PLACED)
    terms = {c.name: {t.name: t.value for t in c.terms} for c in result.candidates if c.eligible}
    values = {name: term[figure] for name, term in terms.items() if figure in term}
    best = max if figure == "rate" else min
    assert best(values, key=lambda name: values[name]) == chosen
    assert figure in result.message
    assert result.message.startswith(f"chat goes to {chosen} ")


def test_a_weighted_policy_picks_what_no_single_one_would() -> None:
    # energy and cost alike: npu-small is second in one and third in the other, and everybody else is worse in one
    weights = {"energy": 30, "cost": 30}
    result = place(request(policy={"type": "Weighted", "weights": weights}))
    assert result.chosen == "npu-small"
    assert "highest weighted score" in result.message
    assert "npu-small's" in candidate(result, "npu-fast").reason
    # only the ratio of the weights counts
    assert place(request(policy={"type": "Weighted", "weights": {"energy": 1, "cost": 1}})) == result


@pytest.mark.parametrize(
    ("weights", "single"),
    [
        ({"latency": 7}, "Latency"),
        ({"throughput": 1}, "Throughput"),
        ({"energy": 100}, "Energy"),
        ({"cost": 2}, "Cost"),
    ],
)
def test_a_single_weight_is_the_policy_of_that_name(weights: dict[str, int], single: str) -> None:
    def order(policy: dict[str, Any]) -> list[tuple[str, str | None]]:
        return [(c.name, c.score) for c in place(request(policy=policy)).candidates]

    assert order({"type": "Weighted", "weights": weights}) == order({"type": single})


def test_a_compiled_candidate_brings_profile_dtype_and_rounded_shapes() -> None:
    result = place(request())
    assert (result.profile, result.dtype, result.bucket) == (
        "red",
        "bf16",
        ShapeBucket(max_sequence_length=2048, max_batch_size=16),
    )


def test_what_a_profile_does_not_compile_in_is_absent_from_the_bucket() -> None:
    result = place(request(policy={"type": "Throughput"}))
    assert (result.profile, result.bucket) == ("green", ShapeBucket())
    assert (result.shape.sequence, result.shape.batch) == (1280, 8)


def test_candidates_fit_the_api_and_name_every_term_with_its_unit() -> None:
    result = place(request(fleet=(*FLEET, replace(GPU, name="gpu-full", free=0))))
    wire = Placement(policy=PolicyType.LATENCY, chosen=result.chosen, candidates=list(result.candidates)).to_wire()
    best = wire["candidates"][0]
    assert {t["name"]: t["unit"] for t in best["terms"]} == {
        "ttft": "ms", "tpot": "ms", "latency": "ms", "rate": "req/s", "memory": "GiB", "memoryLimit": "GiB",
        "joulesPerToken": "J/token", "pricePerMillionTokens": "USD/Mtoken",
    }  # fmt: skip
    assert all("E" not in t["value"] and len(t["value"]) <= 20 for c in wire["candidates"] for t in c.get("terms", []))
    assert [c["name"] for c in wire["candidates"]][-1] == "gpu-full"
    assert wire["candidates"][-1]["terms"] == []
    assert Placement.model_validate(wire).to_wire() == wire


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ({"type": "Latency"}, ["npu", "gpu", "pim", "fpga", "cpu", "remote"]),
        ({"type": "Throughput"}, ["gpu", "npu", "pim", "fpga", "cpu", "remote"]),
        ({"type": "Energy"}, ["npu", "pim", "gpu", "fpga", "cpu", "remote"]),
        ({"type": "Cost"}, ["cpu", "remote", "npu", "gpu", "pim", "fpga"]),
        # the heaviest weight prefers; of equal ones the first of latency, throughput, energy, cost
        ({"type": "Weighted", "weights": {"latency": 1, "cost": 2}}, ["cpu", "remote", "npu", "gpu", "pim", "fpga"]),
        ({"type": "Weighted", "weights": {"throughput": 2, "cost": 2}}, ["gpu", "npu", "pim", "fpga", "cpu", "remote"]),
    ],
)
def test_without_figures_the_policy_prefers_types(policy: dict[str, Any], order: list[str]) -> None:
    types = ("CPU", "FPGA", "GPU", "NPU", "PIM")
    assert REMOTE.spec.remote is not None
    remote = accelerator("remote", "REMOTE", "V", remote=REMOTE.spec.remote.to_wire(), allowedNamespaces=["team"])
    bare = (remote, *(accelerator(t.lower(), t, "V") for t in types))
    known = tuple(profile(t.lower(), t, "V") for t in types)
    result = place(request(policy=policy, fleet=bare, profiles=known))
    assert [c.name for c in result.candidates] == order
    assert all(c.score is None and c.provenance == "Assumed" for c in result.candidates)


@pytest.mark.parametrize("policy", ["Latency", "Throughput", "Energy", "Cost"])
def test_unknown_figures_rank_after_known_ones_however_bad(policy: str) -> None:
    slow = accelerator(
        "slow-cpu", "CPU", "Plain", performance=figures(64, 1, 1), power={"idleWatts": 1, "maxWatts": 900},
        cost={"perHour": 99},
    )  # fmt: skip
    bare = accelerator("npu", "NPU", "Red", priority=1000)
    result = place(request(policy={"type": policy}, fleet=(bare, slow)))
    assert [c.name for c in result.candidates] == ["slow-cpu", "npu"]
    reason = candidate(result, "npu").reason
    assert "not declared: performance.bandwidthGBps, performance.tflops for bf16" in reason
    assert (" power" in reason) == (policy == "Energy")
    assert (" cost" in reason) == (policy == "Cost")


def test_priority_decides_between_equals_then_the_name() -> None:
    twins = tuple(replace(GPU, name=name) for name in ("b", "a"))
    assert place(request(fleet=twins)).chosen == "a"
    preferred = replace(twins[0], spec=twins[0].spec.model_copy(update={"priority": 76}))
    assert place(request(fleet=(preferred, twins[1]))).chosen == "b"


def test_prices_in_different_currencies_are_not_compared() -> None:
    cheap_won = replace(GPU, name="won", spec=GPU.spec.model_copy(update={"cost": cost("0.01", "KRW")}))
    dear_won = replace(GPU, name="dear-won", spec=GPU.spec.model_copy(update={"cost": cost("9", "KRW")}))
    result = place(request(policy={"type": "Cost"}, fleet=(cheap_won, dear_won, GPU)))
    assert [c.name for c in result.candidates] == ["gpu", "won", "dear-won"]
    assert "not compared" in candidate(result, "won").reason
    assert "KRW/Mtoken" in {t.unit for t in candidate(result, "won").terms}


def test_what_costs_nothing_is_cheapest() -> None:
    free = replace(CPU, name="own", spec=CPU.spec.model_copy(update={"cost": cost("0", "USD")}))
    assert place(request(policy={"type": "Cost"}, fleet=(*FLEET, free))).chosen == "own"


def test_the_profile_of_the_highest_priority_that_fits_is_taken_then_the_first_name() -> None:
    def named(name: str, **members: Any) -> ProfileView:
        return profile(name, "NPU", "Red", **members)

    several = (
        named("d", priority=9, shapes={"batch": [1]}),
        named("c", priority=5),
        named("b", priority=5),
        named("a"),
    )
    assert place(request(fleet=(NPU_FAST,), profiles=several)).profile == "b"
    assert place(request(fleet=(NPU_FAST,), profiles=several, buildProfile="a")).profile == "a"


@pytest.mark.parametrize(
    ("supported", "computed", "required", "dtype"),
    [
        ([], [], None, "bf16"),
        (["fp16", "bf16"], [], None, "bf16"),
        (["int8", "fp16", "fp32"], [], None, "fp16"),
        (["fp16", "fp32"], ["fp32", "int8"], None, "fp32"),
        ([], ["int8", "fp16"], None, "fp16"),
        (["int8", "fp16"], ["int8"], "int8", "int8"),
        (["int8"], [], None, None),
        (["fp16"], [], "bf16", None),
        (["fp16"], ["bf16"], None, None),
    ],
)
def test_the_number_format_is_the_required_one_or_the_models_or_a_plain_float(
    supported: list[str], computed: list[str], required: str | None, dtype: str | None
) -> None:
    one = accelerator("npu", "NPU", "Red", capability={"dtypes": computed})
    red = profile("red", "NPU", "Red", supports={"dtypes": supported})
    result = place(request(fleet=(one,), profiles=(red,), requirements={"dtype": required} if required else {}))
    assert result.dtype == dtype
    if dtype not in (None, "bf16", required):
        assert f"computes in {dtype}, as it does not take the model's bf16" in result.message


SOLO = {"fleet": (NPU_FAST,)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"spec": {"accelerators": {"types": ["GPU", "CPU"]}}},
            "its type NPU is not among spec.accelerators.types (CPU, GPU)",
        ),
        (
            {"spec": {"accelerators": {"vendors": ["Blue"]}}},
            "its vendor Red is not among spec.accelerators.vendors (Blue)",
        ),
        (
            {"spec": {"accelerators": {"names": ["gpu"]}}},
            "its name npu-fast is not among spec.accelerators.names (gpu)",
        ),
        (
            {"spec": {"accelerators": {"tags": ["low-latency", "hbm"]}}},
            "it lacks the tags hbm of spec.accelerators.tags",
        ),
        ({"spec": {"accelerators": {"exclude": ["npu-fast"]}}}, "spec.accelerators.exclude lists it"),
        (
            {"fleet": (accelerator("npu", "NPU", "Red", allowedNamespaces=["others", "more"]),)},
            "namespace team may not use it; whoever administers it can add the namespace to its "
            "spec.allowedNamespaces (more, others)",
        ),
        (
            {"fleet": (endpoint("remote", "1", "1", allowedNamespaces=[]),)},
            "namespace team may not use it; whoever administers it can add the namespace to its "
            "spec.allowedNamespaces (none)",
        ),
        (
            {
                "fleet": (accelerator("npu", "NPU", "Red", capability={"features": ["lora"]}),),
                "spec": {"requirements": {"features": ["vision", "lora", "audio"]}},
            },
            "its capability.features lack audio, vision of spec.requirements.features",
        ),
        (
            # Without features of its own it has those of its engine.
            {
                "fleet": (accelerator("npu", "NPU", "Red", runtime={"plugin": "vllm", "image": "i"}),),
                "spec": {"requirements": {"features": ["logprobs", "lora"]}},
            },
            "its capability.features lack lora of spec.requirements.features",
        ),
        (
            {
                "fleet": (accelerator("npu", "NPU", "Red", runtime={"plugin": "iree", "image": "i"}),),
                "spec": {"requirements": {"features": ["logprobs", "structured-outputs"]}},
            },
            "its capability.features lack structured-outputs of spec.requirements.features",
        ),
        (
            {
                "fleet": (accelerator("pim", "PIM", "Red", runtime={"plugin": "upmem", "image": "i"}),),
                "facts": LLAMA_8B.model_copy(update={"architecture": "Qwen2ForCausalLM"}),
            },
            "upmem does not serve Qwen2ForCausalLM; where its image does, list what it serves in "
            "capability.architectures",
        ),
        (
            {
                "fleet": (accelerator("npu", "NPU", "Red", runtime={"plugin": "rebellions", "image": "i"}),),
                "facts": LLAMA_8B.model_copy(update={"architecture": "XForCausalLM"}),
            },
            "rebellions does not serve XForCausalLM; where its image does, list what it serves in "
            "capability.architectures",
        ),
        (
            {
                "fleet": (
                    accelerator(
                        "npu",
                        "NPU",
                        "Red",
                        capability={"architectures": ["YForCausalLM", "XForCausalLM"]},
                        runtime={"command": ["serve"], "image": "i"},
                    ),
                ),
            },
            "its capability.architectures lack LlamaForCausalLM; it serves XForCausalLM, YForCausalLM",
        ),
        (
            {
                "fleet": (accelerator("npu", "NPU", "Red", runtime={"plugin": "tensorrt-llm", "image": "i"}),),
                "spec": {"runtime": {"prefixCaching": False}},
            },
            "its runtime plugin tensorrt-llm cannot be told spec.runtime.prefixCaching; leave that out",
        ),
        (
            {
                "fleet": (accelerator("npu", "NPU", "Red", runtime={"command": ["serve"], "image": "i"}),),
                "spec": {"runtime": {"prefixCaching": True}},
            },
            "its runtime.command cannot be told spec.runtime.prefixCaching; leave that out",
        ),
        (
            {
                "fleet": (
                    endpoint(
                        "remote", "1", "1", remote={"models": [{"source": f"hf://org/{n}", "name": n} for n in "ba"]}
                    ),
                )
            },
            "the endpoint does not serve hf://org/model; it serves hf://org/a, hf://org/b",
        ),
        (
            {"fleet": (endpoint("remote", "1", "1", remote={"maxConcurrency": 7}),)},
            "the endpoint takes 7 requests at the same time, 8 are needed; lower spec.workload.concurrency",
        ),
        (
            {"fleet": (endpoint("remote", "1", "1"),), "spec": {"buildProfile": "red"}},
            "nothing is compiled for an endpoint; remove spec.buildProfile",
        ),
        (
            # 209.2 ms: 2·8·10⁹·1024 and 2·32·1024²·32·128 operations at 0.4·200 Tflop/s, and 1 ms.
            {"spec": {"slo": {"ttftMs": 209}}},
            "its estimated time to the first token is 209.2 ms, spec.slo.ttftMs allows 209; "
            "raise it, or lower spec.workload",
        ),
        (
            {"spec": {"slo": {"ttftMs": 210, "tpotMs": 12}}},
            "its estimated time per token is 12.95 ms, spec.slo.tpotMs allows 12; raise it, or lower spec.workload",
        ),
        (
            {"profiles": PROFILES[:4]},
            "no BuildProfile targets NPU Red NPU-FAST; install one",
        ),
        (
            {"profiles": (profile("red", "NPU", "Red", target={"products": ["NPU-OLD"]}),)},
            "no BuildProfile targets NPU Red NPU-FAST; install one",
        ),
        (
            {"spec": {"buildProfile": "blue"}},
            "the BuildProfile blue, which spec.buildProfile names, is for another target",
        ),
        (
            {"profiles": (profile("red", "NPU", "Red", supports={"architectures": ["GPT2LMHeadModel"]}),)},
            "no BuildProfile for it compiles LlamaForCausalLM; they compile GPT2LMHeadModel",
        ),
        (
            {"profiles": (profile("red", "NPU", "Red", supports={"dtypes": ["int8", "int4"]}),)},
            "it and its BuildProfiles do not take the bf16 of the model; "
            "set spec.requirements.dtype to one of int4, int8",
        ),
        (
            {"spec": {"requirements": {"maxSequenceLength": 10000}}},
            "the model takes at most 8192 tokens, 10000 are required; lower maxSequenceLength",
        ),
        (
            {"fleet": (accelerator("npu", "NPU", "Red", capability={"maxSequenceLength": 1000}),)},
            "it takes sequences of at most 1000 tokens, 1280 are needed; "
            "lower spec.requirements.maxSequenceLength or the tokens of spec.workload",
        ),
        (
            {"spec": {"requirements": {"maxSequenceLength": 4097}}},
            "its BuildProfiles compile sequences of 1024, 2048, 4096 tokens, 4097 are needed; "
            "lower spec.requirements.maxSequenceLength or the tokens of spec.workload",
        ),
        (
            {"fleet": (accelerator("npu", "NPU", "Red", capability={"maxBatchSize": 4}),)},
            "it takes batches of at most 4, 8 are needed; "
            "lower spec.requirements.maxBatchSize or spec.workload.concurrency",
        ),
        (
            {"spec": {"workload": {"concurrency": 17}}},
            "its BuildProfiles compile batches of 1, 16, 17 are needed; "
            "lower spec.requirements.maxBatchSize or spec.workload.concurrency",
        ),
        (
            {"profiles": (profile("red", "NPU", "Red", usable=False, reason="a step names ${NOTHING}"),)},
            "no BuildProfile for it is usable (red: a step names ${NOTHING})",
        ),
        (
            {"profiles": (profile("red", "NPU", "Red", usable=False),)},
            "no BuildProfile for it is usable (red)",
        ),
        (
            {"fleet": (accelerator("npu", "NPU", "Red", performance=figures(16, 1, 1)),)},
            # 16e9 bytes of weights; 8 requests of 1280 tokens at 2·32·8·128·2 bytes; 0.9 of 16.
            "the model needs 17.15 GiB (weights 14.90, KV cache 1.25, reserve 1.00), 14.40 GiB may be used "
            "(0.9 of the device's); "
            "lower spec.requirements.maxBatchSize, spec.workload or spec.requirements.dtype",
        ),
        (
            {"fleet": (replace(NPU_FAST, ready=False, reason="two kinds claim one resource"),)},
            "it is not ready: two kinds claim one resource",
        ),
        (
            {"fleet": (replace(NPU_FAST, nodes=0, healthy=0, free=0),)},
            "no node has red.com/npu-fast; add one, or correct its nodeSelector",
        ),
        (
            {"fleet": (replace(NPU_FAST, healthy=0, free=0),)},
            "no device of red.com/npu-fast is healthy; look at its device plugin and nodes",
        ),
        (
            {"fleet": (replace(NPU_FAST, free=0),)},
            "no device of red.com/npu-fast is free; add one, or release one of those that are taken",
        ),
        (
            {"fleet": (accelerator("npu", "NPU", "Red", provisioning={"mode": "Elastic", "maxDevices": 9}, free=0),)},
            "the 9 devices of red.com/npu that spec.provisioning.maxDevices allows are taken or promised",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_each_filter_alone_removes_with_its_sentence(change: dict[str, Any], sentence: str) -> None:
    assert place(request(**SOLO)).chosen == "npu-fast"
    members = SOLO | {k: v for k, v in change.items() if k != "spec"}
    result = place(request(**members, **change.get("spec", {})))
    reason = Reason.NO_ELIGIBLE_ACCELERATOR
    if "spec.slo" in sentence:
        reason = Reason.SLO_UNREACHABLE
    elif "capability.architectures" in sentence:
        reason = Reason.UNSUPPORTED_MODEL
    assert (result.chosen, result.reason) == (None, reason)
    assert [(c.eligible, c.score, c.reason) for c in result.candidates] == [(False, None, sentence)]
    assert sentence in result.message


def test_each_sentence_says_what_was_removed_by_it_and_equal_ones_are_said_once() -> None:
    result = place(request(fleet=FLEET, requirements={"maxSequenceLength": 9000}))
    sentence = "the model takes at most 8192 tokens"
    assert result.message.count(sentence) == 1
    assert "bare-cpu, cpu, gpu, npu-fast, npu-small, pim, remote: " + sentence in result.message


def test_a_selected_name_that_does_not_exist_is_said() -> None:
    result = place(request(accelerators={"names": ["ghost"]}))
    assert "ghost: no AcceleratorResource of this name exists" in result.message


def test_no_accelerator_and_no_profile_have_reasons_of_their_own() -> None:
    nothing = place(request(fleet=()))
    assert (nothing.reason, nothing.candidates) == (Reason.NO_ACCELERATOR, ())
    assert "create one" in nothing.message
    unknown = place(request(buildProfile="typo"))
    assert (unknown.reason, unknown.chosen) == (Reason.PROFILE_NOT_FOUND, None)
    assert "the BuildProfile typo does not exist (there are: blue, green, grey, plain, red)" in unknown.message
    assert all("typo does not exist" in c.reason for c in unknown.candidates if c.name != "remote")


def test_at_most_sixteen_candidates_and_the_current_one_is_among_them() -> None:
    many = tuple(replace(GPU, name=f"gpu-{i:02}") for i in range(40))
    result = place(request(fleet=many, current="gpu-39"))
    assert len(result.candidates) == 16
    assert result.chosen == result.candidates[-1].name == "gpu-39"
    full = place(request(fleet=tuple(replace(one, free=0) for one in many)))
    assert [c.name for c in full.candidates] == [f"gpu-{i:02}" for i in range(16)]
    assert len(full.message) <= 1024
    assert "and 32 more" in full.message


def test_too_few_free_devices_for_all_replicas_are_said() -> None:
    result = place(request(replicas=6))
    assert "only 4 of the 6 devices that spec.replicas needs are free" in result.message


def test_messages_are_one_line_whatever_people_write() -> None:
    broken = profile("red", "NPU", "Red", usable=False, reason="first\nsecond " + "x" * 5000)
    result = place(request(fleet=(NPU_FAST,), profiles=(broken,)))
    assert "\n" not in result.message
    assert "first second" in result.message
    assert len(result.message) <= 1024
    assert len(result.candidates[0].reason) == 512
