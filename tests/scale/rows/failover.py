"""The leader dies, sleeps or is asked to stop: how long until the other works, and does the old one write later."""

import asyncio
import signal
import time
from collections.abc import Sequence

from rm_api.names import API_VERSION
from rm_operator.kube.resources import MODEL_DEPLOYMENTS

from scale import objects, settled
from scale.cluster import OPERATORS, Cluster
from scale.process import OperatorProcess, operator
from scale.report import Row
from scale.rows.cold import PER_NAMESPACE, WARM
from scale.sizes import Sizes

NAMESPACES = 10
_LOST = 1
"""Exit status of a replica that has lost the Lease."""
_LEAD_SECONDS = 120
_END_SECONDS = 60


async def run(sizes: Sizes) -> Sequence[Row]:
    """Seconds from the end of the one to the first status that the other writes."""
    template = await settled.settled(PER_NAMESPACE, replicas=0, model={"source": objects.SOURCE, "servedName": "llama"})
    spaces = objects.namespaces("scale", NAMESPACES)
    async with Cluster() as cluster:
        await cluster.fill(template.entries(spaces), WARM)
        await cluster.add_namespaces(spaces)
        killed, _ = await _fail(cluster, spaces[0], signal.SIGKILL)
        stopped, stale = await _fail(cluster, spaces[1], signal.SIGSTOP)
        ended, late = await _fail(cluster, spaces[2], signal.SIGTERM)
    return [
        Row("failover", "the leader is killed: until the other writes", killed, "s", "<=", 20),
        Row("failover", "the leader sleeps: until the other writes", stopped, "s", "<=", 20),
        Row("failover", "writes of the sleeper after it woke up", stale, "", "<=", 0, "it ends, with status 1"),
        Row("failover", "the leader is asked to stop: until the other writes", ended, "s", "<=", 2, "as by an update"),
        Row("failover", "writes of who was asked to stop, after that", late, "", "<=", 0),
    ]


async def _fail(cluster: Cluster, space: str, how: signal.Signals) -> tuple[float, int]:
    """Seconds without a working leader, and what the old one wrote after that."""
    async with operator(cluster, OPERATORS[0]) as leader:
        await leader.ready()
        await _until_leads(leader)
        async with operator(cluster, OPERATORS[1]) as other:
            await other.ready()
            leader.signal(how)
            seconds = await _seconds_to_status(cluster, space)
            assert await other.leads(), "somebody else wrote the status"
            position = cluster.audit_position()
            if how is signal.SIGSTOP:
                leader.signal(signal.SIGCONT)
                status = await leader.ended(_END_SECONDS)
                assert status == _LOST, f"the sleeper ended with {status}"
                await asyncio.sleep(1)
            elif how is signal.SIGTERM:
                status = await leader.ended(_END_SECONDS)
                assert status == 0, f"who was asked to stop ended with {status}"
            wrote = [each for each in cluster.requests_since(position) if each.user == OPERATORS[0]]
    return seconds, sum(each.is_write and each.code < 400 for each in wrote)


async def _until_leads(process: OperatorProcess) -> None:
    async with asyncio.timeout(_LEAD_SECONDS):
        while not await process.leads():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.05)


async def _seconds_to_status(cluster: Cluster, space: str) -> float:
    """Change a deployment; seconds until its status says that the change was seen."""
    began = time.monotonic()
    name = "model-000"
    spec = {"model": {"source": objects.SOURCE, "servedName": "llama"}, "replicas": 1}
    metadata = {"namespace": space, "name": name}
    body = {"apiVersion": API_VERSION, "kind": MODEL_DEPLOYMENTS.kind, "metadata": metadata, "spec": spec}
    made = await cluster.client.apply(MODEL_DEPLOYMENTS, body, field_manager="scale")
    async with asyncio.timeout(_LEAD_SECONDS):
        while True:
            found = await cluster.client.get(MODEL_DEPLOYMENTS, space, name)
            if found["status"]["observedGeneration"] >= made["metadata"]["generation"]:
                return time.monotonic() - began
            await asyncio.sleep(0.05)
