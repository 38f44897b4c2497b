"""Making what images take besides files of the checkout: the project's wheel, and static binaries."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from .. import build as binaries
from ..errors import LocalClusterError
from ..families import REGISTRY
from . import keys
from .catalogue import Image, Part
from .process import Progress, run_logged

# Any fixed time: a file's time must not make a layer differ.
_EPOCH = 1_577_836_800


@dataclass(frozen=True)
class Made:
    """A part that was made: the file, and the digest of what it holds."""

    path: Path
    digest: str


def checkout(start: Path | None = None) -> Path:
    """The root of the checkout that holds `start` (this file by default). Raises LocalClusterError outside one."""
    for directory in (start or Path(__file__).resolve()).parents:
        if (directory / "runtime_images").is_dir() and (directory / "pyproject.toml").is_file():
            return directory
    raise LocalClusterError(
        "the images are built from a checkout of the project, and this installation is none; "
        "clone the repository and run it there"
    )


def make(part: Part, root: Path, scratch: Path, progress: Progress) -> Made:
    """Make one part of the checkout `root`; the file lies in `scratch`, or in a cache of its own.

    Raises LocalClusterError with the tool's last lines when that fails.
    """
    match part:
        case Part.WHEEL:
            wheel = _wheel(root, scratch, progress)
            return Made(wheel, keys.wheel_digest(wheel))
        case Part.LAUNCHER:
            binary = _launcher(root, scratch, progress)
        case Part.REGISTRY:
            binary = binaries.ensure([REGISTRY], progress)["registry"]
    return Made(binary, keys.file_digest(binary))


def _wheel(root: Path, scratch: Path, progress: Progress) -> Path:
    target = scratch / "wheel"
    argv: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target]
    run_logged(argv, scratch / "wheel.log", what="building the project's wheel", progress=progress, cwd=root)
    (wheel,) = target.glob("*.whl")
    return wheel


def _launcher(root: Path, scratch: Path, progress: Progress) -> Path:
    go = binaries.go_command()
    if go is None:
        raise LocalClusterError("Go is not installed: rma-launch is built with it. Install Go (https://go.dev/dl)")
    binaries.go_version(go)
    target = scratch / "rma-launch"
    # The flags of the Dockerfile's own stage, so that the host's Go makes the same program.
    argv: list[str | Path] = [go, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", target, "."]
    run_logged(
        argv,
        scratch / "launcher.log",
        what="building rma-launch",
        progress=progress,
        cwd=root / "runtime_images/launcher",
        environment={"CGO_ENABLED": "0", "GOWORK": "off"},
    )
    return target


def file_digests(image: Image, root: Path) -> dict[str, str]:
    """The digests of an image's Dockerfile and files by their paths. Raises LocalClusterError when one is missing."""
    digests = {}
    for name in (image.dockerfile, *image.files):
        if not (root / name).is_file():
            raise LocalClusterError(f"{root / name} is missing; the image {image.name} is made of it")
        digests[name] = keys.file_digest(root / name)
    return digests


def write_context(image: Image, root: Path, made: Made, directory: Path) -> None:
    """Lay out the build's context: the checkout's paths, only what this image takes, no times of this machine."""
    part = image.part.value
    sources = {name: root / name for name in image.files}
    sources[f"{part}/{made.path.name}" if image.part is Part.WHEEL else part] = made.path
    for name, source in sources.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (_EPOCH, _EPOCH))
