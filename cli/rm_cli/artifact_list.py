"""What ``artifacts ls`` and ``watch`` tell of BuildArtifacts, which are taken as the API server gives them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rm_api.conditions import ConditionType

from rm_cli.kubectl import condition

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_COLUMNS = ("NAMESPACE", "NAME", "KEY", "PROFILE", "FORMAT", "SIZE", "STATE", "REASON", "USERS", "LAST USED")


@dataclass(frozen=True)
class Row:
    """One BuildArtifact."""

    namespace: str
    name: str
    key: str
    profile: str
    format: str
    size_bytes: int | None
    """Bytes in the store; None before it is there."""
    state: str
    """Ready, Building, Stalled or Deleting."""
    reason: str
    referrers: int
    last_used: str | None
    """Since when nobody uses it any more, or when it was last in use; None where that is not known."""
    message: str

    def to_json(self) -> dict[str, Any]:
        """As ``-o json`` gives it."""
        return {
            "namespace": self.namespace, "name": self.name, "key": self.key, "profile": self.profile,
            "format": self.format, "sizeBytes": self.size_bytes, "state": self.state, "reason": self.reason,
            "referrers": self.referrers, "lastUsed": self.last_used, "message": self.message,
        }  # fmt: skip


def row(artifact: Mapping[str, Any]) -> Row:
    """What a list says of an artifact."""
    metadata, spec, status = artifact["metadata"], artifact["spec"], artifact.get("status") or {}
    ready = condition(dict(artifact), ConditionType.READY)
    return Row(
        namespace=metadata["namespace"],
        name=metadata["name"],
        key=spec["key"],
        profile=spec["profile"],
        format=spec["format"],
        size_bytes=status.get("sizeBytes"),
        state="Deleting" if metadata.get("deletionTimestamp") else state(artifact),
        reason=ready.get("reason", ""),
        referrers=status.get("referrerCount", 0),
        last_used=status.get("lastUsed"),
        message=ready.get("message", ""),
    )


def state(artifact: Mapping[str, Any]) -> str:
    """Ready, Stalled (it will not be by itself) or Building."""
    if condition(dict(artifact), ConditionType.READY).get("status") == "True":
        return "Ready"
    return "Stalled" if condition(dict(artifact), ConditionType.STALLED).get("status") == "True" else "Building"


def table(rows: Sequence[Row], now: datetime) -> str:
    """The rows in columns."""
    cells = [
        (
            each.namespace, each.name, each.key[:12], each.profile, each.format, size(each.size_bytes), each.state,
            each.reason or "-", str(each.referrers), _ago(each.last_used, now),
        )
        for each in rows
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in (_COLUMNS, *cells)
    )
    return "\n".join(line.rstrip() for line in lines)


def size(count: int | None) -> str:
    """Bytes for a person."""
    if count is None:
        return "-"
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.0f} {_UNITS[unit]}" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds for a person, such as 1 h 02 min or 3 min 20 s."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _ago(moment: str | None, now: datetime) -> str:
    return "-" if moment is None else f"{duration((now - _moment(moment)).total_seconds())} ago"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def progress(artifact: Mapping[str, Any], now: datetime) -> str:
    """One line: how far an artifact is."""
    name, status = artifact["metadata"]["name"], artifact.get("status") or {}
    ready = condition(dict(artifact), ConditionType.READY)
    now_is = state(artifact)
    if now_is == "Ready":
        took = f", built in {duration(float(status['buildSeconds']))}" if status.get("buildSeconds") else ""
        return f"{name}: Ready ({ready.get('reason', '')}){took}, {status.get('location', '')}"
    if now_is == "Stalled":
        return f"{name}: Stalled ({ready.get('reason', '')}): {ready.get('message', '')}"
    said = [f"{name}: {ready.get('reason') or 'Building'}"]
    if status.get("stage"):
        said.append(f"stage {status['stage']}")
    if status.get("startedAt"):
        spent = duration((now - _moment(status["startedAt"])).total_seconds())
        expected = status.get("expectedSeconds")
        said.append(
            f"{spent} of about {duration(float(expected))}" if expected else f"{spent}, no earlier build to compare"
        )
    if ready.get("message") and not (status.get("startedAt") and ready.get("reason") == "Building"):
        said.append(str(ready["message"]))
    return ", ".join(said)


def log_tail(artifact: Mapping[str, Any]) -> list[str]:
    """The compiler's last lines, of an attempt that failed."""
    return list((artifact.get("status") or {}).get("logTail") or [])


def settled(artifacts: Iterable[Mapping[str, Any]]) -> bool:
    """True once none of them is on its way."""
    return all(state(each) != "Building" for each in artifacts)
