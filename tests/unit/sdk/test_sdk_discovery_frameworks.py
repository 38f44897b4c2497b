"""Other frameworks' plugins: QONNX itself, FINN's layout in a stand-in, and adapters of others."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from discovery_support import fresh_modules, write
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.base import Transformation
from rm_abstract.core.errors import BadInput
from rm_abstract.core.registry import Origin, PluginEntry, get_registry
from rm_abstract.discovery.collections import backends, kernels, steps, transforms
from rm_abstract.discovery.config import DiscoveryConfig
from rm_abstract.discovery.frameworks.base import FrameworkAdapter
from rm_abstract.discovery.manager import PluginManager, get_plugin_manager, reset_plugin_system

STAND_IN = Path(__file__).parent / "finn_stand_in"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    reset_plugin_system()
    with fresh_modules("finn", "acme"):
        yield
    reset_plugin_system()


@pytest.fixture
def finn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STAND_IN))


@pytest.fixture
def model(tmp_path: Path) -> ModelWrapper:
    """y = x + (2 · 3), read from an ONNX file; the product is constant."""
    tensors = [helper.make_tensor(name, TensorProto.FLOAT, [1], [value]) for name, value in (("a", 2.0), ("b", 3.0))]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["a", "b"], ["six"]), helper.make_node("Add", ["x", "six"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        tensors,
        value_info=[helper.make_tensor_value_info("six", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), path)
    return ModelWrapper(str(path))


def operations(model: ModelWrapper) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_qonnx_folds_constants_by_our_name(model: ModelWrapper) -> None:
    from qonnx.core import onnx_exec
    from qonnx.transformation.fold_constants import FoldConstants

    assert transforms.qonnx.FoldConstants is FoldConstants
    assert transforms.FoldConstants is FoldConstants
    inputs = {"x": np.arange(4, dtype=np.float32)}
    before = onnx_exec.execute_onnx(model, inputs)["y"]
    assert operations(model) == ["Mul", "Add"]
    folded = model.transform(transforms.qonnx.FoldConstants())
    assert operations(folded) == ["Add"]
    np.testing.assert_array_equal(onnx_exec.execute_onnx(folded, inputs)["y"], before)


def test_every_transformation_of_qonnx_is_found_and_is_what_an_import_finds() -> None:
    """The oracle is Python: all classes that derive from Transformation once all modules are imported."""
    import pkgutil
    from importlib import import_module

    import qonnx.transformation

    expected = {}
    for module in pkgutil.walk_packages(qonnx.transformation.__path__, "qonnx.transformation."):
        for name, value in vars(import_module(module.name)).items():
            here = isinstance(value, type) and value.__module__ == module.name != "qonnx.transformation.base"
            if here and issubclass(value, Transformation):
                expected[name] = value
    found = {name: transforms.qonnx[name] for name in transforms.qonnx.list_plugins()}
    assert found == expected
    assert len(found) > 50


def test_finding_qonnx_imports_none_of_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rm_abstract.discovery.collections import transforms\n"
        "assert 'FoldConstants' in dir(transforms.qonnx)\n"
        "heavy = {'qonnx', 'onnx', 'numpy', 'yaml', 'pydantic', 'redis', 'prometheus_client'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)


def test_metadata() -> None:
    about = get_plugin_manager().frameworks["qonnx"].get_metadata()
    from importlib.metadata import version

    assert about == {"name": "qonnx", "available": True, "version": version("qonnx"), "plugin_types": ["transform"]}
    absent = get_plugin_manager().frameworks["finn"].get_metadata()
    assert (absent["available"], absent["version"]) == (False, "")
    import rm_abstract

    assert get_plugin_manager().frameworks["rm_abstract"].get_metadata()["version"] == rm_abstract.__version__


def test_without_finn_the_others_are_found() -> None:
    found = get_plugin_manager().discover_plugins()
    assert found.problems == {}
    assert {entry.framework for entry in found} >= {"qonnx"}
    with pytest.raises(AttributeError, match="the framework finn is not installed"):
        transforms.finn  # noqa: B018
    assert get_plugin_manager().discover_plugins(frameworks=["finn"]).entries == []


@pytest.mark.usefixtures("finn")
def test_the_layout_of_finn() -> None:
    found = {(e.type, e.name): (e.location, dict(e.attributes)) for e in get_registry_of("finn")}
    operation = "finn.custom_op.fpgadataflow"
    assert found == {
        ("transform", "Streamline"): ("finn.transformation.streamline:Streamline", {}),
        ("transform", "AbsorbNothing"): ("finn.transformation.streamline.absorb:AbsorbNothing", {}),
        ("transform", "LocalOnly"): ("finn.transformation.streamline.absorb:LocalOnly", {}),
        ("kernel", "LayerNorm"): (f"{operation}.layernorm:LayerNorm", {}),
        ("kernel", "QuantLayerNorm"): (f"{operation}.layernorm:QuantLayerNorm", {}),
        ("backend", "LayerNorm_hls"): (
            f"{operation}.hls.layernorm_hls:LayerNorm_hls", {"kernel": "finn.LayerNorm", "backend_type": "hls"}
        ),
        ("backend", "LayerNorm_rtl"): (
            f"{operation}.rtl.layernorm_rtl:LayerNorm_rtl", {"kernel": "finn.LayerNorm", "backend_type": "rtl"}
        ),
        ("step", "qonnx_to_finn"): ("finn.builder.build_dataflow_steps:step_qonnx_to_finn", {}),
        ("step", "streamline"): ("finn.builder.build_dataflow_steps:step_streamline", {}),
    }  # fmt: skip
    assert "finn" not in sys.modules


def get_registry_of(framework: str) -> list[PluginEntry]:
    return get_plugin_manager().discover_plugins(frameworks=[framework]).entries


@pytest.mark.usefixtures("finn")
def test_finn_works_on_a_model_of_qonnx(model: ModelWrapper) -> None:
    assert model.transform(transforms.finn.Streamline()).graph.name == "streamlined"
    assert steps.streamline(model, None).graph.name == "streamlined"
    assert steps.finn.qonnx_to_finn is steps.qonnx_to_finn
    assert kernels.finn.list_plugins() == ["LayerNorm", "QuantLayerNorm"]
    assert backends.list_plugins(kernel="finn.LayerNorm") == ["finn.LayerNorm_hls", "finn.LayerNorm_rtl"]
    hls = get_plugin_manager().backends_of("LayerNorm", "hls")
    assert [entry.qualified_name for entry in hls] == ["finn.LayerNorm_hls"]
    assert issubclass(backends.finn.LayerNorm_hls, kernels.LayerNorm)


@pytest.mark.usefixtures("finn")
def test_a_name_that_two_frameworks_have_has_to_be_qualified(tmp_path: Path) -> None:
    source = "from qonnx.transformation.base import Transformation\nclass Streamline(Transformation): ...\n"
    with_two = write(tmp_path / "acme", {"__init__.py": "", "streamline.py": source})
    assert with_two.is_dir()
    manager = get_plugin_manager()
    manager.add_adapter(AcmeAdapter([PluginEntry("transform", "Streamline", Origin.FRAMEWORK, "x:y", "acme")]))
    with pytest.raises(AttributeError, match=r"ambiguous; say which is meant: acme\.Streamline, finn\.Streamline"):
        transforms.Streamline  # noqa: B018
    assert transforms.finn.Streamline.__module__ == "finn.transformation.streamline"


class AcmeAdapter(FrameworkAdapter):
    """An adapter that somebody else wrote."""

    name = "acme"
    plugin_types = frozenset({"transform"})

    def __init__(self, found: Iterable[PluginEntry] | Exception = ()) -> None:
        self.found = found

    def is_available(self) -> bool:
        return True

    def discover_plugins(self) -> Sequence[PluginEntry]:
        if isinstance(self.found, Exception):
            raise self.found
        return list(self.found)


def test_an_adapter_that_fails_takes_no_other_down() -> None:
    manager = PluginManager(DiscoveryConfig())
    manager.add_adapter(AcmeAdapter(RuntimeError("out of order")))
    found = manager.discover_plugins()
    assert found.problems == {"framework acme": "RuntimeError: out of order"}
    assert "FoldConstants" in {entry.name for entry in found}
    assert manager.health_check()["status"] == "degraded"


def distribution(place: Path, name: str, points: str) -> None:
    """Install a distribution that has entry points and nothing else."""
    about = place / f"{name}-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[rm_abstract.plugins]\n{points}")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with a kernel and an adapter, and one whose adapter is broken."""
    place = tmp_path / "site"
    distribution(place, "acme", "kernel.Softmax = acme_kernels:Softmax\nframework.acme = acme_adapter:Adapter\n")
    distribution(place, "broken", "framework.broken = acme_adapter:Missing\n")
    adapter = """
        from rm_abstract.core.registry import Origin, PluginEntry
        from rm_abstract.discovery.frameworks.base import FrameworkAdapter

        class Adapter(FrameworkAdapter):
            name = "acme"
            plugin_types = frozenset({"transform"})
            def is_available(self):
                return True
            def discover_plugins(self):
                return [PluginEntry("transform", "Reverse", Origin.FRAMEWORK, "acme_kernels:Softmax", "acme")]
        """
    write(place, {"acme_kernels.py": "class Softmax: ...\n", "acme_adapter.py": adapter})
    monkeypatch.syspath_prepend(str(place))
    return place


@pytest.mark.usefixtures("installed")
def test_installed_distributions_offer_plugins_and_adapters() -> None:
    assert kernels.Softmax.__module__ == "acme_kernels"
    entry = get_registry().entry("kernel", "Softmax")
    assert (entry.origin, entry.version) == (Origin.ENTRY_POINT, "1.2")
    assert transforms.acme.list_plugins() == ["Reverse"]
    problems = get_plugin_manager().discover_plugins().problems
    assert problems.keys() == {"framework broken"}


def test_what_is_installed_is_looked_for_once(installed: Path) -> None:
    """A second process does not import the metadata reader, unless something was installed since."""
    old = time.time() - 60
    for path in [*installed.rglob("*"), installed]:
        os.utime(path, (old, old))
    code = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom rm_abstract.core.registry import get_registry\n"
        "print(*get_registry().names('kernel'), 'importlib.metadata' in sys.modules)\n"
    )

    def names() -> str:
        argv = [sys.executable, "-c", code, str(installed)]
        # The working directory is a place where distributions may lie, and has to be one that is left in peace.
        found = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120, cwd=STAND_IN)
        return found.stdout.strip()

    assert names() == "Softmax True"
    assert names() == "Softmax False"
    (installed / "a file beside them").write_text("")
    assert names() == "Softmax False"
    distribution(installed, "more", "kernel.More = acme_kernels:Softmax\n")
    assert names() == "More Softmax True"
    assert names() == "More Softmax True", "it is too young to be believed"
    for path in [*installed.rglob("*"), installed]:
        os.utime(path, (old, old))
    assert names() == "More Softmax True"
    assert names() == "More Softmax False"
    about = installed / "more-1.2.dist-info"
    # As an installer does with the same version anew.
    shutil.rmtree(about)
    distribution(installed, "more", "kernel.Other = acme_kernels:Softmax\n")
    assert names() == "Other Softmax True"


def test_a_framework_that_is_not_configured_is_not_asked() -> None:
    manager = PluginManager(DiscoveryConfig(frameworks=("rm_abstract",)))
    assert [entry for entry in manager.discover_plugins() if entry.framework] == []
    with pytest.raises(BadInput, match="no framework brainsmith"):
        PluginManager(DiscoveryConfig(frameworks=("brainsmith",))).discover_plugins()
