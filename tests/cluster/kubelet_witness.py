"""Runs in a pod on the node and tells what the kubelet has and gave to whom, by what the kubelet itself offers.

``watch`` writes a line for every change of what the kubelet could allocate, which it looks at every 50 ms: a Node's
status shows only what lasts. ``holdings`` writes once which container has which devices, by the Pod Resources API and
by the checkpoint from which the kubelet would take them up after a restart.

It reads the API with a decoder of its own, so that nothing that is tested takes part in the judgement.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

POD_RESOURCES = "unix:///var/lib/kubelet/pod-resources/kubelet.sock"
PLUGINS = Path("/var/lib/kubelet/device-plugins")
POLL_SECONDS = 0.05
CALL_SECONDS = 2.0
MIB = 1 << 20


def members(message: bytes) -> dict[int, list[bytes]]:
    """Length-delimited members of a protobuf message by number; those that are numbers are left out."""
    found: dict[int, list[bytes]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 2:
            length = varint()
            found.setdefault(number, []).append(message[at : at + length])
            at += length
        elif kind == 0:
            varint()
        else:
            raise ValueError(f"a member of wire type {kind}")
    return found


def devices_of(message: bytes, number: int) -> Iterator[tuple[str, list[str]]]:
    """(resource, device IDs) of the ContainerDevices among the members with this number."""
    for each in members(message).get(number, []):
        inner = members(each)
        yield inner[1][0].decode(), [one.decode() for one in inner.get(2, [])]


def call(channel: grpc.Channel, method: str) -> bytes:
    answer: bytes = channel.unary_unary(f"/v1.PodResourcesLister/{method}")(b"", timeout=CALL_SECONDS)
    return answer


def allocatable(channel: grpc.Channel) -> dict[str, int]:
    """Resource → devices that the kubelet would allocate, whether they are allocated or not."""
    counts: dict[str, int] = {}
    for resource, ids in devices_of(call(channel, "GetAllocatableResources"), 1):
        counts[resource] = counts.get(resource, 0) + len(ids)
    return counts


def listed(channel: grpc.Channel) -> Iterator[dict[str, Any]]:
    for raw in members(call(channel, "List")).get(1, []):
        pod = members(raw)
        for container in pod.get(3, []):
            ids: dict[str, list[str]] = {}
            for resource, some in devices_of(container, 2):
                ids.setdefault(resource, []).extend(some)
            for resource, every in ids.items():
                yield {
                    "pod": pod[1][0].decode(),
                    "namespace": pod[2][0].decode(),
                    "container": members(container)[1][0].decode(),
                    "resource": resource,
                    "devices": every,
                }


def checkpointed() -> Iterator[dict[str, Any]]:
    checkpoint = json.loads((PLUGINS / "kubelet_internal_checkpoint").read_text())
    for entry in checkpoint["Data"]["PodDeviceEntries"] or []:
        yield {
            "uid": entry["PodUID"],
            "container": entry["ContainerName"],
            "resource": entry["ResourceName"],
            "devices": [one for ids in entry["DeviceIDs"].values() for one in ids],
        }


def kubelet_since() -> float | None:
    """Unix time at which the kubelet's registration socket was made; None where there is none."""
    try:
        return (PLUGINS / "kubelet.sock").stat().st_mtime
    except FileNotFoundError:
        return None


def watch(channel: grpc.Channel) -> None:
    last = None
    while True:
        try:
            counts: dict[str, int] | None = allocatable(channel)
        except grpc.RpcError:
            counts = None
        state = {"kubelet": kubelet_since(), "allocatable": counts}
        if state != last:
            sys.stdout.write(json.dumps({"at": time.time(), **state}) + "\n")
            sys.stdout.flush()
            last = state
        time.sleep(POLL_SECONDS)


def main() -> None:
    options = [
        ("grpc.max_receive_message_length", 64 * MIB),
        # A kubelet that is gone is back in a second, and asked again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 200),
    ]
    with grpc.insecure_channel(POD_RESOURCES, options=options) as channel:
        if sys.argv[1] == "watch":
            watch(channel)
        json.dump({"listed": list(listed(channel)), "checkpointed": list(checkpointed())}, sys.stdout)


if __name__ == "__main__":
    main()
