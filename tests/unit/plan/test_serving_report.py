"""What serving pods say, and what artifacts and deployments write down of it."""

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chain import World
from rm_api.kinds.build_artifact import Verification
from rm_operator.plan.device_report import ReportError
from rm_operator.plan.serving_report import (
    MAX_OBSERVED,
    MAX_REPORT_BYTES,
    MAX_VERIFICATIONS,
    SILENT,
    ServingReport,
    observed_device,
    parse,
    verifications,
)

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "a" * 64
X1 = ServingReport(KEY, "X1", "1.4.0")
SAID_X1 = Verification(product="X1", driver="1.4.0", at="2025-01-01T00:00:00Z")
WHOLE: Object = {
    "ready": True, "state": "Ready", "reason": "Ready", "message": "", "driver": "1.4.0",
    "observedDevice": {"product": "X1", "serial": "S0", "node": "/dev/npu0"}, "artifact": {"key": KEY, "schema": 1},
    "seconds": {"start": 1.5}, "versions": {"sdk": "2", "openvino": "2025"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (WHOLE, ServingReport(KEY, "X1", "1.4.0", "2")),
        ({"ready": True}, SILENT),
        ({"ready": True, "observedDevice": None, "artifact": None, "versions": None}, SILENT),
        ({**WHOLE, "observedDevice": {"product": "X\n1\x00 "}}, ServingReport(KEY, "X 1", "1.4.0", "2")),
        ({**WHOLE, "driver": "1" * 1000}, ServingReport(KEY, "X1", "1" * 127 + "…", "2")),
    ],
    ids=["whole", "nothing", "nulls", "a line", "a long text is cut"],
)
def test_a_report_is_understood(said: Object, expected: ServingReport) -> None:
    assert parse(json.dumps(said).encode()) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 60000, "cannot be read"),
        (b"[]", "cannot be read"),
        (b"{}", "ready"),
        (b'{"ready":"yes"}', "ready"),
        (b'{"ready":false}', "not ready"),
        (b'{"ready":true,"driver":7}', "driver"),
        (b'{"ready":true,"observedDevice":{"product":["X1"]}}', "product"),
        (b'{"ready":true,"versions":{"sdk":2}}', "versions"),
        (json.dumps({"ready": True, "artifact": {"key": "a" * 65}}).encode(), "no key"),
        (json.dumps({"ready": True, "versions": {str(n): "" for n in range(1025)}}).encode(), "at most 1024"),
        (b" " * MAX_REPORT_BYTES + b'{"ready":true}', "more than 65536 bytes"),
    ],
)
def test_what_is_no_report_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(ReportError, match=words):
        parse(body)


FULL = [Verification(product=f"P{number}", driver="", at="x") for number in range(MAX_VERIFICATIONS)]


@pytest.mark.parametrize(
    ("before", "reports", "expected"),
    [
        ([], [], []),
        ([], [SILENT], []),
        ([], [X1], [("X1", "1.4.0", "")]),
        ([], [X1, X1], [("X1", "1.4.0", "")]),
        ([], [ServingReport(KEY, "X1", "", "2")], [("X1", "", "2")]),
        ([], [ServingReport(KEY, "", "1.4.0")], []),
        ([], [ServingReport("b" * 64, "X1", "1.4.0")], []),
        ([], [ServingReport("", "X1", "1.4.0")], []),
        ([SAID_X1], [], [("X1", "1.4.0", "")]),
        ([SAID_X1], [ServingReport(KEY, "X1", "1.4.0", "2")], [("X1", "1.4.0", "")]),
        ([SAID_X1], [ServingReport(KEY, "A", "1"), X1], [("X1", "1.4.0", ""), ("A", "1", "")]),
        ([SAID_X1], [ServingReport(KEY, "X1", "1.5.0")], [("X1", "1.4.0", ""), ("X1", "1.5.0", "")]),
        (FULL, [X1], [(each.product, "", "") for each in FULL]),
        (
            FULL[1:], [X1, ServingReport(KEY, "X2", "1")],
            [*((each.product, "", "") for each in FULL[1:]), ("X1", "1.4.0", "")],
        ),
    ],
)  # fmt: skip
def test_what_an_artifact_is_verified_on(
    before: list[Verification], reports: list[ServingReport], expected: list[tuple[str, str, str]]
) -> None:
    found = verifications(before, reports, KEY, NOW)
    assert [(each.product, each.driver, each.sdk) for each in found] == expected
    assert found[: len(before)] == before, "what was there stays, with its time"
    assert {each.at for each in found[len(before) :]} <= {"2026-01-01T00:00:00Z"}
    assert verifications(found, reports, KEY, NOW + timedelta(days=1)) == found, "the same again is no news"


@pytest.mark.parametrize(
    ("seconds", "start"),
    [
        ({"start": 1.5, "ready": 2.5}, 10),
        ({"ready": 31}, 40),
        ({}, 0),
        (None, 0),
        ({"ready": -1}, 0),
        ({"ready": 1e9}, 0),
    ],
)
def test_how_long_a_start_took(seconds: Any, start: int) -> None:
    assert parse(json.dumps({**WHOLE, "seconds": seconds}).encode()).start_seconds == start


def test_of_starts_the_slowest_is_kept() -> None:
    found = verifications([SAID_X1], [ServingReport(KEY, "X1", "1.4.0", "", 40), X1], KEY, NOW)
    assert found == [SAID_X1.model_copy(update={"start_seconds": 40})]
    assert verifications(found, [ServingReport(KEY, "X1", "1.4.0", "", 20)], KEY, NOW) == found
    assert verifications(found, [ServingReport(KEY, "X1", "1.4.0", "", 50)], KEY, NOW)[0].start_seconds == 50


def _pods(*ready: bool) -> list[Object]:
    return [
        {"metadata": {"uid": str(n)}, "status": {"conditions": [{"type": "Ready", "status": str(each)}]}}
        for n, each in enumerate(ready)
    ]


@pytest.mark.parametrize(
    ("ready", "reports", "before", "expected"),
    [
        ([], {}, "X1", None),
        ([False], {"0": X1}, "X1", None),
        ([True], {}, None, None),
        ([True], {}, "X1", "X1"),
        ([True], {"0": X1}, None, "X1, driver 1.4.0"),
        ([True], {"0": X1}, "X2", "X1, driver 1.4.0"),
        ([True], {"0": SILENT}, None, None),
        ([True], {"0": SILENT}, "X1", "X1"),
        ([True], {"0": ServingReport(product="CPU")}, None, "CPU"),
        ([True], {"0": ServingReport(driver="7")}, None, "driver 7"),
        ([True, True], {"0": X1}, None, "X1, driver 1.4.0"),
        ([True, True], {"0": X1}, "X2", "X2"),
        ([True, True], {"0": X1, "1": X1}, "X2", "X1, driver 1.4.0"),
        ([True, True], {"0": X1, "1": ServingReport(product="A")}, None, "A; X1, driver 1.4.0"),
        ([True, False], {"0": X1, "1": ServingReport(product="A")}, None, "X1, driver 1.4.0"),
    ],
)
def test_what_a_variant_runs_on(
    ready: list[bool], reports: dict[str, ServingReport], before: str | None, expected: str | None
) -> None:
    assert observed_device(_pods(*ready), reports, before) == expected


def test_many_kinds_of_devices_are_not_more_than_fits() -> None:
    reports = {str(n): ServingReport(product=f"{n:03}" * 40) for n in range(9)}
    assert len(observed_device(_pods(*[True] * 9), reports, None) or "") == MAX_OBSERVED


def _status(world: World, kind: str) -> Object:
    (obj,) = world.of(kind)
    return dict(obj["status"])


def test_a_pod_that_serves_an_artifact_verifies_it_for_good() -> None:
    world = World()
    world.serve()
    assert "verifications" not in _status(world, "BuildArtifact")
    (made,) = world.of("BuildArtifact")
    world.said = ServingReport(made["spec"]["key"], "Simulated NPU X1", "1.4.0", "7")
    world.settle()
    (verified,) = _status(world, "BuildArtifact")["verifications"]
    assert {**verified, "at": ""} == {"product": "Simulated NPU X1", "driver": "1.4.0", "sdk": "7", "at": ""}
    (variant,) = _status(world, "ModelDeployment")["variants"]
    assert variant["observedDevice"] == "Simulated NPU X1, driver 1.4.0"

    before = copy.deepcopy(world.objects)
    world.now += timedelta(minutes=5)
    world.said = None  # another replica works, and has asked nobody yet
    world.settle()
    assert world.objects == before
    world.said = SILENT
    world.settle()
    assert world.objects == before
    for pod in world.of("Pod"):
        world.remove("Pod", pod["metadata"]["name"])
    world.settle()
    assert _status(world, "BuildArtifact")["verifications"] == [verified], "it is kept"


def test_a_pod_with_another_artifact_verifies_nothing() -> None:
    world = World()
    world.serve()
    world.said = ServingReport("0" * 64, "Simulated NPU X1", "1.4.0")
    world.settle()
    assert "verifications" not in _status(world, "BuildArtifact")
