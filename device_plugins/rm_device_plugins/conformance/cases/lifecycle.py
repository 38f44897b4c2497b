"""Starts, ends and upgrades of the plugin itself."""

# ruff: noqa: D103 (what a case is, its decorator says)

import os
import socket
import stat
from contextlib import AsyncExitStack
from pathlib import Path

from rm_device_plugins.conformance.bench import Bench
from rm_device_plugins.conformance.cases.registration import FULL_LIST, GATE
from rm_device_plugins.conformance.fake_kubelet import listens
from rm_device_plugins.conformance.launch import Instance
from rm_device_plugins.conformance.model import Lane, NotApplicable, Violation, case
from rm_device_plugins.kubelet_api import KUBELET_SOCKET

NO_DEVICES = "lifecycle.no-devices"
_SIGTERM = "lifecycle.sigterm"
_OVERLAP = "lifecycle.upgrade"
_FOREIGN = "another-vendor.sock"
_STREAMS = 100
_CONNECTIONS = 30
_SPARE = 15
_READING = 3
"""A plugin may look at its configuration every now and then only."""
_KUBELET = "kubernetes pkg/kubelet/cm/devicemanager/manager.go"


def _sockets(bench: Bench) -> set[str]:
    """The sockets of plugins."""
    with os.scandir(bench.directory) as entries:
        found = {entry.name for entry in entries if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)}
    return found - {KUBELET_SOCKET}


async def _ended(bench: Bench, instance: Instance) -> None:
    await instance.terminate()
    await bench.until(lambda: instance.ended is not None, "the plugin ends after SIGTERM")


@case(
    _SIGTERM,
    "Ends after SIGTERM within the pod's grace period, and removes its socket.",
    why="A plugin that is killed instead leaves its socket behind, and delays every upgrade by the grace period.",
    reference="pod lifecycle: SIGTERM, 30 s, SIGKILL",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def sigterm(bench: Bench) -> str:
    await bench.open()
    instance = await bench.start()
    await bench.registered()
    await instance.terminate()
    seconds = await bench.until(lambda: instance.ended is not None, "the plugin ends after SIGTERM")
    if left := _sockets(bench):
        raise Violation(f"after SIGTERM its sockets are still there: {sorted(left)}")
    return f"ended after {seconds:.2f} s"


@case(
    "lifecycle.sigterm-while-hanging",
    "Ends after SIGTERM within the grace period also while the vendor's tool hangs.",
    why="A driver in trouble is when a plugin is restarted; one that waits for its tool delays every upgrade then.",
    reference="pod lifecycle: SIGTERM, 30 s, SIGKILL",
    lane=Lane.FAULT_FRESH,
    requires=(_SIGTERM,),
)
async def sigterm_while_hanging(bench: Bench) -> str:
    await bench.open()
    instance = await bench.start()
    await bench.registered()
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with bench.hook.during("tool-hang", "tool-ok"):
        async with plugin.watch() as watch:
            # Now it has noticed, and calls into the tool are under way.
            try:
                await bench.until_unhealthy(watch, device, "a device of which nothing is known is unhealthy")
            except Violation as error:
                raise NotApplicable(f"it does not notice that the tool hangs, see health.tool-hangs: {error}") from None
        await instance.terminate()
        seconds = await bench.until(lambda: instance.ended is not None, "the plugin ends after SIGTERM")
    return f"ended after {seconds:.2f} s"


@case(
    "lifecycle.foreign-sockets",
    "Leaves the sockets of other plugins alone, when it starts and when it ends.",
    why="All plugins of a node share the directory; the other vendor's devices would be gone.",
    reference=f"{_KUBELET}: CleanupPluginDirectory is the kubelet's work",
    lane=Lane.FRESH,
    requires=(_SIGTERM,),
)
async def foreign_sockets(bench: Bench) -> None:
    await bench.open()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(bench.directory / _FOREIGN))
        foreign.listen()
        instance = await bench.start()
        await bench.registered()
        if _FOREIGN not in _sockets(bench):
            raise Violation("the plugin deleted another plugin's socket when it started")
        await _ended(bench, instance)
        if _FOREIGN not in _sockets(bench) or not listens(str(bench.kubelet.socket_path)):
            raise Violation("the plugin deleted a socket that is not its own when it ended")


@case(
    "lifecycle.stale-socket",
    "Starts after it was killed, and clears away the socket that it had left.",
    why="The file outlives the process; it must neither keep the plugin from starting nor pile up.",
    reference="unix(7): bind fails with EADDRINUSE; the file outlives the process",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def stale_socket(bench: Bench) -> None:
    await bench.open()
    instance = await bench.start()
    await bench.registered()
    await instance.kill()
    await bench.until(lambda: bench.kubelet.streams(bench.resource) == 0, "the kubelet has lost the stream")
    await bench.start()
    await bench.registered(what="registered after it was killed")
    serving = bench.kubelet.connected(bench.resource)
    await bench.until(lambda: _sockets(bench) == {serving}, "no socket of the killed instance is left")


@case(
    "lifecycle.restart-keeps-devices",
    "Lists the same IDs after a restart, all of them at once.",
    why="The kubelet's checkpoint holds IDs: with others, running pods lose theirs, and a device is given away twice.",
    reference="kubernetes pkg/kubelet/cm/devicemanager/checkpoint; device plugin API: Device.ID",
    lane=Lane.FRESH,
    requires=(_SIGTERM, FULL_LIST),
)
async def restart_keeps_devices(bench: Bench) -> str:
    await bench.open()
    instance = await bench.start()
    await bench.registered()
    before = set(bench.last.ids)
    await _ended(bench, instance)
    await bench.until(lambda: bench.kubelet.streams(bench.resource) == 0, "the kubelet has lost the stream")
    earlier = len(bench.kubelet.resource(bench.resource).snapshots)
    await bench.start()
    await bench.registered()
    first = bench.kubelet.resource(bench.resource).snapshots[earlier]
    if set(first.ids) != before:
        raise Violation(f"the first list after a restart has {sorted(first.ids)}, before it were {sorted(before)}")
    return f"{len(before)} devices"


@case(
    "lifecycle.restart-without-driver",
    "Still lists all IDs when it is restarted while the vendor's tool fails.",
    why="The node's capacity would shrink because a tool failed once, and pods in the status would look healthy.",
    reference="kubernetes enhancement 4680: an ID that is not listed counts as healthy",
    lane=Lane.FAULT_FRESH,
    requires=(_SIGTERM, FULL_LIST),
)
async def restart_without_driver(bench: Bench) -> None:
    await bench.open()
    instance = await bench.start()
    await bench.registered()
    before = set(bench.last.ids)
    async with bench.hook.during("tool-fail", "tool-ok"):
        await _ended(bench, instance)
        await bench.until(lambda: bench.kubelet.streams(bench.resource) == 0, "the kubelet has lost the stream")
        await bench.start()
        await bench.registered(what="registered though the vendor's tool fails")
        await bench.until(
            lambda: set(bench.last.ids) == before,
            f"after a restart with a failing tool all of {sorted(before)} are listed",
        )


@case(
    _OVERLAP,
    "Two instances have sockets of their own during an upgrade, and no device is unallocatable as the older leaves.",
    why="With one name the newer instance cuts off the older, and the older deletes the newer one's socket as it ends.",
    reference="kubernetes issues 121994, 127803 and pull request 135437; DaemonSet maxSurge",
    lane=Lane.FRESH,
    requires=(_SIGTERM,),
)
async def upgrade(bench: Bench) -> str:
    older, _, names = await _two(bench)
    if len(names) != 2:
        raise Violation(f"both instances use the socket {names[0]}")
    bench.kubelet.watch_low(bench.resource)
    before = bench.kubelet.allocatable(bench.resource)
    await _ended(bench, older)
    streams = bench.kubelet.resource(bench.resource).open
    await bench.until(lambda: names[0] not in [each.name for each in streams], "the older stream ends")
    await bench.never(
        lambda: bench.kubelet.resource(bench.resource).low < before, "devices were unallocatable for a time"
    )
    if not listens(str(bench.directory / bench.kubelet.connected(bench.resource))):
        raise Violation("the newer instance cannot be reached after the older has ended")
    return f"sockets {names[0]} and {names[1]}"


@case(
    "lifecycle.rollback",
    "The older instance serves again after a newer one came and left.",
    why="A failed upgrade is taken back; kubelets then know no connection, though the older instance's is open.",
    reference=f"{_KUBELET}: one endpoint for a resource, the newest",
    lane=Lane.FRESH,
    requires=(_OVERLAP,),
)
async def rollback(bench: Bench) -> str:
    _, younger, names = await _two(bench)
    devices = len(bench.last.healthy)
    await _ended(bench, younger)
    streams = bench.kubelet.resource(bench.resource).open
    await bench.until(lambda: names[-1] not in [each.name for each in streams], "the newer stream ends")
    seconds = await bench.until(
        lambda: bench.kubelet.connected(bench.resource) != "" and bench.kubelet.allocatable(bench.resource) == devices,
        "the older instance is registered again after the newer one has left",
    )
    return f"after {seconds:.2f} s"


async def _two(bench: Bench) -> tuple[Instance, Instance, list[str]]:
    await bench.open()
    older = await bench.start()
    await bench.registered()
    first = bench.kubelet.connected(bench.resource)
    arrivals = len(bench.kubelet.arrivals)
    younger = await bench.start()
    await bench.until(lambda: len(bench.kubelet.arrivals) > arrivals, "the second instance registers")
    second = bench.kubelet.arrivals[arrivals].endpoint
    names = [first] if second == first else [first, second]
    await bench.until(lambda: bench.kubelet.streams(bench.resource) >= len(names), "both instances are registered")
    # Each should have seen the other: they look at the directory every now and then.
    await bench.never(lambda: False, "", bench.timing.settle)
    return older, younger, names


@case(
    NO_DEVICES,
    "Stays up on a node without a device, and advertises none.",
    why="DaemonSets come to nodes whose card is missing or not ready; a crash loop there hides the one that matters.",
    reference="pod lifecycle: CrashLoopBackOff",
    lane=Lane.FAULT_FRESH,
    requires=(GATE,),
)
async def no_devices(bench: Bench) -> None:
    await bench.open()
    async with bench.hook.during("no-devices", "all-devices"):
        await bench.start()
        # Registering an empty list is as good as waiting with it.
        await bench.never(
            lambda: bench.kubelet.capacity(bench.resource) > 0,
            "the plugin lists devices where there are none",
            bench.timing.away + bench.timing.settle,
        )


@case(
    "lifecycle.reload",
    "Takes up a changed configuration without ending the kubelet's stream.",
    why="Every end of the stream makes all devices of the node unallocatable for a time.",
    reference=f"{_KUBELET}: PluginDisconnected, markResourceUnhealthy",
    lane=Lane.FAULT_FRESH,
    requires=(GATE,),
)
async def reload(bench: Bench) -> None:
    await bench.open()
    await bench.start()
    await bench.registered()
    stream = bench.kubelet.resource(bench.resource).open[0]
    await bench.hook.run("reload")
    ended = "the kubelet's stream ended when the configuration was read again"
    await bench.never(lambda: not stream.streaming, ended, _READING * bench.timing.settle)


@case(
    "lifecycle.flat",
    "Keeps neither files nor threads of streams that are gone.",
    why="A plugin runs for months; what each stream leaves behind ends it one day, with all devices.",
    reference="getrlimit(2): RLIMIT_NOFILE",
    lane=Lane.FRESH,
    requires=(GATE, "stream.cancelled"),
)
async def flat(bench: Bench) -> str:
    await bench.open()
    plugin = await bench.up()
    (instance,) = bench.instances
    pid = await instance.pid()
    if pid is None:
        raise NotApplicable("it needs the plugin as a process of this machine, to count what it holds")
    before = _held(pid)
    async with AsyncExitStack() as together:
        watches = [await together.enter_async_context(plugin.watch()) for _ in range(_STREAMS)]
        await bench.until(lambda: all(watch.snapshots for watch in watches), f"{_STREAMS} open streams have a list")
    for _ in range(_CONNECTIONS):
        connection = await bench.connect()
        await connection.close()
    limit = {name: count + _SPARE for name, count in before.items()}
    await bench.until(
        lambda: all(count <= limit[name] for name, count in _held(pid).items()),
        f"after {_STREAMS} streams it holds no more than before ({before}; now {_held(pid)})",
    )
    await plugin.options()
    after = _held(pid)
    return ", ".join(f"{name} {before[name]} → {after[name]}" for name in before)


def _held(pid: int) -> dict[str, int]:
    """Open files and threads."""
    process = Path(f"/proc/{pid}")
    try:
        return {
            name: len(os.listdir(process / directory)) for name, directory in (("files", "fd"), ("threads", "task"))
        }
    except OSError as error:
        raise NotApplicable(f"what the plugin holds cannot be counted: {error}") from error
