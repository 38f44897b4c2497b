"""Choosing the program that builds the images."""

import os
import shutil

from .. import paths
from ..errors import LocalClusterError
from .buildah import Buildah
from .builders import Builder
from .docker import Docker

BUILDER_VARIABLE = "RMA_IMAGE_BUILDER"


def detect() -> Builder:
    """The builder to use: the one that RMA_IMAGE_BUILDER names, else Docker where an engine answers, else Buildah.

    Raises LocalClusterError when there is neither.
    """
    asked = os.environ.get(BUILDER_VARIABLE, "")
    if asked not in {"", Docker.name, Buildah.name}:
        raise LocalClusterError(f"{BUILDER_VARIABLE} is {asked!r}; it can be {Docker.name} or {Buildah.name}")
    root = paths.cache_root() / "builder"
    if asked == Docker.name or (not asked and Docker.answers()):
        return Docker(root)
    if missing := [tool for tool in ("buildah", "skopeo") if not shutil.which(tool)]:
        raise LocalClusterError(
            f"no Docker engine answers, and {' and '.join(missing)} is not installed; start Docker, "
            "or on Debian or Ubuntu: apt-get install buildah skopeo mmdebstrap"
        )
    return Buildah(root)
