"""What an image is identified by: a digest over everything that goes into it.

Two builds of the same inputs have the same tag, on every machine of one architecture; a date, a host or a path never
counts.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from .catalogue import Image

_SCHEMA = 2
_DIGITS = 16


def image_tag(
    image: Image, *, files: Mapping[str, str], part: str, base: str | None, architecture: str, epoch: int
) -> str:
    """The image's tag, 16 hex digits.

    `files` maps the paths of its Dockerfile and files to their digests, `part` is the digest of what was made for it,
    `base` names the base's content where there is one, `epoch` is the time that it says it is of.
    """
    expected = {image.dockerfile, *image.files}
    if files.keys() != expected:
        raise ValueError(f"digests of {sorted(files)} given for {image.name}, which is made of {sorted(expected)}")
    document = {
        "schema": _SCHEMA,
        "image": image.name,
        "architecture": architecture,
        "base": base if image.on_base else None,
        "files": dict(files),
        "part": part,
        "epoch": epoch,
    }
    return _digest(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())[:_DIGITS]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def wheel_digest(wheel: Path) -> str:
    """SHA-256 over the names and contents of a wheel's files, in hex.

    Times and compression do not count, nor the long description (the README): it changes nothing that runs.
    """
    contents = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith(".dist-info/METADATA"):
                data = data.split(b"\n\n", 1)[0]
            if not name.endswith(".dist-info/RECORD"):
                contents[name] = _digest(data)
    return _digest(json.dumps(contents, sort_keys=True).encode())


def recipe_digest(*parts: object) -> str:
    """A digest of the recipe of something that is made once and kept, 16 hex digits."""
    return _digest(json.dumps(parts, sort_keys=True).encode())[:_DIGITS]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
