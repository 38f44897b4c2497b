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


def total(samples: Samples, name: str, /, **labels: str) -> float:
    """Sum of the samples called ``name`` that have all of ``labels``."""
    wanted = set(labels.items())
    return sum(value for (each, its), value in samples.items() if each == name and wanted <= its)
