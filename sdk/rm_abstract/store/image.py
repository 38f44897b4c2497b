"""Trees as OCI images: layers, config, and the manifest last; read again without believing any of it."""

import json
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rm_api.names import MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.http import ReadOnly
from rm_abstract.store.backend import Backend
from rm_abstract.store.layers import Layer
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Descriptor, Manifest, sha256

READ_ONLY_SECONDS: Final = 1800.0
"""How long a store may be read-only until a push gives up."""
_PAUSE: Final = 2.0
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_MAX_CONFIG: Final = 4 << 20
_MAX_LAYERS: Final = 10_000
_MAX_BYTES: Final = 1 << 50


def push_image(
    backend: Backend, target: Reference, layers: Iterable[Layer], annotations: Mapping[str, str]
) -> tuple[str, int]:
    """Push layers to a tag; the digest of the manifest and the bytes of the layers.

    The same content gives the same digest. Nothing is visible at the tag until everything is there. A store that is
    read-only for a while is waited for; what it has collected meanwhile, as no manifest named it yet, is pushed again.
    """
    everything = list(layers)
    deadline, refused = time.monotonic() + READ_ONLY_SECONDS, False
    while True:
        try:
            return _push(backend, target, everything, annotations)
        except _ManifestRefused as refusal:
            if refused:
                raise refusal.error from None
            refused = True
        except ReadOnly as error:
            if time.monotonic() >= deadline:
                raise
            print(f"waiting: {error}", file=sys.stderr, flush=True)
            time.sleep(_PAUSE)


class _ManifestRefused(Exception):
    """Perhaps for want of a blob that was there when it was pushed."""

    def __init__(self, error: BadInput) -> None:
        super().__init__(str(error))
        self.error = error


def _push(
    backend: Backend, target: Reference, layers: Sequence[Layer], annotations: Mapping[str, str]
) -> tuple[str, int]:
    descriptors = []
    for layer in layers:
        descriptor = Descriptor(MEDIA_TYPE_LAYER, layer.digest(), layer.size, {})
        backend.put_blob(target, descriptor.digest, descriptor.size, layer.content)
        descriptors.append(descriptor)
    config = to_json(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in descriptors]},
        }
    )
    backend.put_blob(target, sha256(config), len(config), lambda: [config])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "config": Descriptor(MEDIA_TYPE_CONFIG, sha256(config), len(config), {}).to_json(),
        "layers": [layer.to_json() for layer in descriptors],
        "annotations": dict(annotations),
    }
    try:
        digest = backend.put_manifest(target, to_json(manifest))
    except BadInput as error:
        raise _ManifestRefused(error) from error
    return digest, sum(layer.size for layer in descriptors)


def image(backend: Backend, source: Reference, annotations: Mapping[str, str]) -> Manifest:
    """The manifest of an image that ``push_image`` made, with the given annotations among its own.

    Raises ArtifactMismatch where it is another one, or no such image.
    """
    manifest = backend.manifest(source)
    for name, wanted in annotations.items():
        found = manifest.annotations.get(name)
        if found != wanted:
            raise ArtifactMismatch(f"{source} is that of {name.rpartition('.')[2]} {found}, not {wanted}")
    if manifest.config.media_type != MEDIA_TYPE_CONFIG or manifest.config.size > _MAX_CONFIG:
        raise ArtifactMismatch(
            f"{source} has a config of type {manifest.config.media_type}, which no artifact of ours has"
        )
    if len(manifest.layers) > _MAX_LAYERS or manifest.size > _MAX_BYTES:
        raise ArtifactMismatch(
            f"{source} has {len(manifest.layers)} layers of {manifest.size} bytes, which no artifact can have"
        )
    if any(layer.media_type != MEDIA_TYPE_LAYER for layer in manifest.layers):
        raise ArtifactMismatch(f"{source} has a layer that is not of type {MEDIA_TYPE_LAYER}")
    body = b"".join(backend.blob(source, manifest.config))
    try:
        diff_ids = json.loads(body)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError):
        raise ArtifactMismatch(f"{source} has a config without rootfs.diff_ids") from None
    if diff_ids != [layer.digest for layer in manifest.layers]:
        raise ArtifactMismatch(f"{source} has a config whose diff_ids are not its layers")
    return manifest


def to_json(value: Any) -> bytes:
    """``value`` as JSON, the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
