"""Plugins as attributes: ``transforms.ExpandNorms``, ``transforms.qonnx.FoldConstants``, ``steps.cleanup``."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import PluginEntry, PluginRegistry, PluginType
from rm_abstract.discovery.config import Mode

if TYPE_CHECKING:
    from rm_abstract.discovery.manager import PluginManager


class Collection:
    """The plugins of one type. An attribute is a plugin's class or function, imported when it is first asked for.

    A framework's plugins are found in the collection of that name, and by their bare names where no other has it.
    Names that are no attributes of Python's, or that this class has itself, are found by ``collection["name"]``.
    """

    def __init__(
        self,
        plugin_type: str,
        manager: "Callable[[], PluginManager]",
        framework: str = "",
        keys: frozenset[tuple[str, str]] | None = None,
    ) -> None:
        self._type, self._manager, self._framework, self._keys = plugin_type, manager, framework, keys
        # Which registry in which generation, and the plugins that were asked for then.
        self._known: tuple[PluginRegistry | None, int, dict[str, Any]] = None, -1, {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0], name=name, obj=self) from None

    def __getitem__(self, name: str) -> Any:
        """The plugin, or a framework's collection. Raises KeyError, or BadInput where its module cannot be imported."""
        manager = self._manager()
        registry = manager.registry
        made_for, generation, known = self._known
        if registry is not made_for or registry.generation != generation:
            known = {}
            self._known = registry, registry.generation, known
        if name not in known:
            entry = self._entry(manager, name)
            if entry is None:
                return self._framework_collection(manager, name)
            known[name] = registry.get(self._type, entry.qualified_name)
        return known[name]

    def _entry(self, manager: "PluginManager", name: str) -> PluginEntry | None:
        wanted = f"{self._framework}.{name}" if self._framework else name
        try:
            found = manager.registry.find(self._type, wanted)
            if found is None and self._keys is None and name not in manager.frameworks:
                manager.discover_default(self._type)
                found = manager.registry.find(self._type, wanted)
        except BadInput as error:
            raise KeyError(str(error)) from None
        return found if found is None or self._keys is None or found.key in self._keys else None

    def _framework_collection(self, manager: "PluginManager", name: str) -> "Collection":
        if not self._framework and name in manager.frameworks:
            if manager.frameworks[name].is_available():
                return Collection(self._type, self._manager, name, self._keys)
            raise KeyError(f"the framework {name} is not installed, so there are no {self._type}s of it")
        known = self.list_plugins()
        near = get_close_matches(name, known, n=3)
        some = f"{', '.join(known[:10])}{', …' if len(known) > 10 else ''}"
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {some}" if known else "there are none"
        if self._keys is not None:
            hint += " (only what the blueprint names is here)"
        elif manager.config.discovery_mode == Mode.BLUEPRINT:
            hint += " (the discovery mode is blueprint: only what blueprints name is looked for)"
        raise KeyError(f"there is no {self._type} named {name}; {hint}")

    def entries(self, **attributes: Any) -> list[PluginEntry]:
        """What is known of the plugins without their code; only those that have these attributes."""
        manager = self._manager()
        if self._keys is None:
            manager.discover_default(self._type)
        found = manager.registry.entries(self._type, **attributes)
        return [
            each
            for each in found
            if (not self._framework or each.framework == self._framework)
            and (self._keys is None or each.key in self._keys)
        ]

    def list_plugins(self, **attributes: Any) -> list[str]:
        """Names, sorted; with the framework's before it, except in that framework's collection.

        ``attributes`` leave those that have them: ``backends.list_plugins(kernel="LayerNorm", backend_type="hls")``.
        """
        return [each.name if self._framework else each.qualified_name for each in self.entries(**attributes)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.list_plugins())

    def __len__(self) -> int:
        return len(self.entries())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._entry(self._manager(), name) is not None

    def __dir__(self) -> list[str]:
        names = {each.name if self._framework else each.qualified_name.partition(".")[0] for each in self.entries()}
        return sorted({*super().__dir__(), *(name for name in names if name.isidentifier())})

    def __repr__(self) -> str:
        return f"<{self._framework + ' ' if self._framework else ''}{self._type}s: {len(self)} plugins>"


def _manager() -> "PluginManager":
    from rm_abstract.discovery.manager import get_plugin_manager  # noqa: PLC0415 (which imports this module)

    return get_plugin_manager()


transforms = Collection(PluginType.TRANSFORM, _manager)
kernels = Collection(PluginType.KERNEL, _manager)
backends = Collection(PluginType.BACKEND, _manager)
steps = Collection(PluginType.STEP, _manager)
