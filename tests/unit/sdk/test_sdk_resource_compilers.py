"""Compilers that are binaries: command lines of every manner, configuration files of every format, bad manners."""

import json
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rm_abstract.core.binary.config_files import parse, render
from rm_abstract.core.binary_adapter import (
    ASSIGNMENTS,
    EQUALS,
    GNU,
    SINGLE_DASH,
    ArgumentStyle,
    CLICompilerAdapter,
    ConfigFileCompilerAdapter,
    ConfigFormat,
    Workplace,
    build_key,
)
from rm_abstract.core.errors import BadInput, ToolchainFailure
from rm_abstract.core.resource import ARTIFACT_FILE, BuildArtifact, BuildProfile, BuildStep, ResourceType

FLAGS = {"precision": "fp16", "optimization_level": 3}
PROFILE = BuildProfile(
    ResourceType.NPU, "vendor_npu_compiler", compiler_version="2.0", flags=FLAGS, interface="cli", output_format="npu"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_text("graph")
    return path


Tool = Callable[[str], Path]


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    """Installs ``npu_compile`` with a body in sh, in a directory of the vendor's own."""

    def install(body: str) -> Path:
        directory = tmp_path / "opt/npu/bin"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "npu_compile").write_text(f"#!/bin/sh\n{body}\n")
        (directory / "npu_compile").chmod(0o755)
        return directory

    return install


COPIES = """while [ $# -gt 0 ]; do case "$1" in --input) i=$2;; --output) o=$2;; esac; shift; done
cat "$i" > "$o"; echo done >> "$o"
"""


# Arguments


@pytest.mark.parametrize(
    ("style", "flags", "expected"),
    [
        (GNU, FLAGS, "--input I --output O --precision fp16 --optimization-level 3"),
        (EQUALS, FLAGS, "--input=I --output=O --precision=fp16 --optimization-level=3"),
        (SINGLE_DASH, FLAGS, "-input I -output O -precision fp16 -optimization_level 3"),
        (ASSIGNMENTS, FLAGS, "input=I output=O precision=fp16 optimization_level=3"),
        (ArgumentStyle(input_option="", output_option="-o"), FLAGS, "-o O --precision fp16 --optimization-level 3 I"),
        (ArgumentStyle(input_option="", output_option=""), {"x": 1}, "--x 1 I O"),
        (GNU, {"verbose": True, "debug": False, "cache": None}, "--input I --output O --verbose"),
        (ASSIGNMENTS, {"verbose": True, "debug": False}, "input=I output=O verbose=true debug=false"),
        (GNU, {"define": ["A=1", "B"]}, "--input I --output O --define A=1 --define B"),
        (ASSIGNMENTS, {"shape": [1, 2], "none": []}, "input=I output=O shape=1,2"),
        (GNU, {"text": "${HOME} $(id)", "ratio": 0.5}, "--input I --output O --text|${HOME} $(id)|--ratio 0.5"),
    ],
)
def test_flags_become_arguments(style: ArgumentStyle, flags: Mapping[str, Any], expected: str) -> None:
    whole = "|".join(part if "$" in part else "|".join(part.split()) for part in expected.split("|"))
    assert style.arguments(flags, Path("I"), Path("O")) == whole.split("|")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"output": "x"}, "the flag output becomes --output, which is there already"),
        ({"a_b": 1, "a-b": 2}, "becomes --a-b, which is there"),
        ({"x": {"y": 1}}, "the flag x is a dict"),
    ],
)
def test_flags_that_become_no_arguments(flags: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        GNU.arguments(flags, Path("I"), Path("O"))


# The command line


def test_the_short_form(tmp_path: Path, model: Path, tool: Tool) -> None:
    compiler = CLICompilerAdapter(build_profile=PROFILE, cli_name="npu_compile", search_paths=[tool(COPIES)])
    assert compiler.available()
    artifact = compiler.compile(input_path=model, output_path=tmp_path / "out/engine.bin", model_id="llama-7b")
    assert artifact.path == tmp_path / "out/engine.bin"
    assert artifact.path.read_text() == "graphdone\n"
    assert (artifact.model_id, artifact.format, artifact.versions) == (
        "llama-7b",
        "npu",
        {"vendor_npu_compiler": "2.0"},
    )
    assert BuildArtifact.read(artifact.path) == artifact
    artifact.validate()
    assert artifact.key == build_key(PROFILE, model)
    assert {path.name for path in artifact.path.parent.iterdir()} == {"engine.bin", f"engine.bin.{ARTIFACT_FILE}"}


def test_a_compiler_that_makes_a_directory(tmp_path: Path, model: Path, tool: Tool) -> None:
    directory = tool('mkdir "$4"; cp "$2" "$4/engine"')
    artifact = CLICompilerAdapter(PROFILE, [directory], cli_name="npu_compile").compile(model, tmp_path / "out")
    assert (tmp_path / "out/engine").read_text() == "graph"
    artifact.validate()
    wants = tool('cp "$2" "$4/engine"')
    (tmp_path / "empty").mkdir()
    CLICompilerAdapter(PROFILE, [wants], cli_name="npu_compile", output_directory=True).compile(
        model, tmp_path / "empty"
    )
    assert (tmp_path / "empty/engine").is_file()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo no licence; exit 7", "npu_compile ended with 7: no licence"),
        ("exit 0", "ended without an error, but left no engine.bin"),
        (': > "$4"', "left no engine.bin"),
        ('mkdir "$4"', "left no engine.bin"),
        ("kill -SEGV $$", "npu_compile ended with -11"),
        ('echo partial > "$4"; exit 1', "ended with 1"),
    ],
)
def test_a_compiler_that_fails_or_lies_leaves_nothing(
    tmp_path: Path, model: Path, tool: Tool, body: str, message: str
) -> None:
    compiler = CLICompilerAdapter(PROFILE, [tool(body)], cli_name="npu_compile")
    with pytest.raises(ToolchainFailure, match=message):
        compiler.compile(model, tmp_path / "out/engine.bin")
    assert not list((tmp_path / "out").iterdir())


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, model: Path, tool: Tool) -> None:
    body = f'sleep 100000 & echo $! > "{tmp_path}/child"; echo loading; wait'
    compiler = CLICompilerAdapter(PROFILE, [tool(body)], cli_name="npu_compile", timeout=3)
    with pytest.raises(ToolchainFailure, match="was ended after 3 s"):
        compiler.compile(model, tmp_path / "engine.bin")
    assert not (tmp_path / "engine.bin").exists()
    if (tmp_path / "child").exists():
        number = (tmp_path / "child").read_text().strip()
        state = Path(f"/proc/{number}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_what_a_compiler_leaves_running_does_not_hold_it_up(tmp_path: Path, model: Path, tool: Tool) -> None:
    """A licence daemon that keeps the output open, as vendors' tools start."""
    body = f'setsid sleep 100000 & echo $! > "{tmp_path}/daemon"; cp "$2" "$4"'
    CLICompilerAdapter(PROFILE, [tool(body)], cli_name="npu_compile").compile(model, tmp_path / "engine.bin")
    os.kill(int((tmp_path / "daemon").read_text()), 9)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: (root / "model.onnx").unlink(), "there is no model at"),
        (lambda root: (root / "engine").write_text("old"), "is there already"),
        (lambda root: (root / "engine/x").mkdir(parents=True), "is not empty"),
    ],
)
def test_paths_that_are_not_as_they_should_be(
    tmp_path: Path, model: Path, tool: Tool, prepare: Callable[[Path], object], message: str
) -> None:
    prepare(tmp_path)
    with pytest.raises(BadInput, match=message):
        CLICompilerAdapter(PROFILE, [tool(COPIES)], cli_name="npu_compile").compile(model, tmp_path / "engine")


def test_a_compiler_that_is_not_installed(tmp_path: Path, model: Path) -> None:
    compiler = CLICompilerAdapter(PROFILE)
    assert not compiler.available()
    assert compiler.needs() == ["vendor_npu_compiler"]
    with pytest.raises(ToolchainFailure, match="vendor_npu_compiler is not installed"):
        compiler.compile(model, tmp_path / "engine")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("NPU compiler 2.0.7 (c) Acme", {"vendor_npu_compiler": "2.0.7"}),
        ("v2.0", {"vendor_npu_compiler": "2.0"}),
        ("version 2.01", None),
        ("version 1.9", None),
        ("hello", None),
    ],
)
def test_a_compiler_is_asked_what_it_is(
    tmp_path: Path, model: Path, tool: Tool, answer: str, expected: dict[str, str] | None
) -> None:
    directory = tool(f'[ "$1" = --version ] && echo "{answer}" && exit; cp "$2" "$4"')
    compiler = CLICompilerAdapter(PROFILE, [directory], cli_name="npu_compile", version_arguments=["--version"])
    if expected is not None:
        assert compiler.compile(model, tmp_path / "engine").versions == expected
        return
    with pytest.raises(ToolchainFailure, match=r"npu_compile (is version|does not say its version)"):
        compiler.compile(model, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_paths_may_be_relative(tmp_path: Path, model: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(COPIES)
    monkeypatch.chdir(tmp_path)
    by_option = CLICompilerAdapter(PROFILE, ["opt/npu/bin"], cli_name="npu_compile").compile("model.onnx", "one")
    monkeypatch.setenv("PATH", f"opt/npu/bin:{os.environ['PATH']}")
    by_variable = CLICompilerAdapter(PROFILE, cli_name="npu_compile").compile("model.onnx", "deep/two")
    assert by_option.path.read_text() == by_variable.path.read_text() == "graphdone\n"


def test_the_environment_reaches_the_compiler(tmp_path: Path, model: Path, tool: Tool) -> None:
    directory = tool('echo "$LICENCE" > "$4"')
    adapter = CLICompilerAdapter(PROFILE, [directory], cli_name="npu_compile", environment={"LICENCE": "42"})
    assert adapter.compile(model, tmp_path / "engine").path.read_text() == "42\n"


def test_the_key_is_of_all_that_the_result_depends_on(tmp_path: Path, model: Path) -> None:
    key = build_key(PROFILE, model)
    assert key == build_key(PROFILE, model)
    others = {
        build_key(BuildProfile(ResourceType.NPU, "vendor_npu_compiler", flags=FLAGS), model),
        build_key(BuildProfile(ResourceType.NPU, "c", (BuildStep("s", ("c",)),), flags=FLAGS), model),
        build_key(PROFILE, model, shapes=[1, 2]),
    }
    model.write_text("other graph")
    assert len({key, build_key(PROFILE, model), *others}) == 5
    with pytest.raises(BadInput, match="a flag of c"):
        build_key(BuildProfile(ResourceType.NPU, "c", flags={"x": object()}), model)


# Configuration files

READERS: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "yaml": yaml.safe_load,
    "toml": tomllib.loads,
    "ini": lambda text: parse(text, ConfigFormat.INI),
}


@pytest.mark.parametrize("config_format", ["json", "yaml", "toml", "ini"])
def test_a_configuration_file_without_a_template(tmp_path: Path, model: Path, config_format: str) -> None:
    adapter = ConfigFileCompilerAdapter(PROFILE, config_format=config_format)
    place = Workplace(model, tmp_path / "engine", tmp_path)
    found = READERS[config_format](adapter.config(place))
    expected = {"input": str(model), "output": str(tmp_path / "engine"), **FLAGS}
    if config_format == "ini":
        assert found == {"build": {name: str(value) for name, value in expected.items()}}
    else:
        assert found == expected


TEMPLATES = {
    "json": '{"Compile": {"level": "${optimization_level}", "name": "l${optimization_level}$$", "in": "${INPUT}"}}',
    "yaml": "# how\nCompile:\n  level: ${optimization_level}\n  name: l${optimization_level}$$\n  in: ${INPUT}\n",
    "toml": '[Compile]\nlevel = "${optimization_level}"\nname = "l${optimization_level}$$"\nin = "${INPUT}"\n',
    "ini": "[Compile]\nlevel = ${optimization_level}\nname = l${optimization_level}$$\nin = ${INPUT}\n",
}


@pytest.mark.parametrize("config_format", sorted(TEMPLATES))
def test_a_compiler_reads_the_file_that_the_template_became(
    tmp_path: Path, model: Path, tool: Tool, config_format: str
) -> None:
    directory = tool('[ "$1" = -c ] && cp "$2" "$3"')
    adapter = ConfigFileCompilerAdapter(
        PROFILE,
        [directory],
        cli_name="npu_compile",
        config_format=config_format,
        template=TEMPLATES[config_format],
        arguments=["-c", "${CONFIG}", "${OUTPUT}"],
    )
    text = adapter.compile(model, tmp_path / "engine", model_id="m").path.read_text()
    level: Any = "3" if config_format == "ini" else 3
    assert READERS[config_format](text) == {"Compile": {"level": level, "name": "l3$", "in": str(model)}}


@pytest.mark.parametrize(
    ("config_format", "template", "message"),
    [
        ("json", "{", "not valid JSON"),
        ("toml", "a = ", "not valid TOML"),
        ("yaml", "a: [", "not valid YAML"),
        ("ini", "a = 1", "not valid INI"),
        ("xml", None, "there are json, yaml, toml, ini"),
    ],
)
def test_templates_that_are_refused_at_once(config_format: str, template: str | None, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ConfigFileCompilerAdapter(PROFILE, config_format=config_format, template=template)


@pytest.mark.parametrize(
    ("config_format", "template", "message"),
    [
        ("json", {"a": "${nothing}"}, "names the variable nothing"),
        ("ini", {"a": 1}, "needs sections"),
        ("ini", {"s": {"a": "two\nlines"}}, "read back as something else"),
        ("ini", {"s]": {}}, "cannot be the name of a section"),
        ("ini", {"s": {"a": {"b": 1}}}, "a is a dict"),
        ("toml", {"a": None}, "no NoneType"),
        ("toml", ["a"], "names at its top"),
        ("json", {"a": math.nan}, "cannot say"),
    ],
)
def test_configurations_that_a_format_cannot_say(
    tmp_path: Path, config_format: str, template: Any, message: str
) -> None:
    adapter = ConfigFileCompilerAdapter(PROFILE, config_format=config_format, template=template)
    with pytest.raises(BadInput, match=message):
        adapter.config(Workplace(tmp_path, tmp_path, tmp_path))


_scalars = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.text(), st.floats(allow_nan=False))
_structures = st.dictionaries(
    st.text(),
    st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(_structures)
def test_toml_says_every_structure(structure: dict[str, Any]) -> None:
    assert tomllib.loads(render(structure, ConfigFormat.TOML)) == structure


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(), st.dictionaries(st.text(), st.text(), max_size=3), max_size=3))
def test_ini_says_what_it_is_given_or_refuses(structure: dict[str, dict[str, str]]) -> None:
    try:
        text = render(structure, ConfigFormat.INI)
    except BadInput:
        return
    assert parse(text, ConfigFormat.INI) == structure
