"""Adapters for compilers and runtimes that come as binaries: no source, only a command line or a library."""

from rm_abstract.core.binary.arguments import ASSIGNMENTS, EQUALS, GNU, SINGLE_DASH, ArgumentStyle
from rm_abstract.core.binary.compilers import (
    BinaryCompilerAdapter,
    CLICompilerAdapter,
    ConfigFileCompilerAdapter,
    Workplace,
    build_key,
)
from rm_abstract.core.binary.config_files import ConfigFormat
from rm_abstract.core.binary.library_compiler import LibraryCompilerAdapter
from rm_abstract.core.binary.runtimes import BinaryRuntimeAdapter, DummyRuntimeAdapter
from rm_abstract.core.binary.templates import expand

__all__ = [
    "ASSIGNMENTS",
    "EQUALS",
    "GNU",
    "SINGLE_DASH",
    "ArgumentStyle",
    "BinaryCompilerAdapter",
    "BinaryRuntimeAdapter",
    "CLICompilerAdapter",
    "ConfigFileCompilerAdapter",
    "ConfigFormat",
    "DummyRuntimeAdapter",
    "LibraryCompilerAdapter",
    "Workplace",
    "build_key",
    "expand",
]
