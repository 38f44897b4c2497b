"""Blobs on a disk, by their SHA-256. Those that were used longest ago make room for others.

A blob is in ``blobs/``, what is known of it in ``said/``, and what is being received in ``incoming/``. A blob is there
once both files are: they come by renames, the blob first, and go the other way round. So a process that is killed
leaves nothing that counts, and the next one sweeps up. One process at a time; only ``Incoming`` may take long.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[0-9a-f]{64}")


class Full(Exception):
    """There is no room for it; the message has the sizes."""


class Wrong(Exception):
    """What was received is not what was announced."""


@dataclass
class Blob:
    """What is known of a blob."""

    size: int
    owner: str
    """The namespace that stored it first, to whose share it counts."""
    public: bool
    """True where every namespace may have it."""
    namespaces: set[str]
    """Those that have stored it."""
    used: float = 0.0
    """When it was used last, in seconds since the epoch."""

    def is_for(self, namespace: str) -> bool:
        """True if pods of the namespace may have it."""
        return self.public or namespace in self.namespaces


@dataclass
class Counters:
    """What has been since the start."""

    stored: int = 0
    evicted: int = 0
    swept: int = field(default=0)
    """Leftovers that were found at the start."""


class Blobs:
    """Blobs under ``directory``: at most ``limit`` bytes, and ``share`` of them for one namespace."""

    def __init__(self, directory: Path, *, limit: int, share: int) -> None:
        self._blobs, self._said, self._incoming = (directory / name for name in ("blobs", "said", "incoming"))
        self.limit, self.share = limit, min(limit, share)
        self._known: dict[str, Blob] = {}
        self._coming: dict[str, tuple[str, int]] = {}
        self.counters = Counters()
        for each in (self._blobs, self._said):
            each.mkdir(parents=True, exist_ok=True)
        if self._incoming.exists():
            self.counters.swept += sum(1 for _ in self._incoming.iterdir())
            shutil.rmtree(self._incoming)
        self._incoming.mkdir()
        self._recover()
        while self.bytes > self.limit:  # which may be another one than last time
            self._evict(None)

    def _recover(self) -> None:
        for path in self._said.iterdir():
            blob = _read(path)
            at = self._blobs / path.name
            if blob is not None and at.is_file() and at.stat().st_size == blob.size:
                self._known[path.name] = blob
            else:
                path.unlink()
                self.counters.swept += 1
        for path in self._blobs.iterdir():
            if path.name not in self._known:
                path.unlink()
                self.counters.swept += 1

    @property
    def bytes(self) -> int:
        """Bytes of what is kept and of what is being received."""
        return sum(blob.size for blob in self._known.values()) + sum(size for _, size in self._coming.values())

    @property
    def count(self) -> int:
        """Blobs that are kept."""
        return len(self._known)

    def find(self, name: str, namespace: str) -> Path | None:
        """The file of a blob that the namespace may have; None where it may not, as where there is none."""
        blob = self._known.get(name)
        if blob is None or not blob.is_for(namespace):
            return None
        os.utime(self._said / name)
        blob.used = (self._said / name).stat().st_mtime
        return self._blobs / name

    def receive(self, name: str, namespace: str, size: int, *, public: bool) -> "Incoming":
        """Room for a blob of so many bytes. Raises Full."""
        self._make_room(namespace, size)
        ticket = uuid.uuid4().hex
        self._coming[ticket] = (namespace, size)
        return Incoming(self, name, namespace, size, ticket, self._incoming / ticket, public=public)

    def _make_room(self, namespace: str, size: int) -> None:
        if size > self.share:
            raise Full(f"it has {size} bytes, and {self.share} are what a namespace may have here")
        while self._of(namespace) + size > self.share:
            if not self._evict(namespace):
                raise Full(f"{self.share} bytes are what a namespace may have here, and others are being stored")
        while self.bytes + size > self.limit:
            if not self._evict(None):
                raise Full(f"{self.limit} bytes are what may be kept here, and others are being stored")
        # What is being received has taken some of this already, so this asks for more than is needed, for a moment.
        wanted = size + sum(coming for _, coming in self._coming.values())
        while (free := shutil.disk_usage(self._blobs).free) < wanted:
            if not self._evict(None):
                raise Full(f"it has {size} bytes, and {free} are free on the disk")

    def _of(self, namespace: str) -> int:
        kept = sum(blob.size for blob in self._known.values() if blob.owner == namespace)
        return kept + sum(size for whose, size in self._coming.values() if whose == namespace)

    def _evict(self, namespace: str | None) -> bool:
        """Remove what was used longest ago, of what counts for the namespace if one is given; False: there is none."""
        found = [name for name, blob in self._known.items() if namespace in (None, blob.owner)]
        if not found:
            return False
        name = min(found, key=lambda name: (self._known[name].used, name))
        del self._known[name]
        (self._said / name).unlink(missing_ok=True)
        # Who reads it has it open, and reads on.
        (self._blobs / name).unlink(missing_ok=True)
        self.counters.evicted += 1
        return True

    def _keep(self, incoming: "Incoming") -> None:
        before = self._known.get(incoming.name)
        blob = Blob(incoming.size, incoming.namespace, incoming.public, {incoming.namespace})
        if before is not None:
            blob = Blob(
                incoming.size, before.owner, before.public or incoming.public, before.namespaces | blob.namespaces
            )
        incoming.path.rename(self._blobs / incoming.name)
        said = self._incoming / f"{incoming.path.name}.json"
        wire = {"size": blob.size, "owner": blob.owner, "public": blob.public, "namespaces": sorted(blob.namespaces)}
        said.write_text(json.dumps(wire))
        said.rename(self._said / incoming.name)
        blob.used = (self._said / incoming.name).stat().st_mtime
        self._known[incoming.name] = blob
        self.counters.stored += 1

    def _forget(self, ticket: str) -> None:
        self._coming.pop(ticket, None)


class Incoming:
    """A blob that is being received: a context manager that leaves nothing where ``keep`` was not reached."""

    def __init__(
        self, blobs: Blobs, name: str, namespace: str, size: int, ticket: str, path: Path, *, public: bool
    ) -> None:
        self._blobs, self._ticket = blobs, ticket
        self.name, self.namespace, self.size, self.path, self.public = name, namespace, size, path, public
        self._digest, self._done = hashlib.sha256(), 0
        self._out: BinaryIO

    def __enter__(self) -> Self:
        self._out = self.path.open("xb")
        return self

    def write(self, chunk: bytes) -> None:
        """More of it. Raises Wrong where that is more than was announced, and OSError."""
        self._done += len(chunk)
        if self._done > self.size:
            raise Wrong(f"there are more than the {self.size} bytes that were announced")
        self._digest.update(chunk)
        self._out.write(chunk)

    def finish(self) -> None:
        """Have all of it on the disk. Raises Wrong where it is not what was announced, and OSError."""
        if self._done != self.size:
            raise Wrong(f"there are {self._done} bytes, and {self.size} were announced")
        if self._digest.hexdigest() != self.name:
            raise Wrong(f"its digest is sha256:{self._digest.hexdigest()}")
        self._out.flush()
        os.fsync(self._out.fileno())

    def keep(self) -> None:
        """Make it one of the blobs; ``finish`` comes before."""
        self._blobs._keep(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()
        self.path.unlink(missing_ok=True)
        self._blobs._forget(self._ticket)


def is_name(text: str) -> bool:
    """True for 64 hexadecimal digits."""
    return _NAME.fullmatch(text) is not None


def _read(path: Path) -> Blob | None:
    """What is said of a blob; None where that is not readable."""
    try:
        wire = json.loads(path.read_text())
        blob = Blob(int(wire["size"]), str(wire["owner"]), wire["public"] is True, set(map(str, wire["namespaces"])))
        blob.used = path.stat().st_mtime
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return blob if is_name(path.name) else None


def figures(blobs: Blobs) -> Iterator[tuple[str, str, str, int]]:
    """Name, type, help and value of each figure for Prometheus."""
    yield "rma_weights_cache_bytes", "gauge", "Bytes that are kept or being received.", blobs.bytes
    yield "rma_weights_cache_limit_bytes", "gauge", "Bytes that may be kept.", blobs.limit
    yield "rma_weights_cache_blobs", "gauge", "Files that are kept.", blobs.count
    yield "rma_weights_cache_stored_total", "counter", "Files that were stored.", blobs.counters.stored
    yield "rma_weights_cache_evicted_total", "counter", "Files that made room for others.", blobs.counters.evicted
    yield "rma_weights_cache_swept_total", "counter", "Leftovers found at the start.", blobs.counters.swept
