"""Where the weights lie: each row of each matrix in one processing unit, int8 with a scale of its own.

The rows of a group of matrices are dealt out in blocks of equal length, one to a unit, the last ones with zeros. The
number of ranks decides where every row is, so a layout is for one number of ranks.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from rm_api.conditions import Reason

from rm_abstract.core.errors import ArtifactMismatch, BadInput

LAYOUT_FILE: Final = "layout.json"
WEIGHTS_FILE: Final = "weights.pim"
SCHEMA: Final = 1
UNITS_PER_RANK: Final = 64
WEIGHT_BYTES: Final = 60 << 20
"""Room for weights in a unit; as in ``gemv_int8.c``."""
INPUT_BYTES: Final = 32 << 10
PRODUCT_BYTES: Final = 2 << 20
GRAIN: Final = 8
"""Bytes that a transfer has at least, and is a multiple of."""
_MAX_WEIGHT: Final = 127
_MAX_NUMBER: Final = 127 * 256 + 127

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Group:
    """Matrices with one input, below each other."""

    name: str
    rows: int
    columns: int
    rows_per_unit: int
    """Even, for two products are what a transfer has at least."""
    offset: int
    """Where the unit's rows begin, in bytes."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, with its padding."""
        return math.ceil(self.columns / GRAIN) * GRAIN

    @property
    def bytes(self) -> int:
        """Bytes of it in each unit."""
        return self.rows_per_unit * self.row_bytes


@dataclass(frozen=True)
class Layout:
    """A model's weights over a number of ranks."""

    ranks: int
    units_per_rank: int
    groups: tuple[Group, ...]

    @property
    def units(self) -> int:
        """Processing units that it is for."""
        return self.ranks * self.units_per_rank

    @property
    def bytes_per_unit(self) -> int:
        """Bytes that each unit holds."""
        return sum(group.bytes for group in self.groups)

    @property
    def bytes(self) -> int:
        """Size of the file with the weights."""
        return self.units * self.bytes_per_unit

    def text(self) -> str:
        """As it is written."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Of the artifact in ``directory``. Raises ArtifactMismatch where it is missing or is not what we write."""
        try:
            said: Any = json.loads((directory / LAYOUT_FILE).read_text(encoding="utf-8"))
            if said.pop("schema") != SCHEMA:
                raise ArtifactMismatch(f"{LAYOUT_FILE} has a schema that this version does not know")
            return cls(**{**said, "groups": tuple(Group(**group) for group in said["groups"])})
        except FileNotFoundError:
            raise ArtifactMismatch(f"the artifact has no {LAYOUT_FILE}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactMismatch(f"{LAYOUT_FILE} of the artifact is not what we write: {error}") from None


def lay_out(
    groups: Mapping[str, Sequence[tuple[str, int, int]]], ranks: int, units_per_rank: int = UNITS_PER_RANK
) -> Layout:
    """The layout of groups of (tensor, rows, columns). BadInput where it does not fit in that many ranks."""
    if ranks < 1 or not 1 <= units_per_rank <= UNITS_PER_RANK:
        raise BadInput(
            f"{ranks} ranks of {units_per_rank} units: there is at least one, of 1 to {UNITS_PER_RANK} units"
        )
    units, offset = ranks * units_per_rank, 0
    found = []
    for name, members in groups.items():
        rows, columns = sum(one[1] for one in members), members[0][2]
        share = math.ceil(rows / units / 2) * 2
        group = Group(name, rows, columns, share, offset)
        # A number of 16 bits is two vectors.
        if 2 * group.row_bytes > INPUT_BYTES or 2 * 4 * share > PRODUCT_BYTES:
            raise _too_large(f"{name} has {rows} rows of {columns}, more than a unit takes in one product", ranks)
        offset += group.bytes
        found.append(group)
    if offset > WEIGHT_BYTES:
        raise _too_large(f"each unit would hold {offset} bytes of weights, and has room for {WEIGHT_BYTES}", ranks)
    return Layout(ranks, units_per_rank, tuple(found))


def _too_large(what: str, ranks: int) -> BadInput:
    return BadInput(f"the model does not fit in {ranks} ranks: {what}", reason=Reason.UNSUPPORTED_MODEL)


def quantised(matrix: Float32) -> tuple[Int8, Float32]:
    """int8 numbers and a scale a row, whose product is ``matrix`` to half a scale. BadInput for what is not finite."""
    largest = np.abs(matrix).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise BadInput("the model has weights that are no finite numbers")
    scales = np.where(largest > 0, largest / _MAX_WEIGHT, 1).astype(np.float32)
    return np.rint(matrix / scales[:, None]).astype(np.int8), scales


def place(image: Int8, layout: Layout, group: Group, matrix: Int8) -> None:
    """Put a group's matrix, [rows, columns], into the units' memories, [units, bytes per unit]."""
    padded = np.zeros((layout.units * group.rows_per_unit, group.row_bytes), np.int8)
    padded[: group.rows, : group.columns] = matrix
    image[:, group.offset : group.offset + group.bytes] = padded.reshape(layout.units, group.bytes)


def taken(image: Int8, layout: Layout, group: Group) -> Int8:
    """The matrix, [rows, columns], that ``place`` put there."""
    held = image[:, group.offset : group.offset + group.bytes]
    return held.reshape(layout.units * group.rows_per_unit, group.row_bytes)[: group.rows, : group.columns]


def planes(rows: Float32, width: int) -> tuple[Int8, Float32]:
    """Numbers of 16 bits as two int8 vectors each, [2·n, width], high and low; and the scale of each row, [n]."""
    largest = np.abs(rows).max(axis=1)
    scales = np.where(largest > 0, largest / _MAX_NUMBER, 1).astype(np.float32)
    whole = np.rint(rows / scales[:, None]).astype(np.int32)
    high = (whole + 128) >> 8
    vectors = np.zeros((len(rows), 2, width), np.int8)
    vectors[:, 0, : rows.shape[1]] = high
    vectors[:, 1, : rows.shape[1]] = whole - (high << 8)
    return vectors.reshape(-1, width), scales


def gathered(products: Int32, group: Group, row_scales: Float32, scales: Float32) -> Float32:
    """The rows of the products, [n, rows], of what the units computed, [units, 2·n, rows per unit]."""
    both = products.transpose(1, 0, 2).reshape(len(scales), 2, -1)[:, :, : group.rows].astype(np.int64)
    exact = (both[:, 0] << 8) + both[:, 1]
    return (exact * (row_scales.astype(np.float64)[None, :] * scales[:, None])).astype(np.float32)
