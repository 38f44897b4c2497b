"""Which pods have a device that is not well: reports first, then what the kubelet says, then what was known before."""

from collections.abc import Mapping
from typing import Any

import pytest
from rm_api import names
from rm_api.kinds.accelerator_resource import DeviceFailure
from rm_operator.app import make_stores
from rm_operator.controllers.allowance import Allowance
from rm_operator.controllers.reading import Reading
from rm_operator.controllers.sickness import Sickness
from rm_operator.kube.reports import Reports
from rm_operator.kube.resources import PODS
from rm_operator.plan.device_report import Device, PodKey, Report, UnhealthyUse
from rm_operator.plan.model import from_timestamp
from rm_operator.plan.replacement import ANNOTATION_SINCE

Object = dict[str, Any]
REPORTED = UnhealthyUse("npu", "n1", "npu0", "ECC", DeviceFailure.DEAD)
POD = ("ns", "p")


class Said(Reports):
    """Reports that were received, without those who sent them."""

    uses: Mapping[PodKey, UnhealthyUse] = {}
    report: Report | None = None
    waits = False

    def unhealthy_pods(self) -> Mapping[PodKey, UnhealthyUse]:
        return self.uses

    def on(self, node: str, accelerator: str) -> Report | None:
        return self.report if (node, accelerator) == ("n1", "npu") else None

    def awaited(self, accelerator: str) -> bool:
        return self.waits and accelerator == "npu"

    def tell(self, *pods: PodKey) -> None:
        for subscriber in self._on_pods:
            subscriber(pods)


class Ward:
    def __init__(self) -> None:
        self.stores = make_stores()
        self.reports = Said(self.stores, "system")
        self.woken: list[tuple[str, str]] = []
        self.sickness = Sickness(self.reports, self.stores, self.woken.append)

    def pod(self, *, marked: bool = False, health: str | None = None, ready: bool = True, node: str = "n1") -> Object:
        labels = {names.LABEL_MANAGED_BY: names.MANAGED_BY, names.LABEL_DEPLOYMENT: "d", names.LABEL_ACCELERATOR: "npu"}
        annotations = {ANNOTATION_SINCE: "2026-01-01T00:00:00Z"} if marked else {}
        told = [{"name": "acme.com/npu", "resources": [{"resourceID": "npu7", "health": health}]}] if health else []
        obj = {
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "1", "labels": labels,
                "annotations": annotations,
            },
            "spec": {"nodeName": node} if node else {},
            "status": {
                "conditions": [{"type": "Ready", "status": str(ready)}],
                "containerStatuses": [{"name": "engine", "allocatedResourcesStatus": told}],
            },
        }  # fmt: skip
        self.stores[PODS].upsert(obj)
        return obj

    def of(self, pod: Object) -> UnhealthyUse | None:
        found = self.sickness.of([pod], Reading(self.stores, None))  # type: ignore[arg-type]
        assert found.keys() <= {"u"}
        return found.get("u")


@pytest.fixture
def ward() -> Ward:
    return Ward()


def by_kubelet(node: str = "n1") -> UnhealthyUse:
    return UnhealthyUse("npu", node, "npu7", "", DeviceFailure.UNKNOWN)


def test_a_report_says_more_than_a_kubelet_and_either_is_enough(ward: Ward) -> None:
    assert ward.of(ward.pod()) is None
    assert ward.of(ward.pod(health="Healthy")) is None
    assert ward.of(ward.pod(health="Unknown")) is None
    assert ward.of(ward.pod(health="Unhealthy")) == by_kubelet()
    ward.reports.uses = {POD: REPORTED}
    assert ward.of(ward.pod()) == REPORTED
    assert ward.of(ward.pod(health="Unhealthy")) == REPORTED
    ward.reports.uses = {("ns", "other"): REPORTED}
    assert ward.of(ward.pod()) is None


def test_a_new_leader_takes_nobody_for_well_before_the_reports_are_there(ward: Ward) -> None:
    ward.reports.waits = True
    assert ward.of(ward.pod()) is None
    found = ward.of(ward.pod(marked=True))
    assert found is not None
    assert found.failure is DeviceFailure.UNKNOWN
    ward.reports.waits = False
    assert ward.of(ward.pod(marked=True)) is None


def test_what_was_read_is_noticed_when_it_changes(ward: Ward) -> None:
    for place in (Reports.place_of_pod("ns", "p"), Reports.place_of("npu")):
        known = Reading(ward.stores, None)  # type: ignore[arg-type]
        ward.sickness.of([ward.pod(marked=True)], known)
        ward.sickness.used_outside([ward.pod(ready=False)], known)
        read = known.result
        assert read is not None
        assert ward.stores.ticks.last(read.slots) <= read.since
        ward.stores.ticks.touch([place])
        assert ward.stores.ticks.last(read.slots) > read.since


def test_who_serves_from_such_a_pod_is_woken(ward: Ward) -> None:
    ward.pod()
    ward.reports.tell(POD, ("ns", "gone"))
    assert ward.woken == [("ns", "d")]


@pytest.mark.parametrize(
    ("ready", "node", "pods", "expected"),
    [
        (False, "n1", (POD,), "npu3 of node n1 is used outside of Kubernetes: python, pid 7"),
        (True, "n1", (POD,), None),
        (False, "n2", (POD,), None),
        (False, "", (POD,), None),
        (False, "n1", (("ns", "other"),), None),
    ],
)
def test_what_uses_the_device_of_a_pod_that_is_not_ready_is_told(
    ward: Ward, ready: bool, node: str, pods: tuple[PodKey, ...], expected: str | None
) -> None:
    ward.reports.report = Report(noted=(Device("npu3", True, out_of_band="python, pid 7", pods=pods),))
    known = Reading(ward.stores, None)  # type: ignore[arg-type]
    assert ward.sickness.used_outside([ward.pod(ready=ready, node=node)], known).get("u") == expected


def test_an_allowance_is_a_burst_and_then_a_rate() -> None:
    at = [from_timestamp(f"2026-01-01T00:00:{second:02}Z") for second in range(60)]
    allowance = Allowance(most=10, per_second=2)
    assert allowance.left(at[0]) == 10
    allowance.take(10)
    assert [allowance.left(at[second]) for second in (0, 1, 1, 3)] == [0, 2, 2, 6]
    allowance.take(8)
    assert allowance.left(at[3]) == -2
    assert allowance.left(at[2]) == -2, "a clock that goes back gives nothing"
    assert allowance.left(at[59]) == 10
