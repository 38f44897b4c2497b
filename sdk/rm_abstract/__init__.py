"""The SDK of RM Abstract: plugins for accelerators, and what our images do with them.

Importing this package loads nothing heavy; the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rm_abstract.backends.plugin_adapter import create_backend_plugin as create_backend_plugin
    from rm_abstract.core.artifacts import ArtifactCache as ArtifactCache
    from rm_abstract.core.chain import PluginChain as PluginChain
    from rm_abstract.core.chain import create_chain_plugin as create_chain_plugin
    from rm_abstract.core.controller import DeviceFlowController as DeviceFlowController
    from rm_abstract.core.controller import get_controller as get_controller
    from rm_abstract.core.controller import init as init
    from rm_abstract.core.controller import shutdown as shutdown
    from rm_abstract.core.device_runtime import DeviceRuntime as DeviceRuntime
    from rm_abstract.core.pipeline import Pipeline as Pipeline
    from rm_abstract.core.plugin import BackendConfig as BackendConfig
    from rm_abstract.core.plugin import Plugin as Plugin
    from rm_abstract.core.plugin import PluginMetadata as PluginMetadata
    from rm_abstract.core.plugin import PluginPriority as PluginPriority
    from rm_abstract.core.plugin import PluginRegistry as PluginRegistry
    from rm_abstract.core.plugin import get_registry as get_registry
    from rm_abstract.core.plugin import list_plugins as list_plugins
    from rm_abstract.core.reload import HotReloader as HotReloader
    from rm_abstract.core.resource import BuildArtifact as BuildArtifact
    from rm_abstract.core.resource import BuildProfile as BuildProfile
    from rm_abstract.core.resource import BuildStep as BuildStep
    from rm_abstract.core.resource import Capability as Capability
    from rm_abstract.core.resource import Resource as Resource
    from rm_abstract.core.resource import ResourceType as ResourceType
    from rm_abstract.core.resource_manager import ResourceManager as ResourceManager
    from rm_abstract.core.resource_manager import get_resource_manager as get_resource_manager
    from rm_abstract.core.resource_pool import ResourcePool as ResourcePool
    from rm_abstract.core.versions import PluginInfo as PluginInfo
    from rm_abstract.core.versions import VersionInfo as VersionInfo
    from rm_abstract.plugins.layers import CustomLayer as CustomLayer
    from rm_abstract.plugins.operations import CustomOp as CustomOp
    from rm_abstract.plugins.operations import CustomOpBuilder as CustomOpBuilder

__version__: Final = "0.1.0"

# Module → the names that it lends to this package. One line each, and one above for the type checker.
_LENT: Final = {
    "rm_abstract.backends.plugin_adapter": ("create_backend_plugin",),
    "rm_abstract.core.artifacts": ("ArtifactCache",),
    "rm_abstract.core.chain": ("PluginChain", "create_chain_plugin"),
    "rm_abstract.core.controller": ("DeviceFlowController", "get_controller", "init", "shutdown"),
    "rm_abstract.core.device_runtime": ("DeviceRuntime",),
    "rm_abstract.core.pipeline": ("Pipeline",),
    "rm_abstract.core.plugin": ("BackendConfig", "Plugin", "PluginMetadata", "PluginPriority", "list_plugins"),
    "rm_abstract.core.reload": ("HotReloader",),
    "rm_abstract.core.registry": ("PluginRegistry", "get_registry"),
    "rm_abstract.core.resource": (
        "BuildArtifact",
        "BuildProfile",
        "BuildStep",
        "Capability",
        "Resource",
        "ResourceType",
    ),
    "rm_abstract.core.resource_manager": ("ResourceManager", "get_resource_manager"),
    "rm_abstract.core.resource_pool": ("ResourcePool",),
    "rm_abstract.core.versions": ("PluginInfo", "VersionInfo"),
    "rm_abstract.plugins.layers": ("CustomLayer",),
    "rm_abstract.plugins.operations": ("CustomOp", "CustomOpBuilder"),
}
_LAZY: Final = {name: module for module, names in _LENT.items() for name in names}

__all__ = ["__version__", *_LAZY]  # noqa: PLE0604 (they are strings)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
