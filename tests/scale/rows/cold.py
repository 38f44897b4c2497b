"""A start with everything there already: how long until all is known, how much memory it takes, is it quiet then."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rm_operator.app import REFLECTED
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_ARTIFACTS,
    BUILD_PROFILES,
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    DEPLOYMENTS,
    MODEL_DEPLOYMENTS,
    NODES,
    PODS,
    SERVICES,
)

from scale import objects, settled
from scale.cluster import Cluster, Request
from scale.metrics import total
from scale.process import OperatorProcess, operator
from scale.report import Row
from scale.sizes import Sizes

PER_NAMESPACE = 100
WARM = (
    ACCELERATOR_RESOURCES, BUILD_PROFILES, BUILD_ARTIFACTS, MODEL_DEPLOYMENTS, DEPLOYMENTS, CONTROLLERREVISIONS,
    SERVICES, CONFIGMAPS, NODES, PODS,
)  # fmt: skip
KIND = MODEL_DEPLOYMENTS.kind


@dataclass(frozen=True)
class Start:
    """One start of the operator."""

    sync_seconds: float
    """From listening, the modules being loaded, until all stores are synced."""
    total_seconds: float
    """From the start of the process until then."""
    cpu_seconds: float
    """CPU time from listening until synced."""
    rss_mib: float
    """Once everything was reconciled."""
    peak_mib: float
    reconciles_per_second: float
    """Of the first round, in which every deployment is looked at and none needs anything."""
    first_writes: Sequence[Request]
    """Writes during that round."""
    idle_writes: int
    """Writes afterwards, other than of the Lease."""
    idle_cpu: float
    """Cores, while idle."""
    bare_seconds: float
    """How long it takes to receive the same and do nothing with it: the mean of before and after."""


async def start(cluster: Cluster, deployments: int, idle_seconds: float) -> Start:
    """Start the operator over what ``cluster`` has, wait until it has looked at everything, then watch it be idle."""
    bare = await _bare_seconds(cluster)
    begin = cluster.audit_position()
    async with operator(cluster) as process:
        listening, loading = await process.listening(), process.cpu_seconds
        ready = await process.ready()
        syncing = process.cpu_seconds - loading
        rate = await _first_round(process, deployments)
        first = [each for each in cluster.requests_since(begin) if each.is_write]
        await asyncio.sleep(2)
        rss, peak = process.rss_mib, process.peak_mib
        begin, cpu = cluster.audit_position(), process.cpu_seconds
        await asyncio.sleep(idle_seconds)
        idle = [each for each in cluster.requests_since(begin) if each.is_write]
        cpu = process.cpu_seconds - cpu
    cores = cpu / idle_seconds if idle_seconds else 0.0
    bare = (bare + await _bare_seconds(cluster)) / 2
    return Start(ready - listening, ready, syncing, rss, peak, rate, first, len(idle), cores, bare)


async def _bare_seconds(cluster: Cluster) -> float:
    """How long the API server takes to send what the operator keeps, to somebody who only receives it."""

    async def receive(path: str, label_selector: str | None) -> None:
        query = {"labelSelector": label_selector} if label_selector else {}
        async with connection.get(f"{cluster.server.url}{path}", params=query) as answer:
            async for _ in answer.content.iter_any():
                pass

    async with cluster.server.connection().open_session() as connection:
        began = time.monotonic()
        await asyncio.gather(
            *(receive(kept.resource.path(None), kept.label_selector) for kept in REFLECTED if not kept.by_class)
        )
        return time.monotonic() - began


async def _first_round(process: OperatorProcess, deployments: int) -> float:
    while not await process.leads():  # noqa: ASYNC110 - it is another process
        await asyncio.sleep(0.02)
    samples = await process.reconciled(KIND, deployments)
    # Nothing is waited for in such a reconcile, so the seconds are those of the one thread.
    name = "controller_runtime_reconcile_time_seconds"
    return total(samples, f"{name}_count", controller=KIND) / total(samples, f"{name}_sum", controller=KIND)


async def run(sizes: Sizes) -> Sequence[Row]:
    """Rows for the small size and the large one."""
    # Every deployment has a name of its own; the model's name is one, so that the copies' templates are equal.
    template = await settled.settled(PER_NAMESPACE, replicas=0, model={"source": objects.SOURCE, "servedName": "llama"})
    starts: dict[int, Start] = {}
    kept: dict[int, int] = {}
    for deployments in (sizes.deployments // 10, sizes.deployments):
        spaces = objects.namespaces("scale", deployments // PER_NAMESPACE)
        async with Cluster() as cluster:
            kept[deployments] = await cluster.fill(template.entries(spaces), WARM)
            starts[deployments] = await start(
                cluster, deployments, sizes.idle_seconds if deployments == sizes.deployments else 0
            )
    rows = [row for deployments, each in starts.items() for row in _rows(deployments, each, template, sizes)]
    small, large = starts.values()
    fewer, more = kept.values()
    grown = (large.rss_mib - small.rss_mib) * 1024 / (more - fewer)
    growth = f"{large.rss_mib / small.rss_mib:.2f} times the memory for {more / fewer:.1f} times the objects"
    rows.append(Row("cold sync", "memory for one object more", grown, "KiB", note=growth))
    return [*rows, *_idle_rows(large, sizes)]


def _rows(deployments: int, found: Start, template: settled.Settled, sizes: Sizes) -> list[Row]:
    full = deployments == sizes.deployments
    name = f"{deployments} deployments, {deployments * template.children // PER_NAMESPACE} children"
    loading = (
        f"from the first sign of life, {found.cpu_seconds:.1f} s of CPU; "
        f"{found.total_seconds:.1f} s from the start of the process"
    )
    ratio, bare = found.sync_seconds / found.bare_seconds, f"which takes {found.bare_seconds:.1f} s"
    memory = f"after all were looked at; peak {found.peak_mib:.0f}"
    return [
        Row("cold sync", f"{name}: synced", found.sync_seconds, "s", "<=" if full else "", 5, loading),
        Row("cold sync", f"{name}: against receiving the same, bare", ratio, "", note=bare),
        Row("cold sync", f"{name}: RSS", found.rss_mib, "MiB", "<=", 300 if full else 120, memory),
    ]


def _idle_rows(found: Start, sizes: Sizes) -> list[Row]:
    kinds = Counter(f"{each.verb} {each.resource}" for each in found.first_writes)
    what = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
    span = f"writes in {sizes.idle_seconds:.0f} s"
    return [
        Row("idle", "writes of the first round", len(found.first_writes), "", "<=", 0, what),
        Row(
            "idle",
            "first round",
            found.reconciles_per_second,
            "reconciles/s",
            note="per second of work",
        ),
        Row("idle", span, found.idle_writes, "", "<=", 0, "audit log, without the Lease"),
        Row("idle", "CPU", found.idle_cpu * 100, "%", note="of one core"),
    ]
