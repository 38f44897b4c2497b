"""What holds for every fleet, model and workload."""

import functools
import math
from dataclasses import replace
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rm_api.accelerator_types import AcceleratorType
from rm_api.conditions import Reason
from rm_api.dtypes import DType
from rm_api.kinds import AcceleratorResourceSpec, BuildProfileSpec, ModelDeploymentSpec, ModelFacts
from rm_api.placement import Placement, PolicyType, Workload
from rm_api.remote import RemoteModel
from rm_operator.plan.buckets import Shape, required_shape
from rm_operator.plan.placement import AcceleratorView, PlacementRequest, PlacementResult, ProfileView, assess, place
from rm_operator.plan.placement.estimate import Estimate, estimate, memory_of, work_of
from rm_operator.plan.placement.machine import machine_of

# The same examples each time, so that a run means the same on every machine; no deadline, as machines differ.
repeatable = settings(
    deadline=None, derandomize=True, max_examples=100, database=None, suppress_health_check=[HealthCheck.too_slow]
)
# Whole requests are large, and take longer to make up than to answer.
of_requests = settings(repeatable, max_examples=50)

DIGEST = "sha256:" + "0" * 64
VENDORS = ("Red", "Blue")
UNCOUNTED = (AcceleratorType.CPU, AcceleratorType.REMOTE)
amounts = st.one_of(
    st.decimals(min_value=0, max_value=10**12 - 1, places=6, allow_nan=False, allow_infinity=False),
    st.sampled_from([Decimal(0), Decimal("0.000001"), Decimal(16), Decimal(80), Decimal(2000)]),
)

parts = st.decimals(min_value="0.000001", max_value=1, places=6, allow_nan=False, allow_infinity=False)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


def seldom(usual: Any, *odd: Any) -> st.SearchStrategy[Any]:
    """Mostly ``usual``, or few requests would have a place."""
    return st.sampled_from((*([usual] * 14), *odd))


def formats() -> st.SearchStrategy[list[DType]]:
    return st.one_of(st.just([]), st.just(list(DType)), st.lists(st.sampled_from(DType), unique=True, max_size=3))


def prices() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "per_hour": amounts,
            "currency": st.sampled_from(("USD", "EUR")),
            "per_million_input_tokens": optional(amounts),
            "per_million_output_tokens": optional(amounts),
        }
    )


@st.composite
def specs(draw: st.DrawFn) -> AcceleratorResourceSpec:
    kind = draw(st.sampled_from(AcceleratorType))
    members: dict[str, Any] = {
        "type": kind,
        "vendor": draw(st.sampled_from(VENDORS)),
        "product": draw(st.sampled_from(("P1", "P2"))),
        "tags": draw(st.lists(st.sampled_from(("a", "b")), unique=True)),
        "priority": draw(optional(st.integers(-1000, 1000))),
        "resource_name": None if kind in UNCOUNTED else "red.com/x",
        "allowed_namespaces": ["ns"] if kind is AcceleratorType.REMOTE else draw(seldom([], ["ns"], ["other"])),
        "provisioning": draw(seldom({}, {"mode": "Elastic"}, {"mode": "Elastic", "max_devices": 2})),
        "remote": {
            "endpoint": "https://a.example",
            "models": [{"source": draw(seldom("hf://a/b", "hf://c/d")), "name": "b"}],
            "max_concurrency": draw(seldom(None, 4)),
        }
        if kind is AcceleratorType.REMOTE
        else None,
        "capability": {
            "features": draw(st.lists(st.sampled_from(("f", "g")), unique=True)),
            "dtypes": draw(formats()),
            "max_batch_size": draw(seldom(None, 1, 8, 64)),
            "max_sequence_length": draw(seldom(None, 1, 2048, 16384)),
        },
        "performance": {
            "memory_gib": draw(st.one_of(st.none(), st.sampled_from([16, 80, 10**11]), amounts)),
            "bandwidth_gbps": draw(optional(amounts)),
            "tflops": [
                {"dtype": dtype, "value": draw(amounts)}
                for dtype in draw(st.lists(st.sampled_from(DType), unique=True, max_size=3))
            ],
            "efficiency": {"compute": draw(optional(parts)), "bandwidth": draw(optional(parts))},
        },
        "power": draw(optional(st.builds(lambda w: {"idle_watts": w, "max_watts": w}, amounts))),
        "cost": draw(optional(prices())),
        "runtime": {"plugin": "p", "image": "i"},
    }
    return AcceleratorResourceSpec.model_validate({k: v for k, v in members.items() if v is not None})


@st.composite
def fleets(draw: st.DrawFn, least: int = 0, most: int = 6) -> tuple[AcceleratorView, ...]:
    counts = seldom(None, 0, 1, 4)
    return tuple(
        AcceleratorView(
            f"accel-{i}",
            draw(specs()),
            draw(counts),
            draw(counts),
            draw(counts),
            draw(seldom(True, False)),
            taken=draw(seldom(False, True)),
        )
        for i in range(draw(st.integers(least, most)))
    )


def recipe(kind: AcceleratorType, vendor: str, **members: Any) -> dict[str, Any]:
    target = {"type": kind, "vendor": vendor} | members.pop("target", {})
    step = {"name": "s", "image": "i", "command": ["c"]}
    return {"target": target, "steps": [step], "output": {"format": "f"}} | members


@functools.cache
def built(kind: AcceleratorType, vendor: str, *choices: Any) -> BuildProfileSpec:
    products, architectures, dtypes, priority, sequence, batch = choices
    supports = {"architectures": list(architectures), "dtypes": list(dtypes)}
    shapes = {"sequence": list(sequence), "batch": list(batch)}
    recipe_ = recipe(
        kind, vendor, target={"products": list(products)}, supports=supports, priority=priority, shapes=shapes
    )
    return BuildProfileSpec.model_validate(recipe_)


@st.composite
def profiles(draw: st.DrawFn) -> tuple[ProfileView, ...]:
    def one(name: str, kind: AcceleratorType, vendor: str) -> ProfileView:
        spec = built(
            kind,
            vendor,
            draw(seldom((), ("P1",))),
            draw(seldom((), ("X",), ("Y",))),
            draw(st.sampled_from(((), (), tuple(DType), (DType.FP16,), (DType.INT8, DType.BF16), (DType.INT8,)))),
            draw(st.integers(-2, 2)),
            draw(st.sampled_from(((), (1024, 8192)))),
            draw(st.sampled_from(((), (1, 16)))),
        )
        return ProfileView(name, spec, draw(seldom(True, False)), "broken")

    targets = [(kind, vendor) for kind in AcceleratorType if kind is not AcceleratorType.REMOTE for vendor in VENDORS]
    targets += draw(st.lists(st.sampled_from(targets), max_size=4))
    return tuple(one(f"profile-{i}", kind, vendor) for i, (kind, vendor) in enumerate(targets))


@st.composite
def models(draw: st.DrawFn) -> ModelFacts:
    size = st.one_of(st.integers(0, 10**10), st.integers(0, 10**12), seldom(8 * 10**9, 10**400))
    small = st.one_of(st.integers(1, 32), seldom(8, 10**400))
    return ModelFacts(
        source="hf://a/b", revision="r", architecture=draw(st.sampled_from("XY")), parameters=draw(size),
        active_parameters=draw(size), weight_bytes=draw(size), dtype=draw(st.sampled_from(DType)),
        layers=draw(small), heads=draw(small), kv_heads=draw(small), head_dim=draw(small),
        max_sequence_length=draw(seldom(32768, 1, 1000, 10**6)),
        config_digest=DIGEST, tensors_digest=DIGEST, weights_digest=DIGEST,
    )  # fmt: skip


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    policy = draw(st.sampled_from(PolicyType))
    if policy is not PolicyType.WEIGHTED:
        return {"type": policy}
    goals = ("latency", "throughput", "energy", "cost")
    return {"type": policy, "weights": {goal: draw(st.integers(0, 100)) for goal in goals}}


@st.composite
def deployments(draw: st.DrawFn) -> ModelDeploymentSpec:
    tokens = st.one_of(st.integers(1, 2048), st.integers(1, 16777216))
    return ModelDeploymentSpec.model_validate(
        {
            "model": {"source": "hf://a/b"},
            "policy": draw(policies()),
            "slo": draw(seldom({}, {"ttftMs": 1000}, {"tpotMs": 50}, {"ttftMs": 1, "tpotMs": 1})),
            "suspend": draw(seldom(False, True)),
            "workload": {
                "inputTokens": draw(tokens),
                "outputTokens": draw(tokens),
                "concurrency": draw(st.one_of(st.integers(1, 16), st.integers(1, 65536))),
                "requestsPerSecond": draw(optional(amounts.filter(bool))),
            },
            "accelerators": {
                "types": draw(seldom([], ["NPU", "GPU"], ["CPU"])),
                "exclude": draw(seldom([], ["accel-0"])),
                "tags": draw(seldom([], ["a"])),
            },
            "requirements": {
                "dtype": draw(seldom(None, *DType)),
                "maxSequenceLength": draw(seldom(None, 1, 1000, 16384)),
                "maxBatchSize": draw(seldom(None, 1, 16, 64)),
                "features": draw(seldom([], ["f"])),
            },
            "replicas": draw(st.integers(0, 5)),
            "buildProfile": draw(seldom(None, "profile-0", "nowhere")),
        }
    )


@st.composite
def requests(draw: st.DrawFn) -> PlacementRequest:
    """Anything that the API admits, however odd."""
    current = draw(optional(st.sampled_from(("accel-0", "accel-1", "gone"))))
    return PlacementRequest(
        "chat",
        draw(deployments()),
        draw(models()),
        draw(fleets(1)),
        draw(profiles()),
        current,
        draw(optional(st.sampled_from(PolicyType))),
        draw(st.sampled_from(("ns", "other"))),
        draw(st.sampled_from((0.0, 299.0, 300.0))),
    )


@st.composite
def easy(draw: st.DrawFn) -> PlacementRequest:
    """Requests that several accelerators can take: a plain profile for every target, no memory declared."""

    def simple(view: AcceleratorView) -> AcceleratorView:
        capability = view.spec.capability.model_copy(
            update={"max_batch_size": None, "max_sequence_length": None, "dtypes": []}
        )
        performance = view.spec.performance.model_copy(update={"memory_gib": None})
        changes: dict[str, Any] = {"capability": capability, "performance": performance, "allowed_namespaces": ["ns"]}
        if view.spec.remote is not None:
            served = [RemoteModel(source="hf://a/b", name="b")]
            changes["remote"] = view.spec.remote.model_copy(update={"models": served, "max_concurrency": None})
        spec = view.spec.model_copy(update=changes)
        free = draw(st.integers(0, 2))
        return replace(view, spec=spec, ready=True, nodes=None, healthy=None, taken=False, free=free)

    fleet = tuple(simple(view) for view in draw(fleets(2, 8)))
    spec = ModelDeploymentSpec.model_validate({"model": {"source": "hf://a/b"}, "policy": draw(policies())})
    every = tuple(
        ProfileView(f"{kind.lower()}-{vendor.lower()}", built(kind, vendor, (), (), (), 0, (), ()))
        for kind in AcceleratorType
        for vendor in VENDORS
    )
    return PlacementRequest("chat", spec, draw(models()), fleet, every, namespace="ns")


@of_requests
@given(requests())
def test_every_request_has_an_answer_that_the_api_admits(request: PlacementRequest) -> None:
    result = place(request)
    status = Placement(
        policy=request.spec.policy.type,
        chosen=result.chosen,
        profile=result.profile,
        candidates=list(result.candidates),
    )
    assert Placement.model_validate(status.to_wire()) == status
    assert len({c.name for c in result.candidates}) == len(result.candidates) == min(16, len(request.accelerators))
    assert (result.chosen is not None) == (result.reason is Reason.PLACED) == (result.dtype is not None)
    assert result.message
    assert "\n" not in result.message
    if result.chosen is not None:
        assert {c.name: c for c in result.candidates}[result.chosen].eligible
    for candidate in result.candidates:
        assert candidate.reason
        assert candidate.eligible == (candidate.provenance is not None)
        assert candidate.eligible or not candidate.terms
    eligible = [c.eligible for c in result.candidates]
    assert eligible == sorted(eligible, reverse=True)


@of_requests
@given(requests(), st.randoms(use_true_random=False))
def test_the_answer_is_the_same_whatever_the_order_and_however_often(request: PlacementRequest, random: Any) -> None:
    accelerators, known = list(request.accelerators), list(request.profiles)
    random.shuffle(accelerators)
    random.shuffle(known)
    shuffled = replace(request, accelerators=tuple(accelerators), profiles=tuple(known))
    assert place(shuffled) == place(request) == place(request)


@settings(of_requests, max_examples=25)
@given(requests(), fleets(1), profiles(), deployments())
def test_what_was_asked_before_changes_no_answer(
    request: PlacementRequest,
    others: tuple[AcceleratorView, ...],
    recipes: tuple[ProfileView, ...],
    spec: ModelDeploymentSpec,
) -> None:
    # The same question about other accelerators of the same names, with other profiles; and another question.
    first = place(request)
    changed = (
        replace(request, accelerators=others),
        replace(request, profiles=recipes),
        replace(request, namespace="another"),
        replace(request, spec=spec),
    )
    answers = [place(each) for each in changed]
    assert place(request) == first
    for each, answer in zip(changed, answers, strict=True):
        assess._recent.clear()
        assert place(each) == answer


@of_requests
@given(requests())
def test_what_is_compiled_covers_what_is_needed_and_stays_within_the_accelerator(request: PlacementRequest) -> None:
    result = place(request)
    if result.chosen is None:
        assert (result.bucket, result.profile) == (None, None)
        return
    assert result.bucket is not None
    capability = next(a for a in request.accelerators if a.name == result.chosen).spec.capability
    for size, needed, limit in (
        (result.bucket.max_sequence_length, result.shape.sequence, capability.max_sequence_length),
        (result.bucket.max_batch_size, result.shape.batch, capability.max_batch_size),
    ):
        assert needed <= (size or needed) <= (limit or size or needed)
    required = request.spec.requirements.dtype
    assert required is None or result.dtype is required


@of_requests
@given(easy())
def test_an_untouched_fleet_causes_no_moves(request: PlacementRequest) -> None:
    first = place(request)
    for policy in (None, request.spec.policy.type):
        again = place(replace(request, current=first.chosen, current_policy=policy, led_for=1e9))
        assert again.chosen == first.chosen
        assert (again.leader, again.message, again.candidates) == (None, first.message, first.candidates)


@of_requests
@given(easy())
def test_a_move_gains_a_tenth_and_the_place_that_it_leads_to_is_kept(request: PlacementRequest) -> None:
    for accelerator in request.accelerators:
        there = replace(request, current=accelerator.name, current_policy=request.spec.policy.type)
        waiting, moved = place(there), place(replace(there, led_for=300.0))
        assert waiting.chosen == accelerator.name
        assert (waiting.leader is not None) == (moved.chosen != accelerator.name)
        assert place(replace(there, led_for=300.0, current=moved.chosen)).chosen == moved.chosen
        scores = {c.name: c.score for c in moved.candidates}
        if moved.chosen != accelerator.name:
            # 1.1 times better, in figures: e to the difference of the scores.
            assert float(scores[moved.chosen or ""] or 0) - float(scores[accelerator.name] or 0) >= math.log(1.1) - 1e-4


@of_requests
@given(easy())
def test_whoever_waits_would_gain_by_what_it_waits_for(request: PlacementRequest) -> None:
    result = place(request)
    full = {a.name for a in request.accelerators if a.free == 0}
    assert set(result.waits_for) <= full
    for name in result.waits_for:
        more = tuple(replace(a, free=1) if a.name == name else a for a in request.accelerators)
        assert place(replace(request, accelerators=more)).chosen == name


def rank(result: PlacementResult) -> list[str]:
    return [c.name for c in result.candidates if c.eligible]


@of_requests
@given(easy())
def test_without_the_winner_the_runner_up_wins_and_the_others_keep_their_order(request: PlacementRequest) -> None:
    order = rank(place(request))
    assume(len(order) > 1)
    others = tuple(a for a in request.accelerators if a.name != order[0])
    again = place(replace(request, accelerators=others))
    assert again.chosen == order[1]
    assert rank(again) == order[1:]


@of_requests
@given(easy(), st.data())
def test_more_capacity_never_makes_the_choice_worse(request: PlacementRequest, data: st.DataObject) -> None:
    before = place(request)
    grown = data.draw(st.sampled_from(request.accelerators))
    more = tuple(
        replace(a, free=(a.free or 0) + 1) if a is grown and a.free is not None else a for a in request.accelerators
    )
    after = place(replace(request, accelerators=more))
    if before.chosen is not None:
        order = rank(after)
        assert order.index(after.chosen or "") <= order.index(before.chosen)
        assert set(rank(before)) <= set(order)
        scores = {c.name: c.score for c in (*before.candidates, *after.candidates)}
        old, new = scores[before.chosen], scores[after.chosen or ""]
        if old is not None and request.spec.policy.type not in (PolicyType.COST, PolicyType.WEIGHTED):
            assert new is not None
            assert Decimal(new) >= Decimal(old)


FIGURES = ("ttft", "tpot", "answer")


def known(facts: ModelFacts, spec: AcceleratorResourceSpec, workload: Workload, shape: Shape) -> Estimate:
    return estimate(work_of(facts, DType.BF16, workload, shape), machine_of(spec))


def machine(bandwidth: int, tflops: int) -> AcceleratorResourceSpec:
    return AcceleratorResourceSpec.model_validate(
        {
            "type": "CPU", "vendor": "v", "product": "p", "runtime": {"plugin": "p", "image": "i"},
            "performance": {"bandwidthGBps": bandwidth, "tflops": [{"dtype": "bf16", "value": tflops}]},
            "power": {"idleWatts": 1, "maxWatts": 100}, "cost": {"perHour": 1},
        }
    )  # fmt: skip


def no_worse(better: Estimate, worse: Estimate) -> None:
    slack = 1 + 1e-9
    for name in ("ttft", "tpot", "answer", "joules_per_token", "price"):
        assert getattr(better, name) <= getattr(worse, name) * slack
    assert (better.rate or 0) * slack >= (worse.rate or 0)


positive = st.integers(1, 10**6)


demands = optional(st.sampled_from([Decimal("0.000001"), Decimal(1), Decimal(1000)]))


@repeatable
@given(models(), positive, positive, positive, positive, demands, st.sampled_from((3, 8)))
def test_more_bandwidth_or_compute_makes_nothing_worse(
    facts: ModelFacts,
    bandwidth: int,
    tflops: int,
    more_bandwidth: int,
    more_tflops: int,
    demand: Decimal | None,
    batch: int,
) -> None:
    workload, shape = Workload(requests_per_second=demand), Shape(1280, batch)
    base = known(facts, machine(bandwidth, tflops), workload, shape)
    no_worse(known(facts, machine(bandwidth + more_bandwidth, tflops), workload, shape), base)
    no_worse(known(facts, machine(bandwidth, tflops + more_tflops), workload, shape), base)


@repeatable
@given(models(), positive, positive, demands)
def test_replicas_serve_the_demand_and_one_less_would_not(
    facts: ModelFacts, bandwidth: int, tflops: int, demand: Decimal | None
) -> None:
    found = known(facts, machine(bandwidth, tflops), Workload(requests_per_second=demand), Shape(1280, 8))
    if demand is None:
        assert (found.replicas, found.utilisation) == (None, None)
        return
    assert found.replicas is not None
    assert found.rate is not None
    assert found.replicas >= 1
    assert found.replicas * found.rate >= float(demand) * (1 - 1e-9)
    assert (found.replicas - 1) * found.rate < float(demand) * (1 + 1e-9)
    assert 0 < (found.utilisation or 0) <= 1 + 1e-9


@repeatable
@given(models(), positive, positive, st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 10**5))
def test_longer_prompts_and_answers_take_longer_and_more_memory(
    facts: ModelFacts, bandwidth: int, tflops: int, prompt: int, answer: int, more: int
) -> None:
    facts = facts.model_copy(update={"max_sequence_length": 10**6})
    spec = machine(bandwidth, tflops)

    def both(prompt_tokens: int, answer_tokens: int) -> tuple[Estimate, float]:
        workload = Workload(input_tokens=prompt_tokens, output_tokens=answer_tokens)
        shape = Shape(prompt_tokens + answer_tokens, 8)
        memory = memory_of(facts, DType.BF16, workload, shape).total
        return known(facts, spec, workload, shape), memory

    base, memory = both(prompt, answer)
    for longer, longer_memory in (both(prompt + more, answer), both(prompt, answer + more)):
        assert longer_memory >= memory
        assert (longer.rate or 0) <= (base.rate or 0) * (1 + 1e-9)
        for name in FIGURES:
            assert getattr(longer, name) >= getattr(base, name) * (1 - 1e-9)


@repeatable
@given(models(), positive, positive, st.integers(1, 10**4), st.integers(1, 10**4))
def test_a_larger_batch_takes_longer_and_more_memory_but_serves_no_less(
    facts: ModelFacts, bandwidth: int, tflops: int, batch: int, more: int
) -> None:
    spec = machine(bandwidth, tflops)

    def both(size: int) -> tuple[Estimate, float]:
        workload, shape = Workload(concurrency=size), Shape(1280, size)
        return known(facts, spec, workload, shape), memory_of(facts, DType.BF16, workload, shape).total

    (small, small_memory), (large, large_memory) = both(batch), both(batch + more)
    assert large_memory >= small_memory
    assert (large.tpot or 0) >= (small.tpot or 0) * (1 - 1e-9)
    assert (large.rate or 0) * (1 + 1e-9) >= (small.rate or 0)


@repeatable
@given(deployments(), models())
def test_the_required_shape_is_positive_and_within_the_model_unless_said_otherwise(
    spec: ModelDeploymentSpec, facts: ModelFacts
) -> None:
    shape = required_shape(spec, facts)
    assert shape.sequence >= 1
    assert shape.batch >= 1
    if spec.requirements.max_sequence_length is None:
        assert shape.sequence <= facts.max_sequence_length
