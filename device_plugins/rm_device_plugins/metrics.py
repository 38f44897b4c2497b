"""What the plugin counts, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Prometheus metrics of one plugin instance."""

    def __init__(self, resource: str) -> None:
        self.registry = CollectorRegistry()
        label = ["resource"]
        devices = Gauge("rma_device_plugin_devices", "Devices by health.", [*label, "health"], registry=self.registry)
        self.healthy = devices.labels(resource, "Healthy")
        self.unhealthy = devices.labels(resource, "Unhealthy")
        self.registrations = Counter(
            "rma_device_plugin_registrations", "Calls of Register.", [*label, "result"], registry=self.registry
        )
        self.discovery_failures = Counter(
            "rma_device_plugin_discovery_failures", "Discoveries that failed.", label, registry=self.registry
        ).labels(resource)
        self.snapshots = Counter(
            "rma_device_plugin_snapshots", "Device lists sent to the kubelet.", label, registry=self.registry
        ).labels(resource)
        self.allocations = Histogram(
            "rma_device_plugin_allocate_seconds",
            "Time of Allocate.",
            [*label, "result"],
            buckets=(0.001, 0.005, 0.025, 0.1, 0.5, 2, 10),
            registry=self.registry,
        )
        self.resource = resource

    def registered(self, ok: bool) -> None:
        """Counts a call of Register."""
        self.registrations.labels(self.resource, "ok" if ok else "error").inc()

    def allocated(self, ok: bool, seconds: float) -> None:
        """Counts a call of Allocate."""
        self.allocations.labels(self.resource, "ok" if ok else "error").observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
