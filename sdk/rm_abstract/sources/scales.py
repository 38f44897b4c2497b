"""The scales of a quantised model: what a compiler may take over into its result although it leaves the weights out."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.sources.base import ModelSource
from rm_abstract.sources.safetensors import Tensor

_NAME: Final = re.compile(
    r"(?:.*\.)?(?:scales|qzeros|g_idx|SCB|absmax|nested_absmax|quant_map|nested_quant_map|bitsandbytes__\w+"
    r"|\w*_(?:scales?|zero_points?|zeros|g_idx|shift)(?:_inv|_\d+)?)"
)
"""Scales, zero points, and what says which weight they are for, as GPTQ, AWQ, compressed-tensors, bitsandbytes, fp8 and
microscaling formats call them. A name more makes fewer models share a result; one less would make too many share it."""

_GAP: Final = 256 << 10
"""Bytes between two tensors that are rather read than asked past."""
_PIECE: Final = 16 << 20
_MOST_READS: Final = 4096
_AT_A_TIME: Final = 8


@dataclass(frozen=True)
class _Placed:
    tensor: Tensor
    start: int
    """Where its bytes begin in the file."""


def scale_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those of ``tensors`` that hold scales and zero points."""
    return [tensor for tensor in tensors if tensor.bytes and _NAME.fullmatch(tensor.name)]


def tensor_digests(source: ModelSource, files: Mapping[str, Sequence[Tensor]]) -> list[list[Any]] | None:
    """Name, number format, shape and digest of the content of each scale, sorted; ``files`` has the tensors by file.

    Only the scales are read, and what lies between two that are close. None where that is not possible: the source
    reads whole files only, or they would be too many reads.
    """
    reads = [(name, group) for name, tensors in files.items() for group in _groups(_placed(source, name, tensors))]
    if len(reads) > _MOST_READS or not all(source.reads_parts(name) for name, _ in reads):
        return None
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        found = pool.map(lambda read: _read(source, *read), reads)
        return sorted(row for rows in found for row in rows)


def _placed(source: ModelSource, name: str, tensors: Sequence[Tensor]) -> list[_Placed]:
    """The scales of a file, whose ``tensors`` lie one after the other up to its end."""
    at = source.files[name].size - sum(tensor.bytes for tensor in tensors)
    places = []
    for tensor in tensors:
        places.append(_Placed(tensor, at))
        at += tensor.bytes
    wanted = {tensor.name for tensor in scale_tensors(tensors)}
    return [place for place in places if place.tensor.name in wanted]


def _groups(places: Sequence[_Placed]) -> Iterator[list[_Placed]]:
    """Scales that are read at once, as they lie close together and are not much."""
    group: list[_Placed] = []
    for place in places:
        if group:
            last = group[-1]
            apart = place.start - last.start - last.tensor.bytes
            if apart > _GAP or place.start + place.tensor.bytes - group[0].start > _PIECE:
                yield group
                group = []
        group.append(place)
    if group:
        yield group


def _read(source: ModelSource, name: str, group: Sequence[_Placed]) -> list[list[Any]]:
    first, last = group[0], group[-1]
    end = last.start + last.tensor.bytes
    if len(group) == 1:
        digest = hashlib.sha256()
        for start in range(first.start, end, _PIECE):
            digest.update(_part(source, name, start, min(_PIECE, end - start)))
        return [_row(first.tensor, digest.hexdigest())]
    content = memoryview(_part(source, name, first.start, end - first.start))
    rows = []
    for place in group:
        start = place.start - first.start
        rows.append(_row(place.tensor, hashlib.sha256(content[start : start + place.tensor.bytes]).hexdigest()))
    return rows


def _part(source: ModelSource, name: str, start: int, length: int) -> bytes:
    part = source.read(name, start, length)
    if len(part) != length:
        raise ArtifactMismatch(f"{name} ends {length - len(part)} bytes before it should")
    return part


def _row(tensor: Tensor, digest: str) -> list[Any]:
    return [tensor.name, tensor.dtype, list(tensor.shape), f"sha256:{digest}"]
