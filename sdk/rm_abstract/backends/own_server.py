"""What plugins share whose engine comes with an OpenAI server: its command is made without the engine.

The command is worked out by an image of ours, and run in the vendor's, which has nothing of ours. So nothing here
imports an engine or looks for a device: a container has those devices only that it was given.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final

from rm_api.names import literal
from rm_api.runtimes import RuntimeFacts, facts_of

from rm_abstract import __version__
from rm_abstract.core.errors import ArtifactMismatch, BadInput, DeviceMissing
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import BuildArtifact, BuildProfile, Capability, Resource, ResourceType

OFFLINE: Final[Mapping[str, str]] = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""The model is there, and pods reach no hub: what is missing has to fail at once."""


@dataclass(frozen=True)
class ServerModel:
    """What an engine's server is started on."""

    directory: Path
    """The model's, or that of the compiled one."""
    arguments: tuple[str, ...]
    """All but those that name the model and the port."""
    environment: Mapping[str, str] = field(default_factory=dict)


class OwnServerPlugin(Plugin):
    """A plugin whose engine serves by itself. The table ``rm_api.runtimes`` says what it serves."""

    name: ClassVar[str]
    display_name: ClassVar[str]
    vendor: ClassVar[str]
    device_type: ClassVar[ResourceType]
    package: ClassVar[str]
    """The engine's Python package."""
    description: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    """Further words for the type of device."""
    priority: ClassVar[PluginPriority] = PluginPriority.NORMAL

    @classmethod
    def facts(cls) -> RuntimeFacts:
        """What is known of the engine."""
        return facts_of(cls.name)

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name=cls.name,
            display_name=cls.display_name,
            version=__version__,
            vendor=cls.vendor,
            priority=cls.priority,
            device_types=(cls.device_type.value.lower(), *cls.aliases),
            requires=(cls.package,),
            description=cls.description,
            formats=cls.facts().formats,
        )

    def is_available(self) -> bool:
        """See the base class: the engine is installed."""
        return find_spec(self.package) is not None

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class: none here; those under ``examples/`` are for the cluster."""
        return []

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class: those of its type are taken as they are, since only the engine can look at them."""
        wanted = [resource for resource in resources if resource.type is self.device_type]
        if resources and not wanted:
            raise DeviceMissing(
                f"{self.name} runs on devices of type {self.device_type.value}, of which none was given"
            )
        return wanted

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        return Capability(dtype=tuple(str(dtype) for dtype in self.facts().dtypes))

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> ServerModel:
        """See the base class; nothing is loaded."""
        config = config or BackendConfig()
        if config.options:
            raise BadInput(f"compile_options: {self.name} takes none here; they are said when it is compiled")
        return self.server_model(resource, config)

    @abstractmethod
    def server_model(self, resource: BuildArtifact, config: BackendConfig) -> ServerModel:
        """What the server is started on. Raises ArtifactMismatch or BadInput."""

    def serve_environment(self, resource: ServerModel) -> Mapping[str, str]:
        """See the base class."""
        return resource.environment


def option(name: str, value: object) -> list[str]:
    """An option and its value as two words; none where there is no value."""
    return [] if value is None else [name, literal(str(value))]


def several(name: str, number: int) -> list[str]:
    """An option and how many devices it is about; none for one, which engines take by themselves."""
    return option(name, number if number > 1 else None)


def switch(name: str, value: bool | None) -> list[str]:
    """An option that is switched on or off by its name; none where it is not said."""
    return [] if value is None else [f"--{name}" if value else f"--no-{name}"]


def model_beside(resource: BuildArtifact, config: BackendConfig) -> Path:
    """The model's directory, of an artifact that is without the model."""
    if config.model is None:
        raise BadInput(f"the artifact is {resource.format}: the model's directory has to be given too")
    return config.model


def settings(directory: Path) -> dict[str, Any]:
    """What config.json in the directory says. Raises ArtifactMismatch where it is none."""
    try:
        value = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactMismatch(f"{directory} has no config.json") from None
    except ValueError as error:
        raise ArtifactMismatch(f"config.json in {directory} is not valid: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactMismatch(f"config.json in {directory} is no object")
    return value


def sequence_limit(directory: Path, wanted: int | None) -> int | None:
    """``wanted``, or what the model takes where that is less: a length that was rounded up is refused otherwise."""
    if wanted is None:
        return None
    config = settings(directory)
    text = config.get("text_config")
    places = [config, *([text] if isinstance(text, dict) else [])]
    own = (place.get("max_position_embeddings") for place in places)
    return min(wanted, *(limit for limit in own if isinstance(limit, int)), wanted)
