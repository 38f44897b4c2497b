"""What an index of plugins says of each: its releases, and the exact files that installing one takes."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from rm_abstract.core.errors import BadInput
from rm_abstract.core.versions import PluginInfo, VersionInfo, VersionRange

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_PINNED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]*", re.ASCII)
_URL: Final = re.compile(r"[A-Za-z0-9._~:/@!$&'()+,;=%-]+", re.ASCII)
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def as_map(value: Any, where: str) -> dict[str, Any]:
    """``value`` if it is an object of JSON. Raises BadInput, as do those below."""
    if not isinstance(value, dict):
        raise BadInput(f"{where} is no object")
    return value


def as_list(raw: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A member that is a list; empty where there is none."""
    value = raw.get(name, [])
    if not isinstance(value, list):
        raise BadInput(f"{where}: {name} is no list")
    return value


def as_text(raw: Mapping[str, Any], name: str, where: str, pattern: re.Pattern[str] | None = None) -> str:
    """A member that is a text, and not empty; of a form that is safe to hand to an installer, with ``pattern``."""
    value = raw.get(name)
    if not isinstance(value, str) or not value or not (pattern is None or pattern.fullmatch(value)):
        raise BadInput(f"{where}: {name} is {value!r}, which is no valid {name}")
    return value


def _optional(raw: Mapping[str, Any], name: str, where: str) -> str:
    value = raw.get(name, "")
    if not isinstance(value, str):
        raise BadInput(f"{where}: {name} is no text")
    return value


@dataclass(frozen=True)
class PinnedRequirement:
    """One distribution of which exactly these files may be installed."""

    name: str
    version: str
    hashes: tuple[str, ...]
    """``sha256:…`` of each file that will do."""
    url: str = ""
    """Of the file, whole or relative to the index; empty where pip's own index has it."""


@dataclass(frozen=True)
class Release:
    """One version of a plugin."""

    version: VersionInfo
    requirements: tuple[PinnedRequirement, ...]
    """Everything that it takes, the plugin's own distribution first."""
    min_host_version: str = ""
    max_host_version: str = ""
    requires_python: str = ""
    """A range, such as ``>=3.11``."""
    withdrawn: str = ""
    """Why nobody should install it any more; empty if it is good."""

    def obstacle(self, name: str) -> str:
        """Why it cannot be installed here; empty if it can."""
        if self.withdrawn:
            return f"{name} {self.version} was withdrawn: {self.withdrawn}"
        python = VersionInfo(*sys.version_info[:3])
        if python not in VersionRange.parse(self.requires_python):
            return f"{name} {self.version} needs Python {self.requires_python}, and this is {python}"
        least, most = (
            VersionInfo.parse(text, partial=True) if text else None
            for text in (self.min_host_version, self.max_host_version)
        )
        return PluginInfo(name, self.version, min_host_version=least, max_host_version=most).incompatibility()


@dataclass(frozen=True)
class IndexedPlugin:
    """A plugin that the index offers."""

    name: str
    """Under which the registry knows it once it is installed."""
    summary: str
    releases: tuple[Release, ...]
    """The newest first."""
    vendor: str = ""
    homepage: str = ""
    device_types: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What a search looks into, in lower case."""
        return " ".join((self.name, self.summary, self.vendor, *self.device_types)).lower()

    def choose(self, versions: str = "") -> Release:
        """The newest release in a range that can be installed here. Raises BadInput, which says why none can."""
        wanted = VersionRange.parse(versions)
        fitting = [release for release in self.releases if release.version in wanted]
        if not fitting:
            known = ", ".join(str(release.version) for release in self.releases) or "none"
            raise BadInput(f"{self.name} has no release in {wanted}; there are {known}")
        obstacles = []
        for release in fitting:
            obstacle = release.obstacle(self.name)
            if not obstacle:
                return release
            obstacles.append(obstacle)
        raise BadInput(f"no release of {self.name} can be installed here: {'; '.join(obstacles)}")


def parse_plugin(value: Any, where: str) -> IndexedPlugin:
    """A plugin as the index writes it. Raises BadInput where that is not valid."""
    raw = as_map(value, where)
    name = as_text(raw, "name", where, _NAME)
    releases = [_release(one, f"plugin {name}, release {n}") for n, one in enumerate(as_list(raw, "releases", where))]
    releases.sort(key=lambda release: release.version, reverse=True)
    types = as_list(raw, "device_types", where)
    if not all(isinstance(one, str) for one in types):
        raise BadInput(f"plugin {name}: device_types is no list of texts")
    return IndexedPlugin(
        name,
        as_text(raw, "summary", f"plugin {name}"),
        tuple(releases),
        _optional(raw, "vendor", f"plugin {name}"),
        _optional(raw, "homepage", f"plugin {name}"),
        tuple(types),
    )


def _release(value: Any, where: str) -> Release:
    raw = as_map(value, where)
    requirements = tuple(
        _requirement(one, f"{where}, requirement {n}") for n, one in enumerate(as_list(raw, "requirements", where))
    )
    if not requirements:
        raise BadInput(f"{where} has no requirements, so that there is nothing to install")
    release = Release(
        VersionInfo.parse(as_text(raw, "version", where)),
        requirements,
        _optional(raw, "min_host_version", where),
        _optional(raw, "max_host_version", where),
        _optional(raw, "requires_python", where),
        _optional(raw, "withdrawn", where),
    )
    try:
        release.obstacle(where)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    return release


def _requirement(value: Any, where: str) -> PinnedRequirement:
    raw = as_map(value, where)
    hashes = as_list(raw, "hashes", where)
    if not hashes or not all(isinstance(one, str) and _HASH.fullmatch(one) for one in hashes):
        raise BadInput(f"{where}: hashes must be a list of at least one sha256:…")
    url = _optional(raw, "url", where)
    if url and (not _URL.fullmatch(url) or urlsplit(url).scheme not in ("", "https", "file")):
        raise BadInput(f"{where}: url is {url!r}, but must be a path relative to the index, or begin with https:")
    name, version = as_text(raw, "name", where, _NAME), as_text(raw, "version", where, _PINNED)
    return PinnedRequirement(name, version, tuple(hashes), url)
