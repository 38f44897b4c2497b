"""How artifacts lie in a directory: entries that appear and disappear at once, are checked, and cannot vanish in use.

    ROOT/entries/ID/VERSION/     artifact, entry.json, use.lock, refs/OWNER
    ROOT/locks/ID                held by who changes what versions there are; its content is the last version's number
    ROOT/building/ID/            what is being built; what a process that died left there, the next one removes
    ROOT/corrupted/ID-VERSION-…  what was found damaged

ID is the key, or its hash where the key is no hash itself.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote, unquote

from rm_abstract.core.digests import files_of, hash_of
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.core.filelock import FileLock
from rm_abstract.core.resource import ARTIFACT_FILE, BuildArtifact

_HASH: Final = re.compile(r"[0-9a-f]{32,128}")
_ENTRY: Final = "entry.json"
_USE: Final = "use.lock"
_REFS: Final = "refs"
_TRASH: Final = "trash-"

Check = Literal["no", "quick", "full"]
"""What is looked at before an artifact is given away: nothing but its description; sizes and times, and digests where
those have changed; always the digests."""


@dataclass(frozen=True)
class Entry:
    """One version of one artifact."""

    key: str
    version: int
    name: str
    """Of the directory or file that is the artifact."""
    created: float
    """When it was built, in seconds since 1970."""
    size_bytes: int
    stats: Mapping[str, tuple[int, int]]
    """Size and time of change of each file, by its path: while these stay, its digest is taken to stay too."""


class Hold:
    """An artifact that cannot be collected while this is open: a context manager, or call ``close``."""

    def __init__(self, artifact: BuildArtifact, version: int, lock: FileLock, *, built: bool) -> None:
        self.artifact = artifact
        self.version = version
        self.built = built
        """True if it was built for this call, here."""
        self._lock = lock

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.artifact.path

    def close(self) -> None:
        """Let it be collected. Harmless where that has been done."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def identity_of(key: str) -> str:
    """The name of a key's directory. Raises BadInput for the empty key."""
    if not key:
        raise BadInput("an artifact needs a key")
    return key if _HASH.fullmatch(key) else hash_of(key)


class Shelf:
    """The directory. ``clock`` gives seconds since 1970."""

    def __init__(self, root: Path, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.root = root
        self._entries, self._locks, self._building, self._corrupted = (
            root / name for name in ("entries", "locks", "building", "corrupted")
        )
        for directory in (self._entries, self._locks, self._building, self._corrupted):
            directory.mkdir(parents=True, exist_ok=True)

    def lock(self, key: str) -> Path:
        """The file to lock for a change of a key's versions."""
        return self._locks / identity_of(key)

    def place(self, key: str, version: int) -> Path:
        """The directory of a version, whether it is there or not."""
        return self._entries / identity_of(key) / str(version)

    def numbers(self, key: str) -> list[int]:
        """The versions of a key, the oldest first."""
        return _numbers(self._entries / identity_of(key))

    def entries(self) -> Iterator[Entry]:
        """All that is there, by key and version; what cannot be read is moved aside."""
        found = []
        for directory in self._entries.iterdir():
            for number in _numbers(directory):
                entry = self._entry(directory / str(number))
                if entry is not None:
                    found.append(entry)
        return iter(sorted(found, key=lambda entry: (entry.key, entry.version)))

    def last_used(self, key: str, version: int) -> float:
        """When it was last given away, in seconds since 1970; 0 where it is not there."""
        try:
            return (self.place(key, version) / _USE).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    # Adding. Who calls these holds the lock of the key.

    def scratch(self, key: str) -> Path:
        """A new, empty directory in which to build; what was left there is removed."""
        self.clear(key)
        scratch = self._building / identity_of(key)
        scratch.mkdir()
        return scratch

    def clear(self, key: str) -> None:
        """Remove what is left of a build."""
        shutil.rmtree(self._building / identity_of(key), ignore_errors=True)

    def add(self, artifact: BuildArtifact) -> int:
        """Take what lies alone in a directory of ``scratch``, as a new version, whose number is returned."""
        counter = self.lock(artifact.key)
        number = max([int(counter.read_text() or 0), *self.numbers(artifact.key)]) + 1
        place = artifact.path.parent
        self._write(place, artifact, number)
        self._touch(place)
        target = self.place(artifact.key, number)
        target.parent.mkdir(exist_ok=True)
        counter.write_text(str(number))
        place.rename(target)
        return number

    def refer(self, key: str, version: int, owner: str) -> None:
        """Note that ``owner`` needs this version. Raises BadInput where it is not there."""
        place = self.place(key, version)
        if not place.is_dir():
            raise BadInput(f"the cache has no version {version} of {key}; it has {self.numbers(key) or 'none'}")
        (place / _REFS).mkdir(exist_ok=True)
        (place / _REFS / quote(owner, safe="")).touch()

    def forget(self, key: str, owner: str) -> None:
        """Note that ``owner`` needs no version of this key."""
        for number in self.numbers(key):
            (self.place(key, number) / _REFS / quote(owner, safe="")).unlink(missing_ok=True)

    def owners(self, key: str, version: int) -> list[str]:
        """Who needs this version."""
        try:
            return sorted(unquote(path.name) for path in (self.place(key, version) / _REFS).iterdir())
        except FileNotFoundError:
            return []

    # Giving away

    def hold(self, key: str, number: int, check: Check, *, built: bool = False) -> Hold | None:
        """A version, so that it stays; None where it is not there, or was damaged and has been moved aside."""
        place = self.place(key, number)
        lock = FileLock.take(place / _USE, shared=True, create=False)
        if lock is None:
            self._move_aside(place)
            return None
        entry = self._entry(place)
        if entry is None or self._problem(place, entry, check):
            lock.release()
            self._move_aside(place)
            return None
        self._touch(place)
        return Hold(BuildArtifact.read(place / entry.name), number, lock, built=built)

    def verify(self, entry: Entry) -> str:
        """What is wrong with it, by its digests; then it has been moved aside. Empty where nothing is."""
        place = self.place(entry.key, entry.version)
        problem = self._problem(place, entry, "full")
        if problem:
            self._move_aside(place)
        return problem

    # Removing

    def remove(self, entry: Entry) -> str:
        """Remove a version that nobody holds or needs; else, why it stays."""
        place = self.place(entry.key, entry.version)
        versions = FileLock.take(self.lock(entry.key), wait=False)
        if versions is None:
            return "in use"
        use = FileLock.take(place / _USE, wait=False, create=False)
        try:
            if use is None:
                return "in use" if place.exists() else ""
            owners = self.owners(entry.key, entry.version)
            if owners:
                return f"referenced by {', '.join(owners)}"
            # A rename is at once; what is deleted after it, nobody can find any more.
            trash = self._building / f"{_TRASH}{uuid.uuid4().hex}"
            place.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
            return ""
        finally:
            if use is not None:
                use.release()
            versions.release()

    def sweep(self, oldest: float) -> None:
        """Remove what builders that died have left, and what was damaged before ``oldest``."""
        for leftover in list(self._building.iterdir()):
            if leftover.name.startswith(_TRASH):
                shutil.rmtree(leftover, ignore_errors=True)
                continue
            lock = FileLock.take(self._locks / leftover.name, wait=False)
            if lock is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                lock.release()
        for damaged in list(self._corrupted.iterdir()):
            if damaged.stat().st_mtime < oldest:
                shutil.rmtree(damaged, ignore_errors=True)

    def _touch(self, place: Path) -> None:
        (place / _USE).touch()
        os.utime(place / _USE, (self.clock(),) * 2)

    def _write(self, place: Path, artifact: BuildArtifact, number: int) -> None:
        stats = _stats(artifact.path)
        size = sum(each[0] for each in stats.values())
        entry = Entry(artifact.key, number, artifact.path.name, self.clock(), size, stats)
        temporary = place / f"{_ENTRY}.{uuid.uuid4().hex}"
        temporary.write_text(json.dumps(asdict(entry)), encoding="utf-8")
        temporary.replace(place / _ENTRY)

    def _entry(self, place: Path) -> Entry | None:
        try:
            raw: dict[str, Any] = json.loads((place / _ENTRY).read_text("utf-8"))
            stats = {name: (int(size), int(when)) for name, (size, when) in raw.pop("stats").items()}
            return Entry(**raw, stats=stats)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self._move_aside(place)
            return None

    def _problem(self, place: Path, entry: Entry, check: Check) -> str:
        path = place / entry.name
        try:
            artifact = BuildArtifact.read(path)
            if artifact.key != entry.key or not artifact.files:
                return f"{path} is not what was put there"
            if check == "no" or (check == "quick" and _stats(path) == entry.stats):
                return ""
            artifact.validate()
        except (ArtifactMismatch, OSError) as error:
            return str(error)
        if check == "quick":
            self._write(place, artifact, entry.version)
        return ""

    def _move_aside(self, place: Path) -> None:
        # Numbers are never given twice: what is at this place now is what was found wanting, or nothing.
        aside = self._corrupted / f"{place.parent.name}-{place.name}-{uuid.uuid4().hex[:8]}"
        try:
            place.rename(aside)
        except FileNotFoundError:
            return
        os.utime(aside, (self.clock(),) * 2)


def _numbers(directory: Path) -> list[int]:
    try:
        return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())
    except FileNotFoundError:
        return []


def _stats(path: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for name, file in files_of(path, besides=ARTIFACT_FILE):
        about = file.lstat()
        found[name] = (about.st_size, about.st_mtime_ns)
    return found
