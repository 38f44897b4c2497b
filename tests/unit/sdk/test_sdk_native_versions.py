"""Versions: the order and the grammar of SemVer 2.0, ranges, and which hosts a plugin works with."""

import itertools

import pytest
import rm_abstract
from hypothesis import given
from hypothesis import strategies as st
from rm_abstract.core.errors import BadInput
from rm_abstract.core.versions import PluginInfo, VersionInfo, VersionRange

IN_ORDER = [
    "0.0.0-0",
    "0.0.0",
    "0.0.1",
    "0.9.0",
    "0.10.0",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1-0",
    "2.0.0",
    "10.0.0",
]

identifiers = st.from_regex(r"(0|[1-9][0-9]{0,3}|[0-9]{0,2}[A-Za-z-][0-9A-Za-z-]{0,4})", fullmatch=True)
numbers = st.integers(0, 30)
versions = st.builds(
    VersionInfo, numbers, numbers, numbers, st.lists(identifiers, max_size=3).map(".".join), st.sampled_from(["", "b1"])
)


def version(text: str) -> VersionInfo:
    return VersionInfo.parse(text, partial=True)


@pytest.mark.parametrize(("lower", "higher"), itertools.combinations(IN_ORDER, 2))
def test_precedence(lower: str, higher: str) -> None:
    low, high = VersionInfo.parse(lower), VersionInfo.parse(higher)
    assert low < high
    assert high > low
    assert low <= high
    assert low != high


@given(versions)
def test_what_is_written_is_read(one: VersionInfo) -> None:
    again = VersionInfo.parse(str(one))
    assert again == one
    assert str(again) == str(one)
    assert hash(again) == hash(one)


@given(versions, versions, versions)
def test_the_order_is_total(a: VersionInfo, b: VersionInfo, c: VersionInfo) -> None:
    assert (a < b) + (a == b) + (a > b) == 1
    if a <= b <= c:
        assert a <= c


def test_metadata_of_a_build_does_not_count() -> None:
    assert VersionInfo.parse("1.0.0+a.01") == VersionInfo.parse("1.0.0+b") == VersionInfo(1, 0, 0)
    assert len({VersionInfo.parse("1.0.0+a"), VersionInfo(1)}) == 1


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.2", "v1.2.3", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.3+", "1.2.3-ü", " 1.2.3",
     "1.2.3\n", "-1.2.3", "1.2.x", "١.0.0", "1." + "0" * 300],
)  # fmt: skip
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(BadInput, match=r"is no version; one looks like 1\.4\.0"):
        VersionInfo.parse(text)


def test_parts_that_cannot_be() -> None:
    with pytest.raises(BadInput, match="not negative"):
        VersionInfo(1, -1, 0)
    with pytest.raises(BadInput, match="names no pre-release"):
        VersionInfo(1, 0, 0, "rc.01")


def test_a_part_of_a_version_where_that_is_allowed() -> None:
    assert VersionInfo.parse("2", partial=True) == VersionInfo(2, 0, 0)
    assert VersionInfo.parse("2.5", partial=True) == VersionInfo(2, 5, 0)


def test_the_current_version_is_that_of_the_package() -> None:
    assert str(VersionInfo.current()) == rm_abstract.__version__


@pytest.mark.parametrize(
    ("have", "need", "compatible"),
    [
        ("1.2.3", "1.2.3", True),
        ("1.3.0", "1.2.9", True),
        ("1.2.2", "1.2.3", False),
        ("2.0.0", "1.9.0", False),
        ("1.0.0", "2.0.0", False),
        ("1.2.3-rc.1", "1.2.3", False),
        ("0.2.0", "0.1.0", True),
    ],
)
def test_compatible(have: str, need: str, compatible: bool) -> None:
    assert version(have).is_compatible_with(version(need)) is compatible


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("", ["0.0.0", "9.9.9"], ["1.0.0-rc.1"]),
        ("*", ["0.0.1"], []),
        (">=1.2, <2", ["1.2.0", "1.99.0"], ["1.1.9", "2.0.0", "2.0.0-rc.1"]),
        (">1.2.0,<=1.3.0", ["1.2.1", "1.3.0"], ["1.2.0", "1.3.1"]),
        ("1.2.3", ["1.2.3", "1.2.3+b"], ["1.2.4"]),
        ("=1.2.3", ["1.2.3"], ["1.2.4"]),
        ("!=1.2.3", ["1.2.4"], ["1.2.3"]),
        ("^1.2.3", ["1.2.3", "1.9.0"], ["1.2.2", "2.0.0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.2.2", "0.3.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4", "0.0.2"]),
        ("^0.0", ["0.0.0", "0.0.9"], ["0.1.0"]),
        ("^0", ["0.0.0", "0.9.0"], ["1.0.0"]),
        ("^1", ["1.0.0", "1.9.9"], ["2.0.0", "0.9.9"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0"]),
        ("~1.2", ["1.2.0", "1.2.9"], ["1.3.0"]),
        ("~1", ["1.0.0", "1.9.0"], ["2.0.0"]),
        ("1.2.*", ["1.2.0", "1.2.7"], ["1.3.0", "1.1.9"]),
        ("1.*", ["1.0.0", "1.9.9"], ["2.0.0"]),
        (">=1.0.0-rc.1", ["1.0.0-rc.1", "1.0.0-rc.2", "1.0.0"], ["1.0.0-beta", "1.1.0-rc.1"]),
    ],
)
def test_ranges(text: str, inside: list[str], outside: list[str]) -> None:
    wanted = VersionRange.parse(text)
    assert [one for one in inside if version(one) not in wanted] == []
    assert [one for one in outside if version(one) in wanted] == []
    assert str(VersionRange.parse(str(wanted))) == str(wanted)


@pytest.mark.parametrize("text", [">>1", "1.2.3 4", ">=", "^x", ">=1.*", "1..2"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(BadInput):
        VersionRange.parse(text)


@pytest.mark.parametrize(
    ("least", "most", "host", "said"),
    [
        (None, None, "7.0.0", ""),
        ("0.1.0", None, "0.1.0", ""),
        ("0.1.0", None, "0.9.0", ""),
        ("0.1.0", None, "0.0.9", "needs RM Abstract 0.1.0 or newer, and this is 0.0.9"),
        ("0.1.0", None, "1.0.0", "was made for RM Abstract 0"),
        ("0.1.0", "2.0.0", "1.5.0", ""),
        ("0.1.0", "2.0.0", "2.0.0", ""),
        ("0.1.0", "2.0.0", "2.0.1", "up to 2.0.0"),
        (None, "1.0.0", "0.1.0", ""),
        (None, "1.0.0", "1.0.1", "up to 1.0.0"),
    ],
)
def test_hosts_that_a_plugin_works_with(least: str | None, most: str | None, host: str, said: str) -> None:
    info = PluginInfo(
        "acme",
        VersionInfo(1, 0, 0),
        min_host_version=VersionInfo.parse(least) if least else None,
        max_host_version=VersionInfo.parse(most) if most else None,
    )
    found = info.incompatibility(VersionInfo.parse(host))
    assert found == "" if not said else said in found
    assert not said or "plugin acme 1.0.0" in found


def test_a_plugin_says_who_it_is() -> None:
    info = PluginInfo("acme", VersionInfo(1, 2, 0, "rc.1"), "Fast", "Acme Inc.", VersionInfo(0, 1), VersionInfo(2))
    assert str(info) == "acme v1.2.0-rc.1 by Acme Inc."
    assert (info.min_rm_abstract_version, info.max_rm_abstract_version) == (VersionInfo(0, 1, 0), VersionInfo(2, 0, 0))
    with pytest.raises(BadInput, match="works with no version"):
        PluginInfo("acme", VersionInfo(1), min_host_version=VersionInfo(2), max_host_version=VersionInfo(1))
    with pytest.raises(BadInput, match="needs a name"):
        PluginInfo("", VersionInfo(1))
