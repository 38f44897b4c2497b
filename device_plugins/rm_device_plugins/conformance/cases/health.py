"""Health of devices: recovery, siblings, use, and coming and going."""

# ruff: noqa: D103 (what a case is, its decorator says)

import time

from rm_device_plugins.conformance.bench import Bench
from rm_device_plugins.conformance.cases.lifecycle import NO_DEVICES
from rm_device_plugins.conformance.cases.registration import FULL_LIST
from rm_device_plugins.conformance.model import Lane, NotApplicable, Violation, case
from rm_device_plugins.kubelet_api import HEALTHY, UNHEALTHY

RECOVERS = "health.recovers"
_API = "kubernetes pkg/apis/deviceplugin/v1beta1: ListAndWatch"
_MANAGER = "kubernetes pkg/kubelet/cm/devicemanager/manager.go"
_MESSAGES_PER_SECOND = 5.0
_FLAPS = 10
_SPARE = 3
UNHEALTHY_CASE = "health.unhealthy"


@case(
    UNHEALTHY_CASE,
    "Lists a device that has failed as Unhealthy.",
    why="Pods are put on it, and fail there, one after the other.",
    reference=_API,
    lane=Lane.FAULT,
    requires=(FULL_LIST,),
)
async def unhealthy(bench: Bench) -> str:
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with plugin.watch() as watch, bench.hook.during("fail", "recover", device):
        return f"after {await bench.until_unhealthy(watch, device, 'a failed device is unhealthy'):.2f} s"


@case(
    RECOVERS,
    "Lists a device as Healthy again once it is well, without a restart.",
    why="Otherwise capacity only ever shrinks, until somebody restarts the plugin, and with it all streams.",
    reference="NVIDIA k8s-device-plugin issues 111, 189, 415",
    lane=Lane.FAULT,
    requires=(UNHEALTHY_CASE,),
)
async def recovers(bench: Bench) -> str:
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with plugin.watch() as watch:
        async with bench.hook.during("fail", "recover", device):
            await bench.until_unhealthy(watch, device, "a failed device is unhealthy")
        return (
            f"after {await bench.until_health(watch, device, HEALTHY, 'a device that is well again is Healthy'):.2f} s"
        )


@case(
    "health.every-stream",
    "Sends every change on every open stream.",
    why="A stale stream of an earlier kubelet would swallow the news that the present one needs.",
    reference=_API,
    lane=Lane.FAULT,
    requires=(UNHEALTHY_CASE, "stream.concurrent"),
)
async def every_stream(bench: Bench) -> None:
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with plugin.watch() as older, plugin.watch() as newer:
        await bench.until(lambda: bool(older.snapshots and newer.snapshots), "both streams have a list")
        async with bench.hook.during("fail", "recover", device):
            for watch, name in ((older, "older"), (newer, "newer")):
                await bench.until_unhealthy(watch, device, f"the {name} of two streams tells of a failed device")


@case(
    "health.coalesced",
    "Sends at most five lists a second when a device flaps, and the last state always.",
    why="The kubelet writes its checkpoint for each, and the node's status changes with each.",
    reference=f"{_MANAGER}: genericDeviceUpdateCallback, writeCheckpoint",
    lane=Lane.FAULT,
    requires=(RECOVERS, "stream.quiet"),
)
async def coalesced(bench: Bench) -> str:
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with plugin.watch() as watch:
        await bench.until(lambda: bool(watch.snapshots), "the first list")
        before = len(watch.snapshots)
        started = time.monotonic()
        await bench.hook.run("flap", device)
        lasted = time.monotonic() - started
        await bench.until_health(watch, device, HEALTHY, "a device that has flapped and is well is Healthy")
        await bench.never(lambda: False, "")  # what is still to come
        sent = len(watch.snapshots) - before
        if sent > _MESSAGES_PER_SECOND * lasted + _SPARE:
            raise Violation(f"{sent} lists were sent while a device flapped for {lasted:.1f} s")
        if _MESSAGES_PER_SECOND * lasted + _SPARE > 2 * _FLAPS:
            raise NotApplicable(f"the hook needed {lasted:.1f} s for its flaps, too long to tell anything")
        return f"{sent} lists for flaps of {lasted:.1f} s"


@case(
    "health.others",
    "While a device fails, devices of other hardware stay Healthy.",
    why="One broken card must not take the node's other cards, and the pods that wait for them, with it.",
    reference=_API,
    lane=Lane.FAULT,
    requires=(UNHEALTHY_CASE,),
)
async def others(bench: Bench) -> str:
    plugin = await bench.connect()
    apart = bench.devices_apart()
    if len(apart) < 2:
        raise NotApplicable("it needs healthy devices on two pieces of hardware")
    broken, *well = apart
    async with plugin.watch() as watch, bench.hook.during("fail", "recover", broken):
        await bench.until_unhealthy(watch, broken, "a failed device is unhealthy")
        suffering = [name for name in well if watch.health(name) != HEALTHY]
        # Where it is not known which IDs share hardware, some may have failed with it, though not all.
        if suffering and (bench.siblings is not None or len(suffering) == len(well)):
            raise Violation(f"device {broken!r} failed, and {suffering[0]!r}, which did not, is no longer Healthy")
    return f"{len(well) - len(suffering)} others"


@case(
    "health.siblings",
    "All IDs that stand for one piece of hardware are Unhealthy together.",
    why="The other replicas or partitions of a broken card are just as broken.",
    reference="NVIDIA k8s-device-plugin issue 1929",
    lane=Lane.FAULT,
    requires=(UNHEALTHY_CASE,),
)
async def siblings(bench: Bench) -> str:
    plugin = await bench.connect()
    if bench.siblings is None:
        raise NotApplicable("it is not known which IDs share hardware: say it with --shared-by")
    hardware = bench.siblings
    device = next((name for name in bench.devices() if len(_of(bench, hardware(name))) > 1), "")
    if not device:
        raise NotApplicable("no two healthy IDs share hardware")
    family = _of(bench, hardware(device))
    async with plugin.watch() as watch, bench.hook.during("fail", "recover", device):
        for name in family:
            await bench.until_unhealthy(watch, name, f"every ID on the hardware of {device!r} is unhealthy")
    return f"{len(family)} IDs"


def _of(bench: Bench, hardware: str) -> list[str]:
    assert bench.siblings is not None
    listed = bench.baseline.health if bench.baseline else {}
    return [name for name in listed if bench.siblings(name) == hardware]


@case(
    "health.busy",
    "A device that is in use stays Healthy.",
    why="It would be taken from the node as soon as its pod works with it.",
    reference="Rebellions k8s-device-plugin 0.4.2: BUSY counts as unhealthy",
    lane=Lane.FAULT,
    requires=("health.others",),
)
async def busy(bench: Bench) -> None:
    plugin = await bench.connect()
    (used,) = bench.devices()
    hardware = bench.siblings or str
    other = next((name for name in bench.devices_apart() if hardware(name) != hardware(used)), "")
    if not other:
        raise NotApplicable("it needs healthy devices on two pieces of hardware")
    async with plugin.watch() as watch, bench.hook.during("busy", "idle", used):
        async with bench.hook.during("fail", "recover", other):
            # Now it has looked at the devices since the one has been in use.
            await bench.until_unhealthy(watch, other, "a failed device is unhealthy")
        if watch.health(used) != HEALTHY:
            raise Violation(f"device {used!r}, which is in use, is {watch.health(used) or 'not listed'}")


@case(
    "health.hot-remove",
    "A device that was taken out is no longer Healthy, and is again once it is back, without a restart.",
    why="Pods are put on a device that is not there; and a reset takes a device off the bus for a moment only.",
    reference=_API,
    lane=Lane.FAULT,
    requires=(RECOVERS,),
)
async def hot_remove(bench: Bench) -> str:
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with plugin.watch() as watch, bench.hook.during("remove", "add", device):
        await bench.until(lambda: bool(watch.snapshots), "the first list")
        await bench.until(lambda: watch.health(device) != HEALTHY, "a removed device is not Healthy", watch=watch)
        seen = watch.health(device)
    async with plugin.watch() as watch:
        seconds = await bench.until_health(watch, device, HEALTHY, "a device that is back is Healthy")
    listed = "listed as Unhealthy" if seen == UNHEALTHY else "not listed, so that it looks healthy to pods that have it"
    return f"{listed}; Healthy {seconds:.2f} s after it was back"


@case(
    "health.hot-add",
    "Lists a device that comes later, without a restart.",
    why="Drivers load late and cards come back; until somebody restarts the plugin, the node lacks them.",
    reference=_API,
    lane=Lane.FAULT_FRESH,
    requires=(NO_DEVICES,),
)
async def hot_add(bench: Bench) -> str:
    await bench.open()
    async with bench.hook.during("no-devices", "all-devices"):
        await bench.start()
        # Some wait with their registration until there is a device.
        await bench.never(lambda: False, "", bench.timing.settle)
    seconds = await bench.until(
        lambda: bench.kubelet.allocatable(bench.resource) > 0, "devices that come later are Healthy"
    )
    return f"after {seconds:.2f} s"
