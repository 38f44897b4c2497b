"""Everything about plugins under one name: what is built, decorated, discovered and loaded from shared libraries.

All of it is a view on the one registry. The names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rm_abstract.core.registry import PluginRegistry as PluginRegistry
    from rm_abstract.core.registry import get_registry as get_registry
    from rm_abstract.core.versions import PluginInfo as PluginInfo
    from rm_abstract.core.versions import VersionInfo as VersionInfo
    from rm_abstract.core.versions import VersionRange as VersionRange
    from rm_abstract.discovery.collections import backends as backends
    from rm_abstract.discovery.collections import kernels as kernels
    from rm_abstract.discovery.collections import steps as steps
    from rm_abstract.discovery.collections import transforms as transforms
    from rm_abstract.discovery.decorators import backend as backend
    from rm_abstract.discovery.decorators import kernel as kernel
    from rm_abstract.discovery.decorators import step as step
    from rm_abstract.discovery.decorators import transform as transform
    from rm_abstract.discovery.manager import get_plugin_manager as get_plugin_manager
    from rm_abstract.discovery.manager import load_blueprint_plugins as load_blueprint_plugins
    from rm_abstract.discovery.manager import reset_plugin_system as reset_plugin_system
    from rm_abstract.plugins.builder import CustomPlugin as CustomPlugin
    from rm_abstract.plugins.builder import PluginBuilder as PluginBuilder
    from rm_abstract.plugins.layers import CustomLayer as CustomLayer
    from rm_abstract.plugins.loading import get_plugin_info as get_plugin_info
    from rm_abstract.plugins.loading import is_plugin_loaded as is_plugin_loaded
    from rm_abstract.plugins.loading import list_plugins as list_plugins
    from rm_abstract.plugins.loading import load_plugin as load_plugin
    from rm_abstract.plugins.loading import unload_plugin as unload_plugin
    from rm_abstract.plugins.operations import CustomOp as CustomOp
    from rm_abstract.plugins.operations import CustomOpBuilder as CustomOpBuilder
    from rm_abstract.plugins.operations import check_gradients as check_gradients

# Module → the names that it lends to this package. One line each, and one above for the type checker.
_LENT: Final = {
    "rm_abstract.core.registry": ("PluginRegistry", "get_registry"),
    "rm_abstract.core.versions": ("PluginInfo", "VersionInfo", "VersionRange"),
    "rm_abstract.discovery.collections": ("backends", "kernels", "steps", "transforms"),
    "rm_abstract.discovery.decorators": ("backend", "kernel", "step", "transform"),
    "rm_abstract.discovery.manager": ("get_plugin_manager", "load_blueprint_plugins", "reset_plugin_system"),
    "rm_abstract.plugins.builder": ("CustomPlugin", "PluginBuilder"),
    "rm_abstract.plugins.layers": ("CustomLayer",),
    "rm_abstract.plugins.loading": (
        "get_plugin_info", "is_plugin_loaded", "list_plugins", "load_plugin", "unload_plugin",
    ),
    "rm_abstract.plugins.operations": ("CustomOp", "CustomOpBuilder", "check_gradients"),
}  # fmt: skip
_LAZY: Final = {name: module for module, names in _LENT.items() for name in names}

__all__ = [*_LAZY]  # noqa: PLE0604 (they are strings)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
