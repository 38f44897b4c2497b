"""The plugin interface, and the registry that finds plugins.

One plugin does the work of one engine everywhere: in a build (``required_build_profiles``, ``compile``: needs the
toolchain, never a device) and in a serving pod (``probe``, ``initialize``, ``prepare_resource``, then either
``serve_command`` or ``create_session().execute()``).
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

from rm_abstract.core.binary_adapter import CLICompilerAdapter
from rm_abstract.core.errors import BadInput, ToolchainFailure
from rm_abstract.core.resource import BuildArtifact, BuildProfile, Capability, Resource
from rm_abstract.core.session import Session

ENTRY_POINT_GROUP: Final = "rm_abstract.plugins"
"""A distribution offers plugins under this group; the entry point's name is ``TYPE.NAME``, such as ``runtime.acme``."""
RUNTIME: Final = "runtime"
"""Type of the plugins that compile and serve models."""


class PluginPriority(IntEnum):
    """Which plugin is preferred where several are available; the higher."""

    HIGHEST = 100
    HIGH = 75
    NORMAL = 50
    LOW = 25
    LOWEST = 0


@dataclass(frozen=True)
class PluginMetadata:
    """What a plugin says of itself, without loading anything."""

    name: str
    display_name: str
    version: str
    vendor: str | None = None
    priority: PluginPriority = PluginPriority.NORMAL
    device_types: Sequence[str] = ()
    """Types of devices in lower case, such as ``npu``."""
    requires: Sequence[str] = ()
    """Python packages that it needs."""
    description: str = ""
    formats: Sequence[str] = ()
    """Formats of artifacts that it serves."""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BackendConfig:
    """What a model is built or served with. ``None`` and empty mean: as the plugin thinks best."""

    dtype: str = ""
    target: str = ""
    max_batch_size: int | None = None
    max_sequence_length: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)


class Plugin(ABC):
    """One engine with its toolchain. Methods raise WorkloadError, whose exit code says whose fault it is."""

    @classmethod
    @abstractmethod
    def metadata(cls) -> PluginMetadata:
        """What it is."""

    @abstractmethod
    def is_available(self) -> bool:
        """True if what it needs to serve is installed. Looks for it without loading it."""

    def toolchain_available(self) -> bool:
        """True if what it needs to compile is installed."""
        profiles = self.required_build_profiles(BackendConfig())
        return all(CLICompilerAdapter(profile).available() for profile in profiles)

    @abstractmethod
    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """How a model becomes an artifact, the preferred way first; empty if models are served as they are."""

    def compile(self, model: Path, output: Path, profile: BuildProfile, *, key: str) -> BuildArtifact:
        """Compile the model in directory ``model`` into directory ``output``, which must be empty or absent.

        Raises ToolchainFailure where the tools fail or are not installed.
        """
        adapter = CLICompilerAdapter(profile)
        if not adapter.available():
            raise ToolchainFailure(
                f"{profile.compiler} is not installed here; it needs {', '.join(adapter.programs())}"
            )
        return adapter.compile(model, output, key)

    @abstractmethod
    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """The resources among ``resources`` that it can use, with what was observed of them as attributes.

        Without ``resources``: those that this container was given. Raises DeviceMissing where one that was given is
        not there or is another one.
        """

    @abstractmethod
    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """What these resources can do with these artifacts."""

    def initialize(self) -> None:  # noqa: B027 (an engine without a runtime of its own has nothing to do here)
        """Load the engine."""

    @abstractmethod
    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> Any:
        """Check that the artifact fits what ``probe`` found, and load it; the result is for the methods below.

        Raises ArtifactMismatch or DriverMismatch.
        """

    def serve_command(self, resource: Any, *, served_name: str, port: int) -> list[str] | None:
        """Program and arguments of the engine's own OpenAI server, or None where ``create_session`` is to be used."""
        return None

    @abstractmethod
    def create_session(self, resource: Any) -> Session:
        """A session over what ``prepare_resource`` returned."""

    def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
        """Generate once: ``create_session(resource).execute(inputs, **kwargs)``."""
        return self.create_session(resource).execute(inputs, **kwargs)

    def versions(self) -> dict[str, str]:
        """Versions of the engine's parts, for the report."""
        return {}

    def cleanup(self) -> None:  # noqa: B027 (see initialize)
        """Free what ``initialize`` and ``prepare_resource`` took."""


_BUILT_IN: Final = {
    (RUNTIME, "openvino"): "rm_abstract.plugins.openvino:OpenVinoPlugin",
    (RUNTIME, "simulated-npu"): "rm_abstract.plugins.simulated_npu.plugin:SimulatedNpuPlugin",
}


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


class PluginRegistry:
    """Every plugin, by type and name. Classes are imported when they are first asked for."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._locations: dict[tuple[str, str], str | EntryPoint] = dict(_BUILT_IN)
        self._classes: dict[tuple[str, str], type[Plugin]] = {}
        self._discovered = False

    def register(self, plugin_class: type[Plugin], *, plugin_type: str = RUNTIME) -> type[Plugin]:
        """Add a plugin; usable as a decorator. Raises ValueError where another class has its name."""
        key = (plugin_type, _normal(plugin_class.metadata().name))
        with self._lock:
            self.discover_plugins()
            known = self._classes.get(key)
            if known is not plugin_class and (known is not None or key in self._locations):
                raise ValueError(f"there already is a {plugin_type} plugin named {key[1]}")
            self._classes[key] = plugin_class
        return plugin_class

    def discover_plugins(self) -> None:
        """Look for the plugins of installed distributions, once. Nothing is imported; look-ups do it by themselves."""
        with self._lock:
            if self._discovered:
                return
            for entry in entry_points(group=ENTRY_POINT_GROUP):
                plugin_type, _, name = entry.name.rpartition(".")
                self._locations.setdefault((plugin_type or RUNTIME, _normal(name)), entry)
            self._discovered = True

    def names(self, plugin_type: str = RUNTIME) -> list[str]:
        """Names of the plugins of a type, sorted."""
        with self._lock:
            self.discover_plugins()
            return sorted(name for kind, name in self._locations.keys() | self._classes.keys() if kind == plugin_type)

    def get(self, plugin_type: str, name: str) -> type[Plugin]:
        """The class of a plugin. Raises BadInput where there is none, or where it cannot be imported."""
        key = (plugin_type, _normal(name))
        with self._lock:
            self.discover_plugins()
            if key in self._classes:
                return self._classes[key]
            location = self._locations.get(key)
            if location is None:
                raise BadInput(
                    f"there is no {plugin_type} plugin named {name}; there are {', '.join(self.names(plugin_type))}"
                )
            try:
                loaded = location.load() if isinstance(location, EntryPoint) else _load(location)
            except ImportError as error:
                raise BadInput(f"plugin {name} cannot be imported: {error}") from error
            if not (isinstance(loaded, type) and issubclass(loaded, Plugin)):
                raise BadInput(f"plugin {name} is no subclass of rm_abstract.core.plugin.Plugin, but {loaded!r}")
            self._classes[key] = loaded
            return loaded

    def get_plugin(self, name: str, **kwargs: Any) -> Plugin:
        """A new instance of the runtime plugin ``name``."""
        return self.get(RUNTIME, name)(**kwargs)

    def auto_select(self, device_type: str | None = None) -> Plugin:
        """The available plugin of the highest priority, then the first by name. Raises BadInput where none is."""
        available = [
            plugin
            for plugin in (self.get_plugin(name) for name in self.names())
            if (device_type is None or device_type.lower() in plugin.metadata().device_types) and plugin.is_available()
        ]
        if not available:
            kind = f" for {device_type}" if device_type else ""
            raise BadInput(f"no plugin{kind} is available here; known are {', '.join(self.names())}")
        return max(available, key=lambda plugin: plugin.metadata().priority)


def _load(location: str) -> object:
    module, _, name = location.partition(":")
    return getattr(import_module(module), name)


_registry = PluginRegistry()


def get_registry() -> PluginRegistry:
    """The registry of this process."""
    return _registry


def list_plugins(available_only: bool = False) -> dict[str, dict[str, Any]]:
    """What the runtime plugins say of themselves, by name."""
    result = {}
    for name in _registry.names():
        plugin = _registry.get_plugin(name)
        available = plugin.is_available()
        if available or not available_only:
            about = plugin.metadata()
            result[name] = {
                "display_name": about.display_name,
                "version": about.version,
                "vendor": about.vendor,
                "priority": int(about.priority),
                "device_types": list(about.device_types),
                "formats": list(about.formats),
                "available": available,
            }
    return result
