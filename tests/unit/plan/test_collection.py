"""Which artifacts go, and why the others are kept."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rm_operator.plan.collection import Kept, Retention, judge, last_used

NOW = datetime(2026, 6, 1, tzinfo=UTC)
GIB = 1024**3
DAY = 86400


def kept(name: str, days: float, *, used: bool = False, gib: int = 10) -> Kept:
    return Kept(name, gib * GIB, NOW - timedelta(days=days), used)


FULL = [kept("old", 20), kept("older", 25), kept("new", 1), kept("busy", 29, used=True)]


@pytest.mark.parametrize(
    ("name", "users", "there", "retention", "goes", "said"),
    [
        ("a", ["b", "a"], [kept("a", 99)], Retention(), False, "used by a, b"),
        ("a", list("abcdefg"), [kept("a", 99)], Retention(), False, "used by a, b, c, d, e and 2 more"),
        ("a", [], [kept("a", 29)], Retention(), False, "nobody uses it; kept until 2026-06-02T00:00:00Z"),
        ("a", [], [kept("a", 30)], Retention(), True, "nobody has used it since 2026-05-02T00:00:00Z"),
        ("a", [], [kept("a", 2)], Retention(unused_seconds=DAY), True, "nobody has used it since"),
        # 40 GiB are there. Those that were used longest ago go first, and only as many as it takes.
        ("older", [], FULL, Retention(quota_bytes=30 * GIB), True, "take 40.0 GiB, 30.0 are allowed"),
        ("old", [], FULL, Retention(quota_bytes=30 * GIB), False, "kept until"),
        ("old", [], FULL, Retention(quota_bytes=25 * GIB), True, "25.0 are allowed"),
        ("new", [], FULL, Retention(quota_bytes=20 * GIB), False, "kept until"),
        ("new", [], FULL, Retention(quota_bytes=1), True, "are allowed"),
        ("busy", ["x"], FULL, Retention(quota_bytes=1), False, "used by x"),
        ("old", [], FULL, Retention(quota_bytes=40 * GIB), False, "kept until"),
    ],
)
def test_verdicts(name: str, users: list[str], there: list[Kept], retention: Retention, goes: bool, said: str) -> None:
    verdict = judge(name, users, there, retention, NOW)
    assert verdict.goes is goes
    assert said in verdict.reason


def test_it_is_looked_at_again_when_its_time_is_over() -> None:
    verdict = judge("a", [], [kept("a", 29)], Retention(), NOW)
    assert verdict.look_again == DAY
    assert judge("a", [], [kept("a", 29)], Retention(), NOW + timedelta(seconds=verdict.look_again)).goes


there = st.lists(
    st.tuples(st.integers(1, 100), st.integers(0, 40), st.booleans()), min_size=1, max_size=8
).map(lambda each: [kept(f"a{i}", days, used=used, gib=gib) for i, (gib, days, used) in enumerate(each)])  # fmt: skip


@given(there, st.integers(1, 400))
def test_what_goes_for_the_quota_is_never_in_use_and_makes_the_rest_fit_if_that_can_be(
    found: list[Kept], quota: int
) -> None:
    retention = Retention(unused_seconds=365 * DAY, quota_bytes=quota * GIB)
    gone = {
        each.name
        for each in found
        if judge(each.name, ["user"] if each.used else [], found, retention, NOW).goes
    }  # fmt: skip
    assert not any(each.used for each in found if each.name in gone)
    left = [each for each in found if each.name not in gone]
    assert sum(each.size_bytes for each in left) <= quota * GIB or all(each.used for each in left)
    # One fewer would not have done.
    last = max(
        (each for each in found if each.name in gone), key=lambda each: (each.last_used, each.name), default=None
    )
    assert last is None or sum(each.size_bytes for each in [*left, last]) > quota * GIB


@pytest.mark.parametrize(
    ("said", "used", "expected"),
    [
        (None, False, "2026-06-01T00:00:00Z"),
        (None, True, "2026-06-01T00:00:00Z"),
        ("2026-05-31T01:00:00Z", True, "2026-05-31T01:00:00Z"),
        ("2026-05-31T00:00:00Z", True, "2026-06-01T00:00:00Z"),
        ("2026-05-01T00:00:00Z", False, "2026-05-01T00:00:00Z"),
    ],
)
def test_the_last_use_is_written_at_most_once_a_day(said: str | None, used: bool, expected: str) -> None:
    artifact: dict[str, Any] = {"metadata": {}, "status": {"lastUsed": said} if said else {}}
    assert last_used(artifact, used, NOW) == expected
