"""Writing a one-layer OCI image as an archive, without an image builder.

The same files give the same bytes: no times, no owners, names in order. Enough for images of a few static binaries.
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class File:
    """A file of an image: its bytes, and its permissions."""

    content: bytes
    mode: int = 0o755


def architecture() -> str:
    """This machine's architecture in the names of OCI and Go."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def write_archive(
    archive: Path,
    reference: str,
    files: Mapping[str, File],
    *,
    entrypoint: Sequence[str],
    user: str = "65532:65532",
    environment: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """Write an OCI archive of one image and return its manifest's digest, `sha256:…`.

    `reference` is the name under which `ctr images import` records it; `files` maps paths without a leading slash to
    files; `links` maps paths to the targets of symbolic links. Parent directories are made.
    """
    layer = _layer(files, links or {})
    config = {
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": list(entrypoint),
            "Env": [f"{name}={value}" for name, value in (environment or {}).items()],
            "User": user,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    config_bytes = _canonical(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _descriptor(_CONFIG, config_bytes),
        "layers": [_descriptor(_LAYER, layer)],
    }
    manifest_bytes = _canonical(manifest)
    names = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": [{**_descriptor(_MANIFEST, manifest_bytes), "annotations": names}],
    }
    blobs = [layer, config_bytes, manifest_bytes]
    members = {f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}": blob for blob in blobs}
    members |= {"index.json": _canonical(index), "oci-layout": _canonical({"imageLayoutVersion": "1.0.0"})}
    with archive.open("wb") as output, tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(members):
            _add(tar, name, members[name], 0o644)
    return _digest(manifest_bytes)


def _layer(files: Mapping[str, File], links: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        directories = {str(parent) for name in (*files, *links) for parent in Path(name).parents if str(parent) != "."}
        for name in sorted(directories | files.keys() | links.keys()):
            if name in files:
                _add(tar, name, files[name].content, files[name].mode)
            else:
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = (tarfile.SYMTYPE, 0o777) if name in links else (tarfile.DIRTYPE, 0o755)
                entry.linkname = links.get(name, "")
                tar.addfile(entry)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
