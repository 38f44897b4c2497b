"""Runs resources on one plugin after another: prepare and execute do not change when the plugin does."""

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from rm_abstract.core.config import AUTO, Config, Device
from rm_abstract.core.engine import Engine, Loaded, blamed, identity
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin
from rm_abstract.core.profiling import OperationProfile, PluginProfiler
from rm_abstract.core.registry import PluginRegistry, PluginType, get_registry
from rm_abstract.core.selection import first_that_works
from rm_abstract.core.sharing import Lease


class PreparedResource:
    """A resource that is ready to run, on whichever plugin its manager runs now. A context manager; see ``release``."""

    def __init__(self, manager: "ResourceManager", resource: Any, config: BackendConfig) -> None:
        self.resource = resource
        self.config = config
        self.key = identity(resource, config)
        self.manager = manager
        self._lock = threading.Lock()
        self._leases: dict[Engine, Lease[Loaded]] = {}
        self._released = False

    def load(self, engine: Engine) -> None:
        """Have the plugin of ``engine`` prepare it, and keep it so until the release."""
        with self._lock:
            if self._released or engine in self._leases:
                return
        lease = engine.acquire(self.resource, self.config, self.key)
        with self._lock:
            if not self._released and self._leases.setdefault(engine, lease) is lease:
                return
        lease.release()

    def forget(self, engine: Engine) -> None:
        """An engine has come to its end, and has freed what it held."""
        with self._lock:
            self._leases.pop(engine, None)

    @property
    def released(self) -> bool:
        """True if it was released."""
        return self._released

    def release(self) -> None:
        """Let go. What plugins hold of it is freed when nobody else has prepared the same, and no request runs on it.

        Harmless if done before.
        """
        with self._lock:
            self._released = True
            leases, self._leases = list(self._leases.values()), {}
        self.manager.forget(self)
        for lease in leases:
            lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ResourceManager:
    """Prepares and runs resources on the active plugin, which can be switched while requests run.

    Safe to use from any thread. A context manager that cleans up.
    """

    def __init__(
        self,
        config: Config | Device | Mapping[str, Any] | str | None = None,
        *,
        registry: PluginRegistry | None = None,
        profiler: PluginProfiler | None = None,
    ) -> None:
        """``config`` says which device: a Config, a Device, its text such as ``npu:0``, or a dict with ``device``.

        ``auto`` without it: the best that is available.
        """
        self.registry = get_registry() if registry is None else registry
        self.profiler = PluginProfiler() if profiler is None else profiler
        self._device, self._default = _device(config), _default(config)
        self._switching = threading.RLock()
        self._changed = threading.Condition()
        self._current: Engine | None = None
        self._handles: dict[int, PreparedResource] = {}
        self._inside = threading.local()

    # Plugins

    def initialize(self, auto_discover: bool = True) -> None:
        """Start the plugin for the device: of several for a type, the best that starts. Does nothing the second time.

        ``auto_discover`` registers the built-in plugins and those of the packages in ``RM_PLUGIN_PACKAGES`` first.
        Raises BadInput where there is none that starts, and what the plugin raises where the device names one.
        """
        with self._switching:
            if self._current is not None:
                return
            if auto_discover:
                from rm_abstract.backends.auto_register import auto_register  # noqa: PLC0415 (only where it is wanted)

                auto_register(self.registry)
            self._go_to(self._device)

    def switch_plugin(self, name_or_type: str, device_id: int | None = None, *, wait: bool = False) -> str:
        """Go over to another plugin, and return its name, while requests run.

        The new plugin is started, and prepares everything that is prepared now; then new requests go to it, and those
        that run finish on the old one, which is cleaned up after the last of them: before the return if ``wait``.
        Where anything of that fails, the old one stays active, and the failure is raised.
        """
        device = Device.parse(name_or_type)
        if device_id is not None:
            device = Device(device.kind, device_id, device.url)
        with self._switching:
            self._active()
            if wait:
                self._refuse_inside("switch_plugin(wait=True)")
            engine, old = self._go_to(device)
        if old is not None and wait:
            self._await_end(old)
        return engine.name

    def refresh(self) -> bool:
        """Go over to the active plugin's class as it is registered now, if that has changed; True if it had."""
        with self._switching:
            engine = self._active()
            if type(engine.plugin) is self.registry.get(PluginType.RUNTIME, engine.name):
                return False
            self._go_to(replace(engine.device, kind=engine.name))
            return True

    def cleanup(self) -> None:
        """Take no more requests, wait for those that run, and clean up the plugin. Harmless where there is none."""
        self._refuse_inside("cleanup()")
        with self._switching, self._changed:
            old, self._current = self._current, None
        if old is not None:
            self._retire(old)
            self._await_end(old)

    def hold(self) -> Lease[Plugin]:
        """The active plugin, which is not cleaned up before the release, whatever is switched meanwhile.

        For those who run it themselves, past ``execute``. Release it, or ``cleanup`` waits for ever.
        """
        stack = ExitStack()
        engine = stack.enter_context(self._request())
        return Lease(engine.plugin, stack.close)

    @property
    def active_plugin(self) -> Plugin | None:
        """The plugin that new requests go to; None where there is none."""
        engine = self._current
        return engine.plugin if engine else None

    @property
    def active_name(self) -> str:
        """Its name; empty where there is none."""
        engine = self._current
        return engine.name if engine else ""

    @property
    def device_id(self) -> int | None:
        """Which of the plugin's devices was asked for."""
        engine = self._current
        return engine.device.index if engine else None

    def profile(self) -> dict[str, dict[str, OperationProfile]]:
        """What plugins have spent here, by plugin and operation."""
        return self.profiler.report()

    # Resources

    def prepare_resource(
        self, resource: Any, config: BackendConfig | Mapping[str, Any] | None = None
    ) -> PreparedResource:
        """Have the active plugin prepare a model, an artifact or what else it takes, for ``execute``.

        ``config`` may be a dict of compile options, such as ``{"precision": "fp16"}``. The same artifact, path or
        object with the same configuration is prepared once, however many threads ask; release every result.
        """
        handle = PreparedResource(self, resource, self._config(config))
        with self._request() as engine, self._in_plugin():
            handle.load(engine)
            with self._changed:
                self._handles[id(handle)] = handle
        return handle

    def execute(self, prepared: PreparedResource, inputs: Any, **kwargs: Any) -> Any:
        """Run once on the active plugin, and give its result; from any thread.

        Where the plugin gives a generator, the request ends with it. Raises BadInput for what was not prepared by this
        manager or was released, PluginError where the plugin fails.
        """
        if not isinstance(prepared, PreparedResource) or prepared.manager is not self:
            raise BadInput("execute wants what prepare_resource of the same resource manager returned")
        with ExitStack() as stack:
            engine = stack.enter_context(self._request())
            if prepared.released:
                raise BadInput("this prepared resource was released")
            with self._in_plugin():
                loaded = stack.enter_context(engine.acquire(prepared.resource, prepared.config, prepared.key))
                prepared.load(engine)
                result = loaded.run(inputs, kwargs)
            if not isinstance(result, Generator):
                return result
            stream = _streamed(engine.name, result, stack.pop_all())
            next(stream)  # from here on, even a stream that nobody reads ends its request when it is dropped
            return stream

    def forget(self, handle: PreparedResource) -> None:
        """For PreparedResource: it was released."""
        with self._changed:
            self._handles.pop(id(handle), None)

    def __enter__(self) -> Self:
        self.initialize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()

    # Inside

    def _config(self, config: BackendConfig | Mapping[str, Any] | None) -> BackendConfig:
        if config is None:
            return self._default
        return config if isinstance(config, BackendConfig) else Config(compile_options=config).backend_config()

    def _go_to(self, device: Device) -> tuple[Engine, Engine | None]:
        """The new engine and the one before, or everything is as it was."""
        engine = self._start(device)
        try:
            return engine, self._install(engine)
        except BaseException:
            engine.close()
            with self._changed:
                handles = list(self._handles.values())
            for handle in handles:
                handle.forget(engine)
            raise

    def _start(self, device: Device) -> Engine:
        kind = "" if device.kind == AUTO else device.kind
        if kind and self.registry.is_registered(kind, PluginType.RUNTIME):
            return Engine.start(self.registry, kind, device, self.profiler)
        return first_that_works(
            self.registry, kind, lambda name: Engine.start(self.registry, name, device, self.profiler)
        )

    def _install(self, engine: Engine) -> Engine | None:
        """Make it the active one once it has prepared all that is prepared; the one before is retired, and returned."""
        loaded: set[int] = set()
        while True:
            with self._changed:
                fresh = [handle for number, handle in self._handles.items() if number not in loaded]
                if not fresh:
                    old, self._current = self._current, engine
                    break
            for handle in fresh:
                handle.load(engine)
                loaded.add(id(handle))
        if old is not None:
            self._retire(old)
        return old

    def _active(self) -> Engine:
        engine = self._current
        if engine is None:
            raise BadInput("the resource manager has no plugin; call initialize() first")
        return engine

    @contextmanager
    def _request(self) -> Iterator[Engine]:
        """The active engine, which is not cleaned up before the end of the block."""
        with self._changed:
            engine = self._active()
            engine.users += 1
        try:
            yield engine
        finally:
            with self._changed:
                engine.users -= 1
            self._end_if_idle(engine)

    def _retire(self, engine: Engine) -> None:
        with self._changed:
            engine.retired = True
        self._end_if_idle(engine)

    def _end_if_idle(self, engine: Engine) -> None:
        with self._changed:
            if not engine.retired or engine.users or engine.ending:
                return
            engine.ending = True
            handles = list(self._handles.values())
        try:
            engine.close()
        finally:
            for handle in handles:
                handle.forget(engine)
            with self._changed:
                engine.closed = True
                self._changed.notify_all()

    def _await_end(self, engine: Engine) -> None:
        with self._changed:
            self._changed.wait_for(lambda: engine.closed)

    @contextmanager
    def _in_plugin(self) -> Iterator[None]:
        """Where a plugin of ours may call us."""
        depth = getattr(self._inside, "depth", 0)
        self._inside.depth = depth + 1
        try:
            yield
        finally:
            self._inside.depth = depth

    def _refuse_inside(self, what: str) -> None:
        if getattr(self._inside, "depth", 0):
            raise BadInput(f"{what} waits for all requests to end, so a request cannot call it")


def _streamed(plugin: str, result: Generator[Any, Any, Any], request: ExitStack) -> Generator[Any, Any, Any]:
    with request, closing(result), blamed(plugin, "execute"):
        yield None
        return (yield from result)


def _device(config: object) -> Device:
    value = config.get("device") if isinstance(config, Mapping) else getattr(config, "device", config)
    return value if isinstance(value, Device) else Device.parse(AUTO if value is None else str(value))


def _default(config: object) -> BackendConfig:
    return config.backend_config() if isinstance(config, Config) else BackendConfig()


_lock = threading.Lock()
_manager: ResourceManager | None = None


def set_resource_manager(manager: ResourceManager | None) -> ResourceManager | None:
    """Make a manager the one of this process, and return the one before; None takes it away. Cleans up neither."""
    global _manager
    with _lock:
        before, _manager = _manager, manager
        return before


def get_resource_manager() -> ResourceManager:
    """The manager of this process. Raises BadInput where there is none."""
    manager = _manager
    if manager is None:
        raise BadInput("there is no resource manager; call rm_abstract.init(use_plugin_system=True) first")
    return manager
