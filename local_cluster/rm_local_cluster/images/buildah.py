"""Buildah with its own storage in the cache: no daemon, and no right beyond mounting."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import oci
from ..shell import run
from . import base, settings
from .builders import BASE_VARIABLE, Builder, Recipe
from .catalogue import REPOSITORY
from .plan import LOCAL, speaks_plain_http
from .process import Progress, duration

_BASES = f"{LOCAL}/{REPOSITORY}-base"


class Buildah(Builder):
    """Builds on a Debian that it makes from packages where mmdebstrap is installed, else on the public one."""

    name = "buildah"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._storage = root / "storage"
        # What a run leaves here is about mounts, and those do not outlive the machine's boot.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        self._run_root = root / f"run-{boot}"
        self._driver: str | None = None
        self._makes_base = not os.environ.get(BASE_VARIABLE) and shutil.which("mmdebstrap") is not None

    @contextmanager
    def locked(self, progress: Progress) -> Iterator[Path]:
        """As for every builder; removes what a killed build left."""
        with super().locked(progress) as scratch:
            for old in self.root.glob("run-*"):
                if old != self._run_root:
                    shutil.rmtree(old, ignore_errors=True)
            if self._storage.is_dir():
                run([*self.command(), "rm", "--all"], check=False)
            yield scratch

    def base(self) -> str:
        """The base that is made here, else the one that is pulled."""
        return f"{_BASES}:{base.base_key(oci.architecture())}" if self._makes_base else super().base()

    def ensure_base(self, progress: Progress) -> None:
        """Make the base with mmdebstrap unless it is there."""
        present = self._references(_BASES)
        if not self._makes_base or self.base() in present:
            return
        started = time.monotonic()
        with self._scratch() as context:
            apt = settings.write_secrets(context)["apt.conf"]
            base.make_archive(context / "base.tar", apt, progress)
            dockerfile = context / "Dockerfile"
            dockerfile.write_text(base.DOCKERFILE, encoding="utf-8")
            self.build(Recipe(self.base(), dockerfile, context), what="importing the base", progress=progress)
        self.remove(sorted(present))
        progress(f"the Debian base: made in {duration(time.monotonic() - started)}")

    def present(self) -> set[str]:
        """The references of our images in the storage."""
        return self._references(f"{LOCAL}/{REPOSITORY}/") if self._storage.is_dir() else set()

    def push(self, local: str, remote: str, *, what: str, progress: Progress) -> None:
        """As for every builder; without TLS to a registry on this machine."""
        argv = [*self.command(), "push", _tls(remote), local, f"docker://{remote}"]
        self._run(argv, self._log(local, "push"), what=what, progress=progress)

    def remove(self, references: Sequence[str]) -> None:
        """As for every builder."""
        if references:
            run([*self.command(), "rmi", *references], check=False)

    def _build_command(self) -> list[str]:
        return [*self.command(), "bud", "--isolation=chroot", "--layers", "--pull=false"]

    def _dated(self, epoch: int) -> list[str]:
        # The files of the layers get this time as well. The other label would name the version of Buildah.
        return [f"--timestamp={epoch}", "--identity-label=false"]

    def _inspect_command(self, reference: str) -> list[str]:
        return ["skopeo", "inspect", "--raw", _tls(reference), f"docker://{reference}"]

    def _references(self, prefix: str) -> set[str]:
        listed = run([*self.command(), "images", "--format={{.Name}}:{{.Tag}}"]).stdout.split()
        return {name for name in listed if name.startswith(prefix) and not name.endswith(":<none>")}

    def command(self) -> list[str]:
        """Buildah over the storage of the cache, up to its subcommand."""
        if self._driver is None:
            self._driver = self._choose_driver()
        places = [f"--root={self._storage}", f"--runroot={self._run_root}"]
        return ["buildah", *places, f"--storage-driver={self._driver}"]

    def _choose_driver(self) -> str:
        """Overlay, unless the cache's file system cannot carry it: then vfs, which copies every layer."""
        for driver in ("overlay", "vfs"):
            if (self._storage / driver).is_dir():
                return driver
        with self._scratch() as scratch:
            places = [f"--root={scratch}/root", f"--runroot={scratch}/run"]
            tried = run(["buildah", *places, "--storage-driver=overlay", "info"], check=False)
        return "overlay" if tried.returncode == 0 else "vfs"


def _tls(reference: str) -> str:
    return f"--tls-verify={str(not speaks_plain_http(reference)).lower()}"
