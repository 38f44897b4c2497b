"""How fast, how large, how hungry and how dear a model is on a kind of accelerator: a roofline from declared figures.

A pass over the model takes as long as the slower of moving its bytes and computing its operations; what inference
reaches of the peaks is the efficiency. Of a replica on several devices those that compute a layer together share bytes
and operations, and exchange what they have computed twice a layer; those that have other layers add memory, and no
speed. Times are seconds, sizes bytes, until they become terms of the API.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from rm_api.dtypes import DType
from rm_api.kinds.model_deployment import ModelFacts
from rm_api.placement import Workload

from rm_operator.plan.buckets import ONE_DEVICE, Group, Shape
from rm_operator.plan.placement.machine import GIB, LARGEST, Machine, Provenance, figure

PASS_OVERHEAD_SECONDS = 0.001
"""Launching and scheduling one pass over the model, whatever its size."""
EXCHANGE_SECONDS = 0.00001
"""Beginning one exchange between devices, whatever its size."""
RESERVE_BYTES = 1 * GIB
"""Activations and the engine's own buffers."""


@dataclass(frozen=True)
class Load:
    """The work of one replica."""

    input_tokens: float
    output_tokens: float
    batch: int
    """Sequences that are computed together."""
    waiting: int = 0
    """Requests that are there at the same time, but have no place in the batch."""


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

    def on_each(self, group: Group, kv_heads: int) -> "Memory":
        """What of it is on each device of ``group``: a head's keys and values are not divided, but there twice."""
        if group.devices == 1:
            return self
        sharers = min(group.tensor, kv_heads) * group.pipeline
        return Memory(self.weights / group.devices, self.kv_cache / sharers, self.reserve)


@dataclass(frozen=True)
class Work:
    """What one replica moves and computes, on whatever it runs: bytes and operations."""

    dtype: DType
    converted: bool
    """True if ``dtype`` is not the model's own."""
    load: Load
    memory: Memory
    prefill_bytes: float
    """For the prompt of one request."""
    prefill_operations: float
    step_bytes: float
    """For one token of every sequence of the batch."""
    step_operations: float
    layers: float
    kv_heads: int
    token_bytes: float
    """What one token is between two layers."""
    demand: float | None
    """Requests per second of all clients; None where that is not known."""


class Estimate(NamedTuple):
    """Figures of a model on an accelerator; None where a declaration that they need is missing."""

    provenance: Provenance
    """The weakest source of the figures."""
    missing: tuple[str, ...]
    """Members of the AcceleratorResource's spec that would make the unknown figures known."""
    memory: Memory | None = None
    """Of each device; None where somebody else's memory is used."""
    queue: float = 0.0
    """Seconds that a request waits for its place in the batch; contained in ``ttft``."""
    ttft: float | None = None
    """Seconds to the first token."""
    tpot: float | None = None
    """Seconds for each further token."""
    answer: float | None = None
    """Seconds for a whole answer."""
    rate: float | None = None
    """Requests per second of one replica."""
    replicas: int | None = None
    """Replicas that the demand needs; None where the demand is not known."""
    utilisation: float | None = None
    """Part of the time that these are busy."""
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
    batch = min(workload.concurrency, shape.batch)
    return Load(workload.input_tokens * part, workload.output_tokens * part, batch, workload.concurrency - batch)


def memory_of(facts: ModelFacts, dtype: DType, workload: Workload, shape: Shape) -> Memory:
    """Memory of a full batch of typical requests, and at least of one request of the greatest length."""
    load = load_of(workload, shape)
    tokens = max(shape.batch * (load.input_tokens + load.output_tokens), float(shape.sequence))
    return Memory(weights=_weight_bytes(facts, dtype), kv_cache=tokens * _kv_bytes(facts, dtype))


def work_of(facts: ModelFacts, dtype: DType, workload: Workload, shape: Shape) -> Work:
    """What the model in ``dtype`` asks of a device under ``workload``."""
    load, memory = load_of(workload, shape), memory_of(facts, dtype, workload, shape)
    tokens, active = load.input_tokens, _number(facts.active_parameters)
    attention = 2 * _number(facts.layers) * tokens**2 * _number(facts.heads) * _number(facts.head_dim)
    # In the middle of an answer, on average.
    context = load.input_tokens + load.output_tokens / 2
    return Work(
        dtype=dtype,
        converted=dtype is not facts.dtype,
        load=load,
        memory=memory,
        prefill_bytes=memory.weights,
        prefill_operations=2 * active * tokens + attention,
        step_bytes=memory.weights * _weights_touched(facts, load.batch)
        + load.batch * context * _kv_bytes(facts, dtype),
        step_operations=2 * active * load.batch,
        layers=_number(facts.layers),
        kv_heads=facts.kv_heads,
        token_bytes=_number(facts.heads) * _number(facts.head_dim) * _cache_width(dtype),
        demand=figure(workload.requests_per_second),
    )


def estimate(work: Work, machine: Machine, group: Group = ONE_DEVICE, prefill_chunk: int | None = None) -> Estimate:
    """All figures of the work on ``group``, or on as many of such groups as its demand needs.

    ``prefill_chunk`` is how many tokens of a prompt are computed in one pass; None for all of them.
    """
    if machine.remote:
        return _remote(work, machine)
    memory, missing = work.memory.on_each(group, work.kv_heads), _missing(work, machine, group)
    bandwidth, pace = machine.bytes_per_second, machine.operations_per_second.get(work.dtype)
    if bandwidth is None or pace is None or (group.devices > 1 and machine.link is None):
        return Estimate(Provenance.ASSUMED, missing, memory)
    compute, provenance = pace
    if machine.efficiency_assumed:
        provenance = Provenance.ASSUMED
    elif work.converted:
        provenance = Provenance.DERIVED
    bandwidth, compute = group.tensor * bandwidth, group.tensor * compute

    batch, answer_tokens = work.load.batch, work.load.output_tokens
    passes = 1 if prefill_chunk is None else math.ceil(work.load.input_tokens / prefill_chunk)
    prefill = (
        max(work.prefill_operations / compute, passes * work.prefill_bytes / bandwidth)
        + _exchange(work, machine, group, work.load.input_tokens, passes)
        + passes * PASS_OVERHEAD_SECONDS
    )
    tpot = (
        max(work.step_bytes / bandwidth, work.step_operations / compute)
        + _exchange(work, machine, group, batch, 1)
        + PASS_OVERHEAD_SECONDS
    )
    rate = batch / (batch * prefill + answer_tokens * tpot)
    # Little's law: those who wait leave at the rate of the replica.
    queue = work.load.waiting / rate
    ttft = queue + prefill

    replicas, utilisation, served = 1, 1.0, rate
    if work.demand is not None:
        replicas = math.ceil(work.demand / rate)
        utilisation, served = work.demand / (replicas * rate), work.demand
    tokens_per_second = served * answer_tokens
    joules = price = None
    if machine.idle_watts is not None and machine.max_watts is not None:
        watts = machine.idle_watts + utilisation * (machine.max_watts - machine.idle_watts)
        joules = replicas * group.devices * watts / tokens_per_second
    if machine.price_per_second is not None:
        price = replicas * group.devices * machine.price_per_second / tokens_per_second * 1e6
    return Estimate(
        provenance=provenance,
        missing=missing,
        memory=memory,
        queue=queue,
        ttft=ttft,
        tpot=tpot,
        answer=ttft + answer_tokens * tpot,
        rate=rate,
        replicas=None if work.demand is None else replicas,
        utilisation=None if work.demand is None else utilisation,
        joules_per_token=joules,
        price=price,
        currency=machine.currency if price is not None else None,
    )


def _exchange(work: Work, machine: Machine, group: Group, tokens: float, passes: int) -> float:
    """Seconds that the devices of a group take to tell one another of ``tokens`` tokens, in so many passes."""
    if group.devices == 1 or machine.link is None:
        return 0.0
    size = tokens * work.token_bytes / machine.link
    # Twice a layer all of them get the sum of what each has: around a ring, each sends it nearly twice.
    sums = 2 * work.layers * (passes * EXCHANGE_SECONDS + 2 * (group.tensor - 1) / group.tensor * size)
    hands = (group.pipeline - 1) * (passes * EXCHANGE_SECONDS + size)
    return (sums if group.tensor > 1 else 0.0) + hands


def _remote(work: Work, machine: Machine) -> Estimate:
    """An endpoint charges by token, and declares neither speed nor power."""
    prompt, answer = machine.price_per_input_token, machine.price_per_output_token
    missing = _missing(work, machine, ONE_DEVICE)
    if prompt is None or answer is None:
        return Estimate(Provenance.ASSUMED, missing)
    price = (prompt * work.load.input_tokens / work.load.output_tokens + answer) * 1e6
    return Estimate(Provenance.DECLARED, missing, price=price, currency=machine.currency)


def _missing(work: Work, machine: Machine, group: Group) -> tuple[str, ...]:
    known: tuple[tuple[str, bool], ...]
    if machine.remote:
        known = (
            ("cost.perMillionInputTokens", machine.price_per_input_token is not None),
            ("cost.perMillionOutputTokens", machine.price_per_output_token is not None),
        )
    else:
        known = (
            ("performance.bandwidthGBps", machine.bytes_per_second is not None),
            (f"performance.tflops for {work.dtype}", work.dtype in machine.operations_per_second),
            ("performance.linkGBps", machine.link is not None or group.devices == 1),
            ("power", machine.idle_watts is not None),
            ("cost", machine.price_per_second is not None),
        )
    return tuple(name for name, is_known in known if not is_known)


def _weights_touched(facts: ModelFacts, batch: int) -> float:
    """Part of the weights that a batch reads; with experts, each sequence picks its own, whatever the others pick."""
    if facts.active_parameters >= facts.parameters:
        return 1.0
    return float(1.0 - (1.0 - facts.active_parameters / facts.parameters) ** batch)


def _weight_bytes(facts: ModelFacts, dtype: DType) -> float:
    return _number(facts.weight_bytes) * float(dtype.bytes / facts.dtype.bytes)


def _kv_bytes(facts: ModelFacts, dtype: DType) -> float:
    """Bytes per token. Formats below 16 bits are those of the weights; engines keep the cache in 16 bits."""
    return 2 * _number(facts.layers) * _number(facts.kv_heads) * _number(facts.head_dim) * _cache_width(dtype)


def _cache_width(dtype: DType) -> float:
    return 4.0 if dtype is DType.FP32 else 2.0


def _number(value: int) -> float:
    return float(min(value, LARGEST))
