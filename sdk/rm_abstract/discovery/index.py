"""The index: what every source file below a root offers, remembered on disk from process to process.

A file whose times and size are those that were noted is neither opened nor imported. One whose times differ is read,
and understood anew only if its content differs too. The index is a cache: one that is missing, damaged or of another
version is made again, and where it cannot be written everything works as before, a little slower.
"""

import logging
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from rm_abstract.discovery.entry_points import RACE_NS
from rm_abstract.discovery.places import SYNTHETIC, File, Root
from rm_abstract.discovery.source import Facts
from rm_abstract.discovery.store import Store

_log = logging.getLogger("rm_abstract.plugin")

_NO_STAMP = [0, 0, 0]


class SharedFacts(Protocol):
    """A cache of facts that other machines use too, by content. It never fails: what it cannot say it does not know."""

    def get(self, keys: Iterable[str]) -> dict[str, Facts]:
        """Those of the facts that it knows."""

    def put(self, facts: Mapping[str, Facts]) -> None:
        """Remember facts."""


class Reading(NamedTuple):
    """What is known of one file."""

    file: File
    facts: Facts


class Index:
    """What the files of one root offer, as ``read`` understands them: ``read_plugins`` or ``read_classes``.

    Not safe for several threads at once; several processes may share the store.
    """

    def __init__(
        self, root: Root, read: Callable[..., Facts], store: Store, *, shared: SharedFacts | None = None
    ) -> None:
        self.root = root
        self.readings: list[Reading] = []
        """The files that offer something, or fail, by path."""
        self.understood = 0
        """How many files were understood anew so far, because no cache knew them."""
        self._read, self._store, self._shared = read, store, shared
        self._what = "\0".join((root.path, root.prefix, read.__name__, sys.implementation.cache_tag or ""))
        self._name = f"index-{zlib.crc32(self._what.encode()):08x}"
        self._known: dict[str, Entry] | None = None
        self._files: list[File] = []

    def update(self) -> bool:
        """Look at the files; true if what they offer has changed since this object's last look."""
        first = self._known is None
        known = self._load() if self._known is None else self._known
        files = sorted(self.root.files())
        now: dict[str, Entry] = {}
        unsure = []
        for file in files:
            entry = known.get(file.path)
            if entry is not None and entry[0] == file.stamp:
                now[file.path] = entry
            else:
                unsure.append(file)
        if unsure:
            now.update(self._look_into(unsure, known))
        if (unsure or len(now) != len(known)) and now != known:
            self._save(now)
        changed = first or _offers(now) != _offers(known)
        self._known = now
        self._files = files
        if changed:
            self._publish()
        return changed

    def replace(self, path: str, facts: Facts) -> None:
        """Note what an import has told of a file; it holds until the file's content changes."""
        if self._known is not None and path in self._known:
            self._known[path] = (*self._known[path][:2], facts)
            self._save(self._known)
            self._publish()

    def _publish(self) -> None:
        known = self._known or {}
        self.readings = [
            Reading(file, entry[2]) for file in self._files if (entry := known.get(file.path)) and entry[2]
        ]

    def _load(self) -> "dict[str, Entry]":
        saved = self._store.read(self._name)
        try:
            if saved["what"] == self._what:
                return {path: (stamp, digest, facts) for path, (stamp, digest, facts) in saved["files"].items()}
        except (TypeError, KeyError, ValueError, AttributeError):
            pass  # there is none, or one that another program wrote
        return {}

    def _save(self, entries: "dict[str, Entry]") -> None:
        self._store.write(self._name, {"what": self._what, "files": entries})

    def _look_into(self, files: Iterable[File], known: "dict[str, Entry]") -> "dict[str, Entry]":
        """Read files whose stamps are not the known ones, and understand those with another content."""
        import hashlib  # noqa: PLC0415 (most looks find nothing to read)

        recent = time.time_ns() - RACE_NS
        result: dict[str, Entry] = {}
        sources: dict[str, tuple[File, bytes]] = {}
        for file in files:
            try:
                with open(file.path, "rb") as opened:
                    source = opened.read()
            except OSError as error:
                _log.debug("%s is left out: %s", file.path, error)
                continue
            digest = hashlib.sha256(source).hexdigest()
            stamp = file.stamp if max(file.stamp[:2]) < recent else _NO_STAMP
            before = known.get(file.path)
            if before is not None and before[1] == digest:
                result[file.path] = stamp, digest, before[2]
            else:
                result[file.path] = stamp, digest, {}
                sources[file.path] = file, source
        if sources:
            keys = {path: self._shared_key(file, result[path][1]) for path, (file, _) in sources.items()}
            for path, facts in self._understand(sources, keys).items():
                result[path] = *result[path][:2], facts
        return result

    def _understand(self, sources: Mapping[str, tuple[File, bytes]], keys: Mapping[str, str]) -> dict[str, Facts]:
        shared = self._shared.get(keys.values()) if self._shared else {}
        result = {path: shared[key] for path, key in keys.items() if key in shared}
        fresh = {}
        for path, (file, source) in sources.items():
            if path not in result:
                self.understood += 1
                try:
                    result[path] = fresh[keys[path]] = self._read(source, file.module, package=file.is_package)
                except (SyntaxError, ValueError, RecursionError) as error:
                    result[path] = {"error": f"{type(error).__name__}: {error}"}
        if self._shared and fresh:
            self._shared.put(fresh)
        return result

    def _shared_key(self, file: File, digest: str) -> str:
        """The same on all machines: by content and name, for imports may be relative to the module."""
        package, _, rest = file.module.partition(".")
        name = rest if package.startswith(SYNTHETIC) else file.module
        return f"{self._read.__name__}:{name}:{int(file.is_package)}:{digest}"


Entry = tuple[list[int], str, Facts]
"""Stamp, digest of the content, and what it offers."""


def _offers(entries: Mapping[str, Entry]) -> dict[str, Facts]:
    return {path: facts for path, (_, _, facts) in entries.items() if facts}
