"""An engine for `rm-abstract serve` that compiles a network for every shape, and keeps what it compiled.

The compiles and their cache are OpenVINO's; the text that comes out is of no interest.
``WARMING`` says what goes wrong.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import openvino
from openvino import opset13 as operations
from rm_abstract.backends.stepping import SteppingSession
from rm_abstract.core.errors import DriverMismatch
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.core.session import FinishReason, GenerationRequest, Session, Tokenizer

FORMAT = "warming"
LONGEST = 256
VOCABULARY = 257
HOLD = "hold"
"""While the artifact has a file of this name, no step is made."""


def behaviour() -> str:
    """What goes wrong."""
    return os.environ.get("WARMING", "")


class BytesTokenizer(Tokenizer):
    """A token is a byte; 256 begins a text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """See the base class."""
        return ([256] if add_special_tokens else []) + list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """See the base class."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def render_chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See the base class."""
        return "".join(message["content"] for message in messages)


def network(directory: Path, batch: int, length: int) -> Path:
    """The file of a network with a row of scores for each row of tokens; OpenVINO's cache goes by files."""
    path = directory / f"{batch}x{length}.xml"
    if not path.exists():
        random = numpy.random.default_rng(0)
        tokens = operations.parameter([batch, length], numpy.int64)
        table = operations.constant(random.standard_normal((VOCABULARY, 32), numpy.float32))
        vectors = operations.gather(table, tokens, operations.constant(0))
        mean = operations.reduce_mean(vectors, operations.constant([1]), keep_dims=False)
        head = operations.constant(random.standard_normal((32, VOCABULARY), numpy.float32))
        openvino.save_model(openvino.Model([operations.matmul(mean, head, False, False)], [tokens]), path)
    return path


@dataclass(eq=False)
class Slot:
    """One generation."""

    request: GenerationRequest
    tokens: list[int]
    made: int = 0


class WarmingSession(SteppingSession[Slot]):
    """Lengths are rounded up to a power of two; batches are compiled as they come."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.tokenizer = BytesTokenizer()
        self.max_sequence_length = LONGEST
        self.vocabulary_size = VOCABULARY
        self._directory = directory
        self._core = openvino.Core()
        if behaviour() != "no cache":
            self._core.set_property({"CACHE_DIR": os.environ["CACHE_DIR"]})
        self._compiled: dict[tuple[int, int], openvino.CompiledModel] = {}
        self.start()

    def begin(self, request: GenerationRequest) -> Slot:
        """See the base class."""
        return Slot(request, list(request.prompt))

    def _network(self, batch: int, length: int) -> openvino.CompiledModel:
        shape = batch, 1 << (length - 1).bit_length()
        if shape not in self._compiled:
            compiled = self._core.compile_model(network(self._directory, *shape), "CPU")
            how = "loaded" if compiled.get_property("LOADED_FROM_CACHE") else "compiled"
            print(f"{how} {shape[0]}x{shape[1]}", flush=True)
            self._compiled[shape] = compiled
        return self._compiled[shape]

    def step(self, slots: Sequence[Slot]) -> Iterable[tuple[Slot, Sequence[int], FinishReason | None]]:
        """See the base class."""
        while (self._directory / HOLD).exists():
            time.sleep(0.01)
        if behaviour() == "dies" and len(slots) > 1:
            print("RuntimeError: the device has gone", file=sys.stderr, flush=True)
            os._exit(3)
        compiled = self._network(len(slots), max(len(slot.tokens) for slot in slots))
        rows = numpy.zeros(compiled.input(0).shape, numpy.int64)
        for row, slot in zip(rows, slots, strict=True):
            row[: len(slot.tokens)] = slot.tokens
        for slot, scores in zip(slots, compiled(rows)[0], strict=True):
            token = int(scores.argmax())
            slot.tokens.append(token)
            slot.made += 1
            finish = FinishReason.LENGTH if slot.made == slot.request.max_tokens else None
            if finish is None and slot.made == 2 and not slot.request.ignore_eos:
                finish = FinishReason.STOP
            yield slot, [token], finish

    def drop(self, slot: Slot) -> None:
        """See the base class."""


class WarmingPlugin(Plugin):
    """The engine as a plugin."""

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata("warming", "Warming", "1.0.0", formats=(FORMAT,))

    def is_available(self) -> bool:
        """See the base class."""
        return True

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> Path:
        """See the base class."""
        match behaviour():
            case "other driver":
                raise DriverMismatch("the driver is 1.3, and 1.4 is needed")
            case "crashes":
                print("loading", flush=True)
                print("ImportError: libnpu.so.2: no such file", file=sys.stderr, flush=True)
                os._exit(1)
        return resource.path

    def create_session(self, resource: Path) -> Session:
        """See the base class."""
        return WarmingSession(resource)
