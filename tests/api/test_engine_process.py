"""The operator as a process: kopf, stores, Lease and workers together, started, stopped, killed and cut off."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from real_api import ApiServer, eventually, free_port
from rm_api.names import LABEL_MANAGED_BY, LEASE_NAME, MANAGED_BY
from rm_operator.app import Operator
from rm_operator.config import Config
from rm_operator.context import Context
from rm_operator.kube.apply import apply_children, write_status
from rm_operator.kube.client import Object
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS, CUSTOM, LEASES, MODEL_DEPLOYMENTS, NODES, PODS
from rm_operator.runtime.controller import Controller, Watch
from rm_operator.runtime.queue import Key


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


class OneChild:
    """Gives each ModelDeployment a ConfigMap that says how many replicas it wants, and a status."""

    kind = MODEL_DEPLOYMENTS.kind

    def __init__(self, context: Context) -> None:
        self.context = context
        self.watches = (Watch(CONFIGMAPS, self._of_child),)
        self.calls: list[str] = []

    def _of_child(self, old: Object | None, new: Object | None) -> Iterable[Key]:
        obj: Any = new or old
        for reference in obj["metadata"].get("ownerReferences") or ():
            yield Key(self.kind, obj["metadata"]["namespace"], reference["name"])

    async def reconcile(self, key: Key) -> float | None:
        self.calls.append(key.name)
        client, stores = self.context.client, self.context.stores
        obj = stores[MODEL_DEPLOYMENTS].get(key.namespace, key.name)
        if obj is None or obj["metadata"].get("deletionTimestamp"):
            return None
        child = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": key.namespace, "name": f"{key.name}-child"},
            "data": {"replicas": str(obj["spec"]["replicas"])},
        }
        await apply_children(client, stores, [child], owner=obj)
        status = {"observedGeneration": obj["metadata"]["generation"]}
        if await write_status(client, stores, obj, status):
            self.context.recorder.emit(obj, "Normal", "Reconciled", f"{obj['spec']['replicas']} replicas")
        return None


class InProcess:
    """An operator in this loop."""

    def __init__(self, server: ApiServer, namespace: str, **config: Any) -> None:
        self.died: list[int] = []
        self._files = _open_files()
        self.controller: OneChild
        self.stop = asyncio.Event()
        settings = {"system_namespace": namespace, "store": "x:1", "runtime_image": "r", "launcher_image": "l"}
        self.operator = Operator(
            Config(**settings | {"metrics_port": 0} | config),
            server.connection(),
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

    async def end(self, task: "asyncio.Task[None]") -> None:
        """Stop it; returns when it has ended and left nothing open (TLS takes its time to say farewell)."""
        self.stop.set()
        await asyncio.wait_for(task, 30)
        await eventually(lambda: _open_files() <= self._files, "all connections are closed")

    async def ready(self) -> bool:
        return bool(self.operator.port) and (await self.get("/readyz"))[0] == 200


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def running(server: ApiServer, namespace: str, **config: Any) -> AsyncIterator[InProcess]:
    found = InProcess(server, namespace, **config)
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


class TestChain:
    async def test_from_event_to_child_and_back(
        self, api_server: ApiServer, client: HttpClient, api_namespace: str
    ) -> None:
        ns = api_namespace
        await client.create(MODEL_DEPLOYMENTS, model(ns, "before"), field_manager="tests")
        async with running(api_server, ns) as found:
            await eventually(lambda: child_says(client, ns, "before", 1), "what existed is reconciled")
            await client.create(MODEL_DEPLOYMENTS, model(ns, "after", replicas=2), field_manager="tests")
            await eventually(lambda: child_says(client, ns, "after", 2), "what is created is reconciled")
            await client.apply(MODEL_DEPLOYMENTS, model(ns, "after", replicas=3), field_manager="tests")
            await eventually(lambda: child_says(client, ns, "after", 3), "what is changed is reconciled")
            await client.delete(CONFIGMAPS, ns, "after-child")
            await eventually(lambda: child_says(client, ns, "after", 3), "a child that was deleted is made again")
            live = await client.get(MODEL_DEPLOYMENTS, ns, "after")
            assert live["status"]["observedGeneration"] == live["metadata"]["generation"]
            assert "finalizers" not in live["metadata"], "kopf put nothing on it"
            assert "annotations" not in live["metadata"]
            await client.delete(MODEL_DEPLOYMENTS, ns, "after")
            store = found.operator.stores[MODEL_DEPLOYMENTS]
            await eventually(lambda: store.get(ns, "after") is None, "what is deleted is forgotten")

    async def test_a_settled_cluster_costs_no_writes_and_no_reconciles(
        self, api_server: ApiServer, client: HttpClient, api_namespace: str
    ) -> None:
        for number in range(10):
            body = model(api_namespace, f"m{number}")
            await client.create(MODEL_DEPLOYMENTS, body, field_manager="tests")
        async with running(api_server, api_namespace) as found:
            for number in range(10):
                await eventually(partial(child_says, client, api_namespace, f"m{number}", 1), "all are reconciled")
            queue = found.operator.queue
            await eventually(lambda: queue.idle, "the queue is empty")
            await asyncio.sleep(1)
            calls = len(found.controller.calls)
            before = (await client.list(CONFIGMAPS)).resource_version
            listed = await client.list(MODEL_DEPLOYMENTS, api_namespace)
            await asyncio.sleep(5)
            assert len(found.controller.calls) == calls
            # The Lease alone was written, at most every other second.
            assert int((await client.list(CONFIGMAPS)).resource_version) - int(before) <= 4
            again = await client.list(MODEL_DEPLOYMENTS, api_namespace)
            assert [each["metadata"]["resourceVersion"] for each in again.items] == [
                each["metadata"]["resourceVersion"] for each in listed.items
            ]

    async def test_an_event_is_posted(self, api_server: ApiServer, client: HttpClient, api_namespace: str) -> None:
        from rm_operator.kube.resources import EVENTS

        async with running(api_server, api_namespace):
            await client.create(MODEL_DEPLOYMENTS, model(api_namespace, "m"), field_manager="tests")

            async def posted() -> bool:
                found = await client.list(EVENTS, api_namespace)
                return any(each["regarding"]["name"] == "m" and each["note"] == "1 replicas" for each in found.items)

            await eventually(posted, "the event is there")

    async def test_nodes_and_foreign_pods_are_kept_trimmed(
        self, api_server: ApiServer, client: HttpClient, api_namespace: str
    ) -> None:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"n-{api_namespace}"}}
        await client.create(NODES, node, field_manager="tests")
        images = [{"names": ["x@sha256:0"], "sizeBytes": 1}]
        made = await client.get(NODES, None, node["metadata"]["name"])  # type: ignore[index]
        await client.apply_status(NODES, made, {"images": images, "capacity": {"vendor.com/npu": "4"}})

        def pod(name: str, labels: dict[str, str], **limits: str) -> dict[str, Any]:
            amounts = {key.replace("_", "/"): value for key, value in limits.items()}
            container = {"name": "c", "image": "i", "resources": {"limits": amounts}}
            metadata = {"namespace": api_namespace, "name": name, "labels": labels}
            spec = {"containers": [container], "nodeName": f"n-{api_namespace}"}
            return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

        npu = {"vendor.com_npu": "1"}
        await client.create(PODS, pod("ours", {LABEL_MANAGED_BY: MANAGED_BY}), field_manager="tests")
        await client.create(PODS, pod("holder", {"app": "theirs"}, **npu), field_manager="tests")
        await client.create(PODS, pod("nothing", {"app": "theirs"}), field_manager="tests")
        async with running(api_server, api_namespace) as found:
            pods = found.operator.stores[PODS].list(api_namespace)
            assert [each["metadata"]["name"] for each in pods] == ["holder", "ours"]
            assert "labels" not in pods[0]["metadata"]
            assert pods[0]["spec"]["containers"][0]["resources"]["limits"] == {"vendor.com/npu": "1"}
            kept = found.operator.stores[NODES].get(None, f"n-{api_namespace}")
            assert kept is not None
            assert kept["status"]["capacity"] == {"vendor.com/npu": "4"}
            assert "images" not in kept["status"]


class TestHealth:
    async def test_probes_and_metrics(self, api_server: ApiServer, client: HttpClient, api_namespace: str) -> None:
        async with running(api_server, api_namespace) as found:
            await client.create(MODEL_DEPLOYMENTS, model(api_namespace, "m"), field_manager="tests")
            await eventually(lambda: child_says(client, api_namespace, "m", 1), "it is reconciled")
            assert (await found.get("/healthz"))[0] == 200
            _, text = await found.get("/metrics")
            assert 'controller_runtime_reconcile_total{controller="ModelDeployment",result="success"}' in text
            assert f'leader_election_master_status{{name="{LEASE_NAME}"}} 1.0' in text
            assert 'rest_client_requests_total{code="201",method="PATCH",resource="configmaps"}' in text
            assert 'rm_operator_store_objects{resource="modeldeployments.rm-abstract.io"}' in text

    async def test_a_part_that_ends_ends_the_process(self, api_server: ApiServer, api_namespace: str) -> None:
        found = InProcess(api_server, api_namespace, leader_elect=False)

        async with asyncio.timeout(60):
            task = asyncio.create_task(found.operator.run(found.stop))
            await eventually(found.ready, "the operator is ready", 90)
            (part,) = [each for each in asyncio.all_tasks() if each.get_name() == "reflector of pods"]
            part.cancel()
            await eventually(lambda: found.died == [1], "it is told")
            await found.end(task)


class Process:
    """``python -m rm_operator run``, with the real controllers."""

    def __init__(self, server: ApiServer, namespace: str, directory: Path, name: str) -> None:
        self.port = free_port()
        self.log = directory / f"{name}.log"
        environ = os.environ | {
            "KUBECONFIG": str(server.kubeconfig(directory / "kubeconfig")),
            "RMA_SYSTEM_NAMESPACE": namespace,
            "RMA_STORE": "127.0.0.1:1",
            "RMA_RUNTIME_IMAGE": "runtime",
            "RMA_LAUNCHER_IMAGE": "launcher",
            "POD_NAME": name,
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
        return f'leader_election_master_status{{name="{LEASE_NAME}"}} 1.0' in (await self.get("/metrics"))[1]

    async def ended(self, seconds: float) -> int:
        await eventually(lambda: self.process.poll() is not None, "the process ended", seconds)
        return self.process.wait()


@pytest.fixture
async def processes(api_server: ApiServer, api_namespace: str, tmp_path: Path) -> AsyncIterator[Any]:
    started: list[Process] = []

    def start(name: str) -> Process:
        started.append(Process(api_server, api_namespace, tmp_path, name))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGCONT)
            each.process.kill()
        each.process.wait()


class TestProcess:
    async def test_stops_gracefully_and_hands_over_at_once(
        self, processes: Any, client: HttpClient, api_namespace: str
    ) -> None:
        first = processes("first")
        await eventually(first.leads, "the first leads", 90)
        second = processes("second")
        await eventually(second.ready, "the second is warm", 90)
        assert not await second.leads()
        first.process.terminate()
        assert await first.ended(60) == 0, first.log.read_text()
        assert "Traceback" not in first.log.read_text()
        live = await client.get(LEASES, api_namespace, LEASE_NAME)
        assert not live["spec"]["holderIdentity"].startswith("first")
        await eventually(second.leads, "the second takes over at once", 60)

    async def test_a_leader_that_sleeps_is_followed_and_ends_without_a_write(
        self, processes: Any, client: HttpClient, api_namespace: str
    ) -> None:
        first = processes("first")
        await eventually(first.leads, "the first leads", 90)
        second = processes("second")
        await eventually(second.ready, "the second is warm", 90)
        first.process.send_signal(signal.SIGSTOP)
        await eventually(second.leads, "the second takes over", 60)
        first.process.send_signal(signal.SIGCONT)
        assert await first.ended(60) == 1
        assert "lost the Lease" in first.log.read_text()
        live = await client.get(LEASES, api_namespace, LEASE_NAME)
        assert live["spec"]["holderIdentity"].startswith("second")

    async def test_cut_off_from_the_api_server_it_ends(self, processes: Any, api_server: ApiServer) -> None:
        first = processes("first")
        await eventually(first.leads, "it leads", 90)
        api_server.freeze()
        try:
            assert await first.ended(60) == 1
        finally:
            api_server.thaw()
        assert "lost the Lease" in first.log.read_text()

    def test_a_wrong_environment_is_refused_with_what_is_wrong(self, tmp_path: Path) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("RMA_")}
        argv = [sys.executable, "-m", "rm_operator", "run"]
        found = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=30, check=False)
        assert found.returncode == 2
        assert "RMA_STORE is not set" in found.stderr
        assert "Traceback" not in found.stderr
