"""The estimate against figures worked out by hand, and against what is known of how engines behave."""

from decimal import Decimal
from typing import Any

import pytest
from rm_api.dtypes import DType
from rm_api.kinds import AcceleratorResourceSpec, ModelFacts
from rm_api.placement import Workload
from rm_operator.plan.buckets import Shape
from rm_operator.plan.placement.estimate import Estimate, Load, estimate, load_of, memory_of, work_of
from rm_operator.plan.placement.explain import decimal
from rm_operator.plan.placement.machine import machine_of

DIGEST = "sha256:" + "0" * 64
# Round numbers: 10^9 parameters in 2 bytes; 2·10·4·50·2 = 8000 bytes of cache for a token.
MODEL: dict[str, Any] = {
    "source": "hf://a/b", "revision": "r", "architecture": "X", "parameters": 10**9, "active_parameters": 10**9,
    "weight_bytes": 2 * 10**9, "dtype": "bf16", "layers": 10, "heads": 20, "kv_heads": 4, "head_dim": 50,
    "max_sequence_length": 10**6, "config_digest": DIGEST, "tensors_digest": DIGEST, "weights_digest": DIGEST,
}  # fmt: skip
WORKLOAD = Workload(input_tokens=1000, output_tokens=200, concurrency=10)
SHAPE = Shape(1200, 10)


def spec(**members: Any) -> AcceleratorResourceSpec:
    base: dict[str, Any] = {"type": "CPU", "vendor": "v", "product": "p", "runtime": {"plugin": "p", "image": "i"}}
    return AcceleratorResourceSpec.model_validate(base | members)


def performance(**members: Any) -> dict[str, Any]:
    """After efficiency 100 GB/s and 1 Tflop/s."""
    base = {"bandwidthGBps": 200, "tflops": [{"dtype": "bf16", "value": 4}]}
    return base | {"efficiency": {"compute": "0.25", "bandwidth": "0.5"}} | members


def of(
    accelerator: AcceleratorResourceSpec,
    model: dict[str, Any] | None = None,
    dtype: DType = DType.BF16,
    workload: Workload = WORKLOAD,
    shape: Shape = SHAPE,
) -> Estimate:
    work = work_of(ModelFacts.model_validate(MODEL | (model or {})), dtype, workload, shape)
    return estimate(work, machine_of(accelerator))


def test_figures_by_hand() -> None:
    result = of(
        spec(performance=performance(), power={"idleWatts": 5, "maxWatts": 100}, cost={"perHour": "3.6"}),
    )
    # prefill computes: (2·10^9·1000 + 2·10·1000²·20·50) / 10^12 = 2.02 s, and 1 ms
    ttft = 2.021
    # step moves: (2·10^9 + 10·1100·8000) / 10^11 = 20.88 ms against 2·10^9·10 / 10^12 = 20 ms, and 1 ms
    tpot = 0.02188
    rate = 10 / (10 * ttft + 200 * tpot)
    assert result.ttft == pytest.approx(ttft)
    assert result.tpot == pytest.approx(tpot)
    assert result.answer == pytest.approx(ttft + 200 * tpot)
    assert result.rate == pytest.approx(rate)
    assert result.joules_per_token == pytest.approx(100 / (200 * rate))
    assert result.price == pytest.approx(0.001 / (200 * rate) * 10**6)
    assert (result.currency, result.provenance, result.missing) == ("USD", "Declared", ())


def test_with_a_demand_as_many_replicas_count_as_it_needs() -> None:
    demand = WORKLOAD.model_copy(update={"requests_per_second": Decimal(1)})
    accelerator = spec(performance=performance(), power={"idleWatts": 5, "maxWatts": 100}, cost={"perHour": "3.6"})
    result = of(accelerator, workload=demand)
    # As above, a replica serves 10 / (10·2.021 + 200·0.02188) = 10 / 24.586 requests/s: 2.4586 of them serve one.
    assert result.replicas == 3
    assert result.utilisation == pytest.approx(2.4586 / 3)
    # Three devices at 5 + 0.819533·95 = 82.85567 W, and 0.001 USD/s each, make 200 tokens/s.
    assert result.joules_per_token == pytest.approx(3 * 82.85567 / 200)
    assert result.price == pytest.approx(15)
    # Latency is that of one replica at full batch, whatever the demand.
    assert (result.ttft, result.tpot, result.rate) == (of(accelerator).ttft, of(accelerator).tpot, of(accelerator).rate)


def test_whoever_has_no_place_in_the_batch_waits_for_one() -> None:
    result = of(spec(performance=performance()), shape=Shape(1200, 4))
    # step moves (2·10^9 + 4·1100·8000) / 10^11 = 20.352 ms, and 1 ms; rate = 4 / (4·2.021 + 200·0.021352) = 4 / 12.3544
    # six requests wait, and leave the queue at that rate: 6 · 12.3544 / 4
    assert result.queue == pytest.approx(18.5316)
    assert result.ttft == pytest.approx(18.5316 + 2.021)
    assert result.answer == pytest.approx(18.5316 + 2.021 + 4.2704)
    assert of(spec(performance=performance())).queue == 0


def test_an_endpoint_has_a_price_by_token_and_no_other_figure() -> None:
    remote = spec(
        type="REMOTE", remote={"endpoint": "https://a.example", "models": [{"source": "hf://a/b", "name": "b"}]},
        cost={"perMillionInputTokens": "0.5", "perMillionOutputTokens": "1.5", "currency": "EUR"},
    )  # fmt: skip
    result = of(remote)
    # each of 10^6 tokens of answers comes with 1000/200 = 5 of prompts: 5·0.5 + 1.5
    assert (result.price, result.currency, result.provenance) == (pytest.approx(4.0), "EUR", "Declared")
    assert (result.ttft, result.rate, result.joules_per_token, result.memory, result.missing) == (None,) * 4 + ((),)
    half = of(spec(type="REMOTE", cost={"perMillionOutputTokens": "1.5"}))
    assert (half.price, half.currency, half.missing) == (None, None, ("cost.perMillionInputTokens",))


def test_with_slow_memory_even_the_prompt_waits_for_the_weights() -> None:
    result = of(spec(performance=performance(bandwidthGBps=1)))
    assert result.ttft == pytest.approx(2 / 0.5 + 0.001)


def test_memory_is_weights_cache_and_reserve() -> None:
    facts = ModelFacts.model_validate(MODEL)
    memory = memory_of(facts, DType.BF16, WORKLOAD, SHAPE)
    assert (memory.weights, memory.kv_cache, memory.reserve) == (2e9, 10 * 1200 * 8000, 2**30)
    assert memory.total == 2e9 + 96e6 + 2**30
    assert memory_of(facts, DType.INT4, WORKLOAD, SHAPE).weights == 0.5e9
    assert memory_of(facts, DType.FP32, WORKLOAD, SHAPE).kv_cache == 2 * 96e6


def test_the_batch_that_is_required_must_fit_and_one_sequence_of_the_greatest_length() -> None:
    facts = ModelFacts.model_validate(MODEL)
    assert memory_of(facts, DType.BF16, WORKLOAD, Shape(1200, 64)).kv_cache == 64 * 1200 * 8000
    assert memory_of(facts, DType.BF16, WORKLOAD, Shape(50_000, 10)).kv_cache == 50_000 * 8000


def test_of_a_mixture_of_experts_a_larger_batch_reads_more() -> None:
    def tpot(active: int) -> float:
        result = of(
            spec(performance=performance(tflops=[{"dtype": "bf16", "value": 10**6}])), {"active_parameters": active}
        )
        assert result.tpot is not None
        return result.tpot

    # a fifth of the experts each: 1 - 0.8^10 of them are touched by ten sequences
    assert tpot(2 * 10**8) == pytest.approx((2e9 * (1 - 0.8**10) + 88e6) / 1e11 + 0.001)
    assert tpot(2 * 10**8) < tpot(10**9)


@pytest.mark.parametrize(
    ("shape", "load"),
    [
        (Shape(1200, 10), Load(1000, 200, 10)),
        (Shape(5000, 64), Load(1000, 200, 10)),
        (Shape(600, 4), Load(500, 100, 4, waiting=6)),
    ],
)
def test_the_load_is_the_workload_as_far_as_the_shape_lets_it_through(shape: Shape, load: Load) -> None:
    assert load_of(WORKLOAD, shape) == load


@pytest.mark.parametrize(
    ("members", "model", "dtype", "provenance"),
    [
        ({}, {}, DType.BF16, "Declared"),
        ({}, {"dtype": "fp16"}, DType.BF16, "Derived"),
        ({}, {"dtype": "fp16"}, DType.FP16, "Derived"),
        ({"efficiency": {"compute": "0.25"}}, {}, DType.BF16, "Assumed"),
        ({"efficiency": {}}, {"dtype": "fp16"}, DType.BF16, "Assumed"),
        ({"bandwidthGBps": 0}, {}, DType.BF16, "Assumed"),
        ({}, {}, DType.FP32, "Assumed"),
    ],
)
def test_the_provenance_is_the_weakest(
    members: dict[str, Any], model: dict[str, Any], dtype: DType, provenance: str
) -> None:
    assert of(spec(performance=performance(**members)), model, dtype).provenance == provenance


def test_without_efficiencies_the_usual_ones_stand_in() -> None:
    assumed = of(spec(performance=performance(efficiency={})))
    said = of(spec(performance=performance(efficiency={"compute": "0.4", "bandwidth": "0.6"})))
    assert (assumed.ttft, assumed.tpot, assumed.rate) == (said.ttft, said.tpot, said.rate)


@pytest.mark.parametrize(
    ("members", "missing"),
    [
        ({}, ("power", "cost")),
        ({"tflops": []}, ("performance.tflops for bf16", "power", "cost")),
        (
            {"bandwidthGBps": 0, "tflops": []},
            ("performance.bandwidthGBps", "performance.tflops for bf16", "power", "cost"),
        ),
    ],
)
def test_what_is_not_declared_is_named(members: dict[str, Any], missing: tuple[str, ...]) -> None:
    result = of(spec(performance=performance(**members)))
    assert result.missing == missing
    assert (result.rate is None) == (len(missing) > 2)
    assert (result.joules_per_token, result.price) == (None, None)


@pytest.mark.parametrize(
    ("declared", "wanted", "peak"),
    [
        ({"fp16": 8, "fp32": 4}, DType.BF16, 8),
        ({"fp32": 4}, DType.FP16, 4),
        ({"fp16": 8, "int8": 16}, DType.INT4, 16),
        ({"fp16": 8}, DType.FP8, 8),
        ({"fp16": 8, "bf16": 8}, DType.FP32, None),
        ({"int8": 16}, DType.BF16, None),
    ],
)
def test_a_format_without_a_figure_computes_at_the_pace_of_a_wider_one_never_of_a_narrower(
    declared: dict[str, int], wanted: DType, peak: int | None
) -> None:
    def with_peaks(peaks: dict[str, int]) -> float | None:
        tflops = [{"dtype": name, "value": value} for name, value in peaks.items()]
        return of(spec(performance=performance(tflops=tflops)), dtype=wanted).rate

    assert with_peaks(declared) == (None if peak is None else with_peaks({wanted: peak}))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (12.34567, "12.35"),
        (1234.56, "1235"),
        (99_999.0, "100000"),
        (0.000123456, "0.000123"),
        (1e-12, "0"),
        (1e300, "999999999999"),
        (123_456_789_012.0, "123500000000"),
        (100.0, "100"),
    ],
)
def test_numbers_are_shown_as_the_api_admits_them(value: float, shown: str) -> None:
    assert str(decimal(value)) == shown
    assert decimal(value) == Decimal(shown)
