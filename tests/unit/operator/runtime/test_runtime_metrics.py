"""The metrics as Prometheus reads them: the names that dashboards of other operators use, and our own."""

import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from rm_operator.kube.resources import ACCELERATOR_RESOURCES, CUSTOM, MODEL_DEPLOYMENTS, PODS
from rm_operator.kube.store import Store, Stores
from rm_operator.runtime.census import INDEXES, observe_objects
from rm_operator.runtime.metrics import Metrics

KIND = "ModelDeployment"

# What controller-runtime and client-go expose: name, type and labels.
STOCK = [
    ("controller_runtime_reconcile", "counter", {"controller", "result"}),
    ("controller_runtime_reconcile_errors", "counter", {"controller"}),
    ("controller_runtime_terminal_reconcile_errors", "counter", {"controller"}),
    ("controller_runtime_reconcile_panics", "counter", {"controller"}),
    ("controller_runtime_reconcile_timeouts", "counter", {"controller"}),
    ("controller_runtime_reconcile_time_seconds", "histogram", {"controller"}),
    ("controller_runtime_max_concurrent_reconciles", "gauge", {"controller"}),
    ("controller_runtime_active_workers", "gauge", {"controller"}),
    ("workqueue_depth", "gauge", {"name", "controller"}),
    ("workqueue_adds", "counter", {"name", "controller"}),
    ("workqueue_retries", "counter", {"name", "controller"}),
    ("workqueue_queue_duration_seconds", "histogram", {"name", "controller"}),
    ("workqueue_work_duration_seconds", "histogram", {"name", "controller"}),
    ("workqueue_unfinished_work_seconds", "gauge", {"name", "controller"}),
    ("workqueue_longest_running_processor_seconds", "gauge", {"name", "controller"}),
    ("rest_client_requests", "counter", {"code", "method", "host"}),
    ("rest_client_request_duration_seconds", "histogram", {"verb", "host"}),
    ("leader_election_master_status", "gauge", {"name"}),
]


def families(metrics: Metrics) -> dict[str, Metric]:
    text = generate_latest(metrics.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.fixture
def used() -> Metrics:
    """As after one reconcile with a request."""
    metrics = Metrics(host="api:6443")
    metrics.prepare([KIND], workers=16)
    metrics.observe_request("PATCH", PODS, 201, 0.2)
    metrics.leader.labels("lease").set(1)
    metrics.reconcile_seconds.labels(KIND).observe(0.1)
    for of_queue in (metrics.queue_seconds, metrics.work_seconds):
        of_queue.labels(KIND, KIND).observe(0.1)
    for gauge in (metrics.unfinished_seconds, metrics.longest_running_seconds):
        gauge.labels(KIND, KIND).set(0)
    return metrics


@pytest.mark.parametrize(("name", "kind", "labels"), STOCK, ids=[row[0] for row in STOCK])
def test_stock_dashboards_find_what_they_ask_for(used: Metrics, name: str, kind: str, labels: set[str]) -> None:
    family = families(used)[name]
    assert family.type == kind
    assert family.samples, "no series"
    for sample in family.samples:
        assert labels <= sample.labels.keys()


def test_counters_begin_at_zero_so_that_the_first_increase_shows(used: Metrics) -> None:
    found = families(used)["controller_runtime_reconcile"].samples
    assert {sample.labels["result"]: sample.value for sample in found if sample.name.endswith("_total")} == {
        "success": 0, "requeue_after": 0, "requeue": 0, "error": 0, "terminal": 0,
    }  # fmt: skip


def test_watches_count_as_requests_but_not_in_their_duration() -> None:
    metrics = Metrics(host="api:6443")
    metrics.observe_request("WATCH", PODS, 200, 300)
    metrics.observe_request("LIST", PODS, 0, 5)
    found = families(metrics)
    assert {
        (sample.labels["method"], sample.labels["code"])
        for sample in found["rest_client_requests"].samples
        if sample.name.endswith("_total")
    } == {("WATCH", "200"), ("LIST", "<error>")}
    assert {sample.labels["verb"] for sample in found["rest_client_request_duration_seconds"].samples} == {"LIST"}


def known(resource: Any, name: str, version: int, *, ready: tuple[str, str] | None, **fields: Any) -> dict[str, Any]:
    status = dict(fields.pop("status", {}))
    if ready is not None:
        status["conditions"] = [{"type": "Ready", "status": ready[0], "reason": ready[1]}]
    metadata = {"name": name, "uid": name, "resourceVersion": str(version)}
    metadata |= {"namespace": "ns"} if resource.namespaced else {}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "status": status, **fields}


def test_objects_are_counted_by_state_and_never_named() -> None:
    stores = Stores(Store(resource, indexes=INDEXES[resource]) for resource in CUSTOM)
    for number, ready in enumerate(
        [("True", "Ready"), ("True", "Ready"), ("False", "NoDevice"), ("False", "OfTomorrow"), None], 1
    ):
        stores[MODEL_DEPLOYMENTS].upsert(known(MODEL_DEPLOYMENTS, f"secret-{number}", number, ready=ready))
    for number, healthy in enumerate((3, 4), 1):
        stores[ACCELERATOR_RESOURCES].upsert(
            known(
                ACCELERATOR_RESOURCES,
                f"secret-{number}",
                number,
                ready=("True", "Ready"),
                spec={"type": "NPU", "vendor": "Acme"},
                status={"devices": {"total": 4, "healthy": healthy, "allocated": 1}},
            )
        )
    metrics = Metrics()
    observe_objects(metrics, stores)
    found = {
        (sample.labels["kind"], sample.labels["ready"], sample.labels["reason"]): sample.value
        for sample in families(metrics)["rm_operator_objects"].samples
    }
    assert found == {
        (KIND, "True", "Ready"): 2,
        (KIND, "False", "NoDevice"): 1,
        (KIND, "False", "Other"): 1,
        (KIND, "Unknown", "New"): 1,
        ("AcceleratorResource", "True", "Ready"): 2,
    }
    devices = families(metrics)["rm_operator_devices"].samples
    assert {sample.labels["state"]: sample.value for sample in devices} == {"total": 8, "healthy": 7, "allocated": 2}
    assert "secret" not in generate_latest(metrics.registry).decode()
    # A state in which nothing is any more goes.
    stores[MODEL_DEPLOYMENTS].remove("ns", "secret-3", resource_version="9")
    observe_objects(metrics, stores)
    assert ("NoDevice", 1.0) not in {
        (sample.labels["reason"], sample.value) for sample in families(metrics)["rm_operator_objects"].samples
    }


def test_each_metric_of_ours_is_explained() -> None:
    text = (Path(__file__).parents[4] / "docs" / "operations.md").read_text()
    ours = {family.name for family in Metrics().registry.collect() if family.name.startswith("rm_operator_")}
    told = set(
        re.findall(r"rm_operator_[a-z_]+", text.replace("`…_failures_total`", "`rm_operator_reflector_failures`"))
    )
    assert ours == {name.removesuffix("_total") for name in told}
