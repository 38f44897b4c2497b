"""Shared libraries as plugins, each in a process of its own: ``rm_plugin.h``, and plain C through a shim."""

from pathlib import Path


def include_directory() -> Path:
    """The directory that holds ``rm_plugin.h``, for a compiler's ``-I``."""
    return Path(__file__).parent
