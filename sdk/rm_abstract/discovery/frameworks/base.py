"""What an adapter of a framework has to do, and what reading a framework's packages takes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rm_abstract.core.registry import PluginEntry
from rm_abstract.discovery.index import Index, Reading, SharedFacts
from rm_abstract.discovery.places import find_module, package_roots
from rm_abstract.discovery.source import read_classes
from rm_abstract.discovery.store import Store


class FrameworkAdapter(ABC):
    """Finds the plugins of one framework. It is asked by one thread at a time."""

    name: ClassVar[str]
    """What its plugins are qualified with, and what configurations call it."""
    plugin_types: ClassVar[frozenset[str]]
    """The types of plugins that it may find."""
    store: Store
    """Set by the manager: where to remember what was found."""
    shared: SharedFacts | None = None
    """Set by the manager: a cache that other machines use too."""

    @abstractmethod
    def is_available(self) -> bool:
        """True if the framework is installed. Looks for it without importing it."""

    @abstractmethod
    def discover_plugins(self) -> Sequence[PluginEntry]:
        """All of its plugins, none of them imported. The same object as before if nothing has changed since."""

    def get_metadata(self) -> Mapping[str, Any]:
        """``name``, ``available``, ``version`` (empty if unknown) and ``plugin_types``."""
        return {
            "name": self.name,
            "available": self.is_available(),
            "version": "",
            "plugin_types": sorted(self.plugin_types),
        }

    @property
    def problems(self) -> Mapping[str, str]:
        """Why something was left out, by what it is."""
        return {}

    @property
    def directories(self) -> Collection[str]:
        """The directories that were looked at last; a change in one of them makes another look worth while."""
        return ()


class Classes:
    """The classes of a framework by full name, with what they derive from."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self.files: dict[str, str] = {}
        self._bases: dict[str, list[str]] = {}
        self._imports: dict[str, str] = {}
        for reading in readings:
            for name, full in reading.facts.get("imports", {}).items():
                self._imports[f"{reading.file.module}.{name}"] = full
            for name, bases in reading.facts.get("classes", {}).items():
                full = f"{reading.file.module}.{name}"
                self._bases[full] = bases
                self.files[full] = reading.file.path

    def bases(self, full: str) -> list[str]:
        """What a class derives from directly, by the full names of where those are defined."""
        return list(map(self._defined, self._bases.get(full, ())))

    def _defined(self, full: str) -> str:
        for _ in range(len(self._imports)):
            if full in self._bases or full not in self._imports:
                break
            full = self._imports[full]
        return full

    def derived(self, *roots: str) -> list[str]:
        """The classes that derive from one of ``roots``, directly or not, without these; sorted."""
        found: dict[str, bool] = dict.fromkeys(roots, True)

        def derives(full: str) -> bool:
            if full not in found:
                found[full] = False  # for a class that derives from itself, which no import would survive
                found[full] = any(map(derives, self.bases(full)))
            return found[full]

        return sorted(full for full in self._bases if full not in roots and derives(full))


class PackageAdapter(FrameworkAdapter):
    """The adapter of a framework whose plugins are found by reading packages of it."""

    packages: ClassVar[Sequence[str]]
    """The packages to read."""

    def __init__(self) -> None:
        self._indexes: dict[str, list[Index]] | None = None
        self._found: list[PluginEntry] = []

    def is_available(self) -> bool:
        """See the base class."""
        return find_module(self.packages[0].partition(".")[0]) is not None

    def get_metadata(self) -> Mapping[str, Any]:
        """See the base class."""
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 (slow, and rarely asked for)

        try:
            installed = version(self.packages[0].partition(".")[0])
        except PackageNotFoundError:
            installed = ""
        return {**super().get_metadata(), "version": installed}

    def discover_plugins(self) -> Sequence[PluginEntry]:
        """See the base class."""
        indexes = self._indexes or {
            package: [Index(root, read_classes, self.store, shared=self.shared) for root in package_roots(package)]
            for package in self.packages
        }
        changed = [index.update() for found in indexes.values() for index in found]
        if any(changed) or self._indexes is None:
            self._indexes = indexes
            self._found = list(
                self.entries([reading for found in indexes.values() for index in found for reading in index.readings])
            )
        return self._found

    @abstractmethod
    def entries(self, readings: Sequence[Reading]) -> Iterable[PluginEntry]:
        """The plugins that these files hold."""

    @property
    def problems(self) -> Mapping[str, str]:
        """See the base class."""
        return {
            reading.file.path: reading.facts["error"]
            for index in self._all()
            for reading in index.readings
            if "error" in reading.facts
        }

    @property
    def directories(self) -> Collection[str]:
        """See the base class."""
        return [directory for index in self._all() for directory in index.root.directories]

    def _all(self) -> list[Index]:
        return [index for found in (self._indexes or {}).values() for index in found]


AdapterFactory = Callable[[], FrameworkAdapter]
