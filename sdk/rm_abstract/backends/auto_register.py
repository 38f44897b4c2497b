"""Registers what is to be had: the plugins that come with RM Abstract, and those of packages that a user names."""

import logging
import os
from collections.abc import Iterable
from types import ModuleType
from typing import Final

from rm_abstract.backends.plugin_adapter import create_backend_plugin
from rm_abstract.core.backend import Backend
from rm_abstract.core.package_scan import add, classes, modules
from rm_abstract.core.registry import BUILT_IN, PluginRegistry, get_registry
from rm_abstract.core.selection import told

ENV_PLUGIN_PACKAGES: Final = "RM_PLUGIN_PACKAGES"
"""Packages that are searched for plugins and backends, with commas between."""

_log = logging.getLogger(__name__)


def auto_register(
    registry: PluginRegistry | None = None, packages: Iterable[str | ModuleType] | None = None
) -> list[str]:
    """Register the built-in plugins, and every plugin and backend of ``packages``; return all runtimes' names.

    Without ``packages``, those that ``RM_PLUGIN_PACKAGES`` names. A backend becomes a plugin of its own name. What
    fails is left out and noted in the registry's ``problems``. Those of installed distributions (entry points) are in
    the registry by themselves. Raises BadInput for a package that cannot be imported.
    """
    registry = get_registry() if registry is None else registry
    known = {entry.key for entry in registry.entries()}
    missing = [entry for entry in BUILT_IN if entry.key not in known]
    if missing:
        registry.add_all(missing)
    if packages is None:
        packages = [name.strip() for name in os.environ.get(ENV_PLUGIN_PACKAGES, "").split(",") if name.strip()]
    for package in packages:
        registry.discover_plugins(package)
        register_backends(registry, package)
    return registry.names()


def register_backends(registry: PluginRegistry, package: str | ModuleType) -> list[str]:
    """Register the Backend subclasses of a package as plugins, and return the names of these, sorted."""
    names = set()
    for module in modules(package, {}):
        for cls in classes(module, Backend):
            location = f"{module.__name__}:{cls.__qualname__}"
            try:
                names.add(add(registry, create_backend_plugin(cls), location))
            except (Exception, SystemExit) as error:
                registry.note_problem(location, told(error))
                _log.warning("backend %s is left out: %s", location, told(error))
    return sorted(names)
