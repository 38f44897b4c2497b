"""What is written on a node: labels with versions, and one condition for all kinds of accelerators there."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rm_api.kinds.accelerator_resource import DeviceFailure
from rm_operator.plan.compatibility import label_value
from rm_operator.plan.device_report import Device, Report
from rm_operator.plan.node_health import MOST_NAMED, condition_on, labels_on, wish

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
TYPE = "rm-abstract.io/AcceleratorUnhealthy"
SICK = Device("npu-1", False, DeviceFailure.NEEDS_RESET, "ECC error; row 7")
DEAD = Device("npu-2", False, DeviceFailure.DEAD)
WELL = Report(driver="1.2", firmware="f 3", devices=4)


def _node(condition: Any = None, **labels: str) -> Object:
    conditions = {"conditions": [{"type": "Ready", "status": "True"}, condition]} if condition else {}
    return {"metadata": {"name": "a", "labels": labels}, "status": conditions}


def _condition(status: str, reason: str, message: str, at: str = "2026-01-01T00:00:00Z") -> Object:
    return {"type": TYPE, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}


WORDS = "npu-1 needs a reset (ECC error, row 7)"


@pytest.mark.parametrize(
    ("reports", "status", "reason", "message"),
    [
        ({"npus": WELL}, "False", "AllHealthy", "npus: 4 devices"),
        (
            {"npus": WELL, "gpus": Report(devices=1)},
            "False",
            "AllHealthy",
            "gpus: 1 device; npus: 4 devices",
        ),
        ({"npus": Report(devices=4, noted=(SICK,))}, "True", "DeviceUnhealthy", f"npus: {WORDS}"),
        (
            {"npus": Report(devices=4, noted=(SICK, DEAD)), "gpus": WELL},
            "True",
            "DeviceUnhealthy",
            f"npus: {WORDS}, npu-2 is dead",
        ),
        (
            {"npus": Report(noted=(DEAD,)), "gpus": Report(noted=(SICK,))},
            "True",
            "DeviceUnhealthy",
            f"gpus: {WORDS}; npus: npu-2 is dead",
        ),
        (
            {"npus": Report(noted=(Device("x", False, DeviceFailure.TRANSIENT, "too hot"), Device("y", False)))},
            "True",
            "DeviceUnhealthy",
            "npus: x is not well and may recover by itself (too hot), y is not well",
        ),
        (
            {"npus": Report(noted=(Device("x", True, out_of_band="pid 7"),), devices=2)},
            "False",
            "AllHealthy",
            "npus: 2 devices",
        ),
        (
            {"npus": Report(known=False, problem="no answer: Connection refused (p, 10.0.0.1)")},
            "Unknown",
            "ReportMissing",
            "npus: no report: no answer: Connection refused (p, 10.0.0.1)",
        ),
        ({"npus": Report(problem="gone"), "gpus": WELL}, "Unknown", "ReportMissing", "npus: no report: gone"),
        (
            {"npus": Report(message="npu-smi: not found")},
            "Unknown",
            "ReportMissing",
            "npus: discovery fails: npu-smi: not found",
        ),
        (
            {"npus": Report(problem="gone", noted=(SICK,)), "gpus": Report(known=False, problem="no answer")},
            "True",
            "DeviceUnhealthy",
            f"npus: {WORDS}; gpus: no report: no answer",
        ),
        ({"npus": Report(message="npu-smi hangs", noted=(DEAD,))}, "True", "DeviceUnhealthy", "npus: npu-2 is dead"),
    ],
)  # fmt: skip
def test_the_condition(reports: dict[str, Report | None], status: str, reason: str, message: str) -> None:
    condition = _condition(status, reason, message)
    assert wish(_node(), reports, NOW).condition == condition
    assert wish(_node(condition), reports, LATER).condition == condition, "the transition was then"
    other = _condition("True" if status == "False" else "False", "x", "x")
    again = wish(_node(other), reports, LATER).condition
    assert again == {**condition, "lastTransitionTime": "2026-01-01T01:00:00Z"}


def test_many_devices_are_counted() -> None:
    devices = tuple(Device(f"npu-{number}", False) for number in range(MOST_NAMED + 3))
    condition = wish(_node(), {"npus": Report(noted=devices)}, NOW).condition
    assert condition is not None
    assert condition["message"].endswith("npu-7 is not well and 3 more")


SAID = _condition("True", "DeviceUnhealthy", f"gpus: gpu-0 is dead; npus: {WORDS}; pims: no report: x")


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ({"npus": None, "gpus": None}, f"gpus: gpu-0 is dead; npus: {WORDS}"),
        ({"npus": None, "gpus": WELL}, f"npus: {WORDS}"),
        ({"npus": None}, f"npus: {WORDS}"),
        ({"npus": Report(known=False, problem="x")}, f"npus: {WORDS}"),
        ({"npus": None, "gpus": Report(noted=(SICK,))}, f"gpus: {WORDS}; npus: {WORDS}"),
    ],
)
def test_what_is_not_known_is_as_it_was_said(reports: dict[str, Report | None], message: str) -> None:
    condition = wish(_node(SAID), reports, LATER).condition
    assert condition == {**SAID, "message": message}


@pytest.mark.parametrize("reports", [{"pims": None}, {"pims": WELL}])
def test_a_clause_that_told_of_no_report_keeps_nobody_sick(reports: dict[str, Report | None]) -> None:
    condition = wish(_node(SAID), reports, LATER).condition
    if reports["pims"] is None:
        assert condition == SAID, "nothing at all is known"
    else:
        assert condition is not None
        assert condition["status"] == "False"


def test_before_anything_is_known_nothing_is_said() -> None:
    assert wish(_node(), {"npus": None}, NOW).condition is None
    well = _condition("False", "AllHealthy", "npus: 4 devices")
    assert wish(_node(well), {"npus": None}, LATER).condition == well


def test_where_nothing_of_ours_is_left_nothing_is_said() -> None:
    found = wish(_node(SAID, **{"driver.rm-abstract.io/npus": "1"}), {}, NOW)
    assert (found.labels, found.condition) == ({}, None)


def test_versions_are_labels() -> None:
    there = {
        "driver.rm-abstract.io/npus": "1.1", "sdk.rm-abstract.io/npus": "9", "driver.rm-abstract.io/gpus": "5",
        "driver.rm-abstract.io/gone": "1", "theirs": "stays",
    }  # fmt: skip
    node = _node(**there)
    found = wish(node, {"npus": WELL, "gpus": None, "k" * 64: WELL}, NOW).labels
    assert found == {
        "driver.rm-abstract.io/npus": "1.2", "firmware.rm-abstract.io/npus": "f_3", "driver.rm-abstract.io/gpus": "5",
    }  # fmt: skip
    assert labels_on(node) == {name: value for name, value in there.items() if name != "theirs"}
    silent = Report(known=False, problem="x")
    assert wish(node, {"npus": silent}, NOW).labels == {
        name: value for name, value in there.items() if name.endswith("/npus")
    }


@pytest.mark.parametrize(
    ("version", "value"),
    [
        ("", ""),
        ("570.86.15", "570.86.15"),
        ("1.2+build/7 (beta)", "1.2_build_7__beta"),
        ("---", ""),
        ("ü1", "1"),
        ("x" * 70, "x" * 63),
        ("x" * 62 + "--y", "x" * 62),
    ],
)
def test_any_version_becomes_a_label_or_nothing(version: str, value: str) -> None:
    assert label_value(version) == value


def test_only_our_condition_is_ours() -> None:
    assert condition_on({"metadata": {"name": "a"}}) is None
    assert condition_on(_node(SAID)) == SAID
