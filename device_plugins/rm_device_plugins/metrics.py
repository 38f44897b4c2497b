"""What the plugin counts, in a registry of its own, and what it knows of devices at the moment of asking."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rm_device_plugins.inventory import Inventory
from rm_device_plugins.pod_resources import PodWatch
from rm_device_plugins.vendor import Failure


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


class DeviceMetrics(Collector):
    """Series of each device and of the pods that have it. Everything is in memory: asking waits for nothing."""

    def __init__(
        self,
        resource: str,
        inventory: Inventory,
        pods: PodWatch,
        watts: Callable[[], Mapping[str, float]],
        out_of_band: Callable[[str], str],
    ) -> None:
        self._resource = resource
        self._inventory = inventory
        self._pods = pods
        self._watts = watts
        self._out_of_band = out_of_band

    def collect(self) -> Iterator[Metric]:
        """The series as they are now."""
        resource = self._resource
        healthy = GaugeMetricFamily(
            "rma_device_healthy",
            "1 if the device may be allocated, 0 if not.",
            labels=["resource", "device", "serial", "product"],
        )
        allocated = GaugeMetricFamily(
            "rma_device_allocated",
            "1 for each container that has the device.",
            labels=["resource", "device", "namespace", "pod", "container"],
        )
        power = GaugeMetricFamily(
            "rma_device_power_watts",
            "What the device draws; with the container that has it, if one has it alone.",
            labels=["resource", "device", "namespace", "pod", "container"],
        )
        used = GaugeMetricFamily(
            "rma_device_used_out_of_band",
            "1 while something uses the device that is no pod's.",
            labels=["resource", "device"],
        )
        watts = self._watts()
        for entry in self._inventory.entries():
            device = entry.device
            healthy.add_metric([resource, device.id, device.serial, device.product], float(entry.healthy))
            used.add_metric([resource, device.id], float(bool(self._out_of_band(device.id))))
            holders = self._pods.of(device.id)
            for holder in holders:
                allocated.add_metric([resource, device.id, holder.namespace, holder.pod, holder.container], 1.0)
            if device.id in watts:
                names = [holders[0].namespace, holders[0].pod, holders[0].container] if len(holders) == 1 else [""] * 3
                power.add_metric([resource, device.id, *names], watts[device.id])
        failures = CounterMetricFamily(
            "rma_device_failures", "Devices that became unhealthy, by what helps.", labels=["resource", "failure"]
        )
        for failure in Failure:
            failures.add_metric([resource, failure.value], self._inventory.failures[failure])
        yield from (healthy, allocated, power, used, failures)
