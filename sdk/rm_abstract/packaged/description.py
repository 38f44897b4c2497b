"""What an image says of itself, in `/usr/share/rm-abstract/image.json`: what it is for, and what has to work in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATH: Final = Path("/usr/share/rm-abstract/image.json")
_KEYS: Final = {"name": str, "modules": list, "programs": list, "mayBeRoot": bool, "maxMegabytes": int}


@dataclass(frozen=True)
class Description:
    """``modules`` must be importable and ``programs`` on the PATH; ``max_megabytes`` (10⁶ bytes) bounds its layers."""

    name: str
    modules: tuple[str, ...]
    programs: tuple[str, ...]
    may_be_root: bool
    max_megabytes: int

    @classmethod
    def read(cls, path: Path = PATH) -> "Description":
        """The description in a file. Raises ValueError, saying what is wrong, where it is missing or not valid."""
        try:
            raw = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: the Dockerfile is to copy the image's description there") from None
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(raw, dict) or raw.keys() != _KEYS.keys():
            raise ValueError(f"{path} is to hold an object with exactly the keys {', '.join(_KEYS)}")
        for key, kind in _KEYS.items():
            if type(raw[key]) is not kind:
                raise ValueError(f"{path}: {key} is to be of type {kind.__name__}, not {raw[key]!r}")
        for key in ("modules", "programs"):
            if not all(isinstance(one, str) for one in raw[key]):
                raise ValueError(f"{path}: {key} is to hold strings, not {raw[key]!r}")
        return cls(raw["name"], tuple(raw["modules"]), tuple(raw["programs"]), raw["mayBeRoot"], raw["maxMegabytes"])
