"""Shared resources, profiles and chains of plugins."""

import threading
from contextlib import suppress
from typing import Any

import pytest
from plugin_support import PATIENCE, Gate, Journal, WordPlugin, threads, word_plugin
from rm_abstract.core.chain import PluginChain, Stage, create_chain_plugin
from rm_abstract.core.errors import BadInput, DeviceMissing, PluginError
from rm_abstract.core.plugin import Plugin, PluginMetadata, PluginRegistry
from rm_abstract.core.profiling import PluginProfiler, percentile, resident_bytes
from rm_abstract.core.resource_manager import ResourceManager
from rm_abstract.core.sharing import SharedResources, shared_resources


@pytest.fixture
def shared() -> SharedResources:
    return SharedResources()


def test_a_thing_is_made_for_the_first_and_freed_after_the_last(shared: SharedResources) -> None:
    journal = Journal()

    def acquire() -> Any:
        return shared.acquire(
            "k", lambda: journal.write("made") or "thing", lambda thing: journal.write(f"freed {thing}")
        )

    first, second = acquire(), acquire()
    assert first.value == second.value == "thing"
    assert (journal.lines, shared.users("k")) == (["made"], 2)
    first.release()
    first.release()
    assert (journal.lines, shared.users("k")) == (["made"], 1)
    with second as value:
        assert value == "thing"
    assert (journal.lines, shared.users("k")) == (["made", "freed thing"], 0)
    acquire().release()
    assert journal.lines == ["made", "freed thing"] * 2


def test_those_who_come_while_it_is_made_wait_and_other_keys_do_not(shared: SharedResources) -> None:
    gate, made = Gate(), Journal()
    gate.shut()

    def make() -> str:
        made.write("made")
        gate.pass_through()
        return "slow"

    with threads() as start:
        waiting = [start(shared.acquire, "slow", make) for _ in range(4)]
        gate.await_somebody()
        assert shared.acquire("quick", lambda: "quick").value == "quick"
        assert not any(one.done() for one in waiting)
        gate.open()
        assert {one.result(PATIENCE).value for one in waiting} == {"slow"}
    assert made.lines == ["made"]
    assert shared.users("slow") == 4


def test_a_failure_is_for_all_who_waited_and_later_ones_try_again(shared: SharedResources) -> None:
    gate = Gate()
    gate.shut()

    def fail() -> str:
        gate.pass_through()
        raise OSError("no memory")

    with threads() as start:
        first = start(shared.acquire, "k", fail)
        gate.await_somebody()
        second = start(shared.acquire, "k", lambda: "second")
        while shared.users("k") < 2:
            threading.Event().wait(0.001)
        gate.open()
        for one in (first, second):
            with pytest.raises(OSError, match="no memory"):
                one.result(PATIENCE)
    assert shared.users("k") == 0
    assert shared.acquire("k", lambda: "third").value == "third"


def test_what_is_being_freed_is_made_anew_only_afterwards(shared: SharedResources) -> None:
    gate, journal = Gate(), Journal()
    gate.shut()

    def free(_thing: object) -> None:
        gate.pass_through()
        journal.write("freed")

    lease = shared.acquire("k", lambda: 1, free)
    with threads() as start:
        freeing = start(lease.release)
        gate.await_somebody()
        again = start(shared.acquire, "k", lambda: journal.write("made anew") or 2)
        gate.open()
        assert again.result(PATIENCE).value == 2
        freeing.result(PATIENCE)
    assert journal.lines == ["freed", "made anew"]


def test_what_needs_itself_is_told_so_instead_of_waiting_for_ever(shared: SharedResources) -> None:
    with pytest.raises(BadInput, match="'k' needs itself"):
        shared.acquire("k", lambda: shared.acquire("k", lambda: 1).value)
    assert shared.acquire("k", lambda: 2).value == 2


def test_a_failing_free_does_not_keep_the_key(shared: SharedResources, caplog: pytest.LogCaptureFixture) -> None:
    shared.acquire("k", lambda: 1, lambda _: 1 / 0).release()
    assert "freeing the shared resource 'k' failed" in caplog.text
    assert shared.acquire("k", lambda: 2).value == 2


def test_clearing_frees_everything_once(shared: SharedResources) -> None:
    freed: list[int] = []
    with shared:
        leases = [shared.acquire(number % 2, lambda number=number: number, freed.append) for number in range(4)]
    assert sorted(freed) == [0, 1]
    for lease in leases:
        lease.release()
    assert sorted(freed) == [0, 1]
    assert shared.acquire(0, lambda: 5).value == 5


def test_threads_that_come_and_go_never_see_a_thing_that_is_freed(shared: SharedResources) -> None:
    made = Journal()

    def use() -> None:
        for _ in range(200):
            with shared.acquire(
                "k", lambda: made.write("made") or {"alive": True}, lambda t: t.update(alive=False)
            ) as t:
                assert t["alive"]

    with threads(8) as start:
        for done in [start(use) for _ in range(8)]:
            done.result(PATIENCE)
    assert shared.users("k") == 0
    assert 1 <= len(made.lines) <= 1600


def test_two_plugins_share_what_both_need(tmp_path: Any) -> None:
    loads = Journal()

    def load() -> dict[str, int]:
        loads.write("load")
        return {"a": 1}

    class Sharing(WordPlugin):
        def prepare_resource(self, resource: Any, config: Any = None) -> Any:
            lease = shared_resources().acquire(("tokenizer", resource), load, lambda _: loads.write("free"))
            return {"resource": lease.value, "lease": lease, "freed": False}

        def release_resource(self, resource: Any) -> None:
            resource["lease"].release()

    registry = PluginRegistry(())
    for name in ("first", "second"):
        registry.register(word_plugin(name, base=Sharing))
    path = str(tmp_path)
    with ResourceManager("first", registry=registry) as one, ResourceManager("second", registry=registry) as two:
        prepared = [manager.prepare_resource(path) for manager in (one, two)]
        assert loads.lines == ["load"]
        prepared[0].release()
        assert two.execute(prepared[1], "x") == "second {'a': 1} x"
        assert loads.lines == ["load"]
    assert loads.lines == ["load", "free"]


# Profiles


class Clock:
    """A clock that goes as far as a test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_plugins_spend_is_counted() -> None:
    clock, memory = Clock(), iter([1000, 5000, 5000, 6000])
    profiler = PluginProfiler(clock=clock, memory=lambda: next(memory))
    for seconds in (3.0, 1.0, 2.0):
        with profiler.measure("acme", "execute"):
            clock.now += seconds
    with suppress(KeyError), profiler.measure("acme", "execute"):
        clock.now += 10.0
        raise KeyError
    for _ in range(2):
        with profiler.measure("acme", "prepare_resource"):
            assert profiler.report()["acme"]["prepare_resource"].running == 1
    report = profiler.report()
    profile = report["acme"]["execute"]
    assert (profile.calls, profile.errors, profile.running) == (4, 1, 0)
    assert (profile.seconds, profile.mean, profile.shortest, profile.longest) == (16.0, 4.0, 1.0, 10.0)
    assert (profile.p50, profile.p90, profile.p99, profile.memory_bytes) == (2.0, 10.0, 10.0, None)
    assert report["acme"]["prepare_resource"].memory_bytes == 4000, "the most that one call took"
    profiler.reset()
    assert profiler.report() == {}


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, 0.0), ([7.0], 0.01, 7.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), ([4.0, 3.0, 2.0, 1.0], 0.75, 3.0),
     ([1.0, 2.0], 1.0, 2.0), ([float(n) for n in range(1, 101)], 0.99, 99.0)],
)  # fmt: skip
def test_percentiles_are_values_that_occurred(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_percentiles_are_of_the_latest_calls() -> None:
    clock = Clock()
    profiler = PluginProfiler(window=3, clock=clock)
    for seconds in (100.0, 1.0, 1.0, 1.0):
        with profiler.measure("p", "o"):
            clock.now += seconds
    profile = profiler.report()["p"]["o"]
    assert (profile.p99, profile.longest, profile.calls) == (1.0, 100.0, 4)


def test_memory_of_the_process_is_measured() -> None:
    before = resident_bytes()
    assert before is not None
    ballast = bytearray(b"x") * (64 << 20)
    after = resident_bytes()
    assert after is not None
    assert after - before > 32 << 20
    assert len(ballast) == 64 << 20


def test_counting_from_many_threads_loses_nothing() -> None:
    profiler = PluginProfiler()

    def call() -> None:
        for _ in range(500):
            with profiler.measure("p", "o"):
                pass

    with threads() as start:
        for done in [start(call) for _ in range(8)]:
            done.result(PATIENCE)
    assert profiler.report()["p"]["o"].calls == 4000


def test_a_manager_profiles_each_plugin() -> None:
    registry = PluginRegistry(())
    for word in ("old", "new"):
        registry.register(word_plugin(word))
    with ResourceManager("old", registry=registry) as manager:
        prepared = manager.prepare_resource("model")
        for _ in range(3):
            manager.execute(prepared, "x")
        manager.switch_plugin("new")
        manager.execute(prepared, "x")
        report = manager.profile()
    calls = {name: {operation: one.calls for operation, one in report[name].items()} for name in report}
    started = {"probe": 1, "initialize": 1, "prepare_resource": 1}
    assert calls == {"old": {**started, "execute": 3, "cleanup": 1}, "new": {**started, "execute": 1}}


# Chains


def clean(text: str, *, lower: bool = True) -> str:
    return text.strip().lower() if lower else text.strip()


def shout(text: str) -> str:
    return text + "!"


def test_stages_run_one_after_the_other() -> None:
    journal = Journal()
    one, two = word_plugin("one", journal)(), word_plugin("two", journal)()
    with PluginChain(clean, one, Stage(two, "other"), shout, resource="model") as chain:
        assert chain.execute("  Hello ") == "two other one model hello!"
        assert chain.execute(" Hello ", clean={"lower": False}) == "two other one model Hello!"
        with pytest.raises(BadInput, match="no stage three; there are clean, one, two, shout"):
            chain.execute("x", three={})
        assert {name: profile["execute"].calls for name, profile in chain.profiler.report().items()} == {
            "clean": 2, "one": 2, "two": 2, "shout": 2,
        }  # fmt: skip
    assert journal.lines[:4] == ["one initialize", "two initialize", "one prepare", "two prepare"]
    assert journal.lines[-4:] == ["two release", "one release", "two cleanup", "one cleanup"]
    with pytest.raises(BadInput, match="is not initialized"):
        chain.execute("x")


@pytest.mark.parametrize(
    ("step", "ended"),
    [
        ("initialize", ["two cleanup", "one cleanup"]),
        ("prepare", ["one release", "two cleanup", "one cleanup"]),
    ],
)
def test_a_stage_that_does_not_start_leaves_nothing_behind(step: str, ended: list[str]) -> None:
    journal = Journal()
    one, two = word_plugin("one", journal)(), word_plugin("two", journal, fails=[step])()
    with pytest.raises(PluginError, match=f"plugin two failed to {step}"), PluginChain(one, two, resource="m"):
        raise AssertionError("it was entered")
    assert journal.lines[-len(ended) :] == ended


def test_a_stage_that_fails_is_named_and_the_chain_lives() -> None:
    plugin = word_plugin("one", fails=["execute"])
    with PluginChain(clean, plugin(), resource="m") as chain:
        with pytest.raises(PluginError, match="plugin one failed to execute"):
            chain.execute("x")
        with pytest.raises(PluginError, match="plugin clean failed to execute: AttributeError"):
            chain.execute(3)
        plugin.fails.clear()
        assert chain.execute("x") == "one m x"


def test_every_plugin_is_cleaned_up_though_one_fails_to() -> None:
    journal = Journal()
    stages = [word_plugin(name, journal, fails=["cleanup"] * (name == "two"))() for name in ("one", "two", "three")]
    with pytest.raises(RuntimeError, match="cleanup of two"), PluginChain(*stages, resource="m"):
        pass
    assert journal.lines[-3:] == ["three cleanup", "two cleanup", "one cleanup"]


@pytest.mark.parametrize("stages", [(), (3,), ("name",)])
def test_what_is_no_chain(stages: tuple[Any, ...]) -> None:
    with pytest.raises(BadInput, match="chain"):
        PluginChain(*stages)


def test_a_chain_runs_on_many_threads() -> None:
    with PluginChain(clean, word_plugin("one")(), shout, resource="m") as chain, threads() as start:
        answers = [start(chain.execute, f" {number} ") for number in range(50)]
        assert [one.result(PATIENCE) for one in answers] == [f"one m {number}!" for number in range(50)]


@pytest.fixture
def chained() -> tuple[PluginRegistry, Journal, type[Plugin]]:
    registry, journal = PluginRegistry(()), Journal()
    registry.register(word_plugin("one", journal))
    registry.register(word_plugin("two", journal, version="2.1.0"))
    registry.register(clean, plugin_type="step", version="1.0.0")
    about = PluginMetadata("both", "Both", "1.0.0", device_types=("chain",))
    return registry, journal, registry.register(create_chain_plugin(about, "step:clean", "one", "two ^2", shout))


def test_a_chain_is_a_plugin_like_any_other(chained: tuple[PluginRegistry, Journal, type[Plugin]]) -> None:
    registry, journal, _ = chained
    registry.register(word_plugin("simple", journal))
    with ResourceManager("chain", registry=registry) as manager:
        assert manager.active_name == "both"
        prepared = manager.prepare_resource("m")
        assert manager.execute(prepared, " X ") == "two m one m x!"
        assert manager.execute(prepared, " X ", clean={"lower": False}) == "two m one m X!"
        manager.switch_plugin("simple")
        assert manager.execute(prepared, " X ") == "simple m  X "
        assert journal.lines[-5:-1] == ["two release", "one release", "two cleanup", "one cleanup"]


def test_a_chain_is_there_if_its_plugins_are(
    chained: tuple[PluginRegistry, Journal, type[Plugin]],
) -> None:
    registry, _, both = chained
    assert registry.get_plugin("both").is_available()
    assert both.metadata().depends_on == ("step:clean", "one", "two ^2")
    two: Any = registry.get("runtime", "two")
    two.fails.add("available")
    with pytest.raises(DeviceMissing, match="plugin both is not available"):
        ResourceManager("both", registry=registry).initialize()
    registry.register(word_plugin("two", version="3.0.0"), replace=True)
    with pytest.raises(BadInput, match=r"plugin both needs two \^2, but version 3.0.0 is there"):
        registry.get_plugin("both")
