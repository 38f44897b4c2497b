"""Unix sockets in the kubelet's directory: names, identity, and the removal of those that nobody serves."""

import asyncio
import contextlib
import os
import re
import secrets
import socket
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from rm_device_plugins.config import ConfigError
from rm_device_plugins.kubelet_api import KUBELET_SOCKET
from rm_device_plugins.logs import Log

log = Log("sockets")

MAX_PATH_BYTES = 107
"""The kernel's limit of 108 less the terminating zero."""

_PROBE_SECONDS = 0.2


class SocketIdentity(NamedTuple):
    """Tells a re-created socket from its predecessor, also where the file system gave it the same inode.

    The time is that of the last modification, which is its creation: changing owner or mode does not touch it.
    """

    device: int
    inode: int
    modified_ns: int


def identity(path: Path) -> SocketIdentity | None:
    """Identity of the socket at ``path``; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return SocketIdentity(found.st_dev, found.st_ino, found.st_mtime_ns) if stat.S_ISSOCK(found.st_mode) else None


def slug(resource: str) -> str:
    """The resource's name as part of a file name."""
    return resource.replace("/", "_")


def new_socket_path(directory: Path, resource: str) -> Path:
    """A name that no other instance has: ``<resource>-<8 hex digits>.sock``; the resource is cut to what fits."""
    suffix = f"-{secrets.token_hex(4)}.sock"
    room = MAX_PATH_BYTES - len(os.fsencode(directory)) - 1 - len(suffix)
    if room < 1:
        raise ConfigError(f"{directory} is too long for a socket's path: {MAX_PATH_BYTES} bytes are the kernel's limit")
    return directory / f"{slug(resource)[:room]}{suffix}"


async def remove_stale(directory: Path, resource: str) -> list[Path]:
    """Removes sockets of earlier instances of this resource that nobody listens on; returns them.

    Probed twice with a pause: another instance may have bound its socket and be about to listen.
    """
    suspects = {path: identity(path) for path in _instances(directory, resource) if refuses(path)}
    if not suspects:
        return []
    await asyncio.sleep(_PROBE_SECONDS)
    stale = [path for path, seen in suspects.items() if identity(path) == seen and refuses(path)]
    for path in stale:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        log.info("removed a stale socket", path=path)
    return stale


def served_siblings(directory: Path, resource: str, besides: Path) -> dict[Path, SocketIdentity]:
    """Sockets of other instances of this resource that somebody listens on."""
    return _served(path for path in _instances(directory, resource) if path != besides)


def others_served(directory: Path, besides: Collection[Path]) -> dict[Path, SocketIdentity]:
    """Sockets of other plugins, whatever their resource, that somebody listens on."""
    return _served(path for path in others(directory) if path not in besides)


def others(directory: Path) -> dict[Path, SocketIdentity]:
    """Sockets of plugins in the directory, whether or not somebody listens on them."""
    paths = (directory / name for name in os.listdir(directory) if name != KUBELET_SOCKET)
    return {path: seen for path in paths if (seen := identity(path)) is not None}


def is_sibling(path: Path, resource: str) -> bool:
    """True if the socket has the name of one of our instances for this resource."""
    return _pattern(path.parent, resource).fullmatch(path.name) is not None


def _instances(directory: Path, resource: str) -> list[Path]:
    ours = _pattern(directory, resource)
    return [directory / name for name in os.listdir(directory) if ours.fullmatch(name)]


def _served(paths: Iterable[Path]) -> dict[Path, SocketIdentity]:
    known = {path: seen for path in paths if (seen := identity(path)) is not None}
    return {path: seen for path, seen in known.items() if not refuses(path)}


def _pattern(directory: Path, resource: str) -> re.Pattern[str]:
    room = MAX_PATH_BYTES - len(os.fsencode(directory)) - 1 - len("-00000000.sock")
    return re.compile(re.escape(slug(resource)[: max(room, 0)]) + r"-[0-9a-f]{8}\.sock")


def refuses(path: Path) -> bool:
    """True if nobody listens on the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
