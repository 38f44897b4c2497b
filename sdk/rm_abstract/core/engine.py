"""One plugin that runs on a device, with what it has loaded: what a ResourceManager switches between."""

import inspect
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rm_abstract.core.config import Device
from rm_abstract.core.dependencies import start_order
from rm_abstract.core.errors import BadInput, DeviceMissing, PluginError, WorkloadError
from rm_abstract.core.plugin import BackendConfig, Plugin, run_session
from rm_abstract.core.profiling import PluginProfiler
from rm_abstract.core.registry import PluginRegistry, PluginType
from rm_abstract.core.resource import BuildArtifact
from rm_abstract.core.selection import told
from rm_abstract.core.session import Session
from rm_abstract.core.sharing import Lease, SharedResources

_log = logging.getLogger(__name__)


@contextmanager
def blamed(plugin: str, doing: str) -> Iterator[None]:
    """Turn what a plugin raises into a PluginError; failures that say themselves what they are stay as they are."""
    try:
        yield
    except WorkloadError:
        raise
    except Exception as error:
        raise PluginError(f"plugin {plugin} failed to {doing}: {told(error)}") from error


def identity(resource: Any, config: BackendConfig) -> tuple[Any, ...]:
    """Equal for what one preparation serves: the same artifact, path or object with the same configuration."""
    if isinstance(resource, BuildArtifact):
        return "artifact", str(resource.path), resource.key, _frozen(config)
    if isinstance(resource, str | Path):
        return type(resource).__name__, str(resource), _frozen(config)
    return "object", id(resource), _frozen(config)


def _frozen(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return tuple((one.name, _frozen(getattr(value, one.name))) for one in fields(value))
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return repr(value)


class Loaded:
    """What a plugin has prepared, and its session where it runs in one."""

    def __init__(self, plugin: Plugin, name: str, value: Any, profiler: PluginProfiler) -> None:
        self._plugin = plugin
        self._name = name
        self._value = value
        self._profiler = profiler
        self._lock = threading.Lock()
        self._session: Session | None = None

    def run(self, inputs: Any, options: Mapping[str, Any]) -> Any:
        """Run once, on any thread: with the plugin's own ``execute`` if it has one, otherwise in a session."""
        own = type(self._plugin).execute is not Plugin.execute
        session = None if own else self._open()
        with self._profiler.measure(self._name, "execute"), blamed(self._name, "execute"):
            if session is None:
                return self._plugin.execute(self._value, inputs, **options)
            return run_session(session, inputs, **options)

    def _open(self) -> Session:
        """The session, which all requests share; a new one where its engine has failed."""
        with self._lock:
            if self._session is not None and self._session.failure:
                _log.warning("plugin %s: %s; a new session is made", self._name, self._session.failure)
                session, self._session = self._session, None
                session.close()
            if self._session is None:
                with self._profiler.measure(self._name, "create_session"), blamed(self._name, "create a session"):
                    self._session = self._plugin.create_session(self._value)
            return self._session

    def free(self) -> None:
        """Free all of it."""
        session, self._session = self._session, None
        try:
            if session is not None:
                session.close()
        finally:
            self._plugin.release_resource(self._value)


class Engine:
    """A plugin that was started, and how many requests run on it. The flags are the manager's."""

    def __init__(self, plugin: Plugin, name: str, device: Device, profiler: PluginProfiler) -> None:
        self.plugin: Final = plugin
        self.name: Final = name
        self.device: Final = device
        self.users = 0
        self.retired = False
        self.ending = False
        self.closed = False
        self._profiler = profiler
        self._resources = SharedResources()
        self._started: list[tuple[str, Plugin]] = []

    @classmethod
    def start(cls, registry: PluginRegistry, name: str, device: Device, profiler: PluginProfiler) -> "Engine":
        """Make a plugin, with what it needs, for a device, and initialize all of them, or leave nothing behind.

        An index or URL goes to the plugin's constructor where that takes ``device_id`` or ``url``; otherwise the index
        is that of a resource which the plugin finds. Raises WorkloadError.
        """
        entry = registry.entry(PluginType.RUNTIME, name)
        wanted = {"device_id": device.index, "url": device.url or None}
        with blamed(name, "be made"):
            takes = inspect.signature(registry.get(entry.type, entry.qualified_name)).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
        kwargs = {word: value for word, value in wanted.items() if value is not None and (takes_all or word in takes)}
        engine = cls(registry.new_plugin(name, **kwargs), entry.qualified_name, device, profiler)
        try:
            engine._initialize(choose="device_id" not in kwargs)
        except BaseException:
            engine.close()
            raise
        return engine

    def _initialize(self, *, choose: bool) -> None:
        with blamed(self.name, "say whether it is available"):
            if not self.plugin.is_available():
                needs = ", ".join(self.plugin.metadata().requires) or "a device and its driver"
                raise DeviceMissing(f"plugin {self.name} is not available here; it needs {needs}")
        with self._profiler.measure(self.name, "probe"), blamed(self.name, "probe"):
            found = self.plugin.probe()
        index = self.device.index
        if choose and index is not None and (found or type(self.plugin).probe is not Plugin.probe):
            if index >= len(found):
                raise DeviceMissing(f"plugin {self.name} has no device {index}; it finds {len(found)}")
            with blamed(self.name, "probe"):
                self.plugin.probe([found[index]])
        elif choose and index:
            raise BadInput(f"plugin {self.name} cannot tell its devices apart; there is no device {index} of it")
        for plugin in start_order(self.plugin):
            name = self.name if plugin is self.plugin else plugin.metadata().name
            self._started.append((name, plugin))
            with self._profiler.measure(name, "initialize"), blamed(name, "initialize"):
                plugin.initialize()

    def acquire(self, resource: Any, config: BackendConfig, key: tuple[Any, ...]) -> Lease[Loaded]:
        """What the plugin prepares of a resource: once, however many ask."""
        return self._resources.acquire(key, partial(self._prepare, resource, config), Loaded.free)

    def _prepare(self, resource: Any, config: BackendConfig) -> Loaded:
        with self._profiler.measure(self.name, "prepare_resource"), blamed(self.name, "prepare the resource"):
            value = self.plugin.prepare_resource(resource, config)
        return Loaded(self.plugin, self.name, value, self._profiler)

    def close(self) -> None:
        """Free what is loaded, then clean up the plugin before what it needs. A failure is logged: it is the end."""
        self._resources.clear()
        started, self._started = self._started, []
        for name, plugin in reversed(started):
            try:
                with self._profiler.measure(name, "cleanup"):
                    plugin.cleanup()
            except Exception:
                _log.exception("plugin %s failed to clean up", name)
