"""Running a program in a built image as the kubelet would: no root, a read-only root file system, no network.

The image's tree is the root in a mount namespace of its own, with a `/tmp` and a `/dev/shm` in memory; of this machine
the program sees its processes and nothing else.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rm_local_cluster.images.buildah import Buildah
from rm_local_cluster.images.builders import Builder
from rm_local_cluster.shell import run

USER = "65532:65532"
# $1: the tree; the rest is the environment and the command.
_BOX = """
set -e
tree=$1 mode=$2; shift 2
mount --bind "$tree" "$tree"
cd "$tree"
mount -t tmpfs -o mode=755 devices dev
mkdir dev/shm
for one in null zero urandom; do touch dev/$one; mount --bind /dev/$one dev/$one; done
mount -t tmpfs -o mode=1777,size=64m memory dev/shm
mount -o remount,ro dev
mount -t tmpfs -o mode=1777,size=256m temporary tmp
mount --rbind /proc proc
if [ "$mode" = read-only ]; then mount -o remount,bind,ro "$tree"; cd "$tree"; fi
exec chroot --userspec=USER --groups= "$tree" /usr/bin/env -i "$@"
""".replace("USER", USER)


class Box:
    """One image, from whose tree programs are run."""

    def __init__(self, tree: Path, environment: Sequence[str]) -> None:
        self.tree, self._environment = tree, environment

    def run(
        self, *argv: str, read_only: bool = True, environment: Sequence[str] = ()
    ) -> "subprocess.CompletedProcess[str]":
        """A program in the image, as user 65532."""
        mode = "read-only" if read_only else "writable"
        command = ["unshare", "--mount", "--net", "--propagation=private", "sh", "-c", _BOX, "box", self.tree, mode]
        return subprocess.run(
            [*command, *self._environment, *environment, *argv],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def megabytes(self) -> float:
        """The size of the image's files, in 10⁶ bytes."""
        return int(run(["du", "-sx", "--block-size=1", "--apparent-size", self.tree]).stdout.split()[0]) / 1e6


@contextmanager
def opened(builder: Builder, reference: str) -> Iterator[Box]:
    """An image in the builder's storage as a tree. No build runs meanwhile; nothing of it is left afterwards."""
    with builder.locked(print) as scratch:
        if isinstance(builder, Buildah):
            buildah = builder.command()
            container = run([*buildah, "from", "--pull-never", reference]).stdout.strip()
            try:
                tree = Path(run([*buildah, "mount", container]).stdout.strip())
                inspected = json.loads(run([*buildah, "inspect", "--type=container", container]).stdout)
                yield Box(tree, inspected["OCIv1"]["config"]["Env"])
            finally:
                run([*buildah, "rm", container])
        else:
            container = run(["docker", "create", reference]).stdout.strip()
            try:
                run(["sh", "-c", 'docker export "$0" | tar -x -C "$1"', container, str(scratch)], timeout=300)
                environment = run(["docker", "image", "inspect", "--format={{json .Config.Env}}", reference]).stdout
                yield Box(scratch, json.loads(environment))
            finally:
                run(["docker", "rm", container])
