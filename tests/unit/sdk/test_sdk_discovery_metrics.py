"""Figures of discovery, as Prometheus and OpenTelemetry have them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from rm_abstract.core.errors import BadInput
from rm_abstract.discovery.decorators import kernel
from rm_abstract.discovery.manager import get_plugin_manager, reset_plugin_system
from rm_abstract.discovery.metrics import export_to_opentelemetry, export_to_prometheus


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    reset_plugin_system()
    yield
    reset_plugin_system()


def work() -> list[object]:
    """Two kernels, an instance of one, a discovery that looks and three that need not."""
    for name in ("One", "Two"):
        kernel(name=name)(type(name, (), {}))
    for _ in range(4):
        get_plugin_manager().discover_plugins()
    return [get_plugin_manager().get_instance("kernel", "One")]


def test_prometheus() -> None:
    held = work()
    registry = CollectorRegistry()
    export_to_prometheus(registry)
    assert registry.get_sample_value("rm_abstract_plugins", {"type": "kernel"}) == 2
    assert registry.get_sample_value("rm_abstract_plugin_instances") == len(held)
    assert registry.get_sample_value("rm_abstract_plugin_cache_hits_total") == 3
    assert registry.get_sample_value("rm_abstract_plugin_cache_misses_total") == 1
    seconds = registry.get_sample_value("rm_abstract_plugin_discovery_duration_seconds")
    assert seconds == get_plugin_manager().get_performance_stats()["discovery_time_ms"] / 1000 > 0
    assert registry.get_sample_value("rm_abstract_plugin_memory_bytes") is not None
    assert b"# TYPE rm_abstract_plugin_cache_hits_total counter" in generate_latest(registry)
    held.clear()
    assert registry.get_sample_value("rm_abstract_plugin_instances") == 0
    reset_plugin_system()
    assert registry.get_sample_value("rm_abstract_plugin_cache_hits_total") == 0, "the manager of today is asked"


def test_opentelemetry() -> None:
    held = work()
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    export_to_opentelemetry(provider)
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        (metric.name, metric.unit, point.attributes.get("type") if point.attributes else None): point.value  # type: ignore[union-attr]
        for resource in data.resource_metrics for scope in resource.scope_metrics
        for metric in scope.metrics for point in metric.data.data_points
    }  # fmt: skip
    provider.shutdown()
    assert found["rm_abstract.plugins", "1", "kernel"] == 2
    assert found["rm_abstract.plugin.instances", "1", None] == len(held)
    assert found["rm_abstract.plugin.cache.hits", "1", None] == 3
    assert found["rm_abstract.plugin.discovery.duration", "s", None] > 0
    assert ("rm_abstract.plugin.memory", "By", None) in found


@pytest.mark.parametrize(
    ("package", "export"), [("prometheus_client", export_to_prometheus), ("opentelemetry", export_to_opentelemetry)]
)
def test_a_package_that_is_missing_is_named(package: str, export: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match="pip install"):
        export()  # type: ignore[operator]
