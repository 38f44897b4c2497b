"""Compiled models on disk: each compiled once, whoever asks, complete or absent, checked, and removed when unneeded."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rm_abstract.core import errors
from rm_abstract.core.artifact_shelf import Check, Entry, Hold, Shelf
from rm_abstract.core.binary.compilers import BinaryCompilerAdapter, build_key
from rm_abstract.core.errors import ArtifactMismatch, BadInput, WorkloadError
from rm_abstract.core.filelock import locked
from rm_abstract.core.resource import BuildArtifact

__all__ = ["ArtifactCache", "Build", "Check", "Collected", "Entry", "Hold"]

Build = Callable[[Path], object]
"""Makes an artifact at the path that it is given, which does not exist: a directory or a file, with its description."""


@dataclass(frozen=True)
class Collected:
    """What a collection did."""

    removed: tuple[tuple[str, int], ...]
    """Keys and versions."""
    freed_bytes: int
    kept: Mapping[tuple[str, int], str]
    """Why something that was due was kept: ``in use`` or ``referenced by …``."""
    total_bytes: int
    """What is left."""


class ArtifactCache:
    """A directory of artifacts, shared by any number of threads and processes of a machine.

    ``max_bytes`` and ``max_age`` (seconds since the last use) are what ``collect`` goes by, which is called after each
    build too; ``keep_versions`` is how many versions of a key stay. ``check`` is what ``get`` looks at before it gives
    an artifact away. ``clock`` gives seconds since 1970. The root must be on a file system with locks of its own.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        max_age: float | None = None,
        keep_versions: int = 1,
        check: Check = "quick",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if keep_versions < 1:
            raise BadInput(f"keep_versions is {keep_versions}; at least the newest is kept")
        self.max_bytes = max_bytes
        self.max_age = max_age
        self.keep_versions = keep_versions
        self.check: Check = check
        self._clock = clock
        self._shelf = Shelf(Path(root).expanduser().absolute(), clock)

    # Getting

    def get(self, key: str, version: int | None = None) -> Hold | None:
        """The artifact of this key, the newest version or the given one; None where it is not there.

        One that is found damaged is moved aside, as if it had not been there; then an older version may be.
        """
        for number in reversed(self._shelf.numbers(key)):
            if version in (None, number):
                hold = self._shelf.hold(key, number, self.check)
                if hold is not None:
                    return hold
        return None

    def get_or_build(self, key: str, build: Build, *, name: str = "artifact", timeout: float | None = None) -> Hold:
        """The newest artifact of this key, built now where there is none: by one caller, while all others wait for it.

        ``build`` gets the path that it is to fill, whose last part is ``name``. Raises what it raises, to those who
        waited for it too; and Transient where somebody else built for more than ``timeout`` seconds.
        """
        hold = self.get(key)
        if hold is not None:
            return hold
        began = self._clock()
        with locked(self._shelf.lock(key), timeout=timeout):
            hold = self.get(key)
            if hold is not None:
                return hold
            self._raise_shared(key, began)
            hold = self._build(key, build, name)
        self._collect_if_limited()
        return hold

    def rebuild(self, key: str, build: Build, *, name: str = "artifact", timeout: float | None = None) -> Hold:
        """A new version of the artifact of this key. The one before it stays until it is collected.

        Raises as ``get_or_build`` does.
        """
        with locked(self._shelf.lock(key), timeout=timeout):
            hold = self._build(key, build, name)
        self._collect_if_limited()
        return hold

    def compile(
        self,
        compiler: BinaryCompilerAdapter,
        input_path: str | os.PathLike[str],
        *,
        model_id: str = "",
        timeout: float | None = None,
    ) -> Hold:
        """What the compiler makes of the model, under the key that profile and content have. Raises as it does."""
        key = build_key(compiler.build_profile, Path(input_path), model_id=model_id)
        return self.get_or_build(
            key, lambda path: compiler.compile(input_path, path, key, model_id=model_id), timeout=timeout
        )

    # Looking, and keeping

    def versions(self, key: str) -> list[int]:
        """The versions of this key that are there, the oldest first."""
        return self._shelf.numbers(key)

    def entries(self) -> list[Entry]:
        """All that is there, by key and version."""
        return list(self._shelf.entries())

    def last_used(self, key: str, version: int) -> float:
        """When it was last given away, in seconds since 1970; 0 where it is not there."""
        return self._shelf.last_used(key, version)

    def reference(self, key: str, owner: str, version: int | None = None) -> None:
        """Keep the newest or the given version, beyond the end of this process, until ``owner`` needs it no more.

        Raises BadInput where it is not there.
        """
        with locked(self._shelf.lock(key)):
            newest = max(self.versions(key), default=1)
            self._shelf.refer(key, newest if version is None else version, owner)

    def unreference(self, key: str, owner: str) -> None:
        """``owner`` needs none of the versions any more. Harmless where it needed none."""
        self._shelf.forget(key, owner)

    def references(self, key: str, version: int) -> list[str]:
        """Who needs this version."""
        return self._shelf.owners(key, version)

    def verify(self) -> dict[tuple[str, int], str]:
        """Take the digests of all that is there; what is damaged is moved aside. What that was, and why."""
        problems = {(entry.key, entry.version): self._shelf.verify(entry) for entry in self.entries()}
        return {this: problem for this, problem in problems.items() if problem}

    # Collecting

    def collect(self) -> Collected:
        """Remove superseded versions, what was not used for ``max_age``, then the longest unused down to ``max_bytes``.

        What is held or referenced stays, and is told. What died builders left, and what was damaged and is old, goes.
        """
        now = self._clock()
        oldest = float("-inf") if self.max_age is None else now - self.max_age
        entries = self.entries()
        used = {(each.key, each.version): self.last_used(each.key, each.version) for each in entries}
        newer: dict[str, int] = {}
        superseded = set()
        for entry in reversed(entries):
            if newer.setdefault(entry.key, 0) >= self.keep_versions:
                superseded.add((entry.key, entry.version))
            newer[entry.key] += 1
        removed: list[tuple[str, int]] = []
        kept: dict[tuple[str, int], str] = {}
        left = total = sum(entry.size_bytes for entry in entries)
        # What goes anyway goes first, so that what may stay is not removed for its sake.
        for entry in sorted(
            entries, key=lambda each: ((each.key, each.version) not in superseded, used[each.key, each.version])
        ):
            this = entry.key, entry.version
            if this in superseded or used[this] < oldest or (self.max_bytes is not None and left > self.max_bytes):
                reason = self._shelf.remove(entry)
                if reason:
                    kept[this] = reason
                else:
                    removed.append(this)
                    left -= entry.size_bytes
        self._shelf.sweep(oldest)
        return Collected(tuple(removed), total - left, kept, left)

    def _collect_if_limited(self) -> None:
        if self.max_bytes is not None or self.max_age is not None:
            self.collect()

    # Building, under the lock of the key

    def _build(self, key: str, build: Build, name: str) -> Hold:
        place = self._shelf.scratch(key) / "entry"
        place.mkdir()
        failure = self._failure(key)
        try:
            build(place / name)
            artifact = BuildArtifact.read(place / name)
            if artifact.key != key:
                raise ArtifactMismatch(f"what was built has the key {artifact.key}, but {key} was asked for")
            artifact = artifact.sealed()
            artifact.write()
            artifact.validate()
            number = self._shelf.add(artifact)
        except WorkloadError as error:
            if not error.code.retryable:
                # Those who wait would only see the same.
                about = {"at": self._clock(), "kind": type(error).__name__, "message": str(error)}
                failure.write_text(json.dumps(about), encoding="utf-8")
            raise
        finally:
            self._shelf.clear(key)
        failure.unlink(missing_ok=True)
        hold = self._shelf.hold(key, number, "no", built=True)
        assert hold is not None
        return hold

    def _failure(self, key: str) -> Path:
        lock = self._shelf.lock(key)
        return lock.with_name(f"{lock.name}.failed")

    def _raise_shared(self, key: str, began: float) -> None:
        try:
            failure = json.loads(self._failure(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        if failure["at"] > began:
            kind = getattr(errors, failure["kind"], errors.ToolchainFailure)
            raise kind(failure["message"])
