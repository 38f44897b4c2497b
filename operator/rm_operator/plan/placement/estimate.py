"""How fast, how large, how hungry and how dear a model is on a kind of accelerator: a roofline from declared figures.

A pass over the model takes as long as the slower of moving its bytes and computing its operations; what inference
reaches of the peaks is the efficiency. One replica on one device (no tensor or pipeline parallelism), always busy, so
that it draws its full power. Times are seconds, sizes bytes, until they become terms of the API.
"""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from rm_api.dtypes import DType
from rm_api.kinds.accelerator_resource import AcceleratorResourceSpec
from rm_api.kinds.model_deployment import ModelFacts, Workload

from rm_operator.plan.buckets import Shape

GIB = 1024.0**3

DEFAULT_COMPUTE_EFFICIENCY = 0.4
DEFAULT_BANDWIDTH_EFFICIENCY = 0.6
PASS_OVERHEAD_SECONDS = 0.001
"""Launching and scheduling one pass over the model, whatever its size."""
RESERVE_BYTES = 1 * GIB
"""Activations and the engine's own buffers."""
USABLE_MEMORY = 0.9
"""Part of the device memory that may be planned with; the rest is for fragmentation and the driver."""

_LARGEST = 10**18
_SMALLEST = 1e-12
"""Facts and figures are cut here, so that no product or quotient of them leaves the range of a float."""

# A format that is not declared computes at least as fast as a wider one that it can be converted to.
_WIDER: dict[DType, tuple[DType, ...]] = {
    DType.FP32: (),
    DType.FP16: (DType.BF16, DType.FP32),
    DType.BF16: (DType.FP16, DType.FP32),
    DType.FP8: (DType.FP16, DType.BF16, DType.FP32),
    DType.INT8: (DType.FP16, DType.BF16, DType.FP32),
    DType.INT4: (DType.INT8, DType.FP16, DType.BF16, DType.FP32),
}


class Provenance(StrEnum):
    """Where a figure comes from, the strongest first."""

    DECLARED = "Declared"
    DERIVED = "Derived"
    ASSUMED = "Assumed"


_STRENGTH = tuple(Provenance)


@dataclass(frozen=True)
class Load:
    """The work of one replica."""

    input_tokens: float
    output_tokens: float
    batch: int
    """Sequences that are computed together."""


@dataclass(frozen=True)
class Memory:
    """Device memory that is needed, in bytes."""

    weights: float
    kv_cache: float
    reserve: float = RESERVE_BYTES

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.weights + self.kv_cache + self.reserve


@dataclass(frozen=True)
class Estimate:
    """Figures of a model on an accelerator; None where a declaration that they need is missing."""

    memory: Memory
    provenance: Provenance
    """The weakest source of the figures."""
    missing: tuple[str, ...]
    """Members of the AcceleratorResource's spec that would make the unknown figures known."""
    ttft: float | None = None
    """Seconds to the first token."""
    tpot: float | None = None
    """Seconds for each further token."""
    answer: float | None = None
    """Seconds for a whole answer."""
    rate: float | None = None
    """Requests per second."""
    joules_per_token: float | None = None
    """Joules per token of an answer."""
    price: float | None = None
    """Price of 10^6 tokens of answers, in ``currency``."""
    currency: str | None = None


def load_of(workload: Workload, shape: Shape) -> Load:
    """The workload as far as ``shape`` lets it through: longer requests are cut in proportion, larger batches wait.

    Independent of the number of replicas, so that scaling never moves a deployment.
    """
    tokens = workload.input_tokens + workload.output_tokens
    part = min(1.0, shape.sequence / tokens)
    return Load(workload.input_tokens * part, workload.output_tokens * part, min(workload.concurrency, shape.batch))


def memory_of(facts: ModelFacts, dtype: DType, workload: Workload, shape: Shape) -> Memory:
    """Memory of a full batch of typical requests, and at least of one request of the greatest length."""
    load = load_of(workload, shape)
    tokens = max(shape.batch * (load.input_tokens + load.output_tokens), float(shape.sequence))
    return Memory(weights=_weight_bytes(facts, dtype), kv_cache=tokens * _kv_bytes(facts, dtype))


def memory_limit(spec: AcceleratorResourceSpec) -> float | None:
    """Bytes of a device that may be used; None where its memory is not declared."""
    gib = figure(spec.performance.memory_gib)
    return None if gib is None else USABLE_MEMORY * gib * GIB


def estimate(
    facts: ModelFacts, spec: AcceleratorResourceSpec, dtype: DType, workload: Workload, shape: Shape
) -> Estimate:
    """All figures of the model in ``dtype`` on one device."""
    memory = memory_of(facts, dtype, workload, shape)
    bandwidth = figure(spec.performance.bandwidth_gbps)
    tflops, source = _tflops(spec, dtype)
    efficiency = spec.performance.efficiency
    compute_part, bandwidth_part = _fraction(efficiency.compute), _fraction(efficiency.bandwidth)

    sources = [source]
    if dtype is not facts.dtype:
        sources.append(Provenance.DERIVED)
    if None in (bandwidth, compute_part, bandwidth_part):
        sources.append(Provenance.ASSUMED)
    provenance = max(sources, key=_STRENGTH.index)
    missing = [
        name
        for name, known in (
            ("performance.bandwidthGBps", bandwidth),
            (f"performance.tflops for {dtype}", tflops),
            ("power", spec.power),
            ("cost", spec.cost),
        )
        if known is None
    ]
    if bandwidth is None or tflops is None:
        return Estimate(memory, provenance, tuple(missing))

    speed = _Speed(
        bytes_per_second=bandwidth * 1e9 * (bandwidth_part or DEFAULT_BANDWIDTH_EFFICIENCY),
        operations_per_second=tflops * 1e12 * (compute_part or DEFAULT_COMPUTE_EFFICIENCY),
    )
    load = load_of(workload, shape)
    ttft = _prefill(facts, memory.weights, load, speed)
    tpot = _step(facts, memory.weights, _kv_bytes(facts, dtype), load, speed)
    rate = load.batch / (load.batch * ttft + load.output_tokens * tpot)
    tokens_per_second = rate * load.output_tokens
    power, cost = spec.power, spec.cost
    return Estimate(
        memory=memory,
        provenance=provenance,
        missing=tuple(missing),
        ttft=ttft,
        tpot=tpot,
        answer=ttft + load.output_tokens * tpot,
        rate=rate,
        joules_per_token=None if power is None else _amount(power.max_watts) / tokens_per_second,
        price=None if cost is None else _amount(cost.per_hour) / 3600 / tokens_per_second * 1e6,
        currency=None if cost is None else cost.currency,
    )


@dataclass(frozen=True)
class _Speed:
    bytes_per_second: float
    operations_per_second: float


def _prefill(facts: ModelFacts, weights: float, load: Load, speed: _Speed) -> float:
    tokens = load.input_tokens
    attention = 2 * _number(facts.layers) * tokens**2 * _number(facts.heads) * _number(facts.head_dim)
    operations = 2 * _number(facts.active_parameters) * tokens + attention
    return max(operations / speed.operations_per_second, weights / speed.bytes_per_second) + PASS_OVERHEAD_SECONDS


def _step(facts: ModelFacts, weights: float, kv_bytes: float, load: Load, speed: _Speed) -> float:
    context = load.input_tokens + load.output_tokens / 2
    moved = weights * _weights_touched(facts, load.batch) + load.batch * context * kv_bytes
    operations = 2 * _number(facts.active_parameters) * load.batch
    return max(moved / speed.bytes_per_second, operations / speed.operations_per_second) + PASS_OVERHEAD_SECONDS


def _weights_touched(facts: ModelFacts, batch: int) -> float:
    """Part of the weights that a batch reads; with experts, each sequence picks its own, whatever the others pick."""
    if facts.active_parameters >= facts.parameters:
        return 1.0
    return float(1.0 - (1.0 - facts.active_parameters / facts.parameters) ** batch)


def _weight_bytes(facts: ModelFacts, dtype: DType) -> float:
    return _number(facts.weight_bytes) * float(dtype.bytes / facts.dtype.bytes)


def _kv_bytes(facts: ModelFacts, dtype: DType) -> float:
    """Bytes per token. Formats below 16 bits are those of the weights; engines keep the cache in 16 bits."""
    width = 4.0 if dtype is DType.FP32 else 2.0
    return 2 * _number(facts.layers) * _number(facts.kv_heads) * _number(facts.head_dim) * width


def _tflops(spec: AcceleratorResourceSpec, dtype: DType) -> tuple[float | None, Provenance]:
    declared = {entry.dtype: figure(entry.value) for entry in spec.performance.tflops}
    for candidate in (dtype, *_WIDER[dtype]):
        value = declared.get(candidate)
        if value is not None:
            return value, Provenance.DECLARED if candidate is dtype else Provenance.DERIVED
    return None, Provenance.ASSUMED


def figure(value: Decimal | None) -> float | None:
    """A declared figure; 0 says as little as nothing does."""
    return None if value is None or value <= 0 else max(_amount(value), _SMALLEST)


def _fraction(value: Decimal | None) -> float | None:
    known = figure(value)
    return None if known is None else min(known, 1.0)


def _amount(value: Decimal) -> float:
    return float(min(value, Decimal(_LARGEST)))


def _number(value: int) -> float:
    return float(min(value, _LARGEST))
