"""What /metrics says, as numbers. Pure."""

import re
from collections.abc import Mapping

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def parse_metrics(text: str) -> Samples:
    """Samples of the Prometheus text format by name and labels."""
    found = {}
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            name, labels, value = match.groups()
            found[name, frozenset(_LABEL.findall(labels or ""))] = float(value)
    return found


def within(before: Samples, after: Samples, name: str, percent: float, /, **labels: str) -> float:
    """The bucket of histogram ``name`` that ``percent`` % of what came between two readings did not exceed.

    Its upper bound, which may be infinite; 0 where nothing came.
    """
    counts: dict[float, float] = {}
    for readings, sign in ((before, -1), (after, 1)):
        for (each, its), value in readings.items():
            found = dict(its)
            if each == f"{name}_bucket" and labels.items() <= found.items():
                bound = float(found["le"])
                counts[bound] = counts.get(bound, 0) + sign * value
    most = counts.get(float("inf"), 0)
    return (
        min((bound for bound, count in counts.items() if count >= most * percent / 100), default=0.0) if most else 0.0
    )


def total(samples: Samples, name: str, /, **labels: str) -> float:
    """Sum of the samples called ``name`` that have all of ``labels``."""
    wanted = set(labels.items())
    return sum(value for (each, its), value in samples.items() if each == name and wanted <= its)
