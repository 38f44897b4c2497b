"""What probes and Prometheus read."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from rm_operator.runtime.health import HealthServer, LoopWatch
from rm_operator.runtime.metrics import Metrics


@dataclass
class Part:
    alive: bool = True


@dataclass
class Serving:
    url: str
    metrics: Metrics
    parts: dict[str, Part] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    refreshed: int = 0

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return response.status, await response.text()


@asynccontextmanager
async def serving() -> AsyncIterator[Serving]:
    metrics = Metrics().with_process_metrics()
    found = Serving("", metrics)

    def refresh() -> None:
        found.refreshed += 1

    server = HealthServer(metrics, port=0, vitals=lambda: found.parts, unready=lambda: found.missing, refresh=refresh)
    found.url = f"http://127.0.0.1:{await server.start()}"
    try:
        yield found
    finally:
        await server.stop()


async def test_liveness_names_what_died() -> None:
    async with serving() as found:
        assert await found.get("/healthz") == (200, "ok\n")
        found.parts |= {"reflector of pods": Part(), "watch of models": Part(alive=False)}
        assert await found.get("/healthz") == (500, "dead: watch of models\n")


async def test_readiness_names_what_is_missing() -> None:
    async with serving() as found:
        found.missing = ["pods", "nodes"]
        assert await found.get("/readyz") == (503, "not yet: pods, nodes\n")
        found.missing = []
        assert await found.get("/readyz") == (200, "ok\n")


async def test_metrics_bear_the_names_that_dashboards_know() -> None:
    async with serving() as found:
        found.metrics.reconciles.labels("ModelDeployment", "success").inc()
        found.metrics.queue_adds.labels("ModelDeployment", "ModelDeployment").inc()
        code, text = await found.get("/metrics")
        assert code == 200
        assert found.refreshed == 1
        assert 'controller_runtime_reconcile_total{controller="ModelDeployment",result="success"} 1.0' in text
        assert 'workqueue_adds_total{controller="ModelDeployment",name="ModelDeployment"} 1.0' in text
        for name in (
            "controller_runtime_reconcile_errors_total",
            "controller_runtime_reconcile_time_seconds",
            "controller_runtime_active_workers",
            "controller_runtime_max_concurrent_reconciles",
            "workqueue_depth",
            "workqueue_retries_total",
            "workqueue_queue_duration_seconds",
            "workqueue_work_duration_seconds",
            "workqueue_unfinished_work_seconds",
            "workqueue_longest_running_processor_seconds",
            "rest_client_requests_total",
            "leader_election_master_status",
            "process_resident_memory_bytes",
        ):
            assert f"# TYPE {name.removesuffix('_total')}" in text or f"# TYPE {name}" in text


async def test_a_blocked_loop_is_measured() -> None:
    metrics = Metrics()
    watch = LoopWatch(metrics)
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    time.sleep(0.8)  # noqa: ASYNC251 - blocking is what is measured
    while watch.worst == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert watch.worst > 0.2
    assert watch.alive
    assert metrics.registry.get_sample_value("rm_operator_event_loop_lag_seconds") == watch.worst
