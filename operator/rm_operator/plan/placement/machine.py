"""What an AcceleratorResource declares, as the plain numbers that estimates are made with."""

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from rm_api.accelerator_types import AcceleratorType
from rm_api.dtypes import DType
from rm_api.kinds.accelerator_resource import AcceleratorResourceSpec

from rm_operator.plan.memo import Memo

GIB = 1024.0**3

DEFAULT_COMPUTE_EFFICIENCY = 0.4
DEFAULT_BANDWIDTH_EFFICIENCY = 0.6
USABLE_MEMORY = 0.9
"""Part of the device memory that may be planned with; the rest is for fragmentation and the driver."""

LARGEST = 10**18
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


@dataclass(frozen=True)
class Machine:
    """The declarations of one accelerator as plain numbers; None where nothing is declared."""

    remote: bool
    memory: float | None
    """Bytes of a device that may be used."""
    bytes_per_second: float | None
    """What inference reaches of it."""
    operations_per_second: dict[DType, tuple[float, Provenance]]
    """The same for each format that it computes in."""
    efficiency_assumed: bool
    link: float | None
    """Bytes per second from one device to the others of its node."""
    idle_watts: float | None
    max_watts: float | None
    price_per_second: float | None
    price_per_input_token: float | None
    price_per_output_token: float | None
    currency: str | None


def figure(value: Decimal | None) -> float | None:
    """A declared figure; 0 says as little as nothing does."""
    return None if value is None or value <= 0 else max(_amount(value), _SMALLEST)


def _amount(value: Decimal) -> float:
    return float(min(value, Decimal(LARGEST)))


def _machine_of(spec: AcceleratorResourceSpec) -> Machine:
    performance, power, cost = spec.performance, spec.power, spec.cost
    memory, bandwidth = figure(performance.memory_gib), figure(performance.bandwidth_gbps)
    compute_part, bandwidth_part = figure(performance.efficiency.compute), figure(performance.efficiency.bandwidth)
    declared = {entry.dtype: peak for entry in performance.tflops if (peak := figure(entry.value)) is not None}
    pace: dict[DType, tuple[float, Provenance]] = {}
    for dtype in DType:
        for candidate in (dtype, *_WIDER[dtype]):
            if candidate in declared:
                source = Provenance.DECLARED if candidate is dtype else Provenance.DERIVED
                reached = declared[candidate] * 1e12 * (compute_part or DEFAULT_COMPUTE_EFFICIENCY)
                pace[dtype] = (reached, source)
                break
    link = figure(performance.link_gbps)
    idle = None if power is None else _amount(power.idle_watts)
    by_token = None if cost is None else (cost.per_million_input_tokens, cost.per_million_output_tokens)
    prompt, answer = by_token or (None, None)
    return Machine(
        remote=spec.type is AcceleratorType.REMOTE,
        memory=None if memory is None else USABLE_MEMORY * memory * GIB,
        bytes_per_second=None
        if bandwidth is None
        else bandwidth * 1e9 * (bandwidth_part or DEFAULT_BANDWIDTH_EFFICIENCY),
        operations_per_second=pace,
        efficiency_assumed=None in (compute_part, bandwidth_part),
        link=None if link is None else link * 1e9,
        idle_watts=idle,
        max_watts=None if power is None or idle is None else max(idle, _amount(power.max_watts)),
        price_per_second=None if cost is None or cost.per_hour is None else _amount(cost.per_hour) / 3600,
        price_per_input_token=None if prompt is None else _amount(prompt) / 1e6,
        price_per_output_token=None if answer is None else _amount(answer) / 1e6,
        currency=None if cost is None else cost.currency,
    )


machine_of: Memo[[AcceleratorResourceSpec], Machine] = Memo(_machine_of, most=4096)
"""The declarations of an accelerator as plain numbers."""
