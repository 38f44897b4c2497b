"""Metrics under the names of controller-runtime and client-go, so that stock dashboards and alerts work."""

from collections.abc import Iterable
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


_TRANSITION_BUCKETS: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
_RESULTS: Final = ("success", "requeue_after", "requeue", "error", "terminal")


class Metrics:
    """Every metric of the operator, in a registry of its own (one per process; tests make as many as they like).

    The labels ``name`` and ``controller`` of queues and reconciles are the kind; ``host`` is the API server's. Object
    names are never labels, but for the namespace and the profile that builds are accounted to.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, host: str = "") -> None:
        self.registry = registry or CollectorRegistry()
        self._host = host
        r = self.registry
        self.queue_depth = Gauge("workqueue_depth", "Keys that wait for a worker", ["name", "controller"], registry=r)
        self.queue_adds = Counter("workqueue_adds", "Keys added", ["name", "controller"], registry=r)
        self.queue_retries = Counter(
            "workqueue_retries", "Keys added again after a failure", ["name", "controller"], registry=r
        )
        self.queue_seconds = Histogram(
            "workqueue_queue_duration_seconds",
            "Time a key waited for a worker",
            ["name", "controller"],
            buckets=_QUEUE_BUCKETS,
            registry=r,
        )
        self.work_seconds = Histogram(
            "workqueue_work_duration_seconds",
            "Time a key was worked on",
            ["name", "controller"],
            buckets=_RECONCILE_BUCKETS,
            registry=r,
        )
        self.unfinished_seconds = Gauge(
            "workqueue_unfinished_work_seconds",
            "Seconds of work in progress, all keys together",
            ["name", "controller"],
            registry=r,
        )
        self.longest_running_seconds = Gauge(
            "workqueue_longest_running_processor_seconds",
            "Age of the oldest work in progress",
            ["name", "controller"],
            registry=r,
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
        self.timeouts = Counter(
            "controller_runtime_reconcile_timeouts",
            "Reconciles that were ended at their deadline",
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
            "rest_client_requests", "Requests to the API server", ["code", "method", "host", "resource"], registry=r
        )
        self.request_seconds = Histogram(
            "rest_client_request_duration_seconds",
            "Length of a request to the API server, without watches",
            ["verb", "host"],
            buckets=_REQUEST_BUCKETS,
            registry=r,
        )
        self.slow = Counter(
            "rm_operator_slow_reconciles", "Reconciles that took more than a second", ["controller"], registry=r
        )
        self.aside = Gauge(
            "rm_operator_slow_reconciles_in_progress", "Slow reconciles that go on beside the workers", registry=r
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
        self.objects = Gauge(
            "rm_operator_objects",
            "Objects of our kinds by what their Ready condition says",
            ["kind", "ready", "reason"],
            registry=r,
        )
        self.transitions = Counter(
            "rm_operator_condition_transitions",
            "Changes of a condition's status or reason that were written",
            ["kind", "type", "status", "reason"],
            registry=r,
        )
        self.transition_seconds = Histogram(
            "rm_operator_condition_transition_seconds",
            "Time until a condition was True for the first time since it was not, or since the object was made",
            ["kind", "type"],
            buckets=_TRANSITION_BUCKETS,
            registry=r,
        )
        self.decide_seconds = Histogram(
            "rm_operator_decide_seconds",
            "Time to look at one object and decide, before anything is written",
            ["controller"],
            buckets=_RECONCILE_BUCKETS,
            registry=r,
        )
        self.devices = Gauge(
            "rm_operator_devices", "Devices of all accelerators", ["type", "vendor", "state"], registry=r
        )
        self.build_seconds = Counter(
            "rma_build_seconds",
            "Seconds that containers of builds ran, by what their Job came to: Succeeded, or why it failed",
            ["namespace", "profile", "outcome"],
            registry=r,
        )
        self.admission_failures = Counter(
            "rm_operator_admission_failures",
            "Serving pods that kubelets had refused to run, when they are cleared away",
            ["resource", "reason"],
            registry=r,
        )
        self.device_reports = Gauge(
            "rm_operator_device_reports",
            "Device plugins and observers by what is known of their reports",
            ["state"],
            registry=r,
        )
        self.events = Counter("rm_operator_events", "Kubernetes Events by fate", ["result"], registry=r)
        self.loop_lag = Gauge("rm_operator_event_loop_lag_seconds", "Worst delay of the event loop lately", registry=r)

    def with_process_metrics(self) -> "Metrics":
        """Add CPU, memory, file descriptor, GC and Python metrics of this process."""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        return self

    def prepare(self, controllers: Iterable[str], *, workers: int) -> None:
        """Have every series of ``controllers`` start at zero: one that first appears at 1 shows no increase."""
        for kind in controllers:
            self.max_workers.labels(kind).set(workers)
            for result in _RESULTS:
                self.reconciles.labels(kind, result)
            for metric in (self.reconcile_errors, self.terminal_errors, self.panics, self.timeouts, self.slow):
                metric.labels(kind)
            for of_queue in (self.queue_adds, self.queue_retries, self.queue_depth):
                of_queue.labels(kind, kind)
            self.active_workers.labels(kind)

    def observe_request(self, verb: str, resource: Resource, status: int, seconds: float) -> None:
        """Hook for the client: ``status`` 0 is no answer."""
        self.requests.labels(str(status) if status else "<error>", verb, self._host, resource.name).inc()
        if verb != "WATCH":
            self.request_seconds.labels(verb, self._host).observe(seconds)
