"""What in the artifact store nobody names, and when it goes."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_operator.plan.model import to_timestamp
from rm_operator.plan.orphans import MOST_REMEMBERED, MOST_REMOVED, Orphan, find, place_of, plan

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def ago(days: float) -> str:
    return to_timestamp(NOW - timedelta(days=days))


@pytest.mark.parametrize(
    ("repository", "place"),
    [
        ("artifacts/ns/b-abc", ("ns", "b-abc")),
        ("artifacts/ns", None),
        ("artifacts/ns/b-abc/more", None),
        ("artifacts/ns/..", None),
        ("artifacts/Ns/b", None),
        ("models/ns/b-abc", None),
        ("library/artifacts/ns/b-abc", None),
        ("artifacts//b-abc", None),
        ("artifacts/ns/b-abc\n", None),
    ],
)
def test_only_repositories_of_artifacts_are_looked_at(repository: str, place: tuple[str, str] | None) -> None:
    assert place_of(repository) == place
    assert find({repository: ("v1",)}, set(), set()) == ([Orphan(repository)] if place else [])


def test_what_is_named_stays_but_for_stages_of_builds_that_are_over() -> None:
    tags = {
        "artifacts/ns/lost": ("v1",),
        "artifacts/ns/half": ("stage-1",),
        "artifacts/ns/empty": (),
        "artifacts/ns/ready": ("stage-2", "v1", "stage-1", "stage-0", "stages", "latest"),
        "artifacts/ns/building": ("stage-1",),
        "artifacts/ns/vanished": ("stage-1",),
        "artifacts/other/ready": ("v1",),
    }
    named = {("ns", "ready"), ("ns", "building"), ("ns", "vanished")}
    ready = {("ns", "ready"), ("ns", "vanished")}
    assert [each.name for each in find(tags, named, ready)] == [
        "artifacts/ns/half",
        "artifacts/ns/lost",
        "artifacts/ns/ready:stage-1",
        "artifacts/ns/ready:stage-2",
        "artifacts/other/ready",
    ]


ORPHAN = Orphan("artifacts/ns/lost")


@pytest.mark.parametrize(
    ("since", "days", "written", "goes"),
    [
        (None, 30, NOW, False),
        (29.9, 30, 29.9, False),
        (30, 30, 30, True),
        (400, 30, 400, True),
        (400, 0, 400, False),
        (-1, 30, NOW, False),
    ],
)
def test_it_goes_so_many_days_after_it_was_first_seen(
    since: float | None, days: int, written: float | datetime, goes: bool
) -> None:
    before = {} if since is None else {ORPHAN.name: ago(since)}
    found = plan([ORPHAN], before, days, NOW)
    assert found.since == {ORPHAN.name: to_timestamp(written) if isinstance(written, datetime) else ago(written)}
    assert found.remove == ((ORPHAN,) if goes else ())


@pytest.mark.parametrize("broken", ["", "yesterday", "2020-01-01T00:00:00", "9999"])
def test_a_time_that_is_none_begins_anew(broken: str) -> None:
    found = plan([ORPHAN], {ORPHAN.name: broken}, 30, NOW)
    assert (found.since, found.remove) == ({ORPHAN.name: to_timestamp(NOW)}, ())


def test_one_that_was_wanted_meanwhile_begins_anew() -> None:
    wanted = plan([], {ORPHAN.name: ago(29)}, 30, NOW)
    assert (dict(wanted.since), wanted.remove) == ({}, ())
    assert plan([ORPHAN], wanted.since, 30, NOW).remove == ()


def test_many_are_remembered_and_removed_in_parts_and_none_is_displaced() -> None:
    known = [Orphan(f"artifacts/ns/z-{number:05}") for number in range(MOST_REMEMBERED)]
    before = {each.name: ago(31) for each in known}
    new = [Orphan(f"artifacts/ns/a-{number:05}") for number in range(50)]
    found = plan([*new, *known], before, 30, NOW)
    assert found.since == before
    assert found.remove == tuple(known[:MOST_REMOVED])


names = st.sampled_from(["a", "b", "c"])
places = st.sets(st.tuples(names, names))


@settings(deadline=None, derandomize=True, max_examples=200, database=None)
@given(
    st.dictionaries(st.builds("artifacts/{}/{}".format, names, names), st.lists(st.sampled_from(["v1", "stage-1"]))),
    places, places, st.dictionaries(st.text(), st.sampled_from([ago(1), ago(99), "x"])), st.integers(0, 40),
)  # fmt: skip
def test_nothing_goes_that_is_named_or_that_was_not_written_down_for_long_enough(
    tags: dict[str, list[str]],
    named: set[tuple[str, str]],
    ready: set[tuple[str, str]],
    since: dict[str, str],
    days: int,
) -> None:
    since |= {f"artifacts/{a}/{b}": ago(99) for a, b in ready}
    for each in plan(find(tags, named, ready), since, days, NOW).remove:
        place = place_of(each.repository)
        assert days > 0
        assert since[each.name] == ago(99)
        assert place is not None
        if each.tag:
            assert place in ready
            assert each.tag.startswith("stage-")
        else:
            assert place not in named
