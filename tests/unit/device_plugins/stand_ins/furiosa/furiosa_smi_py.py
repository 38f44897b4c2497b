"""Stand-in for FuriosaAI's library: its documented functions, over a JSON file that the test writes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def _state() -> dict[str, Any]:
    return json.loads(Path(os.environ["FURIOSA_STAND_IN"]).read_text())  # type: ignore[no-any-return]


@dataclass
class Device:
    raw: dict[str, Any]

    def device_info(self) -> Any:
        info = {**self.raw["info"], "firmware_version": _version(self.raw["info"].get("firmware_version", "1.0.0"))}
        return SimpleNamespace(**info)

    def device_files(self) -> list[Any]:
        return [SimpleNamespace(path=path, cores=[0]) for path in self.raw["files"]]

    def power_consumption(self) -> float:
        return float(self.raw.get("watts", 0))

    def liveness(self) -> bool:
        if "error" in self.raw:
            raise RuntimeError(self.raw["error"])
        return bool(self.raw["alive"])


def init() -> None:
    if _state().get("init"):
        raise RuntimeError(_state()["init"])


def list_devices() -> list[Device]:
    return [Device(raw) for raw in _state()["devices"]]


def driver_info() -> Any:
    return _version(_state()["driver"])


def _version(text: str) -> Any:
    major, minor, patch = text.split(".")
    return SimpleNamespace(major=int(major), minor=int(minor), patch=int(patch), metadata="", prerelease="")
