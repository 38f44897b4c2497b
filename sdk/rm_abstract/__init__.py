"""The SDK of RM Abstract: plugins for accelerators, and what our images do with them.

Importing this package loads nothing heavy; the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rm_abstract.core.plugin import (
        Plugin,
        PluginMetadata,
        PluginPriority,
        PluginRegistry,
        get_registry,
        list_plugins,
    )
    from rm_abstract.core.resource import BuildArtifact, BuildProfile, Capability, Resource, ResourceType

__version__: Final = "0.1.0"

_LAZY: Final = {
    "Plugin": "rm_abstract.core.plugin",
    "PluginMetadata": "rm_abstract.core.plugin",
    "PluginPriority": "rm_abstract.core.plugin",
    "PluginRegistry": "rm_abstract.core.plugin",
    "get_registry": "rm_abstract.core.plugin",
    "list_plugins": "rm_abstract.core.plugin",
    "BuildArtifact": "rm_abstract.core.resource",
    "BuildProfile": "rm_abstract.core.resource",
    "Capability": "rm_abstract.core.resource",
    "Resource": "rm_abstract.core.resource",
    "ResourceType": "rm_abstract.core.resource",
}

__all__ = [
    "BuildArtifact",
    "BuildProfile",
    "Capability",
    "Plugin",
    "PluginMetadata",
    "PluginPriority",
    "PluginRegistry",
    "Resource",
    "ResourceType",
    "__version__",
    "get_registry",
    "list_plugins",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
