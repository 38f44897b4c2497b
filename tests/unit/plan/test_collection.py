"""Which artifacts go, and why the others are kept."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from chain import PROFILE, World
from hypothesis import given
from hypothesis import strategies as st
from rm_operator.plan.collection import BARRIER_SECONDS, Kept, judge, last_used
from rm_operator.plan.model import Retention
from rm_operator.plan.placement import ProfileView

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
    ("said", "before", "used", "expected"),
    [
        (None, 0, False, "2026-06-01T00:00:00Z"),
        (None, 0, True, "2026-06-01T00:00:00Z"),
        ("2026-05-31T01:00:00Z", 1, True, "2026-05-31T01:00:00Z"),
        ("2026-05-31T00:00:00Z", 1, True, "2026-06-01T00:00:00Z"),
        ("2026-05-01T00:00:00Z", 0, False, "2026-05-01T00:00:00Z"),
        # Its last user has just gone, however long ago that was written down.
        ("2026-05-01T00:00:00Z", 1, False, "2026-06-01T00:00:00Z"),
    ],
)
def test_the_last_use_is_written_at_most_once_a_day_and_when_it_ends(
    said: str | None, before: int, used: bool, expected: str
) -> None:
    status: dict[str, Any] = {"referrerCount": before} | ({"lastUsed": said} if said else {})
    assert last_used({"metadata": {}, "status": status}, used, NOW) == expected


def unused(world: World) -> str:
    """An artifact that is built and has lost its user; its name."""
    world.serve()
    world.settle()
    (artifact,) = world.of("BuildArtifact")
    assert artifact["status"]["keptBecause"] == "used by hello"
    world.remove("ModelDeployment", "hello")
    world.settle()
    (artifact,) = world.of("BuildArtifact")
    assert artifact["status"]["keptBecause"].startswith("nobody uses it; kept until 2026-01-31T")
    return str(artifact["metadata"]["name"])


def test_an_artifact_without_users_goes_with_its_content_when_its_time_is_over() -> None:
    world = World()
    name = unused(world)
    world.now += timedelta(days=29)
    world.settle()
    assert name in world.store
    world.now += timedelta(days=1, seconds=1)
    world.settle()
    (artifact,) = world.of("BuildArtifact")
    assert "deletionTimestamp" in artifact["metadata"]
    assert name in world.store, "not before everybody had the time to say that they use it"
    world.now += timedelta(seconds=BARRIER_SECONDS)
    world.settle()
    assert world.of("BuildArtifact") == []
    assert name not in world.store


def test_who_comes_while_it_goes_gets_the_content_that_is_there() -> None:
    world = World()
    name = unused(world)
    world.now += timedelta(days=30, seconds=1)
    world.settle()
    world.deploy("late")
    world.settle()
    world.resolve_model()
    world.settle()
    assert world.reason("late") == "Deleting"
    assert world.of("Deployment") == []
    jobs = len([kind for kind, _ in world.made if kind == "Job"])
    world.now += timedelta(seconds=BARRIER_SECONDS)
    world.settle()
    (artifact,) = world.of("BuildArtifact")
    assert "deletionTimestamp" not in artifact["metadata"]
    assert world.condition("BuildArtifact", name, "Built")["reason"] == "Adopted"
    assert name in world.store
    assert len([kind for kind, _ in world.made if kind == "Job"]) == jobs, "nothing is built"
    assert world.reason("late") == "Starting"


def test_who_comes_before_it_is_asked_to_go_keeps_it() -> None:
    world = World()
    name = unused(world)
    world.now += timedelta(days=30, seconds=1)
    artifact = world.objects["BuildArtifact", name]
    world.carry_out(artifact, world.plan(artifact))
    assert world.objects["BuildArtifact", name]["metadata"]["finalizers"] == ["rm-abstract.io/artifact"]
    world.deploy("late")
    for _ in range(4):
        late = world.objects["ModelDeployment", "late"]
        world.carry_out(late, world.plan(late))
        world.resolve_model()
    world.settle()
    artifact = world.objects["BuildArtifact", name]
    assert "deletionTimestamp" not in artifact["metadata"]
    assert artifact["metadata"]["finalizers"] == []
    assert artifact["status"]["keptBecause"] == "used by late"


@pytest.mark.parametrize("writes", range(6))
def test_a_crash_after_any_write_takes_it_from_nobody_and_leaves_nothing(writes: int) -> None:
    world = World()
    name = unused(world)
    world.now += timedelta(days=30, seconds=1)
    for _ in range(writes):
        artifact = world.objects.get(("BuildArtifact", name))
        if artifact is not None:
            world.carry_out(artifact, world.plan(artifact), writes=1)
            world.now += timedelta(seconds=BARRIER_SECONDS / 2)
    world.settle()
    world.now += timedelta(seconds=BARRIER_SECONDS)
    world.settle()
    assert world.of("BuildArtifact") == []
    assert name not in world.store


def test_pods_of_an_earlier_variant_keep_their_artifact() -> None:
    world = World()
    world.serve()
    world.start_pods()
    world.settle()
    (first,) = world.of("BuildArtifact")
    step = PROFILE.steps[0].model_copy(update={"args": ["--faster"]})
    world.profiles = [ProfileView("acme", PROFILE.model_copy(update={"steps": [step]}))]
    world.settle()
    assert world.objects["ModelDeployment", "hello"]["status"]["artifact"] != first["metadata"]["name"]
    kept_ = world.objects["BuildArtifact", first["metadata"]["name"]]["status"]
    assert kept_["keptBecause"] == "used by hello"
