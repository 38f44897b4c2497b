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
        return list(self._walk(self.path, self.prefix, frozenset()))

    def _walk(self, directory: str, package: str, above: frozenset[tuple[int, int]]) -> Iterator[File]:
        lead = f"{package}." if package else ""
        below = []
        try:
            itself = os.stat(directory)
            if (itself.st_dev, itself.st_ino) in above:  # a link to where it lies
                return
            with os.scandir(directory) as found:
                entries = list(found)
        except OSError:
            return
        self.directories.append(directory)
        for entry in entries:
            name = entry.name
            try:
                if name.endswith(".py"):
                    stem = name[:-3]
                    if "." not in stem and stem != "__main__":
                        yield File(entry.path, package if stem == "__init__" else lead + stem, _stamp(entry.stat()))
                elif "." not in name and name != "__pycache__" and entry.is_dir():
                    below.append(entry)
            except OSError:
                continue  # it has just gone, or is a link to nowhere
        for entry in below:
            yield from self._walk(entry.path, lead + entry.name, above | {(itself.st_dev, itself.st_ino)})


def _stamp(found: os.stat_result) -> list[int]:
    return [found.st_mtime_ns, found.st_ctime_ns, found.st_size]


class Located(NamedTuple):
    """Where a module lies."""

    file: str
    """Empty for a package without a file of its own, and for what is no source."""
    directories: Sequence[str]
    """Of a package."""


def find_module(name: str) -> Located | None:
    """Where a module or package lies, found without importing what it is in."""
    path: Sequence[str] | None = None
    found: Located | None = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        if found is not None and not found.directories:
            return None
        spec = _find_spec(".".join(parts[:end]), path)
        if spec is None:
            places = [os.path.join(each, parts[end - 1]) for each in path or ()]
            found = Located("", [each for each in places if os.path.isdir(each)])
            if not found.directories:
                return None
        else:
            file = spec.origin if spec.has_location and spec.origin and spec.origin.endswith(".py") else ""
            found = Located(file, list(spec.submodule_search_locations or ()))
        path = found.directories
    return found


def _find_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except KeyError:
            return None  # a package without __init__.py asks for its parent among the imported modules
        if spec is not None:
            return spec
    return None


def package_roots(name: str) -> list[Root]:
    """The directories of a package, or the file of a module; empty if there is none of that name."""
    found = find_module(name)
    if found is None:
        return []
    if found.directories:
        return [Root(path, name) for path in found.directories]
    return [Root(found.file, name)] if found.file else []


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
                known = find_module(name)
                if known is not None and path in map(os.path.realpath, known.directories):
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
