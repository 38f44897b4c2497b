"""Names that the API, the kubelet and the container runtime take, from those that vendors give. Pure."""

import hashlib
import re

from rm_device_plugins.config import ConfigError

MAX_DRIVER_NAME = 60
"""The API takes 63 characters; the service's socket needs room in a path of 107 bytes."""
MAX_LABEL = 63
MAX_OBJECT_NAME = 253
DEVICES = "device"
DEFAULT_DOMAIN = "rm-abstract.io"

_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9]{0,126}[A-Za-z0-9])?")


def driver_name(wanted: str | None, vendor: str) -> str:
    """The driver's name: ``wanted``, or one of our domain for a vendor that has a name. Raises ConfigError."""
    name = wanted or f"{vendor}.{DEFAULT_DOMAIN}"
    if not wanted and not _LABEL.fullmatch(vendor):
        raise ConfigError(f"the vendor {vendor!r} gives the driver no name: set RMA_DRA_DRIVER, or --driver")
    if len(name) > MAX_DRIVER_NAME or not _DOMAIN.fullmatch(name):
        raise ConfigError(
            f"the driver's name {name!r} is malformed: it must be a lower-case DNS domain of at most {MAX_DRIVER_NAME} "
            "characters, such as npu.example.com"
        )
    return name


def check_node(name: str) -> str:
    """``name``, which is also that of the pool. Raises ConfigError unless it is a node's."""
    if not name:
        raise ConfigError("no node's name: set NODE_NAME by the downward API (spec.nodeName), or --node")
    if len(name) > MAX_OBJECT_NAME or not _DOMAIN.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a node's name")
    return name


def resource_name(driver: str) -> str:
    """What stands for the devices where a device plugin has the name of its resource."""
    return f"{driver}/{DEVICES}"


def cdi_kind(driver: str) -> str:
    """The kind of the driver's CDI devices. What comes before the slash has to begin with a letter there."""
    return f"{driver}/{DEVICES}" if driver[0].isalpha() else f"rma.{driver}/{DEVICES}"


def device_name(device_id: str) -> str:
    """A device's name in its pool. It is the ID where that is a DNS label; otherwise what is left of it and a hash."""
    if len(device_id) <= MAX_LABEL and _LABEL.fullmatch(device_id):
        return device_id
    digest = hashlib.sha256(device_id.encode()).hexdigest()[:8]
    left = re.sub(r"[^a-z0-9]+", "-", device_id.lower()).strip("-")[: MAX_LABEL - len(digest) - 1].strip("-")
    return f"{left}-{digest}" if left else digest


def slice_name(node: str, driver: str, number: int) -> str:
    """The name of a pool's ResourceSlice. All instances of a driver call it so: they adopt it and make no second one.

    The scheduler goes through slices in the order of their names.
    """
    name = f"{node}-{driver}-{number:03d}"
    if len(name) <= MAX_OBJECT_NAME:
        return name
    tail = f"-{hashlib.sha256(node.encode()).hexdigest()[:8]}-{driver}-{number:03d}"
    return node[: MAX_OBJECT_NAME - len(tail)].rstrip("-.") + tail


def check_uid(uid: str) -> str:
    """``uid`` where it may be part of a file's name; raises ValueError if it may not."""
    if not _UID.fullmatch(uid):
        raise ValueError(f"{uid!r} is no UID of a claim")
    return uid


def cdi_name(uid: str, part: str) -> str:
    """Name of a CDI device for a part of a claim: a request, whose name may contain a slash, or a device of one."""
    return f"{uid}-{part.replace('/', '.')}"
