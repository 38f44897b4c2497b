"""DeepSpeed's inference engine around a model of transformers, in this process and behind our server.

DeepSpeed's own server was that of DeepSpeed-MII, which has had no release for long; its kernels are part of DeepSpeed.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from rm_api.runtimes import facts_of

from rm_abstract import __version__
from rm_abstract.backends.hf import versions_of
from rm_abstract.backends.pytorch import PyTorchModel, PyTorchPlugin, PyTorchSession, load
from rm_abstract.backends.pytorch_embedding import PyTorchEmbeddings
from rm_abstract.core.errors import ArtifactMismatch
from rm_abstract.core.plugin import PluginMetadata, PluginPriority
from rm_abstract.core.resource import Resource, ResourceType
from rm_abstract.core.session import Session

_PACKAGES: Final = ("deepspeed", "torch", "transformers")


class DeepSpeedPlugin(PyTorchPlugin):
    """Runs a model as it is on the device that DeepSpeed finds: a GPU, or the CPU where there is none."""

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="deepspeed",
            display_name="DeepSpeed",
            version=__version__,
            vendor="DeepSpeed",
            # Chosen by its name: where vLLM is, that serves many requests at a time.
            priority=PluginPriority.LOWEST,
            device_types=("gpu", "cpu"),
            requires=_PACKAGES,
            description="DeepSpeed's inference engine, through transformers",
            formats=facts_of("deepspeed").formats,
        )

    def is_available(self) -> bool:
        """See the base class."""
        return all(find_spec(package) is not None for package in _PACKAGES)

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class; GPUs are taken as they are given."""
        return [each for each in resources if each.type is ResourceType.GPU] or super().probe(resources)

    def create_embedder(self, resource: PyTorchModel | PyTorchEmbeddings) -> None:
        """See the base class: there is none. Raises ArtifactMismatch for a model that only embeds."""
        if isinstance(resource, PyTorchEmbeddings):
            raise ArtifactMismatch("this model computes embeddings, which DeepSpeed is not asked for here")

    def session(self, resource: PyTorchModel) -> Session:
        """See the base class."""
        return DeepSpeedSession(resource)

    def versions(self) -> dict[str, str]:
        """See the base class."""
        return versions_of(*_PACKAGES)


class DeepSpeedSession(PyTorchSession):
    """A model that DeepSpeed has taken over."""

    def load(self, model: PyTorchModel) -> Any:
        """See the base class."""
        native = load(model)
        deepspeed = import_module("deepspeed")
        try:
            engine = deepspeed.init_inference(native, dtype=native.dtype, replace_with_kernel_inject=False)
        except (ValueError, RuntimeError, AssertionError, ImportError) as error:
            raise ArtifactMismatch(f"DeepSpeed cannot take the model: {error}") from error
        return engine.module
