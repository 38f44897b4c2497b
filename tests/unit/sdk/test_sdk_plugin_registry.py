"""The registry: discovery, selection, instances, versions and dependencies, whatever plugins do wrong."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plugin_support import Journal, threads, word_plugin
from rm_abstract import __version__
from rm_abstract.core.dependencies import Dependency, load_order
from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginPriority, PluginRegistry, list_plugins
from rm_abstract.core.registry import Origin, PluginEntry, get_registry
from rm_abstract.core.versions import PluginInfo, VersionInfo

PLUGIN = """
from rm_abstract.core.plugin import Plugin, PluginMetadata

class {name}(Plugin):
    @classmethod
    def metadata(cls):
        return PluginMetadata("{word}", "{word}", "1.0.0", device_types=("npu",))

    def is_available(self):
        return True

    def prepare_resource(self, resource, config=None):
        return resource
"""


@pytest.fixture
def registry() -> PluginRegistry:
    return PluginRegistry(())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of plugins on disk, with what goes wrong in packages."""
    root = tmp_path / "fleet_plugins"
    (root / "vendors").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "__main__.py").write_text("raise AssertionError('it was run')")
    (root / "one.py").write_text(PLUGIN.format(name="One", word="one"))
    (root / "broken.py").write_text("import no_such_driver")
    (root / "exits.py").write_text("raise SystemExit('no licence')")
    (root / "again.py").write_text("from fleet_plugins.one import One\n" + PLUGIN.format(name="Two", word="one"))
    (root / "liar.py").write_text(PLUGIN.format(name="Liar", word="liar").replace("return", "return 1 / 0 and"))
    (root / "old.py").write_text(
        PLUGIN.format(name="Old", word="old").replace('"1.0.0"', '"1.0.0", max_host_version="0.0.1"')
    )
    (root / "hidden.py").write_text(PLUGIN.format(name="_Base", word="base"))
    (root / "vendors/__init__.py").write_text("raise ImportError('half installed')")
    (root / "vendors2").mkdir()
    (root / "vendors2/__init__.py").write_text("")
    (root / "vendors2/three.py").write_text(PLUGIN.format(name="Three", word="three"))
    monkeypatch.syspath_prepend(tmp_path)
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "fleet_plugins"]:
        del sys.modules[name]


def test_a_package_is_searched_and_what_is_broken_is_told(registry: PluginRegistry, package: Path) -> None:
    assert registry.discover_plugins("fleet_plugins") == ["one", "three"] == registry.names()
    assert isinstance(registry.get_plugin("three"), Plugin)
    problems = registry.problems
    assert problems.keys() == {
        "fleet_plugins.broken", "fleet_plugins.exits", "fleet_plugins.vendors",
        "fleet_plugins.liar:Liar", "fleet_plugins.old:Old", "fleet_plugins.one:One",
    }  # fmt: skip
    assert "no_such_driver" in problems["fleet_plugins.broken"]
    assert problems["fleet_plugins.exits"] == "SystemExit: no licence"
    assert "works with RM Abstract up to 0.0.1" in problems["fleet_plugins.old:Old"]
    (entry,) = registry.entries("runtime", name="three")
    assert (entry.origin, entry.file) == (Origin.SCANNED, str(package / "vendors2/three.py"))
    assert registry.discover_plugins(sys.modules["fleet_plugins"]) == ["one", "three"], "again is the same"
    with pytest.raises(BadInput, match="package no_such_package cannot be imported"):
        registry.discover_plugins("no_such_package")


def test_selection_survives_plugins_that_fail(registry: PluginRegistry) -> None:
    good = word_plugin("good", priority=PluginPriority.LOW)
    registry.register(good)
    for number, failure in enumerate(("is_available", "probe")):
        registry.register(word_plugin(f"bad{number}", priority=PluginPriority.HIGHEST, fails=[failure]))

    class Unmade(word_plugin("unmade", priority=PluginPriority.HIGHEST)):  # type: ignore[misc]
        def __init__(self) -> None:
            raise OSError("no licence")

    registry.register(Unmade)
    registry.add(PluginEntry("runtime", "unimported", Origin.SCANNED, "no_such_module:X"))
    assert type(registry.auto_select("npu")) is good
    errors = {state.entry.name: state.error for state in registry.survey()}
    assert errors == {
        "bad0": "RuntimeError: the driver is a stub",
        "bad1": "",
        "good": "",
        "unimported": "plugin unimported cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        "unmade": "plugin unmade cannot be made: OSError: no licence",
    }
    errors = {state.entry.name: state.error for state in registry.survey(probe=True)}
    assert errors["bad1"] == "RuntimeError: the device does not answer"
    registry.unregister("good")
    with pytest.raises(BadInput) as raised:
        registry.auto_select("npu")
    for part in ("bad0 failed: RuntimeError: the driver is a stub", "bad1 failed: RuntimeError: the device does not",
                 "unimported failed: ", "unmade failed: "):  # fmt: skip
        assert part in str(raised.value)


@pytest.mark.parametrize("names", [("b", "a", "c"), ("c", "b", "a")])
def test_of_equal_plugins_the_first_by_name_is_selected(registry: PluginRegistry, names: tuple[str, ...]) -> None:
    for name in names:
        registry.register(word_plugin(name))
    assert registry.auto_select().metadata().name == "a"
    assert registry.auto_select("C").metadata().name == "c", "a name will do for a type"


def test_the_list_tells_of_failures_and_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = PluginRegistry()
    monkeypatch.setattr("rm_abstract.core.plugin.get_registry", lambda: registry)
    registry.register(word_plugin("good", vendor="Acme", requires=("json",)))
    registry.register(word_plugin("bad", fails=["is_available"]))
    registry.register(word_plugin("away", fails=["available"]))
    registry.add(PluginEntry("runtime", "gone", Origin.SCANNED, "no_such_module:X", version="3"))
    plugins = list_plugins()
    assert {"good", "bad", "away", "gone", "openvino", "simulated-npu"} <= plugins.keys()
    assert plugins["good"] == {
        "display_name": "Good", "version": "1.0.0", "vendor": "Acme", "description": "", "priority": 50,
        "device_types": ["npu"], "formats": [], "requires": ["json"], "depends_on": [], "available": True, "error": "",
    }  # fmt: skip
    assert plugins["bad"]["error"] == "RuntimeError: the driver is a stub"
    assert (plugins["away"]["available"], plugins["away"]["error"]) == (False, "")
    assert (plugins["gone"]["version"], plugins["gone"]["available"]) == ("3", False)
    assert "No module named" in plugins["gone"]["error"]
    only = list_plugins(available_only=True)
    assert "good" in only
    assert not {"bad", "away", "gone"} & only.keys()


def test_what_plugins_say_of_themselves_in_one_form(registry: PluginRegistry) -> None:
    registry.register(word_plugin("good", version="1.2", vendor="Acme", min_host_version="0.1"))
    registry.add(PluginEntry("runtime", "gone", Origin.SCANNED, "no_such_module:X"))
    registry.add(
        PluginEntry("extension", "ext", Origin.REGISTERED), SimpleNamespace(info=PluginInfo("ext", VersionInfo(2)))
    )
    extension, info = registry.list_plugins()
    assert extension == PluginInfo("ext", VersionInfo(2))
    assert (info.name, info.version, info.author) == ("good", VersionInfo(1, 2), "Acme")
    assert info.min_host_version == VersionInfo(0, 1)


def test_an_instance_is_shared_while_somebody_holds_it(registry: PluginRegistry) -> None:
    registry.register(word_plugin("word"))
    first = registry.get_plugin("word")
    assert registry.get_plugin("WORD") is first
    assert registry.new_plugin("word") is not first
    before = id(first), registry._instances.get((("runtime", "word"), frozenset()))
    assert before[1] is first
    del first, before
    assert len(registry._instances) == 0, "nobody holds it, so nobody keeps it"


def test_other_arguments_are_other_instances(registry: PluginRegistry) -> None:
    class Numbered(word_plugin("numbered")):  # type: ignore[misc]
        def __init__(self, device_id: int = 0) -> None:
            super().__init__()
            self.device_id = device_id

    registry.register(Numbered)
    zero, one = registry.get_plugin("numbered"), registry.get_plugin("numbered", device_id=1)
    assert zero is not one
    assert registry.get_plugin("numbered", device_id=1) is one
    with pytest.raises(PluginError, match=r"cannot be made: TypeError: .*unexpected keyword argument 'size'"):
        registry.get_plugin("numbered", size=3)


def test_many_threads_get_one_instance(registry: PluginRegistry) -> None:
    registry.register(word_plugin("word"))
    with threads() as start:
        got = [start(registry.get_plugin, "word") for _ in range(64)]
    assert len({id(one.result()) for one in got}) == 1


def test_nothing_is_imported_before_it_is_asked_for(package: Path) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(package.parent)!r})\n"
        "from rm_abstract.core.registry import Origin, PluginEntry, PluginRegistry\n"
        "registry = PluginRegistry()\n"
        "registry.add(PluginEntry('runtime', 'one', Origin.SCANNED, 'fleet_plugins.one:One'))\n"
        "registry.names(); registry.is_registered('one'); registry.entry('runtime', 'openvino')\n"
        "print('fleet_plugins.one' in sys.modules, 'rm_abstract.backends.openvino' in sys.modules)\n"
        "registry.get('runtime', 'one')\n"
        "print('fleet_plugins.one' in sys.modules, 'rm_abstract.backends.openvino' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\nTrue False\n"


def test_importing_the_package_imports_only_itself_and_what_names_need() -> None:
    code = "import sys; before = set(sys.modules); import rm_abstract; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(sdk_path())},
                          capture_output=True, text=True, check=True)  # fmt: skip
    mine = {name for name in done.stdout.split() if name.startswith("rm_")}
    assert mine == {"rm_abstract"}
    heavy = {"dataclasses", "inspect", "json", "asyncio", "subprocess", "importlib.metadata", "logging", "pydantic",
             "numpy", "yaml", "ctypes", "pathlib", "email", "socket", "ssl", "threading"}  # fmt: skip
    assert heavy & set(done.stdout.split()) == set()


def sdk_path() -> Path:
    import rm_abstract

    return Path(rm_abstract.__file__).parents[1]


def test_every_public_name_is_there() -> None:
    import rm_abstract

    assert {"Plugin", "PluginChain", "ResourceManager", "get_registry", "list_plugins"} <= set(dir(rm_abstract))
    for name in rm_abstract.__all__:
        assert getattr(rm_abstract, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Plumbing'"):
        _ = rm_abstract.Plumbing
    assert rm_abstract.get_registry() is get_registry()


def test_unregistering_what_is_in_use_leaves_it_to_its_users(registry: PluginRegistry) -> None:
    registry.register(word_plugin("word"))
    held = registry.get_plugin("word")
    registry.unregister("word")
    with pytest.raises(BadInput, match="no runtime plugin named word"):
        registry.get_plugin("word")
    held.initialize()
    assert held.execute(held.prepare_resource("model"), "x") == "word model x"
    registry.register(word_plugin("word"))
    assert registry.get_plugin("word") is not held


def test_unregistering_what_another_plugin_needs(registry: PluginRegistry) -> None:
    registry.register(word_plugin("base"))
    registry.register(word_plugin("top", depends_on=["base ^1"]))
    registry.register(lambda text: text, plugin_type="step", name="clean", depends_on=["base"])
    with pytest.raises(BadInput, match="plugin base is needed by clean, top; unregister those first"):
        registry.unregister("base")
    registry.unregister("base", force=True)
    with pytest.raises(BadInput, match=r"plugin top needs base \^1, which is not there"):
        registry.get_plugin("top")
    registry.unregister("top")


def host(change: int) -> str:
    current = VersionInfo.parse(__version__)
    return f"{current.major + change}.{current.minor}.{current.patch}"


@pytest.mark.parametrize(
    ("least", "most", "message"),
    [
        ("", "", ""),
        (__version__, __version__, ""),
        ("0.1", "", ""),
        ("", host(1), ""),
        (host(1), "", f"needs RM Abstract {host(1)} or newer"),
        ("0.0.1", "0.0.9", "up to 0.0.9"),
        ("2.0.0", "1.0.0", "works with no version"),
        ("one", "", "'one' is no version"),
    ],
)
def test_a_plugin_is_only_for_the_hosts_that_it_names(
    registry: PluginRegistry, least: str, most: str, message: str
) -> None:
    plugin = word_plugin("word", min_host_version=least, max_host_version=most)
    registry.add(PluginEntry("runtime", "word", Origin.SCANNED, "x:X"), plugin)
    if not message:
        registry.register(plugin)
        assert type(registry.get_plugin("word")) is plugin
        return
    for attempt in (lambda: registry.register(plugin), lambda: registry.get_plugin("word")):
        with pytest.raises(BadInput, match=message):
            attempt()
    with pytest.raises(BadInput, match=f"no plugin is available here.*word failed: .*{message}"):
        registry.auto_select()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("acme", ("runtime", "acme", "*")),
        ("acme >=1.2,<2", ("runtime", "acme", ">=1.2,<2")),
        ("simulated-npu^0.1", ("runtime", "simulated-npu", "^0.1")),
        ("step:clean", ("step", "clean", "*")),
        ("transform:qonnx.FoldConstants ==1.0.0", ("transform", "qonnx.FoldConstants", "==1.0.0")),
    ],
)
def test_a_dependency_is_written_like_this(text: str, parts: tuple[str, str, str]) -> None:
    dependency = Dependency.parse(text)
    assert (dependency.type, dependency.name, str(dependency.versions)) == parts
    assert Dependency.parse(str(dependency)) == dependency


@pytest.mark.parametrize("text", ["", ">=1", "a b", "a:b:c", "-x", "acme >=", "acme 1.0", "Type:x"])
def test_what_is_no_dependency(text: str) -> None:
    with pytest.raises(BadInput):
        Dependency.parse(text)


@pytest.mark.parametrize(
    ("plugins", "order"),
    [
        ({"a": []}, ["a"]),
        ({"a": ["b"], "b": ["c"], "c": []}, ["c", "b", "a"]),
        ({"a": ["c", "b"], "b": ["d"], "c": ["d"], "d": []}, ["d", "c", "b", "a"]),
        ({"a": ["b ^1.0", "c"], "b": [], "c": ["b >=0.9,<2"]}, ["b", "c", "a"]),
    ],
    ids=["alone", "row", "diamond", "versions"],
)
def test_each_plugin_comes_after_what_it_needs(
    registry: PluginRegistry, plugins: dict[str, list[str]], order: list[str]
) -> None:
    for name, needs in plugins.items():
        registry.register(word_plugin(name, depends_on=needs))
    assert [entry.name for entry in load_order(registry, "a")] == order


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ({"a": ["b"]}, "plugin a needs b, which is not there: there is no runtime plugin named b"),
        ({"a": ["b"], "b": ["step:x"]}, "plugin b needs step:x, which is not there"),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, "in a circle: b → c → b$"),
        ({"a": ["a"]}, "in a circle: a → a$"),
        ({"a": ["b >=2"], "b": []}, "plugin a needs b >=2, but version 1.0.0 is there"),
        ({"a": ["b ~1.1"], "b": []}, "plugin a needs b ~1.1, but version 1.0.0 is there"),
        ({"a": ["b >"], "b": []}, "has no valid range of versions"),
    ],
    ids=["missing", "missing below", "circle", "itself", "too old", "other minor", "bad range"],
)
def test_dependencies_that_cannot_be_met(registry: PluginRegistry, plugins: dict[str, list[str]], message: str) -> None:
    for name, needs in plugins.items():
        registry.register(word_plugin(name, depends_on=needs))
    for attempt in (lambda: load_order(registry, "a"), lambda: registry.get_plugin("a")):
        with pytest.raises(BadInput, match=message):
            attempt()
    assert {state.entry.name for state in registry.survey() if state.error} >= {"a"}


def test_a_text_in_the_place_of_a_list_of_dependencies(registry: PluginRegistry) -> None:
    registry.register(word_plugin("a", depends_on="base"))
    with pytest.raises(BadInput, match=r"depends_on is a text, but must be a list of them: \['base'\]"):
        registry.get_plugin("a")


def test_dependencies_of_other_types_are_handed_over(registry: PluginRegistry) -> None:
    def clean(text: str) -> str:
        return text.strip()

    registry.register(clean, plugin_type="step", version="2.1.0")
    registry.register(word_plugin("top", depends_on=["step:clean ^2"]))
    assert registry.get_plugin("top").dependencies == {"clean": clean}
    registry.register(word_plugin("late", depends_on=["step:clean ^3"]))
    with pytest.raises(BadInput, match=r"needs step:clean \^3, but version 2.1.0"):
        registry.get_plugin("late")


def test_what_a_plugin_can_do() -> None:
    plugin: Any = word_plugin("word", formats=("word",), extra={"capabilities": {"batch": True}})()
    capabilities = plugin.get_capabilities()
    assert {**capabilities, "limits": None} == {
        "device_types": ["npu"], "formats": ["word"], "compiles": False, "sessions": False, "batch": True,
        "limits": None,
    }  # fmt: skip
    assert capabilities["limits"]["max_batch_size"] is None
    known = PluginRegistry().get_plugin("simulated-npu").get_capabilities()
    assert (known["compiles"], known["sessions"], known["limits"]["requires_precompile"]) == (True, True, True)


def test_the_least_that_a_plugin_has() -> None:
    least: Any = type("Least", (Plugin,), {
        "metadata": classmethod(lambda cls: word_plugin("least").about),
        "is_available": lambda self: True,
        "prepare_resource": lambda self, resource, config=None: resource,
    })  # fmt: skip
    plugin = least()
    assert plugin.probe() == plugin.required_build_profiles(BackendConfig()) == []
    assert plugin.toolchain_available()
    with pytest.raises(BadInput, match="plugin least has no sessions; use execute"):
        plugin.execute("model", "x")


def test_registering_and_reading_from_many_threads(registry: PluginRegistry) -> None:
    journal = Journal()

    def churn(number: int) -> None:
        for turn in range(20):
            registry.register(word_plugin(f"p{number}", journal), replace=True)
            assert registry.get_plugin(f"p{number}").metadata().name == f"p{number}"
            registry.names()
            registry.survey()
            if turn % 2:
                registry.unregister(f"p{number}")

    with threads(4) as start:
        for done in [start(churn, number) for number in range(4)]:
            done.result()
    assert registry.names() == []
