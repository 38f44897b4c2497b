"""A vendor's module in a process of its own, over stand-ins for what the vendor ships."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class VendorProcess:
    """Start it with ``with``; ``discover`` and ``allocate`` give the module's answers as JSON has them."""

    def __init__(self, vendor: str, settings: Mapping[str, object], **environment: str) -> None:
        program = Path(__file__).with_name("discover.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), vendor, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def discover(self) -> dict[str, Any]:
        return self._ask("discover")

    def held(self, *ids: str) -> None:
        """From now on pods have these, and no others; before, it is not known."""
        self._ask(f"held {','.join(ids)}")

    def power(self) -> dict[str, Any]:
        return self._ask("power")

    def allocate(self, *ids: str) -> dict[str, Any]:
        return self._ask(f"allocate {','.join(ids)}")

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def make_node(path: Path, major: int = 1, minor: int = 3) -> Path:
    """A device node; 1:3 is that of /dev/null, which is everywhere and does no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o666 | 0o020000, os.makedev(major, minor))
    return path


def causes(answer: dict[str, Any]) -> dict[str, str]:
    """Why each device must not be allocated, by ID."""
    return {device["id"]: device["cause"] for device in answer["devices"]}


def troubles(answer: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Why each unhealthy device must not be allocated and what helps, by ID."""
    return {device["id"]: (device["cause"], device["failure"]) for device in answer["devices"] if device["cause"]}
