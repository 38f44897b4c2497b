"""Loads plugins anew whose source has changed, and unloads them, without a restart.

Who runs a plugin keeps the class that it has until it is done; who asks the registry afterwards gets the new one.
"""

import hashlib
import linecache
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from rm_abstract.backends.plugin_adapter import BackendPluginAdapter, create_backend_plugin
from rm_abstract.core.backend import Backend
from rm_abstract.core.errors import BadInput, PluginError, WorkloadError
from rm_abstract.core.package_scan import classes
from rm_abstract.core.plugin import Plugin
from rm_abstract.core.registry import Origin, PluginEntry, PluginRegistry, PluginType, get_registry
from rm_abstract.core.selection import check_host, told

_log = logging.getLogger(__name__)
_loading: Final = threading.RLock()


class HotReloader:
    """Watches the source files of loaded plugins. Safe to use from any thread; one module is loaded at a time."""

    def __init__(self, registry: PluginRegistry | None = None) -> None:
        self.registry = get_registry() if registry is None else registry
        self._seen: dict[str, str] = {}
        self._watcher: threading.Thread | None = None
        self._end = threading.Event()

    def watch(self, name: str, *, plugin_type: str = PluginType.RUNTIME) -> None:
        """Remember what a plugin's source is now, so that ``changed`` can tell. Raises BadInput where it has none."""
        module = self._module(self.registry.entry(plugin_type, name))
        with _loading:
            self._seen[module.__name__] = _digest(_file(module))

    def changed(self) -> list[str]:
        """Names of the watched modules whose source is another one than when it was last looked at; sorted."""
        with _loading:
            seen = dict(self._seen)
        return sorted(name for name, digest in seen.items() if name in sys.modules and _differs(name, digest))

    def poll(self) -> dict[str, str]:
        """Reload what has changed: an empty text by module, or why it could not be and the old one stays.

        What could not be is tried again when its source has changed again.
        """
        result = {}
        for name in self.changed():
            try:
                with _loading:
                    self._seen[name] = _digest(_file(sys.modules[name]))
                    self.reload_module(name)
                result[name] = ""
            except WorkloadError as error:
                result[name] = str(error)
                _log.warning("%s", error)
        return result

    def start(self, interval: float = 1.0, after: Callable[[dict[str, str]], None] | None = None) -> None:
        """Poll every ``interval`` seconds on a thread of its own, until ``stop``; ``after`` gets what ``poll`` gave."""
        if self._watcher is not None:
            raise BadInput("the reloader watches already")
        self._end.clear()

        def watch() -> None:
            while not self._end.wait(interval):
                result = self.poll()
                if result and after is not None:
                    after(result)

        self._watcher = threading.Thread(target=watch, name="rm-abstract-reload", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """End what ``start`` began. Harmless where nothing was."""
        watcher, self._watcher = self._watcher, None
        self._end.set()
        if watcher is not None:
            watcher.join()

    def reload(self, name: str, *, plugin_type: str = PluginType.RUNTIME) -> Any:
        """Load the module of a plugin anew, and return the new class or object of that name.

        Every plugin of the module is exchanged at once: those that it has no more are unregistered, new ones that it
        registers are there. Where that fails, everything stays as it was. Raises PluginError.
        """
        entry = self.registry.entry(plugin_type, name)
        self.reload_module(self._module(entry).__name__)
        return self.registry.get(plugin_type, name)

    def reload_module(self, name: str) -> ModuleType:
        """Load a module anew, with all its plugins. Raises BadInput where it is not loaded, otherwise as ``reload``."""
        with _loading:
            old = sys.modules.get(name)
            if old is None or name == "__main__":
                raise BadInput(f"module {name} is not loaded, or is the program itself")
            entries = self._entries(old)
            digest = _digest(_file(old))
            with self.registry.staging() as staged:
                try:
                    new = self._execute(old)
                    found = self._found(new, entries, staged)
                except (Exception, SystemExit) as error:
                    sys.modules[name] = old
                    raise PluginError(
                        f"module {name} cannot be loaded anew, and stays as it was: {told(error)}"
                    ) from error
            self._bind_to_parent(name, new)
            self.registry.exchange(entries, found)
            self._seen[name] = digest
            return new

    def unload(self, name: str, *, plugin_type: str = PluginType.RUNTIME, force: bool = False) -> None:
        """Unregister a plugin, and forget its module where no other plugin is in it. Raises as ``unregister``."""
        entry = self.registry.entry(plugin_type, name)
        with _loading:
            target = self.registry.loaded(entry)
            self.registry.unregister(name, plugin_type=plugin_type, force=force)
            module = sys.modules.get(getattr(target, "__module__", ""))
            own = module is not None and module.__name__.partition(".")[0] in ("__main__", "rm_abstract")
            if module is not None and not own and not self._entries(module):
                del sys.modules[module.__name__]
                self._seen.pop(module.__name__, None)

    def _module(self, entry: PluginEntry) -> ModuleType:
        name = self.registry.get(entry.type, entry.qualified_name).__module__
        module = sys.modules.get(name)
        if module is None:
            raise BadInput(f"plugin {entry.qualified_name} cannot be reloaded: module {name} is not loaded")
        _file(module)
        return module

    def _entries(self, module: ModuleType) -> list[PluginEntry]:
        loaded = ((entry, self.registry.loaded(entry)) for entry in self.registry.entries())
        return [entry for entry, target in loaded if getattr(target, "__module__", None) == module.__name__]

    def _execute(self, old: ModuleType) -> ModuleType:
        file, name = _file(old), old.__name__
        spec = old.__spec__ or ModuleSpec(name, None, origin=str(file))
        new = module_from_spec(spec)
        new.__file__ = str(file)
        sys.modules[name] = new
        # Not through the loader: its cache of compiled code goes by size and by seconds, too coarse for an editor.
        exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), new.__dict__)  # noqa: S102 (a plugin)
        linecache.checkcache(str(file))
        return new

    def _found(
        self, new: ModuleType, old: list[PluginEntry], staged: list[tuple[PluginEntry, object]]
    ) -> list[tuple[PluginEntry, object]]:
        """The module's plugins: what it has registered, what others registered of it by the same class names, and
        what a search would find where a search has found it."""
        found = [(entry, target, "") for entry, target in staged]
        for entry in old:
            before = self.registry.loaded(entry)
            if not any(entry.key == known.key for known, _, _ in found):
                target = _successor(new, before)
                if target is not None:
                    runtime = entry.type == PluginType.RUNTIME
                    found.append((entry, target, before.metadata().name if runtime else ""))
        if any(entry.origin is Origin.SCANNED and entry.type == PluginType.RUNTIME for entry in old):
            known_targets = [target for _, target, _ in found]
            for cls in classes(new, Plugin):
                if cls not in known_targets:
                    location = f"{new.__name__}:{cls.__qualname__}"
                    about = cls.metadata()
                    found.append((PluginEntry("runtime", about.name, Origin.SCANNED, location), cls, about.name))
        result = [(_described(entry, target, former), target) for entry, target, former in found]
        mine = {entry.key for entry in old}
        taken = {entry.key for entry in self.registry.entries()} - mine
        for entry, _ in result:
            if entry.key in taken:
                raise BadInput(f"there already is a {entry.type} plugin named {entry.qualified_name}")
        return result

    @staticmethod
    def _bind_to_parent(name: str, module: ModuleType) -> None:
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)


def _successor(module: ModuleType, before: Any) -> Any:
    """What is in a new module in the place of a class or object of the old one; None where nothing is."""
    source = before.backend_class if _is_adapter(before) else before
    name = getattr(source, "__qualname__", "")
    target: Any = getattr(module, name, None) if name else None
    if isinstance(target, type) and issubclass(target, Backend) and _is_adapter(before):
        return create_backend_plugin(target, **_asked_for(before))
    return target


def _described(entry: PluginEntry, target: Any, former: str) -> PluginEntry:
    """The entry as a new class describes itself; ``former`` is the name that the class before gave itself."""
    if entry.type != PluginType.RUNTIME:
        return entry
    if not (isinstance(target, type) and issubclass(target, Plugin)):
        raise BadInput(f"plugin {entry.name} is no subclass of Plugin any more, but {target!r}")
    about = target.metadata()
    check_host(about)
    return replace(entry, name=about.name if entry.name == former else entry.name, version=about.version)


def _is_adapter(target: object) -> bool:
    return isinstance(target, type) and issubclass(target, BackendPluginAdapter) and hasattr(target, "about")


def _asked_for(adapter: type[BackendPluginAdapter]) -> dict[str, Any]:
    about = adapter.about
    return {
        "name": about.name,
        "display_name": about.display_name,
        "version": about.version,
        "vendor": about.vendor,
        "priority": about.priority,
        "device_types": about.device_types,
        "requires": about.requires,
        "description": about.description,
        **adapter.backend_options,
    }


def _file(module: ModuleType) -> Path:
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        raise BadInput(f"module {module.__name__} has no source file, so it cannot be loaded anew")
    return Path(file)


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None


def _differs(name: str, digest: str) -> bool:
    try:
        return _digest(_file(sys.modules[name])) != digest
    except BadInput:
        return False  # it is gone, or being replaced at this moment
