"""The operator as a process: kopf, stores, Lease and workers together, started, stopped, killed and cut off."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from api_proxy import WRITES, ApiProxy, Passing
from operators import Process, child_says, model, running
from prometheus_client.parser import text_string_to_metric_families
from real_api import ApiServer, eventually
from rm_api.names import LABEL_MANAGED_BY, LEASE_NAME, MANAGED_BY
from rm_operator.app import REFLECTED
from rm_operator.kube.http import HttpClient
from rm_operator.kube.resources import CONFIGMAPS, EVENTS, LEASES, MODEL_DEPLOYMENTS, NODES, PODS


def _writes(proxy: ApiProxy) -> list[Passing]:
    """What the operator wrote, Events included, but for its Lease."""
    return [passing for passing in proxy.seen if passing.method in WRITES and "/leases" not in passing.path]


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
        async with ApiProxy(api_server) as proxy, running(api_server, api_namespace, proxy=proxy) as found:
            for number in range(10):
                await eventually(partial(child_says, client, api_namespace, f"m{number}", 1), "all are reconciled")
            writes = 0

            def silent() -> bool:
                nonlocal writes
                before, writes = writes, len(_writes(proxy))
                return found.operator.queue.idle and writes == before > 0

            # Events are posted at their own pace.
            await eventually(silent, "all is said and done", every=2)
            calls = len(found.controller.calls)
            await asyncio.sleep(5)
            assert len(found.controller.calls) == calls
            assert len(_writes(proxy)) == writes

    async def test_each_kind_is_listed_and_watched_once(self, api_server: ApiServer, api_namespace: str) -> None:
        """kopf, which has no handlers of objects, looks at none."""
        async with ApiProxy(api_server) as proxy, running(api_server, api_namespace, proxy=proxy) as found:
            once = {(kept.resource.path(), watch): 1 for kept in REFLECTED for watch in (False, True)}

            def begun() -> Counter[tuple[str, bool]]:
                asked = [each for each in proxy.seen if each.method == "GET" and "/leases" not in each.path]
                return Counter((each.path, "watch" in each.query) for each in asked)

            await eventually(lambda: once.keys() <= begun().keys(), "every kind is watched", 90)
            await eventually(found.leads, "it leads", 90)
            paths = {path for path, _ in once}
            assert {what: count for what, count in begun().items() if what[0] in paths} == once
            # All else that is read is which kinds there are: /api/v1, /apis/GROUP, /apis/GROUP/VERSION.
            assert all(path.count("/") <= 3 for path, _ in begun().keys() - once.keys())
            # It lives on with nothing to watch.
            assert not any(task.get_name().startswith("watcher") for task in asyncio.all_tasks())

    async def test_an_event_is_posted(self, api_server: ApiServer, client: HttpClient, api_namespace: str) -> None:
        async with running(api_server, api_namespace):
            await client.create(MODEL_DEPLOYMENTS, model(api_namespace, "m"), field_manager="tests")

            async def posted() -> bool:
                found = await client.list(EVENTS, api_namespace)
                return any(
                    each["regarding"].get("name") == "m" and each["note"] == "1 replicas" for each in found.items
                )

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

            async def ready() -> bool:
                live = await client.get(MODEL_DEPLOYMENTS, api_namespace, "m")
                return any(each["type"] == "Ready" for each in live["status"].get("conditions") or ())

            await eventually(ready, "its status is written")
            assert (await found.get("/healthz"))[0] == 200
            _, text = await found.get("/metrics")
            assert 'controller_runtime_reconcile_total{controller="ModelDeployment",result="success"}' in text
            assert f'leader_election_master_status{{name="{LEASE_NAME}"}} 1.0' in text
            host = api_server.url.removeprefix("https://")
            assert (
                f'rest_client_requests_total{{code="201",host="{host}",method="PATCH",resource="configmaps"}}' in text
            )
            assert 'rm_operator_store_objects{resource="modeldeployments.rm-abstract.io"}' in text
            families = {family.name: family for family in text_string_to_metric_families(text)}
            (ready,) = [
                sample
                for sample in families["rm_operator_objects"].samples
                if sample.labels == {"kind": "ModelDeployment", "ready": "True", "reason": "Ready"}
            ]
            assert ready.value >= 1
            became = [
                sample.value
                for sample in families["rm_operator_condition_transition_seconds"].samples
                if sample.name.endswith("_count") and sample.labels["type"] == "Ready"
            ]
            assert sum(became) >= 1
            assert api_namespace not in text, "objects are not named"


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
