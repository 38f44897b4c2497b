"""What a device plugin or an observer says of the devices of its node, as far as the operator acts on it.

A report comes over the network from a vendor's program: everything in it is bounded, and what is not understood is an
error with a message, never half a report. Devices that are well and that nobody else uses are only counted: thousands
of nodes are remembered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from rm_api.kinds.accelerator_resource import DeviceFailure

MAX_REPORT_BYTES: Final = 1 << 20
"""A report has some 300 bytes for each device and 100 for each pod."""
MAX_DEVICES: Final = 4096
MAX_PODS: Final = 256
"""Pods of one device that are kept: as many as shares that anybody makes of one."""
MAX_VERSION: Final = 128
MAX_CAUSE: Final = 512
MAX_MESSAGE: Final = 512
_MAX_ID: Final = 256

PodKey = tuple[str, str]
"""Namespace and name of a pod."""


class ReportError(ValueError):
    """Something is no report; the message says in what way."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is not well, or that something outside of Kubernetes uses."""

    id: str
    """As the kubelet knows it; of a shared device, without the number of the share."""
    healthy: bool
    failure: DeviceFailure = DeviceFailure.UNKNOWN
    """What helps; only of one that is not healthy."""
    cause: str = ""
    """What the driver says."""
    out_of_band: str = ""
    """What uses it outside of Kubernetes; empty if nothing does."""
    pods: tuple[PodKey, ...] = ()
    """Pods that have it, or a share or a partition of it, sorted."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of one kind's devices on one node.

    ``problem`` says why there is no newer report; then the rest is what the last one said, if ``known``.
    """

    known: bool = True
    """False if there has been no report yet: then nothing but ``problem`` is said."""
    problem: str = ""
    resource: str = ""
    driver: str = ""
    sdk: str = ""
    firmware: str = ""
    product: str = ""
    message: str = ""
    """Why discovery, or a new configuration, fails; empty while nothing does."""
    conflict: str = ""
    """Who else advertises the resource on the node; empty if nobody does."""
    devices: int = 0
    """Devices that the node has, healthy or not."""
    noted: tuple[Device, ...] = ()
    """Those of them that there is something to say of, by ID."""

    @property
    def unhealthy(self) -> tuple[Device, ...]:
        """Devices that must not be allocated."""
        return tuple(device for device in self.noted if not device.healthy)

    @property
    def used_out_of_band(self) -> int:
        """Healthy devices that something outside of Kubernetes uses."""
        return sum(1 for device in self.noted if device.healthy and device.out_of_band)


@dataclass(frozen=True, slots=True)
class UnhealthyUse:
    """A device that a pod has and that is not well."""

    accelerator: str
    """The AcceleratorResource that it is one of."""
    node: str
    device: str
    cause: str
    failure: DeviceFailure


class _Pod(msgspec.Struct, gc=False):
    namespace: str
    name: str


class _Device(msgspec.Struct, gc=False):
    id: str
    health: Literal["Healthy", "Unhealthy"]
    cause: str = ""
    failure: str = ""
    out_of_band: str = msgspec.field(name="outOfBand", default="")
    pods: list[_Pod] | None = None


class _Report(msgspec.Struct, gc=False):
    devices: list[_Device] | None
    resource: str = ""
    driver: str = ""
    sdk: str = ""
    firmware: str = ""
    product: str = ""
    message: str = ""
    conflict: str = ""


_decode: Final = msgspec.json.Decoder(_Report).decode


def parse(body: bytes) -> Report:
    """The report in ``body``, JSON. Raises ReportError.

    Members that are not known are ignored, and of those that are, only ``devices`` with their ``id`` and ``health`` are
    required; a list may be null. Long texts are cut.
    """
    if len(body) > MAX_REPORT_BYTES:
        raise ReportError(f"the report has more than {MAX_REPORT_BYTES} bytes")
    try:
        said = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"the report cannot be read: {one_line(str(error), MAX_MESSAGE)}") from None
    devices = said.devices or []
    if len(devices) > MAX_DEVICES:
        raise ReportError(f"the report names {len(devices)} devices; at most {MAX_DEVICES} are understood")
    seen: set[str] = set()
    for device in devices:
        if not 0 < len(device.id) <= _MAX_ID or not device.id.isprintable():
            raise ReportError(f"the report has a device with the unusable ID {device.id[:_MAX_ID]!r}")
        if device.id in seen:
            raise ReportError(f"the report has two devices with the ID {device.id}")
        seen.add(device.id)
    return Report(
        resource=one_line(said.resource, MAX_MESSAGE),
        driver=one_line(said.driver, MAX_VERSION),
        sdk=one_line(said.sdk, MAX_VERSION),
        firmware=one_line(said.firmware, MAX_VERSION),
        product=one_line(said.product, MAX_VERSION),
        message=one_line(said.message, MAX_MESSAGE),
        conflict=one_line(said.conflict, MAX_MESSAGE),
        devices=len(devices),
        noted=tuple(
            sorted(
                (_device(each) for each in devices if each.health != "Healthy" or each.out_of_band.strip()),
                key=lambda device: device.id,
            )
        ),
    )


def uses(accelerator: str, node: str, devices: Iterable[Device]) -> dict[PodKey, UnhealthyUse]:
    """Pods that have one of ``devices`` of a node that is not well; of several, the first by ID is told."""
    found: dict[PodKey, UnhealthyUse] = {}
    for device in devices:
        if not device.healthy:
            use = UnhealthyUse(accelerator, node, device.id, device.cause, device.failure)
            for pod in device.pods:
                found.setdefault(pod, use)
    return found


def said_by_kubelet(pod: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(resource, device ID) of what a pod has and its status calls unhealthy (``allocatedResourcesStatus``), sorted.

    Kubelets say so from Kubernetes 1.36 on, and where the feature gate ResourceHealthStatus is on; a resource that
    comes by a claim is named ``claim:…``.
    """
    return tuple(
        sorted(
            {
                (str(each.get("name", "")), str(one["resourceID"])[:_MAX_ID])
                for status in (pod.get("status") or {}).get("containerStatuses") or ()
                for each in status.get("allocatedResourcesStatus") or ()
                for one in each.get("resources") or ()
                if one.get("health") == "Unhealthy" and one.get("resourceID")
            }
        )
    )


def _device(said: _Device) -> Device:
    healthy = said.health == "Healthy"
    try:
        failure = DeviceFailure(said.failure)
    except ValueError:
        failure = DeviceFailure.UNKNOWN
    return Device(
        id=said.id,
        healthy=healthy,
        failure=DeviceFailure.UNKNOWN if healthy else failure,
        cause="" if healthy else one_line(said.cause, MAX_CAUSE),
        out_of_band=one_line(said.out_of_band, MAX_CAUSE),
        pods=tuple(sorted({(pod.namespace, pod.name) for pod in said.pods or ()})[:MAX_PODS]),
    )


def one_line(text: str, most: int) -> str:
    """``text`` as one line of printable characters, at most ``most`` of them."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
