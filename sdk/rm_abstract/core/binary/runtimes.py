"""Engines that are only to be had as binaries: a library with a C interface, driven in a process of its own."""

import os
import queue
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from rm_abstract.core.errors import BadInput, DeviceMissing, PluginError, WorkloadError
from rm_abstract.core.session import GenerationRequest, Tokenizer
from rm_abstract.core.text import TextStream

if TYPE_CHECKING:
    from rm_abstract.native.library import Deadlines, NativeLibrary, NativeModel
    from rm_abstract.native.shim import Shim

_Path = str | os.PathLike[str]
_LIBRARY_DIRECTORIES: Final = ("/usr/local/lib", "/usr/local/lib64", "/usr/lib64", "/usr/lib", "/lib64", "/lib")
_MOST: Final = 256
"""Tokens that are generated where neither the caller nor the library names a limit."""


def find_library(name: _Path, search_paths: Sequence[_Path] = ()) -> Path:
    """The library at a path, or of a name in these directories, LD_LIBRARY_PATH or where the system has its own.

    Raises BadInput where it is not there.
    """
    wanted = Path(name)
    if wanted.is_absolute() or len(wanted.parts) > 1:
        places = [wanted]
    else:
        variable = [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
        system = [Path(directory) for directory in _LIBRARY_DIRECTORIES]
        system += [path for directory in system for path in sorted(directory.glob("*-linux-gnu"))]
        places = [Path(directory) / wanted for directory in (*search_paths, *variable, *system)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        where = ", ".join(str(place.parent) for place in places)
        raise BadInput(f"there is no {wanted.name} in {where}; give its path, or search_paths")
    return found


class BinaryRuntimeAdapter:
    """An engine that is only to be had as a binary: loads a compiled file on one device and runs it.

    ``runtime_so`` is a shared library that exports ``rm_plugin.h``; with a ``shim``, any with a C interface. It is a
    path, or a name that is looked for in ``search_paths``, beside the engine, in LD_LIBRARY_PATH and where the system
    has its libraries. It runs in a process of its own: where it crashes, hangs or lies, ``run`` raises PluginError, and
    ``load`` loads it anew. ``device_id`` is the id of a device, or its number among those that the library finds.
    ``options`` are the engine's own.

    A context manager: loaded inside, unloaded after. ``run`` and ``stream`` may be called from any thread. An engine of
    another kind is a subclass that has ``load``, ``run`` and ``unload`` of its own.
    """

    def __init__(
        self,
        engine_path: _Path,
        device_id: int | str = 0,
        runtime_so: _Path = "",
        *,
        shim: "Shim | None" = None,
        search_paths: Sequence[_Path] = (),
        options: Mapping[str, str] | None = None,
        deadlines: "Deadlines | None" = None,
    ) -> None:
        self.engine_path = Path(engine_path)
        self.device_id = device_id
        self.runtime_so = os.fspath(runtime_so)
        self.shim = shim
        self.search_paths = tuple(Path(path) for path in search_paths)
        self.options = dict(options or {})
        self.deadlines = deadlines
        self._library: NativeLibrary | None = None
        self._model: NativeModel | None = None

    @property
    def loaded(self) -> bool:
        """True while it can run: after ``load``, until ``unload`` or until the library's process ended."""
        return self._model is not None and not self._model.lost

    def load(self) -> None:
        """Load the file on the device. Harmless where it is loaded.

        Raises BadInput where there is no such library or file, ArtifactMismatch, DeviceMissing or DriverMismatch as the
        library says, PluginError where it fails otherwise.
        """
        from rm_abstract.native.library import NativeLibrary  # noqa: PLC0415 (only for those who have a library)

        if self.loaded:
            return
        self.unload()
        if not self.runtime_so:
            raise BadInput("the runtime has no library: name it as runtime_so, or subclass BinaryRuntimeAdapter")
        if not self.engine_path.exists():
            raise BadInput(f"there is no engine at {self.engine_path}; compile one first")
        beside = self.engine_path if self.engine_path.is_dir() else self.engine_path.parent
        path = find_library(self.runtime_so, [*self.search_paths, beside])
        library = NativeLibrary(path, shim=self.shim, deadlines=self.deadlines)
        try:
            device = self._device(library)
            self._model = library.open(self.engine_path.absolute(), [device] if device else [], options=self.options)
        except BaseException:
            library.close()
            raise
        self._library = library

    def unload(self) -> None:
        """Free the device. Harmless where nothing is loaded."""
        library, self._library, model, self._model = self._library, None, self._model, None
        try:
            if model is not None:
                model.close()
        finally:
            if library is not None:
                library.close()

    def run(self, inputs: Any, **options: Any) -> Any:
        """Run once: text for text, tokens for a row of tokens, the library's answer for a mapping that is its request.

        ``options`` are fields of GenerationRequest, such as ``max_tokens``; without it, as many as there is room for.
        Raises BadInput for what cannot be run, and WorkloadError as the library says.
        """
        if isinstance(inputs, Mapping):
            return self._loaded().run({**inputs, **options})
        pieces = list(self.stream(inputs, **options))
        return "".join(pieces) if isinstance(inputs, str) else [token for piece in pieces for token in piece]

    def stream(self, inputs: Any, **options: Any) -> Iterator[Any]:
        """The result of ``run`` in pieces, as they come: texts for a text, lists of tokens for a row of tokens.

        Ending the iteration early cancels the run.
        """
        model = self._loaded()
        if not isinstance(inputs, str):
            return self._tokens(model, self._request(model, list(inputs), options))
        tokenizer = self._tokenizer(model)
        prompt = tokenizer.encode(inputs, add_special_tokens=True)
        return _texts(tokenizer, self._tokens(model, self._request(model, prompt, options)))

    def __enter__(self) -> Self:
        self.load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()

    # The library

    def _loaded(self) -> "NativeModel":
        if self._model is None:
            raise BadInput("the engine is not loaded; call load() first")
        return self._model

    def _device(self, library: "NativeLibrary") -> str:
        if isinstance(self.device_id, str):
            return self.device_id
        devices = library.probe()
        if not 0 <= self.device_id < max(len(devices), 1):
            known = ", ".join(str(device["id"]) for device in devices) or "none"
            raise DeviceMissing(f"there is no device number {self.device_id}; there are {known}")
        return str(devices[self.device_id]["id"]) if devices else ""

    # Generating

    def _request(self, model: "NativeModel", prompt: list[int], options: Mapping[str, Any]) -> GenerationRequest:
        room = model.facts.get("max_sequence_length")
        if not prompt:
            raise BadInput("there is nothing to run: the input is empty")
        most = _MOST if not isinstance(room, int) else room - len(prompt)
        if most < 1:
            raise BadInput(f"the input has {len(prompt)} tokens, and there is room for {room} with the answer")
        try:
            request = GenerationRequest(prompt, **{"max_tokens": most, **options})
        except TypeError as error:
            raise BadInput(f"an option is not known: {error}") from None
        if isinstance(room, int) and not 1 <= request.max_tokens <= most:
            raise BadInput(f"max_tokens is {request.max_tokens}, and there is room for 1 to {most} after this input")
        return request

    def _tokens(self, model: "NativeModel", request: GenerationRequest) -> Generator[list[int], None, None]:
        """The tokens as they come. Raises PluginError where they are too many, or none of the model's."""
        arrived: queue.SimpleQueue[list[int] | WorkloadError | None] = queue.SimpleQueue()
        left, size = request.max_tokens, model.facts.get("vocabulary_size")
        run = model.start(
            {"task": "generate", **asdict(request)},
            on_tokens=lambda new: arrived.put(list(new)),
            on_end=lambda _answer, error: arrived.put(error),
        )
        try:
            while (piece := arrived.get()) is not None:
                if isinstance(piece, WorkloadError):
                    raise piece
                left -= len(piece)
                if left < 0:
                    raise PluginError(
                        f"{self.runtime_so} gave more than the {request.max_tokens} tokens it was asked for"
                    )
                if isinstance(size, int) and not all(0 <= token < size for token in piece):
                    raise PluginError(f"{self.runtime_so} gave a token that is not among the model's {size}: {piece}")
                yield piece
        finally:
            run.cancel()

    def _tokenizer(self, model: "NativeModel") -> Tokenizer:
        from rm_abstract.native.session import TOKENIZERS  # noqa: PLC0415 (only for those who have a library)

        make = TOKENIZERS.get(str(model.facts.get("tokenizer")))
        if make is None:
            raise BadInput(f"{self.runtime_so} has no tokenizer; give it tokens instead of a text")
        return make(model)


def _texts(tokenizer: Tokenizer, pieces: Generator[list[int], None, None]) -> Generator[str, None, None]:
    stream = TextStream(tokenizer)
    with closing(pieces):
        for piece in pieces:
            if text := stream.push(piece):
                yield text
    if rest := stream.finish():
        yield rest


class DummyRuntimeAdapter(BinaryRuntimeAdapter):
    """A runtime without a device, for tests of what is above it: it says its input again, word by word.

    ``respond(inputs, options)`` gives another answer, a text or a row of tokens; what it raises, ``run`` raises.
    """

    def __init__(
        self,
        engine_path: _Path = "",
        device_id: int | str = 0,
        respond: Callable[[Any, Mapping[str, Any]], Any] | None = None,
    ) -> None:
        super().__init__(engine_path, device_id)
        self._respond = respond or _again
        self._ready = False

    @property
    def loaded(self) -> bool:
        """True between ``load`` and ``unload``."""
        return self._ready

    def load(self) -> None:
        """Ready to run; no file is looked at."""
        self._ready = True

    def unload(self) -> None:
        """No longer ready."""
        self._ready = False

    def run(self, inputs: Any, **options: Any) -> Any:
        """The answer. Raises BadInput where it is not loaded."""
        if not self._ready:
            raise BadInput("the engine is not loaded; call load() first")
        return self._respond(inputs, options)

    def stream(self, inputs: Any, **options: Any) -> Iterator[Any]:
        """The answer, word by word or token by token."""
        answer = self.run(inputs, **options)
        if not isinstance(answer, str):
            return ([token] for token in answer)
        words = answer.split(" ")
        return (word if number == 0 else f" {word}" for number, word in enumerate(words))


def _again(inputs: Any, options: Mapping[str, Any]) -> Any:
    """The input's words or tokens, over and over, ``max_tokens`` of them or as many as there are."""
    parts = inputs.split() if isinstance(inputs, str) else list(inputs)
    most = options.get("max_tokens", len(parts))
    said = [parts[number % len(parts)] for number in range(most)] if parts else []
    return " ".join(said) if isinstance(inputs, str) else said
