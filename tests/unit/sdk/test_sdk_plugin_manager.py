"""The resource manager: one plugin after another, while requests run."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from plugin_support import PATIENCE, Journal, WordPlugin, threads, word_plugin
from rm_abstract.core.config import Config
from rm_abstract.core.errors import BadInput, DeviceMissing, PluginError
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority, PluginRegistry
from rm_abstract.core.resource_manager import ResourceManager, get_resource_manager, set_resource_manager
from rm_abstract.core.session import FinishReason, GenerationRequest, Session, generate
from scripted_session import ScriptedSession


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def registry() -> PluginRegistry:
    return PluginRegistry(())


def manager_of(registry: PluginRegistry, *plugins: type[Plugin], config: Any = None) -> ResourceManager:
    for plugin in plugins:
        registry.register(plugin)
    manager = ResourceManager(config, registry=registry)
    manager.initialize(auto_discover=False)
    return manager


def test_the_life_of_a_plugin(registry: PluginRegistry, journal: Journal) -> None:
    manager = manager_of(registry, word_plugin("old", journal))
    assert isinstance(manager.active_plugin, WordPlugin)
    prepared = manager.prepare_resource("model", {"precision": "fp16", "level": 3})
    assert prepared.config == BackendConfig(dtype="fp16", options={"level": "3"})
    assert manager.execute(prepared, "x") == "old model x"
    prepared.release()
    manager.cleanup()
    assert journal.lines == ["old initialize", "old prepare", "old execute", "old release", "old cleanup"]
    assert (manager.active_plugin, manager.active_name) == (None, "")


@pytest.mark.parametrize("config", ["old:1", {"device": "old:1"}, Config.resolve("old:1", environment={"HOME": "/"})])
def test_the_device_is_said_in_several_ways(registry: PluginRegistry, config: Any) -> None:
    plugins = (word_plugin("old", devices=2), word_plugin("best", priority=PluginPriority.HIGHEST))
    manager = manager_of(registry, *plugins, config=config)
    assert (manager.active_name, manager.device_id) == ("old", 1)
    assert [device.id for device in manager.active_plugin.chosen] == ["old1"]  # type: ignore[union-attr]


def test_of_several_the_best_that_starts_is_taken(registry: PluginRegistry, journal: Journal) -> None:
    worse = word_plugin("worse", journal, priority=PluginPriority.LOW)
    best = word_plugin("best", journal, priority=PluginPriority.HIGH, fails=["initialize"])
    manager = manager_of(registry, worse, best, config="npu")
    assert manager.active_name == "worse"
    assert journal.lines == ["best initialize", "best cleanup", "worse initialize"]
    with pytest.raises(PluginError, match="plugin best failed to initialize: RuntimeError: initialize of best"):
        ResourceManager("best", registry=registry).initialize()


def test_where_nothing_starts_it_says_why(registry: PluginRegistry) -> None:
    registry.register(word_plugin("dead", fails=["initialize"]))
    registry.register(word_plugin("absent", fails=["available"]))
    with pytest.raises(BadInput, match=r"no plugin for npu is available here; .*dead failed: .*initialize of dead"):
        ResourceManager("npu", registry=registry).initialize()
    with pytest.raises(DeviceMissing, match="plugin absent is not available here"):
        ResourceManager("absent", registry=registry).initialize()
    with pytest.raises(BadInput, match="no plugin for fpga"):
        ResourceManager("fpga", registry=registry).initialize()


def test_a_device_that_is_not_there(registry: PluginRegistry, journal: Journal) -> None:
    registry.register(word_plugin("pair", journal, devices=2))
    with pytest.raises(DeviceMissing, match="plugin pair has no device 2; it finds 2"):
        ResourceManager("pair:2", registry=registry).initialize()
    assert journal.lines == [], "it was not even initialized"


def test_running_requests_finish_on_the_old_plugin_while_new_ones_go_to_the_new_one(
    registry: PluginRegistry, journal: Journal
) -> None:
    old, new = word_plugin("old", journal), word_plugin("new", journal)
    manager = manager_of(registry, old, new, config="old")
    prepared = manager.prepare_resource("model")
    old.running.shut()
    with threads() as start:
        running = [start(manager.execute, prepared, number) for number in range(3)]
        old.running.await_somebody(3)
        assert manager.switch_plugin("new") == "new"
        assert manager.execute(prepared, "x") == "new model x"
        assert "old cleanup" not in journal.lines, "it runs still"
        old.running.open()
        assert sorted(one.result(PATIENCE) for one in running) == [f"old model {number}" for number in range(3)]
    assert journal.lines[-2:] == ["old release", "old cleanup"]
    assert journal.count("old execute") == 3
    assert manager.active_name == "new"
    manager.cleanup()


def test_an_idle_plugin_is_cleaned_up_at_once_and_a_busy_one_before_a_switch_that_waits_returns(
    registry: PluginRegistry, journal: Journal
) -> None:
    old, new = word_plugin("old", journal), word_plugin("new", journal)
    manager = manager_of(registry, old, new, config="old")
    prepared = manager.prepare_resource("model")
    manager.switch_plugin("new")
    assert journal.lines[-2:] == ["old release", "old cleanup"]
    new.running.shut()
    with threads() as start:
        running = start(manager.execute, prepared, "x")
        new.running.await_somebody()
        switched = start(manager.switch_plugin, "old", wait=True)
        assert eventually(lambda: manager.active_name == "old")
        assert not switched.done()
        new.running.open()
        assert switched.result(PATIENCE) == "old"
        assert running.result(PATIENCE) == "new model x"
    assert journal.lines[-1] == "new cleanup"


def eventually(condition: Any) -> bool:
    """Awaits a condition that another thread makes true."""
    pause = threading.Event()
    for _ in range(PATIENCE * 100):
        if condition():
            return True
        pause.wait(0.01)
    return False


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("initialize", "failed to initialize: RuntimeError: initialize of new"),
        ("prepare", "failed to prepare the resource: RuntimeError: prepare of new"),
        ("probe", "failed to probe: RuntimeError: the device does not answer"),
        ("is_available", "failed to say whether it is available: RuntimeError: the driver is a stub"),
    ],
)
def test_a_failed_switch_leaves_the_old_plugin_active(
    registry: PluginRegistry, journal: Journal, step: str, message: str
) -> None:
    old, new = word_plugin("old", journal), word_plugin("new", journal, fails=[step])
    manager = manager_of(registry, old, new, config="old")
    prepared = manager.prepare_resource("model")
    before = manager.active_plugin
    with pytest.raises(PluginError, match=f"plugin new {message}"):
        manager.switch_plugin("new")
    assert manager.active_plugin is before
    assert manager.execute(prepared, "x") == "old model x"
    assert "old cleanup" not in journal.lines
    assert journal.count("new initialize") == journal.count("new cleanup"), "what was begun was ended"
    new.fails.clear()
    manager.switch_plugin("new")
    assert manager.execute(prepared, "x") == "new model x"


def test_a_switch_to_nothing_is_refused(registry: PluginRegistry) -> None:
    manager = manager_of(registry, word_plugin("old"), config="old")
    with pytest.raises(BadInput, match="no plugin for tpu"):
        manager.switch_plugin("tpu", 0)
    with pytest.raises(DeviceMissing, match="has no device 7"):
        manager.switch_plugin("old", device_id=7)
    assert (manager.active_name, manager.device_id) == ("old", None)


def test_a_switch_by_type_goes_to_the_best_of_that_type(registry: PluginRegistry) -> None:
    manager = manager_of(registry, word_plugin("old"), word_plugin("top", priority=PluginPriority.HIGH), config="old")
    assert manager.switch_plugin("npu", device_id=0) == "top"
    assert manager.device_id == 0


@pytest.mark.parametrize("callers", [2, 6])
def test_no_request_fails_or_is_lost_while_plugins_change(
    registry: PluginRegistry, journal: Journal, callers: int
) -> None:
    names = ["one", "two", "three"]
    plugins = {name: word_plugin(name, journal) for name in names}
    manager = manager_of(registry, *plugins.values(), config="one")
    handles = [manager.prepare_resource(f"model{number}") for number in range(3)]
    done = threading.Event()

    def call(caller: int) -> list[str]:
        answers = []
        while not done.is_set() or len(answers) < 20:
            number = len(answers)
            answers.append(manager.execute(handles[number % 3], f"{caller}-{number}"))
        return answers

    with threads(callers) as start:
        running: list[Future[Any]] = [start(call, caller) for caller in range(callers)]
        for number in range(30):
            manager.switch_plugin(names[(number + 1) % 3])
        done.set()
        answers = [one.result(PATIENCE) for one in running]
    for caller, given in enumerate(answers):
        for number, answer in enumerate(given):
            word, *rest = answer.split(" ")
            assert word in plugins
            assert rest == [f"model{number % 3}", f"{caller}-{number}"]
    manager.cleanup()
    for name in names:
        assert journal.count(f"{name} initialize") == journal.count(f"{name} cleanup") == 10 + (name == "one")
        assert journal.count(f"{name} prepare") == journal.count(f"{name} release")
    assert sum(len(given) for given in answers) == sum(journal.count(f"{name} execute") for name in names)


def test_what_several_threads_prepare_is_prepared_once_and_freed_after_the_last(
    registry: PluginRegistry, journal: Journal
) -> None:
    plugin = word_plugin("old", journal)
    manager = manager_of(registry, plugin)
    plugin.preparing.shut()
    with threads() as start:
        asked = [start(manager.prepare_resource, "model", {"level": "1"}) for _ in range(5)]
        plugin.preparing.await_somebody()
        plugin.preparing.open()
        handles = [one.result(PATIENCE) for one in asked]
    assert journal.count("old prepare") == 1
    other = manager.prepare_resource("model", {"level": "2"})
    assert journal.count("old prepare") == 2, "another configuration is another preparation"
    for handle in handles[1:]:
        handle.release()
        handle.release()
    assert manager.execute(handles[0], "x") == "old model x"
    assert journal.count("old release") == 0
    handles[0].release()
    assert journal.count("old release") == 1
    with pytest.raises(BadInput, match="was released"):
        manager.execute(handles[0], "x")
    other.release()
    manager.prepare_resource("model", {"level": "1"})
    assert journal.count("old prepare") == 3


def test_a_release_waits_for_the_requests_that_run(registry: PluginRegistry, journal: Journal) -> None:
    plugin = word_plugin("old", journal)
    manager = manager_of(registry, plugin)
    prepared = manager.prepare_resource("model")
    plugin.running.shut()
    with threads() as start:
        running = start(manager.execute, prepared, "x")
        plugin.running.await_somebody()
        prepared.release()
        assert "old release" not in journal.lines
        plugin.running.open()
        assert running.result(PATIENCE) == "old model x"
    assert journal.lines[-1] == "old release"


def test_what_one_manager_prepares_is_not_for_another(registry: PluginRegistry) -> None:
    manager = manager_of(registry, word_plugin("old"))
    other = ResourceManager("old", registry=registry)
    with other, pytest.raises(BadInput, match="of the same resource manager"):
        other.execute(manager.prepare_resource("model"), "x")
    for strange in ("model", None):
        with pytest.raises(BadInput, match="what prepare_resource"):
            manager.execute(strange, "x")  # type: ignore[arg-type]


def test_without_a_plugin_nothing_runs(registry: PluginRegistry) -> None:
    manager = ResourceManager(registry=registry)
    for call in (lambda: manager.prepare_resource("m"), lambda: manager.switch_plugin("x"), manager.refresh):
        with pytest.raises(BadInput, match="initialize"):
            call()
    manager.cleanup()


def test_cleanup_waits_for_requests_and_begins_no_more(registry: PluginRegistry, journal: Journal) -> None:
    plugin = word_plugin("old", journal)
    manager = manager_of(registry, plugin)
    prepared = manager.prepare_resource("model")
    plugin.running.shut()
    with threads() as start:
        running = start(manager.execute, prepared, "x")
        plugin.running.await_somebody()
        ended = start(manager.cleanup)
        assert eventually(lambda: not manager.active_name)
        with pytest.raises(BadInput, match="initialize"):
            manager.execute(prepared, "y")
        assert not ended.done()
        plugin.running.open()
        ended.result(PATIENCE)
        assert running.result(PATIENCE) == "old model x"
    assert journal.lines[-1] == "old cleanup"
    manager.initialize()
    assert manager.execute(prepared, "z") == manager.execute(prepared, "z") == "old model z"
    assert journal.count("old prepare") == 2, "what was prepared is prepared again, and once"
    manager.cleanup()


def test_a_request_cannot_wait_for_itself_but_may_switch(registry: PluginRegistry, journal: Journal) -> None:
    class Curious(WordPlugin):
        def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
            return kwargs["then"]()

    manager = manager_of(registry, word_plugin("odd", journal, base=Curious), word_plugin("new", journal), config="odd")
    prepared = manager.prepare_resource("model")
    with pytest.raises(BadInput, match="waits for all requests to end"):
        manager.execute(prepared, "x", then=manager.cleanup)
    with pytest.raises(BadInput, match="waits for all requests to end"):
        manager.execute(prepared, "x", then=lambda: manager.switch_plugin("new", wait=True))
    assert manager.execute(prepared, "x", then=lambda: manager.switch_plugin("new")) == "new"
    assert journal.lines[-1] == "odd cleanup"
    assert manager.execute(prepared, "x") == "new model x"


def test_a_stream_keeps_its_plugin_to_its_end(registry: PluginRegistry, journal: Journal) -> None:
    class Streaming(WordPlugin):
        def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Iterator[str]:
            for letter in inputs:
                assert self.alive
                if letter == "!":
                    raise RuntimeError("a bad letter")
                yield letter

    manager = manager_of(
        registry, word_plugin("odd", journal, base=Streaming), word_plugin("new", journal), config="odd"
    )
    prepared = manager.prepare_resource("model")
    stream = manager.execute(prepared, "abc")
    assert next(stream) == "a"
    unread = manager.execute(prepared, "abc")
    failing = manager.execute(prepared, "a!")
    manager.switch_plugin("new")
    assert "odd cleanup" not in journal.lines
    assert list(stream) == ["b", "c"]
    with pytest.raises(PluginError, match="plugin odd failed to execute: RuntimeError: a bad letter"):
        list(failing)
    assert "odd cleanup" not in journal.lines
    del unread
    assert journal.lines[-1] == "odd cleanup"


def test_a_plugin_that_is_held_is_not_cleaned_up(registry: PluginRegistry, journal: Journal) -> None:
    manager = manager_of(registry, word_plugin("old", journal), word_plugin("new", journal), config="old")
    held, other = manager.hold(), manager.hold()
    manager.switch_plugin("new")
    assert held.value.execute(held.value.prepare_resource("m"), "x") == "old m x"
    other.release()
    assert "old cleanup" not in journal.lines
    held.release()
    assert journal.lines[-1] == "old cleanup"
    with manager.hold() as plugin:
        assert plugin is manager.active_plugin


def test_a_plugin_that_fails_to_execute_is_named_and_remains(registry: PluginRegistry) -> None:
    plugin = word_plugin("old", fails=["execute"])
    manager = manager_of(registry, plugin)
    prepared = manager.prepare_resource("model")
    with pytest.raises(PluginError, match="plugin old failed to execute: RuntimeError: execute of old") as raised:
        manager.execute(prepared, "x")
    assert isinstance(raised.value.__cause__, RuntimeError)
    plugin.fails.clear()
    assert manager.execute(prepared, "x") == "old model x"


def test_a_failing_cleanup_does_not_hold_up_a_switch(
    registry: PluginRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    manager = manager_of(registry, word_plugin("old", fails=["cleanup", "release"]), word_plugin("new"), config="old")
    prepared = manager.prepare_resource("model")
    assert manager.switch_plugin("new", wait=True) == "new"
    assert manager.execute(prepared, "x") == "new model x"
    assert "plugin old failed to clean up" in caplog.text


def test_what_a_plugin_needs_starts_before_it_and_ends_after_it(registry: PluginRegistry, journal: Journal) -> None:
    names = {"top": ["left", "right"], "left": ["base"], "right": ["base >=1"], "base": []}
    plugins = [word_plugin(name, journal, depends_on=needs) for name, needs in names.items()]
    manager = manager_of(registry, *plugins, config="top")
    starts = ["base initialize", "left initialize", "right initialize", "top initialize"]
    assert journal.lines == starts
    top: Any = manager.active_plugin
    assert top.dependencies["left"].dependencies["base"] is top.dependencies["right"].dependencies["base"]
    manager.cleanup()
    assert journal.lines[4:] == [line.replace("initialize", "cleanup") for line in reversed(starts)]


def test_where_a_dependency_does_not_start_nothing_stays(registry: PluginRegistry, journal: Journal) -> None:
    registry.register(word_plugin("base", journal, fails=["initialize"]))
    registry.register(word_plugin("first", journal))
    registry.register(word_plugin("top", journal, depends_on=["first", "base"]))
    with pytest.raises(PluginError, match="plugin base failed to initialize"):
        ResourceManager("top", registry=registry).initialize()
    assert journal.lines == ["first initialize", "base initialize", "base cleanup", "first cleanup"]


def test_a_plugin_with_sessions_keeps_one_for_all_requests(registry: PluginRegistry) -> None:
    made: list[ScriptedSession] = []

    class Scripted(Plugin):
        @classmethod
        def metadata(cls) -> PluginMetadata:
            return PluginMetadata("scripted", "Scripted", "1.0.0")

        def is_available(self) -> bool:
            return True

        def prepare_resource(self, resource: Any, config: BackendConfig | None = None) -> Any:
            return resource

        def create_session(self, resource: Any) -> Session:
            made.append(ScriptedSession())
            return made[-1]

    manager = manager_of(registry, Scripted)
    prepared = manager.prepare_resource("model")
    with threads() as start:
        asked = [start(manager.execute, prepared, text, ignore_eos=True) for text in ("one", "two", "three")]
        assert [one.result(PATIENCE) for one in asked] == ["ONE", "TWO", "THREE"]
    assert len(made) == 1
    assert manager.execute(prepared, GenerationRequest(list(b"abc"), max_tokens=2)) == list(b"AB")
    came: list[int] = []
    manager.execute(prepared, list(b"abc"), max_tokens=2, sink=lambda tokens, _finish: came.extend(tokens))
    assert came == list(b"AB")

    def refuse(_tokens: object, _finish: object) -> None:
        raise KeyError("the reader has gone")

    with pytest.raises(PluginError, match="the reader has gone"):
        manager.execute(prepared, list(b"abc"), sink=refuse)
    made[0].broken.set()
    with pytest.raises(PluginError, match=r"the engine failed while it generated: .*the device has gone"):
        manager.execute(prepared, list(b"abc"))
    assert manager.execute(prepared, "four") == "FOUR", "a new session takes the place of one that failed"
    assert len(made) == 2
    manager.cleanup()
    assert generate(made[1], GenerationRequest([1], 1)) == ([], FinishReason.ERROR), "it was closed"


def test_the_manager_of_the_process(registry: PluginRegistry) -> None:
    before = set_resource_manager(None)
    try:
        with pytest.raises(BadInput, match=r"rm_abstract.init\(use_plugin_system=True\)"):
            get_resource_manager()
        manager = ResourceManager(registry=registry)
        set_resource_manager(manager)
        assert get_resource_manager() is manager
    finally:
        set_resource_manager(before)
