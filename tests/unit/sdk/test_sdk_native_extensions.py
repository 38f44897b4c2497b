"""Plugins that are built as objects: whole in the registry or not at all, and out again with all that they brought."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.core.registry import PluginRegistry
from rm_abstract.core.versions import PluginInfo, VersionInfo
from rm_abstract.plugins import CustomLayer, CustomOpBuilder, CustomPlugin, PluginBuilder


def operation(name: str) -> Any:
    return CustomOpBuilder(name, 1).forward(lambda inputs: inputs[0]).build()


def extension(name: str = "math", *operations: str, layers: tuple[str, ...] = ()) -> CustomPlugin:
    plugin = PluginBuilder().name(name).version("1.0.0").build()
    plugin.set_custom_operations_fn(lambda: [operation(one) for one in operations])
    plugin.set_custom_layers_fn(lambda: [CustomLayer(one) for one in layers])
    return plugin


@pytest.fixture
def registry() -> PluginRegistry:
    return PluginRegistry(())


def content(registry: PluginRegistry) -> set[tuple[str, str]]:
    return {(entry.type, entry.name) for entry in registry.entries() if entry.origin == "registered"}


def test_a_builder_says_it_all() -> None:
    plugin = (
        PluginBuilder()
        .name("math")
        .version(VersionInfo(1, 2, 3))
        .description("Sums")
        .author("Ann")
        .min_rm_abstract_version("0.1.0")
        .max_rm_abstract_version(VersionInfo(3, 0, 0))
        .extra(home="here")
        .extra(colour="red")
        .build()
    )
    said = {"home": "here", "colour": "red"}
    assert plugin.info == PluginInfo(
        "math", VersionInfo(1, 2, 3), "Sums", "Ann", VersionInfo(0, 1, 0), VersionInfo(3, 0, 0), said
    )
    assert plugin.name == "math"
    assert repr(plugin) == "<CustomPlugin math v1.2.3 by Ann>"


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        (lambda: PluginBuilder().version("1.0.0").build(), "a plugin needs a name"),
        (lambda: PluginBuilder().name("x").build(), "a plugin needs a version"),
        (lambda: PluginBuilder().version("one"), "'one' is no version"),
        (lambda: PluginBuilder().min_host_version("2.0.0").max_host_version("1.0.0"), "works with no version"),
    ],
)
def test_what_cannot_be_built(builder: Callable[[], object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        builder()


def test_in_and_out_again(registry: PluginRegistry) -> None:
    plugin = extension("math", "square", "cube", layers=("dense",))
    calls: list[tuple[str, Any]] = []
    plugin.set_initialize_fn(lambda given: calls.append(("initialize", given)))
    plugin.set_cleanup_fn(lambda given: calls.append(("cleanup", given)))
    assert registry.register(plugin) is plugin
    assert calls == [("initialize", registry)]
    assert content(registry) == {
        ("extension", "math"), ("operation", "square"), ("operation", "cube"), ("layer", "dense"),
    }  # fmt: skip
    assert registry.is_registered("math")
    assert registry.get_plugin("math") is plugin
    assert registry.get("operation", "square")(3) == 3
    assert [str(info) for info in registry.list_plugins()] == ["math v1.0.0"]
    assert registry.register(plugin) is plugin  # once more is no conflict, and does not initialize again
    registry.unregister("math")
    assert calls == [("initialize", registry), ("cleanup", registry)]
    assert content(registry) == set()
    assert not registry.is_registered("math")
    with pytest.raises(BadInput, match="no runtime plugin named math"):
        registry.get_plugin("math")


def test_what_initialize_registers_goes_with_the_plugin(registry: PluginRegistry) -> None:
    plugin = extension("math")

    def initialize(given: PluginRegistry) -> None:
        given.register(operation("early"), plugin_type="operation", name="early")
        given.register(operation("late"), plugin_type="operation", name="late")

    plugin.set_initialize_fn(initialize)
    registry.register(plugin)
    assert content(registry) == {("extension", "math"), ("operation", "early"), ("operation", "late")}
    registry.unregister("math")
    assert content(registry) == set()


def test_a_plugin_registers_no_other_while_it_initializes(registry: PluginRegistry) -> None:
    plugin = extension("math")
    plugin.set_initialize_fn(lambda given: given.register(extension("inner", "square")))
    with pytest.raises(PluginError, match="plugin inner is registered while math is initialized; register it before"):
        registry.register(plugin)
    assert content(registry) == set()
    registry.register(extension("inner", "square"))


def fail(*_: Any) -> Any:
    raise RuntimeError("no")


def leave(*_: Any) -> Any:
    raise SystemExit(3)


@pytest.mark.parametrize("how", [fail, leave])
def test_an_initialize_that_fails_leaves_nothing(registry: PluginRegistry, how: Callable[..., Any]) -> None:
    plugin = extension("math", "square")
    cleaned: list[Any] = []
    plugin.set_cleanup_fn(cleaned.append)

    def initialize(given: PluginRegistry) -> None:
        given.register(operation("early"), plugin_type="operation", name="early")
        how()

    plugin.set_initialize_fn(initialize)
    with pytest.raises(PluginError, match=r"initialize of plugin math failed: (RuntimeError: no|SystemExit: 3)"):
        registry.register(plugin)
    assert content(registry) == set()
    assert cleaned == []  # what was not initialized is not cleaned up
    plugin.set_initialize_fn(lambda given: None)
    registry.register(plugin)
    assert registry.is_registered("square", "operation")


@pytest.mark.parametrize(
    ("setter", "function", "said"),
    [
        ("set_custom_operations_fn", fail, "custom_operations of plugin math failed: RuntimeError: no"),
        ("set_custom_operations_fn", lambda: [lambda x: x], "gave <function .*, which is no CustomOp"),
        ("set_custom_operations_fn", lambda: 3, "custom_operations of plugin math failed: TypeError"),
        ("set_custom_operations_fn", lambda: [operation("a"), operation("a")], "brings two of the name a"),
        ("set_custom_layers_fn", lambda: [operation("a")], "which is no CustomLayer"),
    ],
)
def test_a_plugin_that_brings_nonsense_is_cleaned_up(
    registry: PluginRegistry, setter: str, function: Any, said: str
) -> None:
    plugin = extension("math")
    cleaned: list[Any] = []
    plugin.set_cleanup_fn(cleaned.append)
    getattr(plugin, setter)(function)
    with pytest.raises(PluginError, match=said):
        registry.register(plugin)
    assert content(registry) == set()
    assert cleaned == [registry]


def test_a_name_is_taken_once(registry: PluginRegistry) -> None:
    first = extension("math", "square")
    registry.register(first)
    with pytest.raises(ValueError, match="already is an extension plugin named math; unregister it first"):
        registry.register(extension("math", "cube"))
    with pytest.raises(ValueError, match="already is a operation plugin named square"):
        registry.register(extension("other", "cube", "square"))
    assert content(registry) == {("extension", "math"), ("operation", "square")}
    better = extension("math", "cube")
    registry.register(better, replace=True)
    assert registry.get_plugin("math") is better
    assert content(registry) == {("extension", "math"), ("operation", "cube")}


def test_a_cleanup_that_fails_does_not_keep_the_plugin(registry: PluginRegistry) -> None:
    plugin = extension("math", "square")
    plugin.set_cleanup_fn(fail)
    registry.register(plugin)
    with pytest.raises(PluginError, match="cleanup of plugin math failed: RuntimeError: no"):
        registry.unregister("math")
    assert content(registry) == set()


def test_a_cleanup_may_take_its_own_out(registry: PluginRegistry) -> None:
    plugin = extension("math", "square", "cube")
    plugin.set_cleanup_fn(lambda given: given.unregister("square", plugin_type="operation"))
    registry.register(plugin)
    registry.unregister("math")
    assert content(registry) == set()


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        ("99.0.0", None, "plugin math 1.0.0 needs RM Abstract 99.0.0 or newer"),
        (None, "0.0.1", "works with RM Abstract up to 0.0.1"),
    ],
)
def test_versions_of_the_host_are_enforced(
    registry: PluginRegistry, least: str | None, most: str | None, said: str
) -> None:
    builder = PluginBuilder().name("math").version("1.0.0")
    if least:
        builder.min_host_version(least)
    if most:
        builder.max_host_version(most)
    plugin = builder.build()
    initialized: list[Any] = []
    plugin.set_initialize_fn(initialized.append)
    with pytest.raises(BadInput, match=said):
        registry.register(plugin)
    assert (initialized, content(registry)) == ([], set())


def test_one_of_many_threads_wins(registry: PluginRegistry) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(12)

    def register(number: int) -> None:
        plugin = extension(f"plugin-{number}", "shared")
        start.wait()
        try:
            registry.register(plugin)
            outcomes.append("in")
        except ValueError:
            outcomes.append("taken")

    threads = [threading.Thread(target=register, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] + ["taken"] * 11
    assert len(content(registry)) == 2


def test_an_initialize_that_hangs_holds_its_caller_alone(registry: PluginRegistry) -> None:
    begun, go_on = threading.Event(), threading.Event()
    hanging = extension("hanging", "late")

    def initialize(given: PluginRegistry) -> None:
        begun.set()
        go_on.wait()

    hanging.set_initialize_fn(initialize)
    thread = threading.Thread(target=registry.register, args=(hanging,))
    thread.start()
    assert begun.wait(60)
    registry.register(extension("math", "square"))
    assert registry.get("operation", "square")(2) == 2
    assert not registry.is_registered("hanging")
    registry.unregister("math")
    go_on.set()
    thread.join()
    assert content(registry) == {("extension", "hanging"), ("operation", "late")}
