"""Resources, what they can do, how something is built for them, and what was built."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from rm_api import accelerator_types

from rm_abstract.core.digests import digest_of, digests, files_of, hash_of
from rm_abstract.core.errors import ArtifactMismatch, BadInput

ARTIFACT_FILE: Final = "rma-artifact.json"
"""File at the root of every artifact that says what it is. Of an artifact that is one file it lies beside it, with the
file's name before its own."""
ARTIFACT_SCHEMA: Final = 1


class _Word(StrEnum):
    """An enumeration whose values are found whatever their case, with or without ``-`` and ``_`` in them."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        wanted = _bare(value) if isinstance(value, str) else ""
        return next((member for member in cls if _bare(member.value) == wanted), None)


def _bare(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")


class ResourceType(_Word):
    """Type of a resource."""

    GPU = "GPU"
    NPU = "NPU"
    PIM = "PIM"
    FPGA = "FPGA"
    CPU = "CPU"
    REMOTE = "REMOTE"
    HYBRID = "HYBRID"
    """Several resources that are used as one; its attribute ``members`` has their ids."""


DEFAULT_PRIORITY: Final[Mapping[ResourceType, int]] = {
    **{ResourceType(kind.value): priority for kind, priority in accelerator_types.DEFAULT_PRIORITY.items()},
    ResourceType.HYBRID: -50,
}
"""The usual order of types, the higher first: as AcceleratorResources have it, and what is made of several last."""


class BuildInterface(_Word):
    """How a compiler is driven."""

    CLI = "CLI"
    CONFIG_FILE = "ConfigFile"
    PYTHON = "Python"
    SHARED_LIBRARY = "SharedLibrary"
    WARMUP = "Warmup"


_EnumT = TypeVar("_EnumT", bound=StrEnum)


def _member(kind: type[_EnumT], value: str, what: str) -> _EnumT:
    try:
        return kind(value)
    except ValueError:
        raise BadInput(f"{what} {value!r} is not known; there are {', '.join(kind)}") from None


def _words(values: Sequence[str], what: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise BadInput(f"{what} is a list of words; write [{values!r}]")
    return tuple(values)


@dataclass(frozen=True)
class Resource:
    """Something that a model can run on: one device, an endpoint, or several of them as one."""

    id: str
    """Unique among the resources of a machine, such as ``npu0``."""
    type: ResourceType
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Facts, such as ``vendor``, ``product``, ``serial``, ``node``, ``driver``, ``memory_bytes``."""
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.id:
            raise BadInput("a resource needs an id, such as npu0")
        object.__setattr__(self, "type", _member(ResourceType, self.type, "the type of resource"))
        object.__setattr__(self, "attributes", dict(self.attributes))
        object.__setattr__(self, "tags", _words(self.tags, "tags"))

    def with_attributes(self, **attributes: Any) -> "Resource":
        """A copy with further attributes."""
        return replace(self, attributes={**self.attributes, **attributes})

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the resources that a HYBRID one is made of; of the others, none."""
        return tuple(self.attributes.get("members", ())) if self.type is ResourceType.HYBRID else ()

    @classmethod
    def hybrid(cls, id: str, members: Sequence["Resource"]) -> Self:  # noqa: A002 (the field's name)
        """Several resources as one, with the tags that any of them has. Raises BadInput for fewer than two."""
        if len({member.id for member in members}) < 2:
            raise BadInput(f"the hybrid resource {id} needs at least two members")
        tags = tuple(dict.fromkeys(tag for member in members for tag in member.tags))
        return cls(id, ResourceType.HYBRID, {"members": [member.id for member in members]}, tags)


@dataclass(frozen=True)
class Capability:
    """What resources can do, limits included. ``None`` means that there is no limit known."""

    max_batch_size: int | None = None
    max_seq_len: int | None = None
    """Tokens of prompt and answer together."""
    dtype: Sequence[str] = ()
    """Number formats, the preferred one first; empty means not known."""
    requires_precompile: bool = False
    optimized_for: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _words(self.dtype, "dtype"))
        object.__setattr__(self, "optimized_for", _words(self.optimized_for, "optimized_for"))
        for name in ("max_batch_size", "max_seq_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"{name} is {value}; it is at least 1, or None where no limit is known")

    def covers(self, needed: "Capability") -> bool:
        """True if whoever needs ``needed`` can be served: limits at least as high, and one of the number formats.

        ``optimized_for`` of ``needed`` are words that must all be there. What is not known here is taken to suffice.
        """
        limits = ((self.max_batch_size, needed.max_batch_size), (self.max_seq_len, needed.max_seq_len))
        return (
            all(own is None or wanted is None or own >= wanted for own, wanted in limits)
            and (not self.dtype or not needed.dtype or bool(set(self.dtype) & set(needed.dtype)))
            and set(needed.optimized_for) <= set(self.optimized_for)
        )


@dataclass(frozen=True)
class BuildStep:
    """One command of a build. ``${NAME}`` in it stands for a variable of the workload contract, ``$$`` for a dollar."""

    name: str
    command: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    """Paths that must exist and not be empty afterwards."""


@dataclass(frozen=True)
class BuildProfile:
    """How a model is compiled for a type of resource: by the commands of ``steps``, or by one that ``flags`` become."""

    target_resource_type: ResourceType
    compiler: str
    """Name of the compiler."""
    steps: tuple[BuildStep, ...] = ()
    """The commands; empty where an adapter makes one of the flags."""
    compiler_version: str = ""
    interface: str = BuildInterface.CLI
    flags: Mapping[str, Any] = field(default_factory=dict)
    """With steps: values of the variables that they name, such as ``TARGET`` and ``DTYPE``. Without: options of the
    compiler (texts, numbers, truths, lists of texts; None leaves one out)."""
    output_format: str = ""
    products: tuple[str, ...] = ()
    """Products that the result runs on; empty means any."""
    drivers: tuple[str, ...] = ()
    """Driver versions that load the result; empty means any."""

    def __post_init__(self) -> None:
        kind = _member(ResourceType, self.target_resource_type, "the type of resource")
        object.__setattr__(self, "target_resource_type", kind)
        object.__setattr__(self, "interface", _member(BuildInterface, self.interface, "the interface"))
        object.__setattr__(self, "flags", dict(self.flags))
        object.__setattr__(self, "steps", tuple(self.steps))
        for name in ("products", "drivers"):
            object.__setattr__(self, name, _words(getattr(self, name), name))


@dataclass(frozen=True)
class BuildArtifact:
    """A compiled model: a directory, or one file."""

    path: Path
    key: str
    """Hash of everything that the result depends on."""
    format: str
    """Name of the format, by which a runtime plugin knows what it is given."""
    products: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the tools that made it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is known of it, such as ``model_id``; values of JSON."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Digest of each file by its path within the directory, or by its own name; empty where none were taken."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        for name in ("products", "drivers"):
            object.__setattr__(self, name, _words(getattr(self, name), name))

    @property
    def model_id(self) -> str:
        """The model's name, where it was said; else empty."""
        return str(self.metadata.get("model_id", ""))

    @property
    def digest(self) -> str:
        """Digest of the content, ``sha256:…``; empty where no digests were taken. The same for the same files."""
        if not self.files:
            return ""
        return "sha256:" + hash_of(dict(self.files))

    @property
    def description(self) -> Path:
        """The file that describes it."""
        return self.path / ARTIFACT_FILE if self.path.is_dir() else _beside(self.path)

    def describe(self) -> dict[str, Any]:
        """The content of ``rma-artifact.json``."""
        optional = {"metadata": dict(self.metadata), "files": dict(self.files)}
        return {
            "schema": ARTIFACT_SCHEMA,
            "key": self.key,
            "format": self.format,
            "products": list(self.products),
            "drivers": list(self.drivers),
            "versions": dict(self.versions),
            **{name: value for name, value in optional.items() if value},
        }

    def write(self) -> None:
        """Write ``rma-artifact.json`` where it belongs, byte for byte the same for the same content."""
        self.description.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The description as it is written. Raises BadInput where the metadata are no JSON."""
        try:
            return json.dumps(self.describe(), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise BadInput(f"the metadata of an artifact must be JSON: {error}") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """The artifact at ``path``. Raises ArtifactMismatch where its description is missing or not valid."""
        file = path / ARTIFACT_FILE if not path.is_file() else _beside(path)
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactMismatch(f"{path} is no artifact: it has no {file.name}") from None
        except ValueError as error:
            raise ArtifactMismatch(f"{file} is not valid JSON: {error}") from None
        if not isinstance(raw, dict) or raw.get("schema") != ARTIFACT_SCHEMA:
            raise ArtifactMismatch(f"{file} has a schema that this version does not know; it knows {ARTIFACT_SCHEMA}")
        key, format_ = raw.get("key"), raw.get("format")
        if not (isinstance(key, str) and key and isinstance(format_, str) and format_):
            raise ArtifactMismatch(f"{file} lacks its key or its format")
        lists = [raw.get("products", []), raw.get("drivers", [])]
        if not all(isinstance(values, list) and all(isinstance(value, str) for value in values) for values in lists):
            raise ArtifactMismatch(f"{file}: products and drivers are not lists of strings")
        versions, metadata, files = (raw.get(name, {}) for name in ("versions", "metadata", "files"))
        for name, values in {"versions": versions, "files": files}.items():
            if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
                raise ArtifactMismatch(f"{file}: {name} is not an object of strings")
        if not isinstance(metadata, dict):
            raise ArtifactMismatch(f"{file}: metadata is not an object")
        return cls(path, key, format_, tuple(lists[0]), tuple(lists[1]), versions, metadata, files)

    def sealed(self) -> "BuildArtifact":
        """A copy with the digests of the files that are there now."""
        return replace(self, files=digests(self.path, besides=ARTIFACT_FILE))

    def validate(self) -> None:
        """Check that it is there, that its description says what this object says, and that every file has its digest.

        Without digests, that it is not empty. Raises ArtifactMismatch with the first thing that is wrong.
        """
        described = type(self).read(self.path)
        if described != self:
            raise ArtifactMismatch(f"{self.path} is another artifact than it was: its description has changed")
        present = dict(files_of(self.path, besides=ARTIFACT_FILE))
        if not any(path.is_symlink() or path.stat().st_size for path in present.values()):
            raise ArtifactMismatch(f"{self.path} is empty")
        if not self.files:
            return
        for name in sorted(self.files.keys() ^ present.keys()):
            raise ArtifactMismatch(f"{self.path} {'lacks' if name in self.files else 'has grown by'} {name}")
        for name, path in present.items():
            if digest_of(path) != self.files[name]:
                raise ArtifactMismatch(f"{self.path}: {name} is damaged, it does not have the digest that it had")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{ARTIFACT_FILE}")
