"""Models in an OCI registry: layers that are files, named by their titles, or tars."""

import hashlib
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from rm_api.names import OCI_ANNOTATION_TITLE

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.sources.base import ModelSource, SourceFile, hash_chunks, hash_file
from rm_abstract.sources.safetensors import MAX_HEADER, header_length
from rm_abstract.store.layers import extract, safe_name
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Descriptor, Registry
from rm_abstract.store.tar import walk

_UNPACK: Final = "io.deis.oras.content.unpack"
"""Annotation by which oras marks a layer that is a directory packed as a tar, although it has a title."""
_TAR: Final = (".tar", ".tar+gzip", ".tar.gzip")


def is_tar(layer: Descriptor) -> bool:
    """True if a layer is a tar of files; oras gives plain files the media type of a tar, so the title decides."""
    titled = OCI_ANNOTATION_TITLE in layer.annotations and layer.annotations.get(_UNPACK) != "true"
    return not titled and layer.media_type.endswith(_TAR)


class OciSource(ModelSource):
    """A model at ``HOST/REPOSITORY[:TAG][@DIGEST]``; the revision is the manifest's digest.

    The digests of titled files are those of their layers, so nothing is downloaded to know them. Tars are read through
    once when the source is opened, because neither the files in them nor their digests can be known otherwise.
    """

    def __init__(self, location: str) -> None:
        self._reference = Reference.parse(location)
        self._registry = Registry()
        self._titled: dict[str, Descriptor] = {}
        self._tars: list[Descriptor] = []
        self._heads: dict[str, bytes] = {}

    def open(self, revision: str | None) -> None:
        """See the base class."""
        if revision:
            self._reference = self._reference.at(revision)
        location = str(self._reference)
        manifest = self._registry.manifest(self._reference)
        self.revision = manifest.digest
        for layer in manifest.layers:
            if is_tar(layer):
                self._tars.append(layer)
            elif title := layer.annotations.get(OCI_ANNOTATION_TITLE):
                name = _name(title)
                if name in self._titled:
                    raise BadInput(f"{location} has two layers with the title {title!r}")
                self._titled[name] = layer
        if not self._titled and not self._tars:
            raise BadInput(f"{location} is no model: its layers are neither titled files nor tars")
        scanned = self._scan() if self._tars else {}
        if scanned.keys() & self._titled.keys():
            raise BadInput(f"{location} has {min(scanned.keys() & self._titled.keys())} both as a layer and in a tar")
        titled = {name: SourceFile(layer.size, layer.digest) for name, layer in self._titled.items()}
        self.files = titled | scanned

    def _scan(self) -> dict[str, SourceFile]:
        files: dict[str, SourceFile] = {}

        def visit(member: tarfile.TarInfo, content: Iterator[memoryview]) -> None:
            name = safe_name(member.name)
            if name is None or member.isdir():
                return
            if not member.isfile():
                raise BadInput(f"{member.name} in a layer is no regular file; a model's files must be")
            digest, self._heads[name] = _read_member(content, member)
            files[name] = SourceFile(member.size, digest)

        for layer in self._tars:
            walk(self._registry.blob(self._reference, layer), visit, compressed=_compressed(layer))
        return files

    def read(self, name: str, start: int, length: int) -> bytes:
        """See the base class."""
        if name in self._titled and start == 0 and length >= self.files[name].size:
            return b"".join(self.stream(name))  # a whole file's digest can be checked, that of a part cannot
        if name in self._titled:
            return self._registry.read_blob(self._reference, self._titled[name], start, length)
        head = self._heads[name][start : start + length]
        if len(head) < min(length, self.files[name].size - start):
            raise BadInput(f"{name} is larger than can be read from inside of a tar")
        return head

    def reads_parts(self, name: str) -> bool:
        """See the base class: a tar can be read only from its beginning."""
        return name in self._titled

    def stream(self, name: str) -> Iterator[bytes]:
        """See the base class; only for files that are layers."""
        return self._registry.blob(self._reference, self._titled[name])

    def fetch(self, directory: Path, names: Collection[str] | None = None) -> dict[str, str]:
        """See the base class. The registry client has verified every layer's digest when this returns."""
        digests = {}
        wanted = frozenset(self.files if names is None else names)
        for layer in self._tars:
            blob = self._registry.blob(self._reference, layer)
            extract(blob, directory, compressed=_compressed(layer), only=wanted.__contains__)
        for name in sorted(wanted):
            path = directory / name
            if name in self._titled:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as out:
                    digests[name], size = hash_chunks(self.stream(name), out)
            else:
                digests[name], size = hash_file(path)
            self.check(name, size, digests[name])
        return digests

    def close(self) -> None:
        """See the base class."""
        self._registry.close()


def _name(title: str) -> str:
    try:
        name = safe_name(title)
    except ArtifactMismatch:
        name = None
    if name is None:
        raise BadInput(f"a layer has the title {title!r}, which is no path inside of a directory")
    return name


def _compressed(layer: Descriptor) -> bool:
    return layer.media_type.endswith("gzip")


def _read_member(content: Iterator[memoryview], member: tarfile.TarInfo) -> tuple[str, bytes]:
    digest, head, wanted = hashlib.sha256(), bytearray(), 8
    for chunk in content:
        digest.update(chunk)
        if len(head) < wanted:
            head += chunk
            if member.name.endswith(".safetensors"):
                wanted = min(8 + header_length(bytes(head)), MAX_HEADER) if len(head) >= 8 else 8
            elif member.name.endswith(".json"):
                wanted = min(member.size, MAX_HEADER)
    return "sha256:" + digest.hexdigest(), bytes(head[:wanted])
