"""Runs a blob: loads the very program that was compiled, and drives it token by token."""

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from rm_abstract.backends.openvino_model import PROPERTIES, GenAiTokenizer, ModelInfo
from rm_abstract.backends.sampling import Sampler
from rm_abstract.backends.simulated_npu.blob import read_program
from rm_abstract.backends.stepping import SteppingSession
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.session import MAX_LOGPROBS, FinishReason, GenerationRequest

_PREFILL: Final = 512
"""Tokens of a prompt that are computed in one step, so that a long prompt does not hold up everybody else."""


class _Slot:
    """A generation with an inference request of its own, which holds its key-value cache: no two share a batch."""

    def __init__(self, infer: Any, request: GenerationRequest) -> None:
        self.infer = infer
        self.request = request
        self.sampler = Sampler(request)
        self.past = 0
        self.pending: Sequence[int] = request.prompt
        self.generated = 0


class SimulatedNpuSession(SteppingSession[_Slot]):
    """A program on the simulated device. There is no fallback: what cannot be loaded as it was compiled is refused."""

    def __init__(self, blob: Path, info: ModelInfo) -> None:
        import openvino  # noqa: PLC0415 (heavy)

        super().__init__()
        header, content = read_program(blob)
        compiler = openvino.get_version()
        if header.compiler != compiler:
            raise ArtifactMismatch(
                f"{blob.name} was compiled by {header.compiler}, and only that can load it; here is {compiler}"
            )
        try:
            program = openvino.Core().import_model(content, "CPU", dict(PROPERTIES))
        except RuntimeError as error:
            raise ArtifactMismatch(f"{blob.name} cannot be loaded: {error}") from error
        self._program: Any = program
        self._inputs = {name for port in program.inputs for name in port.names}
        self._free: deque[Any] = deque()
        self.tokenizer = GenAiTokenizer(blob.parent)
        self.max_sequence_length = info.max_sequence_length
        self.vocabulary_size = info.vocabulary_size
        self.default_temperature = info.temperature
        self.default_top_p = info.top_p
        self.max_logprobs = MAX_LOGPROBS
        self._end_tokens = info.end_tokens
        self.start()

    def begin(self, request: GenerationRequest) -> _Slot:
        """See the base class."""
        infer = self._free.popleft() if self._free else self._program.create_infer_request()
        infer.reset_state()
        return _Slot(infer, request)

    def step(self, slots: Sequence[_Slot]) -> Iterable[tuple[_Slot, Sequence[int], FinishReason | None]]:
        """See the base class."""
        return [(slot, *self._advance(slot)) for slot in slots]

    def _advance(self, slot: _Slot) -> tuple[Sequence[int], FinishReason | None]:
        now, slot.pending = slot.pending[:_PREFILL], slot.pending[_PREFILL:]
        end = slot.past + len(now)
        inputs = {
            "input_ids": np.array([now], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(slot.past, end, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        result = slot.infer.infer(
            {name: value for name, value in inputs.items() if name in self._inputs}, share_outputs=True
        )
        slot.past = end
        if slot.pending:
            return (), None
        token = slot.sampler.choose(result[0][0, -1])
        slot.generated += 1
        slot.pending = [token]
        finish = slot.request.ended_by(token, slot.generated, self._end_tokens)
        if finish is not None:
            self._free.append(slot.infer)
        return [token], finish

    def drop(self, slot: _Slot) -> None:
        """See the base class."""
        self._free.append(slot.infer)
