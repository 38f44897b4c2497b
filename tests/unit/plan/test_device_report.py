"""A device plugin's report: what is understood, what is bounded, and what is refused in words."""

import json
from typing import Any

import pytest
from rm_api.kinds.accelerator_resource import DeviceFailure
from rm_operator.plan.device_report import (
    MAX_DEVICES,
    MAX_REPORT_BYTES,
    Device,
    Report,
    ReportError,
    UnhealthyUse,
    parse,
    said_by_kubelet,
    uses,
)

HEALTHY = {
    "id": "npu-0", "index": 0, "serial": "s0", "node": "/dev/npu0", "health": "Healthy", "cause": "", "failure": "",
    "firmware": "3", "group": "", "parent": "", "outOfBand": "",
    "pods": [{"namespace": "team", "name": "chat-1", "container": "engine"}],
}  # fmt: skip
SICK = {
    **HEALTHY, "id": "npu-1", "health": "Unhealthy", "cause": "ECC error", "failure": "NeedsReset",
    "pods": [
        {"namespace": "team", "name": "chat-2", "container": "engine"},
        {"namespace": "team", "name": "chat-2", "container": "helper"},
        {"namespace": "other", "name": "job", "container": "c"},
    ],
}  # fmt: skip
WHOLE = {
    "resource": "acme.test/npu", "node": "a", "driver": "1.2", "sdk": "7", "firmware": "3", "product": "NPU 1",
    "message": "", "conflict": "", "devices": [HEALTHY, SICK],
}  # fmt: skip


def _parse(report: Any) -> Report:
    return parse(json.dumps(report).encode())


def test_a_whole_report() -> None:
    report = _parse(WHOLE)
    sick = Device("npu-1", False, DeviceFailure.NEEDS_RESET, "ECC error", "", (("other", "job"), ("team", "chat-2")))
    assert report == Report(
        resource="acme.test/npu", driver="1.2", sdk="7", firmware="3", product="NPU 1", devices=2, noted=(sick,)
    )  # fmt: skip
    assert report.known
    assert report.unhealthy == (sick,)
    assert report.used_out_of_band == 0


def test_the_smallest_report_and_members_of_a_later_version() -> None:
    assert _parse({"devices": []}) == Report()
    assert _parse({"devices": [{"id": "x", "health": "Healthy", "later": 1}], "later": {}}) == Report(devices=1)
    assert _parse({"devices": None}) == Report()
    assert _parse({"devices": [{"id": "x", "health": "Healthy", "pods": None}]}) == Report(devices=1)


@pytest.mark.parametrize("word", ["", "Overheated", "needsreset"])
def test_a_failure_that_is_not_known_is_still_a_failure(word: str) -> None:
    (device,) = _parse({"devices": [{"id": "x", "health": "Unhealthy", "failure": word}]}).unhealthy
    assert device.failure is DeviceFailure.UNKNOWN


def test_what_others_use_is_noted_and_only_the_healthy_of_it_counted() -> None:
    devices = [{**HEALTHY, "outOfBand": "pid 7"}, {**SICK, "outOfBand": "pid 8"}, {**HEALTHY, "id": "npu-2"}]
    report = _parse({"devices": devices})
    assert [(device.id, device.out_of_band) for device in report.noted] == [("npu-0", "pid 7"), ("npu-1", "pid 8")]
    assert report.used_out_of_band == 1
    assert [device.id for device in report.unhealthy] == ["npu-1"]


def test_long_texts_become_short_lines() -> None:
    report = _parse({**WHOLE, "driver": "1\x00.2\n" + "x" * 5000, "devices": [{**SICK, "cause": "a\r\n\tb " * 999}]})
    assert report.driver.startswith("1 .2 xxx")
    assert len(report.driver) == 128
    (device,) = report.unhealthy
    assert device.cause.startswith("a b a b")
    assert len(device.cause) <= 512
    assert device.cause.isprintable()


def test_pods_are_bounded() -> None:
    pods = [{"namespace": "n", "name": f"p{number:04}"} for number in range(1000)]
    (device,) = _parse({"devices": [{**SICK, "pods": pods}]}).unhealthy
    assert len(device.pods) == 256


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "cannot be read"),
        (b"<html>", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"{}", "devices"),
        (b'{"devices": {}}', "devices"),
        (b'{"devices": [{"id": "x"}]}', "health"),
        (b'{"devices": [{"id": "x", "health": "So-so"}]}', "health"),
        (b'{"devices": [{"id": 7, "health": "Healthy"}]}', "id"),
        (b'{"devices": [{"id": "", "health": "Healthy"}]}', "unusable ID"),
        (b'{"devices": [{"id": "a\\nb", "health": "Healthy"}]}', "unusable ID"),
        (b'{"devices": [{"id": "x", "health": "Healthy"}, {"id": "x", "health": "Unhealthy"}]}', "two devices"),
        (b'{"devices": [], "driver": 7}', "driver"),
        (b'{"devices": ' + b"[" * 100_000, "cannot be read"),
        (b'{"devices": [], "message": "\xff"}', "cannot be read"),
        (b" " * (MAX_REPORT_BYTES + 1), "bytes"),
        (b'{"devices": [' + b"{}," * 3, "cannot be read"),
    ],
)
def test_what_is_no_report_is_refused_in_words(body: bytes, said: str) -> None:
    with pytest.raises(ReportError, match=said):
        parse(body)


def test_too_many_devices() -> None:
    devices = [{"id": str(number), "health": "Healthy"} for number in range(MAX_DEVICES + 1)]
    with pytest.raises(ReportError, match=f"{MAX_DEVICES + 1} devices; at most {MAX_DEVICES}"):
        _parse({"devices": devices})


def test_pods_learn_of_their_devices() -> None:
    noted = _parse({"devices": [SICK, {**SICK, "id": "npu-2", "failure": "Dead"}, {**HEALTHY, "outOfBand": "x"}]}).noted
    use = UnhealthyUse("npus", "a", "npu-1", "ECC error", DeviceFailure.NEEDS_RESET)
    assert uses("npus", "a", noted) == {("team", "chat-2"): use, ("other", "job"): use}


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ({}, ()),
        ({"containerStatuses": None}, ()),
        ({"containerStatuses": [{"name": "c"}]}, ()),
        (
            {
                "containerStatuses": [
                    {
                        "allocatedResourcesStatus": [
                            {
                                "name": "acme.test/npu",
                                "resources": [
                                    {"resourceID": "2", "health": "Unhealthy"},
                                    {"resourceID": "1", "health": "Unhealthy"},
                                    {"resourceID": "3", "health": "Healthy"},
                                    {"resourceID": "4", "health": "Unknown"},
                                ],
                            },
                            {"name": "claim:x"},
                        ]
                    }
                ]
            },
            (("acme.test/npu", "1"), ("acme.test/npu", "2")),
        ),
    ],
)
def test_what_a_kubelet_says_of_a_pods_devices(status: dict[str, Any], found: tuple[object, ...]) -> None:
    assert said_by_kubelet({"status": status}) == found
