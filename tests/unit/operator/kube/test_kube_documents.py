"""What is decoded of an object, what is kept of it, and what is left as it came."""

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_operator.kube.documents import Document, Glance, Reader, decode, encode, encode_sorted

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def obj(metadata: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    identity = {"namespace": "ns", "name": "a", "uid": "u", "resourceVersion": "12"}
    return {"metadata": identity | (metadata or {}), **members}


def kept(given_: dict[str, Any]) -> Any:
    return decode(Document.of(encode(given_)).kept("v1", "ConfigMap")[0])


class TestDocument:
    def test_tells_which_object_it_is(self) -> None:
        document = Document.of(encode(obj()))
        assert (document.key, document.uid, document.resource_version) == (("ns", "a"), "u", "12")
        assert document.version == 12

    def test_of_a_cluster_scoped_object_has_no_namespace(self) -> None:
        assert Document.of(b'{"metadata":{"name":"n","resourceVersion":"1"}}').key == ("", "n")

    def test_those_of_a_namespace_share_its_name(self) -> None:
        # Ten thousand objects would have as many texts of it.
        assert Document.of(encode(obj())).key[0] is Document.of(encode(obj())).key[0]

    def test_of_a_bookmark_has_a_version_alone(self) -> None:
        bookmark = Document.of(b'{"metadata":{"resourceVersion":"77","creationTimestamp":null}}')
        assert (bookmark.key, bookmark.resource_version) == (("", ""), "77")

    @settings(deadline=None, max_examples=50)
    @given(members=st.dictionaries(st.text(min_size=1), JSON, max_size=4), labels=JSON)
    def test_keeps_what_it_is_given_with_what_lists_leave_out(self, members: dict[str, Any], labels: Any) -> None:
        given_ = {**members, **obj({"labels": labels, "generation": 3})}
        assert kept(given_) == {**given_, "apiVersion": "v1", "kind": "ConfigMap"}

    def test_keeps_nothing_bulky(self) -> None:
        annotations = {LAST_APPLIED: "{}", "mine": "yes"}
        given_ = obj({"managedFields": [{"manager": "x"}], "annotations": annotations}, data={"x": "y"})
        metadata = {**obj()["metadata"], "annotations": {"mine": "yes"}}
        assert kept(given_) == {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": "y"}}

    def test_annotations_that_are_null_are_none(self) -> None:
        assert kept(obj({"annotations": None}))["metadata"]["annotations"] is None

    def test_what_is_kept_holds_on_to_nothing_that_it_came_in(self) -> None:
        page = encode({"items": [obj(data={"x": "y" * 100}), obj(data={"x": "z" * 100_000})]})

        class Items(msgspec.Struct):
            items: list[msgspec.Raw]

        content, _ = Document.of(Reader(Items)(page).items[0]).kept("v1", "ConfigMap")
        assert type(content) is bytes
        assert len(content) < 300

    def test_members_are_read_as_far_as_somebody_wants_to_know(self) -> None:
        class Spec(msgspec.Struct):
            replicas: int = 1

        document = Document.of(encode(obj({"labels": {"a": "b"}}, spec={"replicas": 3, "template": {"x": [1, 2]}})))
        assert document.member("spec", Reader(Spec)) == Spec(3)
        assert document.member("status", Reader(Spec)) is None
        assert document.metadata.get("labels") == {"a": "b"}
        assert document.metadata.get("finalizers") is None

    @pytest.mark.parametrize("junk", [b"", b"<html>", b"[]", b"5", b'{"metadata":5}', b'{"metadata":{"name":5}}'])
    def test_what_is_no_object_is_refused(self, junk: bytes) -> None:
        with pytest.raises(msgspec.DecodeError):
            Document.of(junk)

    def test_an_object_without_metadata_is_refused(self) -> None:
        with pytest.raises(KeyError, match="metadata"):
            Document.of(b"{}")


class TestGlance:
    @staticmethod
    def of(given_: dict[str, Any]) -> Glance:
        return Document.of(encode(given_)).kept("v1", "ConfigMap")[1]

    def test_metadata_costs_no_decoding(self) -> None:
        unread = {"metadata": msgspec.Raw(b"{"), "spec": msgspec.Raw(b"[not JSON")}
        glance = Glance(unread, {"kind": "ConfigMap", "metadata": {"name": "a"}})
        assert glance["metadata"]["name"] == "a"
        assert glance.get("kind") == "ConfigMap"
        assert glance, "there is an object, whatever is in it"
        assert len(glance) == 3

    def test_is_the_object(self) -> None:
        given_ = obj({"labels": {"a": "b"}}, spec={"x": [1, {"y": None}]}, status=None)
        glance = self.of(given_)
        assert glance == {**given_, "apiVersion": "v1", "kind": "ConfigMap"}
        assert dict(glance) == glance
        assert type(glance["spec"]) is dict
        assert glance.get("status", "none") is None
        assert "data" not in glance
        assert glance.get("data") is None
        with pytest.raises(KeyError, match="data"):
            glance["data"]


@settings(deadline=None, max_examples=50)
@given(JSON)
def test_equal_values_have_the_same_sorted_bytes(value: Any) -> None:
    """Hashes of intents rest on this: a release must not spell JSON in another way than the one before it."""
    assert encode_sorted(value) == orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    assert encode_sorted({"b": value, "a": 1}) == encode_sorted({"a": 1, "b": value})
