"""Hooks on a library: set when it is imported, before or after, by whatever thread, and gone without a trace.

The library is a package on disk with the shape of transformers' modules. `tests/sdk_devices` has the real one.
"""

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rm_abstract.core.errors import BadInput, SourceUnreachable, ToolchainFailure
from rm_abstract.core.preparing import Progress
from rm_abstract.hooks import Hooks
from rm_abstract.hooks.imports import ImportWatch
from rm_abstract.hooks.patches import Patches
from rm_abstract.hooks.transformers_hooks import locate

MODELING = """
class _Base:
    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        return ("original", cls.__name__, name)

class AutoModel(_Base):
    from_pretrained = classmethod(_Base.from_pretrained.__func__)

class AutoModelForCausalLM(_Base):
    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        return super().from_pretrained(name, *args, **kwargs)

class AutoModelForMaskedLM(AutoModelForCausalLM):
    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        return super().from_pretrained(name, *args, **kwargs)
"""
FILES = {
    "transformers/__init__.py": "__version__ = '9.0'\n",
    "transformers/models/__init__.py": "",
    "transformers/models/auto/__init__.py": "",
    "transformers/models/auto/modeling_auto.py": MODELING,
    "transformers/generation/__init__.py": "",
    "transformers/generation/utils.py": "class GenerationMixin:\n    def generate(self):\n        return 'original'\n",
    "transformers/tokenization_utils_base.py": "class BatchEncoding:\n    def to(self, device): ...\n",
}


class Controller:
    """What the hooks hand models to."""

    name = "npu:0"

    def __init__(self) -> None:
        self.loaded: list[tuple[Path, str]] = []
        self.told: list[str] = []

    def tell(self, progress: Progress) -> None:
        self.told.append(progress.message)

    def load(self, directory: Path, *, dtype: str = "") -> Any:
        self.loaded.append((directory, dtype))
        raise ToolchainFailure("the compiler broke")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "transformers"}
    for name in kept:
        del sys.modules[name]
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def hooks(library: Path, controller: Controller) -> Iterator[Hooks]:
    hooks = Hooks(controller)
    yield hooks
    hooks.remove()


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    return str(tmp_path / "model")


def auto() -> Any:
    return importlib.import_module("transformers.models.auto.modeling_auto")


@pytest.mark.parametrize("when", ["imported before", "imported after"])
def test_a_model_goes_to_the_device_whenever_the_library_was_imported(
    hooks: Hooks, controller: Controller, model: str, when: str
) -> None:
    if when == "imported before":
        auto()
    hooks.install()
    with pytest.raises(ToolchainFailure, match="the compiler broke"):
        auto().AutoModelForCausalLM.from_pretrained(model, dtype="torch.bfloat16", device_map="cuda", token=None)
    assert controller.loaded == [(Path(model), "bf16")]


def test_setting_hooks_imports_nothing(hooks: Hooks) -> None:
    hooks.install()
    assert "transformers" not in sys.modules


def test_what_does_not_generate_text_is_left_alone_and_told(hooks: Hooks, controller: Controller, model: str) -> None:
    hooks.install()
    assert auto().AutoModel.from_pretrained(model) == ("original", "AutoModel", model)
    assert auto().AutoModelForMaskedLM.from_pretrained(model) == ("original", "AutoModelForMaskedLM", model)
    assert controller.told == [
        "AutoModel is left to transformers: it does not generate text on npu:0",
        "AutoModelForMaskedLM is left to transformers: it does not generate text on npu:0",
    ]


def test_every_attribute_is_put_back_as_it_was(hooks: Hooks, model: str) -> None:
    generation = importlib.import_module("transformers.generation.utils")
    classes = [auto().AutoModel, auto().AutoModelForCausalLM, auto().AutoModelForMaskedLM, generation.GenerationMixin]
    before = [dict(vars(kind)) for kind in classes]
    hooks.install()
    assert [dict(vars(kind)) for kind in classes] != before
    hooks.remove()
    hooks.remove()
    assert [dict(vars(kind)) for kind in classes] == before
    assert auto().AutoModelForCausalLM.from_pretrained(model)[0] == "original"


def test_hooks_that_are_removed_before_the_library_comes_never_were(hooks: Hooks) -> None:
    finders = list(sys.meta_path)
    hooks.install()
    hooks.remove()
    assert sys.meta_path == finders
    assert "rm_abstract" not in auto().AutoModelForCausalLM.from_pretrained.__func__.__code__.co_filename


def test_a_library_of_another_shape_is_refused_and_not_run_without_the_device(library: Path, hooks: Hooks) -> None:
    (library / "transformers/models/auto/modeling_auto.py").write_text("class AutoModel:\n    pass\n")
    hooks.install()
    with pytest.raises(ToolchainFailure, match=r"cannot hook transformers 9.0: .* has no AutoModelForCausalLM"):
        auto()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "from_pretrained(quantization_config=…) is not possible on npu:0"),
        ({"num_hidden_layers": 3}, "weights are compiled as they are"),
    ],
)
def test_what_would_be_lost_is_refused(
    hooks: Hooks, controller: Controller, model: str, arguments: dict[str, Any], message: str
) -> None:
    hooks.install()
    with pytest.raises(BadInput) as raised:
        auto().AutoModelForCausalLM.from_pretrained(model, **arguments)
    assert message in str(raised.value)
    assert controller.loaded == []


def test_a_model_that_was_loaded_otherwise_runs_where_it_was_and_that_is_told_once(
    hooks: Hooks, controller: Controller
) -> None:
    hooks.install()
    model = importlib.import_module("transformers.generation.utils").GenerationMixin()
    assert [model.generate(), model.generate()] == ["original", "original"]
    assert len(controller.told) == 1
    assert "GenerationMixin.generate runs in PyTorch and not on npu:0" in controller.told[0]


def test_an_action_is_taken_once_by_whichever_thread_imports(library: Path) -> None:
    seen: list[ModuleType] = []
    watch = ImportWatch({"transformers.generation.utils": seen.append})
    watch.start()
    threads = [
        threading.Thread(target=importlib.import_module, args=("transformers.generation.utils",)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watch.stop()
    assert seen == [sys.modules["transformers.generation.utils"]]
    spec = seen[0].__spec__
    assert spec is not None
    assert type(spec.loader).__module__ != "rm_abstract.hooks.imports"
    assert seen[0].__loader__ is spec.loader


def test_what_others_replaced_in_the_meantime_is_theirs() -> None:
    class Owner:
        def method(self) -> str:
            return "original"

    patches = Patches()
    patches.replace(Owner, "method", lambda original: lambda self: f"ours, {original(self)}")
    Owner.method = lambda self: "theirs"  # type: ignore[method-assign]
    patches.restore()
    assert Owner().method() == "theirs"


def test_an_inherited_attribute_is_inherited_again() -> None:
    class Base:
        def method(self) -> str:
            return "base"

    class Owner(Base):
        pass

    patches = Patches()
    patches.replace(Owner, "method", lambda original: lambda self: f"ours, {original(self)}")
    assert Owner().method() == "ours, base"
    patches.restore()
    assert "method" not in vars(Owner)


def test_an_attribute_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="Patches has no attribute nothing"):
        Patches().replace(Patches, "nothing", lambda original: original)


def test_a_model_by_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("a", {}) == locate(tmp_path / "a", {}) == tmp_path / "a"


@pytest.mark.parametrize(
    ("name", "failure", "message"),
    [
        ("/nowhere/at/all", BadInput, "no such directory"),
        ("./nowhere", BadInput, "no such directory"),
        ("a/b/c", BadInput, "neither a directory nor the name of a model"),
        ("nobody/nothing", SourceUnreachable, "cannot be fetched, and no copy of it is here"),
    ],
)
def test_a_model_that_is_not_there(
    name: str, failure: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(failure, match=message):
        locate(name, {"cache_dir": str(tmp_path)})
