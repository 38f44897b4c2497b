"""``artifacts orphans``: what the operator has written down, for a person."""

import json

import click
import pytest
from rm_cli import orphan_list

SINCE = {"artifacts/ns/b-1": "2026-01-02T00:00:00Z", "artifacts/ns/b-2:stage-1": "2026-01-30T12:00:00Z"}


def written(days: int = 30, **since: str) -> str:
    return json.dumps({"lookedAt": "2026-01-31T00:00:00Z", "removedAfterDays": days, "since": since})


def test_each_has_a_line_that_says_when_it_goes() -> None:
    lines = orphan_list.table(orphan_list.read(written(**SINCE))).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["artifacts/ns/b-1", "2026-01-02T00:00:00Z", "2026-02-01T00:00:00Z"],
        ["artifacts/ns/b-2:stage-1", "2026-01-30T12:00:00Z", "2026-03-01T12:00:00Z"],
    ]
    assert "As of 2026-01-31T00:00:00Z" in lines[-1]


def test_what_never_goes_says_so() -> None:
    found = orphan_list.read(written(0, **SINCE))
    assert orphan_list.table(found).splitlines()[1].split()[-1] == "never"
    assert [each["goesAt"] for each in orphan_list.to_json(found)] == [None, None]


@pytest.mark.parametrize(("text", "said"), [("", "has found no orphans yet"), (written(), "no orphans at 2026-01-31")])
def test_where_there_is_none_that_is_said(text: str, said: str) -> None:
    found = orphan_list.read(text)
    assert said in orphan_list.table(found)
    assert orphan_list.to_json(found) == []


@pytest.mark.parametrize("text", ["x", "{}", "[]", written(a="yesterday"), written().replace("30", "null")])
def test_what_cannot_be_understood_is_an_error(text: str) -> None:
    with pytest.raises(click.ClickException, match="cannot be understood"):
        orphan_list.read(text)
