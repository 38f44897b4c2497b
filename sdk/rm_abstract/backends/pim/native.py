"""librma_pim, the C library over UPMEM's host API, from Python."""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from rm_abstract.backends.pim.layout import Group, Int8, Int32, Layout
from rm_abstract.core.errors import ArtifactMismatch, DeviceMissing, ToolchainFailure

ENV_LIBRARY: Final = "RMA_PIM_LIBRARY"
"""Path of the library; by default ``lib/librma_pim.so`` of the Python environment."""
_TEXT: Final = 512
_ERRORS: Final = {1: DeviceMissing, 2: ArtifactMismatch}


def library_path() -> Path:
    """Where the library is to be."""
    return Path(os.environ.get(ENV_LIBRARY) or Path(sys.prefix, "lib", "librma_pim.so"))


def load_library() -> ctypes.CDLL:
    """The library. Raises ToolchainFailure where it, or UPMEM's behind it, cannot be loaded."""
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError as error:
        raise ToolchainFailure(f"{library_path()} cannot be loaded: {error}") from None
    why = (ctypes.c_char_p, ctypes.c_size_t)
    number, pointer = ctypes.c_uint32, ctypes.c_void_p
    library.rma_pim_open.argtypes = [number, pointer, number, ctypes.c_char_p, pointer, *why]
    library.rma_pim_write.argtypes = [pointer, pointer, ctypes.c_uint64, *why]
    library.rma_pim_multiply.argtypes = [pointer, number, number, number, number, pointer, pointer, *why]
    library.rma_pim_close.argtypes = [pointer]
    library.rma_pim_close.restype = None
    library.rma_pim_sdk_version.restype = ctypes.c_char_p
    return library


def sdk_version() -> str:
    """Version of the SDK that the library was built with; empty where it is not installed."""
    if not library_path().is_file():
        return ""
    return bytes(load_library().rma_pim_sdk_version()).decode()


class Units:
    """The processing units of ranks that are ours, with a program in them. One thread at a time may use them."""

    def __init__(self, ranks: Sequence[str], layout: Layout, program: Path) -> None:
        """Take the ranks at these paths. DeviceMissing where one cannot be had, ArtifactMismatch for the program."""
        self._library = load_library()
        self._layout = layout
        self._handle: ctypes.c_void_p | None = None
        handle = ctypes.c_void_p()
        paths = (ctypes.c_char_p * len(ranks))(*(os.fsencode(rank) for rank in ranks))
        per_rank, name = layout.units_per_rank, os.fsencode(program)
        self._call("open", len(ranks), paths, per_rank, name, ctypes.byref(handle))
        self._handle = handle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, image: Int8) -> None:
        """Lay down the weights, [units, bytes per unit]."""
        assert image.flags.c_contiguous
        assert image.shape == (self._layout.units, self._layout.bytes_per_unit)
        self._call("write", self._handle, image.ctypes.data, image.shape[1])

    def multiply(self, group: Group, vectors: Int8) -> Int32:
        """Products of the group's matrix with vectors, [n, bytes of a row]: [units, n, rows per unit]."""
        vectors = np.ascontiguousarray(vectors)
        assert vectors.shape[1] == group.row_bytes
        products = np.zeros((self._layout.units, len(vectors), group.rows_per_unit), np.int32)
        shape = (group.rows_per_unit, group.row_bytes, len(vectors))
        self._call("multiply", self._handle, group.offset, *shape, vectors.ctypes.data, products.ctypes.data)
        return products

    def close(self) -> None:
        """Give the ranks back."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.rma_pim_close(handle)

    def _call(self, name: str, *arguments: Any) -> None:
        text = ctypes.create_string_buffer(_TEXT)
        code = getattr(self._library, f"rma_pim_{name}")(*arguments, text, _TEXT)
        if code:
            raise _ERRORS.get(code, ToolchainFailure)(text.value.decode(errors="replace"))
