"""Blueprints and settings: YAML that is understood, or refused with what is wrong about it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from textwrap import dedent

import pytest
from discovery_support import fresh_modules, imports, transform, write
from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import get_registry
from rm_abstract.discovery.blueprint import Blueprint, Choice
from rm_abstract.discovery.collections import kernels, transforms
from rm_abstract.discovery.config import DiscoveryConfig, Mode, load_config
from rm_abstract.discovery.documents import read_yaml
from rm_abstract.discovery.manager import (
    PluginManager,
    get_plugin_manager,
    load_blueprint_plugins,
    reset_plugin_system,
)
from rm_abstract.discovery.store import Store

KERNELS = """
    from rm_abstract.discovery.decorators import backend, kernel, step

    @kernel(name="matmul")
    class MatMul: ...

    @kernel(name="softmax")
    class Softmax: ...

    @backend(name="MatMulHLS", kernel="matmul", backend_type="hls")
    class MatMulHls: ...

    @backend(name="MatMulRTL", kernel="matmul", backend_type="rtl")
    class MatMulRtl: ...

    @backend(name="SoftmaxHLS", kernel="softmax", backend_type="hls")
    class SoftmaxHls: ...

    @backend(name="SoftmaxRTL", kernel="softmax", backend_type="rtl")
    class SoftmaxRtl: ...

    @step
    def cleanup(model, config): ...

    @step
    def other(model, config): ...
    """


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in os.environ if name.startswith("RM_PLUGIN_")]:
        monkeypatch.delenv(name)
    reset_plugin_system()
    with fresh_modules("pkg"):
        yield
    reset_plugin_system()


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "imported"


@pytest.fixture(autouse=True)
def package(tmp_path: Path, note: Path) -> Path:
    names = ("quantization", "cleanup_transforms", "optimization_transforms", "unnamed")
    files = {f"{name}.py": transform(name) for name in names}
    write(tmp_path / "pkg", {"__init__.py": "", "kernels.py": KERNELS, **files}, imported=note)
    settings = tmp_path / ".rm_abstract" / "config.yaml"
    settings.parent.mkdir()
    settings.write_text("plugin_system: {packages: [pkg]}\n")
    return tmp_path / "pkg"


def blueprint(directory: Path, text: str) -> Path:
    path = directory / "model.yaml"
    path.write_text(dedent(text))
    return path


EXAMPLE = """
    name: a model
    hw_compiler:
      kernels:
        - "matmul"
        - {"kernel": "softmax", "backends": ["hls"]}
      transforms:
        - "quantization"
        - "~folding"  # Optional
        - "qonnx.FoldConstants"
      transforms_phased:
        pre_hw: ["cleanup_transforms"]
        post_hw: ["optimization_transforms", "~missing"]
      steps: [cleanup]
    """


def test_a_blueprint_loads_what_it_names_and_nothing_else(tmp_path: Path, note: Path) -> None:
    plugins = load_blueprint_plugins(blueprint(tmp_path, EXAMPLE))
    assert {name: plugins[name].list_plugins() for name in plugins} == {
        "transforms": ["cleanup_transforms", "optimization_transforms", "qonnx.FoldConstants", "quantization"],
        "kernels": ["matmul", "softmax"],
        "backends": ["MatMulHLS", "MatMulRTL", "SoftmaxHLS"],
        "steps": ["cleanup"],
    }
    assert [entry.name for entry in plugins.entries if entry.type != "transform"] == [
        "matmul", "MatMulHLS", "MatMulRTL", "softmax", "SoftmaxHLS", "cleanup",
    ]  # fmt: skip
    assert plugins.missing == ("transform folding", "transform missing")
    assert plugins.phases == ("pre_hw", "post_hw")
    assert imports(note) == [], "nothing is imported yet"
    assert [each.__name__ for each in plugins.phase("post_hw")] == ["optimization_transforms"]
    assert imports(note) == ["pkg", "pkg.optimization_transforms"]
    assert plugins["transforms"].quantization().apply([]) == (["quantization"], False)
    assert plugins["transforms"].qonnx.list_plugins() == ["FoldConstants"]
    with pytest.raises(
        AttributeError, match=r"no transform named unnamed; .*\(only what the blueprint names is here\)"
    ):
        plugins["transforms"].unnamed  # noqa: B018
    with pytest.raises(AttributeError, match="no step named other"):
        plugins["steps"].other  # noqa: B018
    with pytest.raises(BadInput, match="no phase mid_hw; there are pre_hw, post_hw"):
        plugins.phase("mid_hw")


def test_nothing_else_is_registered_but_what_blueprints_name(tmp_path: Path) -> None:
    load_blueprint_plugins(blueprint(tmp_path, "hw_compiler: {transforms: [quantization]}"))
    assert get_registry().names("transform") == ["quantization"]
    get_plugin_manager().discover_plugins(["full"])
    assert "unnamed" in get_registry().names("transform")
    again = load_blueprint_plugins(tmp_path / "model.yaml")
    assert again["transforms"].list_plugins() == ["quantization"]


def test_in_the_mode_blueprint_collections_have_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blueprint(tmp_path, "hw_compiler: {transforms: [quantization]}")
    monkeypatch.setenv("RM_PLUGIN_MODE", "blueprint")
    with pytest.raises(AttributeError, match="the discovery mode is blueprint: only what blueprints name"):
        transforms.quantization  # noqa: B018
    with pytest.raises(BadInput, match=r"needs a blueprint: name its file, or set plugin_system\.blueprint"):
        get_plugin_manager().discover_plugins()
    found = get_plugin_manager().discover_plugins(blueprint=path)
    assert [entry.name for entry in found] == ["quantization"]
    assert transforms.quantization
    assert kernels.list_plugins() == []
    reset_plugin_system()
    (tmp_path / ".rm_abstract" / "config.yaml").write_text("plugin_system: {packages: [pkg], blueprint: model.yaml}\n")
    assert transforms.list_plugins() == ["quantization"]


def test_a_blueprint_is_read_again_when_it_or_a_plugin_changes(tmp_path: Path, package: Path) -> None:
    path = blueprint(tmp_path, "hw_compiler: {transforms: [quantization, ~folding]}")
    manager = get_plugin_manager()
    first = manager.discover_plugins("blueprint", blueprint=path)
    assert manager.discover_plugins("blueprint", blueprint=path) is first
    write(package, {"folding.py": transform("folding")})
    assert [e.name for e in manager.discover_plugins("blueprint", blueprint=path)] == ["folding", "quantization"]
    blueprint(tmp_path, "hw_compiler: {kernels: [matmul]}")
    assert manager.load_blueprint(path)["kernels"].list_plugins() == ["matmul"]
    assert manager.load_blueprint(path)["transforms"].list_plugins() == []


def test_the_choices_of_a_blueprint(tmp_path: Path) -> None:
    path = blueprint(
        tmp_path,
        """
        hw_compiler:
          kernels: [a, ~b, {kernel: ~c, backends: [hls, ~rtl]}, {kernel: d, backends: []}, {kernel: e}]
          transforms_phased: {pre: [x], empty: }
        """,
    )
    read = Blueprint.read(path)
    hls = Choice("backend", "hls")
    assert read.choices == (
        Choice("kernel", "a"), Choice("kernel", "b", optional=True),
        Choice("kernel", "c", optional=True, backends=(hls, Choice("backend", "rtl", optional=True))),
        Choice("kernel", "d", backends=()), Choice("kernel", "e"), Choice("transform", "x", phase="pre"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "backends", "missing"),
    [
        ("softmax", ["SoftmaxHLS", "SoftmaxRTL"], ()),
        ("{kernel: softmax, backends: [rtl]}", ["SoftmaxRTL"], ()),
        ("{kernel: softmax, backends: [SoftmaxHLS]}", ["SoftmaxHLS"], ()),
        ("{kernel: softmax, backends: []}", [], ()),
        ("{kernel: softmax, backends: [rtl, ~aie]}", ["SoftmaxRTL"], ("backend aie of kernel softmax",)),
        ("~gelu", [], ("kernel gelu",)),
    ],
)
def test_backends_of_a_kernel(tmp_path: Path, kernel: str, backends: list[str], missing: tuple[str, ...]) -> None:
    plugins = load_blueprint_plugins(blueprint(tmp_path, f"hw_compiler: {{kernels: [{kernel}]}}"))
    assert plugins["backends"].list_plugins() == backends
    assert plugins.missing == missing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no blueprint: it has to be a mapping with the key hw_compiler"),
        ("kernels: [a]", "is no blueprint"),
        ("hw_compiler: [a]", "is no blueprint"),
        ("hw_compiler: {transfroms: [a]}", "hw_compiler has no key transfroms; did you mean transforms"),
        ("hw_compiler: {kernels: a}", "hw_compiler.kernels has to be a list"),
        ("hw_compiler: {kernels: [1]}", r"hw_compiler.kernels\[0\] has to be a name"),
        ("hw_compiler: {transforms: [a, ~]}", r"hw_compiler.transforms\[1\] has to be a name, with ~ before it"),
        ("hw_compiler: {transforms: [{kernel: a}]}", r"hw_compiler.transforms\[0\] has to be a name"),
        ("hw_compiler: {kernels: [{kernel: a, backend: hls}]}", "may have backends; it has kernel, backend"),
        ("hw_compiler: {kernels: [{backends: [hls]}]}", "has to have the key kernel"),
        ("hw_compiler: {transforms_phased: [a]}", "transforms_phased has to be a mapping"),
        ("hw_compiler: {transforms_phased: {pre: a}}", "transforms_phased.pre has to be a list"),
        ("hw_compiler: {", "model.yaml is no YAML: "),
        (
            "hw_compiler: {transforms: [quantisation, nothing], kernels: [{kernel: softmax, backends: [aie]}]}",
            r"no transform plugin named quantisation; did you mean quantization\?.*named nothing.*"
            r"|kernel softmax has no backend aie; it has SoftmaxHLS \(hls\), SoftmaxRTL \(rtl\)",
        ),
    ],
)
def test_a_blueprint_that_is_wrong_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = blueprint(tmp_path, text)
    with pytest.raises(BadInput, match=message):
        load_blueprint_plugins(path)


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    path = blueprint(
        tmp_path, "hw_compiler: {transforms: [quantisation], kernels: [{kernel: softmax, backends: [aie]}]}"
    )
    with pytest.raises(BadInput) as told:
        load_blueprint_plugins(path)
    assert "did you mean quantization?" in str(told.value)
    assert "kernel softmax has no backend aie; it has SoftmaxHLS (hls), SoftmaxRTL (rtl)" in str(told.value)
    with pytest.raises(BadInput, match="cannot be read"):
        load_blueprint_plugins(tmp_path / "absent.yaml")


# Settings


def settings(tmp_path: Path, text: str) -> Path:
    path = tmp_path / ".rm_abstract" / "config.yaml"
    path.write_text(dedent(text))
    return path


def test_settings_of_the_file_and_the_environment(tmp_path: Path) -> None:
    settings(
        tmp_path,
        """
        plugin_system:
          cache_ttl: 60
          discovery_mode: blueprint
          frameworks: [rm_abstract, qonnx]
          performance_tracking: true
          packages: [pkg]
          paths: [plugins, /elsewhere]
          blueprint: model.yaml
        """,
    )
    (tmp_path / ".rm_abstract" / "plugins").mkdir()
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    expected = DiscoveryConfig(
        60.0, Mode.BLUEPRINT, ("rm_abstract", "qonnx"), True, packages=("pkg",),
        paths=(str(tmp_path / "plugins"), "/elsewhere", str(tmp_path / ".rm_abstract" / "plugins")),
        blueprint=str(tmp_path / "model.yaml"),
    )  # fmt: skip
    assert load_config(below, environment={}) == expected
    environment = {"RM_PLUGIN_CACHE_TTL": "5.5", "RM_PLUGIN_MODE": "full", "RM_PLUGIN_DEBUG": "1"}
    assert load_config(environment={"RM_PLUGIN_PACKAGES": "one, two.three,"}).packages == ("one", "two.three")
    found = load_config(environment=environment)
    assert (found.cache_ttl, found.discovery_mode, found.debug) == (5.5, Mode.FULL, True)
    assert found.frameworks == ("rm_abstract", "qonnx")


def test_without_a_file_or_a_variable_all_is_as_usual(tmp_path: Path) -> None:
    settings(tmp_path, "other: 1")
    assert load_config(environment={}) == DiscoveryConfig()
    assert (DiscoveryConfig().cache_ttl, DiscoveryConfig().discovery_mode) == (300, "full")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "has to be a mapping with the key plugin_system"),
        ("plugin_system: 1", "has to be a mapping"),
        ("plugin_system: {cache_tll: 1}", "has no setting cache_tll; did you mean cache_ttl"),
        ("plugin_system: {cache_ttl: soon}", "cache_ttl is 'soon', but must be a number of seconds, 0 or more"),
        ("plugin_system: {cache_ttl: -1}", "cache_ttl is -1, but must be"),
        ("plugin_system: {cache_ttl: true}", "cache_ttl is True, but must be"),
        ("plugin_system: {discovery_mode: fast}", "must be one of full, blueprint, selective"),
        ("plugin_system: {frameworks: qonnx}", "frameworks is 'qonnx', but must be a list of words"),
        ("plugin_system: {packages: [1]}", "packages is .1., but must be a list of words"),
        ("plugin_system: {debug: perhaps}", "debug is 'perhaps', but must be true or false"),
        ("plugin_system: {redis_url: 6379}", "redis_url is 6379, but must be a text"),
        ("plugin_system: {", "config.yaml is no YAML"),
    ],
)
def test_a_setting_that_is_wrong_says_where(tmp_path: Path, text: str, message: str) -> None:
    settings(tmp_path, text)
    with pytest.raises(BadInput, match=message):
        load_config(environment={})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RM_PLUGIN_CACHE_TTL", "long", "RM_PLUGIN_CACHE_TTL is 'long'"),
        ("RM_PLUGIN_CACHE_TTL", "inf", "RM_PLUGIN_CACHE_TTL is 'inf'"),
        ("RM_PLUGIN_MODE", "fast", "RM_PLUGIN_MODE is 'fast', but must be one of full, blueprint, selective"),
        ("RM_PLUGIN_DEBUG", "maybe", "RM_PLUGIN_DEBUG is 'maybe'"),
    ],
)
def test_a_variable_that_is_wrong_says_so(name: str, value: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_config(environment={name: value})


def test_yaml_is_read_without_a_reader_while_it_is_what_it_was(tmp_path: Path) -> None:
    path = blueprint(tmp_path, EXAMPLE)
    code = (
        "import sys\nfrom rm_abstract.discovery.manager import load_blueprint_plugins\n"
        "print(len(load_blueprint_plugins('model.yaml').entries), 'yaml' in sys.modules)\n"
    )

    def run() -> str:
        argv = [sys.executable, "-c", code]
        found = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        return found.stdout.strip()

    assert run() == "10 True"
    assert run() == "10 False"
    path.write_text(path.read_text().replace("steps: [cleanup]", "steps: [cleanup, other]"))
    assert run() == "11 True"


def test_yaml_that_json_has_no_words_for_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "dates.yaml"
    path.write_text("{1: 2, day: 2026-01-02}")
    store = Store(str(tmp_path / "store"))
    for _ in range(2):
        assert read_yaml(path, store) == {1: 2, "day": date(2026, 1, 2)}


def test_a_manager_of_other_settings_leaves_the_process_alone(tmp_path: Path) -> None:
    manager = PluginManager(DiscoveryConfig(paths=(str(tmp_path / "pkg"),), frameworks=("rm_abstract",)))
    assert "quantization" in [entry.name for entry in manager.discover_plugins()]
    assert get_plugin_manager() is not manager
