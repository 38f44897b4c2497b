"""Operators to test: in this loop with a small controller, or as processes of their own."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from api_proxy import ApiProxy
from real_api import ApiServer, eventually, free_port
from rm_api.conditions import ConditionType, Reason
from rm_api.names import LEASE_NAME
from rm_operator.app import Operator
from rm_operator.config import Config
from rm_operator.context import Context
from rm_operator.controllers.base import PlanningController
from rm_operator.controllers.indexes import owners_of
from rm_operator.controllers.reading import Reading
from rm_operator.kube.client import Object
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS, CUSTOM, MODEL_DEPLOYMENTS
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.model import Plan, is_deleting, name_of, namespace_of, owner_reference
from rm_operator.runtime.controller import Controller, Watch
from rm_operator.runtime.queue import Key

LEADS = f'leader_election_master_status{{name="{LEASE_NAME}"}} 1.0'


def model(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": MODEL_DEPLOYMENTS.api_version,
        "kind": MODEL_DEPLOYMENTS.kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"model": {"source": "hf://example/model"}, **spec},
    }


class Idle:
    """A controller of a kind that this test does not care for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.watches: Sequence[Watch] = ()

    async def reconcile(self, key: Key) -> float | None:
        return None


class OneChild(PlanningController):
    """Gives each ModelDeployment a ConfigMap that says how many replicas it wants, and a status."""

    resource = MODEL_DEPLOYMENTS

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.watches = (Watch(CONFIGMAPS, owners_of(self.kind)),)
        self.calls: list[str] = []
        self.status_first = False
        self.on_decide: Callable[[str], None] = lambda name: None

    async def decide(self, obj: Object, known: Reading, now: datetime) -> Plan:
        self.calls.append(f"{namespace_of(obj)}/{name_of(obj)}")
        self.on_decide(name_of(obj))
        if is_deleting(obj):
            return Plan()
        metadata = {
            "namespace": namespace_of(obj),
            "name": f"{name_of(obj)}-child",
            "ownerReferences": [owner_reference(obj, controller=True)],
        }
        replicas = str(obj["spec"]["replicas"])
        child = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"replicas": replicas}}
        conditions = Conditions(obj, now)
        conditions.set(ConditionType.READY, True, Reason.READY, f"{replicas} replicas")
        status = {"observedGeneration": obj["metadata"]["generation"], "conditions": conditions.to_list()}
        return Plan((child,), status=status, status_first=self.status_first, events=conditions.transitions())


class InProcess:
    """An operator in this loop, with ``OneChild``; behind ``proxy`` if there is one."""

    def __init__(
        self,
        server: ApiServer,
        namespace: str,
        *,
        proxy: ApiProxy | None = None,
        **config: Any,
    ) -> None:
        self.died: list[int] = []
        self._proxy = proxy
        self._files = _open_files()
        self.controller: OneChild
        self.stop = asyncio.Event()
        settings = {"system_namespace": namespace, "store": "x:1", "runtime_image": "r", "launcher_image": "l"}
        self.operator = Operator(
            Config(**settings | {"metrics_port": 0} | config),
            proxy.connection if proxy is not None else server.connection(),
            build=self._build,
            die=self.died.append,
        )

    def _build(self, context: Context) -> list[Controller]:
        self.controller = OneChild(context)
        return [self.controller, *(Idle(resource.kind) for resource in CUSTOM if resource != MODEL_DEPLOYMENTS)]

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.operator.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    async def leads(self) -> bool:
        return bool(self.operator.port) and LEADS in (await self.get("/metrics"))[1]

    async def end(self, task: "asyncio.Task[None]") -> None:
        """Stop it; returns when it has ended and left nothing open (TLS takes its time to say farewell)."""
        self.stop.set()
        await asyncio.wait_for(task, 30)
        if self._proxy is None:
            await eventually(lambda: _open_files() <= self._files, "all connections are closed")

    async def ready(self) -> bool:
        return bool(self.operator.port) and (await self.get("/readyz"))[0] == 200


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def running(server: ApiServer, namespace: str, **options: Any) -> AsyncIterator[InProcess]:
    found = InProcess(server, namespace, **options)
    task = asyncio.create_task(found.operator.run(found.stop))
    try:
        await eventually(found.ready, "the operator is ready", 90)
        yield found
        assert not task.done()
        assert found.died == []
    finally:
        await found.end(task)


async def child_says(client: HttpClient, namespace: str, name: str, replicas: int) -> bool:
    found = await client.list(CONFIGMAPS, namespace)
    return any(
        item["metadata"]["name"] == f"{name}-child" and item["data"]["replicas"] == str(replicas)
        for item in found.items
    )


class Process:
    """``python -m rm_operator run``, with the real controllers; behind ``proxy`` if there is one."""

    def __init__(
        self,
        server: ApiServer,
        namespace: str,
        directory: Path,
        name: str,
        *,
        proxy: ApiProxy | None = None,
        leader_elect: bool = True,
    ) -> None:
        self.port = free_port()
        self.log = directory / f"{name}.log"
        kubeconfig = (proxy or server).kubeconfig(directory / f"{name}.kubeconfig")
        environ = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "RMA_SYSTEM_NAMESPACE": namespace,
            "RMA_STORE": "127.0.0.1:1",
            "RMA_RUNTIME_IMAGE": "runtime",
            "RMA_LAUNCHER_IMAGE": "launcher",
            "POD_NAME": name,
            "RMA_LEADER_ELECT": str(leader_elect),
            "RMA_METRICS_PORT": str(self.port),
        }
        argv = [sys.executable, "-m", "rm_operator", "run"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, env=environ, stdout=log, stderr=subprocess.STDOUT)

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.get(f"http://127.0.0.1:{self.port}{path}") as response:
                    return response.status, await response.text()
            except aiohttp.ClientError:
                assert self.process.poll() is None, self.log.read_text()
                return 0, ""

    async def ready(self) -> bool:
        return (await self.get("/readyz"))[0] == 200

    async def leads(self) -> bool:
        return LEADS in (await self.get("/metrics"))[1]

    async def ended(self, seconds: float) -> int:
        await eventually(lambda: self.process.poll() is not None, "the process ended", seconds)
        return self.process.wait()
