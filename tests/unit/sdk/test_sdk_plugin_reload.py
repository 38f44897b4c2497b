"""Hot reload: a plugin whose source has changed is loaded anew, and who runs it is not disturbed."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_support import PATIENCE, Gate, threads
from rm_abstract.backends.auto_register import ENV_PLUGIN_PACKAGES, auto_register
from rm_abstract.backends.plugin_adapter import BackendPluginAdapter, create_backend_plugin
from rm_abstract.core.backend import Backend
from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.core.plugin import BackendConfig, PluginMetadata, PluginPriority, PluginRegistry
from rm_abstract.core.registry import Origin, PluginEntry, get_registry
from rm_abstract.core.reload import HotReloader
from rm_abstract.core.resource_manager import ResourceManager

SOURCE = """
from rm_abstract.core.plugin import Plugin, PluginMetadata


class {cls}(Plugin):
    gate = None

    @classmethod
    def metadata(cls):
        return PluginMetadata("{name}", "Hot", "{version}", device_types=("npu",))

    def is_available(self):
        return True

    def prepare_resource(self, resource, config=None):
        return resource

    def execute(self, resource, inputs, **kwargs):
        if self.gate is not None:
            self.gate.pass_through()
        return "{word} " + inputs
"""


@pytest.fixture
def registry() -> PluginRegistry:
    return PluginRegistry(())


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes the module ``hot_plugins.one``, or another one."""
    package = tmp_path / "hot_plugins"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def write(word: str, *, module: str = "one", cls: str = "Hot", name: str = "hot", version: str = "1.0.0",
              more: str = "") -> Path:  # fmt: skip
        path = package / f"{module}.py"
        path.write_text(SOURCE.format(word=word, cls=cls, name=name, version=version) + more)
        return path

    yield write
    for known in [known for known in sys.modules if known.partition(".")[0] == "hot_plugins"]:
        del sys.modules[known]


def run(registry: PluginRegistry, name: str = "hot") -> str:
    answer: str = registry.get_plugin(name).execute("m", "x")
    return answer


def test_a_changed_plugin_is_loaded_anew_at_once(registry: PluginRegistry, write: Write) -> None:
    write("one")
    registry.discover_plugins("hot_plugins")
    reloader = HotReloader(registry)
    reloader.watch("hot")
    held = registry.get_plugin("hot")
    assert reloader.changed() == []
    write("two")  # of the same size, within the same second
    assert reloader.changed() == ["hot_plugins.one"]
    assert reloader.poll() == {"hot_plugins.one": ""}
    assert run(registry) == "two x"
    assert held.execute("m", "x") == "one x", "who has it keeps it"
    assert reloader.poll() == {}
    import hot_plugins.one  # type: ignore[import-not-found]

    assert hot_plugins.one.Hot is registry.get("runtime", "hot")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("this is no Python", "SyntaxError"),
        ("import no_such_driver", "No module named 'no_such_driver'"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("Hot = 3", "is no subclass of Plugin any more"),
        (SOURCE.format(cls="Hot", name="hot", version="none", word="x"), "'none' is no version"),
        (SOURCE.format(cls="Hot", name="taken", version="1.0.0", word="x"), "already is a runtime plugin named taken"),
    ],
)
def test_a_change_that_does_not_load_changes_nothing(
    registry: PluginRegistry, write: Write, source: str, message: str
) -> None:
    path = write("one")
    write("other", module="taken", cls="Taken", name="taken")
    registry.discover_plugins("hot_plugins")
    reloader = HotReloader(registry)
    before = sys.modules["hot_plugins.one"]
    path.write_text(source)
    with pytest.raises(PluginError, match=f"hot_plugins.one cannot be loaded anew, and stays as it was: .*{message}"):
        reloader.reload("hot")
    assert sys.modules["hot_plugins.one"] is before
    assert run(registry) == "one x"
    assert run(registry, "taken") == "other x"
    write("two")
    assert reloader.reload("hot") is registry.get("runtime", "hot")
    assert run(registry) == "two x"


def test_plugins_that_come_and_go_with_a_change(registry: PluginRegistry, write: Write) -> None:
    write("one", more=SOURCE.format(cls="Gone", name="gone", version="1.0.0", word="gone"))
    registry.discover_plugins("hot_plugins")
    assert registry.names() == ["gone", "hot"]
    write("one", version="1.1.0", more=SOURCE.format(cls="Come", name="come", version="1.0.0", word="come"))
    HotReloader(registry).reload("hot")
    assert registry.names() == ["come", "hot"]
    assert run(registry, "come") == "come x"
    assert registry.entry("runtime", "hot").version == "1.1.0"
    write("one", name="renamed")
    HotReloader(registry).reload_module("hot_plugins.one")
    assert registry.names() == ["renamed"]


def test_what_a_module_registers_itself_is_exchanged(write: Write) -> None:
    registry = get_registry()
    own = (
        "from rm_abstract.core.registry import get_registry\n"
        "get_registry().register(Hot)\n"
        "@lambda f: get_registry().register(f, plugin_type='step', name='hot-step', version='{version}')\n"
        "def step(text):\n    return '{version} ' + text\n"
    )
    path = write("one", more=own.format(version="1.0.0"))
    __import__("hot_plugins.one")
    try:
        assert registry.get("step", "hot-step")("x") == "1.0.0 x"
        write("two", more=own.format(version="2.0.0"))
        HotReloader().reload("hot-step", plugin_type="step")
        assert registry.get("step", "hot-step")("x") == "2.0.0 x"
        assert registry.entry("step", "hot-step").version == "2.0.0"
        assert run(registry) == "two x"
        path.write_text(path.read_text() + "raise ValueError('late')\n")
        with pytest.raises(PluginError, match="ValueError: late"):
            HotReloader().reload("hot")
        assert registry.get("step", "hot-step")("x") == "2.0.0 x"
    finally:
        HotReloader().unload("hot")
        HotReloader().unload("hot-step", plugin_type="step")


def test_running_requests_finish_on_the_old_class(registry: PluginRegistry, write: Write) -> None:
    write("one")
    registry.discover_plugins("hot_plugins")
    gate = Gate()
    gate.shut()
    old: Any = registry.get("runtime", "hot")
    old.gate = gate
    manager = ResourceManager("hot", registry=registry)
    manager.initialize()
    prepared = manager.prepare_resource("model")
    assert not manager.refresh(), "nothing has changed"
    with threads() as start:
        running = start(manager.execute, prepared, "x")
        gate.await_somebody()
        write("two")
        HotReloader(registry).reload("hot")
        assert manager.refresh()
        assert manager.execute(prepared, "x") == "two x"
        gate.open()
        assert running.result(PATIENCE) == "one x"
    manager.cleanup()


def test_a_watcher_reloads_by_itself(registry: PluginRegistry, write: Write) -> None:
    write("one")
    registry.discover_plugins("hot_plugins")
    reloader = HotReloader(registry)
    reloader.watch("hot")
    gate = Gate()
    results: list[dict[str, str]] = []
    reloader.start(0.01, after=lambda result: (results.append(result), gate.pass_through()))
    try:
        with pytest.raises(BadInput, match="watches already"):
            reloader.start()
        write("two")
        gate.await_somebody()
    finally:
        reloader.stop()
        reloader.stop()
    assert results[-1] == {"hot_plugins.one": ""}
    assert run(registry) == "two x"


def test_a_file_that_is_broken_or_gone_is_told_and_watched_further(registry: PluginRegistry, write: Write) -> None:
    path = write("one")
    registry.discover_plugins("hot_plugins")
    reloader = HotReloader(registry)
    reloader.watch("hot")
    path.unlink()
    assert reloader.poll() == {}, "an editor may be replacing it"
    path.write_text("import no_such_driver")
    (why,) = reloader.poll().values()
    assert "stays as it was" in why
    assert reloader.poll() == {}, "it is not tried again and again"
    write("two")
    assert reloader.poll() == {"hot_plugins.one": ""}
    assert run(registry) == "two x"


def test_unloading_forgets_the_module_when_nothing_of_it_is_left(registry: PluginRegistry, write: Write) -> None:
    write("one", more=SOURCE.format(cls="Second", name="second", version="1.0.0", word="second"))
    registry.discover_plugins("hot_plugins")
    reloader = HotReloader(registry)
    held = registry.get_plugin("hot")
    reloader.unload("hot")
    assert "hot_plugins.one" in sys.modules
    reloader.unload("second")
    assert "hot_plugins.one" not in sys.modules
    assert registry.names() == []
    assert held.execute("m", "x") == "one x"
    write("two")
    assert registry.discover_plugins("hot_plugins") == ["hot"]
    assert run(registry) == "two x"


def test_what_has_no_source_cannot_be_reloaded(registry: PluginRegistry) -> None:
    registry.add(PluginEntry("step", "len", Origin.REGISTERED), len)
    with pytest.raises(BadInput, match="module builtins has no source file"):
        HotReloader(registry).reload("len", plugin_type="step")
    with pytest.raises(BadInput, match="module no_such is not loaded"):
        HotReloader(registry).reload_module("no_such")


# Backends as plugins


class EchoBackend(Backend):
    """Says it again."""

    name = "echo"
    device_types = ("cpu",)

    def is_available(self) -> bool:
        return bool(self.options.get("there", True))

    def initialize(self) -> None:
        self.open = True

    def prepare_model(self, model: Any, model_config: Any = None) -> Any:
        return {"model": model, **model_config}

    def execute(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
        return self.device_id, model, inputs, kwargs

    def get_device_info(self) -> dict[str, Any]:
        return {"product": "Wall"}

    def cleanup(self) -> None:
        self.open = False


def test_a_backend_becomes_a_plugin(registry: PluginRegistry) -> None:
    plugin = create_backend_plugin(
        EchoBackend, "wall", "The wall", "1.2.0", "Acme", PluginPriority.HIGH, requires=["json", "email"]
    )
    registry.register(plugin)
    about = registry.get("runtime", "wall").metadata()
    assert about == PluginMetadata(
        "wall", "The wall", "1.2.0", "Acme", PluginPriority.HIGH, ("cpu",), ("json", "email"), "Says it again."
    )
    with ResourceManager("wall:1", registry=registry) as manager:
        active: Any = manager.active_plugin
        backend = active.backend
        assert (backend.device_id, backend.open) == (1, True)
        assert active.get_capabilities()["device"] == {"product": "Wall"}
        prepared = manager.prepare_resource("m", {"precision": "fp16", "level": 3})
        expected = (1, {"model": "m", "dtype": "fp16", "level": "3"}, "x", {"top": 5})
        assert manager.execute(prepared, "x", top=5) == expected
    assert not backend.open
    assert active.backend is not backend


@pytest.mark.parametrize(
    ("requires", "options", "available"),
    [((), {}, True), (("no_such_module",), {}, False), (("json.no_such",), {}, False), ((), {"there": False}, False)],
)
def test_a_backend_is_available_if_it_says_so_and_what_it_requires_is_there(
    requires: tuple[str, ...], options: dict[str, Any], available: bool
) -> None:
    assert create_backend_plugin(EchoBackend, requires=requires, **options)().is_available() is available


def test_an_adapter_by_itself(registry: PluginRegistry) -> None:
    adapter = BackendPluginAdapter(EchoBackend, PluginMetadata("own", "Own", "1.0.0"), device_id=4)
    assert adapter.metadata().name == "own"
    assert adapter.is_available()
    adapter.initialize()
    assert adapter.execute(adapter.prepare_resource("m", BackendConfig(max_batch_size=2)), "x") == (
        4, {"model": "m", "max_batch_size": 2}, "x", {},
    )  # fmt: skip
    adapter.cleanup()
    adapter.cleanup()
    with pytest.raises(BadInput, match="needs a backend class and its metadata"):
        BackendPluginAdapter(EchoBackend)
    with pytest.raises(BadInput, match=r"is no subclass of rm_abstract\.core\.backend\.Backend"):
        create_backend_plugin(dict)  # type: ignore[arg-type]


BACKEND = """
from rm_abstract.core.backend import Backend

class Wall(Backend):
    def is_available(self): return True
    def prepare_model(self, model, model_config=None): return model
    def execute(self, model, inputs, **kwargs): return "{word} " + inputs

class Again(Wall):
    name = "wall"
"""


def test_everything_of_a_package_is_registered(
    registry: PluginRegistry, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("one")
    path = tmp_path / "hot_plugins/wall.py"
    path.write_text(BACKEND.format(word="one"))
    monkeypatch.setenv(ENV_PLUGIN_PACKAGES, "hot_plugins, ")
    names = auto_register(registry)
    assert names == auto_register(registry) == registry.names()
    assert {"hot", "wall", "openvino", "simulated-npu"} <= set(names)
    assert run(registry, "wall") == "one x"
    assert registry.problems.keys() == {"hot_plugins.wall:Again"}
    path.write_text(BACKEND.format(word="two"))
    HotReloader(registry).reload("wall")
    assert run(registry, "wall") == "two x", "a backend is loaded anew as the plugin that it was made"
    registry.unregister("openvino")
    assert "openvino" in auto_register(registry, packages=[])


def test_initialize_discovers_what_the_environment_names(
    registry: PluginRegistry, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("one")
    monkeypatch.setenv(ENV_PLUGIN_PACKAGES, "hot_plugins")
    with pytest.raises(BadInput, match="no plugin for hot is available"):
        ResourceManager("hot", registry=registry).initialize(auto_discover=False)
    with ResourceManager("hot", registry=registry) as manager:
        assert manager.execute(manager.prepare_resource("m"), "x") == "one x"
    monkeypatch.setenv(ENV_PLUGIN_PACKAGES, "no_such_package")
    with pytest.raises(BadInput, match="package no_such_package cannot be imported"):
        ResourceManager("hot", registry=registry).initialize()
