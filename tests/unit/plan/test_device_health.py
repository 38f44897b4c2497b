"""DevicesHealthy, the list of devices that are not well, and Events about them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from chain import SETTINGS
from rm_api.conditions import ConditionType
from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.accelerator_resource import AcceleratorResourceStatus, DeviceCounts, DeviceFailure
from rm_operator.plan.accelerator import AcceleratorSnapshot, plan
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.device_health import Health, Reported, examine
from rm_operator.plan.device_report import Device, Report
from rm_operator.plan.model import Plan

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESOURCE = "acme.com/npu"
PLUGIN = {"devicePlugin": {"image": "acme/plugin:1"}}
SPEC: Object = {
    "type": "NPU", "vendor": "Acme", "product": "X1", "resourceName": RESOURCE,
    "runtime": {"plugin": "acme", "image": "acme/serve:1"},
}  # fmt: skip
SICK = Device("npu-1", False, DeviceFailure.NEEDS_RESET, "ECC error", "", (("team", "chat-1"),))
DEAD = Device("npu-2", False, DeviceFailure.DEAD, "fell off the bus")
NODES = tuple(
    {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "status": {"capacity": {RESOURCE: "4"}, "allocatable": {RESOURCE: "4"}},
    }
    for name in "abc"
)


class Made:
    """What is said of a kind."""

    def __init__(
        self,
        reports: dict[str, Report] | None = None,
        *,
        before: Object | None = None,
        awaited: bool = False,
        nodes: tuple[Object, ...] = NODES,
        devices: DeviceCounts | None = None,
        pods: tuple[Object, ...] = (),
        **spec: Any,
    ) -> None:
        metadata = {"name": "npus", "uid": "u", "generation": 1}
        accelerator = {"metadata": metadata, "spec": {**SPEC, **spec}, "status": before or {}}
        conditions = Conditions(accelerator, NOW)
        self.health: Health = examine(
            accelerator,
            AcceleratorResourceSpec.model_validate(accelerator["spec"]),
            nodes,
            devices or DeviceCounts(total=12, healthy=12),
            Reported(reports or {}, awaited),
            pods,
            conditions,
        )
        self.condition: Object = (
            conditions.get(ConditionType.DEVICES_HEALTHY) if conditions.has(ConditionType.DEVICES_HEALTHY) else {}
        )
        self.status: Object = {
            "unhealthy": self.health.to_wire(),
            "conditions": conditions.to_list(),
            "devices": {"usedOutOfBand": self.health.used_out_of_band},
        }
        AcceleratorResourceStatus.model_validate(self.status)

    @property
    def said(self) -> tuple[str | None, str | None, str | None]:
        return self.condition.get("status"), self.condition.get("reason"), self.condition.get("message")

    @property
    def events(self) -> list[tuple[str, str, str, str]]:
        """Type, reason, name of the node or nothing, message."""
        return [
            (each.type, each.reason, each.about.name if each.about else "", each.message) for each in self.health.events
        ]

    @property
    def devices(self) -> list[tuple[str, str]]:
        return [(each.node, each.device) for each in self.health.unhealthy]


def _sick(number: int, node: str = "a") -> Report:
    """A report with so many sick devices."""
    return Report(devices=200, noted=tuple(Device(f"npu-{each:03}", False) for each in range(number)))


def test_all_are_well() -> None:
    made = Made({"a": Report(devices=4), "b": Report(devices=4), "elsewhere": Report(noted=(SICK,))}, **PLUGIN)
    assert made.said == ("True", "AllHealthy", "8 devices on 2 nodes, as their device plugins report")
    assert (made.devices, made.events) == ([], [])


def test_before_anything_was_reported_nothing_is_said() -> None:
    assert Made({}, **PLUGIN).condition == {}


def test_a_device_that_fails_is_said_with_its_pods_and_told_once() -> None:
    reports = {"a": Report(devices=4, noted=(SICK,)), "b": Report(devices=4)}
    made = Made(reports, **PLUGIN)
    words = "npu-1 needs a reset (ECC error), used by team/chat-1"
    assert made.said == ("False", "DeviceUnhealthy", f"1 device is not well: a: {words}")
    assert made.health.to_wire() == [
        {"node": "a", "device": "npu-1", "failure": "NeedsReset", "cause": "ECC error", "pods": ["team/chat-1"]}
    ]
    assert made.events == [
        ("Warning", "DeviceUnhealthy", "", f"a: {words}"),
        ("Warning", "DeviceUnhealthy", "a", f"npus: {words}"),
    ]
    (_, about) = made.health.events
    assert about.about is not None
    assert (about.about.kind, about.about.uid) == ("Node", "uid-a")
    again = Made(reports, before=made.status, **PLUGIN)
    assert (again.status, again.events) == (made.status, [])


def test_what_becomes_worse_is_told_again() -> None:
    before = Made({"a": Report(noted=(SICK,))}, **PLUGIN).status
    worse = Device("npu-1", False, DeviceFailure.DEAD, "ECC error")
    made = Made({"a": Report(noted=(worse,))}, before=before, **PLUGIN)
    assert [each[3] for each in made.events] == ["a: npu-1 is dead (ECC error)", "npus: npu-1 is dead (ECC error)"]


def test_a_device_that_recovers_is_told_once() -> None:
    before = Made({"a": Report(noted=(SICK, DEAD))}, **PLUGIN).status
    made = Made({"a": Report(devices=4, noted=(DEAD,))}, before=before, **PLUGIN)
    assert made.devices == [("a", "npu-2")]
    assert made.events == [
        ("Normal", "DeviceRecovered", "", "a: npu-1 is not reported as unhealthy any more"),
        ("Normal", "DeviceRecovered", "a", "npus: npu-1 is not reported as unhealthy any more"),
    ]
    assert Made({"a": Report(devices=4, noted=(DEAD,))}, before=made.status, **PLUGIN).events == []


def test_while_reports_are_awaited_nothing_is_taken_back() -> None:
    used = Device("npu-3", True, out_of_band="pid 7")
    before = Made({"a": Report(noted=(SICK, used)), "b": Report()}, **PLUGIN).status
    made = Made({"b": Report()}, awaited=True, before=before, **PLUGIN)
    assert (made.status, made.events) == (before, [])
    assert made.health.used_out_of_band == 1
    assert Made({}, awaited=True, **PLUGIN).condition == {}


@pytest.mark.parametrize(
    "silent", [None, Report(known=False, problem="no answer"), Report(problem="gone", noted=(SICK,))]
)
def test_a_node_that_does_not_report_keeps_what_was_said_of_it(silent: Report | None) -> None:
    before = Made({"a": Report(noted=(SICK,)), "b": Report(noted=(DEAD,))}, **PLUGIN).status
    reports = {"b": Report(devices=4), **({"a": silent} if silent is not None else {})}
    made = Made(reports, before=before, **PLUGIN)
    assert made.devices == [("a", "npu-1")]
    assert made.said[:2] == ("False", "DeviceUnhealthy")
    assert {each[2] for each in made.events} == {"", "b"}


def test_a_node_that_is_gone_takes_its_devices_along_in_silence() -> None:
    before = Made({"a": Report(noted=(SICK,))}, **PLUGIN).status
    made = Made({"b": Report(devices=4)}, before=before, nodes=NODES[1:], **PLUGIN)
    assert (made.devices, made.events) == ([], [])
    assert made.said[0] == "True"


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        (
            {"a": Report(), "b": Report(known=False, problem="no answer: Connection refused (p, 10.0.0.1)")},
            ("Unknown", "ReportMissing", "no report from b: no answer: Connection refused (p, 10.0.0.1)"),
        ),
        (
            {"a": Report(problem="x"), "b": Report(problem="y"), "c": Report(message="npu-smi hangs")},
            (
                "Unknown",
                "ReportMissing",
                "no report from a: x; no report from 1 more; discovery fails on c: npu-smi hangs",
            ),
        ),
        (
            {"a": Report(noted=(DEAD,)), "b": Report(problem="y")},
            (
                "False",
                "DeviceUnhealthy",
                "1 device is not well: a: npu-2 is dead (fell off the bus); no report from b: y",
            ),
        ),
    ],
)
def test_who_does_not_report_is_said(reports: dict[str, Report], said: tuple[str, str, str]) -> None:
    assert Made(reports, **PLUGIN).said == said


def test_many_sick_devices_are_counted_and_the_first_ones_listed() -> None:
    made = Made({"a": _sick(100), "b": _sick(1)}, **PLUGIN)
    assert len(made.status["unhealthy"]) == 32
    assert made.condition["message"].startswith("101 devices are not well: a: npu-000 is not well; ")
    assert made.condition["message"].endswith("; and 98 more")
    assert len(made.events) == 16
    # Nobody knows which of those that the status does not hold were told.
    again = Made({"a": _sick(100), "b": _sick(1)}, before=made.status, **PLUGIN)
    assert (again.status, again.events) == (made.status, [])
    fewer = Made({"a": _sick(30), "b": _sick(1)}, before=made.status, **PLUGIN)
    assert [each[3] for each in fewer.events if not each[2]] == [
        "a: npu-030 is not reported as unhealthy any more",
        "a: npu-031 is not reported as unhealthy any more",
    ]


def test_long_names_fit() -> None:
    pods = tuple((f"n{number}", "p" * 253) for number in range(100))
    device = Device("d" * 256, False, DeviceFailure.DEAD, "c" * 512, "", pods)
    (told,) = Made({"a": Report(noted=(device,))}, **PLUGIN).health.to_wire()
    assert (len(told["pods"]), len(told["cause"]), len(told["device"])) == (16, 512, 256)


def test_use_by_others_is_counted() -> None:
    used = Device("npu-3", True, out_of_band="pid 7")
    assert Made({"a": Report(noted=(used,)), "b": Report(noted=(used, SICK))}, **PLUGIN).health.used_out_of_band == 2


def _pod(node: str, *devices: str, resource: str = RESOURCE, name: str = "chat") -> Object:
    resources = [{"resourceID": device, "health": "Unhealthy"} for device in devices]
    return {
        "metadata": {"namespace": "team", "name": name},
        "spec": {"nodeName": node},
        "status": {"containerStatuses": [{"allocatedResourcesStatus": [{"name": resource, "resources": resources}]}]},
    }


def _fewer(allocatable: str) -> tuple[Object, ...]:
    status = {"capacity": {RESOURCE: "4"}, "allocatable": {RESOURCE: allocatable}}
    return ({**NODES[0], "status": status}, *NODES[1:])


LACKING = (
    "1 of 12 cannot be allocated on a: their device plugin says that they are unhealthy, or does not run; "
    "set observer to learn more"
)


@pytest.mark.parametrize(
    ("allocatable", "pods", "said"),
    [
        ("4", (), ("True", "AllHealthy", "all 12 can be allocated")),
        ("3", (), ("False", "DeviceUnhealthy", LACKING)),
        (
            "3",
            (
                _pod("a", "npu-1"),
                _pod("a", "npu-1", name="other"),
                _pod("a", "x", resource="other.com/x"),
                _pod("z", "y"),
            ),
            (
                "False",
                "DeviceUnhealthy",
                "1 device is not well: a: npu-1 is not well (says the kubelet), used by team/chat, team/other; "
                f"{LACKING}",
            ),
        ),
    ],
)
def test_of_a_vendors_own_plugin_kubelets_tell(
    allocatable: str, pods: tuple[Object, ...], said: tuple[str, str, str]
) -> None:
    healthy = 8 + int(allocatable)
    made = Made(nodes=_fewer(allocatable), devices=DeviceCounts(total=12, healthy=healthy), pods=pods)
    assert made.said == said
    assert made.devices == ([("a", "npu-1")] if pods else [])
    again = Made(
        nodes=_fewer(allocatable), devices=DeviceCounts(total=12, healthy=healthy), pods=pods, before=made.status
    )
    assert (again.status, again.events) == (made.status, [])


def test_that_its_pod_has_gone_makes_no_device_well() -> None:
    before = Made(pods=(_pod("a", "npu-1"),)).status
    assert Made(before=before).events == []


@pytest.mark.parametrize(
    ("spec", "devices", "said"),
    [
        ({"type": "CPU", "resourceName": None}, DeviceCounts(), (None, None, None)),
        ({}, DeviceCounts(), (None, None, None)),
        (
            {"resourceName": None, "deviceClassName": "npus.acme.com"},
            DeviceCounts(total=4, healthy=3),
            (
                "False",
                "DeviceUnhealthy",
                "1 of 4 cannot be allocated: their device plugin says that they are unhealthy, or does not run",
            ),
        ),
    ],
)
def test_what_can_be_said_without_a_report(spec: Object, devices: DeviceCounts, said: tuple[object, ...]) -> None:
    spec = {key: value for key, value in {**SPEC, **spec}.items() if value is not None}
    metadata = {"name": "npus", "uid": "u"}
    conditions = Conditions({"metadata": metadata}, NOW)
    examine(
        {"metadata": metadata},
        AcceleratorResourceSpec.model_validate(spec),
        NODES,
        devices,
        Reported(),
        (),
        conditions,
    )
    entry = conditions.get(ConditionType.DEVICES_HEALTHY) if conditions.has(ConditionType.DEVICES_HEALTHY) else {}
    assert (entry.get("status"), entry.get("reason"), entry.get("message")) == said


def _planned(report: Report, before: Object | None = None) -> Plan:
    metadata = {"name": "npus", "uid": "u", "generation": 1}
    labelled = {**NODES[0]["metadata"], "labels": {"driver.rm-abstract.io/npus": "1.2"}}
    return plan(
        AcceleratorSnapshot(
            accelerator={
                "apiVersion": "v", "kind": "AcceleratorResource", "metadata": metadata, "spec": {**SPEC, **PLUGIN},
                "status": before or {},
            },
            nodes=[{**NODES[0], "metadata": labelled}],
            requesting=[], plugin_pods=[], children=[], settings=SETTINGS, reported=Reported({"a": report}),
        ),
        NOW,
    )  # fmt: skip


def test_the_status_of_a_kind_has_it_all_and_events_name_devices_instead_of_telling_that_there_are_some() -> None:
    used = Device("npu-3", True, out_of_band="pid 7")
    made = _planned(Report(devices=4, noted=(SICK, used)))
    assert made.status is not None
    AcceleratorResourceStatus.model_validate(made.status)
    by_node = [{"devices": 4, "nodes": 1}]
    assert made.status["versions"] == [
        {
            "driver": "1.2", "sdk": "", "firmware": "", "nodes": 1, "devices": 4, "free": 4,
            "devicesByNode": by_node, "freeByNode": by_node,
        }
    ]  # fmt: skip
    assert [each["device"] for each in made.status["unhealthy"]] == ["npu-1"]
    assert made.status["devices"]["usedOutOfBand"] == 1
    said = {entry["type"]: entry["status"] for entry in made.status["conditions"]}
    assert (said["DevicesHealthy"], said["Ready"]) == ("False", "True"), "one of four does not keep models away"
    told = [(each.reason, each.about is None) for each in made.events if "Device" in each.reason]
    assert told == [("DeviceUnhealthy", True), ("DeviceUnhealthy", False)]
    recovered = _planned(Report(devices=4), made.status)
    assert [each.reason for each in recovered.events] == ["DeviceRecovered", "DeviceRecovered"]
    assert recovered.status is not None
    assert _planned(Report(devices=4), recovered.status).events == ()


def test_a_report_that_is_missing_is_told_as_the_condition_is() -> None:
    well = _planned(Report(devices=4))
    assert well.status is not None
    (event,) = _planned(Report(problem="no answer: x"), well.status).events
    assert (event.type, event.reason, event.message) == ("Warning", "ReportMissing", "no report from a: no answer: x")
