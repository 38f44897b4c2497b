"""The examination of an image of ours from inside: what `rm-abstract doctor` says in a container."""

import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from rm_abstract.packaged import description, packages, sbom
from rm_abstract.packaged.description import Description

_LOCK: Final = "requirements.txt"
_OURS: Final = "rm-abstract"
_SHOWN: Final = 5


@dataclass(frozen=True)
class Finding:
    """What one check found, and what helps against a problem."""

    check: str
    severity: Literal["ok", "note", "problem"]
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Places:
    """Where the examination looks; another than the default is for an image's tree that is mounted somewhere."""

    root: Path = Path("/")
    environment: Path = Path(sys.prefix)
    shared_memory: Path = Path("/dev/shm")  # noqa: S108 - it is what is looked at

    @property
    def description(self) -> Path:
        """The file with what the image says of itself; where it is, one of our images is."""
        return self.root / description.PATH.relative_to("/")

    @property
    def bill(self) -> Path:
        """The bill of materials."""
        return self.root / sbom.PATH.relative_to("/")


def inside() -> bool:
    """Whether this process runs in one of our images."""
    return Places().description.exists()


def examine(places: Places | None = None) -> list[Finding]:
    """All checks of the image, in a fixed order; it changes nothing but files that it makes and removes at once."""
    looked = places or Places()
    try:
        described = Description.read(looked.description)
    except ValueError as error:
        return [Finding("image", "problem", str(error), "build the image again from its Dockerfile")]
    checks: tuple[Callable[[Description, Places], Iterator[Finding]], ...] = (
        _user, _root, _writable, _locked, _bill, _modules, _programs,
    )  # fmt: skip
    return [finding for check in checks for finding in check(described, looked)]


def _user(described: Description, places: Places) -> Iterator[Finding]:
    uid = os.geteuid()
    if uid or described.may_be_root:
        yield Finding("user", "ok", f"{described.name} runs as user {uid}")
    else:
        yield Finding("user", "problem", f"{described.name} runs as root, and needs no right of root's",
                      "runAsNonRoot: true in the pod's securityContext, or docker run --user 65532")  # fmt: skip


def _root(described: Description, places: Places) -> Iterator[Finding]:
    if os.statvfs(places.root).f_flag & os.ST_RDONLY:
        yield Finding("root file system", "ok", "is read-only")
    elif writable := [one for one in (places.root, places.root / "etc", places.environment) if os.access(one, os.W_OK)]:
        severity: Literal["note", "problem"] = "note" if os.geteuid() == 0 else "problem"
        yield Finding("root file system", severity, f"{', '.join(map(str, writable))} can be written to",
                      "readOnlyRootFilesystem: true in the container's securityContext")  # fmt: skip
    else:
        yield Finding("root file system", "note", "is not mounted read-only, though this user cannot write to it",
                      "readOnlyRootFilesystem: true in the container's securityContext")  # fmt: skip


def _writable(described: Description, places: Places) -> Iterator[Finding]:
    home = Path(os.environ.get("HOME", ""))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    needed = {"HOME": home, "cache": cache, "temporary files": Path(tempfile.gettempdir())}
    for name, path in {**needed, "shared memory": places.shared_memory}.items():
        try:
            # A cache is made by what caches; what matters is whether that would succeed.
            there = next(one for one in (path, *path.parents) if one.exists())
            with tempfile.TemporaryFile(dir=there) as trial:
                trial.write(b"\0")
            room = shutil.disk_usage(there).free
        except OSError as error:
            yield Finding(name, "problem", f"{path} cannot be written to: {error.strerror}",
                          f"mount an emptyDir at {path}")  # fmt: skip
        else:
            yield Finding(name, "ok", f"{path} can be written to, {room / 1e6:.0f} MB free")


def _locked(described: Description, places: Places) -> Iterator[Finding]:
    path = places.environment / _LOCK
    try:
        wanted = packages.locked(path.read_text(encoding="utf-8"))
    except OSError as error:
        yield Finding("packages", "problem", f"the lock file {path} cannot be read: {error.strerror}",
                      "build the image again from its Dockerfile")  # fmt: skip
        return
    found = {one.name: one.version for one in packages.python(_site(places))}
    if _OURS not in found:
        yield Finding("packages", "problem", f"{_OURS} is not installed in {places.environment}",
                      "build the image again from its Dockerfile")  # fmt: skip
    ours = found.pop(_OURS, "")
    if wrong := _differences(wanted, found):
        yield Finding("packages", "problem", f"differ from the lock: {wrong}",
                      "build the image again; what is added to it belongs into its lock")  # fmt: skip
    else:
        yield Finding("packages", "ok", f"{_OURS} {ours}, and {len(found)} packages as locked")


def _bill(described: Description, places: Places) -> Iterator[Finding]:
    fix = "build the image again: the bill of materials is made by the last step"
    try:
        listed = sbom.versions(json.loads(places.bill.read_bytes()))
    except OSError as error:
        yield Finding("bill of materials", "problem", f"{places.bill} cannot be read: {error.strerror}", fix)
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding("bill of materials", "problem", f"{places.bill} is no CycloneDX document", fix)
        return
    installed = [*packages.debian(places.root), *packages.python(_site(places))]
    there = sbom.versions({"components": [{"purl": one.url, "version": one.version} for one in installed]})
    if wrong := _differences(there, listed):
        yield Finding("bill of materials", "problem", f"is not about what is installed: {wrong}", fix)
    else:
        yield Finding("bill of materials", "ok", f"{places.bill} lists the {len(listed)} packages that are installed")


def _modules(described: Description, places: Places) -> Iterator[Finding]:
    broken = False
    for name in described.modules:
        try:
            # What a module says while it is imported is no part of the answer, which may be JSON.
            with contextlib.redirect_stdout(sys.stderr):
                importlib.import_module(name)
        except Exception as error:  # a module may fail in any way
            broken = True
            yield Finding("modules", "problem", f"{name} cannot be imported: {type(error).__name__}: {error}",
                          "build the image again from its Dockerfile")  # fmt: skip
    if not broken:
        yield Finding("modules", "ok", f"{', '.join(described.modules)} can be imported")


def _programs(described: Description, places: Places) -> Iterator[Finding]:
    if missing := [name for name in described.programs if shutil.which(name) is None]:
        yield Finding("programs", "problem", f"{', '.join(missing)} not on the PATH, {os.environ.get('PATH', '')}",
                      "leave the image's PATH as it is, or build it again")  # fmt: skip
    else:
        yield Finding("programs", "ok", f"{', '.join(described.programs)} on the PATH")


def _site(places: Places) -> Path | None:
    """The site-packages of the environment that is looked at; None for this process's own."""
    if places.environment == Path(sys.prefix):
        return None
    return next(iter(sorted(places.environment.glob("lib/python3*/site-packages"))), places.environment)


def _differences(wanted: dict[str, str], found: dict[str, str]) -> str:
    """What differs, for people; empty where nothing does."""
    said = [f"{name} {version} is missing" for name, version in wanted.items() if name not in found]
    said += [f"{name} is {found[name]}, not {wanted[name]}"
             for name in wanted if name in found and found[name] != wanted[name]]  # fmt: skip
    said += [f"{name} {version} is extra" for name, version in found.items() if name not in wanted]
    more = f"; and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return "; ".join(sorted(said)[:_SHOWN]) + more
