"""The samples of source document 004 (plugins, their versions, native libraries), adapted to this package's names."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rm_abstract as rma
from native_support import EXAMPLE_C, EXAMPLE_RUST, build_c, build_rust
from rm_abstract import plugins
from rm_abstract.core.errors import BadInput


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    plugins.get_registry().reset()
    yield
    for info in plugins.list_plugins():
        if "library" in info.extra:
            plugins.unload_plugin(info.name)
    plugins.get_registry().reset()


@pytest.fixture
def my_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """./my_plugin.so, which says that it is byte-ngram."""
    monkeypatch.chdir(tmp_path)
    return build_c(EXAMPLE_C / "ngram.c", tmp_path / "my_plugin.so")


def test_version_compatibility(capsys: pytest.CaptureFixture[str]) -> None:
    current_version = plugins.VersionInfo.current()
    print(f"RM Abstract version: {current_version}")

    plugin_version = plugins.VersionInfo(1, 0, 0)
    min_required = plugins.VersionInfo(0, 1, 0)

    if current_version.is_compatible_with(min_required):
        print("Compatible!")

    assert capsys.readouterr().out == f"RM Abstract version: {rma.__version__}\nCompatible!\n"
    assert min_required < plugin_version
    assert not plugin_version.is_compatible_with(min_required)


def test_plugin_information(capsys: pytest.CaptureFixture[str]) -> None:
    plugin = (
        plugins.PluginBuilder()
        .name("my_custom_plugin")
        .version(plugins.VersionInfo(1, 0, 0))
        .description("A custom plugin for special operations")
        .author("Your Name")
        .min_rm_abstract_version(plugins.VersionInfo(0, 1, 0))
        .build()
    )
    info = plugin.info
    print(f"Plugin: {info.name} v{info.version}")
    assert capsys.readouterr().out == "Plugin: my_custom_plugin v1.0.0\n"
    assert isinstance(info, plugins.PluginInfo)
    assert info.min_rm_abstract_version == plugins.VersionInfo(0, 1, 0)
    assert info.max_rm_abstract_version is None


def test_basic_plugin_structure(capsys: pytest.CaptureFixture[str]) -> None:
    plugin = (
        plugins.PluginBuilder()
        .name("example_plugin")
        .version(plugins.VersionInfo(1, 0, 0))
        .description("An example plugin demonstrating custom operations")
        .author("Plugin Developer")
        .min_rm_abstract_version(plugins.VersionInfo(0, 1, 0))
        .build()
    )

    def initialize_plugin(registry: plugins.PluginRegistry) -> None:
        print("Plugin initialized!")

    def cleanup_plugin(registry: plugins.PluginRegistry) -> None:
        print("Plugin cleaned up!")

    def get_custom_operations() -> list[plugins.CustomOp]:
        return []

    plugin.set_initialize_fn(initialize_plugin)
    plugin.set_cleanup_fn(cleanup_plugin)
    plugin.set_custom_operations_fn(get_custom_operations)

    registry = plugins.PluginRegistry()
    registry.register(plugin)
    assert capsys.readouterr().out == "Plugin initialized!\n"
    registry.unregister("example_plugin")
    assert capsys.readouterr().out == "Plugin cleaned up!\n"


def create_square_operation() -> plugins.CustomOp:
    """A custom square operation."""

    def forward(inputs: list[Any]) -> Any:
        x = inputs[0]
        return x * x

    # The document's sample has no way to the input's value, which the gradient of x² is made of; here it is asked for.
    def backward(
        grad_output: Any,
        input_ids: list[int],
        input_shapes: list[tuple[int, ...]],
        input_dtypes: list[str],
        input_devices: list[str],
        inputs: list[Any],
    ) -> dict[int, Any]:
        gradients = {}
        if input_ids:
            gradients[input_ids[0]] = grad_output * 2 * inputs[0]
        return gradients

    def validate(inputs: list[Any]) -> None:
        if len(inputs) != 1:
            raise ValueError("square operation requires a single input")

    return rma.CustomOpBuilder("square", 1).forward(forward).backward(backward).validate(validate).build()


def create_math_plugin() -> plugins.CustomPlugin:
    plugin = (
        plugins.PluginBuilder()
        .name("math_extensions")
        .version(plugins.VersionInfo(1, 0, 0))
        .description("Additional mathematical operations")
        .author("Math Team")
        .min_rm_abstract_version(plugins.VersionInfo(0, 1, 0))
        .build()
    )

    def get_operations() -> list[plugins.CustomOp]:
        return [create_square_operation()]

    plugin.set_custom_operations_fn(get_operations)
    return plugin


def test_custom_operations_in_plugins() -> None:
    registry = plugins.PluginRegistry()
    registry.register(create_math_plugin())
    square = registry.get("operation", "square")
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    assert np.array_equal(square(x), x * x)
    assert plugins.check_gradients(square, x) < 1e-6
    with pytest.raises(BadInput, match="takes 1 inputs, not 2"):
        square(x, x)


def test_a_gradient_by_the_five_arguments_of_the_document() -> None:
    def backward(
        grad_output: Any, input_ids: Any, input_shapes: Any, input_dtypes: Any, input_devices: Any
    ) -> dict[int, Any]:
        gradients = {}
        if input_ids:
            gradients[input_ids[0]] = grad_output * 2
        return gradients

    double = rma.CustomOpBuilder("double", 1).forward(lambda inputs: inputs[0] * 2).backward(backward).build()
    assert plugins.check_gradients(double, np.array([1.0, -4.0])) < 1e-6


def test_loading_and_managing_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    registry = plugins.PluginRegistry(())
    plugin = create_math_plugin()
    registry.register(plugin)

    for plugin_info in registry.list_plugins():
        print(f"Plugin: {plugin_info.name} v{plugin_info.version}")
        print(f"  Author: {plugin_info.author}")
        print(f"  Description: {plugin_info.description}")
    assert capsys.readouterr().out.splitlines() == [
        "Plugin: math_extensions v1.0.0",
        "  Author: Math Team",
        "  Description: Additional mathematical operations",
    ]

    assert registry.is_registered("math_extensions")
    math_plugin = registry.get_plugin("math_extensions")
    assert math_plugin is plugin

    registry.unregister("math_extensions")
    assert not registry.is_registered("math_extensions")
    assert not registry.is_registered("square")


def test_global_plugin_management(my_plugin: Path) -> None:
    plugins.load_plugin("./my_plugin.so")
    assert [f"Loaded: {plugin_info}" for plugin_info in plugins.list_plugins()] == [
        "Loaded: byte-ngram v1.2.0 by RM Abstract"
    ]
    info = plugins.get_plugin_info("byte-ngram")
    assert info.description == "Continues bytes with what followed them most often"
    assert plugins.is_plugin_loaded("byte-ngram")
    plugins.unload_plugin("byte-ngram")
    assert not plugins.is_plugin_loaded("byte-ngram")

    with pytest.raises(BadInput, match="there is no library"):
        plugins.load_plugin("./another_plugin.so")
    for ask in (plugins.get_plugin_info, plugins.unload_plugin):
        with pytest.raises(BadInput, match="there is no runtime plugin named my_plugin"):
            ask("my_plugin")


def test_rust_plugin_example(tmp_path: Path) -> None:
    """The document's Rust plugin hands over a C++ of Rust's own making; this one exports a C interface."""
    manifest = (EXAMPLE_RUST / "Cargo.toml").read_text()
    assert 'crate-type = ["cdylib"]' in manifest
    assert "[dependencies]" not in manifest
    info = plugins.load_plugin(build_rust(EXAMPLE_RUST, tmp_path, "line_recall"))
    assert (info.name, str(info.version), str(info.min_rm_abstract_version)) == ("line-recall", "0.3.1", "0.1.0")
    assert info.max_rm_abstract_version is None


def test_example_plugin_structure() -> None:
    for path in ("Cargo.toml", "README.md", "plugin.json", "src/lib.rs"):
        assert (EXAMPLE_RUST / path).is_file()
    assert re.search(r'^version = "0\.3\.1"$', (EXAMPLE_RUST / "Cargo.toml").read_text(), re.MULTILINE)


def test_debugging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    broken = tmp_path / "my_plugin.so"
    broken.write_bytes(b"\x7fELF and nothing else")
    try:
        plugins.load_plugin(str(broken))
    except Exception as e:
        said = f"Error details: {e}"
        current = plugins.VersionInfo.current()
        said += f"\nCurrent RM Abstract version: {current}"
    assert re.match(r"Error details: my_plugin\.so: the system cannot load it: .*my_plugin\.so", said)
    assert said.endswith(f"\nCurrent RM Abstract version: {rma.__version__}")


def test_api_reference() -> None:
    classes = ("VersionInfo", "PluginInfo", "CustomPlugin", "PluginRegistry", "CustomLayer", "PluginBuilder")
    assert all(isinstance(getattr(plugins, name), type) for name in classes)
    functions = ("load_plugin", "unload_plugin", "list_plugins", "get_plugin_info", "is_plugin_loaded")
    assert all(callable(getattr(plugins, name)) for name in functions)
