"""A shared library behind the interface of all runtime plugins."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from rm_abstract.core.errors import ArtifactMismatch, BadInput, DeviceMissing, DriverMismatch, PluginError
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import (
    BuildArtifact,
    BuildInterface,
    BuildProfile,
    BuildStep,
    Capability,
    Resource,
    ResourceType,
)
from rm_abstract.core.session import Session
from rm_abstract.native.library import NativeLibrary
from rm_abstract.native.session import NativeSession

_COMPILE: Final = ("python3", "-m", "rm_abstract.native", "compile")
_ARGUMENTS: Final = ("--model=${MODEL_DIR}", "--output=${OUTPUT}", "--target=${TARGET}", "--dtype=${DTYPE}")


@dataclass(frozen=True)
class NativeArtifact:
    """An artifact that fits the devices it is to be opened on."""

    directory: Path
    devices: tuple[str, ...]
    config: BackendConfig


class NativePlugin(Plugin):
    """A subclass names its library; what the plugin is, the library says. See ``native_plugin`` for making one.

    Every session has a process of its own, so that one that crashes takes no other with it.
    """

    library: ClassVar[NativeLibrary]

    def __init__(self) -> None:
        self._devices: list[Resource] = []

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class. Loads the library when it is first called; PluginError where it cannot be loaded."""
        info = cls.library.info()
        said = info.extra
        wanted = said.get("priority", int(PluginPriority.NORMAL))
        return PluginMetadata(
            name=info.name,
            display_name=said.get("display_name") or info.name,
            version=str(info.version),
            vendor=said.get("vendor") or info.author or None,
            priority=min(PluginPriority, key=lambda known: abs(known - wanted)),
            device_types=tuple(said.get("device_types", ())),
            description=info.description,
            formats=tuple(said.get("formats", ())),
            extra={"library": str(cls.library.path), "author": info.author},
            min_host_version=str(info.min_host_version or ""),
            max_host_version=str(info.max_host_version or ""),
        )

    def is_available(self) -> bool:
        """See the base class: the library finds a device."""
        try:
            return bool(self.library.probe())
        except DeviceMissing:
            return False

    def toolchain_available(self) -> bool:
        """See the base class: the compiler is in the library."""
        return "compiler" in self.library.info().extra

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class. The step is for a build that has only a command line; ``compile`` here needs none."""
        said = self.library.info().extra
        compiler = said.get("compiler")
        if compiler is None:
            return []
        types = [_resource_type(self.library, kind) for kind in said.get("device_types", ())]
        return [
            BuildProfile(
                target_resource_type=types[0] if types else ResourceType.CPU,
                compiler=str(compiler.get("name") or self.library.info().name),
                steps=(BuildStep("compile", (*_COMPILE, str(self.library.path), *_ARGUMENTS), ("${OUTPUT}",)),),
                compiler_version=str(compiler.get("version") or ""),
                interface=BuildInterface.SHARED_LIBRARY,
                flags={**config.options, "DTYPE": config.dtype, "TARGET": config.target},
                output_format=str(compiler.get("format") or next(iter(said.get("formats", ())), "")),
            )
        ]

    def compile(self, model: Path, output: Path, profile: BuildProfile, *, key: str) -> BuildArtifact:
        """See the base class."""
        if output.exists() and any(output.iterdir()):
            raise BadInput(f"{output} is not empty")
        options = {name: value for name, value in profile.flags.items() if name not in {"DTYPE", "TARGET"}}
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".rma-build-") as scratch:
            result = Path(scratch, "output")
            result.mkdir()
            flags = profile.flags
            answer = self.library.compile(
                model.absolute(), result.absolute(), key=key, options=options,
                target=flags.get("TARGET", ""), dtype=flags.get("DTYPE", ""),
            )  # fmt: skip
            about = (
                str(answer.get("format") or profile.output_format),
                tuple(answer.get("products") or profile.products),
                tuple(answer.get("drivers") or profile.drivers),
                dict(answer.get("versions") or {}),
            )
            if not any(result.iterdir()):
                raise PluginError(f"{self.library.path.name}: rma_compile succeeded, but left nothing in its output")
            BuildArtifact(result, key, *about).write()
            result.replace(output)
        return BuildArtifact(output, key, *about)

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class."""
        found = self.library.probe([resource.id for resource in resources])
        given = {resource.id: resource for resource in resources}
        self._devices = []
        for device in found:
            known = given.get(device["id"])
            if known is None:
                known = Resource(device["id"], _resource_type(self.library, device["type"]))
            self._devices.append(known.with_attributes(**device.get("attributes", {})))
        return list(self._devices)

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        return Capability(
            max_batch_size=config.max_batch_size,
            max_seq_len=config.max_sequence_length,
            requires_precompile="compiler" in self.library.info().extra,
        )

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> NativeArtifact:
        """See the base class. The library itself looks at the artifact when a session is made."""
        formats = self.metadata().formats
        if formats and resource.format not in formats:
            raise ArtifactMismatch(f"the artifact's format is {resource.format}; served are {', '.join(formats)}")
        devices = self._devices or self.probe()
        for device in devices:
            product, driver = device.attributes.get("product"), device.attributes.get("driver")
            if resource.products and product is not None and product not in resource.products:
                raise ArtifactMismatch(
                    f"the artifact is for {', '.join(resource.products)}, but {device.id} is a {product}"
                )
            if resource.drivers and driver is not None and driver not in resource.drivers:
                raise DriverMismatch(
                    f"the artifact was built for driver {', '.join(resource.drivers)}, but {device.id} has {driver}"
                )
        return NativeArtifact(resource.path, tuple(device.id for device in devices), config or BackendConfig())

    def create_session(self, resource: NativeArtifact) -> Session:
        """See the base class."""
        library = NativeLibrary(self.library.path, shim=self.library.shim, deadlines=self.library.deadlines)
        config = resource.config
        try:
            model = library.open(
                resource.directory.absolute(), resource.devices, dtype=config.dtype, options=dict(config.options),
                max_batch_size=config.max_batch_size, max_sequence_length=config.max_sequence_length,
            )  # fmt: skip
            return NativeSession(model)
        except BaseException:
            library.close()
            raise

    def versions(self) -> dict[str, str]:
        """See the base class."""
        info = self.library.info()
        return {info.name: str(info.version)}

    def cleanup(self) -> None:
        """See the base class: the library's process ends. Sessions have their own, and go on."""
        self.library.close()


def native_plugin(library: NativeLibrary) -> type[NativePlugin]:
    """The plugin class of a library, for ``registry.register``."""
    words = "".join(word.capitalize() for word in library.path.stem.removeprefix("lib").replace("-", "_").split("_"))
    members: dict[str, Any] = {"library": library, "__doc__": f"The plugin that {library.path.name} is."}
    return type(f"{words or 'Native'}Plugin", (NativePlugin,), members)


def _resource_type(library: NativeLibrary, kind: str) -> ResourceType:
    try:
        return ResourceType(kind.upper())
    except ValueError:
        known = ", ".join(word.value.lower() for word in ResourceType)
        raise PluginError(f"{library.path.name} names the type of device {kind}; there are {known}") from None
