"""load_plugin: a library and its plugin.json in, or a reason why not, and nothing left behind."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from native_support import BROKEN, EXAMPLE_C, EXAMPLE_RUST, build_c, build_rust
from rm_abstract import plugins
from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.core.registry import get_registry
from rm_abstract.core.versions import VersionInfo
from rm_abstract.native.library import Deadlines
from rm_abstract.native.shim import Function, Shim
from rm_abstract.plugins import PluginBuilder


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A registry without what another test left, and libraries that are closed in the end."""
    get_registry().reset()
    yield
    for entry in get_registry().entries("runtime"):
        library = getattr(get_registry().loaded(entry), "library", None)
        if library is not None:
            library.close()
    get_registry().reset()


@pytest.fixture(scope="module")
def ngram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_c(EXAMPLE_C / "ngram.c", tmp_path_factory.mktemp("c") / "libngram.so")


@pytest.fixture
def library(ngram: Path, tmp_path: Path) -> Path:
    """The library in a directory of its own."""
    copy = tmp_path / "libngram.so"
    copy.write_bytes(ngram.read_bytes())
    return copy


def describe(beside: Path, /, **members: Any) -> None:
    said = {"name": "byte-ngram", "version": "1.2.0", **members}
    (beside.parent / "plugin.json").write_text(json.dumps({key: value for key, value in said.items() if value}))


def test_a_library_in_and_out(library: Path) -> None:
    before = [info.name for info in plugins.list_plugins()]
    info = plugins.load_plugin(str(library))
    assert (info.name, info.version, info.author) == ("byte-ngram", VersionInfo(1, 2, 0), "RM Abstract")
    assert plugins.is_plugin_loaded("byte-ngram")
    assert plugins.is_plugin_loaded("Byte_NGram")
    assert plugins.get_plugin_info("byte-ngram").version == info.version
    assert [one.name for one in plugins.list_plugins()] == sorted([*before, "byte-ngram"])
    assert get_registry().get_plugin("byte-ngram").is_available()
    with pytest.raises(BadInput, match=r"there is a plugin named byte-ngram already; unload it first: unload_plugin\("):
        plugins.load_plugin(library)
    plugins.unload_plugin("byte-ngram")
    assert not plugins.is_plugin_loaded("byte-ngram")
    for ask in (plugins.get_plugin_info, plugins.unload_plugin):
        with pytest.raises(BadInput, match="no runtime plugin named byte-ngram"):
            ask("byte-ngram")
    assert plugins.load_plugin(library) == info


@pytest.mark.parametrize("example", [EXAMPLE_C, EXAMPLE_RUST])
def test_the_examples_agree_with_their_plugin_json(example: Path, library: Path, tmp_path: Path) -> None:
    said = json.loads((example / "plugin.json").read_text())
    if example == EXAMPLE_RUST:
        built = build_rust(EXAMPLE_RUST, tmp_path / "target", "line_recall")
        (tmp_path / said["library"]).write_bytes(built.read_bytes())
    (tmp_path / "plugin.json").write_text(json.dumps(said))
    info = plugins.load_plugin(tmp_path)
    assert (info.name, str(info.version)) == (said["name"], said["version"])


def test_extensions_are_in_the_same_list(library: Path) -> None:
    plugins.load_plugin(library)
    extension = PluginBuilder().name("math").version("2.0.0").build()
    get_registry().register(extension)
    assert plugins.is_plugin_loaded("math")
    assert plugins.get_plugin_info("math") is extension.info
    assert {"math", "byte-ngram"} <= {info.name for info in plugins.list_plugins()}
    plugins.unload_plugin("math")
    assert not plugins.is_plugin_loaded("math")


def test_what_comes_with_the_sdk_is_known_but_not_loaded() -> None:
    assert not plugins.is_plugin_loaded("simulated-npu")
    assert plugins.get_plugin_info("simulated-npu").name == "simulated-npu"
    with pytest.raises(BadInput, match="simulated-npu is not from a shared library"):
        plugins.unload_plugin("simulated-npu")
    assert not plugins.is_plugin_loaded("nothing")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"version": "1.2.1"}, r"libngram\.so says that its version is 1\.2\.0, and plugin\.json says 1\.2\.1"),
        ({"name": "better-ngram"}, r"says that its name is byte-ngram, and plugin\.json says better-ngram"),
        ({"author": "Somebody"}, r"says that its author is RM Abstract, and plugin\.json says Somebody"),
        ({"min_host_version": "0.0.1"}, r"says that its min_host_version is 0\.1\.0, and plugin\.json says 0\.0\.1"),
        ({"sha256": "ab" * 32}, r"has the SHA-256 \w{64}, and plugin\.json says abab.*; it is not loaded"),
    ],
)
def test_a_library_that_is_not_what_its_plugin_json_says(library: Path, members: dict[str, Any], said: str) -> None:
    describe(library, **members)
    with pytest.raises(PluginError, match=said):
        plugins.load_plugin(library)
    assert not plugins.is_plugin_loaded("byte-ngram")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"min_host_version": "99.0.0"}, r"plugin byte-ngram 1\.2\.0 needs RM Abstract 99\.0\.0 or newer"),
        ({"max_rm_abstract_version": "0.0.1"}, r"works with RM Abstract up to 0\.0\.1"),
        (
            {"max_host_vresion": "0.0.1"},
            r"plugin\.json: max_host_vresion is not known; did you mean max_host_version\?",
        ),
        ({"colour": "red"}, "colour is not known; there are name, version"),
        ({"name": None}, "it lacks name"),
        ({"version": "1.2"}, r"'1\.2' is no version"),
        ({"version": 1.2}, "version must be a text"),
        ({"extra": [1]}, "shim and extra are objects"),
        ({"library": "../libngram.so"}, "library is the name of a file beside it"),
        ({"shim": {"load": {"name": "f"}}}, "a shim cannot be made of this"),
        ({"min_host_version": "2.0.0", "max_host_version": "1.0.0"}, "works with no version"),
    ],
)
def test_a_plugin_json_that_is_refused_before_any_code_runs(tmp_path: Path, members: dict[str, Any], said: str) -> None:
    library = build_c(BROKEN, tmp_path / "libbroken.so", defines=("CRASH_ON_LOAD",), libraries=("pthread",))
    describe(library, **members)
    with pytest.raises(BadInput, match=said):
        plugins.load_plugin(library)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff", "[" * 100_000])
def test_a_plugin_json_that_is_no_json(library: Path, text: str) -> None:
    (library.parent / "plugin.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadInput, match=r"plugin\.json(: a plugin\.json is a JSON object| is not valid JSON)"):
        plugins.load_plugin(library)


def test_a_plugin_json_that_says_the_truth(library: Path) -> None:
    digest = hashlib.sha256(library.read_bytes()).hexdigest().upper()
    describe(library, library="libngram.so", sha256=digest, min_host_version="0.1.0", extra={"home": "here"})
    assert plugins.load_plugin(library.parent).name == "byte-ngram"


def test_a_plugin_json_about_another_library_does_not_matter(library: Path) -> None:
    describe(library, name="other", library="libother.so")
    assert plugins.load_plugin(library).name == "byte-ngram"
    with pytest.raises(BadInput, match=r"there is no library at .*libother\.so"):
        plugins.load_plugin(library.parent)
    describe(library)
    with pytest.raises(BadInput, match="does not name its library"):
        plugins.load_plugin(library.parent)


def test_libraries_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no library at .*/none\.so"):
        plugins.load_plugin(tmp_path / "none.so")
    with pytest.raises(BadInput, match=r"plugin\.json cannot be read: No such file"):
        plugins.load_plugin(tmp_path)


@pytest.mark.parametrize(
    ("define", "kind", "said"),
    [
        ("CRASH_ON_LOAD", PluginError, "was ended by SIGABRT in loading the library"),
        ("ABI=0x50003", PluginError, r"rma_abi_version says 5\.3"),
        ("HANG_IN_INFO", PluginError, "rma_info did not come to its end"),
        (r"INFO=\"{}\"", PluginError, "rma_info lacks name, version"),
        (
            'INFO="{\\"name\\":\\"x\\",\\"version\\":\\"1.0.0\\",\\"min_host_version\\":\\"99.0.0\\"}"',
            BadInput, "plugin x 1.0.0 needs RM Abstract 99.0.0 or newer",
        ),
    ],
)  # fmt: skip
def test_a_broken_library_leaves_nothing(tmp_path: Path, define: str, kind: type[Exception], said: str) -> None:
    define = define.replace('\\"{}\\"', '"{}"')
    library = build_c(BROKEN, tmp_path / "libbroken.so", defines=(define,), libraries=("pthread",))
    names = get_registry().names()
    with pytest.raises(kind, match=said):
        plugins.load_plugin(library, deadlines=Deadlines(info=5) if define == "HANG_IN_INFO" else None)
    assert get_registry().names() == names


def test_a_plain_library_is_described_in_its_plugin_json(tmp_path: Path) -> None:
    source = Path(__file__).parent / "native_vendor.c"
    library = build_c(source, tmp_path / "libvx.so", defines=("_GNU_SOURCE",))
    shim = Shim(
        "vx",
        "4.2.0",
        load=Function("vx_load2", ("path",), "handle"),  # type: ignore[arg-type]
        run=Function("vx_stream", ("handle", "input", "input_length", "on_token", "user")),
        element="uint8",
        file="model.txt",
        facts={"max_sequence_length": 1000, "vocabulary_size": 256},
        info={"formats": ["vx-text"]},
    )
    described = {key: value for key, value in shim.to_json().items() if key not in ("name", "version")}
    (tmp_path / "plugin.json").write_text(json.dumps({"name": "vx", "version": "4.2.0", "shim": described}))
    assert plugins.load_plugin(library).name == "vx"
    plugin = get_registry().get_plugin("vx")
    (tmp_path / "model.txt").write_text("Call me Ishmael.")
    from rm_abstract.core.resource import BuildArtifact

    resource = plugin.prepare_resource(BuildArtifact(tmp_path, "k", "vx-text"))
    assert plugin.execute(resource, "Call me ") == "Ishmael."


def test_the_facade_is_light() -> None:
    code = (
        "import sys, rm_abstract.plugins as p\n"
        "print(sorted(m for m in sys.modules if m.startswith('rm_')))\n"
        "print(sorted(set(p.__all__) - {n for n in p.__all__ if getattr(p, n) is not None}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "['rm_abstract', 'rm_abstract.plugins']"
    assert done.stdout.splitlines()[1] == "[]"
