"""What a benchmark hands out: rows with a target, a table and JSON. Pure."""

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Bound = Literal["<=", ">=", ""]


@dataclass(frozen=True)
class Row:
    """One measurement. Without ``bound`` it is information, and nothing is asked of it."""

    group: str
    """Which benchmark it comes from."""
    name: str
    measured: float
    unit: str
    bound: Bound = ""
    target: float = math.nan
    note: str = ""
    """One line: how it came to be."""

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if not self.bound:
            return None
        return self.measured <= self.target if self.bound == "<=" else self.measured >= self.target

    def to_json(self) -> dict[str, Any]:
        """The row with its verdict; what is not a number is null."""
        row = {**asdict(self), "ok": self.ok}
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


@dataclass
class Report:
    """All rows of a run, and the circumstances."""

    machine: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Benchmarks that ended with an error, with what it said."""

    @property
    def ok(self) -> bool:
        """True if nothing failed and every target is met."""
        return not self.failed and all(row.ok is not False for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {"machine": dict(self.machine), "rows": [row.to_json() for row in self.rows], "failed": self.failed}

    def table(self) -> str:
        """The rows as a Markdown table, failures below it."""
        lines = [["", "what", "measured", "target", "ok", "how"]]
        before = ""
        for row in self.rows:
            target = (
                f"{row.bound} {number(row.target)} {row.unit}".replace("<=", "≤").replace(">=", "≥")
                if row.bound
                else ""
            )
            verdict = {True: "yes", False: "**no**", None: ""}[row.ok]
            group, before = row.group if row.group != before else "", row.group
            lines.append([group, row.name, f"{number(row.measured)} {row.unit}", target, verdict, row.note])
        text = _aligned(lines)
        return "\n".join([text, *(f"\n{name} failed: {error}" for name, error in self.failed.items())])


def number(value: float) -> str:
    """``value`` with three significant digits, more where it is whole."""
    if math.isnan(value):
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{round(value):,}".replace(",", " ")
    return f"{value:.3g}"


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest of ``values`` that ``percent`` % of them do not exceed. Raises ValueError if there are none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("there is no percentile of nothing")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([texts[0], rule, *texts[1:]])


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memoryGiB": round(memory / 1024**3),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }
