"""From a change of a spec to the status that has taken it up, at a steady rate of changes."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import suppress

import orjson
from rm_api.names import API_VERSION
from rm_operator.kube.resources import MODEL_DEPLOYMENTS

from scale import objects, settled
from scale.cluster import Cluster
from scale.metrics import Samples, within
from scale.process import cpu_seconds, operator
from scale.report import Row, percentile
from scale.rows.cold import KIND, PER_NAMESPACE, WARM
from scale.sizes import Sizes

NAMESPACES = 10
_SETTLE_SECONDS = 60.0
_Key = tuple[str, str]


class _Observer:
    """Sees when a status says that it is about a generation."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.waiting: dict[tuple[_Key, int], float] = {}
        """When a generation was made, by object and generation."""
        self.latencies: list[float] = []
        self.ended = 0
        """How often the server ended the watch."""

    async def run(self, resource_version: str) -> None:
        version = resource_version
        while True:
            # The server ends watches of whom it finds slow, as this process is now and then: it goes on from there.
            async for event in self._cluster.client.watch(MODEL_DEPLOYMENTS, resource_version=version):
                obj = orjson.loads(memoryview(event.object))
                version = obj["metadata"]["resourceVersion"]
                if event.type == "MODIFIED":
                    self._see(obj)
            self.ended += 1

    def _see(self, obj: objects.Object) -> None:
        key = obj["metadata"]["namespace"], obj["metadata"]["name"]
        observed = (obj.get("status") or {}).get("observedGeneration", 0)
        began = self.waiting.pop((key, observed), None)
        if began is not None:
            self.latencies.append(time.monotonic() - began)


async def run(sizes: Sizes) -> Sequence[Row]:
    """Percentiles at the rate of ``sizes``."""
    template = await settled.settled(PER_NAMESPACE, replicas=0, model={"source": objects.SOURCE, "servedName": "llama"})
    spaces = objects.namespaces("scale", NAMESPACES)
    async with Cluster() as cluster:
        await cluster.fill(template.entries(spaces), WARM)
        await cluster.add_namespaces(spaces)
        async with operator(cluster) as process:
            await process.ready()
            before = await process.reconciled(KIND, NAMESPACES * PER_NAMESPACE)
            pids = {"operator": process.pid} | {name: cluster.server.pid(name) for name in ("kube-apiserver", "etcd")}
            pids["benchmark"] = os.getpid()
            cpu, began = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.monotonic()
            observer, sent, lasted = await _changes(cluster, sizes)
            seconds = time.monotonic() - began
            busy = {name: (cpu_seconds(pid) - cpu[name]) / seconds * 100 for name, pid in pids.items()}
            after = await process.metrics()
    found = [seconds * 1000 for seconds in observer.latencies]
    name = f"{sizes.changes_per_second} changes/s"
    lost = len(observer.waiting)
    return [
        Row("latency", f"{name}: change → status, P50", percentile(found, 50), "ms", note=f"{len(found)} changes"),
        Row("latency", "P99", percentile(found, 99), "ms", "<=", 250, f"longest {max(found):.0f} ms"),
        Row("latency", "changes that no status took up", lost, "", "<=", 0),
        Row("latency", "changes really made", sent, "/s",
            note=f"in {lasted:.0f} s; the benchmark's watch was ended {observer.ended} times"),
        Row("latency", "cores in use", sum(busy.values()) / 100, "",
            note=", ".join(f"{name} {percent:.0f} %" for name, percent in busy.items())),
        Row("latency", "within the operator: in line, P99", _inside(before, after, "workqueue_queue_duration_seconds"),
            "ms", note="upper bound of the histogram's bucket"),
        Row("latency", "a reconcile, with its writes, P99",
            _inside(before, after, "controller_runtime_reconcile_time_seconds"), "ms"),
    ]  # fmt: skip


def _inside(before: Samples, after: Samples, name: str) -> float:
    return within(before, after, name, 99, controller=KIND) * 1000


async def _changes(cluster: Cluster, sizes: Sizes) -> tuple[_Observer, float, float]:
    """What was seen, changes a second that were made, and how long that took."""
    listed = await cluster.client.list(MODEL_DEPLOYMENTS)
    keys = [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in listed.items]
    observer = _Observer(cluster)
    watching = asyncio.create_task(observer.run(listed.resource_version))
    changes = round(sizes.changes_per_second * sizes.change_seconds)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(changes):
            # At the times that the rate demands, whether or not earlier ones have been answered.
            await asyncio.sleep(max(0.0, began + number / sizes.changes_per_second - time.monotonic()))
            key = keys[number % len(keys)]
            group.create_task(_change(cluster, observer, key, 1 + number // len(keys)))
    lasted = time.monotonic() - began
    deadline = time.monotonic() + _SETTLE_SECONDS
    while observer.waiting and time.monotonic() < deadline and not watching.done():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    if watching.done():
        # A watch that broke has seen too little; what broke it is raised.
        await watching
        raise AssertionError("the watch that measures ended before its time")
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return observer, changes / lasted, lasted


async def _change(cluster: Cluster, observer: _Observer, key: _Key, replicas: int) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"namespace": key[0], "name": key[1]},
        "spec": {"model": {"source": objects.SOURCE, "servedName": "llama"}, "replicas": replicas},
    }
    sent = time.monotonic()
    made = await cluster.client.apply(MODEL_DEPLOYMENTS, body, field_manager="scale")
    generation = made["metadata"]["generation"]
    if (made.get("status") or {}).get("observedGeneration", 0) < generation:
        # Counted from before the change was sent: nobody can have seen it earlier.
        observer.waiting[key, generation] = sent
