"""Makes plugins of backends, so that what was written for the smaller interface runs unchanged."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

from rm_abstract.core.backend import Backend
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import Resource


class BackendPluginAdapter(Plugin):
    """A backend as a plugin. Of use by itself for one instance; ``create_backend_plugin`` makes a class to register."""

    backend_class: ClassVar[type[Backend]]
    about: ClassVar[PluginMetadata]
    backend_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        backend_class: type[Backend] | None = None,
        metadata: PluginMetadata | None = None,
        **kwargs: Any,
    ) -> None:
        """``kwargs`` are the backend's constructor's, such as ``device_id``.

        Both classes that ``create_backend_plugin`` makes know their backend and metadata; others need them here.
        """
        if (backend_class is None or metadata is None) and not hasattr(type(self), "about"):
            raise BadInput("a BackendPluginAdapter needs a backend class and its metadata")
        self._class = backend_class or self.backend_class
        self._kwargs = {**self.backend_options, **kwargs}
        self._backend: Backend | None = None
        if metadata is not None:
            # A class method cannot see the instance, so the instance has its own.
            self.__dict__["metadata"] = lambda: metadata

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return cls.about

    @property
    def backend(self) -> Backend:
        """The backend, made when it is first needed."""
        if self._backend is None:
            self._backend = self._class(**self._kwargs)
        return self._backend

    def is_available(self) -> bool:
        """See the base class: what it requires can be imported, and the backend says so."""
        return all(_importable(name) for name in self.metadata().requires) and self.backend.is_available()

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class. A backend names no devices, so that it is trusted with those that it is given."""
        return list(resources)

    def get_capabilities(self) -> dict[str, Any]:
        """See the base class; with the facts of the backend's device."""
        return {**super().get_capabilities(), "device": self.backend.get_device_info()}

    def initialize(self) -> None:
        """See the base class."""
        self.backend.initialize()

    def prepare_resource(self, resource: Any, config: BackendConfig | None = None) -> Any:
        """See the base class. The backend gets the configuration as a dict, without what is not set."""
        return self.backend.prepare_model(resource, as_dict(config))

    def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
        """See the base class."""
        return self.backend.execute(resource, inputs, **kwargs)

    def cleanup(self) -> None:
        """See the base class. The next use makes a new backend."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.cleanup()


def as_dict(config: BackendConfig | None) -> dict[str, Any]:
    """What is set of a configuration, options and all, in one dict."""
    if config is None:
        return {}
    known = ("dtype", "target", "max_batch_size", "max_sequence_length")
    return {**{name: getattr(config, name) for name in known if getattr(config, name)}, **config.options}


def _importable(name: str) -> bool:
    try:
        return find_spec(name.replace("-", "_")) is not None
    except (ImportError, ValueError):
        return False


def create_backend_plugin(
    backend_class: type[Backend],
    name: str = "",
    display_name: str = "",
    version: str = "1.0.0",
    vendor: str | None = None,
    priority: PluginPriority = PluginPriority.NORMAL,
    device_types: Sequence[str] = (),
    requires: Sequence[str] = (),
    description: str = "",
    **backend_options: Any,
) -> type[BackendPluginAdapter]:
    """A plugin class of a backend class, for the registry; ``backend_options`` are the backend's constructor's.

    Name, types of devices and required modules are the backend's own where they are not given.
    """
    if not (isinstance(backend_class, type) and issubclass(backend_class, Backend)):
        raise BadInput(f"{backend_class!r} is no subclass of rm_abstract.core.backend.Backend")
    name = name or backend_class.name or backend_class.__name__.lower()
    about = PluginMetadata(
        name=name,
        display_name=display_name or name,
        version=version,
        vendor=vendor,
        priority=priority,
        device_types=tuple(device_types) or backend_class.device_types or (name,),
        requires=tuple(requires) or backend_class.requires,
        description=description or (backend_class.__doc__ or "").partition("\n")[0],
    )
    members = {
        "backend_class": backend_class,
        "about": about,
        "backend_options": backend_options,
        "__doc__": f"{backend_class.__name__} as a plugin.",
        "__module__": backend_class.__module__,
    }
    return type(f"{backend_class.__name__}Plugin", (BackendPluginAdapter,), members)
