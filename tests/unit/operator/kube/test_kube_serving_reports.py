"""The keeper of serving reports: whom it asks and how often, and what it makes of pods that answer badly."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rm_api import names
from rm_operator.app import make_stores
from rm_operator.kube import serving_reports
from rm_operator.kube.resources import DEPLOYMENTS, PODS
from rm_operator.kube.serving_reports import ServingReports
from rm_operator.kube.store import Stores
from rm_operator.plan.serving_report import SILENT, ServingReport
from waiting import eventually

Object = dict[str, Any]
KEY = "a" * 64
X1 = ServingReport(KEY, "X1", "1.4.0")
WELL = json.dumps({
    "ready": True, "observedDevice": {"product": "X1"}, "driver": "1.4.0", "artifact": {"key": KEY}
}).encode()  # fmt: skip
LABELS = {
    names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_ROLE: names.ROLE_SERVE, names.LABEL_DEPLOYMENT: "hello",
    names.LABEL_VARIANT: "v1", names.LABEL_ARTIFACT: "a-1",
}  # fmt: skip


class Pods:
    """Serving pods: servers at addresses of the loopback network, all at one port, that behave as they are told to."""

    def __init__(self) -> None:
        self.port = 0
        self.does: dict[str, list[str]] = {}
        """What an address does, one after the other; the last from then on."""
        self.asked: Counter[str] = Counter()
        self.at_once = 0
        self.most_at_once = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._network = "127.2.0"
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "0.0.0.0", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.go_on.set()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("sockname")[0]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            assert request.startswith(f"GET {names.REPORT_PATH} HTTP/1.1\r\n".encode())
            deeds = self.does.get(address) or ["well"]
            deed = deeds[min(self.asked[address], len(deeds) - 1)]
            self.asked[address] += 1
            await self.go_on.wait()
            await self._do(deed, reader, writer)
        except ConnectionError:
            pass
        finally:
            self.at_once -= 1
            writer.close()

    async def _do(self, deed: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if deed == "hangs":
            await reader.read()  # until who asked gives up
        elif deed == "dies":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
            await writer.drain()
        elif deed == "trickles":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        elif deed == "floods":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not reader.at_eof():
                writer.write(b" " * 65536)
                await writer.drain()
        elif deed == "sends elsewhere":
            where = f"http://127.2.0.99:{self.port}{names.REPORT_PATH}"
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode())
        elif deed == "packs":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b")
        else:
            status, body = {
                "well": (200, WELL), "garbage": (200, b"\xff\x00{"), "fails": (503, b"{}"),
                "not ready": (200, b'{"ready":false}'), "no http": (0, b""),
            }[deed]  # fmt: skip
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n" if status else "What?\r\n\r\n"
            writer.write(head.encode() + body)


@pytest.fixture
async def pods() -> AsyncIterator[Pods]:
    found = Pods()
    await found.start()
    yield found
    await found.stop()


class Cluster:
    """Stores, the keeper over them, and of which pods subscribers were told."""

    def __init__(self, port: int) -> None:
        self.stores: Stores = make_stores()
        self.keeper = ServingReports(self.stores, port=port, deadline=60, first_backoff=0.01)
        self.told: list[str] = []
        self.keeper.on_report(lambda key: self.told.append(key[1]))
        self._versions = itertools.count(1)

    def put(self, obj: Object) -> Object:
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(next(self._versions))}}
        self.stores.put(obj)
        return obj

    def deployment(self, name: str = "hello-v1", *, owner: str = "ModelDeployment", **labels: str) -> Object:
        reference = {"apiVersion": names.API_VERSION, "kind": owner, "name": "hello", "uid": "md", "controller": True}
        metadata = {
            "namespace": "ns", "name": name, "uid": f"uid-{name}", "labels": LABELS | labels,
            "ownerReferences": [reference],
        }  # fmt: skip
        return self.put({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata})

    def pod(
        self,
        name: str = "p",
        address: str = "127.2.0.1",
        *,
        ready: bool = True,
        replica_set: str = "hello-v1-5d8f",
        kind: str = "ReplicaSet",
        controller: bool = True,
        labels: dict[str, str] = LABELS,
        **metadata: Any,
    ) -> Object:
        reference = {"apiVersion": "apps/v1", "kind": kind, "name": replica_set, "uid": "rs", "controller": controller}
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        return self.put({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "ns", "name": name, "uid": f"uid-{name}", "labels": labels,
                "ownerReferences": [reference], **metadata,
            },
            "spec": {"nodeName": "n"}, "status": {"phase": "Running", "podIP": address, "conditions": conditions},
        })  # fmt: skip

    def remove(self, pod: Object) -> None:
        self.stores[PODS].remove("ns", pod["metadata"]["name"], resource_version=str(next(self._versions)))

    async def known(self, name: str = "p") -> ServingReport:
        await eventually(lambda: self.keeper.of(f"uid-{name}") is not None, f"it is known what {name} says")
        report = self.keeper.of(f"uid-{name}")
        assert report is not None
        return report


@pytest.fixture
async def cluster(pods: Pods) -> AsyncIterator[Cluster]:
    found = Cluster(pods.port)
    found.deployment()
    yield found
    await found.keeper.stop()


async def test_a_pod_is_asked_once_when_it_is_ready_and_forgotten_when_it_is_gone(cluster: Cluster, pods: Pods) -> None:
    pod = cluster.pod(ready=False)
    cluster.keeper.start()
    assert cluster.keeper.of("uid-p") is None
    ticks = cluster.stores.ticks
    cluster.pod()
    asked_at = ticks.now
    assert await cluster.known() == X1
    assert ticks.last([ticks.slot(cluster.keeper.place_of("uid-p"))]) > asked_at
    cluster.pod(ready=False)
    cluster.pod(finalizers=["x"])
    cluster.deployment("other")
    cluster.pod("q")
    assert await cluster.known("q") == X1, "and meanwhile nobody asked the first one again"
    assert pods.asked == {"127.2.0.1": 2}
    assert cluster.told == ["p", "q"]
    cluster.remove(pod)
    assert cluster.keeper.of("uid-p") is None
    # What replaces it under its name is another pod.
    cluster.pod(uid="uid-again")
    assert await cluster.known("again") == X1


async def test_a_replica_that_begins_to_work_asks_those_that_are_ready(cluster: Cluster, pods: Pods) -> None:
    cluster.pod("a")
    cluster.pod("b", ready=False)
    assert cluster.keeper.of("uid-a") is None
    cluster.keeper.start()
    cluster.keeper.start()
    assert await cluster.known("a") == X1
    await cluster.keeper.stop()
    cluster.pod("c")
    assert [cluster.keeper.of(f"uid-{name}") for name in "abc"] == [None] * 3
    assert sum(pods.asked.values()) == 1


FOREIGN: dict[str, Object] = {
    "without an owner that controls it": {"controller": False},
    "of a Job": {"kind": "Job"},
    "of another Deployment": {"replica_set": "other-5d8f"},
    "of a Deployment that is not a model's": {"replica_set": "theirs-5d8f"},
    "of another variant": {"labels": LABELS | {names.LABEL_VARIANT: "v2"}},
    "of another artifact": {"labels": LABELS | {names.LABEL_ARTIFACT: "a-2"}},
    "of what all share, by its own word": {"labels": LABELS | {names.LABEL_ARTIFACT_NAMESPACE: "builds"}},
    "without a variant": {"labels": {k: v for k, v in LABELS.items() if k != names.LABEL_VARIANT}},
    "of another role": {"labels": LABELS | {names.LABEL_ROLE: names.ROLE_BUILD}},
    "that ends": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
    "without an address": {"address": ""},
    "with a name for an address": {"address": "localhost"},
}


async def test_nobody_else_is_asked(cluster: Cluster, pods: Pods) -> None:
    cluster.deployment("theirs", owner="Service")
    for number, pod in enumerate(FOREIGN.values()):
        cluster.pod(**{"name": f"f{number}", "address": "127.2.0.7", **pod})
    cluster.keeper.start()
    for number, pod in enumerate(FOREIGN.values()):
        cluster.pod(**{"name": f"g{number}", "address": "127.2.0.7", **pod})
    cluster.pod("z")
    assert await cluster.known("z") == X1
    assert pods.asked == {"127.2.0.1": 1}


async def test_the_deployment_may_be_told_after_the_pod(cluster: Cluster) -> None:
    cluster.keeper.start()
    cluster.pod(replica_set="late-1")
    assert cluster.keeper.of("uid-p") is None
    cluster.deployment("late")
    assert await cluster.known() == X1
    assert cluster.stores[DEPLOYMENTS].get("ns", "late") is not None


@pytest.mark.parametrize(
    "deed", ["dies", "garbage", "floods", "fails", "not ready", "no http", "sends elsewhere", "packs"]
)
async def test_a_pod_that_answers_badly_is_asked_a_few_times_and_no_more(
    cluster: Cluster, pods: Pods, deed: str
) -> None:
    pods.does = {"127.2.0.1": [deed], "127.2.0.2": [deed, deed, "well"]}
    cluster.keeper.start()
    cluster.pod("bad")
    cluster.pod("slow", "127.2.0.2")
    assert await cluster.known("slow") == X1
    assert await cluster.known("bad") is SILENT
    assert pods.asked == {"127.2.0.1": serving_reports.ATTEMPTS, "127.2.0.2": 3}
    assert sorted(cluster.told) == ["bad", "slow"]
    # Once it was not ready and is again, it may have changed its mind.
    pods.does = {}
    cluster.pod("bad", finalizers=["x"])
    assert cluster.keeper.of("uid-bad") is SILENT
    cluster.pod("bad", ready=False)
    cluster.pod("bad")
    assert await cluster.known("bad") == X1


@pytest.mark.parametrize("deed", ["hangs", "trickles"])
async def test_a_pod_that_takes_its_time_is_given_up(pods: Pods, deed: str) -> None:
    cluster = Cluster(pods.port)
    cluster.keeper = ServingReports(cluster.stores, port=pods.port, deadline=0.2, first_backoff=0.01)
    cluster.deployment()
    pods.does = {"127.2.0.1": [deed]}
    cluster.keeper.start()
    cluster.pod()
    assert await cluster.known() is SILENT
    await cluster.keeper.stop()
    await eventually(lambda: pods.at_once == 0, "no connection is left open")


async def test_nobody_listens_and_pods_that_go_meanwhile_are_not_asked_again(cluster: Cluster, pods: Pods) -> None:
    closed = ServingReports(cluster.stores, port=1, deadline=60, first_backoff=0.01)
    closed.start()
    cluster.pod("p", "::1")
    await eventually(lambda: closed.of("uid-p") is SILENT, "nobody listens there")
    await closed.stop()

    cluster.keeper.start()
    pods.go_on.clear()
    pod = cluster.pod("q", "127.2.0.3")
    await eventually(lambda: pods.asked["127.2.0.3"] == 1, "it is being asked")
    cluster.remove(pod)
    pods.go_on.set()
    await eventually(lambda: pods.at_once == 0, "the question is withdrawn")
    assert cluster.keeper.of("uid-q") is None
    assert "q" not in cluster.told


async def test_not_too_many_are_asked_at_the_same_time(cluster: Cluster, pods: Pods) -> None:
    pods.go_on.clear()
    for number in range(60):
        cluster.pod(f"p{number}", f"127.2.1.{number + 1}")
    began = asyncio.get_running_loop().time()
    cluster.keeper.start()
    await eventually(lambda: pods.at_once == serving_reports.AT_ONCE, "as many as may be are asked")
    pods.go_on.set()
    for number in range(60):
        assert await cluster.known(f"p{number}") == X1
    assert pods.most_at_once == serving_reports.AT_ONCE
    assert set(pods.asked.values()) == {1}
    assert asyncio.get_running_loop().time() - began >= 59 / serving_reports.BEGUN_PER_SECOND


async def test_it_stops_in_the_middle(cluster: Cluster, pods: Pods) -> None:
    pods.go_on.clear()
    for number in range(40):
        cluster.pod(f"p{number}")
    cluster.keeper.start()
    await eventually(lambda: pods.at_once == serving_reports.AT_ONCE, "they are being asked")
    await cluster.keeper.stop()
    pods.go_on.set()
    await eventually(lambda: pods.at_once == 0, "no connection is left open")
    assert cluster.told == []
