"""The manager: what is discovered in each mode, for how long that holds, and what it says of itself."""

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from discovery_support import fresh_modules, imports, opened_files, transform, write
from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.core.registry import Origin, get_registry
from rm_abstract.discovery import index as index_module
from rm_abstract.discovery.collections import backends, kernels, steps, transforms
from rm_abstract.discovery.config import DiscoveryConfig, Mode
from rm_abstract.discovery.decorators import kernel, step
from rm_abstract.discovery.decorators import transform as transform_decorator
from rm_abstract.discovery.manager import PluginManager, get_plugin_manager, reset_plugin_system

KERNELS = """
    from rm_abstract.discovery.decorators import backend, kernel, step

    @kernel
    class LayerNorm: ...

    @backend(name="LayerNormHLS", kernel="LayerNorm", backend_type="hls")
    class Hls: ...

    @backend(name="LayerNormRTL", kernel="LayerNorm", backend_type="rtl")
    class Rtl: ...

    @step
    def cleanup(model, config):
        return [*model, config]
    """


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    reset_plugin_system()
    with fresh_modules("pkg", "rm_plugins_", "single"):
        yield
    reset_plugin_system()


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "imported"


@pytest.fixture
def package(tmp_path: Path, note: Path) -> Path:
    files = {"__init__.py": "", "expand.py": transform("Expand"), "deep/__init__.py": "", "deep/norm.py": KERNELS}
    return write(tmp_path / "pkg", files, imported=note)


@pytest.fixture
def manager(package: Path) -> Iterator[PluginManager]:
    manager = PluginManager(DiscoveryConfig(packages=("pkg",)))
    yield manager
    manager.close()


# Finding


def test_plugins_are_found_without_being_imported(manager: PluginManager, note: Path) -> None:
    found = {
        (e.type, e.name): (e.origin, e.location) for e in manager.discover_plugins(["full"], ["rm_abstract"]).entries
        if e.origin == Origin.SCANNED
    }  # fmt: skip
    assert found == {
        ("transform", "Expand"): (Origin.SCANNED, "pkg.expand:Expand"),
        ("kernel", "LayerNorm"): (Origin.SCANNED, "pkg.deep.norm:LayerNorm"),
        ("backend", "LayerNormHLS"): (Origin.SCANNED, "pkg.deep.norm:Hls"),
        ("backend", "LayerNormRTL"): (Origin.SCANNED, "pkg.deep.norm:Rtl"),
        ("step", "cleanup"): (Origin.SCANNED, "pkg.deep.norm:cleanup"),
    }
    assert imports(note) == []


def test_a_plugin_is_imported_when_it_is_used_and_is_the_one_that_its_module_has(
    manager: PluginManager, note: Path
) -> None:
    manager.discover_plugins()
    found = manager.get("transform", "Expand")
    assert imports(note) == ["pkg", "pkg.expand"]
    assert found is sys.modules["pkg.expand"].Expand
    entry = get_registry().entry("transform", "Expand")
    assert (entry.origin, entry.file) == (Origin.SCANNED, str(manager.config and Path("pkg/expand.py").absolute()))


def test_an_import_before_or_after_discovery_is_the_same_plugin(manager: PluginManager) -> None:
    import pkg.expand  # type: ignore[import-not-found]

    manager.discover_plugins()
    import pkg.deep.norm  # type: ignore[import-not-found]

    assert manager.get("transform", "Expand") is pkg.expand.Expand
    assert manager.get("backend", "LayerNormHLS") is pkg.deep.norm.Hls
    assert manager.discover_plugins().problems == {}


@pytest.mark.parametrize("place", ["on the path", "elsewhere", "a package elsewhere"])
def test_directories(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "some-where" / "plug-ins"
    files = {"one.py": transform("One"), "two.py": "from .one import One as Base\n" + dedent(transform("Two"))}
    if place == "on the path":
        files["two.py"] = files["two.py"].replace(".one", "one")
        monkeypatch.syspath_prepend(str(directory))
    if place == "a package elsewhere":
        directory = tmp_path / "some-where" / "deeper"
        files["__init__.py"] = "NAME = 1\n"
        files["two.py"] += "from . import NAME\n"
    write(directory, files)
    manager = PluginManager(DiscoveryConfig(paths=(str(directory),)))
    manager.discover_plugins()
    with fresh_modules("one", "two"):
        assert manager.get("transform", "Two").__name__ == "Two"
        assert manager.get("transform", "One")().apply([]) == (["One"], False)
        assert (
            get_registry()
            .entry("transform", "One")
            .location.startswith("one:" if place == "on the path" else "rm_plugins_")
        )
        expected = Path(sys.modules[get_registry().get("transform", "One").__module__].__file__ or "")
        assert expected == directory / "one.py"


def test_files_that_are_no_modules_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "pkg", {name: transform("T") for name in ("a.b.py", ".hidden.py", "__main__.py", "t.txt")})
    write(
        tmp_path / "pkg", {"__pycache__/x.py": transform("T"), ".git/y.py": transform("T"), "_own.py": transform("O")}
    )
    (tmp_path / "pkg" / "loop").symlink_to(tmp_path / "pkg")
    (tmp_path / "pkg" / "gone.py").symlink_to(tmp_path / "nowhere")
    manager = PluginManager(DiscoveryConfig(paths=(str(tmp_path / "pkg"),), frameworks=("rm_abstract",)))
    found = manager.discover_plugins(types=["transform"])
    assert [entry.name for entry in found] == ["O"]


def test_one_module_is_a_place_too(tmp_path: Path) -> None:
    write(tmp_path, {"single.py": transform("Single")})
    manager = PluginManager(DiscoveryConfig(packages=("single",)))
    assert [e.location for e in manager.discover_plugins(types=["transform"], frameworks=["rm_abstract"])] == [
        "single:Single"
    ]


def test_what_only_an_import_can_tell_is_imported_once_and_remembered(tmp_path: Path, note: Path) -> None:
    dynamic = """
        from rm_abstract.discovery.decorators import kernel
        for number in range(3):
            @kernel(name=f"Kernel{number}", number=number)
            class K: ...
        """
    # All three are called K in the module; their names differ, and what is found under each is the class of that name.
    named = dynamic.replace("class K: ...", "class K: ...\n            globals()[f'K{number}'] = K")
    write(tmp_path / "pkg", {"dyn.py": named, "volatile.py": "from rm_abstract.discovery.decorators import kernel\n"
          "kernel(name='Set', values={1})(type('S', (), {}))\nregistry = kernel\nregistry.register = id\n"
          "registry.register(1)\n"}, imported=note)  # fmt: skip
    config = DiscoveryConfig(paths=(str(tmp_path / "pkg"),), frameworks=("rm_abstract",))
    first = PluginManager(config)
    assert [e.name for e in first.discover_plugins(types=["kernel"])] == ["Kernel0", "Kernel1", "Kernel2", "Set"]
    assert [name.rpartition(".")[2] for name in imports(note)] == ["dyn", "volatile"]
    first.discover_plugins()
    first.clear_cache()
    first.discover_plugins()
    assert len(imports(note)) == 2


def test_a_module_that_fails_is_told_and_takes_no_other_down(
    manager: PluginManager, package: Path, note: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(package, {
        "fails.py": "from rm_abstract.discovery.decorators import kernel\nif 1:\n    @kernel\n    class K: ...\n1/0\n",
        "ends.py": "from rm_abstract.discovery.decorators import kernel\n"
        "if 1:\n    @kernel\n    class E: ...\nexit()\n",
        "wrong.py": "import rm_abstract\n)\n",
        "again.py": transform("Expand"),
        "late.py": transform("Late") + "\n        raise ValueError('not today')\n",
    })  # fmt: skip
    found = manager.discover_plugins()
    assert {Path(what).name: why for what, why in found.problems.items()} == {
        "fails.py": "ZeroDivisionError: division by zero",
        "ends.py": "SystemExit: None",
        "wrong.py": "SyntaxError: unmatched ')' (<unknown>, line 2)",
        "expand.py": "another transform is named Expand",
    }
    assert "wrong.py is left out" in caplog.text
    assert manager.get("step", "cleanup")([], 1) == [1]
    with pytest.raises(BadInput, match="cannot be imported: ValueError: not today"):
        manager.get("transform", "Late")
    assert manager.health_check()["status"] == "degraded"


def test_a_package_that_is_missing_is_told_and_found_once_it_is_there(tmp_path: Path) -> None:
    manager = PluginManager(DiscoveryConfig(packages=("pkg.deep", "pkg")))
    problems = manager.discover_plugins().problems
    assert problems == {name: f"there is no package or module {name} on sys.path" for name in ("pkg", "pkg.deep")}
    write(tmp_path / "pkg", {"__init__.py": "", "deep/norm.py": transform("T")})
    manager.clear_cache()
    assert manager.discover_plugins().problems == {}
    assert manager.get("transform", "T").__module__ == "pkg.deep.norm"


# How long it holds


def counted(manager: PluginManager) -> tuple[int, int]:
    stats = manager.get_performance_stats()
    return stats["cache_hits"], stats["cache_misses"]


def test_a_second_discovery_looks_at_nothing(
    manager: PluginManager, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "RACE_NS", -(10**15))  # files are believed however young they are
    first = manager.discover_plugins(["full"])
    with opened_files(package) as opened:
        assert manager.discover_plugins("full") is first
        assert manager.discover_plugins() is first
    assert opened == []
    assert counted(manager) == (2, 1)
    assert manager.discover_plugins(types=["step"]) is not first, "another question"
    assert counted(manager) == (2, 2)


@pytest.mark.parametrize("watched", [True, False])
def test_a_change_of_files_is_seen_at_once(
    manager: PluginManager, package: Path, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the kernel tells of changes or all files have to be looked at."""
    if not watched:
        monkeypatch.setattr(manager._finder._watch, "start", lambda _directories: None)
    names = lambda: [e.name for e in manager.discover_plugins(types=["transform"], frameworks=["rm_abstract"])]  # noqa: E731
    assert names() == names() == ["Expand"]
    assert manager._finder._watch.quiet() is watched
    write(package, {"more.py": transform("More")})
    assert names() == ["Expand", "More"]
    write(package, {"new/__init__.py": "", "new/x.py": transform("X")})
    assert names() == names() == ["Expand", "More", "X"]
    write(package, {"new/x.py": transform("Y")})
    assert names() == ["Expand", "More", "Y"]
    (package / "more.py").unlink()
    assert names() == ["Expand", "Y"]
    with pytest.raises(BadInput, match="no transform plugin named More"):
        manager.get("transform", "More")


def test_a_directory_that_is_made_anew_is_watched_anew(manager: PluginManager, package: Path) -> None:
    names = lambda: [e.name for e in manager.discover_plugins(types=["transform"], frameworks=["rm_abstract"])]  # noqa: E731
    assert names() == names() == ["Expand"]
    package.rename(package.parent / "before")
    write(package, {"__init__.py": "", "new.py": transform("New")})
    assert names() == names() == ["New"]
    assert manager._finder._watch.quiet()
    write(package, {"new.py": transform("Newer")})
    assert names() == ["Newer"]


def test_a_change_that_is_none_is_a_hit(manager: PluginManager, package: Path) -> None:
    first = manager.discover_plugins()
    manager.discover_plugins()
    (package / "note.txt").write_text("x")
    os.utime(package / "expand.py")
    assert manager.discover_plugins() is first


def test_without_a_time_to_live_nothing_holds(package: Path) -> None:
    manager = PluginManager(DiscoveryConfig(packages=("pkg",), cache_ttl=0))
    assert manager.discover_plugins() is not manager.discover_plugins()
    assert counted(manager) == (0, 2)


def test_a_plugin_that_is_loaded_stays_when_its_file_goes(manager: PluginManager, package: Path) -> None:
    manager.discover_plugins()
    held = manager.get("transform", "Expand")
    (package / "expand.py").unlink()
    manager.discover_plugins()
    assert manager.get("transform", "Expand") is held


def test_a_child_process_does_not_take_the_parents_events(manager: PluginManager, package: Path) -> None:
    manager.discover_plugins()
    manager.discover_plugins()
    child = os.fork()
    if child == 0:
        quiet = manager._finder._watch.quiet()
        os._exit(1 if quiet else 0)
    assert os.waitpid(child, 0)[1] == 0
    write(package, {"more.py": transform("More")})
    assert "More" in transforms_of(manager)


def transforms_of(manager: PluginManager) -> list[str]:
    return [entry.name for entry in manager.discover_plugins(types=["transform"])]


# Modes


def test_the_mode_selective_registers_what_is_asked_for(manager: PluginManager) -> None:
    found = manager.discover_plugins(["selective"], types=["kernel", "step"])
    assert [entry.name for entry in found] == ["LayerNorm", "cleanup"]
    assert get_registry().names("transform") == []
    manager.discover_plugins(["selective"], types=["transform"], frameworks=["rm_abstract"])
    assert get_registry().names("transform") == ["Expand"]
    assert get_registry().names("kernel") == ["LayerNorm"], "what was found before stays"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modes": ["ful"]}, "no discovery mode 'ful'; there are full, blueprint, selective"),
        ({"modes": ["full", "selective"]}, "exclude each other"),
        ({"modes": "selective"}, "needs frameworks or types"),
        ({"modes": "blueprint"}, "needs a blueprint"),
        ({"frameworks": ["qonx"]}, "no framework qonx; did you mean qonnx"),
    ],
)
def test_arguments_that_cannot_be_understood(manager: PluginManager, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        manager.discover_plugins(**arguments)  # type: ignore[arg-type]


# Collections


@pytest.fixture
def settings(tmp_path: Path, package: Path) -> Path:
    """A configuration of the working directory."""
    path = tmp_path / ".rm_abstract" / "config.yaml"
    path.parent.mkdir()
    path.write_text("plugin_system:\n  packages: [pkg]\n")
    return path


@pytest.mark.usefixtures("settings")
def test_plugins_are_attributes(note: Path) -> None:
    assert transforms.Expand().apply([]) == (["Expand"], False)
    assert imports(note) == ["pkg", "pkg.expand"]
    assert steps.cleanup is steps["cleanup"]
    assert kernels.list_plugins() == list(kernels) == ["LayerNorm"]
    assert backends.list_plugins(kernel="LayerNorm", backend_type="rtl") == ["LayerNormRTL"]
    assert [e.name for e in get_plugin_manager().backends_of("LayerNorm")] == ["LayerNormHLS", "LayerNormRTL"]
    assert [e.name for e in get_plugin_manager().backends_of("LayerNorm", "hls")] == ["LayerNormHLS"]
    assert {"Expand", "qonnx", "list_plugins"} <= set(dir(transforms))
    assert "LayerNorm" in kernels
    assert "Expand" not in kernels
    assert len(kernels) == 1
    assert repr(kernels) == "<kernels: 1 plugins>"


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Expnad", "there is no transform named Expnad; did you mean Expand?"),
        ("finn", "the framework finn is not installed"),
        ("_private", "there is no transform named _private"),
    ],
)
def test_an_attribute_that_is_none_says_what_is_near(name: str, message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        getattr(transforms, name)
    assert not hasattr(transforms, name)


def test_a_collection_of_nothing_says_so() -> None:
    with pytest.raises(AttributeError, match="no step named x; there are none"):
        steps.x  # noqa: B018


@pytest.mark.usefixtures("settings")
def test_a_plugin_that_cannot_be_imported_is_not_one_that_is_missing(package: Path) -> None:
    write(package, {"bad.py": transform("Bad") + "\n        import does_not_exist\n"})
    with pytest.raises(BadInput, match="No module named 'does_not_exist'"):
        transforms.Bad  # noqa: B018


def test_what_a_script_defines_is_there_at_once() -> None:
    @transform_decorator(name="Mine")
    class Mine:
        def apply(self, model: list[int]) -> tuple[list[int], bool]:
            return model, False

    @step
    def mine(model: int, config: int) -> int:
        return model + config

    assert transforms.Mine is Mine
    assert steps.mine(1, 2) == 3
    kernel(name="Twice")(type("K", (), {}))
    with pytest.raises(ValueError, match="there already is a kernel plugin named Twice"):
        kernel(name="Twice")(type("K", (), {}))
    with pytest.raises(BadInput, match="no transform: it has to be a class with a method apply"):
        transform_decorator(mine)


# Instances


def slow(name: str = "Slow", base: str = "") -> str:
    return f"""
        from rm_abstract.discovery.decorators import kernel

        @kernel
        class {name}{base}:
            made = []

            def __init__(self):
                import threading
                type(self).made.append(threading.get_ident())
                threading.Event().wait(0.05)
        """


def test_there_is_one_instance_however_many_ask_at_once(manager: PluginManager, package: Path) -> None:
    write(package, {"slow.py": slow()})
    start = threading.Barrier(16)
    got: list[object] = []

    def ask() -> None:
        start.wait(60)
        got.append(manager.get_instance("kernel", "Slow"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 16
    assert len({id(each) for each in got}) == 1
    assert len(manager.get("kernel", "Slow").made) == 1
    assert manager.get_performance_stats()["instance_count"] == 1
    got.clear()
    gc.collect()
    assert manager.get_performance_stats()["instance_count"] == 0, "nobody holds it"
    manager.get_instance("kernel", "Slow")
    assert len(manager.get("kernel", "Slow").made) == 2


def test_instances_of_other_kinds(manager: PluginManager, package: Path) -> None:
    write(package, {
        "slots.py": "from rm_abstract.discovery.decorators import kernel\n@kernel\nclass Slots:\n    __slots__ = ()\n",
        "wants.py": "from rm_abstract.discovery.decorators import kernel\n@kernel\nclass Wants:\n"
        "    def __init__(self, size): ...\n",
    })  # fmt: skip
    assert manager.get_instance("step", "cleanup") is manager.get("step", "cleanup")
    assert type(manager.get_instance("kernel", "Slots")).__name__ == "Slots"
    with pytest.raises(PluginError, match="kernel Wants cannot be made: TypeError"):
        manager.get_instance("kernel", "Wants")
    assert manager.get_instance("runtime", "simulated-npu").metadata().name == "simulated-npu"
    held = manager.get_instance("kernel", "LayerNorm")
    assert manager.get_instance("kernel", "LayerNorm") is held
    manager.clear_cache()
    assert manager.get_instance("kernel", "LayerNorm") is not held


# Figures and health


def test_figures(manager: PluginManager) -> None:
    manager.discover_plugins()
    for _ in range(3):
        manager.discover_plugins()
    stats = manager.get_performance_stats()
    assert stats["cache_hit_rate"] == 0.75
    assert stats["discovery_time_ms"] > 0
    assert stats["memory_usage_mb"] >= 0
    assert stats["plugin_count"] == len(get_registry().entries()) == sum(stats["plugins"].values())
    assert stats["plugins"]["backend"] == 2
    assert stats["files_understood"] == 4
    assert "adapters_ms" not in stats


def test_times_of_adapters_are_kept_where_that_is_asked_for(package: Path) -> None:
    manager = PluginManager(DiscoveryConfig(packages=("pkg",), performance_tracking=True))
    manager.discover_plugins()
    times = manager.get_performance_stats()["adapters_ms"]
    assert times.keys() == {"rm_abstract", "qonnx", "finn"}
    assert times["rm_abstract"] > 0


def test_health(package: Path, tmp_path: Path) -> None:
    good = PluginManager(DiscoveryConfig(packages=("pkg",)))
    good.discover_plugins()
    health = good.health_check()
    assert health["status"] == "healthy"
    assert health["cache_available"] is True
    assert health["frameworks_available"] == 2
    assert health["frameworks"] == {"rm_abstract": True, "qonnx": True, "finn": False}
    assert health["redis_available"] is None
    (tmp_path / "file").write_text("")
    unwritable = PluginManager(DiscoveryConfig(cache_dir=str(tmp_path / "file" / "x")))
    assert unwritable.health_check()["status"] == "degraded"
    assert unwritable.health_check()["cache_available"] is False
    wanting = PluginManager(DiscoveryConfig(frameworks=("finn",)))
    assert wanting.health_check()["problems"] == {"framework finn": "it is configured and not installed"}


def test_debug_mode_tells_and_ends(manager: PluginManager, caplog: pytest.LogCaptureFixture) -> None:
    manager.discover_plugins()
    assert caplog.text == ""
    manager.set_debug_mode(True)
    manager.discover_plugins(types=["step"])
    assert "discovery in the mode full took" in caplog.text
    manager.set_debug_mode(False)
    caplog.clear()
    manager.discover_plugins(types=["kernel"])
    assert caplog.text == ""
    assert logging.getLogger("rm_abstract.plugin").level == logging.NOTSET


def test_reset_forgets_what_tests_have_registered(package: Path) -> None:
    kernel(name="Test")(type("Test", (), {}))
    before = get_plugin_manager()
    before.add_package("pkg")
    assert kernels.list_plugins() == ["LayerNorm", "Test"]
    reset_plugin_system()
    assert kernels.list_plugins() == []
    assert get_plugin_manager() is not before
    assert "simulated-npu" in get_registry().names()
    kernel(name="Test")(type("Test", (), {}))


def test_many_threads_discover_while_files_change(
    manager: PluginManager, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "RACE_NS", 0)
    stop, failures = threading.Event(), []

    def work() -> None:
        try:
            while not stop.is_set():
                assert "Expand" in {entry.name for entry in manager.discover_plugins()}
                manager.get_instance("kernel", "LayerNorm")
                manager.clear_cache()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number in range(30):
        write(package, {f"more{number}.py": transform(f"More{number}")})
        transforms_of(manager)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(transforms_of(manager)) == 31 + len([n for n in get_registry().names("transform") if "." in n])


def test_modes_are_words() -> None:
    assert [str(mode) for mode in Mode] == ["full", "blueprint", "selective"]
