"""However a list comes in pieces, the objects are those that were sent."""

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_operator.kube.documents import decode, decoded
from rm_operator.kube.list_divider import ListDivider, ListMetadata

LOOKALIKE = '},{"metadata":{"name":"no"}},{"apiVersion":"v1","kind":"K","metadata":'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.just(LOOKALIKE),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=4)
        | st.lists(st.builds(lambda value: {"metadata": {"name": "x"}, "y": value}, inner), max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.lists(st.dictionaries(st.text(min_size=1), JSON, max_size=3), max_size=8)


def of_its_own(items: list[dict[str, Any]], said: dict[str, Any]) -> bytes:
    """As an API server sends one of its own kinds: what it is comes first, and items are without."""
    return orjson.dumps({"kind": "KList", "apiVersion": "v1", "metadata": said, "items": items}) + b"\n"


def of_others(items: list[dict[str, Any]], said: dict[str, Any]) -> bytes:
    """As it sends a kind that was defined in it: members are sorted, and items have theirs."""
    whole = [{"apiVersion": "v1", "kind": "K", **item} for item in items]
    answer = {"apiVersion": "v1", "items": whole, "kind": "KList", "metadata": said}
    return orjson.dumps(answer, option=orjson.OPT_SORT_KEYS) + b"\n"


def divided(content: bytes, size: int, worth: int) -> tuple[list[list[Any]], ListMetadata]:
    divider = ListDivider(worth)
    parts = [divider.take(content[at : at + size]) for at in range(0, len(content), size)]
    last, said = divider.end()
    return [list(map(decoded, part)) for part in (*parts, last)], said


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([of_its_own, of_others]), OBJECTS, st.integers(1, 400), st.sampled_from([1, 50, 300]), st.booleans()
)
def test_they_are_what_was_sent(written: Any, members: list[dict[str, Any]], size: int, worth: int, more: bool) -> None:
    sent = [{"metadata": {"name": f"o{number}"}, **each} for number, each in enumerate(members)]
    content = written(sent, {"resourceVersion": "12", **({"continue": "on"} if more else {})})
    parts, said = divided(content, size, worth)
    assert [each for part in parts for each in part] == decode(content)["items"]
    assert (said.resource_version, said.more) == ("12", "on" if more else "")


@pytest.mark.parametrize("written", [of_its_own, of_others])
def test_they_come_before_the_end(written: Any) -> None:
    sent = [{"metadata": {"name": f"o{number:03}"}, "data": "x" * 100} for number in range(100)]
    parts, _ = divided(written(sent, {"resourceVersion": "12"}), 500, 500)
    # Two pieces are never more than eight of them.
    assert max(map(len, parts)) <= 8


@pytest.mark.parametrize("items", ["null", "[]"])
def test_there_may_be_none(items: str) -> None:
    content = f'{{"kind":"KList","metadata":{{"resourceVersion":"7"}},"items":{items}}}'.encode()
    assert divided(content, 10, 1) == ([[]] * -(-len(content) // 10) + [[]], ListMetadata("7"))


@pytest.mark.parametrize("kept", [0, 1, 20, 60, -2, -30])
@pytest.mark.parametrize("written", [of_its_own, of_others])
def test_one_that_is_not_whole_is_an_error(written: Any, kept: int) -> None:
    content = written([{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}], {"resourceVersion": "12"})
    with pytest.raises(msgspec.DecodeError):
        divided(content[:kept], 7, 1)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"items":5,"metadata":{}}', b'{"items":[5],"metadata":{}}'])
def test_what_is_no_list_is_an_error(content: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        divided(content, 7, 1)
