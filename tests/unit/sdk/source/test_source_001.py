"""The code samples of document 001, the library's front page, with our package names, run as they stand.

What needs real engines (the sample of "Basic Usage") runs in `tests/sdk_devices`.
"""

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rm_abstract
from rm_abstract.core.errors import WorkloadError
from rm_abstract.core.plugin import Plugin, PluginMetadata, PluginPriority, get_registry
from rm_abstract.core.resource_manager import ResourceManager

ROOT = Path(__file__).parents[4]


class MyAcceleratorPlugin(Plugin):
    """The sample of "Create Custom Plugin"."""

    options: Any = None

    @classmethod
    def metadata(cls) -> PluginMetadata:
        return PluginMetadata(
            name="my_accel",
            display_name="My Custom Accelerator",
            version="1.0.0",
            priority=PluginPriority.HIGH,
            device_types=["custom", "npu", "rbln", "furiosa", "gpu"],
            description="Custom accelerator plugin",
        )

    def is_available(self) -> bool:
        return True

    # Implement other methods...

    def prepare_resource(self, resource: Any, config: Any = None) -> Any:
        MyAcceleratorPlugin.options = config
        return resource

    def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
        return [resource, inputs]


@pytest.fixture
def accelerator() -> Iterator[None]:
    """Register and use."""
    get_registry().register(MyAcceleratorPlugin)
    yield
    rm_abstract.shutdown()
    get_registry().unregister("my_accel", force=True)


@pytest.mark.parametrize("device", ["npu:0", "gpu:0", "rbln:0", "furiosa:0", "auto", "my_accel", "custom"])
def test_one_line_selects_a_device(accelerator: None, device: str) -> None:
    import rm_abstract

    rm_abstract.init(device=device)

    assert rm_abstract.get_controller().plugin.metadata().name == "my_accel"
    assert str(rm_abstract.get_controller().device) == device


@pytest.mark.parametrize("device", ["pim:0", "tpu:0"])
def test_a_device_that_nothing_here_is_for_is_refused(accelerator: None, device: str) -> None:
    with pytest.raises(WorkloadError, match=f"no plugin for {device[:3]} is available here"):
        rm_abstract.init(device=device)


def test_the_environment_configures_it(accelerator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RM_DEVICE", "npu:0")
    monkeypatch.setenv("RM_CACHE_DIR", str(tmp_path))
    config = rm_abstract.init().config
    assert (str(config.device), config.cache_dir) == ("npu:0", tmp_path)


def test_compilation_options(accelerator: None, capsys: pytest.CaptureFixture[str]) -> None:
    import rm_abstract

    controller = rm_abstract.init(
        device="rbln:0",
        compile_options={
            "optimization_level": 3,
            "precision": "fp16",
        },
        cache_dir="~/.rm_abstract/cache",
        verbose=True,  # Show compilation progress
    )

    assert controller.config.cache_dir == Path.home() / ".rm_abstract" / "cache"
    assert "My Custom Accelerator runs what is asked of rbln:0" in capsys.readouterr().err
    controller.backend.prepare_model(b"weights").release()
    assert (MyAcceleratorPlugin.options.dtype, dict(MyAcceleratorPlugin.options.options)) == (
        "fp16",
        {"optimization_level": "3"},
    )


def test_available_plugins_are_listed(accelerator: None) -> None:
    import rm_abstract

    # List all available plugins
    plugins = rm_abstract.list_plugins(available_only=True)
    lines = [f"{info['display_name']} - Priority: {info['priority']}" for name, info in plugins.items()]

    assert "My Custom Accelerator - Priority: 75" in lines


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_plugin_system(accelerator: None, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    import rm_abstract

    if how == "argument":
        # Enable plugin system (experimental)
        rm_abstract.init(device="auto", use_plugin_system=True)
    else:
        monkeypatch.setenv("RM_USE_PLUGINS", "true")
        rm_abstract.init(device="auto")

    manager = rm_abstract.get_resource_manager()
    with manager.prepare_resource(b"weights") as prepared:
        assert manager.execute(prepared, "hello") == [b"weights", "hello"]


def test_both_systems_run_the_same_plugin(accelerator: None) -> None:
    with rm_abstract.init(device="npu:0", use_plugin_system=False) as controller:
        backend = controller.backend
        with backend.prepare_model(b"weights") as prepared:
            assert backend.execute(prepared, "hello") == [b"weights", "hello"]
        assert backend.get_device_info()["plugin"] == "my_accel"
        with pytest.raises(WorkloadError, match="use_plugin_system=True"):
            rm_abstract.get_resource_manager()


def test_the_supported_environments_are_there() -> None:
    """Each row of the table: a plugin for GPUs over vLLM, for the CPU over PyTorch; NPUs by their vendors' plugins."""
    plugins = rm_abstract.list_plugins()
    assert "gpu" in plugins["vllm"]["device_types"]
    assert "cpu" in plugins["pytorch"]["device_types"]
    assert "npu" in plugins["simulated-npu"]["device_types"]


def test_an_accelerator_comes_before_a_gpu_and_that_before_the_cpu() -> None:
    plugins = rm_abstract.list_plugins()
    order = sorted(("pytorch", "vllm", "simulated-npu"), key=lambda name: -plugins[name]["priority"])
    assert order == ["simulated-npu", "vllm", "pytorch"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("rm_abstract", "init"),
        ("rm_abstract.core.backend", "Backend"),
        ("rm_abstract.core.controller", "DeviceFlowController"),
        ("rm_abstract.core.config", "Config"),
        ("rm_abstract.core.plugin", "Plugin"),
        ("rm_abstract.core.resource_manager", "ResourceManager"),
        ("rm_abstract.backends.plugin_adapter", "create_backend_plugin"),
        ("rm_abstract.backends.auto_register", "auto_register"),
        ("rm_abstract.hooks", "Hooks"),
    ],
)
def test_the_structure(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_the_flow_of_a_controller(accelerator: None) -> None:
    controller = rm_abstract.init(device="npu:0")
    assert isinstance(controller.manager, ResourceManager)
    assert rm_abstract.init(device="npu:0") is controller
    rm_abstract.shutdown()
    assert not controller.running
    rm_abstract.shutdown()
    with pytest.raises(WorkloadError, match=r"call rm_abstract.init\(\) first"):
        rm_abstract.get_controller()


def test_the_licence_is_mit() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["license"]) == ("rm-abstract", "MIT")
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_the_line_before_a_script_imports_no_library_of_the_scripts() -> None:
    heavy = "{'torch', 'transformers', 'pydantic'}"
    code = f"import sys, rm_abstract; rm_abstract.init(device='openvino'); print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
