"""Deployments that come one after another: how long until each has its first pod; and the builds of identical ones.

ModelDeployments whose model is resolved and compiled take turns with bare apps/v1 Deployments, so that both wait for
the same API server and the same kube-controller-manager. There are no nodes that run anything: a pod counts once it is
there as an object.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from real_api import controller_manager
from rm_api import names
from rm_operator.kube.documents import decoded
from rm_operator.kube.resources import (
    BUILD_ARTIFACTS,
    CONFIGMAPS,
    DEPLOYMENTS,
    JOBS,
    MODEL_DEPLOYMENTS,
    PODS,
)

from scale import objects, settled
from scale.cluster import OPERATORS, Cluster
from scale.process import OperatorProcess, operator
from scale.report import Row, percentile
from scale.rows.cold import WARM
from scale.sizes import Sizes

COUNT = 100
EVERY_SECONDS = 0.2
BARE = "rm-abstract-scale-bare"
"""Label of bare Deployments and their pods, with the name of the Deployment."""
_SPEC = {"model": {"source": objects.SOURCE, "servedName": "llama"}}
_WAIT_SECONDS = 300
_QUIET_SECONDS = 5.0


async def run(sizes: Sizes) -> Sequence[Row]:
    """Times from the request that creates a deployment until its first pod is told of; and the Jobs of a burst."""
    count = max(10, COUNT * sizes.burst // Sizes().burst)
    before = await settled.settled(1, prefix="seed", **_SPEC)
    async with Cluster() as cluster:
        for name in ("registry", "manager"):
            (cluster.directory / name).mkdir()
        with (
            _registry(cluster.directory / "registry") as registry,
            controller_manager(
                cluster.server, cluster.directory / "manager", "deployment,replicaset",
                "--kube-api-qps=200", "--kube-api-burst=400",
            ),
        ):  # fmt: skip
            await cluster.fill(before.entries(["warm"]), WARM)
            await cluster.add_namespaces(["warm", "cold"])
            store = {"RMA_STORE": registry.host, "RMA_STORE_PLAIN_HTTP": "true"}
            async with operator(cluster, OPERATORS[0], environ=store) as process:
                await process.ready()
                await process.reconciled(MODEL_DEPLOYMENTS.kind, 1)
                ours, bare = await _first_pods(cluster, count)
                jobs, seconds = await _jobs(cluster, process, count)
    return [
        Row("deployments", "resolved and compiled: created → first pod created, P95", percentile(ours, 95), "s",
            "<=", 1, f"{count} at {1 / EVERY_SECONDS:.0f}/s, each in turn with a bare Deployment"),
        Row("deployments", "… P50", percentile(ours, 50), "s"),
        Row("deployments", "a bare apps/v1 Deployment, P95", percentile(bare, 95), "s"),
        Row("deployments", "… P50", percentile(bare, 50), "s"),
        Row("deployments", "ModelDeployment / bare Deployment, P95", percentile(ours, 95) / percentile(bare, 95), "×"),
        Row("deployments", f"{count} identical deployments at once, not compiled: compile Jobs", jobs, "",
            "<=", 1, f"exactly one was asked for; its request came after {seconds:.1f} s"),
    ]  # fmt: skip


def _registry(directory: Path) -> AbstractContextManager[Any]:
    """A real registry, which has nothing yet."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "contract"))
    from registry_server import running_registry

    return running_registry(directory)


def _bare(name: str) -> objects.Object:
    label = {BARE: name}
    container = {"name": "engine", "image": "acme/serve:1"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"namespace": "warm", "name": name, "labels": label},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": label},
            "template": {"metadata": {"labels": label}, "spec": {"containers": [container]}},
        },
    }


async def _first_pods(cluster: Cluster, count: int) -> tuple[list[float], list[float]]:
    """Seconds until each ModelDeployment has a pod, and until each bare Deployment has one."""
    began: dict[str, float] = {}
    async with _pods(cluster) as (seen, following):
        start = time.monotonic()
        for number in range(count):
            for half, (resource, obj) in enumerate(
                (
                    (MODEL_DEPLOYMENTS, objects.deployment("warm", f"ours-{number}", **_SPEC)),
                    (DEPLOYMENTS, _bare(f"bare-{number}")),
                )
            ):
                await asyncio.sleep(max(0.0, start + (number + half / 2) * EVERY_SECONDS - time.monotonic()))
                began[obj["metadata"]["name"]] = time.monotonic()
                await cluster.client.create(resource, obj, field_manager="scale")
        async with asyncio.timeout(_WAIT_SECONDS):
            while not began.keys() <= seen.keys():
                assert not following.done(), "the watch ended before all pods were there"
                await asyncio.sleep(0.05)
    return (
        [seen[name] - at for name, at in began.items() if name.startswith("ours-")],
        [seen[name] - at for name, at in began.items() if name.startswith("bare-")],
    )


@asynccontextmanager
async def _pods(cluster: Cluster) -> AsyncIterator[tuple[Mapping[str, float], asyncio.Task[None]]]:
    """When the first pod of each deployment was told of, by the deployment's name; and the task that fills it."""
    seen: dict[str, float] = {}
    version = (await cluster.client.list(PODS, "warm")).resource_version

    async def follow() -> None:
        async for event in cluster.client.watch(PODS, "warm", resource_version=version):
            if event.type != "ADDED":
                continue
            at = time.monotonic()
            pod = decoded(event.object)
            label = pod["metadata"].get("labels") or {}
            name = label.get(BARE) or label.get(names.LABEL_DEPLOYMENT)
            if name:
                seen.setdefault(name, at)

    following = asyncio.create_task(follow())
    try:
        yield seen, following
    finally:
        following.cancel()
        await asyncio.wait([following])


async def _jobs(cluster: Cluster, process: OperatorProcess, count: int) -> tuple[int, float]:
    """Jobs that were ever made for as many identical deployments, and seconds until the first was."""
    await cluster.client.apply(CONFIGMAPS, objects.facts_map("cold"), field_manager="scale")
    position, began, first = cluster.audit_position(), time.monotonic(), 0.0
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            obj = objects.deployment("cold", f"same-{number}", **_SPEC)
            group.create_task(cluster.client.create(MODEL_DEPLOYMENTS, obj, field_manager="scale"))
    async with asyncio.timeout(_WAIT_SECONDS):
        work, since = -1, time.monotonic()
        while True:
            process.check()
            found = [each for each in cluster.requests_since(position) if each.is_write and each.resource != "events"]
            made = [each for each in found if each.resource == JOBS.plural and each.code == 201]
            first = first or (time.monotonic() - began if made else 0.0)
            if len(found) != work:
                work, since = len(found), time.monotonic()
            elif made and time.monotonic() - since > _QUIET_SECONDS:
                break
            await asyncio.sleep(0.2)
    artifacts = (await cluster.client.list(BUILD_ARTIFACTS, "cold")).items
    assert len(artifacts) == 1, f"{len(artifacts)} artifacts were made of one"
    waiting = [
        each["metadata"]["name"]
        for each in (await cluster.client.list(MODEL_DEPLOYMENTS, "cold")).items
        if (each.get("status") or {}).get("artifact") != artifacts[0]["metadata"]["name"]
    ]
    assert not waiting, f"{len(waiting)} of {count} deployments do not wait for it"
    return len(made), first
