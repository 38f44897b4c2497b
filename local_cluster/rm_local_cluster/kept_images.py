"""What a node keeps of the images that were pushed to it before: of each of ours, what was pushed last.

Every build has a tag of its own. Without this, the node's registry and its image store would keep them all.
`main` runs in the node, between the start of containerd and that of the kubelet.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from .plan import REGISTRY_PORT
from .shell import run

KEPT = 2
"""Tags of a repository that stay: that of the checkout at hand, and one of another or of before."""

_OURS = "rm-abstract"
_REPOSITORIES = "docker/registry/v2/repositories"
# As pods name our images, whichever block of addresses the node had at the time.
_IN_STORE = re.compile(rf"10\.\d+\.\d+\.\d+:{REGISTRY_PORT}/{_OURS}/")


def forget(registry: Path, kept: int = KEPT) -> int:
    """Take from a registry that does not run the older tags of our repositories; returns how many.

    `registry` is its storage. Their manifests go with them, but for those that another tag names. The blobs are left to
    the registry's own `garbage-collect`.
    """
    gone = 0
    for manifests in _manifests_of_ours(registry):
        old = sorted(manifests.glob("tags/*/current/link"), key=lambda link: link.stat().st_mtime_ns)[:-kept]
        digests = {link.read_text(encoding="ascii") for link in old}
        for link in old:
            shutil.rmtree(link.parents[1])
        for digest in digests - _tagged(manifests):
            shutil.rmtree(manifests / "revisions" / digest.replace(":", "/"), ignore_errors=True)
        gone += len(old)
    return gone


def known(registry: Path) -> set[str]:
    """The digests of the manifests that tags of our repositories name."""
    return {digest for manifests in _manifests_of_ours(registry) for digest in _tagged(manifests)}


def listed(text: str) -> dict[str, str]:
    """Digests by name of the images that `ctr images list` prints."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return {row[0]: row[2] for row in rows if len(row) > 2}


def outdated(stored: Mapping[str, str], tagged: Iterable[str]) -> list[str]:
    """The names in the image store, with their digests, of images of ours that are in the registry no more.

    An image has several names, by tag, digest and configuration; it goes with the last of them.
    """
    gone = {digest for name, digest in stored.items() if _IN_STORE.match(name)} - set(tagged)
    return sorted(name for name, digest in stored.items() if digest in gone)


def _manifests_of_ours(registry: Path) -> list[Path]:
    found = []
    for place, below, _ in os.walk(registry / _REPOSITORIES / _OURS):
        if "_manifests" in below:
            found.append(Path(place, "_manifests"))
        # What the registry keeps for itself, of which there is much, begins so; no name of a repository does.
        below[:] = sorted(name for name in below if not name.startswith("_"))
    return found


def _tagged(manifests: Path) -> set[str]:
    return {link.read_text(encoding="ascii") for link in manifests.glob("tags/*/current/link")}


def main() -> None:
    """Remove from the image store what the registry has no more. Arguments: ctr with its options; the registry's
    storage.
    """
    *ctr, registry = sys.argv[1:]
    names = outdated(listed(run([*ctr, "images", "list"]).stdout), known(Path(registry)))
    if names:
        run([*ctr, "images", "remove", "--sync", *names], timeout=280)


if __name__ == "__main__":
    main()
