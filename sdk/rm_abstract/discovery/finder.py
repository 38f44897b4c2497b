"""Asking the adapters, remembering what they said, and knowing whether it still holds."""

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import PluginEntry, PluginRegistry, PluginType
from rm_abstract.discovery.config import DiscoveryConfig
from rm_abstract.discovery.frameworks.base import FrameworkAdapter
from rm_abstract.discovery.frameworks.finn import FINNAdapter
from rm_abstract.discovery.frameworks.own import RMAbstractAdapter, tell
from rm_abstract.discovery.frameworks.qonnx import QONNXAdapter
from rm_abstract.discovery.index import SharedFacts
from rm_abstract.discovery.store import Store
from rm_abstract.discovery.watch import Watch

_log = logging.getLogger("rm_abstract.plugin")

FRAMEWORK = "framework"
"""The type under which a distribution offers an adapter as an entry point: ``framework.NAME``."""


@dataclass
class _State:
    """What an adapter said."""

    adapter: FrameworkAdapter
    found: Sequence[PluginEntry] = ()
    looked: float = 0.0
    seconds: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)
    registered: Sequence[PluginEntry] | None = None
    types: frozenset[str] | None = frozenset()
    added: dict[tuple[str, str], PluginEntry] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)


class Finder:
    """Finds plugins through adapters. Safe to use from any thread; modules are imported outside of its lock."""

    def __init__(
        self, config: DiscoveryConfig, registry: PluginRegistry, store: Store, shared: SharedFacts | None
    ) -> None:
        self.version = 0
        """Counts the changes of what was found."""
        self.own = RMAbstractAdapter(config.packages, config.paths)
        self._config, self._registry, self._store, self._shared = config, registry, store, shared
        self._adapters: dict[str, FrameworkAdapter] = {}
        self._states: dict[str, _State] = {}
        self._lock = threading.RLock()
        self._watch = Watch()
        self._importing: set[str] = set()
        self._catalogue = PluginRegistry((), installed=False)
        self._catalogued: dict[str, Sequence[PluginEntry]] = {}
        self._links: tuple[tuple[int, int], dict[str, dict[tuple[str, str], PluginEntry]]] = (-1, -1), {}
        """The backends of each kernel, when registry and catalogue had these generations."""
        self._broken: dict[str, str] = {}
        for adapter in (self.own, QONNXAdapter(), FINNAdapter()):
            self.add_adapter(adapter)
        self._offered = False

    def add_adapter(self, adapter: FrameworkAdapter) -> None:
        """Ask this adapter as well, in the place of one of its name."""
        adapter.store, adapter.shared = self._store, self._shared
        with self._lock:
            self._adapters[adapter.name] = adapter
            self._states.pop(adapter.name, None)
            self.version += 1

    @property
    def adapters(self) -> Mapping[str, FrameworkAdapter]:
        """All adapters by name, those of installed distributions included."""
        if not self._offered:
            made: list[FrameworkAdapter] = []
            broken: dict[str, str] = {}
            for entry in self._registry.entries(FRAMEWORK):
                try:
                    made.append(self._registry.get(FRAMEWORK, entry.name)())
                except Exception as error:  # another distribution's failure is its own
                    broken[f"framework {entry.name}"] = f"{type(error).__name__}: {error}"
            with self._lock:
                if not self._offered:
                    self._broken = broken
                    for adapter in made:
                        self.add_adapter(adapter)
                    self._offered = True
        with self._lock:
            return dict(self._adapters)

    def chosen(self, frameworks: Iterable[str] | None) -> frozenset[str]:
        """The adapters to ask. Raises BadInput for one that there is not."""
        known = self.adapters
        wanted = frameworks if frameworks is not None else self._config.frameworks
        names = frozenset(known if wanted is None else wanted)
        for name in sorted(names - known.keys()):
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise BadInput(f"there is no framework {name}; {hint}")
        return names

    # Looking

    def find(self, names: frozenset[str]) -> None:
        """Ask these adapters, unless what they said holds still; import what only an import can tell."""
        with self._lock:
            events, quiet = self._watch.events(), self._watch.quiet()
            oldest = time.monotonic() - self._config.cache_ttl
            fresh = {name for name, state in self._states.items() if quiet and state.looked > oldest}
            watched = self._directories()
            self._look((names | self._states.keys()) - fresh)
            if self._directories() != watched:
                self._watch.close()  # it starts again with the next look at what was found
            else:
                self._watch.verified(events)
            pending = [each for each in self.own.pending if each.file.path not in self._importing]
            self._importing |= {each.file.path for each in pending}
        told = []
        try:
            told = [(each, tell(each, self._registry)) for each in pending]
        finally:
            with self._lock:
                self._importing -= {each.file.path for each in pending}
        if told:
            with self._lock:
                for reading, what in told:
                    self.own.note(reading, what)
                self._look({self.own.name})

    def unchanged(self, version: int) -> bool:
        """Whether what was found when this was the version is what there is now."""
        if version == self.version and self._watch.quiet():
            return True
        with self._lock:
            for _ in range(3):  # directories that come while they are looked at
                watched = self._directories()
                self._watch.start(watched)
                events = self._watch.events()
                self._look(set(self._states))
                if self._directories() == watched:
                    self._watch.verified(events)
                    break
            return version == self.version

    def _directories(self) -> frozenset[str]:
        return frozenset(directory for state in self._states.values() for directory in state.adapter.directories)

    def _look(self, names: Iterable[str]) -> None:
        for name in [each for each in self._adapters if each in names]:
            adapter = self._adapters[name]
            state = self._states.setdefault(name, _State(adapter))
            began = time.perf_counter()
            try:
                found = adapter.discover_plugins() if adapter.is_available() else ()
                state.problems = dict(adapter.problems)
            except Exception as error:  # an adapter's failure is its own
                _log.debug("the adapter %s failed", name, exc_info=True)
                found, state.problems = (), {f"framework {name}": f"{type(error).__name__}: {error}"}
            if found is not state.found and (found or state.found):
                self.version += 1
            state.found, state.looked = found, time.monotonic()
            if self._config.performance_tracking:
                state.seconds = time.perf_counter() - began

    # Registering

    def register(self, names: Iterable[str], types: frozenset[str] | None) -> None:
        """Put what these adapters found into the registry, of these types alone; take out what is gone."""
        with self._lock:
            for name in [each for each in self._adapters if each in names]:
                state = self._states[name]
                if state.registered is state.found and (
                    state.types is None or (types is not None and types <= state.types)
                ):
                    continue
                wanted = [
                    each for each in state.found if types is None or each.type in types or each.key in state.added
                ]
                left_out = self._registry.add_all(wanted, state.added.values())
                state.conflicts = {
                    each.file or each.location: f"another {each.type} is named {each.qualified_name}"
                    for each in left_out
                    if name == self.own.name
                }
                state.added = {each.key: each for each in wanted}
                state.registered = state.found
                both = None if types is None or state.types is None else types | state.types
                state.types = both

    def register_entries(self, entries: Iterable[PluginEntry]) -> None:
        """Put single entries that were found into the registry."""
        missing = [each for each in entries if self._registry.find(each.type, each.qualified_name) is None]
        if missing:
            self._registry.add_all(missing)

    def lookup(self, plugin_type: str, name: str) -> PluginEntry | None:
        """What was found or registered under a name. Raises BadInput where a bare name is that of several."""
        return self._registry.find(plugin_type, name) or self._found().find(plugin_type, name)

    def explain(self, plugin_type: str, name: str) -> str:
        """Why ``lookup`` finds nothing."""
        try:
            return f"{self._found().entry(plugin_type, name).qualified_name} is there now"
        except BadInput as error:
            return str(error)

    def backends(self, kernel: str) -> list[PluginEntry]:
        """The backends of a kernel among all that was found or registered, by name."""
        found = self._found()
        now = self._registry.generation, found.generation
        with self._lock:
            if self._links[0] != now:
                links: dict[str, dict[tuple[str, str], PluginEntry]] = {}
                for each in (*found.entries(PluginType.BACKEND), *self._registry.entries(PluginType.BACKEND)):
                    links.setdefault(each.attributes.get("kernel", ""), {})[each.key] = each
                self._links = now, links
            both = self._links[1].get(kernel, {})
            return [both[key] for key in sorted(both)]

    def _found(self) -> PluginRegistry:
        """All that was found, in a registry of its own: nobody sees it but who looks for single names."""
        with self._lock:
            for name, state in self._states.items():
                before = self._catalogued.get(name, ())
                if before is not state.found:
                    self._catalogue.add_all(state.found, before)
                    self._catalogued[name] = state.found
            return self._catalogue

    # Telling

    def problems(self) -> dict[str, str]:
        """Why files, modules, packages and frameworks were left out, by what they are."""
        with self._lock:
            told = dict(self._broken)
            for state in self._states.values():
                told |= state.conflicts | state.problems
            return told

    def milliseconds(self) -> dict[str, float]:
        """How long each adapter took when it was last asked."""
        with self._lock:
            return {name: 1000 * state.seconds for name, state in self._states.items()}

    def forget(self) -> None:
        """Look at everything again when asked next."""
        with self._lock:
            for state in self._states.values():
                state.looked = float("-inf")
            self._watch.close()

    def metadata(self) -> dict[str, Mapping[str, Any]]:
        """What each adapter says of itself."""
        return {name: adapter.get_metadata() for name, adapter in self.adapters.items()}
