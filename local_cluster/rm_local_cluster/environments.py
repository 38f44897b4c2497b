"""Python environments with real engines and compilers, for the tests that run a user's script or a build on them.

Run as `python -m rm_local_cluster.environments NAME`, which prints the environment's directory; it needs `uv`. An
environment is made once for a lock file under `requirements/` and an interpreter, and kept in the cache.
"""

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import paths
from .errors import LocalClusterError
from .images.parts import checkout

Progress = Callable[[str], None]

NAMES = ("pytorch-openvino", "vllm-cpu", "deepspeed", "iree", "compiler-iree", "compiler-furiosa")
_GIGABYTES = {
    "pytorch-openvino": 3,
    "vllm-cpu": 6,
    "deepspeed": 5,
    "iree": 1,
    "compiler-iree": 5,
    "compiler-furiosa": 1,
}
_KEPT_PER_NAME = 2
_LAST_LINES = 15


def lock_file(name: str, root: Path | None = None) -> Path:
    """The lock file of an environment in the checkout `root`. Raises LocalClusterError for an unknown name."""
    if name not in NAMES:
        raise LocalClusterError(f"there is no environment named {name}; there are {', '.join(NAMES)}")
    file = name if name.startswith("compiler-") else f"engine-{name}"
    return (root or checkout()) / "requirements" / f"{file}.txt"


def location(name: str, root: Path | None = None) -> Path:
    """Where the environment is, or will be once `ensure` has made it."""
    digest = hashlib.sha256(lock_file(name, root).read_bytes())
    digest.update(f"{sys.version} {platform.machine()}".encode())
    return _root() / f"{name}-{digest.hexdigest()[:16]}"


def ensure(name: str, progress: Progress, root: Path | None = None) -> Path:
    """Return the directory of the environment, made if the cache lacks it. It is there whole, or not at all.

    Several processes may ask at once: one makes it, the others wait. Raises LocalClusterError when uv is missing or
    cannot install a package, with what it said.
    """
    target = location(name, root)
    if not target.is_dir():
        _root().mkdir(parents=True, exist_ok=True)
        with (_root() / f".{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_dir():
                progress(
                    f"making the environment {name}; this happens once and takes {_GIGABYTES[name]} GB on the disk"
                )
                _make(name, lock_file(name, root), target)
    os.utime(target)
    _prune(name, target)
    return target


def _root() -> Path:
    return paths.cache_root() / "environments"


def _make(name: str, lock: Path, target: Path) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise LocalClusterError("uv is not installed; it installs the packages: pip install uv")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch:
        made = Path(scratch) / "environment"
        # Relocatable, or its programs would look for their interpreter in the scratch directory.
        _run(name, uv, "venv", "--quiet", "--relocatable", f"--python={sys.executable}", str(made))
        _run(name, uv, "pip", "sync", "--require-hashes", f"--python={made / 'bin' / 'python'}", str(lock))
        made.rename(target)


def _run(name: str, *argv: str) -> None:
    # The variable tells uv which environment to change, and pytest may itself run in one.
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-_LAST_LINES:])
        raise LocalClusterError(
            f"the environment {name} could not be made; uv said:\n{said}\n"
            "The packages come from the index that pip and uv are set up for; check that it answers."
        )


def _prune(name: str, current: Path) -> None:
    """Remove what was made from older lock files; one stays for whoever switches between two checkouts."""
    others = [path for path in _root().glob(f"{name}-{'?' * 16}") if path != current]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[_KEPT_PER_NAME - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """Make the environments that the arguments name; 1 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m rm_local_cluster.environments",
        description="Make Python environments with real engines and compilers.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    arguments = parser.parse_args()
    try:
        for name in arguments.names or NAMES:
            print(ensure(name, lambda line: print(line, file=sys.stderr)))
    except LocalClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
