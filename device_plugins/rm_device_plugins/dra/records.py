"""What is prepared, on disk: one file for each claim, so that a broken one is about one claim.

Unprepare is told a UID and nothing else, maybe in another instance of the driver than the one that prepared. A record
is written before anything else of a claim exists, and removed after everything else of it is gone.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rm_device_plugins import files
from rm_device_plugins.dra import naming
from rm_device_plugins.logs import Log

log = Log("records")

VERSION = 1
_SUFFIX = ".json"
_BROKEN = ".broken"


class BrokenRecord(Exception):
    """A record that cannot be read. Nothing is known but its claim's UID."""


@dataclass(frozen=True, slots=True)
class Held:
    """A device that a claim has."""

    request: str
    device: str
    """Its name in the pool."""
    admin: bool = False
    """For looking after it: somebody else may have it at the same time."""


@dataclass(frozen=True, slots=True)
class Record:
    """A claim that is prepared, or is being."""

    namespace: str
    name: str
    uid: str
    devices: tuple[Held, ...]
    boot: str
    """Device numbers and what a hook did last until the machine starts again."""
    attempt: str
    """Tells a preparation from another one of the same claim."""
    cdi_ids: tuple[tuple[str, ...], ...] = ()
    """What the kubelet was told for each of the devices; empty while it is being prepared."""
    cdi_digest: str = ""
    """Of the CDI file; empty while it is being prepared."""

    @property
    def prepared(self) -> bool:
        """Whether everything was done."""
        return bool(self.cdi_digest)

    def finished(self, cdi_ids: tuple[tuple[str, ...], ...], cdi_digest: str) -> "Record":
        """The record of the same claim, prepared."""
        return replace(self, cdi_ids=cdi_ids, cdi_digest=cdi_digest)


class Records:
    """The files in ``directory``. The caller holds the lock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Makes the directory, and clears what an interrupted write has left. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.remove_temporary(self._directory, "")

    def _path(self, uid: str, suffix: str = _SUFFIX) -> Path:
        return self._directory / f"{naming.check_uid(uid)}{suffix}"

    def uids(self) -> set[str]:
        """Claims that have a record, readable or not."""
        return {path.stem for path in self._directory.iterdir() if path.suffix in (_SUFFIX, _BROKEN)}

    def get(self, uid: str) -> Record | None:
        """The claim's record; None if it has none, or had one that could not be read and was put aside."""
        path = self._path(uid)
        try:
            return _decode(path.read_bytes(), uid)
        except FileNotFoundError:
            return None
        except BrokenRecord as error:
            aside = self._path(uid, _BROKEN)
            path.replace(aside)
            log.error("a record of a prepared claim cannot be read and is put aside", file=aside, cause=str(error))
            return None

    def all(self) -> Iterator[Record]:
        """All that can be read."""
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            if path.name.startswith("."):
                continue
            record = self.get(path.stem)
            if record is not None:
                yield record

    def put(self, record: Record) -> None:
        """Writes it, also over an earlier one. Raises OSError."""
        files.write(self._path(record.uid), _encode(record))
        files.remove(self._path(record.uid, _BROKEN))

    def remove(self, uid: str) -> None:
        """Removes the claim's record; that there is none is no error."""
        files.remove(self._path(uid))
        files.remove(self._path(uid, _BROKEN))


def _digest(claim: object) -> str:
    return hashlib.sha256(json.dumps(claim, sort_keys=True).encode()).hexdigest()


def _encode(record: Record) -> bytes:
    claim = asdict(record)
    return json.dumps({"version": VERSION, "sha256": _digest(claim), "claim": claim}).encode()


def _decode(content: bytes, uid: str) -> Record:
    try:
        raw = json.loads(content)
        if raw["version"] != VERSION:
            raise BrokenRecord(f"its version is {raw['version']!r}, and not {VERSION}")
        claim = raw["claim"]
        if raw["sha256"] != _digest(claim):
            raise BrokenRecord("its checksum is wrong")
        devices = tuple(Held(**held) for held in claim.pop("devices"))
        cdi_ids = tuple(tuple(ids) for ids in claim.pop("cdi_ids"))
        record = Record(devices=devices, cdi_ids=cdi_ids, **claim)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenRecord(repr(error)) from error
    if record.uid != uid:
        raise BrokenRecord(f"it is of the claim {record.uid}")
    return record
