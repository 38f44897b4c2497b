"""The registry: every plugin of every type, under its type and name. All other views of plugins are views on it.

An entry says what a plugin is and where its code lies. The code is imported when it is first asked for, outside of the
registry's lock, so that a module may register plugins while it is imported, on whatever thread.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from rm_abstract.core.errors import BadInput

if TYPE_CHECKING:
    from rm_abstract.core.plugin import Plugin
    from rm_abstract.core.selection import PluginState
    from rm_abstract.core.versions import PluginInfo

ENTRY_POINT_GROUP: Final = "rm_abstract.plugins"
"""A distribution offers plugins under this group; the entry point's name is ``TYPE.NAME``, such as ``runtime.acme``."""


class PluginType(StrEnum):
    """The types that RM Abstract itself knows. Others may be registered; a type is just a word in lower case."""

    RUNTIME = "runtime"
    """Compiles and serves models on a type of device: a subclass of ``Plugin``."""
    TRANSFORM = "transform"
    KERNEL = "kernel"
    BACKEND = "backend"
    """An implementation of a kernel, named in its attribute ``kernel``."""
    STEP = "step"
    OPERATION = "operation"
    LAYER = "layer"
    EXTENSION = "extension"
    """A plugin that was built or loaded as an object and brings operations and layers of its own."""


class Origin(StrEnum):
    """How an entry came to be known; where two have one name, the earlier of these stands."""

    BUILT_IN = "built-in"
    REGISTERED = "registered"
    """By a call or a decorator."""
    SCANNED = "scanned"
    ENTRY_POINT = "entry point"
    FRAMEWORK = "framework"
    """Offered by the adapter of another framework."""


_ORDER: Final = {origin: place for place, origin in enumerate(Origin)}


@dataclass(frozen=True, slots=True)
class PluginEntry:
    """What is known of a plugin without its code."""

    type: str
    name: str
    origin: Origin
    location: str = ""
    """``module:attribute``; empty where the object itself was registered."""
    framework: str = ""
    """Where it comes from, such as ``qonnx``; empty for plugins of RM Abstract and of its users."""
    version: str = ""
    file: str = ""
    """The source file, where it was found by scanning."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """What its author says of it: ``stage``, ``kernel``, ``backend_type``, ``description``, ``device_types``, …"""

    @property
    def qualified_name(self) -> str:
        """The name with the framework before it, such as ``qonnx.FoldConstants``."""
        return f"{self.framework}.{self.name}" if self.framework else self.name

    @property
    def key(self) -> tuple[str, str]:
        """What the registry files it under."""
        return self.type, normal_name(self.type, self.qualified_name)


def normal_name(plugin_type: str, name: str) -> str:
    """The form in which names are compared. Those of runtimes are words of a command line: case and ``_`` are free."""
    return name.lower().replace("_", "-") if plugin_type == PluginType.RUNTIME else name


BUILT_IN: Final = (
    PluginEntry("runtime", "deepspeed", Origin.BUILT_IN, "rm_abstract.backends.deepspeed:DeepSpeedPlugin"),
    PluginEntry("runtime", "furiosa-llm", Origin.BUILT_IN, "rm_abstract.backends.furiosa:FuriosaPlugin"),
    PluginEntry("runtime", "iree", Origin.BUILT_IN, "rm_abstract.backends.iree:IreePlugin"),
    PluginEntry("runtime", "openvino", Origin.BUILT_IN, "rm_abstract.backends.openvino:OpenVinoPlugin"),
    PluginEntry("runtime", "pytorch", Origin.BUILT_IN, "rm_abstract.backends.pytorch:PyTorchPlugin"),
    PluginEntry("runtime", "rebellions", Origin.BUILT_IN, "rm_abstract.backends.rebellions:RebellionsPlugin"),
    PluginEntry("runtime", "remote", Origin.BUILT_IN, "rm_abstract.backends.remote:RemotePlugin"),
    PluginEntry(
        "runtime", "simulated-npu", Origin.BUILT_IN, "rm_abstract.backends.simulated_npu.plugin:SimulatedNpuPlugin"
    ),
    PluginEntry("runtime", "tensorrt-llm", Origin.BUILT_IN, "rm_abstract.backends.tensorrt_llm:TensorRtLlmPlugin"),
    PluginEntry("runtime", "upmem", Origin.BUILT_IN, "rm_abstract.backends.pim.plugin:UpmemPlugin"),
    PluginEntry("runtime", "vllm", Origin.BUILT_IN, "rm_abstract.backends.vllm:VllmPlugin"),
    PluginEntry("runtime", "vllm-cpu", Origin.BUILT_IN, "rm_abstract.backends.vllm:VllmCpuPlugin"),
)


class PluginRegistry:
    """Every plugin, by type and name. Safe to use from any thread."""

    def __init__(self, entries: Iterable[PluginEntry] = BUILT_IN, *, installed: bool = True) -> None:
        """``installed``: whether what installed distributions offer is in it too."""
        self._lock = threading.RLock()
        self._initial = tuple(entries)
        self._entries: dict[tuple[str, str], PluginEntry] = {entry.key: entry for entry in self._initial}
        self._targets: dict[tuple[str, str], object] = {}
        self._instances: WeakValueDictionary[object, Plugin] = WeakValueDictionary()
        self._staging = threading.local()
        self._problems: dict[str, str] = {}
        self._installed = installed
        self._installed_known = not installed
        self._generation = 0

    @property
    def generation(self) -> int:
        """Counts the changes; what was derived from the registry holds as long as it stays the same."""
        return self._generation

    # Writing

    def register(
        self,
        plugin: Any,
        *,
        plugin_type: str = PluginType.RUNTIME,
        name: str = "",
        framework: str = "",
        replace: bool = False,
        **attributes: Any,
    ) -> Any:
        """Add a class, function or object, and return it, so that it serves as a decorator.

        A runtime's name and version are those of its metadata. A CustomPlugin is initialized, and comes with the
        operations and layers that it brings, or raises PluginError and leaves nothing. Raises ValueError where another
        one has its name, unless ``replace``, and BadInput for what is not for this version of RM Abstract.
        """
        if not isinstance(plugin, type) and getattr(plugin, "plugin_type", "") == PluginType.EXTENSION:
            from rm_abstract.plugins.extensions import install  # noqa: PLC0415 (which imports this module)

            return install(self, plugin, replace_others=replace)
        version = ""
        if plugin_type == PluginType.RUNTIME:
            from rm_abstract.core.selection import check_host  # noqa: PLC0415 (which imports this module)

            about = plugin.metadata()
            check_host(about)
            name, version = name or about.name, about.version
        entry = PluginEntry(
            plugin_type,
            name or plugin.__name__,
            Origin.REGISTERED,
            _location(plugin),
            framework=framework,
            version=str(attributes.pop("version", version)),
            attributes=attributes,
        )
        self.add(entry, plugin, replace=replace)
        return plugin

    def add(self, entry: PluginEntry, target: object | None = None, *, replace: bool = False) -> None:
        """Add an entry, with its object where that is at hand.

        Raises ValueError where another object has its name, unless ``replace``. An entry that is merely known to lie
        somewhere gives way to one that is there already, and to an object. Where that object is what the entry is
        about, because its module registers it when it is imported, the entry stays and is loaded from then on.
        """
        self._add_installed()
        staged: list[tuple[PluginEntry, object]] | None = getattr(self._staging, "entries", None)
        with self._lock:
            if staged is not None and target is not None:
                staged.append((entry, target))
                return
            known = self._entries.get(entry.key)
            if known is not None and not replace:
                if target is None or self._targets.get(entry.key) is target:
                    return
                if entry.key in self._targets or known.origin in (Origin.BUILT_IN, Origin.REGISTERED):
                    raise ValueError(f"there already is a {entry.type} plugin named {entry.qualified_name}")
                if entry.location and entry.location == known.location:
                    entry = known
            self._entries[entry.key] = entry
            self._targets.pop(entry.key, None)
            if target is not None:
                self._targets[entry.key] = target
            self._generation += 1

    def add_all(self, entries: Iterable[PluginEntry], before: Iterable[PluginEntry] = ()) -> list[PluginEntry]:
        """Add entries whose code lies somewhere, in the place of those that were found ``before``.

        What is gone since is forgotten, unless it is loaded. An entry whose name is taken is left out, unless its
        origin comes first; those that are left out for another one's sake are returned.
        """
        self._add_installed()
        wanted: dict[tuple[str, str], PluginEntry] = {}
        left_out = [each for each in entries if wanted.setdefault(each.key, each).location != each.location]
        with self._lock:
            for entry in before:
                if self._entries.get(entry.key) is entry and entry.key not in (self._targets.keys() | wanted.keys()):
                    del self._entries[entry.key]
            for key, entry in wanted.items():
                known = self._entries.get(key)
                if (
                    known is None
                    or known.location == entry.location
                    or (_ORDER[entry.origin] < _ORDER[known.origin] and key not in self._targets)
                ):
                    self._entries[key] = entry
                else:
                    left_out.append(entry)
            self._generation += 1
        return left_out

    def unregister(self, name: str, *, plugin_type: str = PluginType.RUNTIME, force: bool = False) -> None:
        """Forget a plugin: nobody gets it any more, and who uses it does so to the end.

        Where there is no runtime of that name, an extension of that name is cleaned up and goes with what it brought.
        Raises BadInput where there is none of that name, or where another plugin needs it, unless ``force``.
        """
        entry = self.entry(self._kind_of(name, plugin_type), name)
        if not force:
            from rm_abstract.core.dependencies import dependents  # noqa: PLC0415 (which imports this module)

            users = dependents(self, entry)
            if users:
                raise BadInput(f"plugin {name} is needed by {', '.join(users)}; unregister those first, or force it")
        if entry.type == PluginType.EXTENSION:
            from rm_abstract.plugins.extensions import remove  # noqa: PLC0415 (which imports this module)

            remove(self, entry)
        else:
            self.exchange([entry], [])

    def _kind_of(self, name: str, plugin_type: str) -> str:
        """The type that is meant where none was said: a runtime's, or an extension's that has the name alone."""
        kinds = (PluginType.RUNTIME, PluginType.EXTENSION) if plugin_type == PluginType.RUNTIME else ()
        return next((kind for kind in kinds if self.is_registered(name, kind)), plugin_type)

    def exchange(
        self, old: Iterable[PluginEntry], new: Sequence[tuple[PluginEntry, object]], *, replace: bool = True
    ) -> None:
        """Take ``old`` out and put ``new`` in, at once: nobody sees a part of it.

        Without ``replace``, ValueError and no change where a name of ``new`` is another one's.
        """
        with self._lock:
            taken = [
                entry
                for entry, target in new
                if entry.key in self._entries and self._targets.get(entry.key) is not target
            ]
            if taken and not replace:
                raise ValueError(f"there already is a {taken[0].type} plugin named {taken[0].qualified_name}")
            for entry in old:
                self._entries.pop(entry.key, None)
                self._targets.pop(entry.key, None)
            for entry, target in new:
                self._entries[entry.key] = entry
                self._targets[entry.key] = target
            self._generation += 1

    def reset(self) -> None:
        """Forget all but what it was made with; what is installed is looked for again. For tests."""
        with self._lock:
            self._entries = {entry.key: entry for entry in self._initial}
            self._targets.clear()
            self._instances.clear()
            self._problems.clear()
            self._installed_known = not self._installed
            self._generation += 1

    @contextmanager
    def staging(self) -> Iterator[list[tuple[PluginEntry, object]]]:
        """What this thread registers inside is collected in the list that this gives, and is not registered."""
        staged: list[tuple[PluginEntry, object]] = []
        before = getattr(self._staging, "entries", None)
        self._staging.entries = staged
        try:
            yield staged
        finally:
            self._staging.entries = before

    def discover_plugins(self, package: str | ModuleType) -> list[str]:
        """Register every runtime plugin of a package, its modules below included, and return their names, sorted.

        Imports all of it. Modules and plugins that fail are left out, and ``problems`` says why. Raises BadInput where
        the package itself cannot be imported.
        """
        from rm_abstract.core.package_scan import discover  # noqa: PLC0415 (which imports this module)

        found: dict[str, str] = {}
        names = discover(self, package, found)
        for place, why in found.items():
            self.note_problem(place, why)
        return names

    def note_problem(self, place: str, why: str) -> None:
        """Keep for ``problems`` why the module or class at ``place`` was left out."""
        with self._lock:
            self._problems[place] = why

    @property
    def problems(self) -> dict[str, str]:
        """Why modules and plugins were left out by ``discover_plugins``, by ``module`` or ``module:class``."""
        with self._lock:
            return dict(self._problems)

    def _add_installed(self) -> None:
        if self._installed_known:
            return
        from rm_abstract.discovery.entry_points import installed_points  # noqa: PLC0415 (few processes need it)

        found = []
        for point, value, version in installed_points(ENTRY_POINT_GROUP):
            plugin_type, _, name = point.rpartition(".")
            found.append(PluginEntry(plugin_type or "runtime", name, Origin.ENTRY_POINT, value, version=version))
        with self._lock:
            if not self._installed_known:
                self._installed_known = True
                self.add_all(found)

    # Reading

    def entries(self, plugin_type: str = "", **attributes: Any) -> list[PluginEntry]:
        """What is known, by type and qualified name; only what has these attributes, fields of the entry included."""
        self._add_installed()
        with self._lock:
            known = list(self._entries.values())
        found = (entry for entry in known if not plugin_type or entry.type == plugin_type)
        return sorted((entry for entry in found if _has(entry, attributes)), key=lambda entry: entry.key)

    def names(self, plugin_type: str = PluginType.RUNTIME) -> list[str]:
        """Qualified names of a type's plugins, sorted."""
        return [entry.qualified_name for entry in self.entries(plugin_type)]

    def is_registered(self, name: str, plugin_type: str = "") -> bool:
        """True if there is a plugin of this name, of this type or of any."""
        return any(self.is_named(entry, name) for entry in self.entries(plugin_type))

    @staticmethod
    def is_named(entry: PluginEntry, name: str) -> bool:
        """True if ``name`` is a plugin's qualified or bare name."""
        return normal_name(entry.type, name) in (entry.key[1], normal_name(entry.type, entry.name))

    def loaded(self, entry: PluginEntry) -> Any:
        """The class, function or object of a plugin if it is loaded already, otherwise None."""
        with self._lock:
            return self._targets.get(entry.key)

    def find(self, plugin_type: str, name: str) -> PluginEntry | None:
        """What is known of a plugin, if there is one. A framework's is also found by its bare name, if only one has it.

        Raises BadInput where several have it.
        """
        self._add_installed()
        key = plugin_type, normal_name(plugin_type, name)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                return entry
            bare = [e for e in self._entries.values() if e.name == name and e.type == plugin_type]
        if len(bare) > 1:
            names = ", ".join(sorted(e.qualified_name for e in bare))
            raise BadInput(f"the {plugin_type} plugin {name} is ambiguous; say which is meant: {names}")
        return bare[0] if bare else None

    def entry(self, plugin_type: str, name: str) -> PluginEntry:
        """What ``find`` finds. Raises BadInput where there is none; it says what is near."""
        entry = self.find(plugin_type, name)
        if entry is not None:
            return entry
        known = self.names(plugin_type)
        near = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"
        raise BadInput(f"there is no {plugin_type} plugin named {name}; {hint}")

    def get(self, plugin_type: str, name: str) -> Any:
        """The class, function or object of a plugin, imported now if it was not yet.

        Raises BadInput where there is none of that name, or where it cannot be imported.
        """
        entry = self.entry(plugin_type, name)
        with self._lock:
            target = self._targets.get(entry.key)
        if target is not None:
            return target
        try:
            target = load(entry.location)
        except (Exception, SystemExit) as error:  # whatever a plugin's module raises is that plugin's failure alone
            raise BadInput(f"plugin {name} cannot be imported: {type(error).__name__}: {error}") from error
        if plugin_type == PluginType.RUNTIME:
            from rm_abstract.core.plugin import Plugin  # noqa: PLC0415 (which imports this module)

            if not (isinstance(target, type) and issubclass(target, Plugin)):
                raise BadInput(f"plugin {name} is no subclass of rm_abstract.core.plugin.Plugin, but {target!r}")
        with self._lock:
            return self._targets.setdefault(entry.key, target) if self._entries.get(entry.key) is entry else target

    def get_plugin(self, name: str, **kwargs: Any) -> "Plugin":
        """The instance of the runtime plugin ``name`` that somebody holds, or a new one.

        ``kwargs`` are its constructor's; others make another instance. Raises as ``new_plugin``. Where there is no
        runtime of that name, the extension of that name.
        """
        if self._kind_of(name, PluginType.RUNTIME) == PluginType.EXTENSION:
            extension: Plugin = self.get(PluginType.EXTENSION, name)
            return extension
        entry = self.entry(PluginType.RUNTIME, name)
        key = entry.key, frozenset((word, repr(value)) for word, value in kwargs.items())
        target = self.get(PluginType.RUNTIME, name)
        with self._lock:
            held = self._instances.get(key)
        if held is not None and type(held) is target:
            return held
        made = self.new_plugin(name, **kwargs)
        with self._lock:
            held = self._instances.get(key)
            if held is None or type(held) is not type(made):
                self._instances[key] = held = made
            return held

    def new_plugin(self, name: str, **kwargs: Any) -> "Plugin":
        """A new instance of the runtime plugin ``name``, with what it needs in its ``dependencies``.

        Raises BadInput where it or one that it needs is missing or does not fit, PluginError where it cannot be made.
        """
        from rm_abstract.core.selection import new_plugin  # noqa: PLC0415 (which imports this module)

        return new_plugin(self, name, **kwargs)

    def auto_select(self, device_type: str | None = None) -> "Plugin":
        """The available runtime plugin of the highest priority, then the first by name, whose ``probe`` succeeds.

        ``device_type`` is a type such as ``npu``, or a plugin's name. Raises BadInput where there is none; it says
        which plugins failed, and why.
        """
        from rm_abstract.core.selection import auto_select  # noqa: PLC0415 (which imports this module)

        return auto_select(self, device_type or "")

    def survey(self, *, probe: bool = False) -> "list[PluginState]":
        """What every runtime plugin says now, the best first; one that fails says its error. Imports all of them.

        ``probe`` has those that are available look at their devices, too.
        """
        from rm_abstract.core.selection import survey  # noqa: PLC0415 (which imports this module)

        return survey(self, probe=probe)

    def list_plugins(self) -> "list[PluginInfo]":
        """What runtime plugins and extensions say of themselves, by name; those that cannot say it are left out."""
        from rm_abstract.core.selection import infos  # noqa: PLC0415 (which imports this module)

        return infos(self)


def _location(plugin: Any) -> str:
    """Where a class or function can be imported from; empty for an object, and for what a function has defined."""
    name = getattr(plugin, "__qualname__", "<locals>")
    return "" if "<locals>" in name else f"{plugin.__module__}:{name}"


def _has(entry: PluginEntry, attributes: Mapping[str, Any]) -> bool:
    fields: Callable[[str], Any] = lambda name: entry.attributes.get(name, getattr(entry, name, None))  # noqa: E731
    return all(fields(name) == value for name, value in attributes.items())


def load(location: str) -> Any:
    """The object at ``module:attribute``, where the attribute may have dots. Raises what the import raises."""
    module, _, path = location.partition(":")
    target: Any = import_module(module)
    for name in path.split("."):
        target = getattr(target, name)
    return target


_registry = PluginRegistry()


def get_registry() -> PluginRegistry:
    """The registry of this process."""
    return _registry
