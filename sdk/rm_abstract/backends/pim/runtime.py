"""Generates: the host reads the prompt, and the units in the memory compute the projections of every further token."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from rm_abstract.backends.file_tokenizer import FileTokenizer
from rm_abstract.backends.openvino_model import ModelInfo
from rm_abstract.backends.pim.compiler import HOST_FILE, PROGRAM, SCALES, host_shapes
from rm_abstract.backends.pim.layout import WEIGHTS_FILE, Float32, Int8, Layout, gathered, planes, taken
from rm_abstract.backends.pim.llama import KeyValues, Llama, LlamaConfig, Run
from rm_abstract.backends.pim.native import Units
from rm_abstract.backends.pim.tensors import Tensors
from rm_abstract.backends.sampling import Sampler
from rm_abstract.backends.stepping import SteppingSession
from rm_abstract.core.errors import ArtifactMismatch, BadInput, DeviceMissing
from rm_abstract.core.session import MAX_LOGPROBS, FinishReason, GenerationRequest

_PREFILL: Final = 256
"""Tokens of a prompt that are computed in one step, so that a long prompt does not hold up everybody else."""


@dataclass(frozen=True)
class PimModel:
    """An artifact, and the ranks that it is laid out for."""

    directory: Path
    layout: Layout
    ranks: tuple[str, ...]
    """Paths of their devices."""
    info: ModelInfo


class _Slot:
    def __init__(self, config: LlamaConfig, request: GenerationRequest) -> None:
        self.request = request
        self.past = KeyValues(config)
        self.sampler = Sampler(request)
        self.pending: Sequence[int] = request.prompt
        self.generated = 0


class Projections:
    """The same int8 weights, twice: in the units for the decode, and for the prefill on the host."""

    def __init__(self, units: Units, layout: Layout, image: Int8, scales: Mapping[str, Float32]) -> None:
        self._units, self._layout, self._image, self._scales = units, layout, image, scales
        self._groups = {group.name: group for group in layout.groups}

    def on_host(self, name: str, rows: Float32) -> Float32:
        """In float32."""
        group = self._groups[name]
        weights = taken(self._image, self._layout, group).astype(np.float32)
        return (rows @ weights.T) * self._scales[name]

    def on_units(self, name: str, rows: Float32) -> Float32:
        """Exactly, of numbers that are rounded to 16 bits."""
        group = self._groups[name]
        vectors, scales = planes(rows, group.row_bytes)
        return gathered(self._units.multiply(group, vectors), group, self._scales[name], scales)

    def check(self) -> None:
        """Have every unit multiply a row of each of its matrices, and hold it against what the host computes.

        Raises DeviceMissing where one computes anything else: then nothing that it says can be believed.
        """
        random = np.random.default_rng(0)
        for group in self._groups.values():
            vectors = random.integers(-128, 128, (2, group.row_bytes), np.int8)
            products = self._units.multiply(group, vectors)
            row = int(random.integers(group.rows_per_unit))
            begin = group.offset + row * group.row_bytes
            own = self._image[:, begin : begin + group.row_bytes].astype(np.int32)
            wrong = np.flatnonzero((products[:, :, row] != own @ vectors.astype(np.int32).T).any(axis=1))
            if len(wrong):
                raise DeviceMissing(
                    f"{len(wrong)} of {self._layout.units} units compute {group.name} wrong, "
                    f"the first is number {wrong[0]} in rank {wrong[0] // self._layout.units_per_rank}"
                )


def read_image(directory: Path, layout: Layout) -> Int8:
    """The units' memories, [units, bytes per unit]. ArtifactMismatch where the file is not of that size."""
    path = directory / WEIGHTS_FILE
    if not path.is_file() or path.stat().st_size != layout.bytes:
        raise ArtifactMismatch(
            f"{WEIGHTS_FILE} of the artifact is missing or damaged: it is to have {layout.bytes} bytes"
        )
    return np.memmap(path, np.int8, "r", shape=(layout.units, layout.bytes_per_unit))


class PimSession(SteppingSession[_Slot]):
    """A model on ranks of its own. All generations that are past their prompts share a batch."""

    def __init__(self, model: PimModel) -> None:
        super().__init__()
        image = read_image(model.directory, model.layout)
        try:
            self._config = LlamaConfig.read(model.directory)
            host = Tensors(model.directory / HOST_FILE)
            shapes = host_shapes(self._config, model.layout)
            tensors = {name: host.read(name, shape) for name, shape in shapes.items()}
        except (BadInput, OSError) as error:
            raise ArtifactMismatch(f"the artifact is damaged: {error}") from error
        self._llama = Llama(self._config, tensors)
        self.tokenizer = FileTokenizer(model.directory)
        self.max_sequence_length = model.info.max_sequence_length
        self.vocabulary_size = self._config.vocabulary
        self.default_temperature = model.info.temperature
        self.default_top_p = model.info.top_p
        self.max_logprobs = MAX_LOGPROBS
        self._end_tokens = model.info.end_tokens
        self._units = Units(model.ranks, model.layout, model.directory / PROGRAM)
        try:
            self._units.write(image)
            scales = {name.removeprefix(SCALES): one for name, one in tensors.items() if name.startswith(SCALES)}
            self._projections = Projections(self._units, model.layout, image, scales)
            self._projections.check()
        except BaseException:
            self._units.close()
            raise
        self.start()

    def close(self) -> None:
        """See the base class."""
        super().close()
        self._units.close()

    def begin(self, request: GenerationRequest) -> _Slot:
        """See the base class."""
        return _Slot(self._config, request)

    def drop(self, slot: _Slot) -> None:
        """See the base class: what it holds goes with it."""

    def step(self, slots: Sequence[_Slot]) -> Iterable[tuple[_Slot, Sequence[int], FinishReason | None]]:
        """See the base class."""
        reading = [slot for slot in slots if not slot.generated]
        writing = [slot for slot in slots if slot.generated]
        results: list[tuple[_Slot, Sequence[int], FinishReason | None]] = []
        for slot in reading:
            now, slot.pending = slot.pending[:_PREFILL], slot.pending[_PREFILL:]
            logits = self._llama.forward([Run(now, slot.past)], self._projections.on_host)
            if not slot.pending:
                results.append((slot, *self._chosen(slot, logits[0])))
        if writing:
            runs = [Run(slot.pending, slot.past) for slot in writing]
            logits = self._llama.forward(runs, self._projections.on_units)
            results += [(slot, *self._chosen(slot, row)) for slot, row in zip(writing, logits, strict=True)]
        return results

    def _chosen(self, slot: _Slot, logits: Float32) -> tuple[Sequence[int], FinishReason | None]:
        token = slot.sampler.choose(logits)
        slot.generated += 1
        slot.pending = [token]
        return [token], slot.request.ended_by(token, slot.generated, self._end_tokens)
