"""The devices of this container, checked: the node opens, is the device that was announced, and the driver knows it."""

import json
import os
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rm_api.names import ENV_DEVICE_NODES, ENV_DEVICE_PRODUCT, ENV_DEVICE_SERIALS

from rm_abstract.core.errors import DeviceMissing

ENV_TOOL: Final = "RMA_SIM_TOOL"
"""Name or path of the status tool, ``rma-sim`` by default."""
_TOOL_SECONDS: Final = 20


@dataclass(frozen=True)
class AllocatedDevice:
    """A device as the device plugin announced it."""

    path: Path
    major: int
    minor: int
    serial: str


@dataclass(frozen=True)
class ObservedDevice:
    """A device that was opened, and is what was announced."""

    node: str
    serial: str
    product: str
    driver: str
    memory_bytes: int


def allocated_devices(environment: Mapping[str, str]) -> list[AllocatedDevice]:
    """What the device plugin says was allocated. Raises DeviceMissing where that is nothing, or makes no sense."""
    nodes = [text for text in environment.get(ENV_DEVICE_NODES, "").split(",") if text]
    serials = environment.get(ENV_DEVICE_SERIALS, "").split(",")
    if not nodes:
        raise DeviceMissing(f"no device was allocated: {ENV_DEVICE_NODES} is empty; does the pod request one?")
    if len(serials) != len(nodes):
        raise DeviceMissing(f"{ENV_DEVICE_NODES} names {len(nodes)} devices, but {ENV_DEVICE_SERIALS} {len(serials)}")
    devices = []
    for text, serial in zip(nodes, serials, strict=True):
        path, _, numbers = text.rpartition("=")
        major, _, minor = numbers.partition(":")
        if not (path and major.isdecimal() and minor.isdecimal()):
            raise DeviceMissing(f"{ENV_DEVICE_NODES} has {text!r}, which is not path=major:minor")
        devices.append(AllocatedDevice(Path(path), int(major), int(minor), serial))
    return devices


def driver_status(tool: str) -> dict[str, Any]:
    """What the driver's status tool says. Raises DeviceMissing where it says nothing: then there is no driver."""
    try:
        done = subprocess.run(
            [tool, "status", "--json"], capture_output=True, text=True, timeout=_TOOL_SECONDS, check=False
        )
    except FileNotFoundError:
        raise DeviceMissing(f"the status tool {tool} is not installed in this image") from None
    except subprocess.TimeoutExpired:
        raise DeviceMissing(f"the driver does not answer: {tool} status took more than {_TOOL_SECONDS} s") from None
    if done.returncode:
        raise DeviceMissing(
            f"the driver does not answer: {done.stderr.strip() or done.stdout.strip() or done.returncode}"
        )
    try:
        status = json.loads(done.stdout)
        by_node = {device["node"]: device for device in status["devices"]}
        return {"driver": str(status["driver"]), "product": str(status["product"]), "devices": by_node}
    except (ValueError, KeyError, TypeError):
        raise DeviceMissing(f"{tool} status gave no status of a driver") from None


def observe(environment: Mapping[str, str]) -> list[ObservedDevice]:
    """The allocated devices, each opened and found to be the announced one. DeviceMissing for the first that is not."""
    devices = allocated_devices(environment)
    status = driver_status(environment.get(ENV_TOOL, "rma-sim"))
    announced = environment.get(ENV_DEVICE_PRODUCT, "")
    if announced and announced != status["product"]:
        raise DeviceMissing(f"the device plugin announced a {announced}, but the driver has a {status['product']}")
    return [_check(device, status) for device in devices]


def _check(device: AllocatedDevice, status: Mapping[str, Any]) -> ObservedDevice:
    known = status["devices"].get(device.path.name)
    if known is None:
        raise DeviceMissing(f"the driver knows no device {device.path.name}")
    if known.get("serial") != device.serial:
        raise DeviceMissing(
            f"{device.path.name} was announced with serial {device.serial}, but is {known.get('serial')}"
        )
    if known.get("health") != "ok":
        raise DeviceMissing(f"the driver says of {device.path.name} ({device.serial}) that it is {known.get('health')}")
    try:
        descriptor = os.open(device.path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DeviceMissing(f"{device.path} cannot be opened: {error.strerror}") from None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISCHR(found.st_mode):
        raise DeviceMissing(f"{device.path} is no character device")
    numbers = (os.major(found.st_rdev), os.minor(found.st_rdev))
    expected = {"announced": (device.major, device.minor), "the driver's": (known.get("major"), known.get("minor"))}
    for whose, pair in expected.items():
        if numbers != pair:
            raise DeviceMissing(
                f"{device.path} is device {numbers[0]}:{numbers[1]}, but {whose} is {pair[0]}:{pair[1]}"
            )
    memory = known.get("memoryMiB")
    return ObservedDevice(
        node=str(device.path),
        serial=device.serial,
        product=status["product"],
        driver=status["driver"],
        memory_bytes=memory * 1024**2 if isinstance(memory, int) else 0,
    )
