"""Compilers that are functions of a shared library."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rm_abstract.core.binary.compilers import BinaryCompilerAdapter, Workplace
from rm_abstract.core.binary.runtimes import find_library
from rm_abstract.core.errors import BadInput
from rm_abstract.core.resource import BuildProfile

if TYPE_CHECKING:
    from rm_abstract.native.library import Deadlines, NativeLibrary
    from rm_abstract.native.shim import Shim

_OWN: Mapping[str, type] = {"target": str, "dtype": str, "max_batch_size": int, "max_sequence_length": int}
"""Flags that have a place of their own in a library's request; the others are its options."""


class LibraryCompilerAdapter(BinaryCompilerAdapter):
    """The compiler of a library that exports ``rm_plugin.h``, or of any with a C interface through a ``shim``.

    The library runs in a process of its own. It is found as BinaryRuntimeAdapter finds it. The profile's flags
    ``target``, ``dtype``, ``max_batch_size`` and ``max_sequence_length`` are told as such, the others as options.
    """

    output_directory = True

    def __init__(
        self,
        build_profile: BuildProfile,
        library_so: str | os.PathLike[str],
        *,
        shim: "Shim | None" = None,
        search_paths: Sequence[str | os.PathLike[str]] = (),
        deadlines: "Deadlines | None" = None,
    ) -> None:
        super().__init__(build_profile)
        self.library_so = os.fspath(library_so)
        self.search_paths = tuple(Path(path) for path in search_paths)
        self._shim, self._deadlines = shim, deadlines

    def available(self) -> bool:
        """See the base class."""
        try:
            find_library(self.library_so, self.search_paths)
        except BadInput:
            return False
        return True

    def needs(self) -> list[str]:
        """See the base class."""
        return [self.library_so]

    def versions(self) -> dict[str, str]:
        """What the library says of itself."""
        with self._library() as library:
            info = library.info()
        return {info.name: str(info.version)}

    def run(self, place: Workplace) -> None:
        """See the base class."""
        flags = {name: value for name, value in self.build_profile.flags.items() if value is not None}
        for name, kind in _OWN.items():
            if name in flags and not isinstance(flags[name], kind):
                raise BadInput(f"the flag {name} is a {type(flags[name]).__name__}, but must be a {kind.__name__}")
        own = {name: flags.pop(name) for name in _OWN if name in flags}
        with self._library() as library:
            library.compile(place.input, place.output, options={name: str(each) for name, each in flags.items()}, **own)

    def _library(self) -> "NativeLibrary":
        from rm_abstract.native.library import NativeLibrary  # noqa: PLC0415 (only for those who have a library)

        path = find_library(self.library_so, self.search_paths)
        return NativeLibrary(path, shim=self._shim, deadlines=self._deadlines)
