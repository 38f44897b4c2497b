"""Runtimes that are binaries, over real libraries in C: rm_plugin.h, plain C, and those that crash, hang and lie."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from native_support import BROKEN, EXAMPLE_C, build_c, greedy
from rm_abstract.core.binary_adapter import BinaryRuntimeAdapter, DummyRuntimeAdapter
from rm_abstract.core.errors import BadInput, DeviceMissing, PluginError, ToolchainFailure, WorkloadError
from rm_abstract.native.library import Deadlines, NativeLibrary
from rm_abstract.native.shim import Function, Returns, Shim

CORPUS = "the cat sat on the mat\nthe dog sat on the log\nthe end — fin\n"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("libraries")
    build_c(EXAMPLE_C / "ngram.c", root / "libngram.so")
    build_c(BROKEN, root / "libbroken.so", libraries=("pthread",))
    build_c(Path(__file__).parent / "native_vendor.c", root / "libvx.so", defines=("_GNU_SOURCE",))
    build_c(BROKEN, root / "libmany.so", defines=(
        'FACTS="{\\"tokenizer\\":\\"bytes\\",\\"vocabulary_size\\":3,\\"max_sequence_length\\":9}"',
    ), libraries=("pthread",))  # fmt: skip
    return root


@pytest.fixture(scope="module")
def engine(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engine")
    (root / "model").mkdir()
    (root / "model/corpus.txt").write_text(CORPUS)
    (root / "out").mkdir()
    with NativeLibrary(libraries / "libngram.so") as library:
        library.compile(root / "model", root / "out")
    return root / "out"


Make = Callable[..., BinaryRuntimeAdapter]


@pytest.fixture
def make(libraries: Path, engine: Path) -> Iterator[Make]:
    made: list[BinaryRuntimeAdapter] = []

    def runtime(name: str = "libngram.so", **options: Any) -> BinaryRuntimeAdapter:
        options = {"engine_path": engine, "runtime_so": name, "search_paths": [libraries], **options}
        made.append(BinaryRuntimeAdapter(**options))
        return made[-1]

    yield runtime
    for each in made:
        each.unload()


def test_a_library_generates(make: Make) -> None:
    runtime = make(device_id=0)
    runtime.load()
    assert runtime.loaded
    runtime.load()
    assert runtime.run("the c", max_tokens=40) == greedy(CORPUS, "the c", 40)
    tokens = runtime.run(list(b"the c"), max_tokens=3)
    assert bytes(tokens).decode() == greedy(CORPUS, "the c", 3)
    runtime.unload()
    assert not runtime.loaded
    with pytest.raises(BadInput, match="call load"):
        runtime.run("x")


def test_text_comes_in_pieces_and_a_character_in_one(make: Make) -> None:
    with make() as runtime:
        pieces = list(runtime.stream("the end", max_tokens=40))
    assert "".join(pieces) == greedy(CORPUS, "the end", 40)
    assert "—" in pieces, "three bytes that are one character"
    assert len(pieces) > 3


def test_whoever_stops_reading_cancels(make: Make, engine: Path) -> None:
    with make() as runtime:
        stream = runtime.stream("the c", max_tokens=30)
        assert next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert runtime.run("the d", max_tokens=4) == greedy(CORPUS, "the d", 4)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("", {}, "the input is empty"),
        ([], {}, "the input is empty"),
        ("x", {"max_tokens": 0}, "max_tokens is 0"),
        ("x", {"max_tokens": 10**9}, "there is room for 1 to"),
        ("x", {"warmth": 1}, "an option is not known"),
    ],
)
def test_what_cannot_be_run_is_refused(make: Make, inputs: Any, options: dict[str, Any], message: str) -> None:
    with make() as runtime, pytest.raises(BadInput, match=message):
        runtime.run(inputs, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"runtime_so": "libnothing.so"}, BadInput, r"no libnothing.so in .*/libraries.*search_paths"),
        ({"runtime_so": "/no/such/lib.so"}, BadInput, "no lib.so in /no/such"),
        ({"runtime_so": ""}, BadInput, "name it as runtime_so"),
        ({"engine_path": "/no/engine"}, BadInput, "compile one first"),
        ({"device_id": 7}, DeviceMissing, "no device number 7"),
    ],
)
def test_what_cannot_be_loaded(make: Make, options: dict[str, Any], error: type[Exception], message: str) -> None:
    runtime = make(**options)
    with pytest.raises(error, match=message):
        runtime.load()
    assert not runtime.loaded


def test_a_library_beside_its_engine_is_found(libraries: Path, engine: Path, tmp_path: Path) -> None:
    for file in [*engine.iterdir(), libraries / "libngram.so"]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with BinaryRuntimeAdapter(tmp_path, runtime_so="libngram.so") as runtime:
        assert runtime.run("the d", max_tokens=3) == greedy(CORPUS, "the d", 3)


def test_a_library_in_the_usual_variable_is_found(
    libraries: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{libraries}")
    with BinaryRuntimeAdapter(engine, 0, "libngram.so") as runtime:
        assert runtime.loaded


def test_plain_c_through_a_shim(make: Make, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("It was the best of times, it was the worst of times.")
    shim = Shim(
        "vx",
        "4.2.0",
        load=Function("vx_load", ("path", "device_index", "option:uint64=threads", "handle_out")),
        run=Function("vx_stream", ("handle", "input", "input_length", "on_token", "user")),
        unload=Function("vx_unload", ("handle",)),
        error=Function("vx_explain", ("status",), Returns.TEXT),
        device_count=Function("vx_devices", (), Returns.COUNT),
        element="uint8",
        device_type="npu",
        facts={"tokenizer": "bytes"},
    )
    with make("libvx.so", engine_path=tmp_path / "model.txt", shim=shim, device_id=1, options={"threads": "2"}) as vx:
        assert vx.run("worst", max_tokens=9) == " of times"
        with pytest.raises(ToolchainFailure, match="VX-3 the prompt is not in the text"):
            vx.run("nothing")
        assert vx.run(list(b"best"), max_tokens=3) == list(b" of"), "a failure is that run's alone"
    with pytest.raises(DeviceMissing, match="no device number 2; there are npu0, npu1"):
        make("libvx.so", engine_path=tmp_path / "model.txt", shim=shim, device_id=2).load()


@pytest.mark.parametrize("task", ["segfault", "abort", "exit", "silent exit"])
def test_a_library_that_crashes_takes_nobody_along_and_is_loaded_anew(make: Make, task: str) -> None:
    runtime = make("libbroken.so")
    runtime.load()
    with pytest.raises(PluginError):
        runtime.run({"task": task})
    assert not runtime.loaded
    with pytest.raises(WorkloadError):
        runtime.run({"task": task})
    runtime.load()
    assert runtime.loaded


def test_a_library_that_hangs_is_ended(make: Make) -> None:
    with make("libbroken.so", deadlines=Deadlines(run=3)) as runtime:
        with pytest.raises(PluginError, match="3 s"):
            runtime.run({"task": "hang"})
        runtime.load()


@pytest.mark.parametrize(
    ("most", "message"), [(2, "gave more than the 2 tokens"), (8, "not among the model's 3: \\[1, 2, 3\\]")]
)
def test_a_library_whose_tokens_are_a_lie(make: Make, most: int, message: str) -> None:
    with make("libmany.so") as runtime, pytest.raises(PluginError, match=message):
        runtime.run("a", max_tokens=most)


def test_a_text_for_a_library_without_a_tokenizer(make: Make) -> None:
    with make("libbroken.so") as runtime, pytest.raises(BadInput, match="give it tokens"):
        runtime.run("text")


# The stand-in


def test_the_dummy_says_its_input_again() -> None:
    with DummyRuntimeAdapter("engine.bin") as dummy:
        assert dummy.run("one two", max_tokens=5) == "one two one two one"
        assert list(dummy.stream("one two")) == ["one", " two"]
        assert dummy.run([1, 2, 3], max_tokens=2) == [1, 2]
        assert list(dummy.stream([1, 2])) == [[1], [2]]
        assert dummy.run("") == ""
    with pytest.raises(BadInput, match="call load"):
        dummy.run("x")
    answers = DummyRuntimeAdapter(respond=lambda inputs, options: f"{inputs}?{options['max_tokens']}")
    with answers:
        assert answers.run("x", max_tokens=2) == "x?2"
