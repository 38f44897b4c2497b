"""Whatever a library does, the host lives, says what happened, and can load it again."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from native_support import BROKEN, build_c
from rm_abstract.core.errors import BadInput, DriverMismatch, PluginError, ToolchainFailure, WorkloadError
from rm_abstract.core.versions import VersionInfo
from rm_abstract.native.library import Deadlines, NativeLibrary

Build = Callable[..., NativeLibrary]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Makes the broken library, with the macros that are named."""
    made: list[NativeLibrary] = []

    def make(*defines: str, deadlines: Deadlines | None = None) -> NativeLibrary:
        path = tmp_path_factory.mktemp("broken") / "libbroken.so"
        build_c(BROKEN, path, defines=defines, libraries=("pthread",))
        made.append(NativeLibrary(path, deadlines=deadlines))
        return made[-1]

    yield make
    for library in made:
        library.close()


@pytest.fixture(scope="module")
def broken(build: Build) -> NativeLibrary:
    return build()


def info(text: str) -> str:
    """The macro that has the library say this of itself."""
    return f"INFO={json.dumps(text)}"


def who(library: NativeLibrary) -> int:
    """The library's process, asked in a session of its own."""
    with library.open("/") as model:
        return int(model.run({"task": "who"})["process"])


def is_running(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("segfault", r"was ended by SIGSEGV in rma_run; the last that it printed: .*about to read what is not there"),
        ("abort", r"was ended by SIGABRT in rma_run"),
        ("kill", r"was ended by SIGKILL in rma_run"),
        ("exit", r"ended by itself with exit code 3 in rma_run"),
        ("silent exit", r"ended by itself with exit code 0 in rma_run"),
    ],
)
def test_a_library_whose_process_ends(broken: NativeLibrary, task: str, said: str) -> None:
    model, before = broken.open("/"), who(broken)
    with pytest.raises(PluginError, match=r"libbroken\.so: its process " + said):
        model.run({"task": task})
    assert model.lost
    with pytest.raises(PluginError, match="its process"):
        model.run({"task": "who"})
    model.close()
    assert who(broken) != before
    assert not is_running(before)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("garbage", r"rma_run answered what is not valid JSON \(.*\): b'{\"finish\": sto"),
        ("deep", r"rma_run answered what is not valid JSON"),
        ("list", r"rma_run answered no JSON object, but \[1\]"),
        ("nothing", r"rma_run returned RMA_OK, but no answer"),
        ("odd code", r"rma_run returned 3, which is no code of rm_plugin\.h: I feel odd"),
        ("many tokens", r"rma_run passed 1099511627776 tokens at once"),
        ("no tokens", r"rma_run passed 3 tokens at once to its callback, or none"),
    ],
)
def test_a_library_that_answers_nonsense_stays_loaded(broken: NativeLibrary, task: str, said: str) -> None:
    before = who(broken)
    with broken.open("/") as model, pytest.raises(PluginError, match=said):
        model.run({"task": task})
    assert who(broken) == before


def test_what_the_library_itself_reports_is_the_error_of_its_code(broken: NativeLibrary) -> None:
    with broken.open("/") as model, pytest.raises(DriverMismatch, match=r"libbroken\.so: the driver is . old"):
        model.run({"task": "refuse"})
    with pytest.raises(ToolchainFailure, match="there is no compiler here"):
        broken.compile(Path("/"), Path("/"))


def test_a_library_that_computes_for_ever(build: Build) -> None:
    library, other = build(), build()
    received: list[int] = []
    process = who(library)
    model = library.open("/")
    with other.open("/") as unconcerned:
        library.deadlines = Deadlines(run=5)
        with pytest.raises(PluginError, match=r"rma_run did not come to its end or go on for 5 s, and was ended"):
            model.run({"task": "hang"}, received.extend)
        library.deadlines = Deadlines()
        assert received in ([1, 2, 3], [])  # nothing, where even the first tokens took so long
        assert unconcerned.run({"task": "anything"}) == {"finish": "stop"}
    assert not is_running(process)
    assert who(library) != process


def test_a_library_that_does_not_end_a_cancelled_run(build: Build) -> None:
    library = build(deadlines=Deadlines(cancel=3))
    ended, begun = threading.Event(), threading.Event()
    errors: list[WorkloadError | None] = []

    def on_end(_answer: Any, error: WorkloadError | None) -> None:
        errors.append(error)
        ended.set()

    run = library.open("/").start({"task": "hang"}, on_end=on_end, on_tokens=lambda _: begun.set())
    assert begun.wait(60)
    run.cancel()
    assert ended.wait(120)
    assert isinstance(errors[0], PluginError)
    assert "for 3 s" in str(errors[0])


@pytest.mark.parametrize(
    ("defines", "said"),
    [
        (["CRASH_ON_LOAD"], r"its process was ended by SIGABRT in loading the library"),
        (["ABI=0x20000"], r"rma_abi_version says 2\.0, and this host knows 1\.x only; build it with"),
        (["ABI=0"], r"rma_abi_version says 0\.0"),
        (["WITHOUT_COMPILE"], r"it does not export rma_compile; rm_plugin\.h names"),
        ([info("[]")], r"rma_info answered no JSON object"),
        ([info("{}")], r"rma_info lacks name, version"),
        ([info('{"name":"x","version":7}')], r"rma_info lacks version"),
        ([info('{"name":"x","version":"1.0"}')], r"what rma_info says is not valid: '1\.0' is no version"),
        ([info('{"name":"x","version":"1.0.0","formats":{}}')], r"rma_info lacks formats"),
        ([info('{"name":"x","version":"1.0.0","min_host_version":[1]}')], r"rma_info lacks min_host_version"),
        ([info('{"name":"x","version":"1.0.0","priority":"high"}')], r"rma_info lacks priority"),
        ([info('{"name":"x","version":"1.0.0","compiler":true}')], r"rma_info lacks compiler"),
    ],
)
def test_a_library_that_is_not_what_it_should_be(build: Build, defines: list[str], said: str) -> None:
    library = build(*defines)
    for _ in range(2):  # it is asked again, not believed to be loaded
        with pytest.raises(PluginError, match=r"libbroken\.so: " + said):
            library.info()


def test_a_minor_version_of_the_interface_does_not_matter(build: Build) -> None:
    assert build("ABI=0x10007").info().version == VersionInfo(1, 0, 0)


def test_a_library_that_hangs_while_it_says_who_it_is(build: Build) -> None:
    library = build("HANG_IN_INFO", deadlines=Deadlines(info=3))
    with pytest.raises(PluginError, match="rma_info did not come to its end"):
        library.info()


def test_a_library_that_becomes_another_one(build: Build) -> None:
    library = build("BECOMES_ANOTHER")
    first = library.info()
    library.close()
    with pytest.raises(PluginError, match=rf"says that it is .*, and said {first} before"):
        library.probe()


@pytest.mark.parametrize(
    "devices", ["[1]", r"[{\"id\":\"a\"}]", r"{}", r"[{\"id\":\"a\",\"type\":\"npu\",\"attributes\":3}]"]
)
def test_a_library_that_invents_devices(build: Build, devices: str) -> None:
    library = build(rf'PROBE="{{\"devices\":{devices}}}"')
    with pytest.raises(PluginError, match="rma_probe answered no list of devices"):
        library.probe()


def test_what_a_library_prints_disturbs_nobody(
    broken: NativeLibrary, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "rm_abstract.native")
    with broken.open("/") as model:
        assert model.run({"task": "print"}) == {"finish": "stop"}
    broken.close()
    assert capfd.readouterr() == ("", "")
    assert caplog.messages.count("libbroken.so: line 19999 of what nobody asked for") == 1


@pytest.mark.parametrize("task", ["close descriptors", "speak for the host"])
def test_a_library_that_meddles_with_the_pipes(broken: NativeLibrary, task: str) -> None:
    model = broken.open("/")
    with pytest.raises(PluginError, match=r"libbroken\.so: it"):
        model.run({"task": task})
    assert who(broken)


def test_threads_that_a_library_leaves_behind_speak_to_nobody(broken: NativeLibrary) -> None:
    process = who(broken)
    with broken.open("/") as model:
        first: list[int] = []
        second: list[int] = []
        model.run({"task": "leak threads"}, first.extend)
        seen = list(first)
        for _ in range(50):
            model.run({"task": "anything"}, second.extend)
        assert second == [1, 2, 3] * 50
        assert first == seen
    assert len(os.listdir(f"/proc/{process}/task")) > 20
    broken.close()
    assert not is_running(process)


def test_a_process_that_a_library_leaves_behind_ends_with_it(broken: NativeLibrary) -> None:
    process = who(broken)
    with broken.open("/") as model:
        model.run({"task": "leave a process"})
    children = _children(process)
    assert len(children) == 1
    broken.close()
    patience = threading.Event()
    while is_running(int(children[0])):  # it was killed before; the system takes its time to bury it
        patience.wait(0.05)


def _children(process: int) -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == process:
            found.append(status.parent.name)
    return found


def test_closing_a_model_ends_what_goes_on(broken: NativeLibrary) -> None:
    model = broken.open("/")
    ended, begun = threading.Event(), threading.Event()
    answers: list[Any] = []

    def on_end(answer: Any, error: WorkloadError | None) -> None:
        answers.append(answer or error)
        ended.set()

    model.start({"task": "until cancelled"}, on_end=on_end, on_tokens=lambda _: begun.set())
    assert begun.wait(60)
    model.close()
    assert ended.is_set()
    assert answers == [{"finish": "stop"}]
    with pytest.raises(PluginError, match="the model was closed"):
        model.run({"task": "who"})


def test_many_threads_use_one_library(broken: NativeLibrary) -> None:
    results: list[bool] = []

    def use() -> None:
        tokens: list[int] = []
        with broken.open("/") as model:
            answer = model.run({"task": "anything"}, tokens.extend)
        results.append(answer == {"finish": "stop"} and tokens == [1, 2, 3])

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 16


def test_a_callback_may_fail_but_not_wait(broken: NativeLibrary, caplog: pytest.LogCaptureFixture) -> None:
    with broken.open("/") as model:

        def on_tokens(_tokens: list[int]) -> None:
            model.run({"task": "who"})

        assert model.run({"task": "anything"}, on_tokens) == {"finish": "stop"}
    assert "may not wait for another call" in caplog.text


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no library at"):
        NativeLibrary(tmp_path / "none.so")
    text = tmp_path / "text.so"
    text.write_text("I am no library")
    with NativeLibrary(text) as library, pytest.raises(PluginError, match=r"the system cannot load it: .*text\.so"):
        library.info()


def test_what_cannot_be_said_is_refused_here(broken: NativeLibrary) -> None:
    with broken.open("/") as model, pytest.raises(BadInput, match="cannot be said as JSON"):
        model.run({"task": object()})
