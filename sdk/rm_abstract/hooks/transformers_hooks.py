"""The hooks: ``AutoModel*.from_pretrained`` loads on the device, the rest of transformers stays what it is."""

import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

from rm_abstract.core.errors import BadInput, SourceUnreachable, ToolchainFailure
from rm_abstract.core.preparing import Progress, Stage
from rm_abstract.hooks.imports import ImportWatch
from rm_abstract.hooks.model import Runner, device_model
from rm_abstract.hooks.patches import Patches

_log = logging.getLogger("rm_abstract")

HOOKED: Final = ("AutoModelForCausalLM",)
"""The classes whose models generate text, which is what a session does."""
_AUTO: Final = "transformers.models.auto.modeling_auto"
_GENERATION: Final = "transformers.generation.utils"
_TOKENIZATION: Final = "transformers.tokenization_utils_base"

_HUB: Final = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_WITHOUT_EFFECT: Final = frozenset(
    {
        "device_map", "low_cpu_mem_usage", "attn_implementation", "use_safetensors", "max_memory", "offload_folder",
        "offload_state_dict", "use_cache", "proxies", "code_revision", "adapter_kwargs", "weights_only", "tp_plan",
        "ignore_mismatched_sizes", "use_kernels", "variant",
    }
)  # fmt: skip
"""Where and how PyTorch would keep the weights: the device decides that itself."""
_DTYPES: Final = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "half": "fp16", "float": "fp32"}
_PATTERNS: Final = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")


class Loaded(Runner, Protocol):
    """A model on the device."""

    @property
    def directory(self) -> Path:
        """Where its files are."""
        ...


class LoadsModels(Protocol):
    """What the hooks hand models to: the controller."""

    @property
    def name(self) -> str:
        """The device, for messages."""
        ...

    def load(self, directory: Path, *, dtype: str = "") -> Any:
        """Load a model on the device; see ``DeviceFlowController.load``."""
        ...

    def tell(self, progress: Progress) -> None:
        """Show what is done."""
        ...


class Hooks:
    """The hooks of one controller. Nothing is imported by setting them: they wait until the script imports."""

    def __init__(self, controller: LoadsModels) -> None:
        self._controller = controller
        self._patches = Patches()
        self._watch: ImportWatch | None = None
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._local = threading.local()

    def install(self) -> None:
        """Set the hooks on what is imported, and wait for the rest."""
        self._watch = ImportWatch(
            {
                _AUTO: self._guarded(self._hook_classes),
                _GENERATION: self._guarded(self._hook_generate),
                _TOKENIZATION: self._guarded(self._hook_inputs),
            }
        )
        self._watch.start()

    def remove(self) -> None:
        """Take them out again: every attribute is what it was. Harmless where there are none."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        self._patches.restore()

    def _guarded(self, action: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def act(module: ModuleType) -> None:
            try:
                action(module)
            except (AttributeError, TypeError) as error:
                version = getattr(import_module("transformers"), "__version__", "of this version")
                raise ToolchainFailure(
                    f"rm_abstract cannot hook transformers {version}: {error}. Use another version of transformers, or "
                    "run without rm_abstract.init()"
                ) from error

        return act

    # from_pretrained

    def _hook_classes(self, module: ModuleType) -> None:
        found = [
            kind
            for name, kind in vars(module).items()
            if name.startswith("AutoModel") and isinstance(kind, type) and "from_pretrained" in vars(kind)
        ]
        missing = set(HOOKED) - {kind.__name__ for kind in found}
        if missing:
            raise AttributeError(f"{module.__name__} has no {', '.join(sorted(missing))}.from_pretrained")
        for kind in dict.fromkeys(found):
            self._patches.replace(kind, "from_pretrained", functools.partial(self._from_pretrained, kind.__name__))

    def _from_pretrained(self, auto_class: str, original: Any) -> object:
        plain = original.__func__

        @functools.wraps(plain)
        def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(self._local, "inside", False):  # a class that transformers derives from another calls that one
                return plain(cls, pretrained_model_name_or_path, *args, **kwargs)
            if auto_class not in HOOKED:
                self._pass(f"{cls.__name__} is left to transformers: it does not generate text on {self._name}")
                self._local.inside = True
                try:
                    return plain(cls, pretrained_model_name_or_path, *args, **kwargs)
                finally:
                    self._local.inside = False
            return self._load(pretrained_model_name_or_path, args, kwargs)

        return classmethod(from_pretrained)

    def _load(self, name: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if args:
            raise BadInput(f"from_pretrained() got positional arguments, which mean nothing on {self._name}")
        dtype = self._check(kwargs)
        directory = locate(name, {key: kwargs[key] for key in _HUB if key in kwargs})
        self._local.inside = True
        try:
            loaded = self._controller.load(directory, dtype=dtype)
        finally:
            self._local.inside = False
        with loaded.use() as session:
            native = getattr(session, "native", None)
        if native is not None:
            # It is what transformers itself would have made; nothing that a script can do with it is left out.
            self._seen.add(native)
            native.config.name_or_path = native.name_or_path = str(name)
            return native
        return device_model(directory, name, loaded)

    def _check(self, kwargs: Mapping[str, Any]) -> str:
        """The number format that the script wants; BadInput for what would be lost."""
        for key, value in kwargs.items():
            if key in _HUB or key in _WITHOUT_EFFECT or key in ("dtype", "torch_dtype") or value is None:
                continue
            # Of an own configuration only what the files say could be kept; pipelines hand on what they have read.
            if key.startswith("_") or key in ("config", "generation_config") or value is False:
                continue
            if key == "trust_remote_code":
                self._pass("the model's own code is not run: it is for PyTorch")
                continue
            raise BadInput(
                f"from_pretrained({key}=…) is not possible on {self._name}: weights are compiled as they are. Leave it "
                "out (compile_options of rm_abstract.init say how to compile), or load after rm_abstract.shutdown()"
            )
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        text = str(dtype or "").removeprefix("torch.")
        return "" if text in ("", "auto") else _DTYPES.get(text, text)

    # generate, and what it is given

    def _hook_generate(self, module: ModuleType) -> None:
        self._patches.replace(module.GenerationMixin, "generate", self._generate)

    def _generate(self, original: Any) -> object:
        @functools.wraps(original)
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            if model not in self._seen:
                self._seen.add(model)
                self._pass(
                    f"{type(model).__name__}.generate runs in PyTorch and not on {self._name}: the model was not "
                    "loaded by AutoModelForCausalLM.from_pretrained after rm_abstract.init()"
                )
            return original(model, *args, **kwargs)

        return generate

    def _hook_inputs(self, module: ModuleType) -> None:
        self._patches.replace(module.BatchEncoding, "to", self._inputs_to)

    def _inputs_to(self, original: Any) -> object:
        @functools.wraps(original)
        def to(encoding: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
            if _is_absent_gpu(device):
                self._pass(f"inputs stay in memory: there is no {device} here, and {self._name} takes them from there")
                return encoding
            return original(encoding, device, *args, **kwargs)

        return to

    @property
    def _name(self) -> str:
        return self._controller.name

    def _pass(self, message: str) -> None:
        self._controller.tell(Progress(Stage.PASSED, message))


def _is_absent_gpu(device: Any) -> bool:
    torch = import_module("torch")
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        return False
    return kind == "cuda" and not torch.cuda.is_available()


def locate(name: str | os.PathLike[str], hub: Mapping[str, Any]) -> Path:
    """The directory of a model: that of the name, or of a snapshot from the hub as transformers would take it.

    Raises BadInput where there is none, SourceUnreachable where the hub does not answer.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or str(name).startswith((".", "~")):
        raise BadInput(f"there is no model in {name}: no such directory")
    library = import_module("huggingface_hub")
    errors = import_module("huggingface_hub.errors")
    try:
        return Path(library.snapshot_download(str(name), allow_patterns=list(_PATTERNS), **hub))
    except errors.HFValidationError as error:
        raise BadInput(f"{name} is neither a directory nor the name of a model on a hub: {error}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise BadInput(f"the hub has no model {name}: {error}") from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise SourceUnreachable(f"the model {name} cannot be fetched, and no copy of it is here: {error}") from error
