"""Models in a registry, one layer per file, named as ``oras push`` names them."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from rm_api.names import MEDIA_TYPE_MANIFEST, OCI_ANNOTATION_TITLE

from rm_abstract.core.errors import BadInput
from rm_abstract.store.layers import file_chunks
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Descriptor, Registry, sha256

SCHEME: Final = "oci://"
_ARTIFACT_TYPE: Final = "application/vnd.unknown.artifact.v1"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
FILE_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
EMPTY: Final = b"{}"
"""Config of what is no image, in the words of the OCI."""


def files_manifest(layers: Sequence[Descriptor], artifact_type: str = _ARTIFACT_TYPE) -> bytes:
    """Manifest of something that is files, each a layer with its name as the title. Its config is ``EMPTY``."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "artifactType": artifact_type,
        "config": Descriptor(_EMPTY_TYPE, sha256(EMPTY), len(EMPTY), {}).to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def push_model(directory: Path, reference: str) -> str:
    """Push the files of ``directory`` to ``oci://HOST/REPOSITORY:TAG``, and return the manifest's digest.

    Hidden files are left out. The same files give the same digest. Raises BadInput where there is no config.json.
    """
    target = Reference.parse(reference.removeprefix(SCHEME))
    if target.digest:
        raise BadInput(f"a model is pushed to a tag, not to the digest in {reference}")
    if not (directory / "config.json").is_file():
        raise BadInput(f"{directory} is no model: it has no config.json")
    registry = Registry()
    try:
        layers = []
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            name = path.relative_to(directory).as_posix()
            if any(part.startswith(".") for part in name.split("/")):
                continue
            digest = hashlib.sha256()
            for chunk in file_chunks(path):
                digest.update(chunk)
            layer = Descriptor(
                FILE_TYPE, f"sha256:{digest.hexdigest()}", path.stat().st_size, {OCI_ANNOTATION_TITLE: name}
            )
            registry.put_blob(target, layer.digest, layer.size, partial(file_chunks, path))
            layers.append(layer)
        registry.put_blob(target, sha256(EMPTY), len(EMPTY), lambda: [EMPTY])
        return registry.put_manifest(target, files_manifest(layers))
    finally:
        registry.close()
