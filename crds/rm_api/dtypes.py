"""Number formats, by their usual names, with the bytes that one number takes."""

from decimal import Decimal
from enum import StrEnum


class DType(StrEnum):
    """A number format."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bytes(self) -> Decimal:
        """Bytes per number."""
        return _BYTES[self]


_BYTES = {
    DType.FP32: Decimal(4),
    DType.FP16: Decimal(2),
    DType.BF16: Decimal(2),
    DType.FP8: Decimal(1),
    DType.INT8: Decimal(1),
    DType.INT4: Decimal("0.5"),
}
