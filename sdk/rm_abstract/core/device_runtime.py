"""What an application generates text with, whatever the device: load a model, generate, clean up.

An application that takes a DeviceRuntime does not change when the device does.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rm_abstract.core.artifacts import ArtifactCache, Hold
from rm_abstract.core.binary_adapter import BinaryCompilerAdapter, BinaryRuntimeAdapter
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin, run_session
from rm_abstract.core.registry import get_registry
from rm_abstract.core.resource import ARTIFACT_FILE, BuildArtifact
from rm_abstract.core.session import GenerationRequest, Session

_Path = str | os.PathLike[str]


class DeviceRuntime(ABC):
    """A device that generates text. A context manager that cleans up."""

    device: str = ""
    """What it really runs on, for people."""

    @abstractmethod
    def load_model(self, model_path: _Path) -> None:
        """Make the model ready; the one before it is given up. Raises WorkloadError."""

    @abstractmethod
    def generate(self, prompt: str, max_tokens: int) -> str:
        """The text that follows the prompt. Raises BadInput where no model is loaded, WorkloadError."""

    def stream(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """The same in pieces, as they come, where the device gives them."""
        yield self.generate(prompt, max_tokens)

    @abstractmethod
    def cleanup(self) -> None:
        """Free the device. Harmless where there is nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()


class BinaryDeviceRuntime(DeviceRuntime):
    """A device with a binary stack: an adapter for its runtime, and one for its compiler where it needs one.

    ``make`` gives the runtime for a compiled file. With a ``compiler``, the model is compiled first, once for all who
    share the ``cache``.
    """

    def __init__(
        self,
        make: Callable[[Path], BinaryRuntimeAdapter],
        *,
        compiler: BinaryCompilerAdapter | None = None,
        cache: ArtifactCache | None = None,
        device: str = "",
    ) -> None:
        if compiler is not None and cache is None:
            raise BadInput("what is compiled must be kept somewhere: give the runtime an ArtifactCache")
        self.device = device
        self._make, self._compiler, self._cache = make, compiler, cache
        self._hold: Hold | None = None
        self._runtime: BinaryRuntimeAdapter | None = None

    def load_model(self, model_path: _Path) -> None:
        """See the base class."""
        self.cleanup()
        engine = Path(model_path)
        if self._compiler is not None and self._cache is not None:
            self._hold = self._cache.compile(self._compiler, engine, model_id=engine.name)
            engine = self._hold.path
        try:
            runtime = self._make(engine)
            runtime.load()
        except BaseException:
            self.cleanup()
            raise
        self._runtime = runtime

    def generate(self, prompt: str, max_tokens: int) -> str:
        """See the base class."""
        return str(self._loaded().run(prompt, max_tokens=max_tokens))

    def stream(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """See the base class."""
        return self._loaded().stream(prompt, max_tokens=max_tokens)

    def cleanup(self) -> None:
        """See the base class."""
        runtime, self._runtime, hold, self._hold = self._runtime, None, self._hold, None
        if runtime is not None:
            runtime.unload()
        if hold is not None:
            hold.close()

    def _loaded(self) -> BinaryRuntimeAdapter:
        if self._runtime is None:
            raise BadInput("no model is loaded; call load_model() first")
        return self._runtime


class PluginRuntime(DeviceRuntime):
    """A device behind a runtime plugin: one that is given, or the best that is available for a type such as ``npu``.

    ``load_model`` takes an artifact as it is; a model's directory is compiled as the plugin wants it, once, and kept in
    ``cache_dir``.
    """

    def __init__(
        self,
        plugin: Plugin | str,
        *,
        config: BackendConfig | None = None,
        cache_dir: _Path | None = None,
    ) -> None:
        self._plugin = get_registry().auto_select(plugin) if isinstance(plugin, str) else plugin
        self.device = self._plugin.metadata().display_name
        self._config = config or BackendConfig()
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._started = False
        self._resource: Any = None
        self._session: Session | None = None
        self._close: Callable[[], None] = _nothing

    def load_model(self, model_path: _Path) -> None:
        """See the base class."""
        self._unload()
        path = Path(model_path)
        if not self._started:
            self._plugin.initialize()
            self._started = True
        if (path / ARTIFACT_FILE).is_file():
            artifact = BuildArtifact.read(path)
        else:
            from rm_abstract.core.preparing import prepare  # noqa: PLC0415 (only where there is something to compile)

            if self._cache_dir is None:
                raise BadInput(f"{path} is no artifact, and what is compiled must be kept somewhere: give a cache_dir")
            prepared = prepare(self._plugin, path, self._config, self._cache_dir, lambda _progress: None)
            artifact, self._close = prepared.artifact, prepared.close
        self._plugin.probe()
        self._resource = self._plugin.prepare_resource(artifact, self._config)
        if type(self._plugin).create_session is not Plugin.create_session:
            self._session = self._plugin.create_session(self._resource)

    def generate(self, prompt: str, max_tokens: int) -> str:
        """See the base class."""
        self._check_loaded()
        if self._session is None:
            return str(self._plugin.execute(self._resource, prompt, max_tokens=max_tokens))
        return str(run_session(self._session, prompt, max_tokens=max_tokens))

    def stream(self, prompt: str, max_tokens: int) -> Iterator[str]:
        """See the base class."""
        from rm_abstract.core.cooperation import stream_session  # noqa: PLC0415
        from rm_abstract.core.text import TextStream  # noqa: PLC0415

        self._check_loaded()
        if self._session is None:
            yield from super().stream(prompt, max_tokens)
            return
        tokenizer = self._session.tokenizer
        text = TextStream(tokenizer)
        request = GenerationRequest(tokenizer.encode(prompt, add_special_tokens=True), max_tokens)
        with closing(stream_session(self._session, request)) as pieces:
            for tokens in pieces:
                if piece := text.push(tokens):
                    yield piece
        if rest := text.finish():
            yield rest

    def cleanup(self) -> None:
        """See the base class."""
        self._unload()
        if self._started:
            self._started = False
            self._plugin.cleanup()

    def _unload(self) -> None:
        session, self._session, resource, self._resource = self._session, None, self._resource, None
        close, self._close = self._close, _nothing
        if session is not None:
            session.close()
        if resource is not None:
            self._plugin.release_resource(resource)
        close()

    def _check_loaded(self) -> None:
        if self._resource is None:
            raise BadInput("no model is loaded; call load_model() first")


def _nothing() -> None:
    pass
