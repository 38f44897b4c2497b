"""What the operator has written down of orphans in the artifact store, for a person."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click


@dataclass(frozen=True)
class Orphans:
    """What the last look has found."""

    looked_at: str
    """When; empty where there was none yet that found anything."""
    days: int
    """After so many it goes; 0 for never."""
    since: dict[str, str]
    """Repository, or repository:tag → when it was first seen."""

    def goes_at(self, name: str) -> str:
        """When an orphan goes, RFC 3339; empty for never."""
        if not self.days:
            return ""
        seen = datetime.fromisoformat(self.since[name].replace("Z", "+00:00"))
        return (seen + timedelta(days=self.days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def read(text: str) -> Orphans:
    """What is written down in ``text``; nothing in an empty one. Raises ClickException."""
    if not text:
        return Orphans("", 0, {})
    try:
        raw = json.loads(text)
        found = Orphans(str(raw["lookedAt"]), int(raw["removedAfterDays"]), dict(raw["since"]))
        for name in found.since:
            found.goes_at(name)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise click.ClickException(f"what is written down of orphans cannot be understood: {error}") from None
    return found


def to_json(found: Orphans) -> list[dict[str, Any]]:
    """An object for each."""
    return [
        {"name": name, "since": found.since[name], "goesAt": found.goes_at(name) or None}
        for name in sorted(found.since)
    ]


def table(found: Orphans) -> str:
    """A line for each, under a heading."""
    if not found.looked_at:
        return "The operator has found no orphans yet; it looks ten minutes after it starts, and then once a day."
    if not found.since:
        return f"There were no orphans at {found.looked_at}."
    rows = [
        ("ORPHAN", "SINCE", "GOES AT"),
        *((name, found.since[name], found.goes_at(name) or "never") for name in sorted(found.since)),
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {since:<{widths[1]}}  {goes}" for name, since, goes in rows]
    return "\n".join([*lines, "", f"As of {found.looked_at}. One that a deployment wants by then is adopted."])
