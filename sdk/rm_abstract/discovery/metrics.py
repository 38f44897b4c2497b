"""Discovery's figures for Prometheus and OpenTelemetry. Neither is needed, or imported, unless it is asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rm_abstract.core.errors import BadInput
from rm_abstract.discovery.manager import PluginManager, get_plugin_manager

Stats = Mapping[str, Any]


@dataclass(frozen=True)
class _Figure:
    name: str
    """In OpenTelemetry's form; Prometheus has ``_`` for the dots, the unit at the end and ``_total`` for counters."""
    about: str
    read: Callable[[Stats], Mapping[str, float]]
    """Values by type of plugin, or one value under an empty name."""
    unit: str = ""
    counter: bool = False


def _one(key: str, factor: float = 1) -> Callable[[Stats], Mapping[str, float]]:
    return lambda stats: {"": stats[key] * factor}


_FIGURES: Final = (
    _Figure("rm_abstract.plugins", "Plugins that are known, by type.", lambda stats: stats["plugins"]),
    _Figure("rm_abstract.plugin.instances", "Instances of plugins that somebody holds.", _one("instance_count")),
    _Figure("rm_abstract.plugin.cache.hits", "Discoveries answered from the cache.", _one("cache_hits"), counter=True),
    _Figure(
        "rm_abstract.plugin.cache.misses", "Discoveries that had to look.", _one("cache_misses"), counter=True
    ),
    _Figure(
        "rm_abstract.plugin.files.understood", "Source files read because no cache knew them.",
        _one("files_understood"), counter=True,
    ),
    _Figure(
        "rm_abstract.plugin.discovery.duration", "Time of the last discovery that had to look.",
        _one("discovery_time_ms", 1e-3), "seconds",
    ),
    _Figure(
        "rm_abstract.plugin.memory", "What the process has grown by since discovery began.",
        _one("memory_usage_mb", 1e6), "bytes",
    ),
)  # fmt: skip


def export_to_prometheus(registry: Any = None, *, manager: PluginManager | None = None) -> Any:
    """Add the figures to a ``prometheus_client`` registry, by default its own; returns the collector.

    ``manager`` is by default the process's, whichever that is at a scrape. Raises BadInput without the package.
    """
    try:
        from prometheus_client import REGISTRY  # noqa: PLC0415 (an optional dependency)
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415
    except ImportError:
        raise BadInput("Prometheus needs the package prometheus-client: pip install prometheus-client") from None

    class Collector:
        def collect(self) -> Iterator[Any]:
            stats = _stats(manager)
            for figure in _FIGURES:
                family = CounterMetricFamily if figure.counter else GaugeMetricFamily
                name = figure.name.replace(".", "_") + (f"_{figure.unit}" if figure.unit else "")
                values = figure.read(stats)
                metric = family(name, figure.about, labels=() if "" in values else ("type",))
                for kind, value in values.items():
                    metric.add_metric([kind] if kind else [], value)
                yield metric

    collector = Collector()
    (registry if registry is not None else REGISTRY).register(collector)
    return collector


def export_to_opentelemetry(meter_provider: Any = None, *, manager: PluginManager | None = None) -> None:
    """Add the figures as observable instruments to a meter provider, by default the global one.

    Raises BadInput without the package.
    """
    try:
        from opentelemetry import metrics  # noqa: PLC0415 (an optional dependency)
    except ImportError:
        raise BadInput("OpenTelemetry needs the package opentelemetry-api: pip install opentelemetry-api") from None

    def observe(figure: _Figure) -> Callable[[Any], Iterable[metrics.Observation]]:
        def callback(_options: Any) -> Iterable[metrics.Observation]:
            for kind, value in figure.read(_stats(manager)).items():
                yield metrics.Observation(value, {"type": kind} if kind else {})

        return callback

    meter = metrics.get_meter("rm_abstract.discovery", meter_provider=meter_provider)
    for figure in _FIGURES:
        create = meter.create_observable_counter if figure.counter else meter.create_observable_gauge
        unit = {"seconds": "s", "bytes": "By"}.get(figure.unit, "1")
        create(figure.name, callbacks=[observe(figure)], unit=unit, description=figure.about)


def _stats(manager: PluginManager | None) -> Stats:
    return (manager or get_plugin_manager()).get_performance_stats()
