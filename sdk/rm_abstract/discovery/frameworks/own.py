"""Our own way: classes and functions with our decorators, in packages and directories."""

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

from rm_abstract.core.registry import Origin, PluginEntry, PluginRegistry, PluginType
from rm_abstract.discovery.frameworks.base import FrameworkAdapter
from rm_abstract.discovery.index import Index, Reading
from rm_abstract.discovery.places import directory_root, package_roots
from rm_abstract.discovery.source import Facts, plain, read_plugins

_log = logging.getLogger("rm_abstract.plugin")

NAME = "rm_abstract"


class RMAbstractAdapter(FrameworkAdapter):
    """Finds what decorators register in the modules of packages and directories, without importing them.

    A module whose text does not tell what it registers is in ``pending`` until ``note`` says what its import did.
    """

    name = NAME
    plugin_types = frozenset({PluginType.TRANSFORM, PluginType.KERNEL, PluginType.BACKEND, PluginType.STEP})

    def __init__(self, packages: Sequence[str] = (), paths: Sequence[str] = ()) -> None:
        self._wanted = [(package, True) for package in packages] + [(path, False) for path in paths]
        self._indexes: dict[tuple[str, bool], list[Index]] = {}
        self._found: list[PluginEntry] = []
        self._failed: dict[str, str] = {}
        self._imported: set[str] = set()
        self._missing: dict[str, str] = {}

    def add(self, place: str, *, package: bool) -> None:
        """Look into a package or directory as well."""
        if (place, package) not in self._wanted:
            self._wanted.append((place, package))

    def is_available(self) -> bool:
        """Always."""
        return True

    def get_metadata(self) -> Mapping[str, Any]:
        """See the base class."""
        from rm_abstract import __version__  # noqa: PLC0415 (which imports everything else)

        return {**super().get_metadata(), "version": __version__}

    def discover_plugins(self) -> Sequence[PluginEntry]:
        """See the base class."""
        changed = False
        for place in self._wanted:
            if not self._indexes.get(place):
                self._indexes[place] = self._new_indexes(*place)
                changed = True
        for index in self._all():
            changed = index.update() or changed
        if changed:
            self._failed.clear()
            self._imported.clear()
            self._found = self._entries()
        return self._found

    def _new_indexes(self, place: str, package: bool) -> list[Index]:
        roots = package_roots(place) if package else [directory_root(place)]
        if roots:
            self._missing.pop(place, None)
        else:
            self._missing[place] = f"there is no package or module {place} on sys.path"
        return [Index(root, read_plugins, self.store, shared=self.shared) for root in roots]

    def _entries(self) -> list[PluginEntry]:
        entry, found = PluginEntry, []
        for reading in self.readings:
            file = reading.file
            for plugin_type, name, attribute, version, attributes in reading.facts.get("plugins", ()):
                location = f"{file.module}:{attribute}"
                found.append(
                    entry(plugin_type, name, Origin.SCANNED, location, "", version, file.path, attributes),
                )
        return found

    @property
    def readings(self) -> list[Reading]:
        """The files that offer something, or fail."""
        return [reading for index in self._all() for reading in index.readings]

    @property
    def understood(self) -> int:
        """How many files were understood anew so far, because no cache knew them."""
        return sum(index.understood for index in self._all())

    @property
    def pending(self) -> list[Reading]:
        """Modules that have to be imported for what they register to be known."""
        done = self._imported | self._failed.keys()
        return [each for each in self.readings if "dynamic" in each.facts and each.file.path not in done]

    def note(self, reading: Reading, told: Facts | str | None) -> None:
        """Remember what the import of a pending module has told; see ``tell``."""
        path = reading.file.path
        if told is None:
            self._imported.add(path)
        elif isinstance(told, str):
            self._failed[path] = told
        else:
            for index in self._all():
                index.replace(path, told)
            self._found = self._entries()

    @property
    def problems(self) -> Mapping[str, str]:
        """See the base class."""
        errors = {each.file.path: each.facts["error"] for each in self.readings if "error" in each.facts}
        return {**self._missing, **errors, **self._failed}

    @property
    def directories(self) -> Collection[str]:
        """See the base class."""
        return [directory for index in self._all() for directory in index.root.directories]

    def _all(self) -> list[Index]:
        return [index for found in self._indexes.values() for index in found]


def tell(reading: Reading, registry: PluginRegistry) -> Facts | str | None:
    """Import a module, which registers what it has, and tell what that is, or by a text why it failed.

    None is for what cannot be written down, because its attributes are no JSON or a function has made it: such a module
    is imported in each process.
    """
    module = reading.file.module
    before = None if module in sys.modules else registry.generation
    try:
        import_module(module)
    except (Exception, SystemExit) as error:
        _log.debug("%s cannot be imported", module, exc_info=True)
        return f"{type(error).__name__}: {error}"
    mine = [each for each in registry.entries() if each.location.partition(":")[0] == module and not each.framework]
    if not mine and before != registry.generation:
        return None
    try:
        plugins = [
            [each.type, each.name, each.location.partition(":")[2], each.version, plain(each.attributes)]
            for each in mine
        ]
    except ValueError:
        return None
    return {"plugins": plugins} if plugins else {}
