"""Whether somebody else has registered our resource's name on this node, and how long we then keep out of the way.

The kubelet knows one owner of a name, the last that registered or sent a list, and tells neither of the other. Two
things give another one away:

- The kubelet's checkpoint says which devices it was told last. IDs among them that no instance of ours ever had are
  somebody else's, while a socket that is not ours is served in the kubelet's directory, and unless the kubelet says
  that it does not give them out any more.
- The kubelet ends our stream, again and again, though neither it nor we stopped: kubelets up to 1.36 do so when another
  plugin of the same name ends.

What IDs were ever ours is kept on disk, for all instances that run for the same owner: the old and the new one during
an upgrade are not in conflict, whatever their devices are called. As the checkpoint stays as it is for a while after a
plugin has ended, and as a plugin that restarts is gone only for a moment, we come back only after the other has been
away for ``hold_seconds``, and each time that it proves to be there after all for twice as long, up to sixteen times.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final

from rm_device_plugins import files
from rm_device_plugins.logs import Log
from rm_device_plugins.sharing import device_of
from rm_device_plugins.sockets import others_served, slug

log = Log("ownership")

CHECKPOINT: Final = "kubelet_internal_checkpoint"
MAX_IDS: Final = 4096
"""IDs that are remembered, the latest; more than a node has, less than partitions that come and go fill a disk with."""
MAX_LOSSES: Final = 3
"""Streams that the kubelet may end within ``LOSS_SECONDS`` before we keep out of the way."""
LOSS_SECONDS: Final = 600.0
PROBE_SECONDS: Final = 5.0
_MAX_DOUBLINGS: Final = 4
_NAMED: Final = 3

_Version = tuple[int, int, int] | None


def state_file(directory: Path, resource: str, owner: str, kind: str) -> Path:
    """A file of all instances that advertise ``resource`` for ``owner``: not of others, whose devices are not ours."""
    mark = f"-{hashlib.sha256(owner.encode()).hexdigest()[:8]}" if owner else ""
    return directory / f"{slug(resource)[:200]}{mark}.rma-{kind}.json"


class _File:
    """JSON that others write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: _Version = None
        self._content: Any = None

    def read(self) -> Any:
        """What is in it; None if there is nothing, or nothing that can be read now."""
        try:
            found = os.stat(self._path)
            version = found.st_ino, found.st_mtime_ns, found.st_size
            if version != self._version:
                self._content = json.loads(self._path.read_bytes())
                self._version = version
        except FileNotFoundError:
            self._version = self._content = None
        except (OSError, ValueError, RecursionError):
            # It may be about to be written; what it said before is not what it says now.
            self._version = self._content = None
        return self._content


class OwnIds:
    """IDs of devices that instances of this owner ever advertised."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _File(path)
        self._ids: dict[str, None] = {}
        self._tried: object = None

    def add(self, ids: Iterable[str]) -> None:
        """Remembers them, beside those that other instances have written meanwhile."""
        written = self._file.read()
        if isinstance(written, list):
            self._ids |= dict.fromkeys(each for each in written if isinstance(each, str))
        self._ids |= dict.fromkeys(ids)
        self._ids = dict.fromkeys(list(self._ids)[-MAX_IDS:])
        if isinstance(written, list) and set(written) == self._ids.keys():
            return
        if self._tried == (attempt := (written, self._ids)):
            return
        self._tried = attempt
        try:
            files.write(self._path, json.dumps(list(self._ids)).encode(), durable=False)
        except OSError as error:
            log.warning("the devices' IDs cannot be kept", file=self._path, cause=str(error))

    def strange(self, ids: Iterable[str]) -> list[str]:
        """Those that are nobody's of ours, sorted."""
        return sorted(each for each in ids if device_of(each) not in self._ids)


class Ownership:
    """Looks whether the name is ours alone.

    ``ids`` gives the IDs of our devices, ``hold_seconds`` the present setting, and ``offered`` asks the kubelet which
    devices of the resource it gives out, None where it does not say.
    """

    def __init__(
        self,
        directory: Path,
        resource: str,
        owner: str,
        ids: Callable[[], Iterable[str]],
        hold_seconds: Callable[[], float],
        offered: Callable[[], Awaitable[Collection[str] | None]],
    ) -> None:
        self._directory = directory
        self._resource = resource
        self._ids = ids
        self._hold_seconds = hold_seconds
        self._offered = offered
        self._own = OwnIds(state_file(directory, resource, owner, "ids"))
        self._checkpoint = _File(directory / CHECKPOINT)
        self._looked = False
        self._probe_at = 0.0
        self._served: Collection[Path] = ()
        self._until = 0.0
        self._doublings = 0
        self._losses: list[float] = []
        self.conflict = ""
        """Who else has the name, in words; empty while nobody does."""

    async def look(self, own_sockets: Collection[Path], now: float) -> str:
        """Looks again, at ``now`` of a clock that never goes back; returns ``conflict``."""
        self._own.add(self._ids())
        strange = self._own.strange(self._told())
        first, self._looked = not self._looked, True
        if not strange:
            self._probe_at = 0.0
        else:
            if now >= self._probe_at:
                # Seldom: some plugins log a warning for each connection that asks for nothing.
                self._probe_at = now + min(PROBE_SECONDS, self._hold_seconds() / 4)
                self._served = await self._at_work(strange, own_sockets)
            if served := self._served:
                self._see(
                    f"the kubelet has {_several(strange)} as {self._resource}, which this plugin never advertised; "
                    f"other plugins' sockets in {self._directory}: {_several(sorted(path.name for path in served))}",
                    now,
                )
            elif first:
                # It ended a moment ago, as when the node starts, or for good.
                self._see(f"the kubelet had {_several(strange)} as {self._resource} from another plugin, now gone", now)
        if self.conflict and now >= self._until:
            log.info("nobody else has the resource any more", resource=self._resource)
            self.conflict = ""
        return self.conflict

    async def _at_work(self, strange: Collection[str], own_sockets: Collection[Path]) -> Collection[Path]:
        """Sockets of which one may be that of whoever told of ``strange``; none if these are a memory only."""
        served = others_served(self._directory, own_sockets)
        offered = await self._offered() if served else None
        return () if offered is not None and not set(strange) & set(offered) else served

    def lost_stream(self, now: float) -> None:
        """The kubelet ended our stream, and neither it, nor we, nor another instance of ours had stopped."""
        self._losses = [*(at for at in self._losses if now - at < LOSS_SECONDS), now]
        if len(self._losses) >= MAX_LOSSES:
            self._see(
                f"the kubelet ended our stream {len(self._losses)} times within {LOSS_SECONDS:.0f} s and was there all "
                f"the time, as when another plugin of {self._resource} comes and goes",
                now,
            )

    def _see(self, words: str, now: float) -> None:
        if not self.conflict:
            log.error("somebody else has the resource; keeping out of the way", resource=self._resource, cause=words)
            if self._until:
                self._doublings = min(self._doublings + 1, _MAX_DOUBLINGS)
        self.conflict = words
        self._until = now + self._hold_seconds() * 2**self._doublings

    def _told(self) -> list[str]:
        """Healthy devices of the resource that the kubelet was told last."""
        content = self._checkpoint.read()
        with contextlib.suppress(AttributeError, TypeError):
            told = (content or {}).get("Data", {}).get("RegisteredDevices", {}).get(self._resource)
            return [each for each in told or [] if isinstance(each, str)]
        return []


def _several(names: Collection[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more
