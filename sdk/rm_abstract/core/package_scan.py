"""Finds the runtime plugins of a package by importing its modules."""

import inspect
import logging
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import Plugin
from rm_abstract.core.registry import Origin, PluginEntry, PluginRegistry, PluginType
from rm_abstract.core.selection import check_host, told

_log = logging.getLogger(__name__)


def modules(package: str | ModuleType, problems: dict[str, str]) -> Iterator[ModuleType]:
    """A package and every module below it, imported, by name. One that cannot be is noted in ``problems``.

    Raises BadInput where the package itself cannot be imported.
    """
    if isinstance(package, str):
        try:
            package = import_module(package)
        except (Exception, SystemExit) as error:
            raise BadInput(f"package {package} cannot be imported: {told(error)}") from error
    yield package
    for found in pkgutil.iter_modules(getattr(package, "__path__", ()), f"{package.__name__}."):
        if found.name.endswith(".__main__"):
            continue
        try:
            module = import_module(found.name)
        except (Exception, SystemExit) as error:  # one broken module hides none of the others
            problems[found.name] = told(error)
            _log.warning("%s is left out of the search for plugins: %s", found.name, problems[found.name])
        else:
            yield from modules(module, problems)


def classes(module: ModuleType, base: type) -> Iterator[Any]:
    """The concrete subclasses of ``base`` that a module defines; those whose name begins with ``_`` are its own."""
    for name, value in list(vars(module).items()):
        if (
            isinstance(value, type)
            and issubclass(value, base)
            and value.__module__ == module.__name__
            and not name.startswith("_")
            and not inspect.isabstract(value)
        ):
            yield value


def discover(registry: PluginRegistry, package: str | ModuleType, problems: dict[str, str]) -> list[str]:
    """Register the Plugin subclasses of a package, and return their names, sorted.

    One whose name is taken by another, or that fails, is left out and noted in ``problems`` by ``module:class``.
    """
    names: set[str] = set()
    for module in modules(package, problems):
        for cls in classes(module, Plugin):
            location = f"{module.__name__}:{cls.__qualname__}"
            try:
                names.add(add(registry, cls, location))
            except (Exception, SystemExit) as error:
                problems[location] = told(error)
                _log.warning("plugin %s is left out: %s", location, problems[location])
    return sorted(names)


def add(registry: PluginRegistry, cls: type[Plugin], location: str) -> str:
    """Register a class that was found at ``module:class``, unless that place is known; return the plugin's name."""
    about = cls.metadata()
    check_host(about)
    file = getattr(inspect.getmodule(cls), "__file__", None) or ""
    entry = PluginEntry(PluginType.RUNTIME, about.name, Origin.SCANNED, location, version=about.version, file=file)
    if not any(known.key == entry.key and known.location == location for known in registry.entries(PluginType.RUNTIME)):
        registry.add(entry, cls)
    return about.name
