"""The heads of safetensors files: what tensors there are, without their numbers."""

import json
import math
import posixpath
from dataclasses import dataclass
from typing import Any, Final

from rm_abstract.core.errors import BadInput

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MAX_HEADER: Final = 100 << 20

_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    name: str
    dtype: str
    """Number format in the words of safetensors, such as ``BF16``."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes that they take."""
        return self.elements * _BITS[self.dtype] // 8


def header_length(head: bytes) -> int:
    """Bytes of the JSON header, from the first eight bytes of a file."""
    return int.from_bytes(head[:8], "little")


def shards_of(index: bytes) -> list[str]:
    """Names of the files that an index names, sorted. Raises BadInput where it is not valid."""
    try:
        names = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise BadInput(f"{INDEX} is not valid: it has no weight_map") from None
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or posixpath.basename(name) != name:
            raise BadInput(f"{INDEX} names {name!r}, which is no safetensors file of the model's directory")
    if not names:
        raise BadInput(f"{INDEX} names no file")
    return names


def tensors_of(name: str, header: bytes, file_size: int) -> list[Tensor]:
    """The tensors in a header (JSON, without the eight bytes before it). BadInput where header and file disagree."""
    try:
        raw: dict[str, Any] = json.loads(header)
        raw.pop("__metadata__", None)
        tensors = [
            (Tensor(key, entry["dtype"], tuple(int(size) for size in entry["shape"])), entry["data_offsets"])
            for key, entry in raw.items()
        ]
        tensors.sort(key=lambda item: int(item[1][0]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise BadInput(f"{name} is no safetensors file: its header is not valid") from None
    end = 0
    for tensor, offsets in tensors:
        if tensor.dtype not in _BITS or any(size < 0 for size in tensor.shape):
            raise BadInput(f"{name}: tensor {tensor.name} has the number format {tensor.dtype}, which is not known")
        if list(offsets) != [end, end + tensor.bytes]:
            raise BadInput(f"{name} is damaged: tensor {tensor.name} is not where its shape puts it")
        end += tensor.bytes
    if 8 + len(header) + end != file_size:
        raise BadInput(f"{name} is damaged: its header describes {8 + len(header) + end} bytes, but it has {file_size}")
    return [tensor for tensor, _ in tensors]
