"""A vendor's status tool or library that hangs, fails, or says nonsense."""

# ruff: noqa: D103 (what a case is, its decorator says)

from rm_device_plugins.conformance.bench import Bench
from rm_device_plugins.conformance.cases.health import RECOVERS
from rm_device_plugins.conformance.cases.registration import GATE
from rm_device_plugins.conformance.model import Lane, Violation, case
from rm_device_plugins.kubelet_api import HEALTHY, UNHEALTHY

_ENHANCEMENT = "kubernetes enhancement 4680: an ID that is not listed counts as healthy"


async def _all_unhealthy(bench: Bench, action: str) -> str:
    plugin = await bench.connect()
    bench.devices()
    listed = bench.baseline
    assert listed is not None
    async with plugin.watch() as watch:
        await bench.until(lambda: bool(watch.snapshots), "the first list")
        async with bench.hook.during(action, "tool-ok"):

            def judged() -> bool:
                now = watch.last
                if now is not None and (gone := sorted(listed.health.keys() - now.health.keys())):
                    raise Violation(f"{gone[0]!r} is not listed any more because the vendor's tool failed once")
                return now is not None and not now.healthy

            seconds = await bench.until(judged, "devices of which nothing is known are Unhealthy", watch=watch)
        await bench.until(
            lambda: watch.last is not None and watch.last.healthy >= listed.healthy,
            "they are Healthy again once the vendor's tool works",
            watch=watch,
        )
    return f"unhealthy after {seconds:.2f} s"


@case(
    "health.tool-hangs",
    "While the vendor's tool hangs, its devices are listed as Unhealthy; afterwards they recover.",
    why="A driver in trouble hangs its tools; a plugin that waits for them tells of a health that nobody has seen.",
    reference=_ENHANCEMENT,
    lane=Lane.FAULT,
    requires=(RECOVERS,),
)
async def tool_hangs(bench: Bench) -> str:
    return await _all_unhealthy(bench, "tool-hang")


@case(
    "health.tool-fails",
    "While the vendor's tool fails, no ID is dropped and all are Unhealthy; afterwards they recover.",
    why="The kubelet forgets what is not listed: capacity shrinks, and pods that have the device look healthy.",
    reference=_ENHANCEMENT,
    lane=Lane.FAULT,
    requires=(RECOVERS,),
)
async def tool_fails(bench: Bench) -> str:
    return await _all_unhealthy(bench, "tool-fail")


@case(
    "health.tool-garbage",
    "What the vendor's tool says and nobody understands is a failure like any other.",
    why="Tools are cut off in the middle of their answer; a plugin that crashes on it takes all devices with it.",
    reference=_ENHANCEMENT,
    lane=Lane.FAULT,
    requires=("health.tool-fails",),
)
async def tool_garbage(bench: Bench) -> str:
    return await _all_unhealthy(bench, "tool-garbage")


@case(
    "health.tool-partial",
    "A device that the vendor's tool leaves out for a time stays listed, as Unhealthy, and recovers.",
    why="It is still in the node, and a pod may have it; dropped, it looks healthy to that pod.",
    reference=_ENHANCEMENT,
    lane=Lane.FAULT,
    requires=("health.tool-fails",),
)
async def tool_partial(bench: Bench) -> None:
    plugin = await bench.connect()
    (device,) = bench.devices()
    async with plugin.watch() as watch:
        await bench.until(lambda: bool(watch.snapshots), "the first list")
        async with bench.hook.during("tool-partial", "tool-ok", device):
            await bench.until(
                lambda: watch.health(device) != HEALTHY, "a device that is left out is Unhealthy", watch=watch
            )
            if watch.health(device) != UNHEALTHY:
                raise Violation(f"{device!r} is not listed any more because the vendor's tool left it out")
        await bench.until_health(watch, device, HEALTHY, "it is Healthy once the tool lists it again")


@case(
    "health.not-before-checked",
    "Lists no device as Healthy before it has been checked.",
    why="A health check that cannot start is no sign of health, and pods are put on dead devices.",
    reference="NVIDIA k8s-device-plugin issue 1641",
    lane=Lane.FAULT_FRESH,
    requires=(GATE,),
)
async def not_before_checked(bench: Bench) -> str:
    await bench.open()
    async with bench.hook.during("tool-fail", "tool-ok"):
        await bench.start()
        await bench.never(
            lambda: bench.kubelet.allocatable(bench.resource) > 0,
            "devices are Healthy though the vendor's tool has failed since the start",
            bench.timing.away + bench.timing.settle,
        )
    seconds = await bench.until(
        lambda: bench.kubelet.allocatable(bench.resource) > 0, "devices are Healthy once the vendor's tool works"
    )
    return f"Healthy {seconds:.2f} s after the tool worked"
