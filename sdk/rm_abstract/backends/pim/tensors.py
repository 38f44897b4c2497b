"""Files of tensors: reads a model's safetensors, and writes those that stay on the host."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rm_abstract.core.errors import BadInput

Array = npt.NDArray[np.float32]
_HEAD: Final = 8
_DTYPES: Final = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Tensors:
    """The tensors of all safetensors files of a directory, or of one file, read as they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput where there is none, or one is damaged."""
        self._found: dict[str, tuple[Path, int, Mapping[str, Any]]] = {}
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        for file in files:
            try:
                with file.open("rb") as stream:
                    length = int.from_bytes(stream.read(_HEAD), "little")
                    head = json.loads(stream.read(length))
                entries = {name: entry for name, entry in head.items() if name != "__metadata__"}
                ends = [_HEAD + length + entry["data_offsets"][1] for entry in entries.values()]
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
                raise BadInput(f"{file.name} is no safetensors file: {error}") from None
            if max(ends, default=0) > file.stat().st_size:
                raise BadInput(f"{file.name} is truncated")
            self._found |= {name: (file, _HEAD + length, entry) for name, entry in entries.items()}
        if not self._found:
            raise BadInput(f"{path} has no safetensors file with tensors in it")

    def read(self, name: str, shape: tuple[int, ...]) -> Array:
        """A tensor in float32. BadInput where it is missing, has another shape, or an unknown number format."""
        if name not in self._found:
            raise BadInput(f"the model has no tensor {name}")
        file, start, entry = self._found[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None or tuple(entry["shape"]) != shape:
            raise BadInput(
                f"tensor {name} is {entry['dtype']} of shape {entry['shape']}, and is to be one of "
                f"{', '.join(_DTYPES)} of shape {list(shape)}"
            )
        begin, end = entry["data_offsets"]
        raw = np.fromfile(file, dtype, (end - begin) // np.dtype(dtype).itemsize, offset=start + begin).reshape(shape)
        if entry["dtype"] == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def write(path: Path, tensors: Iterator[tuple[str, Array]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write float32 tensors as they come, in the order of ``shapes``; the same numbers make the same bytes."""
    head, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        head[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEAD)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(_HEAD, "little") + text)
        for (name, tensor), wanted in zip(tensors, shapes, strict=True):
            assert name == wanted, (name, wanted)
            stream.write(np.ascontiguousarray(tensor, "<f4").tobytes())
