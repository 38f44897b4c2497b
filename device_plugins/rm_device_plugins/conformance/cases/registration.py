"""Being known to a kubelet that starts, restarts, refuses, hangs, and forgets."""

# ruff: noqa: D103 (what a case is, its decorator says)

import asyncio
import os
import socket
from itertools import pairwise
from pathlib import Path

from rm_device_plugins.conformance.bench import Bench
from rm_device_plugins.conformance.fake_kubelet import listens
from rm_device_plugins.conformance.model import (
    REREGISTER_SECONDS,
    CannotJudge,
    Lane,
    NotApplicable,
    Violation,
    case,
)
from rm_device_plugins.kubelet_api import VERSION
from rm_device_plugins.sockets import identity

GATE = "registration.registers"
"""The case that all others build on."""

RESTART = "registration.kubelet-restart"
FULL_LIST = "registration.full-list"

_SERVER = "kubernetes pkg/kubelet/cm/devicemanager/plugin/v1beta1/server.go"
_CLIENT = "kubernetes pkg/kubelet/cm/devicemanager/plugin/v1beta1/client.go"
_MANAGER = "kubernetes pkg/kubelet/cm/devicemanager/manager.go"

_SAME_INODE_TRIES = 20
_PROBES = 20
_MOST_LOWER_NUMBERS = 10_000
_SHORTEST_PAUSE = 0.02
_SHORT_PAUSES = 2
_BAD_NAMES = ("npu", "Example.com/npu", "kubernetes.io/npu")


@case(
    GATE,
    "Registers a valid resource name, version v1beta1, and the name of a socket on which it serves.",
    why="Without it the node has none of the devices.",
    reference=f"{_SERVER}: Register",
    lane=Lane.FRESH,
)
async def registers(bench: Bench) -> str:
    await bench.open()
    await bench.start()
    kubelet = bench.kubelet
    if bench.wanted_resource:
        await bench.until(
            lambda: bool(kubelet.registrations) or bool(kubelet.problems), f"{bench.wanted_resource} is registered"
        )
        names = {request.resource_name for request in kubelet.registrations}
        if bench.wanted_resource not in names:
            raise Violation(f"the plugin registered {sorted(names)}, and {bench.wanted_resource!r} was expected")
    await bench.until(
        lambda: kubelet.streams(bench.resource) >= 1 or bool(kubelet.problems), "the plugin is registered"
    )
    if kubelet.problems and not kubelet.streams(bench.resource):
        raise Violation(f"Register failed: {kubelet.problems[0]}")
    request = kubelet.registrations[0]
    if request.version != VERSION or os.path.basename(request.endpoint) != request.endpoint:
        raise Violation(f"Register had version {request.version!r} and endpoint {request.endpoint!r}")
    return f"{bench.resource}, {len(bench.last.ids)} devices"


@case(
    FULL_LIST,
    "The first list that the kubelet gets has all devices.",
    why="The kubelet takes every message for the whole truth: what is not in it is gone, and capacity dips.",
    reference=f"{_MANAGER}: genericDeviceUpdateCallback",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def full_list(bench: Bench) -> str:
    await bench.open()
    await bench.start()
    await bench.registered()
    snapshots = bench.kubelet.resource(bench.resource).snapshots

    def missing() -> set[str]:
        return set(snapshots[-1].ids) - set(snapshots[0].ids)

    await bench.never(lambda: bool(missing()), "the first list lacked devices that were listed a moment later")
    return f"{len(snapshots[0].ids)} devices"


@case(
    "registration.serves-first",
    "Listens on its socket before it calls Register.",
    why="The kubelet connects back and asks for the options inside Register; it gives up after ten seconds.",
    reference=f"{_CLIENT}: dial; {_MANAGER}: PluginConnected",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def serves_first(bench: Bench) -> None:
    await bench.open()
    await bench.start()
    await bench.registered()
    early = [arrival.endpoint for arrival in bench.kubelet.arrivals if not arrival.served]
    if early:
        raise Violation(f"nobody listened on {early[0]} yet when Register arrived")


@case(
    "registration.options-agree",
    "Gives the same options in Register and in GetDevicePluginOptions.",
    why="Kubelets take them from the call, other readers from the registration; one of them would be wrong.",
    reference=f"{_MANAGER}: PluginConnected",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def options_agree(bench: Bench) -> str:
    await bench.open()
    plugin = await bench.up()
    called = await plugin.options()
    (arrival,) = [each for each in bench.kubelet.arrivals if each.resource == bench.resource][:1]
    if called != arrival.options:
        raise Violation(f"Register said {_options(arrival.options)}, GetDevicePluginOptions {_options(called)}")
    return _options(called)


def _options(options: object) -> str:
    return " ".join(str(options).split()) or "none"


@case(
    "registration.waits-for-kubelet",
    "Starts without a kubelet.sock, waits for it, and then registers.",
    why="At the node's start the plugin may be first; a crash puts it into CrashLoopBackOff, for up to five minutes.",
    reference="pod lifecycle: CrashLoopBackOff; bottlerocket issue 4250",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def waits_for_kubelet(bench: Bench) -> str:
    await bench.open(kubelet=False)
    await bench.start()
    # Some serve while they wait, and some do not, so there is no sign to wait for.
    await bench.never(lambda: False, "", bench.timing.away + bench.timing.settle)
    await bench.kubelet.start()
    seconds = await bench.registered(what="the plugin has registered with the kubelet that came after it")
    return f"registered {seconds:.2f} s after the kubelet came"


@case(
    RESTART,
    "Registers again within two seconds after the kubelet restarted, each time.",
    why="A kubelet that starts deletes all sockets and knows no device; until it hears of them the node has none.",
    reference=f"{_MANAGER}: CleanupPluginDirectory; {_SERVER}: Start",
    lane=Lane.FRESH,
    requires=(FULL_LIST,),
)
async def kubelet_restart(bench: Bench) -> str:
    await bench.open()
    await bench.start()
    await bench.registered()
    known = set(bench.last.ids)
    slowest = 0.0
    for killed in (False, True):
        # While the old file has a second name, its inode cannot be given to the new socket.
        os.link(bench.kubelet.socket_path, bench.place / f"old-{killed}")
        await _restart(bench, killed=killed)
        slowest = max(slowest, await _again(bench, known))
    return f"registered again after {slowest:.2f} s"


@case(
    "registration.same-inode",
    "Registers again also where the new kubelet.sock has the inode number of the old one.",
    why="File systems give a number away again at once, so a comparison of numbers alone sees no change.",
    reference="ext4 and overlayfs reuse inode numbers; identity is device, inode and time",
    lane=Lane.FRESH,
    requires=(RESTART,),
)
async def same_inode(bench: Bench) -> str:
    await bench.open()
    if not reuses_numbers(bench.directory):
        raise NotApplicable(
            f"the file system of {bench.directory} gives no inode number away again; "
            "name a directory of one that does, such as ext4, in TMPDIR"
        )
    await bench.start()
    await bench.registered()
    known = set(bench.last.ids)
    for number in range(_SAME_INODE_TRIES):
        before = identity(bench.kubelet.socket_path)
        # Under a second name the number stays taken, until the moment when the new kubelet.sock is made.
        held = bench.place / f"held-{number}"
        os.link(bench.kubelet.socket_path, held)
        await bench.kubelet.stop()
        await bench.never(lambda: False, "", bench.timing.away)
        _take_lower_numbers(bench, held.stat().st_ino, number)
        await bench.kubelet.start(before_bind=held.unlink)
        after = identity(bench.kubelet.socket_path)
        seconds = await _again(bench, known)
        if before is not None and after is not None and before.inode == after.inode:
            return f"registered again after {seconds:.2f} s"
    raise CannotJudge(f"other processes took the inode number {_SAME_INODE_TRIES} times; name a quieter TMPDIR")


def reuses_numbers(directory: Path) -> bool:
    """True if the file system gives the inode number of a removed socket to a new one."""
    path = directory / ".probe.sock"
    seen: set[int] = set()
    for _ in range(_PROBES):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
        number = path.stat().st_ino
        path.unlink()
        if number in seen:
            return True
        seen.add(number)
    return False


def _take_lower_numbers(bench: Bench, inode: int, attempt: int) -> None:
    """Makes files until a new one's number is above ``inode``: lower ones that are free would be given away first."""
    directory = bench.place / f"taken-{attempt}"
    directory.mkdir()
    for number in range(_MOST_LOWER_NUMBERS):
        path = bench.directory / ".taken"
        path.touch()
        taken = path.stat().st_ino
        path.rename(directory / str(number))
        if taken > inode:
            return


async def _restart(bench: Bench, *, killed: bool = False) -> None:
    await bench.kubelet.stop(killed=killed)
    await bench.never(lambda: False, "", bench.timing.away)
    await bench.kubelet.start()


async def _again(bench: Bench, known: set[str]) -> float:
    limit = bench.timing.limit(REREGISTER_SECONDS)
    seconds = await bench.registered(
        limit, f"registered again after the kubelet's restart (the rule: {REREGISTER_SECONDS:g} s)"
    )
    if set(bench.last.ids) != known:
        raise Violation(f"after the restart the devices are {sorted(bench.last.ids)}, before it {sorted(known)}")
    return seconds


@case(
    "registration.stream-lost",
    "Registers again when the kubelet's stream ends though kubelet.sock stays as it is.",
    why="With the stream all devices are unallocatable; kubelets up to 1.36 end it when another instance leaves.",
    reference=f"{_CLIENT}: Run; {_MANAGER}: PluginDisconnected, markResourceUnhealthy; kubernetes issue 127803",
    lane=Lane.FRESH,
    requires=("registration.same-inode",),
)
async def stream_lost(bench: Bench) -> str:
    await bench.open()
    await bench.start()
    await bench.registered()
    (endpoint,) = bench.kubelet.resource(bench.resource).open[:1]
    await endpoint.channel.close()
    await bench.until(lambda: not endpoint.streaming, "the connection is closed")
    return f"registered again after {await bench.registered(what='registered again after its stream ended'):.2f} s"


@case(
    "registration.retries-refusal",
    "Tries again when Register is refused, with pauses in between, and never exits.",
    why="A kubelet that is busy starting refuses; a plugin that gives up then is missing until somebody looks.",
    reference=f"{_SERVER}: connectClient",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def retries_refusal(bench: Bench) -> str:
    await bench.open()
    kubelet = bench.kubelet
    kubelet.refuse = lambda request: "not now"
    await bench.start()
    await bench.until(lambda: bool(kubelet.arrivals), "the first Register")

    def hurried() -> bool:
        pauses = [later.at - earlier.at for earlier, later in pairwise(kubelet.arrivals)]
        return sum(pause < _SHORTEST_PAUSE for pause in pauses) >= _SHORT_PAUSES

    await bench.never(hurried, "it does not pause between its attempts", bench.timing.refusing)
    attempts = len(kubelet.arrivals)
    kubelet.refuse = lambda request: ""
    seconds = await bench.registered(2 * bench.timing.patience, "registered once the kubelet takes registrations")
    return f"{attempts} attempts while refused; registered {seconds:.2f} s after it was taken"


@case(
    "registration.gives-up-register",
    "Has a deadline for Register, and tries again after it.",
    why="A kubelet that hangs takes the plugin with it, for good, if nobody ends the call.",
    reference="gRPC: a call without a deadline waits for ever",
    lane=Lane.FRESH,
    requires=(GATE,),
    lasts_long=True,
)
async def gives_up_register(bench: Bench) -> str:
    await bench.open()
    kubelet = bench.kubelet
    release = kubelet.hold = asyncio.Event()
    await bench.start()
    await bench.until(lambda: bool(kubelet.arrivals), "the first Register")
    seconds = await bench.until(
        lambda: kubelet.abandoned > 0, "a Register that is not answered is given up", bench.timing.give_up
    )
    kubelet.hold = None
    release.set()
    await bench.registered(2 * bench.timing.patience, "registered after an attempt that hung")
    return f"given up after {seconds:.1f} s"


@case(
    "registration.one-stream",
    "Registers once with a kubelet that comes after it: one stream, and no further Register.",
    why="A second registration makes the kubelet drop the first connection, with all devices, and may never end.",
    reference=f"{_SERVER}: registerClient; bottlerocket issue 4250",
    lane=Lane.FRESH,
    requires=("registration.waits-for-kubelet",),
)
async def one_stream(bench: Bench) -> None:
    await bench.open(kubelet=False)
    await bench.start()
    await bench.never(lambda: False, "", bench.timing.away)
    await bench.kubelet.start(wipe=False)
    await bench.registered()
    await _no_more(bench)


@case(
    "registration.interrupted",
    "Copes with a kubelet that restarts while it handles the first Register: one stream in the end.",
    why="At the node's start the kubelet often restarts once, and the first attempt is cut off.",
    reference="bottlerocket issue 4250",
    lane=Lane.FRESH,
    requires=(RESTART,),
)
async def interrupted(bench: Bench) -> None:
    await bench.open()
    kubelet = bench.kubelet
    kubelet.hold = asyncio.Event()
    await bench.start()
    await bench.until(lambda: bool(kubelet.arrivals), "the first Register")
    kubelet.hold = None
    await _restart(bench)
    await bench.registered(what="registered after a Register that was cut off")
    await _no_more(bench)


async def _no_more(bench: Bench) -> None:
    kubelet = bench.kubelet

    def count() -> int:
        return sum(arrival.resource == bench.resource for arrival in kubelet.arrivals)

    # A second call may be under way already, and its stream not be open yet.
    await bench.never(lambda: kubelet.streams(bench.resource) > 1, "the kubelet has more than one stream of it")
    before = count()
    await bench.never(lambda: count() > before, "it registers again though nothing has happened")
    if kubelet.streams(bench.resource) != 1:
        raise Violation(f"the kubelet has {kubelet.streams(bench.resource)} streams of it; one is needed")


@case(
    "registration.own-socket-deleted",
    "Notices that its own socket was deleted, and registers again with one that can be reached.",
    why="The server goes on without a name: the plugin looks well, and nothing can connect to it ever again.",
    reference="unix(7): an unlinked socket cannot be connected to; grpc servers do not notice",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def own_socket_deleted(bench: Bench) -> str:
    await bench.open()
    await bench.start()
    await bench.registered()
    kubelet = bench.kubelet
    before = len(kubelet.arrivals)
    (bench.directory / kubelet.connected(bench.resource)).unlink()

    def reachable() -> bool:
        return len(kubelet.arrivals) > before and listens(str(bench.directory / kubelet.connected(bench.resource)))

    # A stream that was open before may go on; what counts is where the kubelet allocates from.
    seconds = await bench.until(reachable, "registered again after its socket was deleted")
    plugin = await bench.connect()
    await plugin.options()
    return f"registered again after {seconds:.2f} s"


@case(
    "registration.bad-resource-name",
    "Ends with an error that names it when the resource name is one that no kubelet takes.",
    why="Otherwise it tries for ever, looks well, and the node never has the devices.",
    reference=f"{_SERVER}: Register; kubernetes pkg/apis/core/v1/helper: IsExtendedResourceName",
    lane=Lane.FRESH,
    requires=(GATE,),
)
async def bad_resource_name(bench: Bench) -> None:
    if bench.launcher is None or not bench.launcher.takes_resource:
        raise NotApplicable("the resource name cannot be chosen: use {resource} in --command or --env")
    await bench.open()
    for name in _BAD_NAMES:
        instance = await bench.start(name)
        instance.expected = False
        try:
            await bench.until(lambda: instance.ended is not None, "")  # noqa: B023 (called before the next turn)
        except Violation:
            raise Violation(f"the plugin still runs with the resource name {name!r}") from None
        if instance.ended == 0 or name not in instance.output():
            raise Violation(f"with the resource name {name!r} it ended with {instance.ended} and does not name it")
