"""The interface of the plugins that compile and serve models.

One plugin does the work of one engine everywhere: in a build (``required_build_profiles``, ``compile``: needs the
toolchain, never a device) and in a serving pod (``probe``, ``initialize``, ``prepare_resource``, then either
``serve_command`` or ``create_session().execute()``).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from rm_abstract.core.binary_adapter import CLICompilerAdapter
from rm_abstract.core.errors import ToolchainFailure
from rm_abstract.core.registry import PluginRegistry, get_registry
from rm_abstract.core.resource import BuildArtifact, BuildProfile, Capability, Resource
from rm_abstract.core.session import Session

__all__ = [
    "BackendConfig",
    "Plugin",
    "PluginMetadata",
    "PluginPriority",
    "PluginRegistry",
    "get_registry",
    "list_plugins",
]


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


def list_plugins(available_only: bool = False) -> dict[str, dict[str, Any]]:
    """What the runtime plugins say of themselves, by name."""
    result = {}
    for name in get_registry().names():
        plugin = get_registry().get_plugin(name)
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
