"""The programs that build images, seen alike: Docker where an engine answers, else Buildah, which needs none."""

import fcntl
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..errors import LocalClusterError
from ..shell import run
from .catalogue import PUBLIC_BASE
from .labels import EPOCH
from .process import Progress, run_logged

BASE_VARIABLE = "RMA_IMAGE_BASE"
_ABSENT = re.compile(r"manifest.unknown|name.unknown|no such manifest|not found", re.IGNORECASE)


@dataclass(frozen=True)
class Recipe:
    """One build: `arguments` are build arguments, `secrets` files that are there while a step runs, by identifier.

    `epoch` is the time in seconds since 1970 that the image says it is of; `labels` are added to the Dockerfile's.
    """

    reference: str
    dockerfile: Path
    context: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    epoch: int = EPOCH


class Builder(ABC):
    """A program that builds images into a storage of its own, and pushes them from there."""

    name: ClassVar[str]

    def __init__(self, root: Path) -> None:
        """`root` is the directory of the builder's files in the cache."""
        self.root = root
        self._held: tuple[int, ...] = ()

    @contextmanager
    def locked(self, progress: Progress) -> Iterator[Path]:
        """Hold the storage for this process alone; yields a scratch directory that is removed at the end."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("another process is building images; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # A build that outlives this process, killed, keeps the lock until it ends too.
            self._held = (lock.fileno(),)
            for left in self.root.glob("scratch-*"):
                shutil.rmtree(left, ignore_errors=True)
            with self._scratch() as scratch:
                yield scratch

    def base(self) -> str:
        """The reference of the base image: what RMA_IMAGE_BASE names, else Debian's on the public registry."""
        return os.environ.get(BASE_VARIABLE) or PUBLIC_BASE

    def ensure_base(self, progress: Progress) -> None:  # noqa: B027 - a public base is pulled by the build itself
        """Make the base where it has to be made."""

    @abstractmethod
    def present(self) -> set[str]:
        """The references of our images in the storage."""

    def build(self, recipe: Recipe, *, what: str, progress: Progress) -> None:
        """Build one image into the storage. Raises LocalClusterError with the last lines of the build's log."""
        argv = [*self._build_command(), *self._dated(recipe.epoch)]
        argv += [f"--file={recipe.dockerfile}", f"--tag={recipe.reference}"]
        argv += [f"--build-arg={name}={value}" for name, value in recipe.arguments.items()]
        argv += [f"--secret=id={name},src={path}" for name, path in recipe.secrets.items()]
        argv += [f"--label={name}={value}" for name, value in recipe.labels.items()]
        self._run([*argv, recipe.context], self._log(recipe.reference, "build"), what=what, progress=progress)

    @abstractmethod
    def push(self, local: str, remote: str, *, what: str, progress: Progress) -> None:
        """Copy an image of the storage to a registry. Raises LocalClusterError with the last lines of the log."""

    def pushed(self, reference: str) -> bool:
        """Whether a registry has an image. Raises LocalClusterError when the registry cannot say."""
        done = run(self._inspect_command(reference), check=False, timeout=60)
        if done.returncode == 0:
            return True
        said = (done.stderr or done.stdout).strip()
        if _ABSENT.search(said):
            return False
        logged = re.search(r'msg="(.*)"$', said)
        reason = logged[1].replace('\\"', '"') if logged else said or f"{self.name} ended with {done.returncode}"
        raise LocalClusterError(f"the registry does not answer for {reference}: {reason}")

    @abstractmethod
    def remove(self, references: Sequence[str]) -> None:
        """Remove images, and the layers that nothing else uses."""

    @abstractmethod
    def _build_command(self) -> list[str]:
        """The command that builds, up to its options."""

    @abstractmethod
    def _dated(self, epoch: int) -> list[str]:
        """The options by which an image says that it is of this time, whenever it is built."""

    @abstractmethod
    def _inspect_command(self, reference: str) -> list[str]:
        """The command that ends with 0 when the registry has this image."""

    def _run(self, argv: Sequence[str | Path], log: Path, *, what: str, progress: Progress) -> None:
        run_logged(argv, log, what=what, progress=progress, inherit=self._held)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        # In the cache, not in /tmp: on the file system of the storage, and swept by the next run if this one is killed.
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=self.root) as directory:
            yield Path(directory)

    def _log(self, reference: str, kind: str) -> Path:
        name = reference.rpartition("/")[2].partition(":")[0]
        return self.root / "logs" / f"{name}.{kind}.log"
