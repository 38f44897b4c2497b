"""How a CustomPlugin comes into a registry, whole or not at all, and out of it. The registry's methods call these."""

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.core.registry import Origin, PluginEntry, PluginType
from rm_abstract.plugins.builder import CustomPlugin
from rm_abstract.plugins.layers import CustomLayer
from rm_abstract.plugins.operations import CustomOp

if TYPE_CHECKING:
    from rm_abstract.core.registry import PluginRegistry

_log = logging.getLogger(__name__)
OWNER: Final = "extension"
"""Attribute of an entry: the extension that brought it."""
_current = threading.local()
"""``name``: of the extension that this thread initializes."""


def install(registry: "PluginRegistry", plugin: CustomPlugin, *, replace_others: bool = False) -> CustomPlugin:
    """Check, initialize and file an extension with what it brings.

    Raises BadInput where it is not for this version of RM Abstract, ValueError where a name is taken, and PluginError
    where one of its functions fails. Then nothing of it is registered, and it has been cleaned up.
    """
    problem = plugin.info.incompatibility()
    if problem:
        raise BadInput(problem)
    name = plugin.info.name
    if getattr(_current, "name", ""):
        raise BadInput(f"plugin {name} is registered while {_current.name} is initialized; register it before or after")
    about = {"description": plugin.info.description, "author": plugin.info.author}
    entry = PluginEntry(
        PluginType.EXTENSION, name, Origin.REGISTERED, version=str(plugin.info.version), attributes=about
    )
    known = registry.is_registered(name, PluginType.EXTENSION)
    there: object = registry.get(PluginType.EXTENSION, name) if known else None
    if there is plugin:
        return plugin
    if known and not replace_others:
        raise ValueError(f"there already is an extension plugin named {name}; unregister it first")
    _current.name = name
    try:
        with registry.staging() as staged:
            _call(plugin, "initialize", registry)
    finally:
        _current.name = ""
    try:
        new = [(entry, plugin), *((_owned(one, name), target) for one, target in staged), *_brought(plugin)]
        if known:
            registry.unregister(name, plugin_type=PluginType.EXTENSION)
        registry.exchange([], new, replace=replace_others)
    except BaseException:
        try:
            plugin.cleanup(registry)
        except Exception:
            _log.exception("plugin %s could not be cleaned up after it was refused", name)
        raise
    return plugin


def remove(registry: "PluginRegistry", entry: PluginEntry) -> None:
    """Clean an extension up, and take it out with all that it brought. Raises PluginError where its cleanup fails."""
    plugin = registry.get(entry.type, entry.name)
    try:
        _call(plugin, "cleanup", registry)
    finally:
        registry.exchange([entry, *registry.entries(**{OWNER: entry.name})], [])


def _brought(plugin: CustomPlugin) -> list[tuple[PluginEntry, object]]:
    found: list[tuple[PluginEntry, object]] = []
    for function, kind, plugin_type in (
        ("custom_operations", CustomOp, PluginType.OPERATION),
        ("custom_layers", CustomLayer, PluginType.LAYER),
    ):
        for one in _call(plugin, function):
            if not isinstance(one, kind):
                raise PluginError(f"{function} of plugin {plugin.info.name} gave {one!r}, which is no {kind.__name__}")
            entry = PluginEntry(plugin_type, one.name, Origin.REGISTERED, version=str(plugin.info.version))
            if any(entry.key == other.key for other, _ in found):
                raise PluginError(f"plugin {plugin.info.name} brings two of the name {one.name} as {plugin_type}")
            found.append((_owned(entry, plugin.info.name), one))
    return found


def _owned(entry: PluginEntry, name: str) -> PluginEntry:
    return replace(entry, attributes={**entry.attributes, OWNER: name})


def _call(plugin: CustomPlugin, function: str, *arguments: Any) -> Any:
    try:
        return getattr(plugin, function)(*arguments)
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{function} of plugin {plugin.info.name} failed: {type(error).__name__}: {error}") from error
