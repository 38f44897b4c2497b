"""What an image says of where it comes from, in the names of the OCI annotations, and the time that it is of."""

import subprocess
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import LocalClusterError

EPOCH = 1_577_836_800
"""2020-01-01: the time of images that are not of a release. Any would do; a fixed one lets two builds be the same."""

EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"
_PREFIX = "org.opencontainers.image"


def epoch(environment: Mapping[str, str]) -> int:
    """The time of the images, in seconds since 1970: SOURCE_DATE_EPOCH, else `EPOCH`.

    Raises LocalClusterError where the variable is no time.
    """
    given = environment.get(EPOCH_VARIABLE, "")
    if not given:
        return EPOCH
    if not (given.isascii() and given.isdigit() and len(given) <= 11):
        raise LocalClusterError(
            f"{EPOCH_VARIABLE} is {given!r}; it is to be seconds since 1970, as of `git log -1 --format=%ct`"
        )
    return int(given)


def labels(*, number: str, time: int, revision: str | None, source: str | None) -> dict[str, str]:
    """The labels that no Dockerfile can know; those that are not known are left out."""
    known = {
        "version": number,
        "created": datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "revision": revision,
        "source": source,
    }
    return {f"{_PREFIX}.{name}": value for name, value in known.items() if value}


def of_checkout(root: Path, time: int) -> dict[str, str]:
    """The labels of images that are built from the checkout `root`.

    A revision is named only where nothing differs from it, and a source only where others can reach it.
    """
    clean = _git(root, "status", "--porcelain") == ""
    return labels(
        number=version(root),
        time=time,
        revision=_git(root, "rev-parse", "HEAD") if clean else None,
        source=public_source(_git(root, "remote", "get-url", "origin") or ""),
    )


def version(root: Path) -> str:
    """The version of the project in the checkout `root`."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def public_source(remote: str) -> str | None:
    """The address of a repository as others may know it: of https only, without what it was logged in with."""
    parts = urlsplit(remote)
    if parts.scheme != "https" or not parts.hostname:
        return None
    port = f":{parts.port}" if parts.port else ""
    return f"https://{parts.hostname}{port}{parts.path.removesuffix('.git')}"


def _git(root: Path, *arguments: str) -> str | None:
    """What git says of the checkout; None where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
