"""``rm_abstract.init``: chooses a plugin for a device, and sends a script's models to it."""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rm_abstract.core.backend import Backend
from rm_abstract.core.config import Config, Device
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin
from rm_abstract.core.preparing import Prepared, Progress, Stage, prepare
from rm_abstract.core.resource_manager import ResourceManager, set_resource_manager
from rm_abstract.core.session import Session
from rm_abstract.hooks import Hooks

_log = logging.getLogger("rm_abstract")
_AT_ONCE: Final = 8

OnProgress = Callable[[Progress], None]


class LoadedModel:
    """A model on the controller's device. It goes over to another plugin, at its next use, when the manager has."""

    def __init__(self, controller: "DeviceFlowController", directory: Path, config: BackendConfig) -> None:
        self.directory = directory
        self.config = config
        self._controller = controller
        self._changed = threading.Condition()
        self._current: _Opened | None = None
        self._closed = False

    @property
    def device(self) -> str:
        """The device, for messages."""
        return self._controller.name

    @property
    def at_once(self) -> int:
        """How many generations are started at a time."""
        return self.config.max_batch_size or _AT_ONCE

    @contextmanager
    def use(self) -> Iterator[Session]:
        """The session, open inside; its plugin is not cleaned up before the end. BadInput after the shutdown."""
        self._check_open()
        with self._controller.manager.hold() as plugin:
            opened = self._take(plugin)
            try:
                yield opened.session
            finally:
                self._let_go(opened)

    def _check_open(self) -> None:
        if self._closed:
            raise BadInput(
                "this model was loaded by rm_abstract, which was shut down since; load it again with from_pretrained"
            )

    def _take(self, plugin: Plugin) -> "_Opened":
        with self._changed:
            self._check_open()
            old = self._current
            if old is None or old.plugin is not plugin or old.session.failure:
                self._current = self._controller.open(plugin, self.directory, self.config)
                if old is not None and not old.users:
                    old.close()
            assert self._current is not None
            self._current.users += 1
            return self._current

    def _let_go(self, opened: "_Opened") -> None:
        with self._changed:
            opened.users -= 1
            last = not opened.users and (self._closed or opened is not self._current)
        if last:
            opened.close()

    def close(self) -> None:
        """Close it; generations that go on end first, as those of a closed session do."""
        with self._changed:
            self._closed = True
            opened, self._current = self._current, None
        if opened is not None:
            opened.close()


class _Opened:
    """A session over a prepared model. ``users`` is counted by whoever opened it."""

    def __init__(self, plugin: Plugin, resource: Any, session: Session, prepared: Prepared) -> None:
        self.plugin = plugin
        self.session = session
        self.users = 0
        self._resource = resource
        self._prepared = prepared

    def close(self) -> None:
        """Free all of it."""
        try:
            self.session.close()
            self.plugin.release_resource(self._resource)
        finally:
            self._prepared.close()


class DeviceFlowController:
    """One ``init``: a plugin for a device, hooks that bring models to it, and the models that were loaded.

    A context manager that shuts down at its end.
    """

    def __init__(self, config: Config, on_progress: OnProgress | None = None) -> None:
        self.config: Final = config
        self.manager: Final = ResourceManager(config)
        self._on_progress = on_progress
        self._hooks = Hooks(self)
        self._lock = threading.Lock()
        self._models: list[LoadedModel] = []
        self._running = False

    @property
    def device(self) -> Device:
        """The device that was asked for."""
        return self.config.device

    @property
    def plugin(self) -> Plugin:
        """The plugin that runs the models. BadInput after the shutdown."""
        plugin = self.manager.active_plugin
        if plugin is None:
            raise BadInput("rm_abstract was shut down; call rm_abstract.init() again")
        return plugin

    @property
    def name(self) -> str:
        """The plugin's name and the device that was asked for, for messages."""
        plugin = self.manager.active_name or "no plugin"
        return str(self.device) if plugin == self.device.kind else f"{plugin} ({self.device})"

    @property
    def running(self) -> bool:
        """True between ``start`` and ``shutdown``."""
        return self._running

    @property
    def backend(self) -> Backend:
        """The device as the smaller interface of before: ``prepare_model`` and ``execute``."""
        return ControllerBackend(self)

    def start(self) -> None:
        """Choose the plugin, start it, and set the hooks. Raises WorkloadError, and then nothing is changed."""
        self.manager.initialize()
        try:
            about = self.plugin.metadata()
            self.tell(Progress(Stage.SELECTED, f"{about.display_name} runs what is asked of {self.device}"))
            self._hooks.install()
        except BaseException:
            self._hooks.remove()
            self.manager.cleanup()
            raise
        self._running = True

    def shutdown(self) -> None:
        """Take the hooks out, close the models, and clean up the plugin. Harmless the second time."""
        self._hooks.remove()
        with self._lock:
            self._running = False
            models, self._models = self._models, []
        for model in models:
            model.close()
        self.manager.cleanup()

    def tell(self, progress: Progress) -> None:
        """Show it where ``verbose``, and hand it to the callback."""
        _log.debug("%s: %s", progress.stage, progress.message)
        if self.config.verbose:
            print(f"rm_abstract: {progress.message}", file=sys.stderr, flush=True)
        if self._on_progress is not None:
            self._on_progress(progress)

    def load(self, directory: Path, *, dtype: str = "") -> LoadedModel:
        """Load a model on the device: compiled if the cache lacks it. Raises WorkloadError.

        ``dtype`` is what a script wants, where the compile options name none and the device has it.
        """
        config = self.config.backend_config()
        if dtype and not config.dtype:
            known = self.plugin.get_capability((), config).dtype
            if dtype in known:
                config = replace(config, dtype=dtype)
            else:
                self.tell(Progress(Stage.PASSED, f"{self.name} has no {dtype}; it chooses among {', '.join(known)}"))
        model = LoadedModel(self, directory, config)
        with self._lock:
            if not self._running:
                raise BadInput("rm_abstract was shut down; call rm_abstract.init() again")
            self._models.append(model)
        try:
            with model.use():
                return model
        except BaseException:
            with self._lock:
                self._models = [other for other in self._models if other is not model]
            raise

    def open(self, plugin: Plugin, directory: Path, config: BackendConfig) -> _Opened:
        """A session of a plugin over a model's directory."""
        prepared = self.prepare(plugin, directory, config)
        started = time.monotonic()
        self.tell(Progress(Stage.LOADING, f"loading {directory} on {self.name}"))
        try:
            resource = plugin.prepare_resource(prepared.artifact, config)
            opened = _Opened(plugin, resource, plugin.create_session(resource), prepared)
        except BaseException:
            prepared.close()
            raise
        seconds = time.monotonic() - started
        self.tell(Progress(Stage.LOADED, f"loaded in {seconds:.1f} s", seconds))
        return opened

    def prepare(self, plugin: Plugin, directory: Path, config: BackendConfig) -> Prepared:
        """A model as the plugin takes it; see ``preparing.prepare``."""
        return prepare(plugin, directory, config, self.config.cache_dir, self.tell)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            if _controller is self:
                _replace(None)
            else:
                self.shutdown()


class ControllerBackend(Backend):
    """A controller as a Backend."""

    def __init__(self, controller: DeviceFlowController) -> None:
        super().__init__(controller.device.index or 0)
        self._controller = controller

    def is_available(self) -> bool:
        """See the base class."""
        return self._controller.running

    def prepare_model(self, model: Any, model_config: Mapping[str, Any] | None = None) -> Any:
        """See the base class. ``model`` is a model's directory or an artifact; compiled if the cache lacks it."""
        controller = self._controller
        options = {**controller.config.compile_options, **(model_config or {})}
        config = replace(controller.config, compile_options=options).backend_config()
        if isinstance(model, str | PathLike):
            model = controller.prepare(controller.plugin, Path(model), config).artifact
        return controller.manager.prepare_resource(model, config)

    def execute(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
        """See the base class: text for text, tokens for tokens."""
        return self._controller.manager.execute(model, inputs, **kwargs)

    def get_device_info(self) -> dict[str, Any]:
        """See the base class."""
        about = self._controller.plugin.metadata()
        return {"device": str(self._controller.device), "plugin": about.name, "display_name": about.display_name}


_lock = threading.RLock()
_controller: DeviceFlowController | None = None


def init(
    device: str | Device | None = None,
    compile_options: Mapping[str, Any] | None = None,
    cache_dir: "str | PathLike[str] | None" = None,
    verbose: bool = False,
    use_plugin_system: bool | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> DeviceFlowController:
    """Run the models that this process loads with transformers on a device, without a change to what loads them.

    ``device`` is ``auto``, a type or a plugin's name with or without a number (``cpu``, ``gpu:0``, ``rbln:0``), or
    ``remote:URL``. ``compile_options`` are ``dtype`` (or ``precision``), ``target``, ``max_batch_size``,
    ``max_sequence_length``, and what the plugin itself understands. Compiled models are kept in ``cache_dir``.
    ``verbose`` shows on standard error what is done; ``on_progress`` is told the same. Where an argument is not given,
    RM_DEVICE, RM_CACHE_DIR and RM_USE_PLUGINS count.

    ``use_plugin_system`` makes ``rm_abstract.get_resource_manager`` give the manager behind it, with which the plugin
    can be switched; without it, the result's ``backend`` is the way to use the device directly. Both run the same
    plugins.

    A second call with the same arguments gives the same controller, one with others takes the place of the first,
    whose models are closed; where it fails, the first stays. Raises WorkloadError where the device is not known, or no
    plugin for it works.
    """
    config = Config.resolve(device, compile_options, cache_dir, verbose, use_plugin_system)
    with _lock:
        if _controller is not None and _controller.config == config:
            return _controller
        controller = DeviceFlowController(config, on_progress)
        _replace(controller)
        atexit.unregister(_at_exit)
        atexit.register(_at_exit, os.getpid())
        return controller


def _at_exit(process: int) -> None:
    if os.getpid() == process:  # a fork that ends must not end what its parent uses
        shutdown()


def shutdown() -> None:
    """Undo ``init``: transformers is as it was, models are closed, and no process is left. Harmless without it."""
    with _lock:
        _replace(None)


def get_controller() -> DeviceFlowController:
    """The controller of this process. Raises BadInput where there is none."""
    controller = _controller
    if controller is None:
        raise BadInput("there is no controller; call rm_abstract.init() first")
    return controller


def _replace(new: DeviceFlowController | None) -> None:
    global _controller  # noqa: PLW0603 (one of this process, under _lock)
    old = _controller
    if new is not None:
        # First, so that where it fails everything is as it was. Its hooks lie over the old one's until those go.
        new.manager.initialize()
    _controller = None
    set_resource_manager(None)
    if old is not None:
        old.shutdown()
    if new is not None:
        new.start()
        _controller = new
        if new.config.use_plugin_system:
            set_resource_manager(new.manager)
