"""The code samples of document 003, discovery, with our package names, over plugins of the names that it has."""

import gc
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from discovery_support import fresh_modules, imports, write
from onnx import TensorProto, helper
from qonnx.core import onnx_exec
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.base import Transformation
from rm_abstract.core.errors import BadInput
from rm_abstract.core.reload import HotReloader
from rm_abstract.plugins import backends as bk
from rm_abstract.plugins import (
    get_plugin_manager,
    get_registry,
    load_blueprint_plugins,
    reset_plugin_system,
    steps,
    transform,
)
from rm_abstract.plugins import kernels as kn
from rm_abstract.plugins import transforms as tfm

STAND_IN = Path(__file__).parents[1] / "finn_stand_in"

PLUGINS = {
    "__init__.py": "",
    # What is asked here is that a real QONNX model goes through classes of ours, which change it visibly.
    "expand_norms.py": """
        from qonnx.transformation.base import Transformation
        from rm_abstract.plugins import transform

        @transform(
            name="ExpandNorms",
            stage="topology_opt",
            description="Expand normalization operations"
        )
        class ExpandNorms(Transformation):
            def apply(self, model):
                graph_modified = False
                for node in model.graph.node:
                    if node.op_type == "Identity":
                        node.op_type, graph_modified = "Abs", True
                return model, graph_modified
        """,
    "topology.py": """
        import numpy as np
        from qonnx.transformation.base import Transformation
        from rm_abstract.plugins import transform

        @transform(name="ConvertDivToMul", stage="topology_opt")
        class ConvertDivToMul(Transformation):
            def apply(self, model):
                for node in model.graph.node:
                    divisor = model.get_initializer(node.input[1]) if node.op_type == "Div" else None
                    if divisor is not None:
                        node.op_type = "Mul"
                        model.set_initializer(node.input[1], (1 / divisor).astype(np.float32))
                        return model, True
                return model, False

        @transform(name="MergeOpChains", stage="topology_opt")
        class MergeOpChains(Transformation):
            def apply(self, model):
                return model, False
        """,
    "kernels.py": """
        from rm_abstract.plugins import backend, kernel

        @kernel(name="LayerNorm")
        class LayerNorm: ...

        @backend(name="LayerNormHLS", kernel="LayerNorm", backend_type="hls")
        class LayerNormHLS(LayerNorm): ...

        @backend(name="LayerNormRTL", kernel="LayerNorm", backend_type="rtl")
        class LayerNormRTL(LayerNorm): ...
        """,
    "build_steps.py": """
        from rm_abstract.plugins import step

        @step(name="cleanup")
        def cleanup(model, cfg):
            cfg.append("cleanup")
            return model

        @step(name="hardware_inference")
        def hardware_inference(model, cfg):
            cfg.append("hardware_inference")
            return model
        """,
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with plugins and the configuration of the document."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(STAND_IN))
    for name in ("RM_PLUGIN_CACHE_TTL", "RM_PLUGIN_MODE", "RM_PLUGIN_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path / ".rm_abstract" / "plugins", PLUGINS, imported=tmp_path / "imported")
    (tmp_path / ".rm_abstract" / "config.yaml").write_text(
        "plugin_system:\n  cache_ttl: 300\n  discovery_mode: full\n  performance_tracking: true\n"
    )
    reset_plugin_system()
    with fresh_modules("rm_plugins_", "finn"):
        yield tmp_path
    reset_plugin_system()


@pytest.fixture
def model(tmp_path: Path) -> ModelWrapper:
    """y = |x| / 4 + (2 · 3), with an Identity in the place of the norm."""
    nodes = [
        helper.make_node("Mul", ["two", "three"], ["six"]),
        helper.make_node("Identity", ["x"], ["norm"]),
        helper.make_node("Div", ["norm", "four"], ["quarter"]),
        helper.make_node("Add", ["quarter", "six"], ["y"]),
    ]
    constants = {"two": 2.0, "three": 3.0, "four": 4.0}
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [helper.make_tensor(name, TensorProto.FLOAT, [1], [value]) for name, value in constants.items()],
        value_info=[
            helper.make_tensor_value_info("six", TensorProto.FLOAT, [1]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("norm", "quarter")),
        ],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), "model.onnx")
    return ModelWrapper("model.onnx")


def operations(model: ModelWrapper) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_the_registry_has_an_entry_of_each_type_under_its_type_and_name() -> None:
    get_plugin_manager().discover_plugins()
    registry = get_registry()
    entries = {
        f"{each.type}:{each.name}": {"type": each.type, "name": each.name, **each.attributes}
        for each in registry.entries() if each.qualified_name in ("ExpandNorms", "LayerNorm", "LayerNormHLS")
    }  # fmt: skip
    assert entries == {
        "transform:ExpandNorms": {
            "type": "transform", "name": "ExpandNorms", "stage": "topology_opt",
            "description": "Expand normalization operations",
        },
        "kernel:LayerNorm": {"type": "kernel", "name": "LayerNorm"},
        "backend:LayerNormHLS": {
            "type": "backend", "name": "LayerNormHLS", "kernel": "LayerNorm", "backend_type": "hls",
        },
    }  # fmt: skip
    assert issubclass(registry.get("backend", "LayerNormHLS"), registry.get("kernel", "LayerNorm"))


def test_transforms_are_used_with_qonnx_models_like_this(model: ModelWrapper) -> None:
    inputs = {"x": np.array([-4, -1, 0, 8], dtype=np.float32)}
    model = model.transform(tfm.ExpandNorms())
    model = model.transform(tfm.ConvertDivToMul())
    model = model.transform(tfm.qonnx.FoldConstants())
    model = model.transform(tfm.finn.Streamline())
    assert operations(model) == ["Abs", "Mul", "Add"]
    assert model.graph.name == "streamlined"
    expected = np.abs(inputs["x"]) / 4 + 6
    np.testing.assert_allclose(onnx_exec.execute_onnx(model, inputs)["y"], expected, rtol=1e-6)


def test_steps_are_used_like_this(model: ModelWrapper) -> None:
    BUILD_STEPS = [  # noqa: N806 (the document's name)
        steps.cleanup,
        lambda m, cfg: m.transform(tfm.ExpandNorms()),
        steps.qonnx_to_finn,
        lambda m, cfg: m.transform(tfm.finn.Streamline()),
        steps.hardware_inference,
    ]
    done: list[str] = []
    for step in BUILD_STEPS:
        model = step(model, done)
    assert done == ["cleanup", "hardware_inference"]
    assert "Abs" in operations(model)

    def optimize_topology(model: Any, cfg: Any) -> Any:
        model = model.transform(tfm.ExpandNorms())
        model = model.transform(tfm.ConvertDivToMul())
        return model.transform(tfm.MergeOpChains())

    assert "Div" not in operations(optimize_topology(model, None))


def test_a_plugin_is_registered_like_this() -> None:
    @transform(name="Mine", stage="topology_opt", description="Expand normalization operations")
    class Mine(Transformation):  # type: ignore[misc]
        def apply(self, model: Any) -> tuple[Any, bool]:
            return model, False

    assert tfm.Mine is Mine
    assert get_registry().entry("transform", "Mine").attributes["stage"] == "topology_opt"


def test_decorators_check_what_they_are_put_on() -> None:
    with pytest.raises(BadInput, match="no transform"):
        transform(name="Bad")(type("Bad", (), {}))


def test_versions_are_checked() -> None:
    kernel = transform(name="Now", version="1.2.3", min_host_version="0.1.0")
    kernel(type("Now", (), {"apply": lambda self, model: (model, False)}))
    assert get_registry().entry("transform", "Now").version == "1.2.3"
    for said, message in (
        ({"min_host_version": "99.0.0"}, "needs RM Abstract 99.0.0 or newer"),
        ({"max_host_version": "0.0.1"}, "works with RM Abstract up to 0.0.1"),
        ({"version": "one"}, "plugin Other: 'one' is no version"),
    ):
        with pytest.raises(BadInput, match=message):
            transform(name="Other", **said)(type("Other", (), {"apply": print}))
    assert not get_registry().is_registered("Other")


def test_discovery_is_used_like_this(project: Path) -> None:
    manager = get_plugin_manager()
    found = manager.discover_plugins(modes=["full"])
    assert {entry.framework for entry in found if entry.type == "transform"} == {"", "qonnx", "finn"}
    assert imports(project / "imported") == []

    Path("model.yaml").write_text("hw_compiler: {transforms: [ExpandNorms]}")
    plugins = load_blueprint_plugins("model.yaml")
    assert [entry.name for entry in plugins.entries] == ["ExpandNorms"]


def test_plugins_are_accessed_like_this(model: ModelWrapper) -> None:
    model = model.transform(tfm.ExpandNorms())
    model = model.transform(tfm.finn.Streamline())
    transform_cls = tfm.ExpandNorms
    assert issubclass(transform_cls, Transformation)
    registry = get_registry()
    assert registry.get("transform", "ExpandNorms") is transform_cls


def test_instances_are_held_weakly_like_this() -> None:
    manager = get_plugin_manager()
    instance = manager.get_instance("kernel", "LayerNorm")
    assert manager.get_instance("kernel", "LayerNorm") is instance
    gone = weakref.ref(instance)
    del instance
    gc.collect()
    assert gone() is None


def test_instances_are_safe_to_ask_for_from_threads() -> None:
    manager, start, got = get_plugin_manager(), threading.Barrier(8), []

    def ask() -> None:
        start.wait(60)
        got.append(manager.get_instance("kernel", "LayerNorm"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({id(each) for each in got}) == 1
    assert len(got) == 8


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_PLUGIN_CACHE_TTL", "30")
    monkeypatch.setenv("RM_PLUGIN_MODE", "blueprint")
    monkeypatch.setenv("RM_PLUGIN_DEBUG", "1")
    config = get_plugin_manager().config
    assert (config.cache_ttl, config.discovery_mode, config.debug) == (30, "blueprint", True)
    assert logging.getLogger("rm_abstract.plugin").level == logging.DEBUG


def test_the_file_is_read(project: Path) -> None:
    (project / ".rm_abstract" / "config.yaml").write_text(
        """
plugin_system:
  cache_ttl: 300
  discovery_mode: blueprint
  frameworks:
    - rm_abstract
    - qonnx
  performance_tracking: true
"""
    )
    config = get_plugin_manager().config
    assert (config.cache_ttl, config.discovery_mode, config.frameworks, config.performance_tracking) == (
        300, "blueprint", ("rm_abstract", "qonnx"), True,
    )  # fmt: skip


def test_the_workflow_of_development(model: ModelWrapper, capsys: pytest.CaptureFixture[str]) -> None:
    print(tfm.list_plugins())
    assert "'ConvertDivToMul', 'ExpandNorms', 'MergeOpChains'" in capsys.readouterr().out
    assert "qonnx.RemoveIdentityOps" in tfm.list_plugins()
    # What the document's example calls MyTransform.
    model = model.transform(tfm.ConvertDivToMul())
    model = model.transform(tfm.qonnx.RemoveIdentityOps())
    assert operations(model).count("Div") == 0
    assert kn.LayerNorm
    assert bk.list_plugins(kernel="LayerNorm") == ["LayerNormHLS", "LayerNormRTL"]


def test_production_loads_a_blueprint_like_this(model: ModelWrapper) -> None:
    Path("production_model.yaml").write_text(
        """
hw_compiler:
  kernels:
    - {"kernel": "LayerNorm", "backends": ["hls"]}
  transforms:
    - "ExpandNorms"
    - "~folding"  # Optional
  transforms_phased:
    pre_hw: ["ConvertDivToMul"]
    post_hw: ["MergeOpChains"]
"""
    )
    plugins = load_blueprint_plugins("production_model.yaml")
    tfm = plugins["transforms"]
    kn = plugins["kernels"]
    bk = plugins["backends"]
    model = model.transform(tfm.ExpandNorms())
    assert "Abs" in operations(model)
    assert (kn.list_plugins(), bk.list_plugins()) == (["LayerNorm"], ["LayerNormHLS"])
    assert [each.__name__ for each in plugins.phase("pre_hw")] == ["ConvertDivToMul"]
    assert plugins.missing == ("transform folding",)


def test_tests_begin_anew_like_this() -> None:
    transform(name="Test")(type("Test", (), {"apply": print}))
    reset_plugin_system()
    assert "Test" not in tfm


def test_figures_are_printed_like_this(capsys: pytest.CaptureFixture[str]) -> None:
    manager = get_plugin_manager()
    manager.discover_plugins()
    manager.discover_plugins()
    stats = manager.get_performance_stats()
    print(f"Discovery time: {stats['discovery_time_ms']}ms")
    print(f"Cache hit rate: {stats['cache_hit_rate']:.2%}")
    print(f"Memory usage: {stats['memory_usage_mb']}MB")
    print(f"Plugin count: {stats['plugin_count']}")
    assert "Cache hit rate: 50.00%" in capsys.readouterr().out
    assert stats["discovery_time_ms"] > 0


def test_debugging_is_switched_on_like_this(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("rm_abstract.plugin").setLevel(logging.DEBUG)
    manager = get_plugin_manager()
    manager.set_debug_mode(True)
    manager.discover_plugins()
    assert "discovery in the mode full took" in caplog.text


def test_health_is_checked_like_this() -> None:
    manager = get_plugin_manager()
    health = manager.health_check()
    assert health["status"] == "healthy"
    assert health["cache_available"]
    assert health["frameworks_available"] >= 1


def test_a_plugin_is_loaded_anew_without_a_restart(project: Path, model: ModelWrapper) -> None:
    held = tfm.ExpandNorms
    reloader = HotReloader()
    reloader.watch("ExpandNorms", plugin_type="transform")
    path = project / ".rm_abstract" / "plugins" / "expand_norms.py"
    path.write_text(path.read_text().replace('"Abs"', '"Neg"'))
    assert list(reloader.poll().values()) == [""]
    assert tfm.ExpandNorms is not held
    assert "Neg" in operations(model.transform(tfm.ExpandNorms()))
    assert get_plugin_manager().discover_plugins().problems == {}


def test_nothing_of_this_is_imported_before_it_is_used() -> None:
    get_plugin_manager().discover_plugins()
    assert "finn" not in sys.modules
