"""Digests of files, trees and values."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_CHUNK: Final = 1 << 20


def hash_of(value: Any) -> str:
    """SHA-256 of a value of JSON in its canonical form, in hexadecimal. Raises TypeError where it is no JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(path: Path) -> str:
    """``sha256:…`` of a file's content; of a symbolic link, ``link:`` and where it leads."""
    if path.is_symlink():
        return f"link:{os.readlink(path)}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def files_of(path: Path, *, besides: str = "") -> Iterator[tuple[str, Path]]:
    """The files and links below a directory by their path within it, but that at ``besides``; of a file, itself."""
    if not path.is_dir():
        yield path.name, path
        return
    for directory, directories, names in os.walk(path):
        links = [name for name in directories if Path(directory, name).is_symlink()]
        for name in sorted([*names, *links]):
            found = Path(directory, name)
            relative = found.relative_to(path).as_posix()
            if relative != besides:
                yield relative, found


def digests(path: Path, *, besides: str = "") -> dict[str, str]:
    """The digests of ``files_of``, by path, sorted."""
    return {name: digest_of(found) for name, found in sorted(files_of(path, besides=besides))}
