"""What a pool's ResourceSlices should say, and whether those that are there do. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_device_plugins.dra import naming
from rm_device_plugins.inventory import Entry, Inventory
from rm_device_plugins.sharing import shares

Json = dict[str, Any]

PER_SLICE = 64
"""The API's limit for devices of which one has a taint; without taints it is 128, and a slice must not be cut anew
because a device fails."""
MAX_TEXT = 64
TAINT = "unhealthy"
"""The taint's key is this in the driver's domain; its value is what helps the device."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The devices of one driver on one node; the pool has the node's name."""

    driver: str
    node: str


def published(inventory: Inventory, driver: str, effect: str, with_taints: bool) -> list[Json]:
    """All devices in the order in which they should be given away. An unhealthy one has a taint of ``effect``, or is
    left out where the API server knows none.
    """
    return [
        _device(naming.device_name(share), entry, inventory.driver, driver, effect)
        for entry in inventory.entries()
        if entry.healthy or with_taints
        for share in shares(entry.device.id, inventory.settings.shares)
    ]


def _device(name: str, entry: Entry, version: str, driver: str, effect: str) -> Json:
    device = entry.device
    texts = {
        "uuid": device.id,
        "product": device.product,
        "serial": device.serial,
        "driverVersion": version,
        "firmwareVersion": device.firmware,
        "group": device.group,
        "parent": device.parent,
    }
    attributes: Json = {key: {"string": text[:MAX_TEXT]} for key, text in texts.items() if text}
    attributes["index"] = {"int": device.index}
    if len(device.numa_nodes) == 1:
        attributes["numaNode"] = {"int": device.numa_nodes[0]}
    described: Json = {"name": name, "attributes": attributes}
    if not entry.healthy:
        described["taints"] = [{"key": f"{driver}/{TAINT}", "value": str(entry.failure), "effect": effect}]
    return described


def wanted_slices(devices: Sequence[Json], pool: Pool) -> dict[str, list[Json]]:
    """The devices of each slice, by its name; none at all where there is no device."""
    return {
        naming.slice_name(pool.node, pool.driver, number): list(devices[start : start + PER_SLICE])
        for number, start in enumerate(range(0, len(devices), PER_SLICE))
    }


def up_to_date(present: Mapping[str, Json], wanted: Mapping[str, Sequence[Json]], owner_uid: str) -> bool:
    """Whether ``present`` is a complete pool of one generation with the devices that are wanted."""
    if present.keys() != wanted.keys():
        return False
    pools = [present[name]["spec"]["pool"] for name in wanted]
    return (
        len({pool["generation"] for pool in pools}) <= 1
        and all(pool["resourceSliceCount"] == len(wanted) for pool in pools)
        and all(devices_of(present[name]) == list(devices) for name, devices in wanted.items())
        and all(_owner(present[name]) == owner_uid for name in wanted)
    )


def next_generation(present: Mapping[str, Json]) -> int:
    """One that no slice of the pool has had."""
    return 1 + max((int(each["spec"]["pool"]["generation"]) for each in present.values()), default=0)


def devices_of(present: Json) -> list[Json]:
    """The devices of a slice as we would write them: the server adds the time to a taint."""
    return [_without_times(device) for device in present["spec"].get("devices") or ()]


def tainted(listed: Mapping[str, Sequence[Json]]) -> set[str]:
    """Names of the devices that have a taint."""
    return {device["name"] for devices in listed.values() for device in devices if device.get("taints")}


def _without_times(device: Json) -> Json:
    if "taints" not in device:
        return device
    taints = [{key: value for key, value in taint.items() if key != "timeAdded"} for taint in device["taints"]]
    return {**device, "taints": taints}


def _owner(present: Json) -> str:
    owners = present["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner["kind"] == "Node"), "")


def body(
    pool: Pool, owner_uid: str, generation: int, wanted: Mapping[str, Sequence[Json]], name: str, before: Json | None
) -> Json:
    """The slice ``name`` of ``wanted``, to be written. ``before`` is what it replaces: a taint that was there keeps its
    time.
    """
    metadata: Json = {
        "name": name,
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": pool.node, "uid": owner_uid, "controller": True}
        ],
    }
    if before is not None:
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": metadata,
        "spec": {
            "driver": pool.driver,
            "nodeName": pool.node,
            "pool": {"name": pool.node, "generation": generation, "resourceSliceCount": len(wanted)},
            "devices": [_with_times(device, before) for device in wanted[name]],
        },
    }


def _with_times(device: Json, before: Json | None) -> Json:
    if before is None or "taints" not in device:
        return device
    known = {
        (old["name"], taint["key"], taint.get("value"), taint["effect"]): taint["timeAdded"]
        for old in before["spec"].get("devices") or ()
        for taint in old.get("taints") or ()
        if "timeAdded" in taint
    }
    taints = []
    for taint in device["taints"]:
        added = known.get((device["name"], taint["key"], taint.get("value"), taint["effect"]))
        taints.append({**taint, **({"timeAdded": added} if added else {})})
    return {**device, "taints": taints}
