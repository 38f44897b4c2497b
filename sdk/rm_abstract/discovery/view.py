"""What a discovery has found, and what it costs."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rm_abstract.core.registry import PluginEntry, PluginRegistry
from rm_abstract.discovery.config import Mode
from rm_abstract.discovery.frameworks.own import NAME as OWN


@dataclass(frozen=True)
class Discovery:
    """What a discovery has found: a view on the registry."""

    mode: Mode
    registry: PluginRegistry = field(repr=False)
    types: frozenset[str] | None = None
    frameworks: frozenset[str] | None = None
    keys: frozenset[tuple[str, str]] | None = field(default=None, repr=False)
    """In the mode ``blueprint``: what the blueprint names."""
    seconds: float = 0.0
    problems: Mapping[str, str] = field(default_factory=dict)
    """Why files, modules and packages were left out, by what they are."""
    version: int = 0
    """Of what was found in files when this was made."""

    @property
    def entries(self) -> list[PluginEntry]:
        """The plugins, by type and name."""
        return [
            each
            for each in self.registry.entries()
            if (self.types is None or each.type in self.types)
            and (self.frameworks is None or (each.framework or OWN) in self.frameworks)
            and (self.keys is None or each.key in self.keys)
        ]

    def __iter__(self) -> Iterator[PluginEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def resident_bytes() -> int:
    """Memory of this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource  # noqa: PLC0415 (there is no /proc here)

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
