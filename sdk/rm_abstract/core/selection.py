"""Instances of runtime plugins, what each of them says now, and which one is best. The registry's methods call these.

A plugin that fails is left out with its error told; it takes no other down.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from rm_abstract.core.dependencies import dependencies, load_order
from rm_abstract.core.errors import BadInput, PluginError, WorkloadError
from rm_abstract.core.plugin import Plugin, PluginMetadata
from rm_abstract.core.registry import PluginEntry, PluginRegistry, PluginType, normal_name
from rm_abstract.core.versions import PluginInfo, VersionInfo

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class PluginState:
    """What a runtime plugin says now."""

    entry: PluginEntry
    metadata: PluginMetadata | None = None
    """None where it cannot say."""
    available: bool = False
    error: str = ""
    """Why it cannot be used, where it failed; a plugin that merely lacks its device has none."""

    def serves(self, device_type: str) -> bool:
        """True if it is for that type of device, or is named so; the empty text is every type."""
        if self.metadata is None:
            return False
        names = (self.entry.qualified_name, *self.metadata.device_types)
        wanted = normal_name(PluginType.RUNTIME, device_type)
        return not wanted or wanted in {normal_name(PluginType.RUNTIME, name) for name in names}


def info(about: PluginMetadata) -> PluginInfo:
    """A runtime plugin's metadata in the form that all kinds of plugins have. Raises BadInput for a bad version."""
    least, most = about.min_host_version, about.max_host_version
    return PluginInfo(
        about.name,
        VersionInfo.parse(about.version, partial=True),
        about.description,
        about.vendor or "",
        VersionInfo.parse(least, partial=True) if least else None,
        VersionInfo.parse(most, partial=True) if most else None,
        {"device_types": tuple(about.device_types), **about.extra},
    )


def check_host(about: PluginMetadata) -> None:
    """Raise BadInput where a plugin does not work with this version of RM Abstract, or has no valid version."""
    try:
        problem = info(about).incompatibility()
    except BadInput as error:
        raise BadInput(f"plugin {about.name}: {error}") from None
    if problem:
        raise BadInput(problem)


def told(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, WorkloadError) else f"{type(error).__name__}: {text}"


def new_plugin(registry: PluginRegistry, name: str, **kwargs: Any) -> Plugin:
    """A new instance of a runtime plugin, with new instances of what it needs in ``dependencies``.

    ``kwargs`` are its constructor's. Raises BadInput where it or one that it needs is missing or does not fit, and
    PluginError where a constructor fails.
    """
    made: dict[tuple[str, str], Any] = {}
    order = load_order(registry, name)
    for entry in order:
        target = registry.get(entry.type, entry.qualified_name)
        if entry.type == PluginType.RUNTIME:
            check_host(target.metadata())
            try:
                plugin: Plugin = target(**kwargs) if entry is order[-1] else target()
            except WorkloadError:
                raise
            except Exception as error:
                raise PluginError(f"plugin {entry.qualified_name} cannot be made: {told(error)}") from error
            needed = {d.name: made[registry.entry(d.type, d.name).key] for d in dependencies(registry, entry)}
            if needed:
                plugin.dependencies = MappingProxyType(needed)
            target = plugin
        made[entry.key] = target
    result: Plugin = made[order[-1].key]
    return result


def survey(registry: PluginRegistry, *, probe: bool = False) -> list[PluginState]:
    """What every runtime plugin says now, the best first: by priority, then by name. Imports all of them."""
    states = [_state(registry, entry, probe) for entry in registry.entries(PluginType.RUNTIME)]
    return sorted(states, key=lambda state: -int(state.metadata.priority) if state.metadata else 1)


def _state(registry: PluginRegistry, entry: PluginEntry, probe: bool) -> PluginState:
    metadata = None
    try:
        metadata = registry.get(entry.type, entry.qualified_name).metadata()
        plugin = registry.get_plugin(entry.qualified_name)
        available = bool(plugin.is_available())
        if available and probe:
            plugin.probe()
    except (Exception, SystemExit) as error:  # whatever it raises is its own failure
        return PluginState(entry, metadata, error=told(error))
    return PluginState(entry, metadata, available)


def infos(registry: PluginRegistry) -> list[PluginInfo]:
    """What runtime plugins and extensions say of themselves, by name; those that cannot say it are left out."""
    found: list[PluginInfo] = []
    for entry in registry.entries():
        if entry.type in (PluginType.RUNTIME, PluginType.EXTENSION):
            try:
                target = registry.get(entry.type, entry.qualified_name)
                found.append(info(target.metadata()) if entry.type == PluginType.RUNTIME else target.info)
            except (Exception, SystemExit) as error:
                _log.warning("plugin %s is left out of the list: %s", entry.qualified_name, told(error))
    return sorted(found, key=lambda one: one.name)


def auto_select(registry: PluginRegistry, device_type: str = "") -> Plugin:
    """The best plugin that is available and whose ``probe`` succeeds. Raises BadInput where there is none."""

    def probed(name: str) -> Plugin:
        plugin = registry.get_plugin(name)
        plugin.probe()
        return plugin

    return first_that_works(registry, device_type, probed)


def first_that_works(registry: PluginRegistry, device_type: str, attempt: Callable[[str], T]) -> T:
    """The result of ``attempt`` with the name of the best available plugin with which it raises nothing.

    ``device_type`` is a type, a plugin's name, or empty for any. Raises BadInput where there is none; it says which
    plugins failed, and why.
    """
    failures: dict[str, str] = {}
    for state in survey(registry):
        name = state.entry.qualified_name
        if state.error and (state.metadata is None or state.serves(device_type)):
            failures[name] = state.error
        elif state.available and state.serves(device_type):
            try:
                return attempt(name)
            except (Exception, SystemExit) as error:
                failures[name] = told(error)
                _log.warning("plugin %s is passed over: %s", name, failures[name])
    kind = f" for {device_type}" if device_type else ""
    why = "".join(f"; {name} failed: {error}" for name, error in failures.items())
    raise BadInput(f"no plugin{kind} is available here; known are {', '.join(registry.names()) or 'none'}{why}")
