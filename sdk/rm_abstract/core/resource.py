"""Resources, what they can do, how something is built for them, and what was built."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from rm_abstract.core.errors import ArtifactMismatch

ARTIFACT_FILE: Final = "rma-artifact.json"
"""File at the root of every artifact that says what it is."""
ARTIFACT_SCHEMA: Final = 1


class ResourceType(StrEnum):
    """Type of a resource."""

    GPU = "GPU"
    NPU = "NPU"
    PIM = "PIM"
    FPGA = "FPGA"
    CPU = "CPU"
    REMOTE = "REMOTE"


@dataclass(frozen=True)
class Resource:
    """Something that a model can run on: one device, or an endpoint."""

    id: str
    """Unique among the resources of a machine, such as ``npu0``."""
    type: ResourceType
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Facts, such as ``vendor``, ``product``, ``serial``, ``node``, ``driver``, ``memory_bytes``."""
    tags: tuple[str, ...] = ()

    def with_attributes(self, **attributes: Any) -> "Resource":
        """A copy with further attributes."""
        return replace(self, attributes={**self.attributes, **attributes})


@dataclass(frozen=True)
class Capability:
    """What resources can do, limits included. ``None`` means that there is no limit known."""

    max_batch_size: int | None = None
    max_seq_len: int | None = None
    dtype: tuple[str, ...] = ()
    """Number formats, the preferred one first."""
    requires_precompile: bool = False
    optimized_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildStep:
    """One command of a build. ``${NAME}`` in it stands for a variable of the workload contract, ``$$`` for a dollar."""

    name: str
    command: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    """Paths that must exist and not be empty afterwards."""


@dataclass(frozen=True)
class BuildProfile:
    """How a model is compiled for a type of resource."""

    target_resource_type: ResourceType
    compiler: str
    """Name of the compiler, for people."""
    steps: tuple[BuildStep, ...]
    compiler_version: str = ""
    interface: str = "CLI"
    flags: Mapping[str, str] = field(default_factory=dict)
    """Values of the variables that the steps name, such as ``TARGET`` and ``DTYPE``."""
    output_format: str = ""
    products: tuple[str, ...] = ()
    """Products that the result runs on; empty means any."""
    drivers: tuple[str, ...] = ()
    """Driver versions that load the result; empty means any."""


@dataclass(frozen=True)
class BuildArtifact:
    """A compiled model in a directory."""

    path: Path
    key: str
    """Hash of everything that the result depends on."""
    format: str
    """Name of the format, by which a runtime plugin knows what it is given."""
    products: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The content of ``rma-artifact.json``."""
        return {
            "schema": ARTIFACT_SCHEMA,
            "key": self.key,
            "format": self.format,
            "products": list(self.products),
            "drivers": list(self.drivers),
            "versions": dict(self.versions),
        }

    def write(self) -> None:
        """Write ``rma-artifact.json`` into the artifact's directory, byte for byte the same for the same content."""
        text = json.dumps(self.describe(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (self.path / ARTIFACT_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The artifact in directory ``path``. Raises ArtifactMismatch where its description is missing or not valid."""
        file = path / ARTIFACT_FILE
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactMismatch(f"{path} is no artifact: it has no {ARTIFACT_FILE}") from None
        except ValueError as error:
            raise ArtifactMismatch(f"{file} is not valid JSON: {error}") from None
        if not isinstance(raw, dict) or raw.get("schema") != ARTIFACT_SCHEMA:
            raise ArtifactMismatch(f"{file} has a schema that this version does not know; it knows {ARTIFACT_SCHEMA}")
        key, format_, versions = raw.get("key"), raw.get("format"), raw.get("versions", {})
        lists = [raw.get("products", []), raw.get("drivers", [])]
        if not (isinstance(key, str) and key and isinstance(format_, str) and format_):
            raise ArtifactMismatch(f"{file} lacks its key or its format")
        if not all(isinstance(values, list) and all(isinstance(value, str) for value in values) for values in lists):
            raise ArtifactMismatch(f"{file}: products and drivers are not lists of strings")
        if not isinstance(versions, dict) or not all(isinstance(value, str) for value in versions.values()):
            raise ArtifactMismatch(f"{file}: versions is not an object of strings")
        return cls(path, key, format_, tuple(lists[0]), tuple(lists[1]), versions)
