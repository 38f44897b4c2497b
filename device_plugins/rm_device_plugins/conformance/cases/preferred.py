"""GetPreferredAllocation: a choice among devices that the kubelet offers."""

# ruff: noqa: D103 (what a case is, its decorator says)

from collections import defaultdict
from collections.abc import Sequence

from rm_device_plugins.conformance.bench import Bench, Plugin, Refused
from rm_device_plugins.conformance.cases.registration import FULL_LIST
from rm_device_plugins.conformance.model import Lane, NotApplicable, Violation, case
from rm_device_plugins.proto.deviceplugin.v1beta1 import api_pb2 as pb

HONOURS = "preferred.honours"
_REFERENCE = (
    "kubernetes pkg/kubelet/cm/devicemanager/manager.go: devicesToAllocate, callGetPreferredAllocationIfAvailable"
)


async def _plugin(bench: Bench) -> Plugin:
    plugin = await bench.connect()
    if not (await plugin.options()).get_preferred_allocation_available:
        raise NotApplicable("its options do not offer GetPreferredAllocation")
    return plugin


async def _prefer(plugin: Plugin, available: Sequence[str], must: Sequence[str], size: int) -> list[str]:
    wish = pb.ContainerPreferredAllocationRequest(
        available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
    )
    request = pb.PreferredAllocationRequest(container_requests=[wish])
    answers = (await plugin.call("get_preferred_allocation", request)).container_responses
    # The kubelet takes an answer without a response for one that leaves the choice to it.
    return list(answers[0].deviceIDs) if answers else []


@case(
    HONOURS,
    "Prefers as many devices as are wanted, of those that are available, with those that must be among them.",
    why="The kubelet uses what fits of the answer and fills up with others: topology is lost without a word.",
    reference=_REFERENCE,
    lane=Lane.SHARED,
    requires=(FULL_LIST,),
)
async def honours(bench: Bench) -> None:
    plugin = await _plugin(bench)
    devices = bench.devices(2)
    available = bench.devices(len(bench.baseline.healthy) if bench.baseline else 2)
    for must in ([], [devices[1]], [available[-1]]):
        for size in sorted({len(must) or 1, 2, len(available)}):
            try:
                chosen = await _prefer(plugin, available, must, size)
            except Refused as error:
                raise Violation(f"{size} of {available} with {must} was refused: {error}") from error
            if not chosen:
                continue  # the choice is the kubelet's
            if (
                len(set(chosen)) != size
                or len(chosen) != size
                or set(chosen) - set(available)
                or set(must) - set(chosen)
            ):
                raise Violation(f"of {available}, {size} were wanted with {must} among them; preferred were {chosen}")


@case(
    "preferred.no-error",
    "Answers what cannot be met with an empty preference, never with an error.",
    why="An error fails the pod, an empty answer leaves the choice to the kubelet: one lost device fails all pods.",
    reference=f"{_REFERENCE}; NVIDIA k8s-device-plugin issue 231, kubernetes issue 97131",
    lane=Lane.SHARED,
    requires=(FULL_LIST,),
)
async def no_error(bench: Bench) -> None:
    plugin = await _plugin(bench)
    (device,) = bench.devices()
    wishes: tuple[tuple[list[str], list[str], int], ...] = (
        ([device], [], 2),
        ([device, "rma-no-such-device"], [], 1),
        ([device], ["rma-no-such-device"], 1),
        ([], [], 1),
    )
    for available, must, size in wishes:
        try:
            await _prefer(plugin, available, must, size)
        except Refused as error:
            raise Violation(f"{size} of {available} with {must} was answered with an error: {error}") from error
    await _prefer(plugin, [device], [], 1)


@case(
    "preferred.numa",
    "Prefers devices of one NUMA node, where one has enough.",
    why="Memory and links between nodes are several times slower, and nobody sees why.",
    reference="device plugin API: TopologyInfo",
    lane=Lane.SHARED,
    requires=(HONOURS,),
)
async def numa(bench: Bench) -> str:
    plugin = await _plugin(bench)
    listed = bench.baseline
    assert listed is not None
    nodes: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for device in bench.devices(len(listed.healthy)):
        if listed.numa[device]:
            nodes[listed.numa[device]].append(device)
    big = [devices for devices in nodes.values() if len(devices) >= 2]
    if len(nodes) < 2 or not big:
        raise NotApplicable("it needs devices on two NUMA nodes, two of them on one")
    # One of another node comes first in every order that knows no nodes.
    for devices in big:
        (stranger, *_) = next(others for others in nodes.values() if others is not devices)
        for available in ([stranger, *devices], [devices[0], stranger, *devices[1:]]):
            chosen = await _prefer(plugin, available, [], 2)
            if chosen and len({listed.numa[device] for device in chosen}) > 1:
                raise Violation(f"of {available} it prefers {chosen}, on different NUMA nodes, though two share one")
    return f"{len(nodes)} NUMA nodes"
