"""Engines that are only to be had as binaries: a library with a C interface."""

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class BinaryRuntimeAdapter(ABC):
    """An engine that is only to be had as a binary: loads a compiled file on one device and runs it.

    A context manager: loaded inside, unloaded after.
    """

    def __init__(self, engine_path: Path, device_id: str) -> None:
        self.engine_path = engine_path
        self.device_id = device_id

    @abstractmethod
    def load(self) -> None:
        """Load the file on the device. Raises ArtifactMismatch, DeviceMissing or DriverMismatch."""

    @abstractmethod
    def run(self, inputs: Any, **options: Any) -> Any:
        """Run it once."""

    @abstractmethod
    def unload(self) -> None:
        """Free the device. Harmless where nothing is loaded."""

    def __enter__(self) -> Self:
        self.load()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()
