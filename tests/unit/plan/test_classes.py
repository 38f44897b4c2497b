"""How replicas are given to classes of nodes: as tables, and what holds for any fleet."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_operator.plan.classes import Option, Share, split
from rm_operator.plan.compatibility import NodeClass, Room

repeatable = settings(deadline=None, derandomize=True, max_examples=150, database=None)
A, B, C = (NodeClass((name,)) for name in ("a", "b", "c"))


def option(for_: NodeClass, devices: int | None, taken: int = 0, **further: object) -> Option:
    """A class with so many devices, of which so many are taken: by the deployment's own pods as far as it has some."""
    free = None if devices is None else max(0, devices - taken)
    return Option(for_, Room(1, devices, free), **{"warm": True, **further})  # type: ignore[arg-type]


def shares(found: list[Share]) -> list[tuple[str, int]]:
    return [(share.option.for_.drivers[0], share.replicas) for share in found]


@pytest.mark.parametrize(
    ("wanted", "options", "before", "expected"),
    [
        # One class: it has all, whether or not there are devices.
        (3, [option(A, 4)], {}, [("a", 3)]),
        (3, [option(A, 2)], {A: 3}, [("a", 3)]),
        (3, [option(A, None)], {}, [("a", 3)]),
        (0, [option(A, 4)], {A: 2}, [("a", 0)]),
        (3, [], {A: 3}, []),
        # Two: as few as there is room in, and the other one is built ahead.
        (2, [option(A, 4), option(B, 4)], {A: 2}, [("a", 2), ("b", 0)]),
        (2, [option(A, 4), option(B, 4, warm=False)], {A: 2}, [("a", 2), ("b", 0)]),
        (6, [option(A, 4), option(B, 4)], {A: 4}, [("a", 4), ("b", 2)]),
        # Nothing has begun: of equals the newer one, and one that is warm before those that are not.
        (2, [option(A, 4, warm=False), option(B, 4, warm=False)], {}, [("b", 2), ("a", 0)]),
        (2, [option(A, 4), option(B, 4, warm=False)], {}, [("a", 2), ("b", 0)]),
        (3, [option(A, 1), option(B, 4, warm=False)], {}, [("b", 2), ("a", 1)]),
        # Others have devices there.
        (4, [option(A, 4, taken=3), option(B, 4, taken=1)], {}, [("b", 3), ("a", 1)]),
        (2, [option(A, 4, taken=4, held=2), option(B, 4)], {A: 2}, [("a", 2), ("b", 0)]),
        # Nodes go over: the class keeps what it has devices for, and serves the others' share until they can.
        (4, [option(A, 2, taken=2, held=2), option(B, 2, warm=False)], {A: 4}, [("a", 4), ("b", 2)]),
        (4, [option(A, 2, taken=2, held=2), option(B, 2)], {A: 4, B: 2}, [("b", 2), ("a", 2)]),
        # They go back before the others can serve: all is as it was.
        (4, [option(A, 4, taken=4, held=4), option(B, 0, warm=False)], {A: 4, B: 2}, [("a", 4), ("b", 0)]),
        # Devices that are not healthy for a moment move nobody, and neither does a pod that ends and comes again.
        (4, [Option(A, Room(1, 4, 0), warm=True, held=1), option(B, 4)], {A: 4}, [("a", 4), ("b", 0)]),
        # Others were quicker: who finds no node goes where there is a device, and stays where there is none either.
        (4, [option(A, 4, taken=4, held=2, stuck=2, beside=2), option(B, 4)], {A: 4}, [("b", 2), ("a", 2)]),
        (4, [option(A, 4, taken=4, held=2, stuck=2, beside=2), option(B, 4, taken=3)], {A: 4}, [("a", 3), ("b", 1)]),
        (4, [option(A, 4, taken=4, held=2, stuck=2, beside=2), option(B, 4, taken=4)], {A: 4}, [("a", 4), ("b", 0)]),
        # Fewer are wanted: the smaller class ends first.
        (3, [option(A, 2), option(B, 2)], {A: 2, B: 2}, [("b", 2), ("a", 1)]),
        (2, [option(A, 3), option(B, 2)], {A: 3, B: 2}, [("a", 2), ("b", 0)]),
        # What cannot be built takes nothing, unless there is nothing else.
        (4, [option(A, 2), option(B, 4, warm=False, failed=True)], {A: 2}, [("a", 4)]),
        (2, [option(A, 2, warm=False, failed=True)], {}, [("a", 2)]),
        # Of several that could be built ahead one is, and stays it.
        (1, [option(A, 2), option(B, 2, warm=False), option(C, 2, warm=False)], {A: 1, B: 0}, [("a", 1), ("b", 0)]),
    ],
)
def test_the_split(
    wanted: int, options: list[Option], before: dict[NodeClass, int], expected: list[tuple[str, int]]
) -> None:
    assert shares(split(wanted, options, before)) == expected


def _options(drawn: list[tuple[int | None, int, int, bool, bool]]) -> list[Option]:
    return [
        Option(
            NodeClass((str(number),)),
            Room(number % 3 + 1, devices, None if devices is None else max(0, devices - taken)),
            warm=warm and not failed,
            failed=failed,
            held=min(held, taken, devices or 0),
        )
        for number, (devices, taken, held, warm, failed) in enumerate(drawn)
    ]


fleets = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(0, 6)),
        st.integers(0, 6),
        st.integers(0, 6),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=4,
).map(_options)
befores = st.lists(st.integers(0, 6), max_size=4).map(
    lambda counts: {NodeClass((str(number),)): count for number, count in enumerate(counts)}
)


def given_to(found: list[Share]) -> dict[NodeClass, int]:
    return {share.option.for_: share.replicas for share in found}


@repeatable
@given(st.integers(0, 12), fleets, befores)
def test_all_replicas_are_given_and_no_more_serve_than_are_wanted(
    wanted: int, options: list[Option], before: dict[NodeClass, int]
) -> None:
    found = split(wanted, options, before)
    total = sum(share.replicas for share in found)
    waiting = sum(share.replicas for share in found if not share.option.warm)
    assert total >= wanted, "each has a place"
    assert total - waiting <= wanted, "no more serve than are wanted"
    for share in found:
        if total > wanted and share.option.warm and share.replicas:
            break
    else:
        assert total == wanted, "only what serves already is kept for those that cannot yet"
    assert len(given_to(found)) == len(found)
    assert sum(share.replicas == 0 for share in found) <= 1


@repeatable
@given(st.integers(0, 12), fleets, befores, st.integers(0, 1000))
def test_the_order_does_not_matter(wanted: int, options: list[Option], before: dict[NodeClass, int], seed: int) -> None:
    random = Random(seed)
    other = split(wanted, random.sample(options, len(options)), dict(random.sample(list(before.items()), len(before))))
    assert other == split(wanted, options, before)


@repeatable
@given(st.integers(0, 12), fleets, befores)
def test_what_was_split_is_split_the_same_way_again(
    wanted: int, options: list[Option], before: dict[NodeClass, int]
) -> None:
    first = split(wanted, options, before)
    assert split(wanted, options, given_to(first)) == first


@repeatable
@given(st.integers(1, 12), fleets, befores, st.integers(0, 6), st.booleans())
def test_a_class_that_appears_moves_nobody_who_has_a_place(
    wanted: int, options: list[Option], before: dict[NodeClass, int], devices: int, warm: bool
) -> None:
    settled = given_to(split(wanted, options, before))
    further = Option(NodeClass(("new",)), Room(9, devices, devices), warm=warm)
    after = given_to(split(wanted, [*options, further], settled))
    for each in options:
        if not each.warm or each.room.most is None:
            continue
        has_place = min(settled.get(each.for_, 0), each.room.most)
        assert after.get(each.for_, 0) >= has_place


@repeatable
@given(st.integers(1, 12), fleets, befores)
def test_when_a_class_vanishes_only_its_share_moves(
    wanted: int, options: list[Option], before: dict[NodeClass, int]
) -> None:
    settled = given_to(split(wanted, options, before))
    gone, left = options[0], options[1:]
    after = given_to(split(wanted, left, settled))
    if sum(settled.values()) != wanted:
        return  # Some of it was kept for others, and is given back now.
    for each in left:
        if each.warm and each.room.most is not None:
            assert after.get(each.for_, 0) >= min(settled.get(each.for_, 0), each.room.most)
    assert gone.for_ not in after
