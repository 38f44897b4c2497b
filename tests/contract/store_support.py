"""What the tests of the store share: images that are made by hand, and trees that are compared."""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from rm_abstract.store import Reference
from rm_abstract.store.destination import MARKER
from rm_abstract.store.registry import Descriptor, Registry, sha256
from rm_api.names import MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST

Tree = dict[str, tuple[int, bytes] | str | None]


def tree_of(root: Path) -> Tree:
    """Path → mode and content of a file, target of a link, None for a directory; without a fetch's own entry."""
    found: Tree = {}
    for path in root.rglob("*"):
        inside = path.relative_to(root)
        if inside.parts[0] == MARKER:
            continue
        if path.is_symlink():
            found[inside.as_posix()] = os.readlink(path)
        elif path.is_file():
            found[inside.as_posix()] = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
        else:
            found[inside.as_posix()] = None
    return found


def push_by_hand(reference: str, layers: Sequence[bytes], annotations: Mapping[str, str]) -> str:
    """Push an image of these layers, whatever is in them, and return its digest."""
    target, registry = Reference.parse(reference), Registry()
    try:
        descriptors = []
        for raw in layers:
            registry.put_blob(target, sha256(raw), len(raw), lambda raw=raw: [raw])  # type: ignore[misc]
            descriptors.append(Descriptor(MEDIA_TYPE_LAYER, sha256(raw), len(raw), {}))
        config = json.dumps({"rootfs": {"diff_ids": [each.digest for each in descriptors]}}).encode()
        registry.put_blob(target, sha256(config), len(config), lambda: [config])
        manifest = {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_MANIFEST,
            "config": Descriptor(MEDIA_TYPE_CONFIG, sha256(config), len(config), {}).to_json(),
            "layers": [each.to_json() for each in descriptors],
            "annotations": dict(annotations),
        }
        return registry.put_manifest(target, json.dumps(manifest).encode())
    finally:
        registry.close()
