"""What was read is known to be as it was, or not: no change is missed, and what is none costs nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_operator.controllers.reading import MOST_SECONDS, AtRest, InNamespace, Reading
from rm_operator.kube.errors import NotFound
from rm_operator.kube.resources import CONFIGMAPS, SERVICES
from rm_operator.kube.store import Store, Stores
from rm_operator.runtime.queue import Key

Read = Callable[[Reading], Any]
KEY = Key("ModelDeployment", "ns", "m")


def owners(obj: Any) -> list[str]:
    return [each["uid"] for each in obj["metadata"].get("ownerReferences") or []]


class Cluster:
    """Stores of two kinds, of which one has an index, and an API server that has nothing else."""

    def __init__(self) -> None:
        self.version = 0
        self.stores = Stores([Store(CONFIGMAPS, indexes={"owner": owners}), Store(SERVICES)])
        self.at_rest = AtRest(self.stores.ticks)

    async def get(self, *_: Any, **__: Any) -> Any:
        raise NotFound(404, "NotFound", "nothing")

    def put(self, name: str, *owned_by: str, uid: str = "", namespace: str = "ns", **data: str) -> None:
        self.version += 1
        metadata = {
            "namespace": namespace, "name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(self.version),
            "ownerReferences": [{"uid": each} for each in owned_by],
        }  # fmt: skip
        self.stores.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})

    def remove(self, name: str, namespace: str = "ns") -> None:
        self.stores[CONFIGMAPS].remove(namespace, name)

    def read(self) -> Reading:
        return Reading(self.stores, self)  # type: ignore[arg-type]

    def remember(self, read: Read, after: float | None = None) -> Any:
        reading = self.read()
        found = read(reading)
        self.at_rest.remember(KEY, reading.result, 0.0, after)
        return found

    @property
    def holds(self) -> bool:
        return self.at_rest.holds(KEY, 1.0)


READS: dict[str, Read] = {
    "get": lambda known: known[CONFIGMAPS].get("ns", "a"),
    "of kind": lambda known: known.of_kind("ConfigMap").get("ns", "a"),
    "contains": lambda known: ("ns", "a") in known[CONFIGMAPS],
    "list": lambda known: known[CONFIGMAPS].list(),
    "list of a namespace": lambda known: known[CONFIGMAPS].list("ns"),
    "iterated": lambda known: tuple(known[CONFIGMAPS]),
    "by index": lambda known: known[CONFIGMAPS].by_index("owner", "x"),
    "keys by index": lambda known: known[CONFIGMAPS].keys_by_index("owner", "x"),
    "uids by index": lambda known: known[CONFIGMAPS].uids_by_index("owner", "x"),
    "count": lambda known: known[CONFIGMAPS].count("owner", "x"),
    "looked up in a namespace": lambda known: InNamespace(known[CONFIGMAPS], "ns").get("a"),
    "all in a namespace": lambda known: dict(InNamespace(known[CONFIGMAPS], "ns")),
}


names = st.sampled_from(["a", "b"])
values = st.lists(st.sampled_from(["x", "y"]), unique=True, max_size=2)
puts = st.tuples(st.just("put"), names, values, st.sampled_from(["", "other"]), st.sampled_from(["ns", "elsewhere"]))
removals = st.tuples(st.just("remove"), names, st.sampled_from(["ns", "elsewhere"]))
changes = st.lists(st.one_of(puts, removals), max_size=6)


def change(cluster: Cluster, steps: list[Any]) -> None:
    for what, name, *rest in steps:
        if what == "put":
            cluster.put(name, *rest[0], uid=rest[1], namespace=rest[2], data=str(cluster.version))
        else:
            cluster.remove(name, *rest)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(before=changes, after=changes)
def test_what_holds_is_read_as_it_was(read: Read, before: list[Any], after: list[Any]) -> None:
    cluster = Cluster()
    change(cluster, before)
    found = cluster.remember(read)
    assert cluster.holds
    change(cluster, after)
    if cluster.holds:
        assert read(cluster.read()) == found


@pytest.mark.parametrize(
    ("read", "still"),
    [
        ("get", {"b changes", "b goes"}),
        ("list", set()),
        ("by index", {"b changes", "b goes"}),
        ("keys by index", {"a changes", "b changes", "b goes"}),
        ("uids by index", {"a changes", "b changes", "b goes"}),
        ("count", {"a changes", "b changes", "b goes"}),
    ],
)
def test_what_does_not_matter_to_a_read_leaves_it_alone(read: str, still: set[str]) -> None:
    for name, act in {
        "a changes": lambda cluster: cluster.put("a", "x", data="new"),
        "b changes": lambda cluster: cluster.put("b", "y", data="new"),
        "a goes": lambda cluster: cluster.remove("a"),
        "b goes": lambda cluster: cluster.remove("b"),
        "a is another": lambda cluster: cluster.put("a", "x", uid="new"),
        "a leaves": lambda cluster: cluster.put("a", "y"),
    }.items():
        cluster = Cluster()
        cluster.put("a", "x")
        cluster.put("b", "y")
        cluster.remember(READS[read])
        act(cluster)
        assert cluster.holds == (name in still), name


def test_a_change_while_it_is_decided_counts() -> None:
    cluster = Cluster()
    reading = cluster.read()
    reading[CONFIGMAPS].get("ns", "a")
    cluster.put("a")
    cluster.at_rest.remember(KEY, reading.result, 0.0, None)
    assert not cluster.holds


def test_what_is_only_noted_counts_as_read() -> None:
    cluster = Cluster()
    cluster.remember(lambda known: known[CONFIGMAPS].note(("ns", "a")))
    assert cluster.holds
    cluster.put("a")
    assert not cluster.holds
    cluster.remember(lambda known: known.note(("somewhere", 1)))
    cluster.stores.ticks.touch([("somewhere", 1)])
    assert not cluster.holds


async def test_an_answer_from_outside_is_asked_for_each_time() -> None:
    cluster = Cluster()
    reading = cluster.read()
    assert await reading.live(SERVICES, "ns", "m") is None
    cluster.at_rest.remember(KEY, reading.result, 0.0, None)
    assert not cluster.holds


@dataclass(frozen=True)
class Moment:
    after: float | None
    now: float
    holds: bool
    left: float | None = None


@pytest.mark.parametrize(
    "moment",
    [
        Moment(None, 1, True, None),
        Moment(None, MOST_SECONDS - 1, True, None),
        Moment(None, MOST_SECONDS + 1, False),
        Moment(60, 20, True, 40),
        Moment(60, 60, False),
        Moment(2 * MOST_SECONDS, MOST_SECONDS - 1, True, 1),
        Moment(2 * MOST_SECONDS, MOST_SECONDS + 1, False),
    ],
)
def test_a_decision_holds_until_its_time(moment: Moment) -> None:
    cluster = Cluster()
    cluster.remember(READS["get"], moment.after)
    assert cluster.at_rest.holds(KEY, moment.now) == moment.holds
    if moment.holds:
        assert cluster.at_rest.after(KEY, moment.now) == moment.left


def test_what_is_forgotten_holds_no_more() -> None:
    cluster = Cluster()
    cluster.remember(READS["get"])
    cluster.at_rest.forget(KEY)
    assert (cluster.holds, len(cluster.at_rest)) == (False, 0)
