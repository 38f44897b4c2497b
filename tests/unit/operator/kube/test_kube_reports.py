"""The keeper of reports: whom it asks, what it keeps when pods come and go, and whom it tells."""

import itertools
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from aiohttp import web
from rm_api import names
from rm_operator.app import make_stores
from rm_operator.kube import long_poll, reports
from rm_operator.kube.reports import Reports
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, DAEMONSETS, NODES, PODS
from rm_operator.kube.store import Stores
from waiting import eventually

Object = dict[str, Any]
SYSTEM = "system"
SICK = {"id": "npu-1", "health": "Unhealthy", "cause": "ECC", "failure": "Dead"}
POD = ("team", "chat")


def _document(*, driver: str = "1", sick: bool = False, **members: Any) -> Object:
    devices = [{**SICK, "pods": [{"namespace": POD[0], "name": POD[1], "container": "c"}]}] if sick else []
    return {"driver": driver, "devices": [{"id": "npu-0", "health": "Healthy"}, *devices], **members}


class Plugins:
    """Servers at addresses of the loopback network, all at one port, that say what they are given to say."""

    def __init__(self) -> None:
        self.port = 0
        self.documents: dict[str, object] = {}
        self.asked: list[str] = []
        self._runner = web.AppRunner(web.Application())
        self._runner.app.router.add_get(names.REPORT_PATH, self._answer)

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.1.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        for last in range(2, 6):
            await web.TCPSite(self._runner, f"127.1.0.{last}", self.port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        self.asked.append(address)
        said = self.documents.get(address)
        if said is None:
            return web.Response(status=503)
        return web.Response(body=said if isinstance(said, bytes) else json.dumps(said).encode())


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_SECONDS", "UNHELD_SECONDS", "FIRST_BACKOFF_SECONDS", "MAX_BACKOFF_SECONDS"):
        monkeypatch.setattr(long_poll, name, 0.02)
    monkeypatch.setattr(reports, "PATIENCE_SECONDS", 0.2)


@pytest.fixture
async def plugins() -> AsyncIterator[Plugins]:
    found = Plugins()
    await found.start()
    yield found
    await found.stop()


class Cluster:
    """Stores, the reports over them, and what subscribers were told."""

    def __init__(self, port: int) -> None:
        self.stores: Stores = make_stores()
        self.reports = Reports(self.stores, SYSTEM, port=port)
        self.told: list[tuple[str, str]] = []
        self.pods: list[tuple[str, str]] = []
        self.reports.on_report(lambda accelerator, node: self.told.append((accelerator, node)))
        self.reports.on_pods(self._pods)
        self._versions = itertools.count(1)

    def _pods(self, pods: Iterable[tuple[str, str]]) -> None:
        self.pods += pods

    def put(self, obj: Object) -> Object:
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(next(self._versions))}}
        self.stores.put(obj)
        return obj

    def daemon_set(self, accelerator: str = "npus", uid: str = "ds", **metadata: Any) -> Object:
        owner = {"apiVersion": names.API_VERSION, "kind": "AcceleratorResource", "name": accelerator, "uid": "u"}
        labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_ACCELERATOR: accelerator}
        return self.put({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {
                "namespace": SYSTEM, "name": f"plugin-{accelerator}", "uid": uid, "labels": labels,
                "ownerReferences": [{**owner, "controller": True}], **metadata,
            },
        })  # fmt: skip

    def pod(
        self,
        name: str = "p",
        address: str = "127.1.0.1",
        *,
        node: str = "a",
        accelerator: str = "npus",
        owner: str = "ds",
        role: str = names.ROLE_DEVICE_PLUGIN,
        phase: str = "Running",
        **metadata: Any,
    ) -> Object:
        labels = {
            names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_ACCELERATOR: accelerator, names.LABEL_ROLE: role,
        }  # fmt: skip
        reference = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": f"plugin-{accelerator}", "uid": owner}
        return self.put({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": SYSTEM, "name": name, "uid": f"uid-{name}", "labels": labels,
                "ownerReferences": [{**reference, "controller": True}],
                "creationTimestamp": f"2026-01-01T00:00:{next(self._versions):02}Z", **metadata,
            },
            "spec": {"nodeName": node}, "status": {"phase": phase, "podIP": address},
        })  # fmt: skip

    def driver(self, node: str = "a") -> str:
        report = self.reports.on(node, "npus")
        return "" if report is None else report.driver

    def problem(self, node: str = "a") -> str:
        report = self.reports.on(node, "npus")
        return "" if report is None else report.problem


@pytest.fixture
async def cluster(plugins: Plugins) -> AsyncIterator[Cluster]:
    found = Cluster(plugins.port)
    yield found
    await found.reports.stop()


async def test_a_report_is_kept_and_told_of_once(cluster: Cluster, plugins: Plugins) -> None:
    plugins.documents["127.1.0.1"] = _document()
    cluster.daemon_set()
    cluster.pod()
    cluster.reports.start()
    assert cluster.reports.awaited("npus")
    ticks = cluster.stores.ticks
    slot, before = ticks.slot(Reports.place_of("npus")), ticks.now
    await eventually(lambda: len(plugins.asked) > 3, "it is asked again and again")
    assert cluster.told == [("npus", "a")]
    assert not cluster.reports.awaited("npus")
    assert ticks.last([slot]) > before
    assert [(node, report.driver, report.devices) for node, report in cluster.reports.of("npus").items()] == [
        ("a", "1", 1)
    ]
    assert cluster.reports.states() == {"current": 1, "failing": 0, "pending": 0}
    plugins.documents["127.1.0.1"] = _document(driver="2")
    await eventually(lambda: cluster.driver() == "2", "the change is known")
    assert cluster.told == [("npus", "a")] * 2
    assert cluster.pods == []


async def test_a_replica_that_does_not_work_asks_nobody(cluster: Cluster, plugins: Plugins) -> None:
    plugins.documents["127.1.0.1"] = _document()
    cluster.daemon_set()
    cluster.pod()
    cluster.pod()
    assert not cluster.reports.awaited("npus")
    cluster.reports.start()
    await eventually(lambda: cluster.driver() == "1", "it asks once it works")


@pytest.mark.parametrize(
    "changed",
    [
        {"owner": "another"},
        {"role": "serve"},
        {"phase": "Pending"},
        {"address": ""},
        {"address": "no-address"},
        {"node": ""},
        {"namespace": "team"},
        {"ownerReferences": []},
        {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        {"labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_ROLE: "device-plugin"}},
        {
            "labels": {
                names.LABEL_MANAGED_BY: names.MANAGED_BY,
                names.LABEL_ROLE: "device-plugin",
                names.LABEL_ACCELERATOR: "others",
            }
        },
    ],
    ids=lambda changed: next(iter(changed)),
)
async def test_only_pods_of_our_daemonsets_are_asked(cluster: Cluster, plugins: Plugins, changed: Object) -> None:
    plugins.documents |= {"127.1.0.1": _document(), "127.1.0.2": _document()}
    cluster.daemon_set()
    cluster.pod("imposter", **changed)
    cluster.pod("ours", "127.1.0.2", node="b")
    cluster.reports.start()
    await eventually(lambda: plugins.asked.count("127.1.0.2") > 2, "ours is asked")
    assert set(plugins.asked) == {"127.1.0.2"}
    assert list(cluster.reports.of("npus")) == ["b"]


async def test_a_pod_may_be_known_before_its_daemonset(cluster: Cluster, plugins: Plugins) -> None:
    plugins.documents["127.1.0.1"] = _document()
    cluster.reports.start()
    cluster.pod(role=names.ROLE_DEVICE_OBSERVER)
    cluster.daemon_set()
    await eventually(lambda: cluster.driver() == "1", "it is asked")


async def test_pods_of_a_sick_device_are_known(cluster: Cluster, plugins: Plugins) -> None:
    plugins.documents["127.1.0.1"] = _document(sick=True)
    cluster.daemon_set()
    cluster.pod()
    cluster.reports.start()
    seen = cluster.reports.unhealthy_pods()
    await eventually(lambda: POD in seen, "the pod is known")
    assert (seen[POD].accelerator, seen[POD].node, seen[POD].device, seen[POD].cause) == ("npus", "a", "npu-1", "ECC")
    assert cluster.pods == [POD]
    plugins.documents["127.1.0.1"] = _document()
    await eventually(lambda: not seen, "the device is well")
    assert cluster.pods == [POD, POD]


async def test_a_pod_may_have_sick_devices_of_two_kinds(cluster: Cluster, plugins: Plugins) -> None:
    plugins.documents |= {"127.1.0.1": _document(sick=True), "127.1.0.2": _document(sick=True)}
    cluster.daemon_set()
    cluster.daemon_set("gpus", "ds-2")
    cluster.pod()
    cluster.pod("q", "127.1.0.2", accelerator="gpus", owner="ds-2")
    cluster.reports.start()
    seen = cluster.reports.unhealthy_pods()
    await eventually(lambda: len(cluster.told) == 2, "both are known")
    assert seen[POD].accelerator == "gpus"
    plugins.documents["127.1.0.2"] = _document()
    await eventually(lambda: len(cluster.told) == 3, "one is well")
    assert seen[POD].accelerator == "npus"


async def test_what_is_no_report_is_said_and_what_was_known_stays(cluster: Cluster, plugins: Plugins) -> None:
    plugins.documents["127.1.0.1"] = b"<html>"
    cluster.daemon_set()
    cluster.pod()
    cluster.reports.start()
    await eventually(lambda: "cannot be read" in cluster.problem(), "it is said")
    report = cluster.reports.on("a", "npus")
    assert report is not None
    assert not report.known
    assert "(p, 127.1.0.1)" in report.problem
    plugins.documents["127.1.0.1"] = _document(sick=True)
    await eventually(lambda: cluster.problem() == "", "it is mended")
    plugins.documents["127.1.0.1"] = b"{}"
    await eventually(lambda: "devices" in cluster.problem(), "it is broken again")
    assert POD in cluster.reports.unhealthy_pods()
    assert cluster.driver() == "1"


async def test_a_pod_that_does_not_answer_is_said_in_time_and_once(cluster: Cluster, plugins: Plugins) -> None:
    cluster.daemon_set()
    cluster.pod()
    cluster.reports.start()
    await eventually(lambda: not cluster.reports.awaited("npus"), "it had its time")
    assert cluster.problem() == "no answer: it answered 503 (p, 127.1.0.1)"
    assert cluster.reports.states() == {"current": 0, "failing": 1, "pending": 0}
    asked = len(plugins.asked)
    await eventually(lambda: len(plugins.asked) > asked + 3, "it is asked again")
    assert cluster.told == [("npus", "a")]
    plugins.documents["127.1.0.1"] = _document()
    await eventually(lambda: cluster.problem() == "", "it answers")


async def test_an_upgrade_takes_nothing_away(cluster: Cluster, plugins: Plugins) -> None:
    """The new pod comes beside the old one, which then goes."""
    plugins.documents |= {"127.1.0.1": _document(sick=True), "127.1.0.2": _document(driver="2", sick=True)}
    cluster.daemon_set()
    old = cluster.pod("old")
    cluster.reports.start()
    await eventually(lambda: cluster.driver() == "1", "the old one has reported")
    cluster.pod("new", "127.1.0.2")
    await eventually(lambda: cluster.driver() == "2", "the new one has reported")
    cluster.put({**old, "metadata": {**old["metadata"], "deletionTimestamp": "2026-01-01T00:01:00Z"}})
    cluster.stores[PODS].remove(SYSTEM, "old")
    assert cluster.driver() == "2"
    assert cluster.problem() == ""
    assert cluster.pods == [POD], "for the pod nothing has changed"


async def test_a_node_without_its_pod_is_said_and_keeps_what_was_known(cluster: Cluster, plugins: Plugins) -> None:
    plugins.documents |= {"127.1.0.1": _document(sick=True), "127.1.0.2": _document()}
    cluster.daemon_set()
    cluster.pod()
    cluster.reports.start()
    await eventually(lambda: cluster.driver() == "1", "it has reported")
    cluster.stores[PODS].remove(SYSTEM, "p")
    assert cluster.problem() == ""
    await eventually(lambda: cluster.problem() == "no pod of it runs there any more", "it is said")
    assert POD in cluster.reports.unhealthy_pods()
    cluster.pod("q", "127.1.0.2")
    await eventually(lambda: cluster.problem() == "", "the next one has reported")
    assert not cluster.reports.unhealthy_pods()


@pytest.mark.parametrize("what", ["node", "accelerator", "plugin"])
async def test_what_is_gone_is_forgotten(cluster: Cluster, plugins: Plugins, what: str) -> None:
    plugins.documents["127.1.0.1"] = _document(sick=True)
    cluster.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "uid": "n"}})
    cluster.put({
        "apiVersion": names.API_VERSION, "kind": "AcceleratorResource", "metadata": {"name": "npus", "uid": "u"},
        "spec": {},
    })  # fmt: skip
    cluster.daemon_set()
    cluster.pod()
    cluster.reports.start()
    await eventually(lambda: cluster.driver() == "1", "it has reported")
    if what == "node":
        cluster.stores[NODES].remove(None, "a")
    elif what == "accelerator":
        cluster.stores[ACCELERATOR_RESOURCES].remove(None, "npus")
    else:
        cluster.stores[DAEMONSETS].remove(SYSTEM, "plugin-npus")
        cluster.stores[PODS].remove(SYSTEM, "p")
    assert cluster.reports.of("npus") == {}
    assert cluster.reports.unhealthy_pods() == {}
    assert cluster.pods == [POD, POD]
    assert cluster.told[-1] == ("npus", "a")
    asked = len(plugins.asked)
    assert cluster.reports.states() == {"current": 0, "failing": 0, "pending": 0}
    cluster.stores[PODS].remove(SYSTEM, "p")
    assert len(plugins.asked) == asked
