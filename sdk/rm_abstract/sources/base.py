"""What every source of models offers."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from rm_abstract.core.embedding import MODULE_CONFIG
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.store.layers import file_chunks

MODEL_FILES: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".safetensors")
"""Endings of what a model needs. Weights in other formats and pictures stay where they are."""
CODE_FILES: Final = (".py",)
"""Endings of the author's code. It is listed, to be told of and pinned, and fetched only where it may be run."""
_WEIGHTS: Final = (".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".pt", ".pth")
"""Endings of weights, in formats that a registry may hold, too."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a model."""

    size: int
    digest: str = ""
    """``sha256:…`` of its content, where the source knows it."""


class ModelSource(ABC):
    """A model in Hugging Face layout at one revision. Methods raise BadInput, SourceUnreachable, ArtifactMismatch."""

    everything: bool = False
    """All that is there is meant, in directories too, and not only what a model needs. Set before ``open``."""
    pinned: bool = True
    """The revision is asked for; without it a source that would have to read all of its files leaves it empty."""
    local: bool = False
    """True where the files are in a volume of the container already."""
    revision: str
    """What it is pinned to: a digest, or a commit."""
    files: Mapping[str, SourceFile]
    """Every file that is fetched, by its path in the model's directory."""

    @abstractmethod
    def open(self, revision: str | None) -> None:
        """Find out what is at ``revision``, or there now. Called once, before anything else."""

    def means(self, name: str) -> bool:
        """True if a file that is there is one to fetch."""
        plain = "/" not in name and name.endswith((*MODEL_FILES, *CODE_FILES))
        return self.everything or plain or MODULE_CONFIG.fullmatch(name) is not None

    @abstractmethod
    def read(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes of a file from ``start``; less at its end. Safe to call from several threads.

        Where the source does not read parts of the file, only of config.json and the heads of weights.
        """

    def reads_parts(self, name: str) -> bool:
        """True if any part of the file can be read without the rest."""
        return name in self.files

    @abstractmethod
    def stream(self, name: str) -> Iterator[bytes]:
        """A whole file in pieces."""

    def digest(self, name: str) -> str:
        """Digest of a file's content; it is read for that where the source does not know it."""
        known = self.files[name].digest
        if known:
            return known
        digest, size = hash_chunks(self.stream(name))
        self.check(name, size, digest)
        return digest

    def fetch(self, directory: Path, names: Collection[str] | None = None) -> dict[str, str]:
        """Write the files ``names``, or every one, under ``directory``, and return the digests of what was written."""
        digests = {}
        for name in self.files if names is None else names:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                digests[name], size = hash_chunks(self.stream(name), out)
            self.check(name, size, digests[name])
        return digests

    def check(self, name: str, size: int, digest: str) -> None:
        """Raise ArtifactMismatch where a file's size or digest is not what the source announced."""
        file = self.files[name]
        if size != file.size:
            raise ArtifactMismatch(f"{name} has {size} bytes, but was announced with {file.size}")
        if file.digest and digest != file.digest:
            raise ArtifactMismatch(f"{name} has digest {digest}, but was announced as {file.digest}")

    def require(self, name: str) -> SourceFile:
        """The file, or BadInput where the model has none of that name."""
        if name not in self.files:
            raise BadInput(f"the model has no {name}")
        return self.files[name]

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


def is_weights(name: str) -> bool:
    """True if a file holds weights, by its name."""
    return name.endswith(_WEIGHTS)


def is_code(name: str) -> bool:
    """True if a file holds code of the model's author, by its name. It counts for no revision that is made of files."""
    return name.endswith(CODE_FILES)


def hash_chunks(chunks: Iterable[bytes], out: BinaryIO | None = None) -> tuple[str, int]:
    """Digest and number of the bytes in ``chunks``, which are written to ``out`` where that is given."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if out is not None:
            out.write(chunk)
    return "sha256:" + digest.hexdigest(), size


def hash_file(path: Path) -> tuple[str, int]:
    """Digest and size of a file."""
    return hash_chunks(file_chunks(path))
