"""An endpoint outside the cluster, as the owner of an accelerator of type REMOTE declares it."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from rm_api.base import (
    ApiModel,
    Line,
    SubdomainName,
    cel,
    list_map,
    validations,
)


class RemoteProtocol(StrEnum):
    """What a remote endpoint speaks."""

    OPENAI = "OpenAI"
    VLLM = "VLLM"
    TGI = "TGI"


class RemoteModel(ApiModel):
    """A model that an endpoint serves."""

    source: Line
    """The model, as deployments write it in model.source. The endpoint reads nothing from there: it is a name."""
    name: Line
    """What the endpoint calls the model."""


class Remote(ApiModel):
    """An endpoint outside the cluster that serves models itself."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "!has(self.credentialsSecretRef) || self.endpoint.startsWith('https://')",
                "credentialsSecretRef needs an endpoint with https://: a key is sent over TLS only",
            ),
        )
    )

    endpoint: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$")]
    """Base URL like https://api.example.com/v1, without a user or a query: no key belongs here, as many read it."""
    protocol: RemoteProtocol = RemoteProtocol.OPENAI
    """OpenAI, VLLM or TGI. With VLLM /tokenize and /detokenize can be asked, too."""
    models: Annotated[list[RemoteModel], Field(min_length=1, max_length=256, json_schema_extra=list_map("source"))]
    """The models that deployments may have from it; others of the endpoint cannot be reached."""
    max_concurrency: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Requests that it takes at the same time. As many again wait; those beyond are answered 429."""
    requests_per_minute: Annotated[int, Field(ge=1, le=1000000)] | None = None
    """Requests that it takes in any minute. Those beyond are answered 429, with when to come again."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = 600
    """For how long it may send nothing, until a request is given up."""
    credentials_secret_ref: SubdomainName | None = None
    """Secret of the operator's namespace with the endpoint's key, under the name key. Only the proxy mounts it."""
