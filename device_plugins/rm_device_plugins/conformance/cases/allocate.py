"""Allocate and PreStartContainer: what a container gets, and what must be refused."""

# ruff: noqa: D103 (what a case is, its decorator says)

import asyncio
import re
import statistics
import time
from pathlib import PurePosixPath
from typing import Any

from rm_device_plugins.conformance.bench import Bench, Refused
from rm_device_plugins.conformance.cases.registration import FULL_LIST
from rm_device_plugins.conformance.model import ALLOCATE_SECONDS, Lane, NotApplicable, Violation, case
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb

VALID = "allocate.answers"
_MANAGER = "kubernetes pkg/kubelet/cm/devicemanager/manager.go: allocateContainerResources"
_CDI_NAME = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?=[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?"
)
_CALLS = 20
_PRE_START_SECONDS = 30.0


@case(
    VALID,
    "Answers Allocate of healthy devices with one response for the container.",
    why="The kubelet fails the pod for an error and for an empty answer.",
    reference=_MANAGER,
    lane=Lane.SHARED,
    requires=(FULL_LIST,),
)
async def answers(bench: Bench) -> None:
    plugin = await bench.connect()
    for device in bench.devices():
        await plugin.allocated([device])


@case(
    "allocate.well-formed",
    "Names devices and mounts by absolute paths, permissions by r, w and m, CDI devices as vendor/class=name.",
    why="The container runtime refuses the container, after it was admitted and bound.",
    reference="OCI runtime specification: mounts, devices; CDI specification: qualified names",
    lane=Lane.SHARED,
    requires=(VALID,),
)
async def well_formed(bench: Bench) -> str:
    plugin = await bench.connect()
    answer = await plugin.allocated(bench.devices())
    paths = [path for each in answer.devices for path in (each.host_path, each.container_path)]
    paths += [path for each in answer.mounts for path in (each.host_path, each.container_path)]
    for path in paths:
        if not PurePosixPath(path).is_absolute():
            raise Violation(f"the answer to Allocate has the path {path!r}, which is not absolute")
    for device in answer.devices:
        if not device.permissions or set(device.permissions) - set("rwm"):
            raise Violation(f"{device.host_path} has the permissions {device.permissions!r}; r, w and m are allowed")
    for cdi in answer.cdi_devices:
        if not _CDI_NAME.fullmatch(cdi.name):
            raise Violation(f"{cdi.name!r} is not the name of a CDI device; vendor/class=name is needed")
    if any(not name or "=" in name for name in answer.envs):
        raise Violation(f"the answer has a variable with a name that cannot be: {sorted(answer.envs)}")
    return f"{len(answer.devices)} device files, {len(answer.mounts)} mounts, {len(answer.envs)} variables"


@case(
    "allocate.unknown",
    "Refuses a device that does not exist, and goes on.",
    why="After a change of hardware the kubelet may ask for an old ID; the container would start without a device.",
    reference="kubernetes pkg/kubelet/cm/devicemanager/checkpoint",
    lane=Lane.SHARED,
    requires=(VALID,),
)
async def unknown(bench: Bench) -> None:
    plugin = await bench.connect()
    (device,) = bench.devices()
    await plugin.not_allocated(["rma-no-such-device"], "a device that does not exist")
    await plugin.not_allocated([device, "rma-no-such-device"], "a good device and one that does not exist")
    await plugin.allocated([device])


@case(
    "allocate.duplicate",
    "Refuses a request that names a device twice.",
    why="The container would have asked for two devices and have one.",
    reference="HAMi issue 1741: eight requested, five unique",
    lane=Lane.SHARED,
    requires=(VALID,),
)
async def duplicate(bench: Bench) -> None:
    plugin = await bench.connect()
    (device,) = bench.devices()
    await plugin.not_allocated([device, device], f"{device!r} twice")
    await plugin.allocated([device])


@case(
    "allocate.repeatable",
    "Gives the same answer when the same devices are asked for again.",
    why="A kubelet that restarts in between asks again for what the pod has already.",
    reference=_MANAGER,
    lane=Lane.SHARED,
    requires=(VALID,),
)
async def repeatable(bench: Bench) -> None:
    plugin = await bench.connect()
    devices = bench.devices()
    first, second = await plugin.allocated(devices), await plugin.allocated(devices)
    if first != second:
        raise Violation(f"the same devices were answered with {_flat(first)} and then with {_flat(second)}")


def _flat(message: Any) -> str:
    return " ".join(str(message).split())[:300]


@case(
    "allocate.containers",
    "Answers a request for several containers with one response for each, in their order.",
    why="The interface allows it; answers in another order give containers each other's devices.",
    reference="kubernetes pkg/apis/deviceplugin/v1beta1: AllocateRequest",
    lane=Lane.SHARED,
    requires=("allocate.repeatable",),
)
async def containers(bench: Bench) -> None:
    plugin = await bench.connect()
    one, two = bench.devices(2)
    expected = [await plugin.allocated([two]), await plugin.allocated([one])]
    try:
        found = list(await plugin.allocate([two], [one]))
    except Refused as error:
        raise Violation(f"a request for two containers was refused: {error}") from error
    if found != expected:
        raise Violation(f"a request for two containers had {len(found)} responses, other than those of two requests")


@case(
    "allocate.parallel",
    "Keeps parallel requests apart: each gets what it gets alone.",
    why="Pods start together; state that requests share gives one pod the device of another.",
    reference="gRPC: handlers run concurrently",
    lane=Lane.SHARED,
    requires=("allocate.repeatable",),
)
async def parallel(bench: Bench) -> str:
    plugin = await bench.connect()
    bench.devices(2)
    devices = bench.devices(min(8, len(bench.baseline.healthy) if bench.baseline else 0))
    alone = {device: await plugin.allocated([device]) for device in devices}
    wanted = devices * 4
    found = await asyncio.gather(*(plugin.allocated([device]) for device in wanted))
    for device, answer in zip(wanted, found, strict=True):
        if answer != alone[device]:
            raise Violation(
                f"beside others, {device!r} was answered with {_flat(answer)}; alone with {_flat(alone[device])}"
            )
    return f"{len(wanted)} requests at a time"


@case(
    "allocate.quick",
    "Answers Allocate of all devices within 50 ms.",
    why="The kubelet sets no deadline and admits nothing else meanwhile.",
    reference="kubernetes pkg/kubelet/cm/devicemanager/endpoint.go: allocate",
    lane=Lane.SHARED,
    requires=(VALID,),
)
async def quick(bench: Bench) -> str:
    plugin = await bench.connect()
    devices = bench.devices_apart()
    taken: list[float] = []
    while len(taken) < _CALLS and sum(taken) < bench.timing.patience:
        started = time.monotonic()
        await plugin.allocated(devices)
        taken.append(time.monotonic() - started)
    middle = statistics.median(taken)
    measured = f"half of the calls within {middle * 1000:.1f} ms, {len(devices)} devices"
    if middle > bench.timing.limit(ALLOCATE_SECONDS):
        raise Violation(
            f"{measured}; the rule is {ALLOCATE_SECONDS * 1000:g} ms, with an allowance of {bench.timing.allowance:g}"
        )
    return measured


@case(
    "allocate.unhealthy",
    "Refuses an unhealthy device.",
    why="The kubelet may not have heard yet, or gives a restarted pod what it had; the container fails on the device.",
    reference="kubernetes issues 109595, 125579",
    lane=Lane.FAULT,
    requires=(VALID, "health.unhealthy"),
)
async def unhealthy(bench: Bench) -> None:
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with plugin.watch() as watch, bench.hook.during("fail", "recover", device):
        await bench.until_unhealthy(watch, device, "a failed device is unhealthy")
        await plugin.not_allocated([device], f"{device!r}, which is unhealthy,")


@case(
    "allocate.node-missing",
    "Refuses a device whose file is gone, after a bounded wait.",
    why="The runtime fails the container with an error that names no cause, or makes a directory in the file's place.",
    reference="OCI runtime specification: devices",
    lane=Lane.FAULT,
    requires=(VALID,),
)
async def node_missing(bench: Bench) -> None:
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with bench.hook.during("node-remove", "node-restore", device):
        await plugin.not_allocated([device], f"{device!r}, whose device file is gone,")


@case(
    "allocate.deadline",
    "Ends an allocation whose work hangs, and serves others meanwhile.",
    why="The kubelet waits for ever, and admits no other pod that needs a device.",
    reference="kubernetes pkg/kubelet/cm/devicemanager/endpoint.go: allocate",
    lane=Lane.FAULT,
    requires=(VALID,),
)
async def deadline(bench: Bench) -> str:
    plugin = await bench.connect()
    apart = bench.devices_apart()
    if len(apart) < 2:
        raise NotApplicable("it needs healthy devices on two pieces of hardware")
    # Two of them where there are enough: some vendors have work to do only for devices that are to work together.
    *stuck, other = apart[:3]
    async with bench.hook.during("allocate-hang", "allocate-ok", stuck[0]):
        started = time.monotonic()
        request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=stuck)])
        hanging = asyncio.ensure_future(plugin.call("allocate", request, bench.timing.give_up))
        try:
            await plugin.allocated([other])
            try:
                await hanging
            except Refused:
                lasted = time.monotonic() - started
            else:
                raise Violation("Allocate succeeded though its work cannot have ended")
        finally:
            hanging.cancel()
    await plugin.allocated(stuck)
    return f"refused after {lasted:.1f} s"


@case(
    "allocate.pre-start",
    "Answers PreStartContainer, where its options ask for it, within the kubelet's thirty seconds.",
    why="The kubelet does not start the container otherwise, at each restart anew.",
    reference="kubernetes pkg/kubelet/cm/devicemanager/endpoint.go: preStartContainer",
    lane=Lane.SHARED,
    requires=(VALID,),
)
async def pre_start(bench: Bench) -> str:
    plugin = await bench.connect()
    if not (await plugin.options()).pre_start_required:
        raise NotApplicable("its options do not ask for PreStartContainer")
    devices = bench.devices()
    await plugin.allocated(devices)
    started = time.monotonic()
    try:
        await plugin.call("pre_start_container", pb.PreStartContainerRequest(devices_ids=devices), _PRE_START_SECONDS)
    except Refused as error:
        raise Violation(f"PreStartContainer of an allocated device was refused: {error}") from error
    return f"after {time.monotonic() - started:.3f} s"
