"""What the operator writes on a node: versions as labels, and a condition that says which devices are not well.

All kinds of accelerators of a node share one condition, each with a clause of its own in the message. What nothing is
known of stays as it was written: neither a restart of the operator nor one of a device plugin makes a device well.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from rm_api import names
from rm_api.conditions import Reason
from rm_api.kinds.accelerator_resource import DeviceFailure

from rm_operator.plan.compatibility import label_value
from rm_operator.plan.device_report import Device, Report
from rm_operator.plan.model import Object, labels_of, to_timestamp

LABELS: Final = (names.NODE_LABEL_DRIVER, names.NODE_LABEL_SDK, names.NODE_LABEL_FIRMWARE)
MOST_NAMED: Final = 8
"""Devices of one kind that are named; of the others their number is said."""
_MAX_LABEL: Final = 63
_WORDS: Final = {
    DeviceFailure.TRANSIENT: "is not well and may recover by itself",
    DeviceFailure.NEEDS_RESET: "needs a reset",
    DeviceFailure.DEAD: "is dead",
    DeviceFailure.UNKNOWN: "is not well",
}
_NO_REPORT: Final = "no report: "
_NO_DISCOVERY: Final = "discovery fails: "
_BETWEEN: Final = "; "


@dataclass(frozen=True, slots=True)
class NodeWish:
    """What is to be on a node of what the operator writes there."""

    labels: Mapping[str, str] = field(default_factory=dict)
    condition: Mapping[str, str] | None = None
    """Without the time of its last heartbeat; None for none."""


def wish(node: Object, reports: Mapping[str, Report | None], now: datetime) -> NodeWish:
    """What is to be on ``node``, where these kinds of accelerators report; None of what is not known yet."""
    return NodeWish(_labels(node, reports), _condition(node, reports, now))


def labels_on(node: Object) -> dict[str, str]:
    """Labels that a node has of those that the operator writes."""
    return {name: value for name, value in labels_of(node).items() if name.partition("/")[0] in LABELS}


def condition_on(node: Object) -> Mapping[str, Any] | None:
    """The condition that the operator writes, as the node has it."""
    for condition in (node.get("status") or {}).get("conditions") or ():
        if condition["type"] == names.NODE_CONDITION_UNHEALTHY:
            found: Mapping[str, Any] = condition
            return found
    return None


def in_words(failure: DeviceFailure, cause: str) -> str:
    """What is the matter with a device, to be read after its name."""
    return f"{_WORDS[failure]} ({cause})" if cause else _WORDS[failure]


def _labels(node: Object, reports: Mapping[str, Report | None]) -> dict[str, str]:
    there, wanted = labels_on(node), {}
    for kind, report in reports.items():
        if len(kind) > _MAX_LABEL:
            continue
        for prefix, version in zip(LABELS, _versions(report), strict=True):
            name = f"{prefix}/{kind}"
            value = there.get(name, "") if version is None else label_value(version)
            if value:
                wanted[name] = value
    return wanted


def _versions(report: Report | None) -> tuple[str, str, str] | tuple[None, None, None]:
    return (None, None, None) if report is None or not report.known else (report.driver, report.sdk, report.firmware)


def _condition(node: Object, reports: Mapping[str, Report | None], now: datetime) -> Mapping[str, str] | None:
    before = condition_on(node)
    said = _clauses(before) if before is not None and before["status"] == "True" else {}
    sick: dict[str, str] = {}
    silent: dict[str, str] = {}
    well: dict[str, str] = {}
    for kind, report in sorted(reports.items()):
        if report is None or not report.known:
            if kind in said:
                sick[kind] = said[kind]
            if report is not None:
                silent[kind] = f"{_NO_REPORT}{report.problem}"
            continue
        if devices := report.unhealthy:
            sick[kind] = _named(devices)
        if report.problem:
            silent[kind] = f"{_NO_REPORT}{report.problem}"
        elif report.message:
            silent[kind] = f"{_NO_DISCOVERY}{report.message}"
        if kind not in sick and kind not in silent:
            well[kind] = f"{report.devices} device{'' if report.devices == 1 else 's'}"
    if sick:
        # Whoever reads this looks for what to mend; what else is not known comes after it.
        only_silent = {kind: text for kind, text in silent.items() if kind not in sick}
        return _made(before, "True", Reason.DEVICE_UNHEALTHY, {**sick, **only_silent}, now)
    if silent:
        return _made(before, "Unknown", Reason.REPORT_MISSING, silent, now)
    if well:
        return _made(before, "False", Reason.ALL_HEALTHY, well, now)
    # Nothing is known, of none of them.
    return before if reports else None


def _made(
    before: Mapping[str, Any] | None, status: str, reason: Reason, clauses: Mapping[str, str], now: datetime
) -> dict[str, str]:
    # Semicolons are between the clauses and nowhere else.
    message = _BETWEEN.join(f"{kind}: {text.replace(';', ',')}" for kind, text in clauses.items())
    since = before["lastTransitionTime"] if before is not None and before["status"] == status else ""
    return {
        "type": names.NODE_CONDITION_UNHEALTHY,
        "status": status,
        "reason": reason.value,
        "message": message,
        "lastTransitionTime": since or to_timestamp(now),
    }


def _clauses(condition: Mapping[str, Any]) -> dict[str, str]:
    """What a condition that is True says of devices that are not well, by kind."""
    parts: Iterable[Sequence[str]] = (each.partition(": ") for each in condition["message"].split(_BETWEEN))
    return {kind: text for kind, _, text in parts if text and not text.startswith((_NO_REPORT, _NO_DISCOVERY))}


def _named(devices: Sequence[Device]) -> str:
    named = ", ".join(f"{each.id} {in_words(each.failure, each.cause)}" for each in devices[:MOST_NAMED])
    return f"{named} and {len(devices) - MOST_NAMED} more" if len(devices) > MOST_NAMED else named
