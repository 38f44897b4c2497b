"""What decides where a deployment runs, and what was decided."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from rm_api.accelerator_types import AcceleratorType
from rm_api.base import (
    LIST_SET,
    ApiModel,
    DecimalNumber,
    Line,
    Name,
    Word,
    cel,
    list_map,
    positive,
    unserved_values,
    validations,
)
from rm_api.dtypes import DType

_Weight = Annotated[int, Field(ge=0, le=100)]


class PolicyType(StrEnum):
    """What placement optimises."""

    LATENCY = "Latency"
    THROUGHPUT = "Throughput"
    ENERGY = "Energy"
    COST = "Cost"
    WEIGHTED = "Weighted"


class PolicyWeights(ApiModel):
    """How much each goal counts. Only their ratio matters: 1 and 3 mean the same as 25 and 75."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel("self.latency + self.throughput + self.energy + self.cost > 0", "at least one weight must be above 0"),
        )
    )

    latency: _Weight = 0
    """Weight of a short time to the end of an answer."""
    throughput: _Weight = 0
    """Weight of many requests per second of a replica."""
    energy: _Weight = 0
    """Weight of a low energy per token."""
    cost: _Weight = 0
    """Weight of a low price per token."""


class Policy(ApiModel):
    """What placement optimises."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "(self.type == 'Weighted') == has(self.weights)",
                "type Weighted needs weights, and the other types have none",
            ),
        )
    )

    type: PolicyType = PolicyType.LATENCY
    """Latency, Throughput, Energy, Cost, or Weighted, which combines them by weights."""
    weights: PolicyWeights | None = None
    """How much each goal counts, for type Weighted."""


class Workload(ApiModel):
    """The load that placement estimates with."""

    input_tokens: Annotated[int, Field(ge=1, le=16777216)] = 1024
    """Tokens of a typical prompt, which decide on the time to the first token."""
    output_tokens: Annotated[int, Field(ge=1, le=16777216)] = 256
    """Tokens of a typical answer, each of which takes one pass over the model."""
    concurrency: Annotated[int, Field(ge=1, le=65536)] = 8
    """Requests that one replica serves at the same time; the batch that placement estimates with."""
    requests_per_second: Annotated[
        DecimalNumber | None,
        Field(
            gt=0,
            json_schema_extra=positive("requestsPerSecond must be above 0; leave it out where the demand is not known"),
        ),
    ] = None
    """Requests per second of all clients, such as "2.5"; estimates of energy and cost count the replicas for it."""


class Slo(ApiModel):
    """What a candidate's estimate must reach. Whatever misses it is not eligible."""

    ttft_ms: Annotated[int, Field(ge=1, le=86400000)] | None = None
    """Most milliseconds until the first token."""
    tpot_ms: Annotated[int, Field(ge=1, le=86400000)] | None = None
    """Most milliseconds between two tokens of an answer."""


class AcceleratorSelector(ApiModel):
    """Which accelerators may be used. An empty list is no restriction; a candidate must satisfy all that are given."""

    types: Annotated[list[AcceleratorType], Field(max_length=8, json_schema_extra=LIST_SET)] = []
    """Types of accelerators: GPU, NPU, PIM, FPGA, CPU or REMOTE."""
    vendors: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Vendors, as AcceleratorResources name them."""
    names: Annotated[list[Name], Field(max_length=64, json_schema_extra=LIST_SET)] = []
    """Names of AcceleratorResources, one of which it must be."""
    tags: Annotated[list[Word], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Tags, all of which it must have."""
    exclude: Annotated[list[Name], Field(max_length=64, json_schema_extra=LIST_SET)] = []
    """Names of AcceleratorResources that are not to be used."""


class Requirements(ApiModel):
    """What the deployment needs, whatever it runs on."""

    dtype: DType | None = None
    """Number format; where absent the model's own, or the nearest that the target takes without quantising."""
    max_sequence_length: Annotated[int, Field(ge=1, le=16777216)] | None = None
    """Longest sequence in tokens, prompt and answer; by default the workload's, at most the model's own limit."""
    max_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Largest batch; by default the workload's concurrency."""
    features: Annotated[list[Word], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """What else the accelerator must be able to do: words that it lists in capability.features, all of them."""


class Term(ApiModel):
    """One figure of an estimate."""

    name: Annotated[str, Field(max_length=63)]
    """What it is, such as ttft, tpot or memory."""
    value: DecimalNumber
    """Its value, a decimal number."""
    unit: Annotated[str, Field(max_length=32)]
    """Its unit, such as ms or GiB."""


class Candidate(ApiModel):
    """An accelerator that was looked at, and what came of it."""

    name: Name
    """Name of the AcceleratorResource that was looked at."""
    eligible: bool
    """True if the deployment could run there."""
    score: Annotated[str, Field(max_length=20)] | None = None
    """The higher, the better: a natural logarithm against constant references, so scores of different days compare."""
    profile: Name | None = None
    """BuildProfile that would be used."""
    terms: Annotated[list[Term], Field(max_length=16, json_schema_extra=list_map("name"))] = []
    """The figures behind the score, with their units."""
    provenance: (
        Annotated[
            str,
            Field(
                json_schema_extra={"enum": ["Measured", "Declared", "Derived", "Assumed"]} | unserved_values("Measured")
            ),
        ]
        | None
    ) = None
    """The weakest source of these figures: Declared, Derived or Assumed."""
    reason: Annotated[str, Field(max_length=512)] = ""
    """Why it was chosen, ranked or left out."""


class Placement(ApiModel):
    """Where the deployment runs, and why."""

    policy: PolicyType
    """The policy that decided this placement."""
    chosen: Name | None = None
    """The AcceleratorResource that was chosen; absent where none can take it."""
    profile: Name | None = None
    """The BuildProfile that the model is compiled with there."""
    tensor_parallel: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Devices of a replica that compute one layer together; absent means one."""
    pipeline_parallel: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Groups of devices of a replica that have the layers one after the other; absent means one."""
    candidates: Annotated[list[Candidate], Field(max_length=16, json_schema_extra=list_map("name"))] = []
    """What was looked at, the best first."""


class VariantStatus(ApiModel):
    """Serving pods of one accelerator and artifact."""

    name: Name
    """Name of the Deployment that runs them."""
    accelerator: Name
    """AcceleratorResource that they run on."""
    artifact: Annotated[str, Field(max_length=63)] | None = None
    """BuildArtifact that these pods serve."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Pods of this variant that there are."""
    ready: Annotated[int, Field(ge=0)] = 0
    """Pods that have passed the checks and generated a token."""
    active: bool = False
    """True if the Service sends requests to them."""
    observed_device: Annotated[str, Field(max_length=512)] | None = None
    """The devices that the ready ones run on, and their drivers, as these pods report."""
    drivers: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] | None = None
    """Driver versions of the nodes that they keep to; absent where any will do."""
    sdks: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] | None = None
    """The same of the vendor's runtime libraries."""


class ClassShare(ApiModel):
    """Nodes of one class, and what of the deployment was given to them."""

    artifact: Annotated[str, Field(min_length=1, max_length=63)]
    """BuildArtifact that these nodes load."""
    artifact_namespace: Name | None = None
    """Its namespace, where the deployments of all namespaces share it."""
    drivers: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Their driver versions; empty means any."""
    sdks: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Versions of the vendor's runtime libraries on them; empty means any."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Replicas that it was given; none where the artifact is only built ahead, for when its nodes are needed."""
