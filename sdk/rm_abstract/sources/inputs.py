"""What a build reads beside the model, such as calibration data: files that are pinned by their content."""

import posixpath
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from rm_api.conditions import Reason

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.http import Http
from rm_abstract.sources import open_source
from rm_abstract.sources.base import hash_chunks, hash_file
from rm_abstract.sources.facts import canonical_digest
from rm_abstract.store.destination import room

_SCHEMES: Final = ("hf", "https", "oci", "s3")
_MAX_NAME: Final = 255


def files_digest(digests: Mapping[str, str]) -> str:
    """Digest of files by their names: the file's own where it is one, else that of ``[[name,digest],…]`` as JSON."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return canonical_digest(sorted(digests.items()))


def fetch_input(uri: str, digest: str, destination: Path) -> int:
    """Fetch a file of https://, or all files of hf://, oci:// or s3://, into the directory ``destination``.

    It is there with all of its files, or not there at all; where it was filled before, that is checked and kept.
    Returns the bytes. Raises ArtifactMismatch where the files do not have ``digest``, see ``files_digest``; BadInput,
    NotFound, SourceUnreachable, and Transient where the volume is full.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise BadInput(f"an input cannot be at {uri!r}; there are {known}", reason=Reason.UNKNOWN_SOURCE)
    destination = destination.absolute()
    if destination.is_dir() and any(destination.iterdir()):
        if files_digest(_digests_under(destination)) == digest:
            return _size(destination)
        raise BadInput(f"{destination} is not empty, and does not hold {uri}; name a directory that is not there")
    if destination.is_mount():
        raise BadInput(f"{destination} is a mount point, which cannot be filled at once; name a directory below it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir()
    try:
        digests = _fetch_file(uri, part) if scheme == "https" else _fetch_all(uri, part)
        found = files_digest(digests)
        if found != digest:
            raise ArtifactMismatch(f"{uri} has digest {found}, not {digest}")
        size = _size(part)
        part.replace(destination)
        return size
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch_all(uri: str, directory: Path) -> dict[str, str]:
    with (
        open_source(uri, everything=True) as source,
        room(directory, sum(file.size for file in source.files.values()), "input"),
    ):
        return source.fetch(directory)


def _fetch_file(uri: str, directory: Path) -> dict[str, str]:
    host, _, path = uri.removeprefix("https://").partition("/")
    name = unquote(posixpath.basename(path))
    if not host or "@" in host or any(mark in path for mark in "?#"):
        raise BadInput(f"{uri!r} is no file of a web server; one looks like https://host/path/file, without a query")
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > _MAX_NAME:
        raise BadInput(f"{uri} names no file: what comes after its last / must be a file's name")
    http = Http()
    try:
        with room(directory, None, "input"), (directory / name).open("xb") as file:
            digest, _ = hash_chunks(http.download(f"{http.base(host)}/{path}"), file)
    finally:
        http.close()
    return {name: digest}


def _digests_under(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): hash_file(path)[0]
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
