"""The smaller interface of before: a device that prepares models and runs them.

``backends.plugin_adapter.create_backend_plugin`` makes a plugin of one, so that there is one way to run either.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar


class Backend(ABC):
    """One kind of device. An instance is for one device of it."""

    name: ClassVar[str] = ""
    """By which it is found; the class's name in lower case where it is empty."""
    device_types: ClassVar[tuple[str, ...]] = ()
    """Types of devices in lower case, such as ``npu``."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that must be there to import."""

    def __init__(self, device_id: int = 0, **options: Any) -> None:
        self.device_id = device_id
        self.options = options

    @abstractmethod
    def is_available(self) -> bool:
        """True if the device and what drives it are there."""

    def initialize(self) -> None:  # noqa: B027 (a backend without a runtime has nothing to do here)
        """Open the device."""

    @abstractmethod
    def prepare_model(self, model: Any, model_config: Mapping[str, Any] | None = None) -> Any:
        """Compile or load a model; the result is for ``execute``."""

    @abstractmethod
    def execute(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
        """Run a prepared model once."""

    def get_device_info(self) -> dict[str, Any]:
        """Facts about the device, such as ``product`` and ``driver``."""
        return {}

    def cleanup(self) -> None:  # noqa: B027 (see initialize)
        """Close the device."""
