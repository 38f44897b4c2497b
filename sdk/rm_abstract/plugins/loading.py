"""Plugins from shared libraries: loaded into the registry of this process, and out of it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import PluginEntry, PluginType, get_registry
from rm_abstract.core.versions import PluginInfo
from rm_abstract.plugins.manifest import FILE, Manifest

if TYPE_CHECKING:
    from rm_abstract.native.library import Deadlines, NativeLibrary
    from rm_abstract.native.shim import Shim

_log = logging.getLogger(__name__)
_KINDS = (PluginType.RUNTIME, PluginType.EXTENSION)


def load_plugin(path: Path | str, *, shim: "Shim | None" = None, deadlines: "Deadlines | None" = None) -> PluginInfo:
    """Load a runtime plugin from a shared library, register it, and say what it is.

    ``path`` is the library, or a directory whose ``plugin.json`` names one. A ``plugin.json`` beside the library is
    believed in nothing: it must be valid, be for this version of RM Abstract, and agree with what the library says.
    ``shim`` describes a library that does not export ``rm_plugin.h``; the ``plugin.json`` may, too.

    Raises BadInput where there is no such file, its description is not valid, it is not for this version of RM
    Abstract, or a plugin of its name is there; PluginError where the library cannot be loaded, crashes, hangs, or says
    something else than its ``plugin.json``. Then nothing is registered.
    """
    from rm_abstract.native.plugin import native_plugin  # noqa: PLC0415 (few processes load one)

    library, info = open_library(path, shim=shim, deadlines=deadlines)
    registry = get_registry()
    try:
        if any(registry.is_registered(info.name, kind) for kind in _KINDS):
            raise BadInput(
                f"there is a plugin named {info.name} already; unload it first: unload_plugin({info.name!r})"
            )
        registry.register(native_plugin(library), library=str(library.path))
    except BaseException:
        library.close()
        raise
    return info


def open_library(
    path: Path | str, *, shim: "Shim | None" = None, deadlines: "Deadlines | None" = None
) -> "tuple[NativeLibrary, PluginInfo]":
    """A shared library that was checked as ``load_plugin`` does, and what it is; nothing is registered.

    The library is the caller's to close.
    """
    from rm_abstract.native.library import NativeLibrary  # noqa: PLC0415 (few processes load one)

    library_path, manifest = _find(Path(path))
    if manifest is not None:
        _check_host(manifest.info)
        manifest.check_file(library_path)
        shim = shim or manifest.shim
    library = NativeLibrary(library_path, shim=shim, deadlines=deadlines)
    try:
        info = library.info()
        if manifest is not None:
            manifest.check_library(library_path, info)
        _check_host(info)
    except BaseException:
        library.close()
        raise
    return library, info


def unload_plugin(name: str) -> None:
    """Take a plugin out that ``load_plugin`` loaded, or an extension. Sessions that go on do so to their end.

    Raises BadInput where there is none of that name, or where another plugin needs it; PluginError where its cleanup
    fails, and then it is out nevertheless.
    """
    from rm_abstract.native.plugin import NativePlugin  # noqa: PLC0415 (few processes load one)

    registry = get_registry()
    entry = _entry(name)
    target = registry.loaded(entry)
    native = isinstance(target, type) and issubclass(target, NativePlugin)
    if entry.type == PluginType.RUNTIME and not native:
        raise BadInput(f"plugin {name} is not from a shared library; registry.unregister takes it out")
    registry.unregister(name, plugin_type=entry.type)
    if native:
        target.library.close()


def list_plugins() -> list[PluginInfo]:
    """What the runtime plugins and extensions say of themselves whose code is loaded in this process, by name.

    One that cannot say it is left out, and the log says why.
    """
    registry = get_registry()
    found = []
    for entry in registry.entries():
        target = registry.loaded(entry) if entry.type in _KINDS else None
        if target is not None:
            try:
                found.append(_info(entry, target))
            except Exception as error:
                _log.warning("plugin %s is left out of the list: %s: %s", entry.name, type(error).__name__, error)
    return sorted(found, key=lambda info: info.name)


def get_plugin_info(name: str) -> PluginInfo:
    """What a runtime plugin or an extension says of itself; loads it where it is not loaded yet.

    Raises BadInput where there is none of that name.
    """
    entry = _entry(name)
    return _info(entry, get_registry().get(entry.type, entry.qualified_name))


def _info(entry: PluginEntry, target: Any) -> PluginInfo:
    from rm_abstract.core.selection import info  # noqa: PLC0415 (loads the interface of plugins)

    found: PluginInfo = target.info if entry.type == PluginType.EXTENSION else info(target.metadata())
    return found


def is_plugin_loaded(name: str) -> bool:
    """True if there is a runtime plugin or an extension of that name, and its code is loaded in this process."""
    registry = get_registry()
    named = [entry for entry in registry.entries() if entry.type in _KINDS and registry.is_named(entry, name)]
    return any(registry.loaded(entry) is not None for entry in named)


def _entry(name: str) -> PluginEntry:
    registry = get_registry()
    if registry.is_registered(name, PluginType.EXTENSION) and not registry.is_registered(name, PluginType.RUNTIME):
        return registry.entry(PluginType.EXTENSION, name)
    return registry.entry(PluginType.RUNTIME, name)


def _check_host(info: PluginInfo) -> None:
    problem = info.incompatibility()
    if problem:
        raise BadInput(problem)


def _find(path: Path) -> tuple[Path, Manifest | None]:
    """The library, and the manifest that is about it, if there is one."""
    if path.is_dir():
        manifest = Manifest.read(path / FILE)
        if not manifest.library:
            raise BadInput(f"{path / FILE} does not name its library; give the library's path")
        return _library(path / manifest.library), manifest
    library = _library(path)
    beside = library.with_name(FILE)
    if not beside.exists():
        return library, None
    manifest = Manifest.read(beside)
    # A directory may hold more libraries than the one that its manifest names.
    return library, manifest if manifest.library in ("", library.name) else None


def _library(path: Path) -> Path:
    if not path.is_file():
        raise BadInput(f"there is no library at {path}")
    return path.absolute()
