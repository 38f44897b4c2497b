"""The plugin manager: discovery by mode, instances, figures and health."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import PluginEntry, PluginRegistry, PluginType, get_registry
from rm_abstract.discovery.blueprint import Blueprint, BlueprintPlugins, Resolved, resolve
from rm_abstract.discovery.cache import RedisFacts, TimedCache
from rm_abstract.discovery.collections import Collection
from rm_abstract.discovery.config import DiscoveryConfig, Mode, load_config
from rm_abstract.discovery.finder import Finder
from rm_abstract.discovery.frameworks.base import FrameworkAdapter
from rm_abstract.discovery.instances import InstanceCache
from rm_abstract.discovery.store import Store
from rm_abstract.discovery.view import Discovery, resident_bytes

logger = logging.getLogger("rm_abstract.plugin")
"""Discovery's log."""

_COLLECTIONS: Final = {
    "transforms": PluginType.TRANSFORM,
    "kernels": PluginType.KERNEL,
    "backends": PluginType.BACKEND,
    "steps": PluginType.STEP,
}


class PluginManager:
    """Finds plugins and hands out their instances. Safe to use from any thread."""

    def __init__(self, config: DiscoveryConfig | None = None, registry: PluginRegistry | None = None) -> None:
        self.config = config or load_config()
        self.registry = registry or get_registry()
        self._store = Store(self.config.cache_dir)
        self._redis = RedisFacts(self.config.redis_url) if self.config.redis_url else None
        self._finder = Finder(self.config, self.registry, self._store, self._redis)
        self._cache: TimedCache[Discovery] = TimedCache(self.config.cache_ttl)
        self._blueprints: TimedCache[tuple[Discovery, Resolved]] = TimedCache(self.config.cache_ttl)
        self._instances = InstanceCache()
        self._lock = threading.RLock()
        self._discovery_seconds = 0.0
        self._problems: dict[str, str] = {}
        self._memory_at_start = resident_bytes()
        self._debug_handler: logging.Handler | None = None
        if self.config.debug:
            self.set_debug_mode(True)

    # Discovery

    def discover_plugins(
        self,
        modes: str | Sequence[str] | None = None,
        frameworks: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        *,
        blueprint: str | os.PathLike[str] | None = None,
    ) -> Discovery:
        """Find plugins, import none of them, and register where they are.

        ``modes`` is one of ``full``, ``blueprint`` and ``selective``, by default the configured one. ``frameworks`` and
        ``types`` leave out the others; ``selective`` needs one of them. ``blueprint`` is the file of that mode. What
        was found holds for ``cache_ttl`` seconds unless a file changes. Raises BadInput for arguments that cannot be
        understood, and for a blueprint whose plugins are not there.
        """
        began = time.perf_counter()
        mode = self._mode(modes)
        if mode == Mode.BLUEPRINT:
            path = blueprint or self.config.blueprint
            if not path:
                raise BadInput("the mode blueprint needs a blueprint: name its file, or set plugin_system.blueprint")
            return self._blueprint(path, frameworks)[0]
        if mode == Mode.SELECTIVE and not (frameworks or types):
            raise BadInput("the mode selective needs frameworks or types: otherwise use full")
        wanted_types = None if types is None else frozenset(types)
        wanted = self._finder.chosen(frameworks)
        key = mode, wanted, wanted_types
        found = self._cache.get(key)
        if found is not None and self._finder.unchanged(found.version):
            self._cache.hits += 1
            return found
        self._cache.misses += 1
        self._finder.find(wanted)
        version = self._finder.version
        self._finder.register(wanted, wanted_types)
        result = self._told(
            Discovery(
                mode,
                self.registry,
                wanted_types,
                wanted if frameworks is not None else None,
                seconds=time.perf_counter() - began,
                problems=self._finder.problems(),
                version=version,
            )
        )
        self._cache.put(key, result)
        return result

    def load_blueprint(self, path: str | os.PathLike[str]) -> BlueprintPlugins:
        """The plugins that a blueprint names and nothing else. Raises BadInput where one is missing."""
        discovery, resolved = self._blueprint(path, None)
        keys = discovery.keys or frozenset()
        collections = {name: Collection(kind, lambda: self, keys=keys) for name, kind in _COLLECTIONS.items()}
        return BlueprintPlugins(resolved, collections, self.get)

    def discover_default(self, plugin_type: str) -> None:
        """Discover what the configured mode has for the collection of a type."""
        mode = self.config.discovery_mode
        if mode == Mode.SELECTIVE:
            self.discover_plugins(mode, types=[plugin_type])
        elif mode == Mode.FULL or self.config.blueprint:
            self.discover_plugins(mode)

    def _mode(self, modes: str | Sequence[str] | None) -> Mode:
        wanted = [modes] if isinstance(modes, str) else list(modes if modes is not None else [])
        for each in wanted:
            if each not in list(Mode):
                raise BadInput(f"there is no discovery mode {each!r}; there are {', '.join(Mode)}")
        if len(set(wanted)) > 1:
            raise BadInput(f"the discovery modes {' and '.join(wanted)} exclude each other: name one")
        return Mode(wanted[0]) if wanted else self.config.discovery_mode

    def _blueprint(self, path: str | os.PathLike[str], frameworks: Sequence[str] | None) -> tuple[Discovery, Resolved]:
        began = time.perf_counter()
        wanted = self._finder.chosen(frameworks)
        try:
            stamp = os.stat(path)
            key = os.path.abspath(path), stamp.st_mtime_ns, stamp.st_ctime_ns, stamp.st_size, wanted
        except OSError as error:
            raise BadInput(f"{os.fspath(path)} cannot be read: {error}") from None
        known = self._blueprints.get(key)
        if known is not None and self._finder.unchanged(known[0].version):
            self._cache.hits += 1
            return known
        self._cache.misses += 1
        blueprint = Blueprint.read(path, self._store)
        self._finder.find(wanted)
        version = self._finder.version
        resolved = resolve(blueprint, self._finder.lookup, self._finder.explain, self._finder.backends)
        self._finder.register_entries(resolved.entries)
        discovery = self._told(
            Discovery(
                Mode.BLUEPRINT,
                self.registry,
                frameworks=wanted if frameworks is not None else None,
                keys=frozenset(each.key for each in resolved.entries),
                seconds=time.perf_counter() - began,
                problems=self._finder.problems(),
                version=version,
            )
        )
        self._blueprints.put(key, (discovery, resolved))
        return discovery, resolved

    def _told(self, discovery: Discovery) -> Discovery:
        self._discovery_seconds = discovery.seconds
        logger.debug("discovery in the mode %s took %.1f ms", discovery.mode, 1000 * discovery.seconds)
        new = {what: problem for what, problem in discovery.problems.items() if self._problems.get(what) != problem}
        for what, problem in new.items():
            logger.warning("%s is left out: %s", what, problem)
        self._problems = dict(discovery.problems)
        return discovery

    # Where to look

    def add_package(self, name: str) -> None:
        """Look for plugins in the source of a package or module too."""
        self._finder.own.add(name, package=True)
        self.clear_cache()

    def add_directory(self, path: str | os.PathLike[str]) -> None:
        """Look for plugins in the modules of a directory too. Raises BadInput where there is none."""
        if not os.path.isdir(path):
            raise BadInput(f"{os.fspath(path)} is no directory")
        self._finder.own.add(os.path.abspath(path), package=False)
        self.clear_cache()

    def add_adapter(self, adapter: FrameworkAdapter) -> None:
        """Look for another framework's plugins too."""
        self._finder.add_adapter(adapter)
        self.clear_cache()

    @property
    def frameworks(self) -> Mapping[str, FrameworkAdapter]:
        """The adapters by name."""
        return self._finder.adapters

    # Plugins

    def get(self, plugin_type: str, name: str) -> Any:
        """A plugin's class, function or object, discovered and imported if need be. Raises BadInput."""
        return self.registry.get(plugin_type, self._entry(plugin_type, name).qualified_name)

    def get_instance(self, plugin_type: str, name: str) -> Any:
        """An instance of a plugin: the one that somebody holds, or a new one. A function is its own instance.

        Raises BadInput where there is no such plugin, PluginError where its class cannot be called without arguments.
        """
        entry = self._entry(plugin_type, name)
        if plugin_type == PluginType.RUNTIME:
            return self.registry.get_plugin(entry.name)
        target = self.registry.get(plugin_type, entry.qualified_name)
        return self._instances.get(plugin_type, entry.qualified_name, target) if isinstance(target, type) else target

    def backends_of(self, kernel: str, backend_type: str = "") -> list[PluginEntry]:
        """The backends of a kernel, by name; those of one type, if it is given. Raises BadInput for no such kernel."""
        name = self._entry(PluginType.KERNEL, kernel).qualified_name
        self.discover_default(PluginType.BACKEND)
        found = self.registry.entries(PluginType.BACKEND, kernel=name)
        return [each for each in found if not backend_type or each.attributes.get("backend_type") == backend_type]

    def _entry(self, plugin_type: str, name: str) -> PluginEntry:
        found = self.registry.find(plugin_type, name)
        if found is None:
            self.discover_default(plugin_type)
        return found or self.registry.entry(plugin_type, name)

    def clear_cache(self) -> None:
        """Forget instances and discoveries; the next one looks at all files. The index on disk stays."""
        self._cache.clear()
        self._blueprints.clear()
        self._instances.clear()
        self._finder.forget()

    def close(self) -> None:
        """Let go of what the operating system has given."""
        self.clear_cache()
        self.set_debug_mode(False)
        if self._redis is not None:
            self._redis.close()

    # Telling

    def get_performance_stats(self) -> dict[str, Any]:
        """Figures of this manager.

        ``discovery_time_ms`` of the last discovery that was no cache hit, ``cache_hit_rate`` (0 to 1) of all of them,
        ``memory_usage_mb`` by which this process has grown since the manager was made, ``plugin_count`` known,
        ``plugins`` by type, ``cache_hits``, ``cache_misses``, ``instance_count`` alive, ``files_understood`` anew
        because no cache knew them, and with ``performance_tracking`` ``adapters_ms``.
        """
        hits, misses = self._cache.hits, self._cache.misses
        entries = self.registry.entries()
        stats: dict[str, Any] = {
            "discovery_time_ms": 1000 * self._discovery_seconds,
            "cache_hit_rate": hits / (hits + misses) if hits + misses else 0.0,
            "memory_usage_mb": max(0, resident_bytes() - self._memory_at_start) / 1e6,
            "plugin_count": len(entries),
            "plugins": dict(Counter(str(each.type) for each in entries)),
            "cache_hits": hits,
            "cache_misses": misses,
            "instance_count": len(self._instances),
            "files_understood": self._finder.own.understood,
        }
        if self.config.performance_tracking:
            stats["adapters_ms"] = self._finder.milliseconds()
        return stats

    def health_check(self) -> dict[str, Any]:
        """``status`` healthy or degraded, and why.

        ``cache_available`` (the index can be written), ``frameworks_available`` (how many), ``frameworks`` (whether
        each is), ``problems`` (what was left out at the last discovery), ``redis_available`` (None without one). It is
        degraded by a problem, by a cache or Redis that is missing, and by a framework that the configuration names and
        that is not installed.
        """
        frameworks = {name: adapter.is_available() for name, adapter in self.frameworks.items()}
        problems = self._finder.problems()
        for name in self.config.frameworks or ():
            if not frameworks.get(name):
                problems[f"framework {name}"] = "it is configured and not installed"
        redis = self._redis.available() if self._redis else None
        cache = self._store.writable()
        healthy = cache and redis is not False and not problems
        return {
            "status": "healthy" if healthy else "degraded",
            "cache_available": cache,
            "frameworks_available": sum(frameworks.values()),
            "frameworks": frameworks,
            "redis_available": redis,
            "problems": problems,
        }

    def set_debug_mode(self, enabled: bool) -> None:
        """Log all that discovery does (logger ``rm_abstract.plugin``), to standard error if nobody else takes it."""
        with self._lock:
            if enabled and self._debug_handler is None:
                self._debug_handler = logging.NullHandler() if logger.hasHandlers() else logging.StreamHandler()
                logger.addHandler(self._debug_handler)
                logger.setLevel(logging.DEBUG)
            elif not enabled and self._debug_handler is not None:
                logger.removeHandler(self._debug_handler)
                self._debug_handler = None
                logger.setLevel(logging.NOTSET)


_manager: PluginManager | None = None
_manager_lock = threading.Lock()


def get_plugin_manager() -> PluginManager:
    """The manager of this process, with the settings that there are when it is first asked for."""
    global _manager  # noqa: PLW0603 (the one of the process)
    with _manager_lock:
        if _manager is None:
            _manager = PluginManager()
        return _manager


def load_blueprint_plugins(path: str | os.PathLike[str]) -> BlueprintPlugins:
    """The plugins that a blueprint names and nothing else, by ``transforms``, ``kernels``, ``backends``, ``steps``.

    Raises BadInput for a blueprint that cannot be understood, or whose plugins are not there.
    """
    return get_plugin_manager().load_blueprint(path)


def reset_plugin_system() -> None:
    """Begin anew, for tests: forget the manager, and of the registry all but what comes with the SDK."""
    global _manager
    with _manager_lock:
        manager, _manager = _manager, None
    if manager is not None:
        manager.close()
    get_registry().reset()
