"""What ``rm_abstract.init`` was asked for: arguments first, then the environment, then what is usual."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig

ENV_DEVICE: Final = "RM_DEVICE"
ENV_CACHE_DIR: Final = "RM_CACHE_DIR"
ENV_USE_PLUGINS: Final = "RM_USE_PLUGINS"

AUTO: Final = "auto"
REMOTE: Final = "remote"

_LOCAL: Final = re.compile(r"([a-z][a-z0-9_.-]*)(?::([0-9]{1,4}))?", re.IGNORECASE)
_USE: Final = "use auto, a type or a plugin's name with or without a number (cpu, gpu:0, npu:0, rbln:0), or remote:URL"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})
_DTYPE: Final = ("dtype", "precision")
_LIMITS: Final = ("max_batch_size", "max_sequence_length")


@dataclass(frozen=True)
class Device:
    """Where to run: ``auto``, ``kind[:index]`` such as ``gpu:0``, or ``remote:URL``."""

    kind: str
    """A type of device or a plugin's name, in lower case."""
    index: int | None = None
    """Which one of several; None means as the plugin thinks best."""
    url: str = ""
    """Of the endpoint, where the kind is ``remote``; without a slash at its end."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The device that ``text`` names. Raises BadInput where it names none."""
        text = text.strip()
        kind, colon, rest = text.partition(":")
        if kind.lower() == REMOTE and colon:
            parts = urlsplit(rest)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise BadInput(
                    f"device {text!r}: remote: wants the URL of a server, such as remote:http://host:8000/v1"
                )
            return cls(REMOTE, url=rest.rstrip("/"))
        match = _LOCAL.fullmatch(text)
        if match is None or kind.lower() == REMOTE or (kind.lower() == AUTO and colon):
            raise BadInput(f"device {text!r} cannot be understood: {_USE}")
        return cls(match[1].lower(), None if match[2] is None else int(match[2]))

    def __str__(self) -> str:
        if self.url:
            return f"{self.kind}:{self.url}"
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


@dataclass(frozen=True)
class Config:
    """The settings of one ``init``."""

    device: Device = field(default_factory=lambda: Device(AUTO))
    compile_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    cache_dir: Path = Path()
    """Directory of compiled models."""
    verbose: bool = False
    use_plugin_system: bool = False

    @classmethod
    def resolve(
        cls,
        device: "str | Device | None" = None,
        compile_options: Mapping[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        verbose: bool = False,
        use_plugin_system: bool | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """An argument beats RM_DEVICE, RM_CACHE_DIR and RM_USE_PLUGINS, and those beat the defaults.

        Raises BadInput for a device, option or variable that cannot be understood.
        """
        variables = os.environ if environment is None else environment
        wanted = device if device is not None else variables.get(ENV_DEVICE) or AUTO
        directory = Path(cache_dir or variables.get(ENV_CACHE_DIR) or _default_cache(variables)).expanduser()
        options = dict(compile_options or {})
        config = cls(
            device=wanted if isinstance(wanted, Device) else Device.parse(wanted),
            compile_options=MappingProxyType(options),
            cache_dir=directory.absolute(),
            verbose=verbose,
            use_plugin_system=_truth(variables) if use_plugin_system is None else use_plugin_system,
        )
        config.backend_config()
        return config

    def backend_config(self) -> BackendConfig:
        """The compile options as plugins take them. Raises BadInput for a value of the wrong type.

        ``dtype`` (or ``precision``), ``target``, ``max_batch_size`` and ``max_sequence_length`` mean the same to every
        plugin; the others are handed on as text.
        """
        options = dict(self.compile_options)
        for name in options:
            if not isinstance(name, str) or not name:
                raise BadInput(f"compile_options: {name!r} is no name of an option")
        dtypes = {str(options.pop(name)) for name in _DTYPE if name in options}
        if len(dtypes) > 1:
            raise BadInput(
                f"compile_options: dtype and precision mean the same, but are {' and '.join(sorted(dtypes))}"
            )
        limits: dict[str, int | None] = {}
        for name in _LIMITS:
            value = options.pop(name, None)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise BadInput(f"compile_options: {name} is {value!r}, but must be a whole number of at least 1")
            limits[name] = value
        return BackendConfig(
            dtype=next(iter(dtypes), ""),
            target=str(options.pop("target", "")),
            max_batch_size=limits["max_batch_size"],
            max_sequence_length=limits["max_sequence_length"],
            options={name: _text(name, value) for name, value in sorted(options.items())},
        )


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise BadInput(f"compile_options: {name} is a {type(value).__name__}, but must be text, a number, True or False")


def _truth(variables: Mapping[str, str]) -> bool:
    text = variables.get(ENV_USE_PLUGINS, "").strip().lower()
    if text not in _TRUE | _FALSE:
        raise BadInput(f"{ENV_USE_PLUGINS} is {text!r}, but must be true or false")
    return text in _TRUE


def _default_cache(variables: Mapping[str, str]) -> Path:
    return Path(variables.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rm-abstract" / "compiled"
