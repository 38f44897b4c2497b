"""Metrics under the names of controller-runtime and client-go, so that stock dashboards and alerts work."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from rm_operator.kube.resources import Resource

_QUEUE_BUCKETS: Final = (1e-4, 1e-3, 1e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0)
_RECONCILE_BUCKETS: Final = (
    1e-4,
    5e-4,
    1e-3,
    5e-3,
    1e-2,
    2.5e-2,
    5e-2,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_REQUEST_BUCKETS: Final = (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Every metric of the operator, in a registry of its own (one per process; tests make as many as they like).

    The labels ``name`` of queues and ``controller`` of reconciles are the kind. Object names are never labels.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.queue_depth = Gauge("workqueue_depth", "Keys that wait for a worker", ["name"], registry=r)
        self.queue_adds = Counter("workqueue_adds", "Keys added", ["name"], registry=r)
        self.queue_retries = Counter("workqueue_retries", "Keys added again after a failure", ["name"], registry=r)
        self.queue_seconds = Histogram(
            "workqueue_queue_duration_seconds",
            "Time a key waited for a worker",
            ["name"],
            buckets=_QUEUE_BUCKETS,
            registry=r,
        )
        self.work_seconds = Histogram(
            "workqueue_work_duration_seconds",
            "Time a key was worked on",
            ["name"],
            buckets=_RECONCILE_BUCKETS,
            registry=r,
        )
        self.unfinished_seconds = Gauge(
            "workqueue_unfinished_work_seconds", "Seconds of work in progress, all keys together", ["name"], registry=r
        )
        self.longest_running_seconds = Gauge(
            "workqueue_longest_running_processor_seconds", "Age of the oldest work in progress", ["name"], registry=r
        )
        self.reconciles = Counter(
            "controller_runtime_reconcile", "Reconciles by result", ["controller", "result"], registry=r
        )
        self.reconcile_errors = Counter(
            "controller_runtime_reconcile_errors", "Reconciles that failed and are retried", ["controller"], registry=r
        )
        self.terminal_errors = Counter(
            "controller_runtime_terminal_reconcile_errors",
            "Reconciles that failed and are not retried",
            ["controller"],
            registry=r,
        )
        self.panics = Counter(
            "controller_runtime_reconcile_panics",
            "Reconciles that ended with an unexpected exception",
            ["controller"],
            registry=r,
        )
        self.reconcile_seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Length of a reconcile",
            ["controller"],
            buckets=_RECONCILE_BUCKETS,
            registry=r,
        )
        self.active_workers = Gauge("controller_runtime_active_workers", "Workers at work", ["controller"], registry=r)
        self.max_workers = Gauge(
            "controller_runtime_max_concurrent_reconciles",
            "Workers, shared by all controllers",
            ["controller"],
            registry=r,
        )
        self.requests = Counter(
            "rest_client_requests", "Requests to the API server", ["code", "method", "resource"], registry=r
        )
        self.request_seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Length of a request to the API server, without watches",
            ["verb"],
            buckets=_REQUEST_BUCKETS,
            registry=r,
        )
        self.leader = Gauge("leader_election_master_status", "1 while this replica leads", ["name"], registry=r)
        self.relists = Counter("rm_operator_reflector_lists", "Full lists by reflectors", ["resource"], registry=r)
        self.watch_failures = Counter(
            "rm_operator_reflector_failures", "Lists and watches that ended with an error", ["resource"], registry=r
        )
        self.swept = Counter(
            "rm_operator_store_swept", "Objects found to be gone without a deletion seen", ["resource"], registry=r
        )
        self.store_objects = Gauge("rm_operator_store_objects", "Objects known", ["resource"], registry=r)
        self.events = Counter("rm_operator_events", "Kubernetes Events by fate", ["result"], registry=r)
        self.loop_lag = Gauge("rm_operator_event_loop_lag_seconds", "Worst delay of the event loop lately", registry=r)

    def with_process_metrics(self) -> "Metrics":
        """Add CPU, memory, file descriptor, GC and Python metrics of this process."""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        return self

    def observe_request(self, verb: str, resource: Resource, status: int, seconds: float) -> None:
        """Hook for the client: ``status`` 0 is no answer."""
        self.requests.labels(str(status) if status else "<error>", verb, resource.name).inc()
        if verb != "WATCH":
            self.request_seconds.labels(verb).observe(seconds)
