"""What plugins need of each other, and the order in which they can start."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import PluginEntry, PluginRegistry, PluginType
from rm_abstract.core.versions import VersionInfo, VersionRange

if TYPE_CHECKING:
    from rm_abstract.core.plugin import Plugin

_log = logging.getLogger(__name__)
_DEPENDENCY: Final = re.compile(
    r"(?:(?P<type>[a-z][a-z0-9_-]*):)?(?P<name>[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)\s*(?P<range>[<>=!~^*].*)?"
)

_ANY: Final = VersionRange()


@dataclass(frozen=True, slots=True)
class Dependency:
    """A plugin that another one needs."""

    name: str
    type: str = PluginType.RUNTIME
    versions: VersionRange = _ANY

    @classmethod
    def parse(cls, text: str) -> Self:
        """The dependency that ``text`` writes: ``[TYPE:]NAME [RANGE]``. Raises BadInput where it is none."""
        match = _DEPENDENCY.fullmatch(text.strip())
        if match is None:
            raise BadInput(f"{text!r} names no plugin; a dependency looks like name, name >=1.2,<2 or step:name ^1.0")
        try:
            versions = VersionRange.parse(match["range"] or "")
        except BadInput as error:
            raise BadInput(f"the dependency {text!r} has no valid range of versions: {error}") from None
        return cls(match["name"], match["type"] or PluginType.RUNTIME, versions)

    def __str__(self) -> str:
        kind = "" if self.type == PluginType.RUNTIME else f"{self.type}:"
        return f"{kind}{self.name}" + (f" {self.versions}" if self.versions.clauses else "")


def dependencies(registry: PluginRegistry, entry: PluginEntry) -> list[Dependency]:
    """What a plugin says that it needs. Imports a runtime plugin, whose metadata says it."""
    stated: str | Sequence[str]
    if entry.type == PluginType.RUNTIME:
        stated = registry.get(entry.type, entry.qualified_name).metadata().depends_on
    else:
        stated = entry.attributes.get("depends_on", ())
    if isinstance(stated, str):
        raise BadInput(f"plugin {entry.name}: depends_on is a text, but must be a list of them: [{stated!r}]")
    return [Dependency.parse(text) for text in stated]


def load_order(registry: PluginRegistry, *names: str, plugin_type: str = PluginType.RUNTIME) -> list[PluginEntry]:
    """These plugins and all that they need, directly or not: each after what it needs itself.

    The order is always the same for the same plugins. Raises BadInput where one is missing, has a version that will
    not do, or needs itself in the end; the message says who wanted it.
    """
    order: dict[tuple[str, str], PluginEntry] = {}
    path: list[PluginEntry] = []

    def visit(entry: PluginEntry) -> None:
        if entry.key in order:
            return
        if any(entry.key == above.key for above in path):
            circle = [*(e.qualified_name for e in path), entry.qualified_name]
            raise BadInput(f"plugins need each other in a circle: {' → '.join(circle[circle.index(circle[-1]) :])}")
        path.append(entry)
        for wanted in dependencies(registry, entry):
            visit(_found(registry, entry, wanted))
        path.pop()
        order[entry.key] = entry

    for name in names:
        visit(registry.entry(plugin_type, name))
    return list(order.values())


def _found(registry: PluginRegistry, entry: PluginEntry, wanted: Dependency) -> PluginEntry:
    try:
        found = registry.entry(wanted.type, wanted.name)
    except BadInput as error:
        raise BadInput(f"plugin {entry.qualified_name} needs {wanted}, which is not there: {error}") from None
    if wanted.versions.clauses:
        version = version_of(registry, found)
        try:
            fits = VersionInfo.parse(version, partial=True) in wanted.versions
        except BadInput as error:
            raise BadInput(f"plugin {entry.qualified_name} needs {wanted}, but its version: {error}") from None
        if not fits:
            raise BadInput(f"plugin {entry.qualified_name} needs {wanted}, but version {version} is there")
    return found


def version_of(registry: PluginRegistry, entry: PluginEntry) -> str:
    """The version that a plugin says it has; that of a runtime plugin is in its metadata."""
    if entry.type == PluginType.RUNTIME:
        return str(registry.get(entry.type, entry.qualified_name).metadata().version)
    return entry.version


def dependents(registry: PluginRegistry, entry: PluginEntry) -> list[str]:
    """Names of the plugins that need ``entry``, among those whose code is loaded; sorted."""

    found = []
    for other in registry.entries():
        if other.key == entry.key or (other.type == PluginType.RUNTIME and registry.loaded(other) is None):
            continue
        try:
            wanted = dependencies(registry, other)
        except (Exception, SystemExit) as error:  # a plugin that cannot say what it needs cannot be used either
            _log.warning("what plugin %s needs is not known: %s", other.qualified_name, error)
            continue
        if any(d.type == entry.type and registry.is_named(entry, d.name) for d in wanted):
            found.append(other.qualified_name)
    return sorted(found)


def start_order(plugin: "Plugin") -> "list[Plugin]":
    """An instance and the runtime plugins that it was given as dependencies, each after what it needs."""
    from rm_abstract.core.plugin import Plugin  # noqa: PLC0415 (which imports the registry)

    order: dict[int, Plugin] = {}

    def visit(one: Plugin) -> None:
        given: Mapping[str, Any] = one.dependencies
        for needed in given.values():
            if isinstance(needed, Plugin) and id(needed) not in order:
                visit(needed)
        order.setdefault(id(one), one)

    visit(plugin)
    return list(order.values())
