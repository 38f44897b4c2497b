"""AcceleratorResource: what is rolled out for it, and what is counted on the nodes."""

import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from chain import SETTINGS
from rm_api import names
from rm_operator.plan.accelerator import AcceleratorSnapshot, plan, requested
from rm_operator.plan.device_health import Reported
from rm_operator.plan.device_report import Report
from rm_operator.plan.model import Plan

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESOURCE = "acme.com/npu"
PLUGIN: Object = {
    "image": "acme/plugin:1",
    "args": ["--cost=$1"],
    "env": [{"name": "LEVEL", "value": "debug"}],
    "config": "devices: 4\n",
    "hostPaths": ["/var/lib/acme", "/var/lib/kubelet/device-plugins"],
}


def _accelerator(**spec: Any) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": "AcceleratorResource",
        "metadata": {"name": "npu", "uid": "uid-npu", "generation": 2},
        "spec": {
            "type": "NPU",
            "vendor": "Acme",
            "product": "X1",
            "resourceName": RESOURCE,
            "runtime": {"plugin": "acme", "image": "acme/serve:1"},
            **spec,
        },
    }


def _node(name: str, capacity: object = None, allocatable: object = None, **labels: str) -> Object:
    counts = {"capacity": {}, "allocatable": {}} if capacity is None else {
        "capacity": {RESOURCE: str(capacity)},
        "allocatable": {RESOURCE: str(capacity if allocatable is None else allocatable)},
    }  # fmt: skip
    return {"metadata": {"name": name, "labels": labels}, "status": counts}


def _plan(accelerator: Object, nodes: list[Object] | None = None, **further: Any) -> Plan:
    members = {"requesting": [], "plugin_pods": [], "children": [], "settings": SETTINGS, **further}
    return plan(AcceleratorSnapshot(accelerator=accelerator, nodes=nodes or [], **members), NOW)


def _condition(made: Plan, name: str) -> Object:
    assert made.status is not None
    return next((entry for entry in made.status["conditions"] if entry["type"] == name), {})


def _child(made: Plan, kind: str) -> Object:
    return next(child for child in made.apply if child["kind"] == kind)


@pytest.mark.parametrize("plugin", [None, {**PLUGIN, "config": None}], ids=["no-plugin", "no-config"])
def test_children_that_are_not_wanted_any_more_go(plugin: Object | None) -> None:
    before = [copy.deepcopy(child) for child in _plan(_accelerator(devicePlugin=PLUGIN)).apply]
    for number, child in enumerate(before):
        child["metadata"]["uid"] = f"uid-{number}"
    made = _plan(_accelerator(devicePlugin=plugin), children=before)
    kept = {child["kind"] for child in made.apply}
    assert {(gone.kind, gone.uid) for gone in made.delete} == {
        (child["kind"], child["metadata"]["uid"]) for child in before if child["kind"] not in kept
    }
    leaving = [{**child, "metadata": {**child["metadata"], "deletionTimestamp": "x"}} for child in before]
    assert _plan(_accelerator(devicePlugin=plugin), children=leaving).delete == ()


def test_nothing_is_done_for_one_that_is_being_deleted() -> None:
    leaving = _accelerator(devicePlugin=PLUGIN)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert _plan(leaving) == Plan()


@pytest.mark.parametrize(
    ("nodes", "selector", "counts"),
    [
        ([], {}, (0, 0, 0)),
        ([_node("a", 4), _node("b", 2), _node("c")], {}, (2, 6, 6)),
        ([_node("a", 4, 3)], {}, (1, 4, 3)),
        ([_node("a", 4, zone="1"), _node("b", 2, zone="2")], {"zone": "2"}, (1, 2, 2)),
        ([_node("a", 4, zone="1", disk="ssd"), _node("b", 2, zone="1")], {"zone": "1", "disk": "ssd"}, (1, 4, 4)),
        ([_node("a", "2k", "1500"), _node("b", "1e3"), _node("c", "1Ki")], {}, (3, 4024, 3524)),
    ],
    ids=["none", "all", "unhealthy", "selected", "every-label", "as-the-api-server-shortens"],
)
def test_devices_are_counted_on_the_nodes_that_have_them(
    nodes: list[Object], selector: Object, counts: tuple[int, int, int]
) -> None:
    status = _plan(_accelerator(nodeSelector=selector), nodes).status
    assert status is not None
    assert (status["nodes"], status["devices"]["total"], status["devices"]["healthy"]) == counts
    assert status["observedGeneration"] == 2


def _pod(devices: int, node: str | None, **status: Any) -> Object:
    container = {"name": "c", "resources": {"limits": {RESOURCE: str(devices)}}}
    return {"metadata": {"name": "p"}, "spec": {"containers": [container], "nodeName": node}, "status": status}


@pytest.mark.parametrize(
    ("pods", "allocated"),
    [
        ([], 0),
        ([_pod(2, "a"), _pod(1, "b")], 3),
        ([_pod(2, "a"), _pod(1, "elsewhere")], 2),
        ([_pod(2, None)], 0),
        ([_pod(2, "a", phase="Succeeded"), _pod(1, "a", phase="Running")], 1),
        ([_pod(1, "sick")], 1),
    ],
    ids=["none", "all", "another-kind-of-the-same-resource", "not-scheduled", "ended", "on-a-node-that-lost-them"],
)
def test_devices_are_allocated_to_pods_on_its_nodes(pods: list[Object], allocated: int) -> None:
    nodes = [_node(name, 4, zone="1") for name in "ab"] + [_node("sick", zone="1"), _node("elsewhere", 4, zone="2")]
    status = _plan(_accelerator(nodeSelector={"zone": "1"}), nodes, requesting=pods).status
    assert status is not None
    assert status["devices"] == {"total": 8, "healthy": 8, "allocated": allocated, "usedOutOfBand": 0, "mostOnNode": 4}


@pytest.mark.parametrize(
    ("spec", "nodes", "state"),
    [
        ({}, [_node("a", 4)], ("True", "Advertised", "4 of 4 acme.com/npu healthy on 1 nodes")),
        ({"devicePlugin": PLUGIN}, [], ("False", "NoDevices", "no node advertises a healthy acme.com/npu")),
        (
            {},
            [_node("a", 4, 0)],
            (
                "False",
                "NoDevices",
                "no node advertises a healthy acme.com/npu; install the vendor's device plugin, or set devicePlugin",
            ),
        ),
        ({"type": "CPU", "resourceName": None}, [_node("a"), _node("b")], ("True", "Advertised", "2 nodes")),
        (
            {"type": "CPU", "resourceName": None, "nodeSelector": {"zone": "9"}},
            [_node("a")],
            ("False", "NoDevices", "no node has the labels {'zone': '9'}"),
        ),
    ],
    ids=["healthy", "plugin-starts", "unhealthy", "cpu", "cpu-nowhere"],
)
def test_it_is_ready_where_something_can_be_placed_on_it(
    spec: Object, nodes: list[Object], state: tuple[str, str, str]
) -> None:
    made = _plan(_accelerator(**spec), nodes)
    entry = _condition(made, "DevicesAdvertised")
    assert (entry["status"], entry["reason"], entry["message"]) == state
    assert _condition(made, "Ready")["status"] == state[0]
    assert bool(_condition(made, "Reconciling")) == (state[0] == "False")


CRASH = {
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
    "lastState": {"terminated": {"exitCode": 64, "message": "devices: no such directory"}},
}


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (CRASH, "PluginNotReady", "device plugin p: CrashLoopBackOff: devices: no such directory"),
        (
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}},
            "PluginNotReady",
            "device plugin p: ImagePullBackOff: not found",
        ),
        (
            {"state": {"waiting": {"reason": "ContainerCreating"}}},
            "NoDevices",
            "no node advertises a healthy acme.com/npu",
        ),
        ({"state": {"running": {}}}, "NoDevices", "no node advertises a healthy acme.com/npu"),
    ],
    ids=["crashes", "image", "starts", "runs"],
)
def test_what_keeps_the_plugin_from_running_is_said(status: Object, reason: str, message: str) -> None:
    pod = {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"name": "device-plugin", **status}]}}
    entry = _condition(_plan(_accelerator(devicePlugin=PLUGIN), plugin_pods=[pod]), "Ready")
    assert (entry["reason"], entry["message"]) == (reason, message)
    made = _plan(_accelerator(devicePlugin=PLUGIN), [_node("a", 1)], plugin_pods=[pod], ours=["a"])
    healthy = _condition(made, "Ready")
    assert healthy["status"] == "True", "what the nodes advertise counts"


HOST = {"kubernetes.io/hostname": "host-a"}
ELSEWHERE: Object = {
    "metadata": {"name": "older", "uid": "uid-older", "creationTimestamp": "2025-12-01T00:00:00Z"},
    "spec": _accelerator()["spec"],
}


def test_beside_another_plugin_nothing_is_rolled_out_and_when_it_has_gone_it_goes_on_by_itself() -> None:
    mine, nodes = _accelerator(devicePlugin=PLUGIN), [_node("a", 4, **HOST), _node("b")]
    made = _plan(mine, nodes)
    assert made.status is not None
    assert (made.status["nodes"], made.status["devices"]["total"]) == (0, 0)
    assert _condition(made, "DevicesAdvertised")["reason"] == "ResourceNameConflict"
    assert _condition(made, "Stalled")["reason"] == "ResourceNameConflict"
    assert _condition(made, "Reconciling") == {}
    assert ("Warning", "ResourceNameConflict") in [(event.type, event.reason) for event in made.events]
    daemonset = _child(made, "DaemonSet")
    assert "host-a" in str(daemonset["spec"]["template"]["spec"]["affinity"])
    # Ours runs on the other node.
    nodes = [nodes[0], _node("b", 2)]
    made = _plan(mine, nodes, children=[daemonset], ours=["b"])
    assert made.status is not None
    assert (made.status["nodes"], made.status["devices"]["total"]) == (1, 2)
    assert _condition(made, "DevicesAdvertised")["status"] == "True"
    assert _condition(made, "Ready")["reason"] == "ResourceNameConflict"
    # The other plugin goes, ours comes, and nobody is a stranger any more.
    gone = [_node("a", 4, 0, **HOST), nodes[1]]
    daemonset = _child(_plan(mine, gone, children=[daemonset], ours=["b"]), "DaemonSet")
    assert "affinity" not in daemonset["spec"]["template"]["spec"]
    made = _plan(mine, [_node("a", 4, **HOST), nodes[1]], children=[daemonset], ours=["b"])
    assert _condition(made, "Ready")["status"] == "True"
    assert _condition(made, "Stalled") == {}


def test_a_conflict_that_reports_tell_of_lasts_until_they_are_asked_again() -> None:
    mine, nodes = _accelerator(devicePlugin=PLUGIN), [_node("a", 4)]
    running = list(_plan(mine, [_node("a")]).apply)
    said = Reported({"a": Report(conflict="the kubelet has devices that this plugin never advertised")})
    made = _plan(mine, nodes, children=running, ours=["a"], reported=said)
    assert _condition(made, "Stalled")["reason"] == "ResourceNameConflict"
    # Another replica leads now, and knows of no report yet.
    told = {**mine, "status": made.status}
    assert _plan(told, nodes, children=running, ours=["a"], reported=Reported(awaited=True)) == Plan()
    made = _plan(told, nodes, children=running, ours=["a"], reported=Reported({"a": Report()}))
    assert _condition(made, "Ready")["status"] == "True"


def test_a_kind_whose_nodes_another_one_has_rolls_out_nothing_and_what_runs_already_stays() -> None:
    mine, nodes = _accelerator(devicePlugin=PLUGIN), [_node("a", 4)]
    mine["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    made = _plan(mine, nodes, others=[mine, ELSEWHERE])
    assert made.apply == ()
    assert made.status is not None
    assert (made.status["nodes"], made.status["devices"]["total"]) == (0, 0)
    assert _condition(made, "DevicesAdvertised")["reason"] == "NodeConflict"
    assert "AcceleratorResource older" in _condition(made, "Stalled")["message"]
    running = list(_plan(mine, [_node("a")]).apply)
    made = _plan(mine, nodes, others=[ELSEWHERE], children=running, ours=["a"])
    assert {child["kind"] for child in made.apply} == {"ConfigMap", "DaemonSet"}
    assert made.delete == ()
    assert _condition(_plan(mine, nodes, children=running, ours=["a"]), "Ready")["status"] == "True"


def _pod(init: list[Object], containers: list[object], phase: str = "Running") -> Object:
    def one(count: object) -> Object:
        return {"resources": {"limits": {RESOURCE: str(count), "cpu": "1"}}} if count else {}

    return {
        "spec": {
            "initContainers": [
                {**one(each["count"]), **({"restartPolicy": "Always"} if each.get("stays") else {})} for each in init
            ],
            "containers": [one(count) for count in containers],
        },
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("pod", "count"),
    [
        (_pod([], [2]), 2),
        (_pod([], [2, 3, 0]), 5),
        (_pod([{"count": 4}], [1, 1]), 4),
        (_pod([{"count": 1}, {"count": 2}], [3]), 3),
        (_pod([{"count": 1, "stays": True}], [3]), 4),
        (_pod([{"count": 1, "stays": True}, {"count": 5}], [3]), 6),
        (_pod([{"count": 5}, {"count": 1, "stays": True}], [3]), 5),
        (_pod([], ["2k"]), 2000),
        (_pod([], [2], "Pending"), 2),
        (_pod([{"count": 4}], [2], "Succeeded"), 0),
        (_pod([], [2], "Failed"), 0),
        ({"spec": {"containers": [{"name": "none"}]}}, 0),
        ({}, 0),
    ],
)
def test_requested_is_what_the_scheduler_reserves(pod: Object, count: int) -> None:
    assert requested(pod, RESOURCE) == count
    assert requested(pod, "other.com/npu") == 0
