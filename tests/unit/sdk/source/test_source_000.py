"""The code samples of document 000, the plugin architecture, with our package names, run as they stand."""

import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import rm_abstract
from plugin_support import WordPlugin, word_plugin
from rm_abstract.backends.plugin_adapter import BackendPluginAdapter, create_backend_plugin
from rm_abstract.core.backend import Backend
from rm_abstract.core.errors import WorkloadError
from rm_abstract.core.plugin import Plugin, PluginMetadata, PluginPriority, PluginRegistry, get_registry
from rm_abstract.core.resource_manager import ResourceManager


class MyPlugin(Plugin):
    """The sample of "Plugin Base Class"."""

    _initialized = False

    @classmethod
    def metadata(cls) -> PluginMetadata:
        return PluginMetadata(
            name="my_plugin",
            display_name="My Custom Plugin",
            version="1.0.0",
            vendor="MyCompany",
            priority=PluginPriority.HIGH,
            device_types=["custom"],
            requires=["torch"],
            description="My custom accelerator plugin",
        )

    def is_available(self) -> bool:
        return True

    def initialize(self) -> None:
        self._initialized = True

    def prepare_resource(self, resource: Any, config: Any = None) -> Any:
        return resource

    def execute(self, resource: Any, inputs: Any, **kwargs: Any) -> Any:
        assert self._initialized
        return f"{resource}: {inputs}"

    def cleanup(self) -> None:
        self._initialized = False


class TPUPlugin(MyPlugin):
    """The sample of "Create Custom Plugin"; where jax is not installed, it is not available."""

    @classmethod
    def metadata(cls) -> PluginMetadata:
        return PluginMetadata(
            name="tpu",
            display_name="Google TPU",
            version="1.0.0",
            vendor="Google",
            priority=PluginPriority.HIGHEST,
            device_types=["tpu"],
            requires=["jax"],
            description="Google TPU backend",
        )

    def is_available(self) -> bool:
        try:
            import jax

            return jax.devices("tpu") is not None
        except Exception:
            return False


@pytest.fixture
def registry() -> Iterator[PluginRegistry]:
    """The process's own, left as it was found."""
    registry = get_registry()
    before = set(registry.names())
    yield registry
    rm_abstract.shutdown()
    for name in set(registry.names()) - before:
        registry.unregister(name, force=True)


def test_a_plugin_has_these_methods_and_this_life(registry: PluginRegistry) -> None:
    registry.register(MyPlugin)
    manager = ResourceManager("custom")
    manager.initialize(auto_discover=True)
    plugin = manager.active_plugin
    assert isinstance(plugin, MyPlugin)
    assert plugin._initialized
    prepared = manager.prepare_resource("model", config={"precision": "fp16"})
    assert [manager.execute(prepared, inputs) for inputs in ("a", "b")] == ["model: a", "model: b"]
    manager.cleanup()
    assert not plugin._initialized


def test_metadata_has_these_fields() -> None:
    fields = [field.name for field in dataclasses.fields(PluginMetadata)]
    assert fields[:9] == ["name", "display_name", "version", "vendor", "priority", "device_types", "requires",
                          "description", "extra"]  # fmt: skip
    about = PluginMetadata(name="n", display_name="N", version="1.0.0", extra={"any": "thing"})
    assert (about.vendor, about.priority, list(about.device_types), about.extra["any"]) == (None, 50, [], "thing")


def test_priorities_have_these_values() -> None:
    values = {"HIGHEST": 100, "HIGH": 75, "NORMAL": 50, "LOW": 25, "LOWEST": 0}
    assert {one.name: int(one) for one in PluginPriority} == values


@pytest.mark.parametrize(
    ("name", "priority"),
    [("simulated-npu", PluginPriority.HIGHEST), ("vllm", PluginPriority.HIGH), ("openvino", PluginPriority.LOWEST)],
)
def test_accelerators_come_before_the_cpu(name: str, priority: PluginPriority) -> None:
    assert get_registry().get("runtime", name).metadata().priority == priority


def test_the_manager_is_used_like_this(registry: PluginRegistry) -> None:
    for name in ("cpu-words", "gpu"):
        registry.register(word_plugin(name))
    config = {"device": "cpu-words"}

    manager = ResourceManager(config)
    manager.initialize(auto_discover=True)
    prepared = manager.prepare_resource("model", config={"precision": "fp16"})
    result = manager.execute(prepared, "inputs")
    assert result == "cpu-words model inputs"
    manager.switch_plugin("gpu", device_id=0)
    assert manager.execute(prepared, "inputs") == "gpu model inputs"
    manager.cleanup()


def test_available_plugins_are_listed_like_this(registry: PluginRegistry) -> None:
    registry.register(MyPlugin)
    registry.register(TPUPlugin)
    plugins = rm_abstract.list_plugins(available_only=True)
    lines = [f"{name}: {info['display_name']} (priority={info['priority']})" for name, info in plugins.items()]
    assert "my_plugin: My Custom Plugin (priority=75)" in lines
    assert ("tpu" in plugins) is (find_spec("jax") is not None)
    assert "tpu" in rm_abstract.list_plugins()


def test_a_custom_plugin_is_registered_and_used_like_this(
    registry: PluginRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TPUPlugin, "is_available", lambda self: True)  # there is no TPU here
    get_registry().register(TPUPlugin)
    rm_abstract.init(device="tpu:0", use_plugin_system=True)
    manager = rm_abstract.get_resource_manager()
    assert isinstance(manager.active_plugin, TPUPlugin)
    assert manager.execute(manager.prepare_resource("model"), "x") == "model: x"


def test_without_its_hardware_a_custom_plugin_is_refused(registry: PluginRegistry) -> None:
    registry.register(TPUPlugin)
    with pytest.raises(WorkloadError, match="plugin tpu is not available here; it needs jax"):
        rm_abstract.init(device="tpu:0", use_plugin_system=True)


def test_plugins_are_switched_at_runtime_like_this(registry: PluginRegistry) -> None:
    for name, devices in (("words", 1), ("gpu", 2), ("rbln", 1)):
        registry.register(word_plugin(name, devices=devices))
    rm_abstract.init(device="words", use_plugin_system=True)
    manager = rm_abstract.get_resource_manager()
    prepared = manager.prepare_resource("model")
    manager.switch_plugin("gpu", device_id=1)
    active: Any = manager.active_plugin
    assert [device.id for device in active.chosen] == ["gpu1"]
    manager.switch_plugin("rbln", device_id=0)
    assert manager.execute(prepared, "x") == "rbln model x"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_plugin_system_is_enabled_like_this(
    registry: PluginRegistry, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    registry.register(word_plugin("best", priority=PluginPriority.HIGHEST))
    if how == "argument":
        rm_abstract.init(device="best", use_plugin_system=True)
    else:
        monkeypatch.setenv("RM_USE_PLUGINS", "true")
        rm_abstract.init(device="best")
    assert rm_abstract.get_resource_manager().active_name == "best"


def test_auto_takes_the_best_that_is_available(registry: PluginRegistry) -> None:
    class Surely(WordPlugin):
        pass

    registry.register(word_plugin("aaa-best", base=Surely, priority=PluginPriority.HIGHEST))
    rm_abstract.init(device="auto", use_plugin_system=True)
    assert rm_abstract.get_resource_manager().active_name == "aaa-best"


def test_without_the_plugin_system_the_device_is_a_backend(registry: PluginRegistry) -> None:
    registry.register(word_plugin("gpu", devices=2))
    controller = rm_abstract.init(device="gpu:1")
    assert isinstance(controller.backend, Backend)
    model = controller.backend.prepare_model({"a": "model"})
    assert controller.backend.execute(model, "x") == "gpu {'a': 'model'} x"
    with pytest.raises(WorkloadError, match="use_plugin_system=True"):
        rm_abstract.get_resource_manager()


class VLLMBackend(Backend):
    """Stands for the backend of the sample."""

    def is_available(self) -> bool:
        return True

    def prepare_model(self, model: Any, model_config: Any = None) -> Any:
        return f"prepared {model}"

    def execute(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
        return f"{model} on {self.device_id}: {inputs}"


def test_a_backend_is_migrated_like_this(registry: PluginRegistry) -> None:
    gpu_plugin = create_backend_plugin(
        backend_class=VLLMBackend,
        name="gpu",
        display_name="vLLM GPU Backend",
        version="1.0.0",
        priority=PluginPriority.HIGH,
        requires=["json"],  # torch and vllm in the sample; this one has to be there
    )
    get_registry().register(gpu_plugin)
    assert issubclass(gpu_plugin, BackendPluginAdapter)
    with ResourceManager("gpu:1") as manager:
        assert manager.execute(manager.prepare_resource("model"), "x") == "prepared model on 1: x"
    absent = create_backend_plugin(backend_class=VLLMBackend, name="absent", requires=["torch_of_another_planet"])
    assert not absent().is_available()


@pytest.mark.parametrize(
    ("owner", "method", "parameters"),
    [
        (PluginRegistry, "register", ["plugin"]),
        (PluginRegistry, "get_plugin", ["name", "kwargs"]),
        (PluginRegistry, "auto_select", ["device_type"]),
        (PluginRegistry, "discover_plugins", ["package"]),
        (ResourceManager, "__init__", ["config"]),
        (ResourceManager, "initialize", ["auto_discover"]),
        (ResourceManager, "prepare_resource", ["resource", "config"]),
        (ResourceManager, "execute", ["prepared", "inputs", "kwargs"]),
        (ResourceManager, "switch_plugin", ["name_or_type", "device_id"]),
        (BackendPluginAdapter, "__init__", ["backend_class", "metadata", "kwargs"]),
        (Plugin, "get_capabilities", []),
    ],
)
def test_the_patterns_have_these_methods(owner: type, method: str, parameters: list[str]) -> None:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(getattr(owner, method)).parameters.values()
    names = [one.name for one in found if one.name != "self" and one.kind in kinds]
    assert [name for name in names if name in parameters] == parameters


def test_a_plugin_lacks_none_of_its_abstract_methods() -> None:
    class Forgetful(Plugin):
        @classmethod
        def metadata(cls) -> PluginMetadata:
            return MyPlugin.metadata()

    with pytest.raises(TypeError, match=r"is_available.*prepare_resource"):
        Forgetful()  # type: ignore[abstract]


def test_a_third_party_needs_no_change_of_ours(tmp_path: Path) -> None:
    """A plugin in a file of its own is found, chosen and run by a program that does not know it."""
    (tmp_path / "vendor_kit.py").write_text(
        "from rm_abstract.core.plugin import Plugin, PluginMetadata, PluginPriority\n"
        "class Kit(Plugin):\n"
        "    @classmethod\n"
        "    def metadata(cls):\n"
        "        return PluginMetadata('kit', 'Kit', '1.0.0', priority=PluginPriority.HIGHEST, device_types=('npu',))\n"
        "    def is_available(self): return True\n"
        "    def prepare_resource(self, resource, config=None): return resource\n"
        "    def execute(self, resource, inputs, **kwargs): return f'{resource} {inputs}'\n"
    )
    program = (
        "import rm_abstract\n"
        "with rm_abstract.ResourceManager('auto') as manager:\n"
        "    print(manager.active_name, manager.execute(manager.prepare_resource('model'), 'x'))\n"
    )
    environment = {"RM_PLUGIN_PACKAGES": "vendor_kit", "PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "kit model x\n", done.stderr
