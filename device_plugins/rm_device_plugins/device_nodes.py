"""Device files of the host, for vendors' modules."""

import os
import stat
from pathlib import Path

from rm_device_plugins.vendor import DeviceNode, VendorError


def character_device(path: str, container_path: str = "") -> DeviceNode:
    """The node at ``path``, which may be a symbolic link to it. Raises VendorError where there is none."""
    try:
        real = os.path.realpath(path)
        found = os.stat(real)
    except OSError as error:
        raise VendorError(f"{path}: {error.strerror}") from error
    if not stat.S_ISCHR(found.st_mode):
        raise VendorError(f"{path} is no character device")
    return DeviceNode(real, container_path or path, os.major(found.st_rdev), os.minor(found.st_rdev))


def read_attribute(path: Path) -> str:
    """What a file of sysfs says, without the line's end. Raises VendorError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise VendorError(f"{path}: {error.strerror}") from error


def numa_nodes(text: str) -> tuple[int, ...]:
    """The node that sysfs or a tool names; none for ``-1``, which means that the platform does not say."""
    try:
        number = int(text)
    except ValueError:
        raise VendorError(f"{text!r} is no number of a NUMA node") from None
    return (number,) if number >= 0 else ()
