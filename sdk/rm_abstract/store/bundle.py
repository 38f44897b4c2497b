"""Bundles: what a deployment needs, in one OCI image layout that is carried to where there is no network.

A bundle's index lists the models and artifacts, each as it is in a registry, and one manifest of ours, whose files say
what they are for: ``bundle.json`` (``Contents``), ``objects.yaml`` and ``images.txt``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from rm_api.names import (
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_MANIFEST,
    OCI_ANNOTATION_KEY,
    OCI_ANNOTATION_PREFIX,
    OCI_ANNOTATION_TITLE,
)

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.http import NotFound
from rm_abstract.sources import open_source
from rm_abstract.sources.facts import weight_files, weights_digest
from rm_abstract.store.backend import Backend, Backends
from rm_abstract.store.image import image
from rm_abstract.store.models import EMPTY, FILE_TYPE, SCHEME, files_manifest
from rm_abstract.store.oci_layout import Layout, LayoutWriter
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Descriptor, Manifest

SCHEMA: Final = 1
"""Version of what a bundle's files say. A reader knows this one and those before it."""
ANNOTATION_SCHEMA: Final = OCI_ANNOTATION_PREFIX + "bundle.schema"
TYPE: Final = "application/vnd.rm-abstract.bundle.v1"
NAME: Final = "rm-abstract-bundle"
"""Under which name the bundle's own manifest is in its index."""
CONTENTS: Final = "bundle.json"
OBJECTS: Final = "objects.yaml"
IMAGES: Final = "images.txt"
_REF_NAME: Final = "org.opencontainers.image.ref.name"
_JSON: Final = "application/json"
_TEXT: Final = {OBJECTS: "application/yaml", IMAGES: "text/plain"}

Say = Callable[[str], None]
"""Takes lines for a person who waits."""
Part = TypeVar("Part")


@dataclass(frozen=True)
class Model:
    """A model with its weights."""

    source: str
    """Where it was, as the ModelDeployment names it."""
    revision: str
    digest: str
    """Digest of its manifest."""
    size: int
    """Bytes of its files."""


@dataclass(frozen=True)
class Artifact:
    """A compiled model."""

    namespace: str
    name: str
    key: str
    digest: str
    """Digest of its manifest."""
    size: int
    """Bytes of its layers."""
    spec: dict[str, Any]
    """Spec of its BuildArtifact."""


@dataclass(frozen=True)
class Deployment:
    """A ModelDeployment, whose object is in objects.yaml."""

    namespace: str
    name: str
    facts: dict[str, Any]
    """What its model is."""
    artifacts: list[str]
    """Names of the artifacts that it uses."""


@dataclass(frozen=True)
class Image:
    """A container image that the deployments need where they go. Images are not in the bundle."""

    image: str
    digest: str | None
    """What the name stood for, where that could be told."""
    used_by: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Contents:
    """What a bundle holds."""

    made_by: str
    """Version of the program that made it."""
    models: list[Model]
    artifacts: list[Artifact]
    deployments: list[Deployment]
    images: list[Image]


def _copy(backend: Backend, source: Reference, manifest: Manifest, writer: LayoutWriter, say: Say) -> Descriptor:
    """Put a manifest, and all that it names, into a layout, byte for byte."""
    for blob in (manifest.config, *manifest.layers):
        if not writer.has(blob.digest, blob.size):
            say(f"{source.repository}: {blob.digest[:19]}, {blob.size} bytes")
            writer.stream(backend.blob(source, blob), blob.digest, blob.size)
    return Descriptor(MEDIA_TYPE_MANIFEST, *writer.add(manifest.body), {})


def add_artifact(backends: Backends, location: str, key: str, writer: LayoutWriter, say: Say) -> tuple[Descriptor, int]:
    """Put the artifact at ``location``, which has a digest, into a layout; its manifest and size.

    Raises ArtifactMismatch where it is not the one of ``key``, or not complete.
    """
    backend, source = backends.at(location)
    if not source.digest:
        raise BadInput(f"{location} does not name a digest")
    try:
        manifest = image(backend, source, {OCI_ANNOTATION_KEY: key})
        return _copy(backend, source, manifest, writer, say), manifest.size
    except NotFound as error:
        raise ArtifactMismatch(f"{location} is not complete in the store: {error}") from error


def add_model(
    source: str, revision: str, expected_weights: str, writer: LayoutWriter, say: Say
) -> tuple[Descriptor, int]:
    """Put the model at ``source`` into a layout; its manifest and the bytes of its files.

    Raises ArtifactMismatch where it is no longer at ``revision``, or its weights have another digest.
    """
    with open_source(source, revision) as opened:
        if opened.revision != revision:
            raise ArtifactMismatch(f"{source} has changed: it was {revision}, and is {opened.revision} now")
        weights = weight_files(opened)
        if source.startswith(SCHEME):
            # It is pinned by its manifest's digest, and goes on as it is.
            with Backends() as backends:
                backend, at = backends.at(str(Reference.parse(source.removeprefix(SCHEME)).at(revision)))
                manifest = backend.manifest(at)
                return _copy(backend, at, manifest, writer, say), manifest.size
        layers, found = [], {}
        for file, known in opened.files.items():
            of = json.dumps([source, revision, file])
            noted = writer.noted(of)
            if noted is None and known.digest and writer.has(known.digest, known.size):
                noted = (known.digest, known.size)
            if noted is None:
                say(f"{source}: {file}, {known.size} bytes")
                noted = writer.stream(opened.stream(file), known.digest, known.size)
                writer.note(of, *noted)
            layers.append(Descriptor(FILE_TYPE, *noted, {OCI_ANNOTATION_TITLE: file}))
            if file in weights:
                found[file] = noted[0]
    if weights_digest(found) != expected_weights:
        raise ArtifactMismatch(f"the weights of {source} have digest {weights_digest(found)}, not {expected_weights}")
    writer.add(EMPTY)
    digest, size = writer.add(files_manifest(sorted(layers, key=lambda layer: layer.annotations[OCI_ANNOTATION_TITLE])))
    return Descriptor(MEDIA_TYPE_MANIFEST, digest, size, {}), sum(layer.size for layer in layers)


def finish(writer: LayoutWriter, contents: Contents, objects: str, manifests: Sequence[Descriptor]) -> None:
    """Write what the bundle says of itself, and make it visible."""
    said = json.dumps({"schema": SCHEMA, **asdict(contents)}, sort_keys=True, indent=1)
    images = "".join(f"{each.image}{f'@{each.digest}' if _unpinned(each) else ''}\n" for each in contents.images)
    layers = []
    for name, text in ((CONTENTS, said), (OBJECTS, objects), (IMAGES, images)):
        digest, size = writer.add(text.encode())
        layers.append(Descriptor(_TEXT.get(name, _JSON), digest, size, {OCI_ANNOTATION_TITLE: name}))
    writer.add(EMPTY)
    digest, size = writer.add(files_manifest(layers, TYPE))
    own = named(Descriptor(MEDIA_TYPE_MANIFEST, digest, size, {}), NAME).to_json() | {"artifactType": TYPE}
    listed = [{**each.to_json(), **_platform(writer, each)} for each in manifests]
    writer.finish([own, *listed], {ANNOTATION_SCHEMA: str(SCHEMA)})


def _unpinned(image: Image) -> bool:
    return image.digest is not None and "@" not in image.image


def _platform(writer: LayoutWriter, manifest: Descriptor) -> dict[str, Any]:
    """What tools that choose by platform go by; an artifact is an image."""
    config = Manifest.of(writer.read(manifest), manifest.digest).config
    if config.media_type != MEDIA_TYPE_CONFIG:
        return {}
    said = json.loads(writer.read(config))
    return {"platform": {"os": said["os"], "architecture": said["architecture"]}}


def named(descriptor: Descriptor, name: str) -> Descriptor:
    """The descriptor as an index lists it: under a name."""
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, {_REF_NAME: name})


class Bundle:
    """A bundle that is read. BadInput where it is none, or of a later schema; ArtifactMismatch where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout(path)
        schema = str(self.layout.annotations.get(ANNOTATION_SCHEMA, ""))
        if not schema.isdecimal():
            raise BadInput(f"{path} is an OCI image layout, but no bundle of rm-abstract artifacts export")
        if int(schema) > SCHEMA:
            raise BadInput(
                f"{path} was made by a later rm-abstract: its schema is {schema}, and this version reads {SCHEMA}; "
                "use that version, or a later one, to import it"
            )
        own = [each for each in self.layout.manifests() if each.annotations.get(_REF_NAME) == NAME]
        if len(own) != 1:
            raise ArtifactMismatch(f"{path} is damaged: its index has {len(own)} entries named {NAME}")
        self._files = {part.annotations.get(OCI_ANNOTATION_TITLE): part for part in self.layout.parts(own[0])[1:]}
        self.contents = self._contents()
        listed = {each.digest: each for each in self.layout.manifests()}
        self._manifests: Mapping[str, Descriptor] = listed
        held = [*(each.digest for each in self.contents.models), *(each.digest for each in self.contents.artifacts)]
        for digest in held:
            if digest not in listed:
                raise ArtifactMismatch(f"{path} is damaged: {digest} is not in its index")

    def _text(self, name: str) -> bytes:
        if name not in self._files:
            raise ArtifactMismatch(f"{self.layout.path} is damaged: it has no {name}")
        return self.layout.read(self._files[name])

    @property
    def objects(self) -> bytes:
        """The objects in YAML."""
        return self._text(OBJECTS)

    def _contents(self) -> Contents:
        try:
            said = json.loads(self._text(CONTENTS))
            return Contents(
                made_by=str(said["made_by"]),
                models=[_part(Model, each) for each in said["models"]],
                artifacts=[_part(Artifact, each) for each in said["artifacts"]],
                deployments=[_part(Deployment, each) for each in said["deployments"]],
                images=[_part(Image, each) for each in said["images"]],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactMismatch(f"{self.layout.path} is damaged: {CONTENTS} cannot be read ({error!r})") from None

    def push(self, digest: str, backends: Backends, to: str, say: Say) -> bool:
        """Push one of the manifests to the tag ``to``, after all that it names; False where it is there already.

        An artifact of the same key that is there already stays: it was built there.
        """
        backend, target = backends.at(to)
        found = backend.resolve(target)
        if found == digest:
            return False
        manifest = self.layout.manifest(self._manifests[digest])
        key = manifest.annotations.get(OCI_ANNOTATION_KEY)
        if found and key and backend.manifest(target).annotations.get(OCI_ANNOTATION_KEY) == key:
            say(f"{target}: another build of the same artifact is there, and stays")
            return False
        for blob in (manifest.config, *manifest.layers):
            say(f"{target.repository}: {blob.digest[:19]}, {blob.size} bytes")
            backend.put_blob(target, blob.digest, blob.size, partial(self.layout.chunks, blob))
        backend.put_manifest(target, manifest.body)
        return True


def _part(kind: type[Part], raw: Mapping[str, Any]) -> Part:
    """``raw`` as a dataclass; what a later version may have added is left out."""
    return kind(**{each.name: raw[each.name] for each in fields(kind)})  # type: ignore[arg-type]
