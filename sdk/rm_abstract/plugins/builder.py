"""Plugins that are built as objects: who they are, what they do when they come and go, and what they bring."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import PluginType
from rm_abstract.core.versions import PluginInfo, VersionInfo
from rm_abstract.plugins.layers import CustomLayer
from rm_abstract.plugins.operations import CustomOp

if TYPE_CHECKING:
    from rm_abstract.core.registry import PluginRegistry

Hook = Callable[["PluginRegistry"], object]


class CustomPlugin:
    """An extension: ``registry.register(plugin)`` initializes it, and files the operations and layers that it brings.

    Its functions are called in this process: one that raises fails alone, but one that never returns holds its caller.
    """

    plugin_type: ClassVar = PluginType.EXTENSION

    def __init__(self, info: PluginInfo) -> None:
        self.info = info
        self._initialize: Hook | None = None
        self._cleanup: Hook | None = None
        self._operations: Callable[[], Iterable[CustomOp]] | None = None
        self._layers: Callable[[], Iterable[CustomLayer]] | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    def set_initialize_fn(self, function: Hook) -> None:
        """Called with the registry when it is registered. What it registers there goes when the plugin goes."""
        self._initialize = function

    def set_cleanup_fn(self, function: Hook) -> None:
        """Called with the registry when it is unregistered."""
        self._cleanup = function

    def set_custom_operations_fn(self, function: Callable[[], Iterable[CustomOp]]) -> None:
        """Called once it is initialized: the operations that it brings."""
        self._operations = function

    def set_custom_layers_fn(self, function: Callable[[], Iterable[CustomLayer]]) -> None:
        """Called once it is initialized: the layers that it brings."""
        self._layers = function

    def initialize(self, registry: "PluginRegistry") -> None:
        """Call what was set. The registry does this."""
        if self._initialize is not None:
            self._initialize(registry)

    def cleanup(self, registry: "PluginRegistry") -> None:
        """Call what was set. The registry does this."""
        if self._cleanup is not None:
            self._cleanup(registry)

    def custom_operations(self) -> list[CustomOp]:
        """The operations that it brings."""
        return list(self._operations()) if self._operations is not None else []

    def custom_layers(self) -> list[CustomLayer]:
        """The layers that it brings."""
        return list(self._layers()) if self._layers is not None else []

    def __repr__(self) -> str:
        return f"<CustomPlugin {self.info}>"


class PluginBuilder:
    """Builds a CustomPlugin: ``PluginBuilder().name("math").version(VersionInfo(1, 0, 0)).build()``.

    Versions may be given as texts, too; BadInput where one is none.
    """

    def __init__(self) -> None:
        self._name = ""
        self._version: VersionInfo | None = None
        self._info = PluginInfo("?", VersionInfo(0))

    def name(self, name: str) -> Self:
        """Its name, by which the registry knows it."""
        self._name = name
        return self

    def version(self, version: VersionInfo | str) -> Self:
        """Its own version."""
        self._version = _version(version)
        return self

    def description(self, description: str) -> Self:
        """What it is for, in a line."""
        return self._say(description=description)

    def author(self, author: str) -> Self:
        """Who made it."""
        return self._say(author=author)

    def min_host_version(self, version: VersionInfo | str) -> Self:
        """The oldest RM Abstract that it works with."""
        return self._say(min_host_version=_version(version))

    def max_host_version(self, version: VersionInfo | str) -> Self:
        """The newest RM Abstract that it works with."""
        return self._say(max_host_version=_version(version))

    def min_rm_abstract_version(self, version: VersionInfo | str) -> Self:
        """The same as ``min_host_version``."""
        return self.min_host_version(version)

    def max_rm_abstract_version(self, version: VersionInfo | str) -> Self:
        """The same as ``max_host_version``."""
        return self.max_host_version(version)

    def extra(self, **members: Any) -> Self:
        """Whatever else it says of itself."""
        return self._say(extra={**self._info.extra, **members})

    def build(self) -> CustomPlugin:
        """The plugin. Raises BadInput where name or version are missing, or no version of a host is within bounds."""
        if not self._name or self._version is None:
            raise BadInput(f"a plugin needs a {'version' if self._name else 'name'}")
        return CustomPlugin(replace(self._info, name=self._name, version=self._version))

    def _say(self, **members: Any) -> Self:
        self._info = replace(self._info, **members)
        return self


def _version(version: VersionInfo | str) -> VersionInfo:
    return VersionInfo.parse(version) if isinstance(version, str) else version
