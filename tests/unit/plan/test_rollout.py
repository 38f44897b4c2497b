"""The rollout planner: its steps where all goes well, and what holds whatever happens on the way."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_api.kinds.model_deployment import Rollout
from rm_operator.plan.rollout import Bounds, Count, Step, advance, hold

# The same examples each time, so that a run means the same on every machine; no deadline, as machines differ.
repeatable = settings(deadline=None, derandomize=True, max_examples=300, database=None)


def steps(old: list[Count], bounds: Bounds) -> list[tuple[int, ...]]:
    """What is asked of the new variant and of each old one, step by step, where every new pod comes to serve."""
    new, taken = Count(0, 0), []
    while True:
        step = advance(new, old, bounds)
        after = (
            Count(step.new, step.new),
            [Count(kept, min(kept, each.serving)) for kept, each in zip(step.old, old, strict=True)],
        )
        if after == (new, old):
            return taken
        taken.append((step.new, *step.old))
        new, old = after


@pytest.mark.parametrize(
    ("bounds", "old", "expected"),
    [
        # Surge: one more, then one less.
        (Bounds(1, 0, 1), [Count(1, 1)], [(1, 1), (1, 0)]),
        (Bounds(3, 0, 1), [Count(3, 3)], [(1, 3), (1, 2), (2, 2), (2, 1), (3, 1), (3, 0)]),
        (Bounds(4, 0, 2), [Count(4, 4)], [(2, 4), (2, 2), (4, 2), (4, 0)]),
        (Bounds(2, 0, 9), [Count(2, 2)], [(2, 2), (2, 0)]),
        # Surge that may also be short: both at once.
        (Bounds(4, 1, 1), [Count(4, 4)], [(1, 3), (2, 2), (3, 1), (4, 0)]),
        # In place: one less, then one more.
        (Bounds(1, 1, 0), [Count(1, 1)], [(0, 0), (1, 0)]),
        (Bounds(3, 1, 0), [Count(3, 3)], [(0, 2), (1, 2), (1, 1), (2, 1), (2, 0), (3, 0)]),
        (Bounds(4, 2, 0), [Count(4, 4)], [(0, 2), (2, 2), (2, 0), (4, 0)]),
        (Bounds(2, 5, 0), [Count(2, 2)], [(0, 0), (2, 0)]),
        # Old pods that do not serve go first, but stay as long as they are all there is to come back.
        (Bounds(3, 0, 1), [Count(3, 0)], [(1, 3), (1, 2), (2, 2), (2, 1), (3, 1), (3, 0)]),
        (
            Bounds(3, 0, 1),
            [Count(2, 2), Count(1, 0)],
            [(1, 2, 1), (1, 2, 0), (2, 2, 0), (2, 1, 0), (3, 1, 0), (3, 0, 0)],
        ),
        # Of several old variants that serve, the first goes first.
        (
            Bounds(3, 0, 1),
            [Count(1, 1), Count(2, 2)],
            [(1, 1, 2), (1, 0, 2), (2, 0, 2), (2, 0, 1), (3, 0, 1), (3, 0, 0)],
        ),
        # More or fewer wanted than run.
        (Bounds(5, 0, 1), [Count(2, 2)], [(4, 2), (4, 1), (5, 1), (5, 0)]),
        (Bounds(2, 0, 1), [Count(5, 5)], [(0, 2), (1, 2), (1, 1), (2, 1), (2, 0)]),
        (Bounds(0, 0, 1), [Count(2, 2)], [(0, 0)]),
        # Without old ones it is a plain scale.
        (Bounds(3, 0, 1), [], [(3,)]),
        (Bounds(0, 0, 1), [], []),
    ],
)
def test_steps(bounds: Bounds, old: list[Count], expected: list[tuple[int, ...]]) -> None:
    assert steps(old, bounds) == expected


@pytest.mark.parametrize(
    ("new", "old", "bounds", "expected"),
    [
        # The new pod is not ready: nothing goes, nothing comes.
        (Count(1, 0), [Count(3, 3)], Bounds(3, 0, 1), Step(1, (3,))),
        # It was, and crashed: what it had taken over is not given back by others.
        (Count(2, 1), [Count(2, 2)], Bounds(3, 0, 1), Step(2, (2,))),
        # In place, a crash uses up what may be missing.
        (Count(1, 0), [Count(2, 2)], Bounds(3, 1, 0), Step(1, (2,))),
        # Scaled down in the middle: unready new pods are not counted on.
        (Count(3, 0), [Count(2, 2)], Bounds(2, 0, 1), Step(2, (2,))),
        (Count(4, 4), [Count(1, 1)], Bounds(2, 0, 1), Step(2, (0,))),
        # One old pod that does not serve may go once the new one does.
        (Count(1, 1), [Count(3, 2)], Bounds(3, 0, 1), Step(1, (2,))),
        # For a moment after a step down more serve than are asked for.
        (Count(1, 1), [Count(1, 2)], Bounds(2, 0, 1), Step(2, (1,))),
        (Count(1, 1), [Count(1, 2), Count(2, 1)], Bounds(3, 0, 1), Step(1, (1, 1))),
    ],
)
def test_in_the_middle(new: Count, old: list[Count], bounds: Bounds, expected: Step) -> None:
    assert advance(new, old, bounds) == expected


@pytest.mark.parametrize(
    ("spec", "bounds"),
    [
        ({}, Bounds(4, 0, 1)),
        ({"maxSurge": 3, "maxUnavailable": 2}, Bounds(4, 2, 3)),
        ({"strategy": "InPlace", "maxUnavailable": 2}, Bounds(4, 2, 0)),
        ({"strategy": "InPlace"}, Bounds(4, 1, 0)),
    ],
)
def test_bounds_leave_room_for_a_change(spec: dict[str, object], bounds: Bounds) -> None:
    assert Bounds.of(4, Rollout.model_validate(spec)) == bounds


counts = st.builds(lambda asked, serving: Count(asked, min(asked, serving)), st.integers(0, 12), st.integers(0, 12))
all_bounds = st.builds(
    lambda wanted, unavailable, surge: Bounds(wanted, unavailable if surge else max(1, unavailable), surge),
    st.integers(0, 12), st.integers(0, 4), st.integers(0, 4),
)  # fmt: skip


@repeatable
@given(counts, st.lists(counts, max_size=4), all_bounds)
def test_a_step_keeps_what_is_promised(new: Count, old: list[Count], bounds: Bounds) -> None:
    step = advance(new, old, bounds)
    assert step == advance(new, old, bounds)
    before, after = new.asked + sum(each.asked for each in old), step.new + sum(step.old)
    assert after <= max(bounds.ceiling, before), "no more is asked for than may be"
    assert 0 <= step.new <= bounds.wanted
    assert step.new >= min(new.asked, bounds.wanted), "the new variant only grows"
    assert all(0 <= kept <= each.asked for kept, each in zip(step.old, old, strict=True)), "old ones only shrink"

    # Whoever scales down ends first what does not serve.
    taken_over = min(new.serving, step.new)
    serving = taken_over + sum(each.serving for each in old)
    left = taken_over + sum(min(kept, each.serving) for kept, each in zip(step.old, old, strict=True))
    assert left >= min(serving, bounds.floor), "what must serve is not ended"
    assert taken_over + sum(step.old) >= min(bounds.floor, taken_over + sum(each.asked for each in old))


@repeatable
@given(counts, st.lists(counts, max_size=4), all_bounds)
def test_another_pod_that_serves_never_brings_an_old_one_back(new: Count, old: list[Count], bounds: Bounds) -> None:
    better = new._replace(serving=min(new.asked, new.serving + 1))
    before, after = advance(new, old, bounds), advance(better, old, bounds)
    assert after.new == before.new
    assert sum(after.old) <= sum(before.old)


@dataclass
class Fleet:
    """Variants in a cluster where pods come to serve and crash as an adversary likes."""

    bounds: Bounds
    asked: list[int]
    serving: list[int]
    """Of each variant, the new one last."""
    history: list[int] = field(default_factory=list)

    def step(self) -> bool:
        """The operator's turn; what is taken out of the Service does not serve any more."""
        found = [Count(*each) for each in zip(self.asked, self.serving, strict=True)]
        before = sum(self.serving)
        step = advance(found[-1], found[:-1], self.bounds)
        asked = [*step.old, step.new]
        changed = asked != self.asked
        total = sum(self.asked)
        self.asked = asked
        self.serving = [min(*each) for each in zip(self.serving, asked, strict=True)]
        assert sum(self.asked) <= max(self.bounds.ceiling, total)
        assert sum(self.serving) >= min(before, self.bounds.floor), "it took a pod that had to serve"
        return changed

    def comes(self, index: int) -> None:
        """Another pod of a variant comes to serve."""
        self.serving[index] = min(self.asked[index], self.serving[index] + 1)

    def crashes(self, index: int) -> None:
        """A pod of a variant stops serving."""
        self.serving[index] = max(0, self.serving[index] - 1)

    def supersede(self) -> None:
        """Another variant is wanted in the middle."""
        self.asked.append(0)
        self.serving.append(0)

    def take_back(self) -> None:
        """The first of the old variants is wanted again."""
        self.asked.append(self.asked.pop(0))
        self.serving.append(self.serving.pop(0))


moves = st.one_of(
    st.tuples(st.just("comes"), st.integers(0, 5)),
    st.tuples(st.just("crashes"), st.integers(0, 5)),
    st.tuples(st.just("step"), st.just(0)),
    st.tuples(st.just("wanted"), st.integers(0, 8)),
    st.tuples(st.just("bounds"), all_bounds),
    st.tuples(st.just("supersede"), st.just(0)),
    st.tuples(st.just("take_back"), st.just(0)),
)


@repeatable
@given(all_bounds, st.lists(moves, max_size=60))
def test_whatever_happens_on_the_way_it_keeps_its_promise_and_ends(
    bounds: Bounds, story: list[tuple[str, object]]
) -> None:
    fleet = Fleet(bounds, [bounds.wanted, 0], [bounds.wanted, 0])
    for move, detail in story:
        if move in ("comes", "crashes"):
            assert isinstance(detail, int)
            getattr(fleet, move)(detail % len(fleet.asked))
        elif move == "wanted":
            assert isinstance(detail, int)
            fleet.bounds = replace(fleet.bounds, wanted=detail)
        elif move == "bounds":
            assert isinstance(detail, Bounds)
            fleet.bounds = replace(detail, wanted=fleet.bounds.wanted)
        else:
            getattr(fleet, move)()
    # From now on new pods come to serve, and nothing else happens: not even old ones recover.
    for _ in range(200):
        changed = fleet.step()
        if not changed and fleet.serving[-1] == fleet.asked[-1]:
            break
        fleet.comes(-1)
    assert fleet.asked == [0] * (len(fleet.asked) - 1) + [fleet.bounds.wanted]


@repeatable
@given(all_bounds, st.lists(moves.filter(lambda move: move[0] in ("comes", "crashes", "step")), max_size=60))
def test_while_nobody_changes_what_is_wanted_it_only_goes_forward(
    bounds: Bounds, story: list[tuple[str, object]]
) -> None:
    fleet = Fleet(bounds, [bounds.wanted, 2, 0], [bounds.wanted, 1, 0])
    for move, detail in story:
        asked = list(fleet.asked)
        if move == "step":
            fleet.step()
        else:
            assert isinstance(detail, int)
            getattr(fleet, move)(detail % 3)
        assert fleet.asked[-1] >= asked[-1]
        assert sum(fleet.asked[:-1]) <= sum(asked[:-1])


@pytest.mark.parametrize(
    ("variants", "wanted", "expected"),
    [
        ([], 3, ()),
        ([Count(2, 2)], 2, (2,)),
        ([Count(2, 2)], 5, (5,)),
        ([Count(2, 0)], 1, (1,)),
        ([Count(2, 2)], 0, (0,)),
        # In the middle of a rollout: the one that serves most is scaled, the others stay.
        ([Count(2, 2), Count(1, 0)], 3, (2, 1)),
        ([Count(2, 2), Count(1, 1)], 5, (4, 1)),
        ([Count(1, 1), Count(2, 2)], 2, (1, 1)),
        ([Count(1, 1), Count(1, 1)], 4, (1, 3)),
        ([Count(3, 1), Count(3, 2)], 1, (3, 0)),
        # What does not serve takes nobody's place.
        ([Count(1, 1), Count(1, 0)], 1, (1, 1)),
        ([Count(3, 3), Count(1, 0)], 2, (2, 1)),
        ([Count(2, 2), Count(1, 1)], 0, (0, 0)),
    ],
)
def test_what_runs_is_held_and_scaled(variants: list[Count], wanted: int, expected: tuple[int, ...]) -> None:
    assert hold(variants, wanted) == expected


@repeatable
@given(st.lists(counts, max_size=4), st.integers(0, 12))
def test_holding_asks_for_no_more_than_is_wanted_and_comes_to_rest(variants: list[Count], wanted: int) -> None:
    for _ in range(6):
        held = hold(variants, wanted)
        assert sum(held) <= max(wanted, sum(each.asked for each in variants))
        after = [Count(asked, min(asked, each.serving)) for asked, each in zip(held, variants, strict=True)]
        if after == variants:
            return
        variants = after
    raise AssertionError(f"it goes to and fro: {variants}")


def test_the_documentation_shows_the_steps() -> None:
    text = (Path(__file__).parents[3] / "docs" / "rollout.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    shown = {row[0]: [int(cell) for cell in row[1:]] for row in rows if row[0].endswith((", new pods", ", old pods"))}
    for name, bounds in (("Surge", Bounds(3, 0, 1)), ("InPlace with maxUnavailable 1", Bounds(3, 1, 0))):
        taken = steps([Count(3, 3)], bounds)
        assert shown.pop(f"{name}, new pods") == [new for new, _ in taken]
        assert shown.pop(f"{name}, old pods") == [old for _, old in taken]
    assert not shown
