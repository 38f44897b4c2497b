"""What a source file offers is read from its text, and is what its import registers."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from discovery_support import fresh_modules
from rm_abstract.core.registry import get_registry
from rm_abstract.discovery.manager import reset_plugin_system
from rm_abstract.discovery.source import check_facts, plain, read_classes, read_plugins

HEAD = "from rm_abstract.discovery.decorators import transform, kernel, backend, step\n"

READ = {
    "all that a decorator may say": (
        """
        @transform(name="Expand", stage="topology_opt", description="what it does", version="1.2.3", cost=2)
        class ExpandNorms:
            def apply(self, model): ...
        """,
        [["transform", "Expand", "ExpandNorms", "1.2.3",
          {"stage": "topology_opt", "description": "what it does", "cost": 2}]],
    ),
    "no parentheses": (
        """
        @kernel
        class LayerNorm: ...

        @step
        def cleanup(model, config): ...
        """,
        [["kernel", "LayerNorm", "LayerNorm", "", {}], ["step", "cleanup", "cleanup", "", {}]],
    ),
    "a kernel and its backends": (
        """
        @backend(name="LayerNormHLS", kernel="LayerNorm", backend_type="hls")
        class Hls: ...

        @backend(kernel="LayerNorm", backend_type="rtl", tags=("a", "b"))
        class LayerNormRTL: ...
        """,
        [["backend", "LayerNormHLS", "Hls", "", {"kernel": "LayerNorm", "backend_type": "hls"}],
         ["backend", "LayerNormRTL", "LayerNormRTL", "",
          {"kernel": "LayerNorm", "backend_type": "rtl", "tags": ["a", "b"]}]],
    ),
    "names of literals": (
        """
        STAGE = "cleanup"
        @transform(stage=STAGE, limits={"rows": [1, 2]})
        class Clean:
            def apply(self, model): ...
        """,
        [["transform", "Clean", "Clean", "", {"stage": "cleanup", "limits": {"rows": [1, 2]}}]],
    ),
    "two of them on one class, among others": (
        """
        import functools
        @functools.total_ordering
        @kernel(name="A")
        @kernel(name="B")
        class Both:
            def __lt__(self, other): return True
        """,
        [["kernel", "A", "Both", "", {}], ["kernel", "B", "Both", "", {}]],
    ),
    "another name for the decorator": (
        """
        import rm_abstract.discovery.decorators as d
        from rm_abstract.discovery.decorators import transform as t
        @d.kernel(name="K")
        class K: ...
        @t(name="T")
        class T:
            def apply(self, model): ...
        """,
        [["kernel", "K", "K", "", {}], ["transform", "T", "T", "", {}]],
    ),
    "text that looks like one": (
        '''
        """
        @transform(name="Example")
        class Example: ...
        """
        # @kernel
        def transformed(): ...
        ''',
        [],
    ),
    "decorators of the same name from elsewhere": (
        """
        from contextlib import contextmanager as step
        @step
        def cleanup(): yield
        """,
        [],
    ),
}  # fmt: skip

DYNAMIC = {
    "inside of a condition": "if len('x'):\n    @kernel\n    class K: ...\n",
    "inside of a try": "try:\n    import json\nexcept ImportError:\n    pass\nelse:\n    @kernel\n    class K: ...\n",
    "in a class": "class Outer:\n    @kernel\n    class K: ...\n",
    "a computed name": "@kernel(name='K' + str(1))\nclass K: ...\n",
    "arguments from elsewhere": "said = dict(name='K')\n@kernel(**said)\nclass K: ...\n",
    "a name that is assigned again": "N = 'a'\nN = N + 'b'\n@kernel(name=N)\nclass K: ...\n",
    "a call": "from rm_abstract.core.registry import get_registry\nclass K: ...\n"
    "get_registry().register(K, plugin_type='kernel')\n",
    "a call of a variable": "from rm_abstract.core.registry import get_registry\nclass K: ...\n"
    "registry = get_registry()\nregistry.register(K, plugin_type='kernel')\n",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    reset_plugin_system()
    monkeypatch.syspath_prepend(str(tmp_path))
    with fresh_modules("discovered"):
        yield
    reset_plugin_system()


def registered(directory: Path, source: str) -> list[list[Any]]:
    """What the import registers, in the form of what is read."""
    (directory / "discovered.py").write_text(source)
    __import__("discovered")
    return [
        [e.type, e.name, e.location.removeprefix("discovered:"), e.version, plain(e.attributes)]
        for e in get_registry().entries()
        if e.location.startswith("discovered:")
    ]


@pytest.mark.parametrize("case", READ)
def test_what_is_read_is_what_the_import_registers(case: str, tmp_path: Path) -> None:
    text, expected = READ[case]
    source = HEAD + dedent(text)
    facts = read_plugins(source.encode(), "discovered")
    assert facts.get("plugins", []) == expected
    assert sorted(expected) == sorted(registered(tmp_path, source))
    assert check_facts(facts) == facts


@pytest.mark.parametrize("case", DYNAMIC)
def test_where_the_text_does_not_tell_the_import_does(case: str, tmp_path: Path) -> None:
    source = HEAD + DYNAMIC[case]
    assert read_plugins(source.encode(), "discovered") == {"dynamic": True}
    assert [each[0] for each in registered(tmp_path, source)] == ["kernel"]


@pytest.mark.parametrize(
    "source",
    [
        b"import atexit\nfrom rm_abstract import Plugin\natexit.register(print)\n",
        b"from functools import singledispatch\nfrom rm_abstract import Plugin\n"
        b"@singledispatch\ndef show(x): ...\n@show.register\ndef _(x: int): ...\n",
        b"from rm_abstract import Plugin\ndef later():\n    from rm_abstract.core.registry import get_registry\n"
        b"    get_registry().register(1)\n",
    ],
)
def test_what_registers_elsewhere_or_later_is_not_imported(source: bytes) -> None:
    assert read_plugins(source, "discovered") == {}


def test_a_file_that_does_not_name_us_is_not_even_understood() -> None:
    assert read_plugins(b"this is ( no Python", "discovered") == {}


def test_a_file_that_is_no_python_says_so() -> None:
    with pytest.raises(SyntaxError):
        read_plugins(b"import rm_abstract\n(", "discovered")


def test_bases_are_full_names() -> None:
    source = dedent("""
        import a.b
        from .base import Base as Other
        from ..top import Top
        from x import *

        class One(a.b.C, Other): ...
        class Two(One, Top, Unknown, metaclass=M): ...
        def step_one(): ...
        async def coroutine(): ...
    """)
    assert read_classes(source.encode(), "pkg.sub.mod") == {
        "classes": {"One": ["a.b.C", "pkg.sub.base.Base"], "Two": ["pkg.sub.mod.One", "pkg.top.Top"]},
        "functions": ["step_one"],
        "imports": {"Other": "pkg.sub.base.Base", "Top": "pkg.top.Top"},
    }
    relative = read_classes(b"from .base import Base\nclass A(Base): ...", "pkg.sub", package=True)
    assert relative == {"classes": {"A": ["pkg.sub.base.Base"]}, "imports": {"Base": "pkg.sub.base.Base"}}
    assert check_facts(relative) == relative


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", {"dynamic": False}, {"dynamic": True, "plugins": []}, {"other": 1}, {"plugins": {}},
        {"plugins": [["transform", "A", "A", ""]]}, {"plugins": [["transform", "", "A", "", {}]]},
        {"plugins": [["transform", "A", "os;system", "", {}]]}, {"plugins": [["transform", "A", "A", 1, {}]]},
        {"plugins": [["transform", "A", "A", "", []]]}, {"classes": {"A": "x"}}, {"classes": {"A b": []}},
        {"functions": [1]}, {"imports": {"A": "os;system"}},
        {"imports": []}, {"error": "x"},
    ],
)  # fmt: skip
def test_facts_of_another_form_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="does not describe"):
        check_facts(value)


def test_what_json_has_not_is_refused() -> None:
    assert plain({"a": (1, [2.5, None, True])}) == {"a": [1, [2.5, None, True]]}
    for value in ({1, 2}, {1: 2}, b"x", object()):
        with pytest.raises(ValueError, match="cannot be written"):
            plain(value)
