"""Where a model runs and why, as text: what ``plan``, ``explain`` and ``demo`` show of a placement."""

import textwrap
from collections.abc import Mapping
from typing import Any

from rm_api.conditions import ConditionType
from rm_api.names import API_VERSION

from rm_cli.kubectl import condition


def answer_of(obj: Mapping[str, Any]) -> dict[str, Any]:
    """What concerns its placement of a ModelDeployment, in the ModelDeployment's own form."""
    status: dict[str, Any] = {}
    if (obj.get("status") or {}).get("placement"):
        status["placement"] = obj["status"]["placement"]
    placed = condition(dict(obj), ConditionType.PLACED)
    if placed.get("status") in (None, "Unknown"):
        # It did not come to that; Ready tells the step before.
        placed = condition(dict(obj), ConditionType.READY)
    status["conditions"] = [placed] if placed else []
    metadata = {key: obj["metadata"][key] for key in ("name", "namespace") if key in obj["metadata"]}
    return {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": metadata, "status": status}


def text(answer: Mapping[str, Any], width: int) -> str:
    """An answer of ``answer_of`` for people: where, why, and a table of the candidates."""
    metadata, status = answer["metadata"], answer["status"]
    placement = status.get("placement") or {}
    said: list[Mapping[str, str]] = status["conditions"]
    title = f"{metadata.get('namespace', 'default')}/{metadata['name']}"
    if placement:
        title += f"  policy {placement['policy']}"
        title += f", on {placement['chosen']}" if placement.get("chosen") else ", without a place"
        if placement.get("profile"):
            title += f", compiled with {placement['profile']}"
    lines = [title]
    for each in said:
        lines += textwrap.wrap(f"{each['reason']}: {each.get('message', '')}", max(60, width))
    if not said and not placement:
        lines.append("the operator has not looked at it yet")
    if placement.get("candidates"):
        lines += ["", table(placement, width)]
    return "\n".join(lines)


def table(placement: Mapping[str, Any], width: int) -> str:
    """``status.placement`` as a table of at most ``width`` columns, if that leaves room for the reasons."""
    header = [
        "",
        "CANDIDATE",
        "ELIGIBLE",
        "DEVICES",
        "SCORE",
        "TTFT",
        "TPOT",
        "RATE",
        "J/TOKEN",
        "PRICE/MTOKEN",
        "PROVENANCE",
    ]
    rows = [header]
    for candidate in placement.get("candidates") or []:
        figures = {term["name"]: f"{term['value']} {term['unit']}" for term in candidate.get("terms") or []}
        price = figures.get("pricePerMillionTokens", "-").removesuffix("/Mtoken")
        rows.append(
            [
                "*" if candidate["name"] == placement.get("chosen") else "",
                candidate["name"],
                "yes" if candidate["eligible"] else "no",
                _devices(figures) if candidate["eligible"] else "-",
                candidate.get("score", "-"),
                *(figures.get(name, "-") for name in ("ttft", "tpot", "rate")),
                figures.get("joulesPerToken", "-").removesuffix(" J/token"),
                price,
                candidate.get("provenance", "-"),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    indent = sum(widths) + 2 * len(widths)
    reasons = ["REASON", *(candidate.get("reason", "") for candidate in placement.get("candidates") or [])]
    lines = []
    for row, reason in zip(rows, reasons, strict=True):
        cells = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True))
        wrapped = textwrap.wrap(reason, max(40, width - indent), break_on_hyphens=False) or [""]
        lines += [f"{cells}  {wrapped[0]}".rstrip(), *(" " * indent + line for line in wrapped[1:])]
    return "\n".join(lines)


def _devices(figures: Mapping[str, str]) -> str:
    """Devices of one replica, such as ``4x2`` for four that compute a layer together, in two stages."""
    tensor, stages = (figures.get(name, "1").split()[0] for name in ("tensorParallel", "pipelineParallel"))
    return tensor if stages == "1" else f"{tensor}x{stages}"
