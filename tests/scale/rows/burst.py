"""A thousand new ModelDeployments whose model is resolved and compiled: how fast their children are there.

The same server-side applies and status writes are made by a bare loop, before and after, and by an operator written in
kopf's usual way. Each of them begins with a cluster of its own that knows the model already.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from rm_operator.kube.resources import CONTROLLERREVISIONS, DEPLOYMENTS, MODEL_DEPLOYMENTS, SERVICES

from scale import objects, settled
from scale.cluster import OPERATORS, Cluster, Request
from scale.process import Process, operator
from scale.report import Row
from scale.rows.cold import WARM
from scale.sizes import Sizes
from scale.writes import Writes, to_file, writes_of

T = TypeVar("T")

PER_NAMESPACE = 10
WORKERS = 16
"""As many as the operator has by default."""
CHILDREN = (CONTROLLERREVISIONS, DEPLOYMENTS, SERVICES)
_SPEC: dict[str, Any] = {"model": {"source": objects.SOURCE, "servedName": "llama"}}
_KINDS = frozenset(each.plural for each in CHILDREN)
_WAIT_SECONDS = 400
_QUIET_SECONDS = 3.0


@dataclass(frozen=True)
class Scene:
    """What is there before the burst, and what the burst comes to."""

    before: settled.Settled
    writes: Sequence[Writes]
    spaces: Sequence[str]

    @property
    def children(self) -> int:
        """Children that are to be made."""
        return len(self.spaces) * PER_NAMESPACE * len(CHILDREN)

    @asynccontextmanager
    async def cluster(self) -> AsyncIterator[tuple[Cluster, Mapping[tuple[str, str], str]]]:
        """A cluster with the new deployments in it; their uids by namespace and name."""
        async with Cluster() as cluster:
            await cluster.fill(self.before.entries(self.spaces), WARM)
            await cluster.add_namespaces(self.spaces)
            uids: dict[tuple[str, str], str] = {}

            async def create(obj: objects.Object) -> None:
                made = await cluster.client.create(MODEL_DEPLOYMENTS, obj, field_manager="scale")
                uids[made["metadata"]["namespace"], made["metadata"]["name"]] = made["metadata"]["uid"]

            await at_once(create, objects.in_namespaces(self.spaces, PER_NAMESPACE, **_SPEC))
            yield cluster, uids


async def at_once(work: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """``work`` on each of ``items``, as many at the same time as the operator has workers."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(worker())


async def run(sizes: Sizes) -> Sequence[Row]:
    """Rates, and the operator's as a part of the others'."""
    before = await settled.settled(1, prefix="seed", **_SPEC)
    after = await settled.settled(PER_NAMESPACE, **_SPEC)
    scene = Scene(before, writes_of(after), objects.namespaces("burst", sizes.burst // PER_NAMESPACE))
    first = await _bare(scene)
    ours, requests = await _operator(scene)
    naive, naive_requests = await _naive(scene)
    second = await _bare(scene)
    bare = (first + second) / 2
    noise = abs(first - second) / bare * 100
    return [
        Row("burst", f"{sizes.burst} new deployments: bare loop", bare, "children/s",
            note=f"{first:.0f} before, {second:.0f} after: {noise:.0f} % apart"),
        Row("burst", "the operator", ours, "children/s", note=_per_deployment(requests, sizes.burst)),
        Row("burst", "kopf's usual way", naive, "children/s", note=_per_deployment(naive_requests, sizes.burst)),
        Row("burst", "the operator / bare loop", ours / bare * 100, "%", ">=", 80, "of the same writes, same run"),
        Row("burst", "the operator / kopf's usual way", ours / naive * 100, "%"),
    ]  # fmt: skip


async def _bare(scene: Scene) -> float:
    async with scene.cluster() as (cluster, uids):
        todo = [(space, each.of(space, uids[space, each.name])) for space in scene.spaces for each in scene.writes]

        async def write(one: tuple[str, Writes]) -> None:
            space, wanted = one
            await wanted.send_children(cluster.client)
            await wanted.send_status(cluster.client, space)

        began = time.monotonic()
        await at_once(write, todo)
        seconds = time.monotonic() - began
        await _check(cluster, scene)
    return scene.children / seconds


async def _operator(scene: Scene) -> tuple[float, list[Request]]:
    async with scene.cluster() as (cluster, _):
        async with operator(cluster, OPERATORS[0]) as process:
            await process.ready()
            requests = await _requests(cluster, scene, process)
        await _check(cluster, scene)
    return _rate(requests, scene), requests


async def _naive(scene: Scene) -> tuple[float, list[Request]]:
    async with scene.cluster() as (cluster, _):
        wanted = cluster.directory / "writes.json"
        to_file(wanted, scene.writes)
        kubeconfig = cluster.server.kubeconfig(cluster.directory / "naive.kubeconfig", OPERATORS[1])
        environ = os.environ | {"KUBECONFIG": str(kubeconfig)}
        argv = [sys.executable, "-m", "scale.naive", str(wanted)]
        process = Process(argv, environ, cluster.directory / "naive.log")
        try:
            requests = await _requests(cluster, scene, process)
        finally:
            process.end()
        await _check(cluster, scene)
    return _rate(requests, scene), requests


async def _requests(cluster: Cluster, scene: Scene, process: Process) -> list[Request]:
    """All requests of a burst, once the children are there and nothing but Events was written for a while."""
    async with asyncio.timeout(_WAIT_SECONDS):
        count, since = -1, time.monotonic()
        while True:
            process.check()
            found = [each for each in cluster.requests_since(0) if each.resource != "leases"]
            # Events are posted at a rate of their own, long after what they tell of.
            work = sum(each.resource != "events" for each in found)
            if work != count:
                count, since = work, time.monotonic()
            elif sum(map(_is_child, found)) >= scene.children and time.monotonic() - since > _QUIET_SECONDS:
                return found
            await asyncio.sleep(0.5)


def _is_child(request: Request) -> bool:
    return request.resource in _KINDS and request.code == 201


def _rate(requests: Sequence[Request], scene: Scene) -> float:
    """Children a second, from the first write about a deployment until the last one that is no Event."""
    spaces = set(scene.spaces)
    times = [
        datetime.fromisoformat(each.at)
        for each in requests
        if each.namespace in spaces and each.is_write and each.resource != "events"
    ]
    return scene.children / (max(times) - min(times)).total_seconds()


async def _check(cluster: Cluster, scene: Scene) -> None:
    """Fail unless every deployment has its children and a status."""
    listed = await cluster.client.list(MODEL_DEPLOYMENTS)
    without = [each["metadata"]["name"] for each in listed.items if not (each.get("status") or {}).get("conditions")]
    assert not without, f"{len(without)} deployments have no status"
    for resource in CHILDREN:
        found = await cluster.client.list(resource)
        mine = sum(each["metadata"].get("namespace") in scene.spaces for each in found.items)
        wanted = len(scene.spaces) * (PER_NAMESPACE + 1)
        assert mine == wanted, f"there are {mine} {resource.name}, not {wanted}"


def _per_deployment(requests: Sequence[Request], deployments: int) -> str:
    """Requests for one deployment, by what they are."""
    kinds = Counter(
        (
            "reads"
            if each.verb == "get"
            else "events"
            if each.resource == "events"
            else "statuses"
            if each.subresource == "status"
            else "applies"
        )
        for each in requests
    )
    return ", ".join(f"{count / deployments:.2g} {kind}" for kind, count in sorted(kinds.items())) + " each"
