"""What a store holds after events, lists and answers to own writes, in whatever order they come."""

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest
from rm_operator.kube.client import Object
from rm_operator.kube.contents import MAX_DECODED, Fate, Transformed
from rm_operator.kube.documents import Document, Reader, encode
from rm_operator.kube.resources import CONFIGMAPS, JOBS
from rm_operator.kube.store import Changes, Store, Stores, key_of

Change = tuple[Object | None, Object | None]


def obj(name: str, version: int, *, uid: str = "u", namespace: str = "ns", **further: Any) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(version)}
    metadata |= further.pop("metadata", {})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **further}


def owners(each: Object) -> list[str]:
    return [reference["uid"] for reference in each["metadata"].get("ownerReferences") or ()]


def data_of(each: Document) -> object:
    return each.member("data", Reader(dict))


def name_alone(each: Document) -> Transformed:
    namespace, name = each.key
    metadata = {"namespace": namespace, "name": name, "uid": each.uid, "resourceVersion": each.resource_version}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def document(each: Object) -> Document:
    return Document.of(encode(each))


def names(objects: tuple[Object, ...]) -> list[str]:
    return [each["metadata"]["name"] for each in objects]


@pytest.fixture
def store() -> Store:
    return Store(CONFIGMAPS, indexes={"owner": owners})


@pytest.fixture
def changes(store: Store) -> list[Change]:
    heard: list[Change] = []
    store.on_change(lambda old, new: heard.append((old, new)))
    return heard


def test_newer_wins_whatever_the_order_of_arrival(store: Store) -> None:
    versions = [obj("a", version, data={"at": str(version)}) for version in (5, 6, 7, 8)]
    for order in itertools.permutations(versions):
        store = Store(CONFIGMAPS)
        for each in order:
            store.upsert(each)
        known = store.get("ns", "a")
        assert known is not None
        assert known["data"] == {"at": "8"}


def test_versions_compare_as_numbers(store: Store) -> None:
    assert store.upsert(obj("a", 9))
    assert store.upsert(obj("a", 10))
    assert not store.upsert(obj("a", 9))


def test_the_event_of_an_own_write_changes_nothing(store: Store, changes: list[Change]) -> None:
    store.upsert(obj("a", 5))
    assert not store.upsert(obj("a", 5))
    assert len(changes) == 1


class TestDeletion:
    def test_an_answer_that_comes_after_it_does_not_revive(self, store: Store) -> None:
        store.upsert(obj("a", 5))
        assert store.remove("ns", "a", uid="u", resource_version="8")
        assert not store.upsert(obj("a", 7))
        assert store.get("ns", "a") is None

    def test_of_an_object_never_seen_counts_too(self, store: Store) -> None:
        assert not store.remove("ns", "a", uid="u", resource_version="8")
        assert not store.upsert(obj("a", 7))

    def test_a_successor_is_known_again(self, store: Store) -> None:
        store.upsert(obj("a", 5))
        store.remove("ns", "a", uid="u", resource_version="8")
        assert store.upsert(obj("a", 9, uid="v"))

    def test_of_the_predecessor_leaves_the_successor(self, store: Store) -> None:
        store.upsert(obj("a", 9, uid="v"))
        assert not store.remove("ns", "a", uid="u", resource_version="8")
        assert store.get("ns", "a") is not None

    def test_of_a_later_life_removes_what_is_known_of_an_earlier(self, store: Store) -> None:
        store.upsert(obj("a", 5, uid="u"))
        assert store.remove("ns", "a", uid="v", resource_version="8")
        assert store.get("ns", "a") is None

    def test_memory_of_deletions_is_bounded(self, store: Store) -> None:
        for number in range(10_000):
            store.remove("ns", f"a{number}", resource_version=str(number))
        assert len(store._tombstones) <= 4096


class TestReplace:
    def test_tells_what_was_added_changed_and_removed(self, store: Store, changes: list[Change]) -> None:
        store.replace([obj("kept", 1), obj("changed", 2), obj("gone", 3)], "10")
        changes.clear()
        found = store.replace([obj("kept", 1), obj("changed", 12), obj("new", 13)], "20")
        assert found == Changes((("ns", "new"),), (("ns", "changed"),), (("ns", "gone"),))
        assert sorted((bool(old), bool(new)) for old, new in changes) == [(False, True), (True, False), (True, True)]
        assert names(store.list()) == ["changed", "kept", "new"]
        assert store.resource_version == "20"

    def test_keeps_what_an_own_write_told_after_the_list_was_taken(self, store: Store) -> None:
        store.replace([], "10")
        store.upsert(obj("written", 15))
        assert store.replace([], "12").removed == ()
        assert names(store.list()) == ["written"]

    def test_does_not_take_an_older_object_from_an_older_list(self, store: Store) -> None:
        store.upsert(obj("a", 15, data={"new": "yes"}))
        store.replace([obj("a", 11)], "12")
        known = store.get("ns", "a")
        assert known is not None
        assert "data" in known

    def test_does_not_revive_what_was_deleted_after_the_list_was_taken(self, store: Store) -> None:
        store.replace([obj("a", 5)], "10")
        store.remove("ns", "a", uid="u", resource_version="14")
        store.replace([obj("a", 5)], "12")
        assert store.get("ns", "a") is None

    def test_a_swept_object_is_not_revived_by_a_late_answer(self, store: Store) -> None:
        store.upsert(obj("a", 5))
        store.replace([], "10")
        assert not store.upsert(obj("a", 7))

    def test_after_a_restore_from_backup_the_list_alone_is_true(self, store: Store) -> None:
        store.replace([obj("a", 900, data={"future": "lost"}), obj("b", 950)], "1000")
        store.remove("ns", "c", uid="u", resource_version="990")
        found = store.replace([obj("a", 300), obj("c", 310)], "400")
        assert found == Changes((("ns", "c"),), (("ns", "a"),), (("ns", "b"),))
        known = store.get("ns", "a")
        assert known is not None
        assert "data" not in known
        assert store.upsert(obj("a", 401))


class TestIndexes:
    def test_follow_changes_and_deletions(self, store: Store) -> None:
        def owned(name: str, version: int, *uids: str) -> dict[str, Any]:
            return obj(name, version, metadata={"ownerReferences": [{"uid": uid} for uid in uids]})

        store.upsert(owned("b", 1, "x"))
        store.upsert(owned("a", 2, "x", "y"))
        assert names(store.by_index("owner", "x")) == ["a", "b"]
        store.upsert(owned("b", 3, "y"))
        assert names(store.by_index("owner", "x")) == ["a"]
        assert names(store.by_index("owner", "y")) == ["a", "b"]
        store.remove("ns", "a", resource_version="4")
        assert store.by_index("owner", "x") == ()

    def test_of_an_undeclared_name_is_an_error_that_names_the_others(self, store: Store) -> None:
        with pytest.raises(KeyError, match=r"no index 'node'.*owner"):
            store.by_index("node", "x")

    def test_namespaces_are_one(self, store: Store) -> None:
        store.upsert(obj("a", 1, namespace="one"))
        store.upsert(obj("b", 2, namespace="two"))
        assert names(store.list("one")) == ["a"]
        assert names(store.list()) == ["a", "b"]
        assert store.list("three") == ()

    def test_an_object_that_a_function_cannot_read_is_known_all_the_same(self) -> None:
        store = Store(CONFIGMAPS, indexes={"broken": lambda each: [each["spec"]["missing"]], "owner": owners})
        store.upsert(obj("a", 1, metadata={"ownerReferences": [{"uid": "x"}]}))
        assert names(store.list()) == ["a"]
        assert names(store.by_index("owner", "x")) == ["a"]

    def test_agree_with_a_scan_after_any_history(self) -> None:
        rng = random.Random(7)
        store = Store(CONFIGMAPS, indexes={"owner": owners})
        for version in range(1, 2000):
            name = f"o{rng.randrange(20)}"
            if rng.random() < 0.3:
                store.remove("ns", name, resource_version=str(version))
            else:
                references = [{"uid": f"x{rng.randrange(4)}"} for _ in range(rng.randrange(3))]
                store.upsert(obj(name, version, metadata={"ownerReferences": references}))
            value = f"x{rng.randrange(4)}"
            assert store.by_index("owner", value) == tuple(each for each in store if value in owners(each))


class TestWhatIsKept:
    def test_managed_fields_and_kubectls_copy_are_not(self, store: Store) -> None:
        annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "yes"}
        given = obj("a", 1, metadata={"managedFields": [{"manager": "x"}], "annotations": annotations})
        store.upsert(given)
        known = store.get("ns", "a")
        assert known is not None
        assert known["metadata"]["annotations"] == {"mine": "yes"}
        assert "managedFields" not in known["metadata"]
        assert "managedFields" in given["metadata"], "the caller's object was changed"

    def test_apiversion_and_kind_are_filled_in(self) -> None:
        store = Store(JOBS)
        given = obj("a", 1)
        del given["kind"], given["apiVersion"]
        store.replace([given], "1")
        known = store.get("ns", "a")
        assert known is not None
        assert (known["apiVersion"], known["kind"]) == ("batch/v1", "Job")

    def test_a_transform_that_drops_an_object_removes_it(self) -> None:
        store = Store(CONFIGMAPS, transform=lambda each: Fate.WHOLE if data_of(each) else Fate.DROPPED)
        heard: list[Change] = []
        store.on_change(lambda old, new: heard.append((old, new)))
        store.upsert(obj("a", 1, data={"x": "y"}))
        store.upsert(obj("a", 2))
        assert len(store) == 0
        assert [(bool(old), bool(new)) for old, new in heard] == [(False, True), (True, False)]

    def test_what_was_read_before_a_change_stays(self, store: Store) -> None:
        store.upsert(obj("a", 1))
        before = store.list()
        store.upsert(obj("b", 2))
        store.upsert(obj("a", 3, data={"new": "yes"}))
        assert names(before) == ["a"]
        assert "data" not in before[0]

    def test_many_are_known_though_few_are_decoded(self, store: Store) -> None:
        many = [obj(f"o{number:05d}", number + 1, data={"n": str(number)}) for number in range(3 * MAX_DECODED)]
        store.replace(many, "100000")
        assert len(store._decoded) == 0
        assert [each["data"]["n"] for each in store.list()] == [each["data"]["n"] for each in many]
        assert len(store._decoded) == MAX_DECODED
        assert store.get("ns", "o00000") == many[0]

    def test_reading_again_costs_nothing(self, store: Store) -> None:
        store.replace([obj("a", 1)], "2")
        assert store.get("ns", "a") is store.get("ns", "a")
        small = Store(CONFIGMAPS, transform=name_alone)
        small.replace([obj("a", 1)], "2")
        assert small.list() is small.list()

    def test_what_a_transform_leaves_as_it_is_is_not_kept_decoded(self) -> None:
        def transform(each: Document) -> Transformed:
            return Fate.WHOLE if data_of(each) else name_alone(each)

        store = Store(CONFIGMAPS, transform=transform)
        store.replace([obj("large", 1, data={"x": "y"}), obj("small", 2)], "3")
        assert store.list() is not store.list()
        assert names(store.list()) == ["large", "small"]
        assert store.get("ns", "large") == obj("large", 1, data={"x": "y"})

    def test_a_change_that_a_transform_leaves_nothing_of_is_none(self) -> None:
        """Such as the heartbeats of nodes: nobody hears of them, and the version is the newest all the same."""
        store = Store(CONFIGMAPS, transform=name_alone)
        heard: list[Change] = []
        store.on_change(lambda old, new: heard.append((old, new)))
        store.upsert(obj("a", 1))
        before = store.list()
        store.upsert(obj("a", 2, data={"x": "y"}))
        assert len(heard) == 1
        assert store.version(("ns", "a")) == 2
        assert [each["metadata"]["resourceVersion"] for each in (*before, *store.list())] == ["1", "2"]
        store.upsert(obj("a", 3, uid="another"))
        assert len(heard) == 2
        assert heard[-1][1] == {**store.list()[0]}

    def test_a_list_is_taken_without_decoding_what_nobody_looks_at(self) -> None:
        looked: list[str] = []
        store = Store(CONFIGMAPS, indexes={"owner": owners})
        store.on_change(lambda old, new: looked.append((new or {})["metadata"]["name"]))
        # Only who decodes the text notices that it is none.
        broken = encode(obj("a", 1)).removesuffix(b"}") + b',"data":{"x":"\xff"}}'
        listing = store.listing()
        listing.take([Document.of(broken)])
        listing.finish("5")
        assert looked == ["a"]
        with pytest.raises(ValueError, match="codec"):
            store.get("ns", "a")

    def test_subscribers_are_told_what_it_was_and_is(self, store: Store, changes: list[Change]) -> None:
        first, second = obj("a", 1), obj("a", 2, data={"x": "y"})
        store.replace([first], "1")
        store.replace([second], "2")
        store.replace([], "3")
        assert changes == [(None, first), (first, second), (second, None)]


class TestKeys:
    def test_are_those_of_the_objects(self, store: Store) -> None:
        rng = random.Random(11)
        for version in range(1, 1000):
            name = f"o{rng.randrange(30)}"
            if rng.random() < 0.3:
                store.remove("ns", name, resource_version=str(version))
            else:
                references = [{"uid": f"x{rng.randrange(4)}"} for _ in range(rng.randrange(3))]
                store.upsert(obj(name, version, metadata={"ownerReferences": references}))
            value = f"x{rng.randrange(4)}"
            assert store.keys() == tuple(key_of(each) for each in store)
            assert store.keys_by_index("owner", value) == tuple(map(key_of, store.by_index("owner", value)))
            assert store.count("owner", value) == len(store.by_index("owner", value))
            counts = {f"x{each}": len(store.by_index("owner", f"x{each}")) for each in range(4)}
            assert store.counts("owner") == {each: count for each, count in counts.items() if count}

    def test_versions_are_numbers(self, store: Store) -> None:
        store.upsert(obj("a", 10))
        assert (store.version(("ns", "a")), store.version(("ns", "b"))) == (10, -1)

    def test_counts_of_an_undeclared_index_are_an_error(self, store: Store) -> None:
        for wrong in (lambda: store.counts("node"), lambda: store.count("node", "x")):
            with pytest.raises(KeyError, match="no index 'node'"):
                wrong()


class TestListing:
    def test_parts_are_taken_as_they_come(self, store: Store, changes: list[Change]) -> None:
        store.replace([obj("kept", 1), obj("gone", 2)], "5")
        listing = store.listing()
        listing.take(map(document, [obj("kept", 1), obj("new", 7)]))
        assert names(store.list()) == ["gone", "kept", "new"]
        listing.take([document(obj("newer", 8))])
        assert listing.finish("10") == Changes((("ns", "new"), ("ns", "newer")), (), (("ns", "gone"),))
        assert names(store.list()) == ["kept", "new", "newer"]

    def test_one_that_breaks_off_removes_nothing(self, store: Store) -> None:
        store.replace([obj("a", 1), obj("b", 2)], "5")
        store.listing().take([document(obj("a", 1))])
        assert names(store.list()) == ["a", "b"]
        assert store.resource_version == "5"


def test_a_failing_subscriber_neither_stops_the_others_nor_the_store(store: Store) -> None:
    heard: list[str] = []

    def failing(old: Object | None, new: Object | None) -> None:
        raise RuntimeError("a defect")

    store.on_change(failing)
    store.on_change(lambda old, new: heard.append(key_of(new or old or {})[1]))
    assert store.upsert(obj("a", 1))
    assert heard == ["a"]


def test_stores_take_answers_of_the_kinds_they_have() -> None:
    stores = Stores([Store(CONFIGMAPS)])
    stores.put(obj("a", 1))
    stores.put({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "resourceVersion": "1"}})
    assert [each.resource for each in stores] == [CONFIGMAPS]
    assert names(stores[CONFIGMAPS].list()) == ["a"]
    assert stores.unsynced == ("configmaps",)
    stores[CONFIGMAPS].synced.set()
    assert not stores.unsynced


def test_stores_refuse_kinds_that_no_resource_is_known_for() -> None:
    mapping: Mapping[str, Any] = {"apiVersion": "v1", "kind": "Wombat", "metadata": {}}
    with pytest.raises(KeyError, match="Wombat of v1"):
        Stores([]).put(dict(mapping))
