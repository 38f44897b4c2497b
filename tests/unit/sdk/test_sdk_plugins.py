"""Plugins, their registry, adapters for binary tools, and artifacts' descriptions."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from rm_abstract.core.binary_adapter import (
    BinaryCompilerAdapter,
    BinaryRuntimeAdapter,
    CLICompilerAdapter,
    ConfigFileCompilerAdapter,
    expand,
)
from rm_abstract.core.errors import (
    ArtifactMismatch,
    BadInput,
    DeviceMissing,
    DriverMismatch,
    ToolchainFailure,
    WorkloadError,
)
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority, PluginRegistry
from rm_abstract.core.registry import ENTRY_POINT_GROUP
from rm_abstract.core.resource import BuildArtifact, BuildProfile, BuildStep, Capability, Resource, ResourceType
from rm_abstract.core.session import Session
from rm_api.names import ExitCode
from rm_api.report import Report


class AcmePlugin(Plugin):
    available = True

    @classmethod
    def metadata(cls) -> PluginMetadata:
        return PluginMetadata(
            "acme", "Acme", "1.0", priority=PluginPriority.HIGH, device_types=("pim",), formats=("acme-bin",)
        )

    def is_available(self) -> bool:
        return self.available

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        step = BuildStep("copy", ("cp", "-r", "${MODEL_DIR}", "${OUTPUT}/model"), ("${OUTPUT}/model",))
        return [BuildProfile(ResourceType.PIM, "cp", (step,), output_format="acme-bin", drivers=("7",))]

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        return list(resources)

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        return Capability()

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> Any:
        return resource

    def create_session(self, resource: Any) -> Session:
        raise NotImplementedError


class BetterAcmePlugin(AcmePlugin):
    @classmethod
    def metadata(cls) -> PluginMetadata:
        return PluginMetadata("better-acme", "Better", "1", priority=PluginPriority.HIGHEST, device_types=("pim",))


@pytest.fixture
def registry() -> PluginRegistry:
    return PluginRegistry()


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, rm_abstract; heavy = {'openvino', 'numpy', 'pydantic', 'httpx2', 'starlette', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_plugins_that_come_with_it(registry: PluginRegistry) -> None:
    assert {"openvino", "simulated-npu"} <= set(registry.names())
    assert registry.get("runtime", "simulated_npu") is registry.get("runtime", "Simulated-NPU")
    for name in ("openvino", "simulated-npu"):
        plugin = registry.get_plugin(name)
        assert plugin.metadata().name == name
        profiles = plugin.required_build_profiles(BackendConfig())
        assert {profile.output_format for profile in profiles} == set(plugin.metadata().formats)


def test_a_registered_plugin_is_found_by_type_and_name(registry: PluginRegistry) -> None:
    registry.register(AcmePlugin)
    assert isinstance(registry.get_plugin("acme"), AcmePlugin)
    assert "acme" not in registry.names("kernel")
    registry.register(AcmePlugin, plugin_type="kernel", name="acme")
    assert registry.names("kernel") == ["acme"]


def test_a_name_is_taken_once(registry: PluginRegistry) -> None:
    registry.register(AcmePlugin)
    registry.register(AcmePlugin)

    class Impostor(AcmePlugin):
        pass

    with pytest.raises(ValueError, match="already is"):
        registry.register(Impostor)


def test_an_unknown_plugin_is_refused_with_the_known_names(registry: PluginRegistry) -> None:
    with pytest.raises(BadInput, match=r"no runtime plugin named nothing; there are .*openvino"):
        registry.get_plugin("nothing")


@pytest.mark.parametrize(
    ("target", "message"),
    [("no_such_module_here:X", "cannot be imported"), ("json:dumps", "is no subclass")],
)
def test_an_entry_point_that_is_broken(
    registry: PluginRegistry, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    entries = [EntryPoint("runtime.broken", target, ENTRY_POINT_GROUP)]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
    assert "broken" in registry.names(), "listing must not import anything"
    with pytest.raises(BadInput, match=message):
        registry.get_plugin("broken")


def test_entry_points_are_found_and_cannot_replace_a_built_in(
    registry: PluginRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = ENTRY_POINT_GROUP
    entries = [
        EntryPoint(name, f"{__name__}:AcmePlugin", group) for name in ("runtime.acme", "other", "runtime.openvino")
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
    assert registry.get("runtime", "acme") is AcmePlugin
    assert registry.get("runtime", "other") is AcmePlugin, "without a type, it is a runtime plugin"
    assert registry.get("runtime", "openvino") is not AcmePlugin


def test_the_best_available_plugin_is_selected(registry: PluginRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(AcmePlugin)
    registry.register(BetterAcmePlugin)
    assert isinstance(registry.auto_select("PIM"), BetterAcmePlugin)
    monkeypatch.setattr(BetterAcmePlugin, "available", False)
    assert type(registry.auto_select("pim")) is AcmePlugin
    with pytest.raises(BadInput, match="no plugin for fpga"):
        registry.auto_select("fpga")


def test_a_plugin_compiles_with_its_tools(tmp_path: Path) -> None:
    model = tmp_path / "in"
    model.mkdir()
    (model / "weights").write_text("numbers")
    plugin = AcmePlugin()
    (profile,) = plugin.required_build_profiles(BackendConfig())
    assert plugin.toolchain_available()
    artifact = plugin.compile(model, tmp_path / "out", profile, key="k1")
    assert (tmp_path / "out/model/weights").read_text() == "numbers"
    assert (
        BuildArtifact.read(tmp_path / "out")
        == artifact
        == BuildArtifact(tmp_path / "out", "k1", "acme-bin", (), ("7",))
    )
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}, "scratch was left behind"


@pytest.mark.parametrize(
    ("command", "outputs", "message"),
    [
        (("sh", "-c", "echo first; echo the cause >&2; exit 3"), (), "ended with 3: first | the cause"),
        (("true",), ("${OUTPUT}/engine",), "left no engine"),
        (("touch", "${OUTPUT}/engine"), ("${OUTPUT}/engine",), "left no engine"),
        (("no-such-compiler",), (), "is not installed"),
    ],
    ids=["fails", "no output", "empty output", "absent"],
)
def test_a_failed_compilation_leaves_nothing(
    tmp_path: Path, command: tuple[str, ...], outputs: tuple[str, ...], message: str
) -> None:
    profile = BuildProfile(ResourceType.NPU, "x", (BuildStep("s", command, outputs),), output_format="f")
    with pytest.raises(ToolchainFailure) as raised:
        CLICompilerAdapter(profile).compile(tmp_path, tmp_path / "out", "k")
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_compiler_in_a_directory_of_the_vendors_own(tmp_path: Path) -> None:
    tool = tmp_path / "opt/npu-compile"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@" > "$2/engine"\n')
    tool.chmod(0o755)
    profile = BuildProfile(ResourceType.NPU, "npu", (BuildStep("c", ("npu-compile", "${TARGET}$$", "${OUTPUT}")),),
                           flags={"TARGET": "x1"}, output_format="f")  # fmt: skip
    assert not CLICompilerAdapter(profile).available()
    CLICompilerAdapter(profile, [str(tool.parent)]).compile(tmp_path, tmp_path / "out", "k")
    assert (tmp_path / "out/engine").read_text().startswith("x1$ ")


def test_a_variable_without_a_value_is_refused() -> None:
    assert expand("a${X}b$$", {"X": "1"}) == "a1b$"
    with pytest.raises(BadInput, match="names the variable Y"):
        expand("${Y}", {"X": "1"})


def test_a_runtime_is_unloaded_whatever_happens(tmp_path: Path) -> None:
    events: list[str] = []

    class Runtime(BinaryRuntimeAdapter):
        def load(self) -> None:
            events.append(f"load {self.engine_path.name} on {self.device_id}")

        def run(self, inputs: Any, **options: Any) -> Any:
            raise RuntimeError(inputs)

        def unload(self) -> None:
            events.append("unload")

    with pytest.raises(RuntimeError, match="crash"), Runtime(tmp_path / "engine.bin", "npu0") as runtime:
        runtime.run("crash")
    assert events == ["load engine.bin on npu0", "unload"]


def test_an_artifact_says_the_same_in_the_same_bytes(tmp_path: Path) -> None:
    first = BuildArtifact(tmp_path, "k", "f", ("P",), ("1", "2"), {"b": "2", "a": "1"})
    first.write()
    once = (tmp_path / "rma-artifact.json").read_bytes()
    BuildArtifact(tmp_path, "k", "f", ("P",), ("1", "2"), {"a": "1", "b": "2"}).write()
    assert (tmp_path / "rma-artifact.json").read_bytes() == once
    assert BuildArtifact.read(tmp_path) == first


@pytest.mark.parametrize(
    "content",
    [
        None,
        "not json",
        "[]",
        json.dumps({"schema": 2, "key": "k", "format": "f"}),
        json.dumps({"schema": 1, "format": "f"}),
        json.dumps({"schema": 1, "key": "k", "format": "f", "products": "P"}),
        json.dumps({"schema": 1, "key": "k", "format": "f", "versions": {"a": 1}}),
    ],
)
def test_a_description_that_is_not_valid(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "rma-artifact.json").write_text(content)
    with pytest.raises(ArtifactMismatch):
        BuildArtifact.read(tmp_path)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(BadInput, 64), (ArtifactMismatch, 65), (DeviceMissing, 66), (DriverMismatch, 67), (ToolchainFailure, 70)],
)
def test_failures_become_reports_of_one_line(kind: type[WorkloadError], code: int) -> None:
    error = kind("two\n  lines")
    assert error.code == ExitCode(code)
    report = Report.parse(error.report().to_json())
    assert (report.message, report.retryable) == ("two lines", False)


class FromAFile(AcmePlugin):
    """A compiler that is told what to do by a file."""

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        return [BuildProfile(ResourceType.PIM, "cp", interface="ConfigFile", output_format="acme-bin")]


class FromAFileItself(FromAFile):
    def compiler(self, profile: BuildProfile) -> BinaryCompilerAdapter:
        template = {"input": "${INPUT}", "output": "${OUTPUT}"}
        return ConfigFileCompilerAdapter(
            profile, cli_name="sh", config_format="json", template=template, arguments=["-c", "cp ${CONFIG} ${OUTPUT}"]
        )


def test_a_plugin_says_how_a_profile_that_is_no_row_of_commands_is_carried_out(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (profile,) = FromAFile().required_build_profiles(BackendConfig())
    with pytest.raises(BadInput, match="plugin acme does not say how a profile with interface ConfigFile is carried"):
        FromAFile().compile(tmp_path / "model", tmp_path / "out", profile, key="k")
    plugin = FromAFileItself()
    assert plugin.toolchain_available()
    artifact = plugin.compile(tmp_path / "model", tmp_path / "out", profile, key="k")
    assert json.loads(artifact.path.read_text())["input"] == str(tmp_path / "model")
