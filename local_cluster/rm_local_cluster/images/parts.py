"""Making what images take besides files of the checkout: the project's wheel, and static binaries."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rm_abstract.packaged import sbom

from .. import build as binaries
from ..errors import LocalClusterError
from ..families import REGISTRY
from ..shell import run
from . import keys, labels
from .catalogue import IMAGES, Image, Part
from .labels import EPOCH
from .process import Progress, run_logged


@dataclass(frozen=True)
class Made:
    """A part that was made: the file, the digest of what it holds, and its bill of materials where it has one."""

    path: Path
    digest: str
    bill: Path | None = None


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
    bill = scratch / f"{part.name.lower()}.cdx.json"
    (image,) = (image for image in IMAGES.values() if image.part is part)
    bill.write_bytes(_bill(image, binary, labels.version(root)))
    return Made(binary, keys.recipe_digest(keys.file_digest(binary), keys.file_digest(bill)), bill)


def _wheel(root: Path, scratch: Path, progress: Progress) -> Path:
    target = scratch / "wheel"
    argv: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target]
    run_logged(argv, scratch / "wheel.log", what="building the project's wheel", progress=progress, cwd=root)
    (wheel,) = target.glob("*.whl")
    return wheel


def _launcher(root: Path, scratch: Path, progress: Progress) -> Path:
    target = scratch / "rma-launch"
    # The flags of the Dockerfile's own stage, so that the host's Go makes the same program.
    argv: list[str | Path] = [_go(), "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", target, "."]
    run_logged(
        argv,
        scratch / "launcher.log",
        what="building rma-launch",
        progress=progress,
        cwd=root / "runtime_images/launcher",
        environment={"CGO_ENABLED": "0", "GOWORK": "off"},
    )
    return target


def _bill(image: Image, binary: Path, number: str) -> bytes:
    """The bill of materials of an image of one program: the modules of Go that it was linked from."""
    return sbom.of_program(image.repository, number, run([_go(), "version", "-m", binary]).stdout)


def _go() -> str:
    go = binaries.go_command()
    if go is None:
        raise LocalClusterError("Go is not installed: rma-launch is built with it. Install Go (https://go.dev/dl)")
    binaries.go_version(go)
    return go


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
    if image.bill is not None and made.bill is not None:
        sources[image.bill] = made.bill
    for name, source in sources.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)
    for path in (directory, *directory.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (EPOCH, EPOCH))
