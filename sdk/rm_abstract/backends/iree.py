"""IREE: a program that was compiled ahead of time, weights and all, on IREE's own runtime.

The program is what Optimum's exporter and ``iree-compile`` make of a model: it takes a row of tokens and has no memory
of the row before, so each token costs as much as the whole text. It shows how a compiler and a runtime that are only to
be had as binaries are attached; a model's own server is faster.
"""

import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rm_abstract import __version__
from rm_abstract.backends.file_tokenizer import FileTokenizer
from rm_abstract.backends.hf import versions_of
from rm_abstract.backends.openvino_model import ModelInfo
from rm_abstract.backends.stepping import SteppingSession
from rm_abstract.core.binary_adapter import BinaryRuntimeAdapter
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import BuildArtifact, BuildProfile, Capability, Resource
from rm_abstract.core.session import MAX_LOGPROBS, FinishReason, GenerationRequest, Session

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rm_abstract.backends.sampling import Sampler

FORMAT: Final = "iree-vmfb"
PROGRAM: Final = "model.vmfb"
DRIVER: Final = "local-task"
"""IREE's name for the host's CPU with all its cores."""
FUNCTION: Final = "main_graph"
"""What the importer of ONNX calls the graph: input_ids, attention_mask and position_ids [1, S] of int64 to logits
[1, S, vocabulary] of float32."""


class IreeRuntimeAdapter(BinaryRuntimeAdapter):
    """A compiled program on IREE's runtime. ``run`` takes a row of tokens and returns the logits after its last."""

    def __init__(self, engine_path: Path, *, driver: str = DRIVER, max_length: int) -> None:
        """``max_length`` is the longest row, in tokens: what a program of one length was compiled for."""
        super().__init__(engine_path, options={"driver": driver})
        self.max_length = max_length
        self.length: int | None = None
        """The one length of rows that the program takes, if it takes one alone; known once it is loaded."""
        self._function: Any = None

    @property
    def loaded(self) -> bool:
        """See the base class."""
        return self._function is not None

    def load(self) -> None:
        """See the base class. Runs once, so that what does not run is found here. Raises ArtifactMismatch."""
        if self.loaded:
            return
        if not self.engine_path.is_file():
            raise ArtifactMismatch(f"the artifact has no {self.engine_path.name}")
        iree = import_module("iree.runtime")
        try:
            context = iree.SystemContext(config=iree.Config(self.options["driver"]))
            # IREE's own mmap wants to write to the file, and artifacts are mounted read-only.
            with self.engine_path.open("rb") as file:
                program = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            module = iree.VmModule.wrap_buffer(context.instance, program)
            context.add_vm_module(module)
            self._function = context.modules[module.name][FUNCTION]
        except (ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise ArtifactMismatch(f"IREE cannot load {self.engine_path.name}: {_first_line(error)}") from error
        try:
            self._try_out()
        except BaseException:
            self.unload()
            raise

    def _try_out(self) -> None:
        """Find out whether rows of any length run, or of the longest one alone."""
        failures = []
        for length in (None, self.max_length):
            self.length = length
            try:
                self.run([0])
            except (ValueError, RuntimeError) as error:
                failures.append(_first_line(error))
            else:
                return
        raise ArtifactMismatch(
            f"{self.engine_path.name} runs neither rows of one token nor of {self.max_length}: {failures[-1]}"
        )

    def run(self, inputs: Any, **options: Any) -> "npt.NDArray[np.float32]":
        """Logits [vocabulary] of the token after the row ``inputs``. Raises BadInput for a row that does not fit."""
        import numpy as np  # noqa: PLC0415 (only where something runs)

        if self._function is None:
            raise BadInput("the engine is not loaded; call load() first")
        tokens = list(inputs)
        if options or not 1 <= len(tokens) <= self.max_length:
            raise BadInput(f"a row of 1 to {self.max_length} tokens is run, and nothing else; this has {len(tokens)}")
        length = self.length or len(tokens)
        ids, mask = np.zeros((1, length), np.int64), np.zeros((1, length), np.int64)
        ids[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1
        # What fills up a row stands behind its end, where no token of it looks.
        logits = self._function(ids, mask, np.arange(length, dtype=np.int64)[None]).to_host()
        last: npt.NDArray[np.float32] = logits[0, len(tokens) - 1]
        return last

    def unload(self) -> None:
        """See the base class."""
        self._function = None


@dataclass(frozen=True)
class IreeModel:
    """A program that was found to fit, and what its model's files say."""

    directory: Path
    info: ModelInfo
    driver: str


class IreePlugin(Plugin):
    """Serves what ``iree-compile`` made for the CPU."""

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="iree",
            display_name="IREE",
            version=__version__,
            vendor="IREE",
            priority=PluginPriority.LOW,
            device_types=("cpu",),
            requires=("iree.runtime", "tokenizers"),
            description="programs that IREE compiled ahead of time, on the CPU",
            formats=(FORMAT,),
        )

    def is_available(self) -> bool:
        """See the base class."""
        try:
            return all(find_spec(name) is not None for name in self.metadata().requires)
        except ModuleNotFoundError:
            return False

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class: none; the steps are those of the BuildProfile ``cpu-iree``."""
        return []

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        lengths = [ModelInfo.read(artifact.path).max_sequence_length for artifact in artifacts]
        return Capability(max_seq_len=min(lengths, default=None), dtype=("fp32",), optimized_for=())

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> IreeModel:
        """See the base class. The option ``driver`` is IREE's name of a device, ``local-task`` if it is not given."""
        config = config or BackendConfig()
        options = dict(config.options)
        driver = options.pop("driver", DRIVER)
        if options:
            raise BadInput(f"compile_options: iree knows driver alone, and not {', '.join(sorted(options))}")
        return IreeModel(resource.path, ModelInfo.read(resource.path, config.max_sequence_length), driver)

    def create_session(self, resource: IreeModel) -> Session:
        """See the base class."""
        return IreeSession(resource)

    def versions(self) -> dict[str, str]:
        """See the base class."""
        return versions_of("iree-base-runtime", "tokenizers")


@dataclass(eq=False)
class _Slot:
    request: GenerationRequest
    tokens: list[int]
    sampler: "Sampler"


class IreeSession(SteppingSession[_Slot]):
    """A token at a time, each from the whole row before it."""

    def __init__(self, model: IreeModel) -> None:
        super().__init__()
        info = model.info
        self._adapter = IreeRuntimeAdapter(
            model.directory / PROGRAM, driver=model.driver, max_length=info.max_sequence_length
        )
        self._adapter.load()
        self._end_tokens = info.end_tokens
        self.tokenizer = FileTokenizer(model.directory)
        self.max_sequence_length = info.max_sequence_length
        self.vocabulary_size = info.vocabulary_size
        self.default_temperature = info.temperature
        self.default_top_p = info.top_p
        self.max_logprobs = MAX_LOGPROBS
        self.start()

    def begin(self, request: GenerationRequest) -> _Slot:
        """See the base class."""
        from rm_abstract.backends.sampling import Sampler  # noqa: PLC0415 (numpy)

        return _Slot(request, list(request.prompt), Sampler(request))

    def step(self, slots: Sequence[_Slot]) -> Iterable[tuple[_Slot, Sequence[int], FinishReason | None]]:
        """See the base class."""
        for slot in slots:
            token = slot.sampler.choose(self._adapter.run(slot.tokens))
            slot.tokens.append(token)
            generated = len(slot.tokens) - len(slot.request.prompt)
            yield slot, [token], slot.request.ended_by(token, generated, self._end_tokens)

    def drop(self, slot: _Slot) -> None:
        """See the base class."""
        slot.tokens.clear()

    def close(self) -> None:
        """See the base class."""
        super().close()
        self._adapter.unload()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
