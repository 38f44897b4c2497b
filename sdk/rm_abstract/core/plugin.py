"""The interface of the plugins that compile and serve models.

One plugin does the work of one engine everywhere: in a build (``required_build_profiles``, ``compile``: needs the
toolchain, never a device) and in a serving pod (``probe``, ``initialize``, ``prepare_resource``, then either
``serve_command`` or ``create_session().execute()``).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from rm_abstract.core.binary_adapter import BinaryCompilerAdapter, CLICompilerAdapter
from rm_abstract.core.embedding import Embedder
from rm_abstract.core.errors import BadInput, PluginError, ToolchainFailure
from rm_abstract.core.registry import PluginRegistry, get_registry
from rm_abstract.core.resource import BuildArtifact, BuildInterface, BuildProfile, Capability, Resource
from rm_abstract.core.session import FinishReason, GenerationRequest, Session, Sink, generate

__all__ = [
    "BackendConfig",
    "Plugin",
    "PluginMetadata",
    "PluginPriority",
    "PluginRegistry",
    "get_registry",
    "list_plugins",
    "run_session",
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
    extra: Mapping[str, Any] = field(default_factory=dict)
    formats: Sequence[str] = ()
    """Formats of artifacts that it serves."""
    depends_on: Sequence[str] = ()
    """Plugins that it needs, such as ``tokens >=1.2,<2``; one that is no runtime with its type: ``step:x``."""
    min_host_version: str = ""
    """The oldest RM Abstract that it works with; empty means any."""
    max_host_version: str = ""
    """The newest RM Abstract that it works with; empty means all that are compatible with the oldest."""


@dataclass(frozen=True)
class BackendConfig:
    """What a model is built or served with. ``None`` and empty mean: as the plugin thinks best."""

    dtype: str = ""
    target: str = ""
    max_batch_size: int | None = None
    max_sequence_length: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    model: Path | None = None
    """Directory of the model, where an artifact that is to be served is without its weights."""
    prefill_chunk: int | None = None
    """Tokens of prompts that are computed in one pass."""
    tensor_parallel: int = 1
    """Devices that compute one layer together."""
    pipeline_parallel: int = 1
    """Groups of devices that have the layers one after the other."""
    prefix_caching: bool | None = None
    """Whether what was computed of a prompt is kept for later ones that begin alike."""
    trust_remote_code: bool = False
    """Whether the engine runs code that comes with the model. Never without being told."""

    @property
    def devices(self) -> int:
        """Devices that the model is served on together."""
        return self.tensor_parallel * self.pipeline_parallel

    def refuse_several_devices(self, engine: str) -> None:
        """For engines that serve a model from one device: raises BadInput where it is to be served from several."""
        if self.devices > 1:
            raise BadInput(
                f"{engine} serves a model from one device, and {self.devices} are asked for (tensor parallel "
                f"{self.tensor_parallel}, pipeline parallel {self.pipeline_parallel}); remove both from the shapes "
                "of the BuildProfile, and maxTensorParallel and linkGBps from the AcceleratorResource"
            )


_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Plugin(ABC):
    """One engine with its toolchain. Methods raise WorkloadError, whose exit code says whose fault it is.

    The least that a plugin has is ``metadata``, ``is_available``, ``prepare_resource``, and ``execute`` or
    ``create_session``.
    """

    dependencies: Mapping[str, Any] = _NOTHING
    """What ``depends_on`` of its metadata names, by name: set by the registry before ``initialize``."""

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
        return all(self.compiler(profile).available() for profile in profiles)

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """How a model becomes an artifact, the preferred way first; empty if models are served as they are."""
        return []

    def compiler(self, profile: BuildProfile) -> BinaryCompilerAdapter:
        """What carries out a profile: its commands. A plugin whose compiler is told otherwise gives another adapter.

        Raises BadInput for a profile that is no row of commands, where the plugin gives none.
        """
        if profile.interface is not BuildInterface.CLI:
            name = self.metadata().name
            raise BadInput(
                f"plugin {name} does not say how a profile with interface {profile.interface} is carried out"
            )
        return CLICompilerAdapter(profile)

    def compile(self, model: Path, output: Path, profile: BuildProfile, *, key: str) -> BuildArtifact:
        """Compile the model in directory ``model`` into directory ``output``, which must be empty or absent.

        Raises ToolchainFailure where the tools fail or are not installed.
        """
        adapter = self.compiler(profile)
        if not adapter.available():
            raise ToolchainFailure(f"{profile.compiler} is not installed here; it needs {', '.join(adapter.needs())}")
        return adapter.compile(model, output, key)

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """The resources among ``resources`` that it can use, with what was observed of them as attributes.

        Without ``resources``: those that this container was given; none where the plugin cannot tell. Raises
        DeviceMissing where one that was given is not there or is another one.
        """
        return list(resources)

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """What these resources can do with these artifacts."""
        return Capability()

    def get_capabilities(self) -> dict[str, Any]:
        """What it can do, for people and for choosing among plugins; looks at no device.

        ``limits`` is its Capability before a device or an artifact is known, ``compiles`` and ``sessions`` say which
        of its methods are of use; ``extra["capabilities"]`` of its metadata is added.
        """
        about = self.metadata()
        return {
            "device_types": list(about.device_types),
            "formats": list(about.formats),
            "compiles": bool(self.required_build_profiles(BackendConfig())),
            "sessions": type(self).create_session is not Plugin.create_session,
            "limits": asdict(self.get_capability((), BackendConfig())),
            **about.extra.get("capabilities", {}),
        }

    def initialize(self) -> None:  # noqa: B027 (an engine without a runtime of its own has nothing to do here)
        """Load the engine."""

    @abstractmethod
    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> Any:
        """Check that the artifact fits what ``probe`` found, and load it; the result is for the methods below.

        Raises ArtifactMismatch or DriverMismatch.
        """

    def serve_command(self, resource: Any, *, served_name: str, port: int) -> list[str] | None:
        """Program and arguments of the engine's own OpenAI server, or None where ``create_session`` is to be used.

        It is asked where neither the engine nor a device is: what depends on the allocation is written as ``${NAME}``
        of the contract's variables, and ``$$`` is a dollar (``rm_api.names.literal``). The program is one of the
        engine's image, found by its name.
        """
        return None

    def serve_environment(self, resource: Any) -> Mapping[str, str]:
        """Variables for that server, written as its arguments are. Those that its container has come before them."""
        return {}

    def release_resource(self, resource: Any) -> None:  # noqa: B027 (see initialize)
        """Free what ``prepare_resource`` returned; nobody uses it any more."""

    def create_embedder(self, resource: Any) -> Embedder | None:
        """The embedding model that ``prepare_resource`` returned, or None where that generates text."""
        return None

    def create_session(self, resource: Any) -> Session:
        """A session over what ``prepare_resource`` returned."""
        raise BadInput(f"plugin {self.metadata().name} has no sessions; use execute")

    def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
        """Run once on what ``prepare_resource`` returned.

        Where a plugin does not say otherwise: generate in a session of its own, which ends with it. ``inputs`` and
        the result are those of ``run_session``.
        """
        session = self.create_session(resource)
        try:
            return run_session(session, inputs, **kwargs)
        finally:
            session.close()

    def versions(self) -> dict[str, str]:
        """Versions of the engine's parts, for the report."""
        return {}

    def cleanup(self) -> None:  # noqa: B027 (see initialize)
        """Free what ``initialize`` and ``prepare_resource`` took."""


def run_session(session: Session, inputs: Any, *, sink: Sink | None = None, **options: Any) -> Any:
    """Generate and wait for the end: text for text, and tokens for tokens.

    ``inputs`` is a text, a row of token ids, or a GenerationRequest, whose fields ``options`` are; without
    ``max_tokens`` as many tokens as the session has room for. ``sink`` gets the tokens as they come.
    """
    text = isinstance(inputs, str)
    if isinstance(inputs, GenerationRequest):
        request = replace(inputs, **options)
    else:
        prompt = session.tokenizer.encode(inputs, add_special_tokens=True) if text else list(inputs)
        options.setdefault("max_tokens", max(1, session.max_sequence_length - len(prompt)))
        request = GenerationRequest(prompt, **options)
    tokens, finish = generate(session, request, sink)
    if finish is FinishReason.ERROR:
        raise PluginError(f"the engine failed while it generated: {session.failure or 'it does not say why'}")
    return session.tokenizer.decode(tokens) if text else tokens


def list_plugins(available_only: bool = False, *, probe: bool = False) -> dict[str, dict[str, Any]]:
    """What the runtime plugins say of themselves, by name, the best first.

    One that fails says so in ``error``, is not available, and keeps none of the others from being listed. ``probe``
    has those that are available look at their devices, too, which may load their engines.
    """
    result = {}
    for state in get_registry().survey(probe=probe):
        if available_only and not state.available:
            continue
        about = state.metadata
        result[state.entry.qualified_name] = {
            "display_name": about.display_name if about else state.entry.qualified_name,
            "version": about.version if about else state.entry.version,
            "vendor": about.vendor if about else None,
            "description": about.description if about else "",
            "priority": int(about.priority) if about else int(PluginPriority.LOWEST),
            "device_types": list(about.device_types) if about else [],
            "formats": list(about.formats) if about else [],
            "requires": list(about.requires) if about else [],
            "depends_on": list(about.depends_on) if about else [],
            "available": state.available,
            "error": state.error,
        }
    return result
