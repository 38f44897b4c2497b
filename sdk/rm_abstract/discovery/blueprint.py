"""Blueprints: YAML files that name the plugins of one build, so that nothing else is looked for."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import PluginEntry, PluginType
from rm_abstract.discovery.documents import read_yaml
from rm_abstract.discovery.store import Store

if TYPE_CHECKING:
    from rm_abstract.discovery.collections import Collection

SECTION: Final = "hw_compiler"
OPTIONAL: Final = "~"
"""Before a name: the plugin may be missing."""
_LISTS: Final = {"transforms": PluginType.TRANSFORM, "kernels": PluginType.KERNEL, "steps": PluginType.STEP}
_KEYS: Final = (*_LISTS, "transforms_phased")


@dataclass(frozen=True)
class Choice:
    """A plugin that a blueprint names."""

    type: str
    name: str
    optional: bool = False
    phase: str = ""
    """Of ``transforms_phased``."""
    backends: "tuple[Choice, ...] | None" = None
    """Of a kernel: the names or types of the backends that it may have; None: all."""


@dataclass(frozen=True)
class Blueprint:
    """What a blueprint names, in its order."""

    path: str
    choices: tuple[Choice, ...]

    @classmethod
    def read(cls, path: str | os.PathLike[str], store: Store | None = None) -> "Blueprint":
        """The blueprint in a file. Raises BadInput for one that cannot be understood."""
        return cls.parse(read_yaml(path, store or Store()), os.fspath(path))

    @classmethod
    def parse(cls, document: Any, path: str = "blueprint") -> "Blueprint":
        """The blueprint in a document. Keys beside ``hw_compiler`` are other programs'."""
        section = document.get(SECTION) if isinstance(document, Mapping) else None
        if not isinstance(section, Mapping):
            raise BadInput(f"{path} is no blueprint: it has to be a mapping with the key {SECTION}")
        for key in section:
            if key not in _KEYS:
                near = get_close_matches(str(key), _KEYS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}"
                raise BadInput(f"{path}: {SECTION} has no key {key}; {hint}")
        choices: list[Choice] = []
        for key, plugin_type in _LISTS.items():
            choices += _choices(f"{path}: {SECTION}.{key}", plugin_type, section.get(key))
        phases = section.get("transforms_phased") or {}
        if not isinstance(phases, Mapping):
            raise BadInput(f"{path}: {SECTION}.transforms_phased has to be a mapping from phases to lists")
        for phase, value in phases.items():
            where = f"{path}: {SECTION}.transforms_phased.{phase}"
            choices += _choices(where, PluginType.TRANSFORM, value, str(phase))
        return cls(path, tuple(choices))


def _choices(where: str, plugin_type: str, value: Any, phase: str = "") -> Iterator[Choice]:
    if value is None:
        return
    if not isinstance(value, list):
        raise BadInput(f"{where} has to be a list")
    for number, each in enumerate(value):
        place = f"{where}[{number}]"
        if isinstance(each, Mapping) and plugin_type == PluginType.KERNEL:
            if not {"kernel"} <= each.keys() <= {"kernel", "backends"}:
                raise BadInput(f"{place} has to have the key kernel, and may have backends; it has {', '.join(each)}")
            name, optional = _name(f"{place}.kernel", each["kernel"])
            backends = tuple(_choices(f"{place}.backends", PluginType.BACKEND, each.get("backends")))
            yield Choice(plugin_type, name, optional, backends=backends if "backends" in each else None)
        else:
            name, optional = _name(place, each)
            yield Choice(plugin_type, name, optional, phase)


def _name(where: str, value: Any) -> tuple[str, bool]:
    # YAML reads a lone ~ as null.
    if not isinstance(value, str) or not value.removeprefix(OPTIONAL).strip():
        raise BadInput(f"{where} has to be a name, with {OPTIONAL} before it if the plugin may be missing")
    return value.removeprefix(OPTIONAL).strip(), value.startswith(OPTIONAL)


@dataclass(frozen=True)
class Resolved:
    """The plugins that a blueprint names and that there are."""

    entries: tuple[PluginEntry, ...] = ()
    """In the blueprint's order, without the second of two that are the same."""
    phases: Mapping[str, tuple[PluginEntry, ...]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    """Optional ones that there are not, as ``type name``."""


def resolve(
    blueprint: Blueprint,
    lookup: Callable[[str, str], PluginEntry | None],
    explain: Callable[[str, str], str],
    backends: Callable[[str], Sequence[PluginEntry]],
) -> Resolved:
    """Find what a blueprint names: ``lookup`` by type and name, or ``explain`` why not; ``backends`` of a kernel.

    Raises BadInput that names all that is missing and not optional.
    """
    entries: dict[tuple[str, str], PluginEntry] = {}
    phases: dict[str, list[PluginEntry]] = {}
    missing: list[str] = []
    wrong: list[str] = []
    for choice in blueprint.choices:
        try:
            entry = lookup(choice.type, choice.name)
        except BadInput as error:
            wrong.append(str(error))
            continue
        if entry is None:
            if choice.optional:
                missing.append(f"{choice.type} {choice.name}")
            else:
                wrong.append(explain(choice.type, choice.name))
            continue
        entries.setdefault(entry.key, entry)
        if choice.phase:
            phases.setdefault(choice.phase, []).append(entry)
        if choice.type == PluginType.KERNEL:
            for found in _backends(choice, backends(entry.qualified_name), missing, wrong):
                entries.setdefault(found.key, found)
    if wrong:
        raise BadInput(f"{blueprint.path} names plugins that are not there: {'. '.join(wrong)}")
    return Resolved(tuple(entries.values()), {phase: tuple(found) for phase, found in phases.items()}, tuple(missing))


def _backends(
    choice: Choice, there: Sequence[PluginEntry], missing: list[str], wrong: list[str]
) -> Iterable[PluginEntry]:
    if choice.backends is None:
        return there
    found = []
    for wanted in choice.backends:
        matching = [
            each
            for each in there
            if wanted.name in (each.name, each.qualified_name, each.attributes.get("backend_type"))
        ]
        found += matching
        if not matching and wanted.optional:
            missing.append(f"backend {wanted.name} of kernel {choice.name}")
        elif not matching:
            kinds = ", ".join(f"{each.qualified_name} ({each.attributes.get('backend_type')})" for each in there)
            wrong.append(f"kernel {choice.name} has no backend {wanted.name}; it has {kinds or 'none'}")
    return found


class BlueprintPlugins(Mapping[str, "Collection"]):
    """What a blueprint names and nothing else: ``transforms``, ``kernels``, ``backends`` and ``steps``."""

    def __init__(self, resolved: Resolved, collections: Mapping[str, "Collection"], get: Callable[..., Any]) -> None:
        self._resolved, self._collections, self._get = resolved, collections, get

    def __getitem__(self, key: str) -> "Collection":
        return self._collections[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._collections)

    def __len__(self) -> int:
        return len(self._collections)

    @property
    def entries(self) -> tuple[PluginEntry, ...]:
        """Everything, in the blueprint's order; a kernel's backends come after it."""
        return self._resolved.entries

    @property
    def missing(self) -> tuple[str, ...]:
        """Optional plugins that there are not, as ``type name``."""
        return self._resolved.missing

    def phase(self, name: str) -> list[Any]:
        """The classes of a phase of ``transforms_phased``, in order. Raises BadInput for a phase that there is not."""
        if name not in self._resolved.phases:
            raise BadInput(f"there is no phase {name}; there are {', '.join(self._resolved.phases) or 'none'}")
        return [self._get(each.type, each.qualified_name) for each in self._resolved.phases[name]]

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that have transforms."""
        return tuple(self._resolved.phases)
