"""A model that runs somewhere else, behind a server that speaks OpenAI's API."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rm_abstract import __version__
from rm_abstract.backends.hf import FORMAT, HfTokenizer
from rm_abstract.backends.openai import Endpoint, OpenAiSession
from rm_abstract.backends.openvino_model import ModelInfo
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import BackendConfig, Plugin, PluginMetadata, PluginPriority
from rm_abstract.core.resource import BuildArtifact, BuildProfile, Capability, Resource, ResourceType
from rm_abstract.core.session import GenerationRequest, Session

ENV_TOKEN: Final = "RM_REMOTE_TOKEN"  # noqa: S105 (the name of a variable)
"""Environment variable with the bearer token for the server, if it wants one."""
_RETURNS_TOKENS: Final = "vllm"


@dataclass(frozen=True)
class RemoteModel:
    """A model's directory, of which configuration and tokenizer are used, and what the server calls the model."""

    directory: Path
    info: ModelInfo
    name: str
    returns_tokens: bool


class RemotePlugin(Plugin):
    """Sends tokens to the server at ``url``, ``/v1`` included or not."""

    def __init__(self, url: str = "") -> None:
        base = url.rstrip("/")
        self._endpoint = Endpoint(base if base.endswith("/v1") else f"{base}/v1", token=os.environ.get(ENV_TOKEN, ""))
        self._given = bool(url)
        self._served: dict[str, str] = {}

    @classmethod
    def metadata(cls) -> PluginMetadata:
        """See the base class."""
        return PluginMetadata(
            name="remote",
            display_name="Remote endpoint",
            version=__version__,
            priority=PluginPriority.LOWEST,
            device_types=("remote",),
            description="A server that speaks OpenAI's API, such as vLLM's or TGI's",
            formats=(FORMAT,),
        )

    def is_available(self) -> bool:
        """See the base class: it was told where to go."""
        return self._given

    def required_build_profiles(self, config: BackendConfig) -> list[BuildProfile]:
        """See the base class: none."""
        return []

    def probe(self, resources: Sequence[Resource] = ()) -> list[Resource]:
        """See the base class. Raises SourceUnreachable where the server does not answer."""
        self._served = self._endpoint.models()
        return [Resource("remote", ResourceType.REMOTE, {"endpoint": self._endpoint.url, "models": list(self._served)})]

    def get_capability(
        self, resources: Sequence[Resource], config: BackendConfig, artifacts: Sequence[BuildArtifact] = ()
    ) -> Capability:
        """See the base class."""
        return Capability(optimized_for=("cost",))

    def prepare_resource(self, resource: BuildArtifact, config: BackendConfig | None = None) -> RemoteModel:
        """See the base class. The option ``model`` says what the server calls the model, if it serves several."""
        config = config or BackendConfig()
        served = self._served or self._endpoint.models()
        name = config.options.get("model") or (next(iter(served)) if len(served) == 1 else resource.path.name)
        if name not in served:
            raise BadInput(
                f"{self._endpoint.url} serves {', '.join(served) or 'no model'}, and not {name}; say which with "
                "compile_options={'model': NAME}"
            )
        info = ModelInfo.read(resource.path, config.max_sequence_length)
        return RemoteModel(resource.path, info, name, served[name] == _RETURNS_TOKENS)

    def create_session(self, resource: RemoteModel) -> Session:
        """See the base class."""
        return RemoteSession(self._endpoint, resource)


class RemoteSession(OpenAiSession):
    """Generates on a server that is somebody else's."""

    def __init__(self, endpoint: Endpoint, model: RemoteModel) -> None:
        super().__init__(
            endpoint,
            model.name,
            HfTokenizer(model.directory),
            max_sequence_length=model.info.max_sequence_length,
            vocabulary_size=model.info.vocabulary_size,
            end_tokens=model.info.end_tokens,
        )
        self._returns_tokens = model.returns_tokens

    def extensions(self, request: GenerationRequest) -> dict[str, Any]:
        """See the base class."""
        extensions = super().extensions(request)
        return {**extensions, "return_token_ids": True} if self._returns_tokens else extensions
