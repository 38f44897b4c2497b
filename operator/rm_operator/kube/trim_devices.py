"""What is kept of ResourceSlices and ResourceClaims: which devices there are, and which of them are taken."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from rm_operator.kube.contents import Fate, Transformed
from rm_operator.kube.documents import Document, Reader
from rm_operator.kube.resources import RESOURCE_CLAIMS, RESOURCE_SLICES
from rm_operator.kube.trim import metadata_of
from rm_operator.plan.device_class import IDENTIFYING, Value, is_unusable


class _Attribute(msgspec.Struct, gc=False):
    string: str | None = None
    int_: int | None = msgspec.field(name="int", default=None)
    bool_: bool | None = msgspec.field(name="bool", default=None)


class _Device(msgspec.Struct, gc=False):
    name: str
    attributes: Mapping[str, _Attribute] | None = None
    node_name: str | None = msgspec.field(name="nodeName", default=None)
    taints: Sequence[Mapping[str, Any]] | None = None
    consumes_counters: Sequence[msgspec.Raw] | None = msgspec.field(name="consumesCounters", default=None)


class _Pool(msgspec.Struct, gc=False):
    name: str
    generation: int = 0
    slices: int = msgspec.field(name="resourceSliceCount", default=1)


class _SliceSpec(msgspec.Struct, gc=False):
    driver: str
    pool: _Pool
    node_name: str | None = msgspec.field(name="nodeName", default=None)
    devices: Sequence[_Device] | None = None


class _Result(msgspec.Struct, gc=False):
    driver: str
    pool: str
    device: str
    admin: bool | None = msgspec.field(name="adminAccess", default=None)


class _Devices(msgspec.Struct, gc=False):
    results: Sequence[_Result] | None = None


class _Allocation(msgspec.Struct, gc=False):
    devices: _Devices | None = None


class _ClaimStatus(msgspec.Struct, gc=False):
    allocation: _Allocation | None = None


_slice_spec: Final = Reader(_SliceSpec)
_claim_status: Final = Reader(_ClaimStatus)


def trim_slice(document: Document) -> Transformed:
    """The devices of a slice, with what classes select by and whether they may be allocated.

    Capacities, topology and what tells one device from its likes are not among that.
    """
    spec = document.member("spec", _slice_spec)
    assert spec is not None, "the API server admits no slice without spec"
    known: dict[tuple[tuple[str, Value], ...], Mapping[str, Value]] = {}
    pool = {"name": spec.pool.name, "generation": spec.pool.generation, "resourceSliceCount": spec.pool.slices}
    kept: dict[str, Any] = {"driver": spec.driver, "pool": pool}
    if spec.node_name is not None:
        kept["nodeName"] = spec.node_name
    kept["devices"] = [_device(device, spec.driver, known) for device in spec.devices or ()]
    return {
        "apiVersion": RESOURCE_SLICES.api_version,
        "kind": RESOURCE_SLICES.kind,
        "metadata": metadata_of(document),
        "spec": kept,
    }


def trim_claim(document: Document) -> Transformed:
    """Which devices a claim takes, and whose it is. One that has none takes nothing from anybody, and is not kept."""
    status = document.member("status", _claim_status) or _ClaimStatus()
    devices = status.allocation.devices if status.allocation is not None else None
    # Who administers a device looks at it, and takes it from nobody.
    taken = [each for each in (devices.results if devices is not None else None) or () if not each.admin]
    if not taken:
        return Fate.DROPPED
    owners = document.metadata.get("ownerReferences") or ()
    pods = [{name: owner[name] for name in ("kind", "name", "uid")} for owner in owners if owner["kind"] == "Pod"]
    results = [{"driver": each.driver, "pool": each.pool, "device": each.device} for each in taken]
    return {
        "apiVersion": RESOURCE_CLAIMS.api_version,
        "kind": RESOURCE_CLAIMS.kind,
        "metadata": {**metadata_of(document), "ownerReferences": pods},
        "status": {"allocation": {"devices": {"results": results}}},
    }


def _device(
    device: _Device, driver: str, known: dict[tuple[tuple[str, Value], ...], Mapping[str, Value]]
) -> dict[str, Any]:
    items = tuple(sorted(_values(device, driver)))
    # Devices of a kind are alike: they share what is said of them.
    kept: dict[str, Any] = {"name": device.name, "attributes": known.setdefault(items, dict(items))}
    if device.node_name is not None:
        kept["nodeName"] = device.node_name
    if any(map(is_unusable, device.taints or ())):
        kept["tainted"] = True
    if device.consumes_counters:
        kept["shares"] = True
    return kept


def _values(device: _Device, driver: str) -> list[tuple[str, Value]]:
    found: list[tuple[str, Value]] = []
    for name, attribute in (device.attributes or {}).items():
        domain, slash, bare = name.partition("/")
        if (bare or domain) in IDENTIFYING:
            continue
        value = next((each for each in (attribute.string, attribute.int_, attribute.bool_) if each is not None), None)
        if value is not None:
            found.append((name if slash else f"{driver}/{name}", value))
    return found
