"""The plugin's configuration file: vendor settings at the top level, the framework's under ``plugin``."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

T = TypeVar("T")

DEFAULT_CONFIG = Path("/etc/rma-device-plugin/config.yaml")

_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUOTA_PREFIX = "requests."

MAX_SHARES = 64

_POSITIVE = (
    "interval_seconds",
    "discovery_timeout_seconds",
    "allocate_timeout_seconds",
    "pods_interval_seconds",
    "power_interval_seconds",
    "power_timeout_seconds",
)


class ConfigError(Exception):
    """The plugin cannot start with this configuration; the message says what to change."""


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """The framework's part of the configuration."""

    interval_seconds: float = 2.0
    """Between two discoveries."""
    discovery_timeout_seconds: float = 10.0
    """After this the vendor's discovery counts as failed."""
    unhealthy_after: int = 1
    """Bad observations in a row that make a device unhealthy."""
    healthy_after: int = 3
    """Good observations in a row that make an unhealthy device healthy again."""
    forget_after_seconds: float = 86400.0
    """How long a device that the driver no longer lists stays advertised as unhealthy."""
    allocate_timeout_seconds: float = 10.0
    """For one Allocate or PreStartContainer, waiting for others of the same group included."""
    node_wait_seconds: float = 2.0
    """How long Allocate waits for a device node that is not there."""
    pods_interval_seconds: float = 5.0
    """Between two questions to the kubelet which pods have devices."""
    power_interval_seconds: float = 10.0
    """Between two readings of what devices draw."""
    power_timeout_seconds: float = 10.0
    """After this a reading counts as failed."""
    out_of_band_after_seconds: float = 10.0
    """How long a device has to be in use without a pod that has it until this is told."""
    take_over_after_seconds: float = 30.0
    """How long another plugin of the same resource has to be gone before this one registers."""
    shares: int = 1
    """Containers that may have a device at the same time. They share its memory and time; nothing keeps them apart."""

    def check(self) -> None:
        """Raises ConfigError for a number that cannot work."""
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(f"plugin.{_camel(name)} must be more than 0")
        if self.unhealthy_after < 1 or self.healthy_after < 1:
            raise ConfigError("plugin.unhealthyAfter and plugin.healthyAfter must be at least 1")
        if not 1 <= self.shares <= MAX_SHARES:
            raise ConfigError(f"plugin.shares must be 1 to {MAX_SHARES}")
        for name in (
            "forget_after_seconds",
            "node_wait_seconds",
            "out_of_band_after_seconds",
            "take_over_after_seconds",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"plugin.{_camel(name)} must not be negative")


@dataclass(frozen=True, slots=True)
class Config:
    """A read configuration file."""

    plugin: PluginSettings
    vendor: Mapping[str, object]
    resource_name: str


def load(path: Path | None, resource_name: str | None) -> Config:
    """Reads ``path``, or the default file if that exists. ``resource_name`` wins over the file's ``resourceName``.

    Raises ConfigError for a missing file that was named, YAML that is none, an unknown or mistyped setting, and a
    resource name that the kubelet would refuse.
    """
    try:
        text = (path or DEFAULT_CONFIG).read_text()
    except FileNotFoundError:
        if path is not None:
            raise ConfigError(f"{path} does not exist") from None
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path or DEFAULT_CONFIG} cannot be read: {error}") from error
    try:
        raw = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path or DEFAULT_CONFIG} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path or DEFAULT_CONFIG} must be a mapping")
    settings = parse(PluginSettings, raw.pop("plugin", {}), "plugin.")
    settings.check()
    named = raw.pop("resourceName", None)
    name = resource_name or named
    if not isinstance(name, str) or not name:
        raise ConfigError("no resource name: set RMA_RESOURCE_NAME, or resourceName in the configuration file")
    check_resource_name(name)
    return Config(settings, raw, name)


def parse(into: type[T], raw: object, where: str = "") -> T:
    """A dataclass of numbers, strings and lists of strings from a mapping with camelCase names."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where.rstrip('.') or 'the configuration'} must be a mapping")
    hints = get_type_hints(into)
    known = {_camel(field.name): field for field in fields(into)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in raw if key not in known)
    if unknown:
        raise ConfigError(f"unknown setting {where}{unknown[0]}; known are {', '.join(known)}")
    values = {known[key].name: _value(f"{where}{key}", hints[known[key].name], value) for key, value in raw.items()}
    missing = [k for k, f in known.items() if f.default is MISSING and f.name not in values]
    if missing:
        raise ConfigError(f"the setting {where}{missing[0]} is missing")
    return into(**values)


def _value(where: str, kind: Any, value: object) -> object:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is str:
        if isinstance(value, str):
            return value
        raise ConfigError(f"{where} must be a string: write it in quotes, '{value}'")
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    needed = {int: "a whole number", float: "a number"}.get(kind, "a list of strings")
    raise ConfigError(f"{where} is {value!r}; {needed} is needed")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join("MiB" if part == "mib" else part.capitalize() for part in rest)


def check_resource_name(name: str) -> None:
    """Raises ConfigError unless the kubelet takes ``name`` as that of an extended resource (``domain/name``)."""
    domain, slash, short = name.partition("/")
    # The kubelet checks the name as a quota would spell it, so the prefix counts in the domain's 253 characters.
    problem = ""
    if not slash or "/" in short:
        problem = "it must be domain/name with one slash"
    elif "kubernetes.io/" in name:
        problem = "kubernetes.io is Kubernetes' own"
    elif domain.startswith(_QUOTA_PREFIX):
        problem = f"it must not begin with {_QUOTA_PREFIX!r}"
    elif not _DOMAIN.fullmatch(domain) or len(_QUOTA_PREFIX + domain) > 253:
        problem = f"{domain!r} is not a lower-case DNS domain of at most {253 - len(_QUOTA_PREFIX)} characters"
    elif not _QUALIFIED.fullmatch(short) or len(short) > 63:
        problem = f"{short!r} must be 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
    if problem:
        raise ConfigError(f"the resource name {name!r} is malformed: {problem}. Correct it and start the plugin again")
