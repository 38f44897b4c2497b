"""Building the binaries from Go modules, into a cache that is keyed by what they were made from."""

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import paths
from .errors import LocalClusterError
from .families import COMPILE_FLAGS, Family
from .logs import last_lines

Progress = Callable[[str], None]

MINIMUM_GO = (1, 26)
_KEPT_PER_FAMILY = 2
_SECONDS_BETWEEN_REPORTS = 20.0
_COMPLETE = ".complete"


def go_command() -> str | None:
    """The Go toolchain's command: on PATH, or where Go's own installer puts it. None when there is none."""
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def go_version(go: str) -> str:
    """The toolchain's version, such as `go1.26.8`. Raises LocalClusterError when the toolchain does not run or is too
    old.
    """
    try:
        version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise LocalClusterError(f"the Go toolchain {go} does not run: {error}") from error
    numbers = re.match(r"go(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < MINIMUM_GO:
        wanted = ".".join(map(str, MINIMUM_GO))
        raise LocalClusterError(
            f"{go} is {version or 'of unknown version'}, the cluster's binaries need Go {wanted} or newer"
        )
    return version


def family_key(family: Family, toolchain: str) -> str:
    """What identifies a family's binaries: a digest over sources, pinned modules, flags and toolchain (16 hex
    digits).
    """
    digest = hashlib.sha256()
    for part in (toolchain, *COMPILE_FLAGS, family.link_flags, json.dumps(dict(family.packages), sort_keys=True)):
        digest.update(part.encode() + b"\0")
    for source in sorted(family.directory.rglob("*")):
        if source.is_file() and source.suffix in {".mod", ".sum", ".go"}:
            digest.update(str(source.relative_to(family.directory)).encode() + b"\0")
            digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def ensure(families: Sequence[Family], progress: Progress) -> dict[str, Path]:
    """Return the path of every binary of `families` by name, building what the cache lacks.

    Several processes may ask at once: one builds, the others wait for it. Raises LocalClusterError with the
    compiler's last lines.
    """
    go = go_command()
    if go is None:
        wanted = ".".join(map(str, MINIMUM_GO))
        raise LocalClusterError(
            f"Go is not installed: the cluster's binaries are built from Go modules. Install Go {wanted} or newer (https://go.dev/dl)"
        )
    toolchain = go_version(go)
    root = paths.binaries_root()
    root.mkdir(parents=True, exist_ok=True)
    wanted_dirs = {family.name: _directory(family, toolchain) for family in families}
    if not all(_is_complete(directory) for directory in wanted_dirs.values()):
        with _locked(root / ".lock", progress):
            missing = [family for family in families if not _is_complete(wanted_dirs[family.name])]
            _build_all(go, missing, wanted_dirs, progress)
    for family in families:
        os.utime(wanted_dirs[family.name])
    return {binary: wanted_dirs[family.name] / binary for family in families for binary in family.packages}


def are_built(families: Sequence[Family], toolchain: str) -> bool:
    """Whether the cache has all binaries of `families` as this toolchain makes them."""
    return all(_is_complete(_directory(family, toolchain)) for family in families)


def _directory(family: Family, toolchain: str) -> Path:
    return paths.binaries_root() / f"{family.name}-{family_key(family, toolchain)}"


def _is_complete(directory: Path) -> bool:
    return (directory / _COMPLETE).exists()


@contextmanager
def _locked(lock: Path, progress: Progress) -> Iterator[None]:
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is building the cluster's binaries; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build_all(go: str, missing: Sequence[Family], wanted: dict[str, Path], progress: Progress) -> None:
    # One compile cache for all families of this run, beside the binaries; it outlives a failed run, so that the next
    # goes on from there.
    compile_cache = paths.binaries_root() / ".gocache"
    for number, family in enumerate(missing, start=1):
        label = f"{family.name} {family.version} ({number} of {len(missing)})"
        started = time.monotonic()
        progress(f"building {label} from source; this happens once")
        _build(go, family, wanted[family.name], compile_cache, functools.partial(_report_build, label, progress))
        progress(f"built {label} in {_duration(time.monotonic() - started)}")
        _prune(family, wanted[family.name])
    shutil.rmtree(compile_cache, ignore_errors=True)


def _report_build(label: str, progress: Progress, text: str) -> None:
    progress(f"building {label}: {text}")


def _build(go: str, family: Family, target: Path, compile_cache: Path, report: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{family.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / "bin"
        made.mkdir()
        log = Path(scratch) / "log"
        # A package is named after its directory, not always what the binary shall be called: one package, one -o;
        # several, one directory.
        names = list(family.packages)
        output = f"{made}/" if len(names) > 1 else f"{made}/{names[0]}"
        argv = [go, "build", *COMPILE_FLAGS, "-ldflags", family.link_flags, "-o", output, *family.packages.values()]
        flags = " ".join(flag for flag in (os.environ.get("GOFLAGS"), "-mod=readonly", "-buildvcs=false") if flag)
        environment = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOCACHE": str(compile_cache),
            "GOFLAGS": flags,
            "GOWORK": "off",
        }
        with log.open("wb") as output_file:
            process = subprocess.Popen(
                argv, cwd=family.directory, env=environment, stdout=output_file, stderr=subprocess.STDOUT
            )
            try:
                _wait(process, report)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if process.returncode != 0:
            raise LocalClusterError(
                f"building {family.name} {family.version} failed; go build said:\n{last_lines(log, 15)}\n"
                "The modules come through the Go proxy that `go env GOPROXY` names; check that it answers."
            )
        missing = [name for name in names if not (made / name).is_file()]
        if missing:
            raise LocalClusterError(f"building {family.name} made no {', '.join(missing)}")
        (made / _COMPLETE).touch()
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


def _wait(process: "subprocess.Popen[bytes]", report: Progress) -> None:
    started = time.monotonic()
    while True:
        try:
            process.wait(timeout=_SECONDS_BETWEEN_REPORTS)
        except subprocess.TimeoutExpired:
            report(f"{_duration(time.monotonic() - started)} so far")
        else:
            return


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _prune(family: Family, current: Path) -> None:
    """Remove the family's least recently used builds; a second one stays for whoever switches between two checkouts."""
    builds = [p for p in current.parent.glob(f"{family.name}-*") if p.is_dir() and p != current]
    in_use = _binaries_of_nodes()
    builds.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[_KEPT_PER_FAMILY - 1 :]:
        if str(old) not in in_use:
            shutil.rmtree(old)


def _binaries_of_nodes() -> str:
    """The specifications of all nodes as one text, in which a directory in use occurs by its path."""
    return "\n".join(spec.read_text(encoding="utf-8") for spec in paths.nodes_root().glob("*/spec.json"))
