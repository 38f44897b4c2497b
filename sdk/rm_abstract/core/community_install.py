"""Installs a plugin of the index through pip, which takes only files whose hashes the signed index names."""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from rm_abstract.core.community_index import Index
from rm_abstract.core.errors import ArtifactMismatch, BadInput, ToolchainFailure
from rm_abstract.core.index_entries import PinnedRequirement, Release

_LOG_LINES: Final = 12
_MISMATCH: Final = "DO NOT MATCH THE HASHES"


def requirements(index: Index, release: Release) -> str:
    """The requirements file of a release, in which each file is pinned by hash."""
    lines = []
    for one in release.requirements:
        what = f"{one.name} @ {index.url(one.url)}" if one.url else f"{one.name}=={one.version}"
        lines.append(" ".join((what, *(f"--hash={digest}" for digest in one.hashes))))
    return "\n".join(lines) + "\n"


def install(
    index: Index,
    name: str,
    versions: str = "",
    *,
    python: str = sys.executable,
    target: Path | None = None,
    options: Sequence[str] = (),
) -> Release:
    """Install the newest release of a plugin in a range that works here, and return it.

    Into the environment of ``python``, or into the directory ``target``; ``options`` are further ones of pip install.
    No code of a package runs: only wheels are taken. Raises BadInput where there is no such release, ArtifactMismatch
    where a file is not the one that was signed, and ToolchainFailure where pip fails otherwise; nothing is installed
    then.
    """
    release = index.plugin(name).choose(versions)
    for one in release.requirements:
        _check_local(index, one)
    with tempfile.TemporaryDirectory(prefix="rm-abstract-") as scratch:
        file = Path(scratch, "requirements.txt")
        file.write_text(requirements(index, release), encoding="utf-8")
        command = [python, "-m", "pip", "install", "--require-hashes", "--only-binary=:all:", "--no-input",
                   "--disable-pip-version-check", *options, "-r", str(file)]  # fmt: skip
        if target is not None:
            command += ["--target", str(target)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BadInput(f"{python} cannot be run: {error.strerror}") from None
    if done.returncode:
        if _MISMATCH in done.stderr:
            raise ArtifactMismatch(f"a file of {name} {release.version} is not the one that was signed; pip says: "
                                   f"{done.stderr[done.stderr.index(_MISMATCH) :]}")  # fmt: skip
        if "No module named pip" in done.stderr:
            raise BadInput(f"{python} has no pip; {python} -m ensurepip brings it")
        tail = " | ".join(line.strip() for line in done.stderr.splitlines()[-_LOG_LINES:] if line.strip())
        raise ToolchainFailure(f"pip cannot install {name} {release.version}: {tail}")
    return release


def _check_local(index: Index, one: PinnedRequirement) -> None:
    """Look at a file of this machine before pip does, to say plainly what is wrong with it."""
    if not one.url or urlsplit(index.url(one.url)).scheme != "file":
        return
    path = Path(url2pathname(urlsplit(index.url(one.url)).path))
    try:
        with path.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise BadInput(f"{path}, which the index names, cannot be read: {error.strerror}") from None
    if digest not in one.hashes:
        raise ArtifactMismatch(
            f"{path} is not the file that was signed: it has {digest}, not {' or '.join(one.hashes)}"
        )
