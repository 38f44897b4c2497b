"""Settings of discovery: the environment first, then ``.rm_abstract/config.yaml``, then what is usual."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final

from rm_abstract.core.errors import BadInput
from rm_abstract.discovery.documents import read_yaml
from rm_abstract.discovery.store import Store

CONFIG_FILE: Final = os.path.join(".rm_abstract", "config.yaml")
"""Looked for in the working directory and those above it."""
ENV_TTL: Final = "RM_PLUGIN_CACHE_TTL"
ENV_MODE: Final = "RM_PLUGIN_MODE"
ENV_DEBUG: Final = "RM_PLUGIN_DEBUG"
ENV_REDIS: Final = "RM_PLUGIN_REDIS_URL"
ENV_PACKAGES: Final = "RM_PLUGIN_PACKAGES"
"""Packages with commas between."""
_SECTION: Final = "plugin_system"
_WORDS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


class Mode(StrEnum):
    """How much is discovered."""

    FULL = "full"
    """Everything that can be found."""
    BLUEPRINT = "blueprint"
    """Only what a blueprint names."""
    SELECTIVE = "selective"
    """Only the types, or the frameworks, that are asked for."""


@dataclass(frozen=True)
class DiscoveryConfig:
    """How plugins are found. Relative paths in a file are relative to the directory that holds ``.rm_abstract``."""

    cache_ttl: float = 300.0
    """Seconds for which a discovery holds without being asked for again; 0: none does."""
    discovery_mode: Mode = Mode.FULL
    frameworks: tuple[str, ...] | None = None
    """The adapters that are asked, such as ``rm_abstract`` and ``qonnx``; None: all."""
    performance_tracking: bool = False
    """Whether the time of each adapter is kept."""
    debug: bool = False
    packages: tuple[str, ...] = ()
    """Packages and modules whose source is searched for plugins."""
    paths: tuple[str, ...] = ()
    """Directories that are searched too; ``.rm_abstract/plugins`` is one of them, if it exists."""
    blueprint: str = ""
    """The blueprint of mode ``blueprint``, unless one is named."""
    cache_dir: str = ""
    """Where the index is kept; by default ``rm-abstract/plugins`` in the user's cache directory."""
    redis_url: str = ""
    """A Redis server that remembers for several machines what files hold."""


def load_config(
    directory: str | os.PathLike[str] | None = None, *, environment: Mapping[str, str] | None = None
) -> DiscoveryConfig:
    """The settings for a process in ``directory``, by default the working directory.

    Raises BadInput for a key, value or variable that cannot be understood.
    """
    variables = os.environ if environment is None else environment
    config = DiscoveryConfig()
    path = _find(os.path.abspath(directory or os.getcwd()))
    if path:
        config = replace(config, **_from_file(path))
    return replace(config, **_from_environment(variables))


def _find(directory: str) -> str:
    while True:
        path = os.path.join(directory, CONFIG_FILE)
        if os.path.isfile(path):
            return path
        above = os.path.dirname(directory)
        if above == directory:
            return ""
        directory = above


def _from_file(path: str) -> dict[str, Any]:
    document = read_yaml(path, Store()) or {}
    section = document.get(_SECTION, {}) if isinstance(document, dict) else None
    if not isinstance(section, dict):
        raise BadInput(f"{path} has to be a mapping with the key {_SECTION}")
    known = {field.name for field in fields(DiscoveryConfig)}
    for key in section:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise BadInput(f"{path}: {_SECTION} has no setting {key}; {hint}")
    settings = {key: _value(f"{path}: {_SECTION}.{key}", key, value) for key, value in section.items()}
    home = os.path.dirname(os.path.dirname(path))
    paths = [os.path.join(home, os.path.expanduser(each)) for each in settings.get("paths", ())]
    plugins = os.path.join(os.path.dirname(path), "plugins")
    if os.path.isdir(plugins):
        paths.append(plugins)
    settings["paths"] = tuple(paths)
    for key in ("blueprint", "cache_dir"):
        if settings.get(key):
            settings[key] = os.path.join(home, os.path.expanduser(settings[key]))
    return settings


def _from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    names = {ENV_TTL: "cache_ttl", ENV_MODE: "discovery_mode", ENV_DEBUG: "debug", ENV_REDIS: "redis_url"}
    found = {key: _value(name, key, variables[name].strip()) for name, key in names.items() if variables.get(name)}
    packages = [each.strip() for each in variables.get(ENV_PACKAGES, "").split(",") if each.strip()]
    return {**found, "packages": tuple(packages)} if packages else found


def _value(where: str, key: str, value: Any) -> Any:
    """A setting of the type that it has to have; texts of the environment are understood as such."""
    if key in ("debug", "performance_tracking"):
        truth = value if isinstance(value, bool) else _WORDS.get(str(value).lower())
        if truth is None:
            raise BadInput(f"{where} is {value!r}, but must be true or false")
        return truth
    if key == "cache_ttl":
        try:
            seconds = float(value) if not isinstance(value, bool) else -1.0
        except (TypeError, ValueError):
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            raise BadInput(f"{where} is {value!r}, but must be a number of seconds, 0 or more")
        return seconds
    if key == "discovery_mode":
        if value not in list(Mode):
            raise BadInput(f"{where} is {value!r}, but must be one of {', '.join(Mode)}")
        return Mode(value)
    if key in ("frameworks", "packages", "paths"):
        if key == "frameworks" and value is None:
            return None
        if not (isinstance(value, list) and all(isinstance(each, str) and each for each in value)):
            raise BadInput(f"{where} is {value!r}, but must be a list of words")
        return tuple(value)
    if not isinstance(value, str):
        raise BadInput(f"{where} is {value!r}, but must be a text")
    return value
