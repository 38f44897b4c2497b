"""Models in a registry, one layer per file, named as ``oras push`` names them."""

import hashlib
import json
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
_FILE_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"


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
                _FILE_TYPE, f"sha256:{digest.hexdigest()}", path.stat().st_size, {OCI_ANNOTATION_TITLE: name}
            )
            registry.put_blob(target, layer.digest, layer.size, partial(file_chunks, path))
            layers.append(layer)
        empty = b"{}"
        registry.put_blob(target, sha256(empty), len(empty), lambda: [empty])
        manifest = {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_MANIFEST,
            "artifactType": _ARTIFACT_TYPE,
            "config": Descriptor(_EMPTY_TYPE, sha256(empty), len(empty), {}).to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        return registry.put_manifest(target, json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
    finally:
        registry.close()
