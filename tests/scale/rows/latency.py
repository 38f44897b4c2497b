"""From a change of a spec to the status that has taken it up, at a steady rate of changes.

When the operator has ended, a bare loop makes the writes of each change itself, one after the other and with nothing
in between: the user's, that of the Deployment, that of the status. What that takes is what the API server takes.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rm_api.names import API_VERSION, FIELD_MANAGER
from rm_operator.kube.documents import decoded
from rm_operator.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS

from scale import objects, settled
from scale.cluster import Cluster
from scale.metrics import Samples, within
from scale.process import OperatorProcess, cpu_seconds, operator
from scale.report import Row, percentile
from scale.rows.cold import KIND, PER_NAMESPACE, WARM
from scale.sizes import Sizes

NAMESPACES = 10
TARGET_SECONDS = 0.25
_SETTLE_SECONDS = 60.0
_Key = tuple[str, str]


class _Observer:
    """Sees when a status says that it is about a generation."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.waiting: dict[_Key, dict[int, float]] = {}
        """When each generation was made that no status is about yet, by object."""
        self.latencies: list[float] = []
        self.ended = 0
        """How often the server ended the watch."""

    @property
    def lost(self) -> int:
        """Generations that no status is about, nor about a later one."""
        return sum(map(len, self.waiting.values()))

    async def run(self, resource_version: str) -> None:
        version = resource_version
        while True:
            # The server ends watches of whom it finds slow, as this process is now and then: it goes on from there.
            async for event in self._cluster.client.watch(MODEL_DEPLOYMENTS, resource_version=version):
                obj = decoded(event.object)
                version = obj["metadata"]["resourceVersion"]
                if event.type == "MODIFIED":
                    self._see(obj)
            self.ended += 1

    def _see(self, obj: objects.Object) -> None:
        key = obj["metadata"]["namespace"], obj["metadata"]["name"]
        observed = (obj.get("status") or {}).get("observedGeneration", 0)
        now, waiting = time.monotonic(), self.waiting.get(key, {})
        # A status that is about a later generation has taken up those before it, too.
        for generation in [each for each in waiting if each <= observed]:
            self.latencies.append(now - waiting.pop(generation))


async def run(sizes: Sizes) -> Sequence[Row]:
    """Percentiles at the rates of ``sizes``."""
    template = await settled.settled(PER_NAMESPACE, replicas=0, model={"source": objects.SOURCE, "servedName": "llama"})
    spaces = objects.namespaces("scale", NAMESPACES)
    rows: list[Row] = []
    async with Cluster() as cluster:
        await cluster.fill(template.entries(spaces), WARM)
        await cluster.add_namespaces(spaces)
        async with operator(cluster) as process:
            await process.ready()
            await process.reconciled(KIND, NAMESPACES * PER_NAMESPACE)
            runs = [await _at(cluster, process, rate, sizes.change_seconds) for rate in sizes.changes_per_second]
        for run in runs:
            rows += _rows(run, await _bare(cluster, run.rate, sizes.change_seconds))
    return rows


@dataclass(frozen=True)
class _Run:
    """What happened at one rate."""

    rate: int
    latencies: Sequence[float]
    """Seconds, one for each change that a status took up."""
    lost: int
    sent: float
    """Changes a second that were made."""
    lasted: float
    watches_ended: int
    busy: Mapping[str, float]
    """Percent of a core, by process."""
    before: Samples
    after: Samples


async def _at(cluster: Cluster, process: OperatorProcess, rate: int, seconds: float) -> _Run:
    pids = {"operator": process.pid} | {name: cluster.server.pid(name) for name in ("kube-apiserver", "etcd")}
    pids["benchmark"] = os.getpid()
    before = await process.metrics()
    cpu, began = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
    observer, sent, lasted = await _changes(cluster, rate, seconds)
    took = time.monotonic() - began
    busy = {name: (cpu_seconds(pid) - cpu[name]) / took * 100 for name, pid in pids.items()}
    after = await process.metrics()
    return _Run(rate, observer.latencies, observer.lost, sent, lasted, observer.ended, busy, before, after)


def _rows(run: _Run, bare: Sequence[float]) -> list[Row]:
    slowest, bare_slowest = percentile(run.latencies, 99), percentile(bare, 99)
    full = bare_slowest > TARGET_SECONDS
    return [
        Row("latency", f"{run.rate} changes/s: change → status, P50", percentile(run.latencies, 50) * 1000, "ms",
            note=f"{len(run.latencies)} changes; bare loop {percentile(bare, 50) * 1000:.0f} ms"),
        Row("latency", "P99", slowest * 1000, "ms", "<=", TARGET_SECONDS * 1000,
            f"longest {max(run.latencies) * 1000:.0f} ms; bare loop {bare_slowest * 1000:.0f} ms"
            + (": the API server has no room here for so many" if full else "")),
        Row("latency", "P99 against the bare loop", slowest / bare_slowest, "×"),
        Row("latency", "changes that no status took up", run.lost, "", "<=", 0),
        Row("latency", "changes really made", run.sent, "/s",
            note=f"in {run.lasted:.0f} s; the benchmark's watch was ended {run.watches_ended} times"),
        Row("latency", "cores in use", sum(run.busy.values()) / 100, "",
            note=", ".join(f"{name} {percent:.0f} %" for name, percent in run.busy.items())),
        Row("latency", "within the operator: in line, P99", _inside(run, "workqueue_queue_duration_seconds"), "ms",
            note="upper bound of the histogram's bucket"),
        Row("latency", "a reconcile, with its writes, P99", _inside(run, "controller_runtime_reconcile_time_seconds"),
            "ms"),
    ]  # fmt: skip


async def _bare(cluster: Cluster, rate: int, seconds: float) -> list[float]:
    """Seconds that the writes of a change take, at this rate, by nobody who looks at anything."""
    taken: list[float] = []
    deployments = (await cluster.client.list(MODEL_DEPLOYMENTS)).items
    children = {_key(each): each for each in (await cluster.client.list(DEPLOYMENTS)).items}
    async with asyncio.TaskGroup() as group:
        async for number in _ticks(rate, seconds):
            obj = deployments[number % len(deployments)]
            child = children[_key(obj)[0], obj["status"]["variants"][0]["name"]]
            group.create_task(_bare_change(cluster, obj, child, 1 + number // len(deployments), taken))
    return taken


async def _bare_change(
    cluster: Cluster, obj: objects.Object, child: objects.Object, replicas: int, taken: list[float]
) -> None:
    began = time.monotonic()
    made = await cluster.client.apply(MODEL_DEPLOYMENTS, _spec(_key(obj), replicas), field_manager="scale")
    kept = ("namespace", "name", "labels", "annotations", "ownerReferences")
    await cluster.client.apply(
        DEPLOYMENTS,
        {
            "apiVersion": DEPLOYMENTS.api_version,
            "kind": DEPLOYMENTS.kind,
            "metadata": {name: child["metadata"][name] for name in kept},
            "spec": {**child["spec"], "replicas": replicas},
        },
        field_manager=FIELD_MANAGER,
    )
    made["metadata"].pop("resourceVersion")
    status = {**obj["status"], "observedGeneration": made["metadata"]["generation"], "replicas": replicas}
    await cluster.client.apply_status(MODEL_DEPLOYMENTS, made, status)
    taken.append(time.monotonic() - began)


async def _ticks(rate: int, seconds: float) -> AsyncIterator[int]:
    """Numbers from 0, at the times that the rate demands, whether or not earlier ones have been answered."""
    began = time.monotonic()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        yield number


def _inside(run: _Run, name: str) -> float:
    return within(run.before, run.after, name, 99, controller=KIND) * 1000


async def _changes(cluster: Cluster, rate: int, seconds: float) -> tuple[_Observer, float, float]:
    """What was seen, changes a second that were made, and how long that took."""
    listed = await cluster.client.list(MODEL_DEPLOYMENTS)
    replicas = 1 + max(each["spec"]["replicas"] for each in listed.items)
    observer = _Observer(cluster)
    watching = asyncio.create_task(observer.run(listed.resource_version))
    changes = 0
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        async for number in _ticks(rate, seconds):
            key = _key(listed.items[number % len(listed.items)])
            group.create_task(_change(cluster, observer, key, replicas + number // len(listed.items)))
            changes += 1
    lasted = time.monotonic() - began
    deadline = time.monotonic() + _SETTLE_SECONDS
    while observer.lost and time.monotonic() < deadline and not watching.done():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    if watching.done():
        # A watch that broke has seen too little; what broke it is raised.
        await watching
        raise AssertionError("the watch that measures ended before its time")
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return observer, changes / lasted, lasted


def _key(obj: objects.Object) -> _Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _spec(key: _Key, replicas: int) -> objects.Object:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"namespace": key[0], "name": key[1]},
        "spec": {"model": {"source": objects.SOURCE, "servedName": "llama"}, "replicas": replicas},
    }


async def _change(cluster: Cluster, observer: _Observer, key: _Key, replicas: int) -> None:
    sent = time.monotonic()
    made = await cluster.client.apply(MODEL_DEPLOYMENTS, _spec(key, replicas), field_manager="scale")
    generation = made["metadata"]["generation"]
    if (made.get("status") or {}).get("observedGeneration", 0) < generation:
        # Counted from before the change was sent: nobody can have seen it earlier.
        observer.waiting.setdefault(key, {})[generation] = sent
