"""ListAndWatch: what is sent, when, and to how many."""

# ruff: noqa: D103 (what a case is, its decorator says)

from contextlib import AsyncExitStack
from itertools import pairwise

from rm_device_plugins.conformance.bench import Bench
from rm_device_plugins.conformance.cases.registration import FULL_LIST, GATE
from rm_device_plugins.conformance.model import FIRST_LIST_SECONDS, Lane, Violation, case
from rm_device_plugins.kubelet_api import HEALTHY, MAX_DEVICE_ID, UNHEALTHY

_API = "kubernetes pkg/apis/deviceplugin/v1beta1: ListAndWatch"
_MANAGER = "kubernetes pkg/kubelet/cm/devicemanager/manager.go"
_CONCURRENT = 16
_CANCELLED = 100


@case(
    "stream.first-list",
    "Sends the first list within a second after the stream was opened.",
    why="Until then the node has no such device, and pods that wait for one stay pending.",
    reference=_API,
    lane=Lane.SHARED,
    requires=(FULL_LIST,),
)
async def first_list(bench: Bench) -> str:
    plugin = await bench.connect()
    limit = bench.timing.limit(FIRST_LIST_SECONDS)
    async with plugin.watch() as watch:
        await bench.until(
            lambda: bool(watch.snapshots), f"the first list (the rule: {FIRST_LIST_SECONDS:g} s)", limit, watch
        )
        return f"after {watch.snapshots[0].at - watch.opened_at:.3f} s"


@case(
    "stream.valid-list",
    "Every device has an ID of its own of 1 to 63 characters, and is Healthy or Unhealthy, spelled so.",
    why="Any other word counts as unhealthy, and an ID twice is one device.",
    reference="kubernetes pkg/apis/deviceplugin/v1beta1: Device; constants.go",
    lane=Lane.SHARED,
    requires=(FULL_LIST,),
)
async def valid_list(bench: Bench) -> str:
    await bench.connect()
    listed = bench.baseline
    assert listed is not None
    if twice := sorted({name for name in listed.ids if listed.ids.count(name) > 1}):
        raise Violation(f"the ID {twice[0]!r} is listed twice")
    for name, health in listed.health.items():
        if not 0 < len(name) <= MAX_DEVICE_ID:
            raise Violation(f"the ID {name!r} has {len(name)} characters; 1 to {MAX_DEVICE_ID} are allowed")
        if health not in (HEALTHY, UNHEALTHY):
            raise Violation(f"device {name!r} has the health {health!r}; {HEALTHY!r} and {UNHEALTHY!r} are the words")
    return f"{len(listed.ids)} devices, {len(listed.healthy)} healthy"


@case(
    "stream.quiet",
    "Sends nothing while nothing changes.",
    why="The kubelet rewrites its checkpoint for every message, on the node's disk.",
    reference=f"{_MANAGER}: PluginListAndWatchReceiver, writeCheckpoint",
    lane=Lane.FRESH,
    requires=(GATE,),
    lasts_long=True,
)
async def quiet(bench: Bench) -> str:
    await bench.open()
    await bench.start()
    await bench.registered()
    snapshots = bench.kubelet.resource(bench.resource).snapshots
    repeated = "a list was sent again though nothing in it had changed"
    await bench.never(
        lambda: any(later.same_as(earlier) for earlier, later in pairwise(snapshots)),
        repeated,
        bench.timing.quiet,
    )
    return f"nothing repeated in {bench.timing.quiet:g} s"


@case(
    "stream.concurrent",
    "Serves several streams at a time, and calls beside them.",
    why="During a kubelet's restart, or with a monitor, there are two; a plugin with few workers then answers nobody.",
    reference="grpcio: a synchronous server gives a worker to every open stream",
    lane=Lane.SHARED,
    requires=(FULL_LIST,),
)
async def concurrent(bench: Bench) -> str:
    plugin = await bench.connect()
    async with AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(plugin.watch()) for _ in range(_CONCURRENT)]
        await bench.until(
            lambda: all(watch.snapshots for watch in watches), f"each of {_CONCURRENT} open streams has got a list"
        )
        await plugin.options()
    return f"{_CONCURRENT} streams"


@case(
    "stream.cancelled",
    "Lets go of streams that were cancelled: after a hundred it answers as before.",
    why="Each restart of the kubelet cancels one; a plugin that keeps them answers nobody after some weeks.",
    reference="gRPC: a handler must end when its context is done",
    lane=Lane.SHARED,
    requires=("stream.concurrent",),
)
async def cancelled(bench: Bench) -> str:
    plugin = await bench.connect()
    for number in range(_CANCELLED):
        async with plugin.watch() as watch:
            what = f"a list on a stream after {number} others were cancelled"
            await bench.until(lambda: bool(watch.snapshots), what, watch=watch)
    await plugin.options()
    return f"{_CANCELLED} streams"
