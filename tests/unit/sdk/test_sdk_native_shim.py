"""Plain C libraries, described: all conventions of handles, buffers and callbacks; what a wrong description costs."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from native_support import build_c
from rm_abstract.core.errors import BadInput, DeviceMissing, PluginError, ToolchainFailure, WorkloadError
from rm_abstract.core.versions import VersionInfo
from rm_abstract.native.library import Deadlines, NativeLibrary
from rm_abstract.native.shim import Argument, Function, Returns, Role, Shim

TEXT = "It was the best of times, it was the worst of times."
LOAD = Function("vx_load", ("path", "device_index", "option:uint64=threads", "handle_out"))
BUFFER = Function("vx_generate", ("handle", "input", "input_length", "output", "output_length:uint32"))
RUNS: dict[str, dict[str, Any]] = {
    "buffer": {"run": BUFFER},
    "count": {
        "run": Function(
            "vx_generate2", ("handle", "input", "input_length:int32", "output", "max_tokens"), Returns.COUNT, "int64"
        )
    },
    "callback": {"run": Function("vx_stream", ("handle", "input", "input_length", "on_token", "user"))},
    "step": {
        "run": Function("vx_begin", ("handle", "input", "input_length")),
        "step": Function("vx_step", ("handle",), Returns.TOKEN),
    },
}


def shim(**members: Any) -> Shim:
    return Shim(
        **{
            "name": "vx",
            "version": "4.2.0",
            "load": LOAD,
            "run": BUFFER,
            "unload": Function("vx_unload", ("handle",)),
            "error": Function("vx_explain", ("status",), Returns.TEXT),
            "version_text": Function("vx_version", (), Returns.TEXT),
            "device_count": Function("vx_devices", (), Returns.COUNT),
            "element": "uint8",
            "device_type": "npu",
            "file": "model.txt",
            "end_tokens": (ord("."),),
            **members,
        }
    )


Open = Callable[..., NativeLibrary]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).parent / "native_vendor.c"
    return build_c(source, tmp_path_factory.mktemp("vendor") / "libvx.so", defines=("_GNU_SOURCE",))


@pytest.fixture
def vendor(path: Path) -> Iterator[Open]:
    made: list[NativeLibrary] = []

    def make(deadlines: Deadlines | None = None, **members: Any) -> NativeLibrary:
        made.append(NativeLibrary(path, shim=shim(**members), deadlines=deadlines))
        return made[-1]

    yield make
    for library in made:
        library.close()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "model.txt").write_text(TEXT)
    return tmp_path


def generate(library: NativeLibrary, artifact: Path, prompt: str, **members: Any) -> tuple[str, str]:
    made: list[int] = []
    with library.open(artifact, options={"threads": 2}) as model:
        request = {"task": "generate", "prompt": list(prompt.encode()), "max_tokens": 100, **members}
        answer = model.run(request, made.extend)
    return bytes(made).decode(), answer["finish"]


@pytest.mark.parametrize("way", RUNS)
def test_every_way_in_which_a_result_may_come(vendor: Open, artifact: Path, way: str) -> None:
    library = vendor(**RUNS[way])
    assert generate(library, artifact, "It was the ") == ("best of times, it was the worst of times.", "stop")
    assert generate(library, artifact, "It was the ", max_tokens=4) == ("best", "length")
    assert generate(library, artifact, "the worst ", ignore_eos=True) == ("of times.", "stop")
    assert generate(library, artifact, "times", max_tokens=1) == (",", "length")
    with pytest.raises(
        ToolchainFailure, match=r"libvx\.so: vx_\w+ failed with -?\d: VX-.* the prompt is not in the text"
    ):
        generate(library, artifact, "call me")


def test_a_load_that_returns_its_handle(vendor: Open, artifact: Path, tmp_path: Path) -> None:
    library = vendor(load=Function("vx_load2", ("path",), Returns.HANDLE))
    assert generate(library, artifact, "It ")[0].startswith("was the best")
    (tmp_path / "none").mkdir()
    with pytest.raises(ToolchainFailure, match=r"vx_load2 failed: VX-0 cannot open .*/none/model\.txt"):
        library.open(tmp_path / "none")


def test_numbers_in_and_out(vendor: Open, artifact: Path) -> None:
    arguments = ("handle", "input", "input_length", "option:float64=factor", "output", "output_length")
    library = vendor(run=Function("vx_scale", arguments), element="float32", output_element="float64")
    with library.open(artifact, ["npu1"], options={"threads": 3, "factor": 0.5}) as model:
        assert model.run({"input": [1, 2.5, -4]}) == {"output": [31.5, 32.25, 29.0]}
        assert model.run({"input": [2], "options": {"factor": "2"}}) == {"output": [35.0]}
        with pytest.raises(BadInput, match="the option factor: 'much' is no value of type float64"):
            model.run({"input": [2], "options": {"factor": "much"}})
        with pytest.raises(BadInput, match="no list of float32"):
            model.run({"input": ["two"]})
        with pytest.raises(BadInput, match="the tasks generate, with a prompt, and run"):
            model.run({"task": "sing"})
    with pytest.raises(BadInput, match="vx_load needs the option threads"):
        library.open(artifact)


def test_what_the_library_says_of_itself(vendor: Open) -> None:
    info = vendor(info={"formats": ["vx-text"], "vendor": "VX"}).info()
    assert (info.name, info.version) == ("vx", VersionInfo(4, 2, 0))
    assert info.extra == {"device_types": ["npu"], "formats": ["vx-text"], "vendor": "VX"}
    with pytest.raises(PluginError, match=r"says that it is version 4\.2\.0, and its description says 5\.0\.0"):
        vendor(version="5.0.0").info()


def test_devices_are_counted(vendor: Open) -> None:
    assert [device["id"] for device in vendor().probe()] == ["npu0", "npu1"]
    assert [device["id"] for device in vendor().probe(["npu1"])] == ["npu1"]
    with pytest.raises(DeviceMissing, match="there is no device npu2; there are 2"):
        vendor().probe(["npu2"])


def test_a_compiler(vendor: Open, tmp_path: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "output"
    model.mkdir(), output.mkdir()
    (model / "text").write_text("abc")
    library = vendor(compile=Function("vx_build", ("path", "output_path", "constant:text=-O2")))
    assert library.compile(model, output) == {"versions": {"vx": "4.2.0"}}
    assert (output / "model.txt").read_text() == "[-O2]abc"
    with pytest.raises(ToolchainFailure, match="VX-9 no text at"):
        library.compile(output, output)
    with pytest.raises(ToolchainFailure, match="vx has no compiler"):
        vendor().compile(model, output)


def test_a_run_is_cancelled_by_the_library_s_own_function(vendor: Open, artifact: Path) -> None:
    library = vendor(
        run=Function("vx_endless", ("handle", "on_tokens", "user")), cancel=Function("vx_stop", ("handle",))
    )
    ended, begun = threading.Event(), threading.Event()
    answers: list[Any] = []

    def on_end(answer: Any, error: WorkloadError | None) -> None:
        answers.append(answer or error)
        ended.set()

    with library.open(artifact, options={"threads": 1}) as model:
        request = {"task": "generate", "prompt": [], "max_tokens": 9}
        run = model.start(request, on_end=on_end, on_tokens=lambda _: begun.set())
        assert begun.wait(60)
        run.cancel()
        assert ended.wait(60)
    assert answers == [{"finish": "stop"}]


def test_a_library_that_lies_or_crashes(vendor: Open, artifact: Path) -> None:
    lying = vendor(run=Function("vx_lie", ("handle", "output", "output_length")))
    with pytest.raises(PluginError, match="vx_lie says that it stored 1100 elements in a room of 100"):
        generate(lying, artifact, "a")
    crashing = vendor(run=Function("vx_crash", ("handle", "output", "output_length")))
    for _ in range(2):
        with pytest.raises(PluginError, match="its process was ended by SIGABRT in rma_run"):
            generate(crashing, artifact, "a")


def test_a_function_that_is_not_there(vendor: Open) -> None:
    with pytest.raises(PluginError, match="does not export vx_fly, which its description names"):
        vendor(cancel=Function("vx_fly")).info()
    with pytest.raises(BadInput, match="vx_load is described with an argument input that it cannot have"):
        vendor(load=Function("vx_load", ("path", "input", "handle_out"))).open("/")


@pytest.mark.parametrize("way", RUNS)
def test_a_description_survives_json(way: str) -> None:
    described = shim(**RUNS[way])
    assert Shim.from_json(json.loads(json.dumps(described.to_json()))) == described


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": 1}, "a shim has no colour; it has name, version"),
        ({"load": "vx_load"}, "load of a shim is an object with a name"),
        ({"load": {"name": "f", "args": []}}, "load of a shim has no args"),
        ({"load": {"name": "f", "arguments": ["wings"]}}, "'wings' is no argument; one begins with path"),
        ({"load": {"name": "f", "arguments": ["path:int32"]}}, "the type of the argument path is not to be chosen"),
        ({"load": {"name": "f", "arguments": ["max_tokens:int"]}}, "int is no type of an argument"),
        ({"load": {"name": "f", "arguments": ["constant"]}}, "needs a value, or has one too many"),
        ({"load": {"name": "f", "arguments": ["handle=4"]}}, "needs a value, or has one too many"),
        ({"load": {"name": "f", "arguments": ["constant:int32=four"]}}, "'four' is no value of type int32"),
        ({"load": {"name": "f", "returns": "joy"}}, "f returns 'joy'; known are nothing, status"),
        ({"load": {"name": "f", "type": "text"}}, "f returns a number of type 'text'"),
        ({"load": {"name": "f", "arguments": ["handle_out"], "returns": "handle"}}, "gives its handle in one way"),
        ({"run": {"name": "f", "arguments": ["handle"]}}, "the result of f comes in one way"),
        ({"run": {"name": "f", "arguments": ["output", "on_token"]}}, "the result of f comes in one way"),
        ({"run": {"name": "f", "arguments": ["output"]}}, "f must say how much it stored"),
        ({"run": {"name": "f"}, "step": {"name": "g"}}, "g must return a token"),
        ({"element": "text"}, "text is no type of an element"),
        ({"end_tokens": ["a"]}, "whole numbers"),
        ({"facts": 3}, "info and facts of a shim are objects"),
        ({"name": ""}, "needs a name and a version"),
    ],
)
def test_a_description_that_cannot_be_right(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Shim.from_json({**shim().to_json(), **change})


def test_a_description_that_lacks_something() -> None:
    with pytest.raises(BadInput, match=r"a shim cannot be made of this: .*'load' and 'run'"):
        Shim.from_json({"name": "vx", "version": "1.0.0"})


def test_arguments_are_texts() -> None:
    assert Argument.parse("option:int32=threads") == Argument(Role.OPTION, "int32", "threads")
    assert str(Argument.parse("constant:text=a=b")) == "constant:text=a=b"
    assert Argument.parse("input_length") == Argument(Role.INPUT_LENGTH, "size")
