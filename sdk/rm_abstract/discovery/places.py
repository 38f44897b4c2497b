"""Where source files lie, and the names that they are imported by."""

import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final, NamedTuple

SYNTHETIC: Final = "rm_plugins_"
"""Directories that lie on no path are packages of this name and a number."""


class File(NamedTuple):
    """A source file as it is now. Equal stamps mean equal content."""

    path: str
    module: str
    stamp: list[int]
    """Times of the last change of the content and of the inode in ns, and the size in bytes."""

    @property
    def is_package(self) -> bool:
        """Whether the module is a package."""
        return os.path.basename(self.path) == "__init__.py"


@dataclass(frozen=True)
class Root:
    """A directory of modules, or one module."""

    path: str
    prefix: str
    """The package that the directory is, or the name of the one module; empty for a directory on ``sys.path``."""
    directories: list[str] = field(default_factory=list, compare=False)
    """What the last walk has seen."""

    def files(self) -> list[File]:
        """All source files now. What cannot be read is left out; caches and hidden files are."""
        self.directories.clear()
        if self.path.endswith(".py"):
            self.directories.append(os.path.dirname(self.path))
            try:
                return [File(self.path, self.prefix, _stamp(os.stat(self.path)))]
            except OSError:
                return []
        return list(self._walk(self.path, self.prefix, set()))

    def _walk(self, directory: str, package: str, above: set[tuple[int, int]]) -> Iterator[File]:
        self.directories.append(directory)
        lead = f"{package}." if package else ""
        below = []
        try:
            with os.scandir(directory) as found:
                for entry in found:
                    name = entry.name
                    if name[0] in "._" and not (name.endswith(".py") and name[0] == "_"):
                        continue
                    stem, extension = os.path.splitext(name)
                    if extension == ".py":
                        if "." not in stem and stem != "__main__":
                            module = package if stem == "__init__" else lead + stem
                            yield File(entry.path, module, _stamp(entry.stat()))
                    elif not extension and entry.is_dir():
                        below.append(entry)
        except OSError:
            return
        for entry in below:
            inner = above
            if entry.is_symlink():
                seen = entry.stat()
                if (seen.st_dev, seen.st_ino) in above:
                    continue
                inner = above | {(seen.st_dev, seen.st_ino)}
            yield from self._walk(entry.path, lead + entry.name, inner)


def _stamp(found: os.stat_result) -> list[int]:
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_size]


def find_module(name: str) -> ModuleSpec | None:
    """Where a module or package lies, found without importing what it is in."""
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        spec = _find_spec(".".join(parts[:end]), path)
        if spec is None:
            return None
        if end < len(parts):
            if spec.submodule_search_locations is None:
                return None
            path = list(spec.submodule_search_locations)
    return spec


def _find_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def package_roots(name: str) -> list[Root]:
    """The directories of a package, or the file of a module; empty if there is none of that name."""
    spec = find_module(name)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Root(path, name) for path in spec.submodule_search_locations]
    return [Root(spec.origin, name)] if spec.origin and spec.origin.endswith(".py") else []


def directory_root(path: str) -> Root:
    """A directory, under the name that it is imported by.

    That is its place on ``sys.path``, if it has one. Otherwise a package is made for it, so that its modules may import
    each other relatively, and none of them hides one that is installed.
    """
    path = os.path.realpath(path)
    base, parts = path, list[str]()
    while os.path.isfile(os.path.join(base, "__init__.py")):
        base, name = os.path.split(base)
        parts.insert(0, name)
    for place in sorted({os.path.realpath(each) for each in sys.path}, key=len, reverse=True):
        if place == path:
            return Root(path, "")
        if path.startswith(place + os.sep):
            name = path[len(place) + 1 :].replace(os.sep, ".")
            if all(part.isidentifier() for part in name.split(".")):
                spec = find_module(name)
                known = (spec.submodule_search_locations if spec else None) or ()
                if path in map(os.path.realpath, known):
                    return Root(path, name)
    return Root(path, ".".join([_synthetic(base), *parts]))


def _synthetic(directory: str) -> str:
    name = f"{SYNTHETIC}{zlib.crc32(directory.encode()):08x}"
    if name not in sys.modules:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [directory]
        module = ModuleType(name, f"Plugins in {directory}.")
        module.__spec__, module.__path__, module.__package__ = spec, [directory], name
        sys.modules[name] = module
    return name
