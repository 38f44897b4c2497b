"""What a kind is beside its spec and status: names, scope, printer columns, scale subresource."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rm_api.names import GROUP, VERSION

if TYPE_CHECKING:
    from rm_api.base import ApiModel

# The names of objects may have dots; those of what is made for them, and labels with them, may not.
LABEL_NAME = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SERVICE_NAME = "^[a-z]([-a-z0-9]*[a-z0-9])?$"


@dataclass(frozen=True)
class PrinterColumn:
    """A column of ``kubectl get``; priority 1 shows with ``-o wide`` only."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0


@dataclass(frozen=True)
class Scale:
    """Paths of the scale subresource."""

    spec_replicas: str
    status_replicas: str
    selector: str


@dataclass(frozen=True)
class KindInfo:
    """One kind of the API."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    namespaced: bool
    spec: "type[ApiModel]"
    status: "type[ApiModel]"
    columns: tuple[PrinterColumn, ...] = field(default=())
    scale: Scale | None = None
    selectable: tuple[str, ...] = ()
    """Paths that ``--field-selector`` and watches can filter by; at most 8, of texts, numbers and booleans."""
    max_name: int = 50
    """Longest name, such that names of children still fit 63 characters."""
    name_pattern: str | None = LABEL_NAME
    """Regular expression that names have to match; None where the kind's own rules say all about its names."""
    rules: tuple[dict[str, str], ...] = ()
    """Further CEL rules of the whole object, which alone see its name beside its spec."""

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"

    @property
    def path(self) -> str:
        """API path of the group and version."""
        return f"/apis/{GROUP}/{VERSION}"
