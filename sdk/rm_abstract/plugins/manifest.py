"""``plugin.json``, the file beside a library that says what it is before any of its code runs."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Self

from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.core.versions import PluginInfo, VersionInfo
from rm_abstract.native.shim import Shim

FILE: Final = "plugin.json"
_ALIASES: Final[Mapping[str, str]] = {
    "min_rm_abstract_version": "min_host_version",
    "max_rm_abstract_version": "max_host_version",
}
_TEXTS: Final = (
    "name",
    "version",
    "description",
    "author",
    "min_host_version",
    "max_host_version",
    "library",
    "sha256",
)
_KNOWN: Final = (*_TEXTS, "shim", "extra", *_ALIASES)
_MOST: Final = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a ``plugin.json`` says."""

    info: PluginInfo
    library: str = ""
    """Name of the library's file, beside it; empty means any."""
    sha256: str = ""
    """Digest of that file in hexadecimal; empty means that it is not checked."""
    shim: Shim | None = None
    """For a library that does not export ``rm_plugin.h``."""
    states: frozenset[str] = field(default_factory=frozenset)
    """The members that are in the file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The manifest in a file. Raises BadInput where it cannot be read or is not valid."""
        try:
            if path.stat().st_size > _MOST:
                raise BadInput(f"{path} is larger than {_MOST} bytes")
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path} is not valid JSON: {error}") from None
        try:
            return cls._parse(content)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None

    @classmethod
    def _parse(cls, content: Any) -> Self:
        if not isinstance(content, dict):
            raise BadInput("a plugin.json is a JSON object")
        for key in content:
            if key not in _KNOWN:
                near = get_close_matches(key, _KNOWN, n=1)
                raise BadInput(f"{key} is not known; " + (f"did you mean {near[0]}?" if near else _list(_KNOWN)))
        said: dict[str, Any] = {_ALIASES.get(key, key): value for key, value in content.items()}
        wrong = [key for key in _TEXTS if key in said and not isinstance(said[key], str)]
        if wrong:
            raise BadInput(f"{wrong[0]} must be a text")
        lacking = [key for key in ("name", "version") if not said.get(key)]
        if lacking:
            raise BadInput(f"it lacks {' and '.join(lacking)}")
        if "/" in said.get("library", ""):
            raise BadInput(f"library is the name of a file beside it, not the path {said['library']}")
        if not all(isinstance(said.get(key, {}), Mapping) for key in ("shim", "extra")):
            raise BadInput("shim and extra are objects")
        least, most = (
            VersionInfo.parse(said[key]) if said.get(key) else None for key in ("min_host_version", "max_host_version")
        )
        info = PluginInfo(
            said["name"], VersionInfo.parse(said["version"]), said.get("description", ""), said.get("author", ""),
            least, most, said.get("extra", {}),
        )  # fmt: skip
        shim = said.get("shim")
        if shim is not None:
            shim = Shim.from_json({"name": info.name, "version": said["version"], **shim})
        return cls(info, said.get("library", ""), said.get("sha256", "").lower(), shim, frozenset(said))

    def check_file(self, path: Path) -> None:
        """Raise PluginError where the library's file is not the one that the manifest is about."""
        if not self.sha256:
            return
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not hmac.compare_digest(found, self.sha256):
            raise PluginError(f"{path.name} has the SHA-256 {found}, and {FILE} says {self.sha256}; it is not loaded")

    def check_library(self, path: Path, library: PluginInfo) -> None:
        """Raise PluginError where the library says something else of itself."""
        for key in ("name", "version", "min_host_version", "max_host_version", "author"):
            ours, theirs = getattr(self.info, key), getattr(library, key)
            if key in self.states and theirs not in (None, "") and ours != theirs:
                raise PluginError(f"{path.name} says that its {key} is {theirs}, and {FILE} says {ours}")


def _list(names: tuple[str, ...]) -> str:
    return f"there are {', '.join(names)}"
