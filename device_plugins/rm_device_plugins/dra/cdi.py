"""CDI files: what the container runtime adds to containers that have a claim's devices.

One file for each claim. In it, one CDI device for each device, with its nodes, and one for each request, with what its
devices have in common: the variables, mounts and nodes that belong to all of them. The kubelet names to the runtime
those of the requests that a container takes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_device_plugins import files
from rm_device_plugins.dra import naming
from rm_device_plugins.vendor import DeviceNode, Mount

VERSION = "0.5.0"
"""The first in which a node's path on the host may differ from the container's; containerd 1.7 and 2 know it."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a container gets that takes one of the claim's requests."""

    name: str
    devices: tuple[tuple[str, tuple[DeviceNode, ...]], ...]
    """Names in the pool, and their nodes."""
    environment: Mapping[str, str]
    mounts: tuple[Mount, ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    """Those that belong to all of the devices."""
    others: tuple[str, ...] = ()
    """Qualified names of CDI devices that somebody else describes."""


def spec(driver: str, uid: str, requests: Iterable[Request]) -> tuple[bytes, dict[tuple[str, str], tuple[str, ...]]]:
    """The file's content, and the qualified names of CDI devices for each device, by request and name in the pool.

    A device's own comes first: by it the kubelet shows the device's health. What a request's devices have in common is
    with its first one.
    """
    kind = naming.cdi_kind(driver)
    devices: list[Json] = []
    ids: dict[tuple[str, str], tuple[str, ...]] = {}
    for request in requests:
        common = naming.cdi_name(uid, request.name)
        for position, (name, nodes) in enumerate(request.devices):
            own = naming.cdi_name(uid, f"{request.name}/{name}")
            named = [f"{kind}={own}"] if nodes else []
            if nodes:
                devices.append(_device(own, nodes))
            ids[request.name, name] = (*named, *(() if position else (f"{kind}={common}", *request.others)))
        devices.append(_device(common, request.nodes, request.environment, request.mounts))
    content = {"cdiVersion": VERSION, "kind": kind, "devices": devices}
    return json.dumps(content, indent=1).encode() + b"\n", ids


def _device(
    name: str, nodes: Sequence[DeviceNode], environment: Mapping[str, str] | None = None, mounts: Sequence[Mount] = ()
) -> Json:
    edits: Json = {}
    if nodes:
        edits["deviceNodes"] = [
            {
                "path": node.container_path,
                "hostPath": node.host_path,
                "type": "c",
                "major": node.major,
                "minor": node.minor,
                "permissions": node.permissions,
            }
            for node in nodes
        ]
    if mounts:
        edits["mounts"] = [
            {
                "hostPath": mount.host_path,
                "containerPath": mount.container_path,
                "options": ["ro" if mount.read_only else "rw", "rbind", "nosuid", "nodev"],
            }
            for mount in mounts
        ]
    if environment:
        edits["env"] = [f"{key}={value}" for key, value in environment.items()]
    return {"name": name, "containerEdits": edits}


def digest(content: bytes) -> str:
    """Tells one content from another."""
    return hashlib.sha256(content).hexdigest()


class Specs:
    """The files of one driver in the directory that the container runtime watches."""

    def __init__(self, directory: Path, driver: str) -> None:
        self._directory = directory
        self._prefix = f"{driver}-{naming.DEVICES}_"

    def prepare(self) -> None:
        """Makes the directory, and clears what an interrupted write has left. Raises OSError."""
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.remove_temporary(self._directory, self._prefix)

    def path(self, uid: str) -> Path:
        """The claim's file."""
        return self._directory / f"{self._prefix}{naming.check_uid(uid)}.json"

    def write(self, uid: str, content: bytes) -> None:
        """Replaces the claim's file. Raises OSError."""
        files.write(self.path(uid), content)

    def has(self, uid: str, wanted: str) -> bool:
        """Whether the claim's file is there with the content that has this digest."""
        try:
            return digest(self.path(uid).read_bytes()) == wanted
        except OSError:
            return False

    def remove(self, uid: str) -> None:
        """Removes the claim's file; that there is none is no error."""
        files.remove(self.path(uid))

    def uids(self) -> set[str]:
        """Claims that have a file."""
        found = self._directory.glob(f"{self._prefix}*.json")
        return {path.name.removeprefix(self._prefix).removesuffix(".json") for path in found}
