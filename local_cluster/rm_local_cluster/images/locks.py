"""Writing the lock files under `requirements/`: every package of an image, with the digests of its files.

Run as `python -m rm_local_cluster.images.locks`; it needs `uv`. Pins that still fit stay; `--upgrade` moves all to the
newest.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import LocalClusterError
from .parts import checkout

PYTHON = "3.13"
_PLATFORM = "x86_64-manylinux_2_28"
_COMMAND = "python -m rm_local_cluster.images.locks"

# What each image needs: extras of pyproject.toml, then requirement files beside the lock.
SOURCES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "operator": (("operator",), ()),
    "runtime": (("runtime",), ()),
    "device-plugin": (("device-plugin",), ("device-plugin.in",)),
    "openvino": (("runtime",), ("openvino.in",)),
    "iree": (("runtime",), ("iree.in",)),
    "pim": (("runtime",), ("pim.in",)),
    "openvino-compiler": ((), ("openvino-compiler.in",)),
    "iree-compiler": ((), ("iree-compiler.in",)),
    "deepspeed": (("runtime",), ("deepspeed.in",)),
}

# Packages that are published as sources alone, by image.
FROM_SOURCE = {"deepspeed": ("deepspeed",)}


def write(root: Path, names: list[str], *, upgrade: bool) -> None:
    """Write the locks of these images. Raises LocalClusterError when uv is missing or finds no set of versions."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise LocalClusterError("uv is not installed; it resolves the lock files: pip install uv")
    for name in names:
        extras, files = SOURCES[name]
        lock = root / "requirements" / f"{name}.txt"
        overrides = lock.with_suffix(".overrides")
        arguments = [
            *(["pyproject.toml"] if extras else []),
            *(f"--extra={extra}" for extra in extras),
            *(f"requirements/{file}" for file in files),
            *([f"--override=requirements/{overrides.name}"] if overrides.exists() else []),
            *(["--upgrade"] if upgrade else []),
            *(f"--no-binary={package}" for package in FROM_SOURCE.get(name, ())),
            *([] if name in FROM_SOURCE else ["--only-binary=:all:"]),
        ]
        with tempfile.TemporaryDirectory() as scratch:
            # Beside the lock, uv would write a half-done file where it fails.
            made = Path(scratch) / lock.name
            if lock.exists():
                shutil.copyfile(lock, made)
            _compile(uv, root, [*arguments, f"--output-file={made}"])
            os.chmod(made, 0o644)
            shutil.copyfile(made, lock)


def _compile(uv: str, root: Path, arguments: list[str]) -> None:
    argv = [
        uv,
        "pip",
        "compile",
        "--quiet",
        "--generate-hashes",
        "--no-emit-index-url",
        "--no-emit-find-links",
        f"--python-version={PYTHON}",
        f"--python-platform={_PLATFORM}",
        f"--custom-compile-command={_COMMAND}",
        *arguments,
    ]
    # What this machine is told by variables (extra places to find packages) has no say in what everyone installs.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_FIND"))}
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise LocalClusterError(f"uv found no set of versions for {arguments[-1]}:\n{done.stderr.strip()}")


def main() -> int:
    """Write the locks that the arguments name; 1 after an error."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Write the images' lock files.")
    parser.add_argument("names", nargs="*", metavar="IMAGE", help=f"of {', '.join(SOURCES)}; all by default")
    parser.add_argument("--upgrade", action="store_true", help="move every pin to the newest version that fits")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - SOURCES.keys()):
        parser.error(f"no lock is called {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    try:
        write(checkout(), arguments.names or list(SOURCES), upgrade=arguments.upgrade)
    except LocalClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
