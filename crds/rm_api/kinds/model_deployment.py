"""ModelDeployment: a model that is to be served. The one kind that an application team writes."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from rm_api.base import (
    CONDITIONS,
    LIST_ATOMIC,
    MAP_ATOMIC,
    ApiModel,
    Condition,
    EnvVar,
    Line,
    Name,
    ObservedGeneration,
    Quantity,
    SubdomainName,
    cel,
    list_map,
    positive,
    validations,
)
from rm_api.crd import SERVICE_NAME, KindInfo, PrinterColumn, Scale
from rm_api.dtypes import DType
from rm_api.kinds.build_artifact import Digest
from rm_api.placement import (
    AcceleratorSelector,
    ClassShare,
    Placement,
    Policy,
    Requirements,
    Slo,
    VariantStatus,
    Workload,
)
from rm_api.tasks import ModelTask


class RolloutStrategy(StrEnum):
    """What comes first when a variant replaces another one."""

    SURGE = "Surge"
    IN_PLACE = "InPlace"


# Parts of a path that are neither empty nor . or ..; regular expressions of CEL cannot look ahead.
_PATH = r"(/([.]?[^/.?#][^/?#]*|[.][.][^/?#]+))*/?"


class ModelSource(ApiModel):
    """The model."""

    source: Annotated[
        str,
        Field(
            min_length=8,
            max_length=2048,
            pattern=r"^[^\s]+$",
            json_schema_extra=validations(
                cel(
                    "self.matches('^(hf|oci|https)://[^/].*') || "
                    f"self.matches('^s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9]{_PATH}$') || "
                    f"self.matches('^pvc://[a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?{_PATH}$')",
                    "source must be hf://organisation/model, oci://registry/repository:tag, https://host/path, "
                    "s3://bucket/prefix, or pvc://claim/directory in a PersistentVolumeClaim of the namespace; in the "
                    "last two without a query, and with no part of the path empty, . or ..",
                )
            ),
        ),
    ]
    """Where it is: hf://organisation/model, oci://registry/repository:tag or @digest, https://host/directory/,
    s3://bucket/prefix, or pvc://claim/directory with a PersistentVolumeClaim of the namespace."""
    revision: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\s]+$")] | None = None
    """Branch, tag or commit of hf://, a digest of the others. What it is now is kept until the spec changes."""
    served_name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """The model's name in the OpenAI API; the deployment's name where absent."""
    credentials_secret_ref: Name | None = None
    """Secret of the namespace: its key netrc holds credentials by host, and its key aws those for s3://."""


class ScalingMetric(ApiModel):
    """A figure of the serving pods, as the cluster's custom metrics API gives it."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][-A-Za-z0-9_:.]*$")]
    """Name of the metric in the custom metrics API, such as vllm:num_requests_waiting."""
    average_value: Annotated[Quantity, Field(json_schema_extra=positive("averageValue must be above 0"))]
    """Value per pod that is aimed at, such as 10 or 500m."""


class Autoscaling(ApiModel):
    """Bounds and metrics; a HorizontalPodAutoscaler of the deployment's name scales the deployment within them."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel("self.minReplicas <= self.maxReplicas", "minReplicas is more than maxReplicas"),
        )
    )

    min_replicas: Annotated[int, Field(ge=1, le=10000)] = 1
    """Fewest serving pods that it scales down to."""
    max_replicas: Annotated[int, Field(ge=1, le=10000)]
    """Most serving pods that it scales up to."""
    metrics: Annotated[list[ScalingMetric], Field(min_length=1, max_length=16, json_schema_extra=list_map("name"))]
    """What decides; of several metrics the one that asks for most pods."""


class Rollout(ApiModel):
    """How serving pods are replaced when the placement, the artifact or the options of the engine change."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "self.strategy != 'InPlace' || self.maxUnavailable >= 1",
                "strategy InPlace frees devices before it takes others: maxUnavailable must be 1 or more",
            ),
            cel(
                "self.strategy == 'Surge' || !has(self.maxSurge)",
                "maxSurge is for strategy Surge; InPlace starts no pod beyond the replicas",
            ),
        )
    )

    strategy: RolloutStrategy = RolloutStrategy.SURGE
    """Surge: new pods are ready before old ones end, on devices that are free. InPlace: old pods end first."""
    max_unavailable: Annotated[int, Field(ge=0, le=10000)] = 0
    """Replicas that may be missing meanwhile."""
    max_surge: Annotated[int, Field(ge=1, le=10000)] | None = None
    """Pods beyond the replicas meanwhile, for Surge; 1 where absent."""
    deadline_seconds: Annotated[int, Field(ge=30, le=86400)] = 1800
    """After so many seconds without progress the rollout has failed, and the old pods go on serving."""


# What a variable of an engine may be about at most: how much it logs, its time zone, its threads. Others may load code
# or reach out, and which of these they do differs by engine. Which ones a cluster allows is its policy's list.
ENGINE_VARIABLE = "^(TZ|([A-Z][A-Z0-9]*_)*(LOG|LOGGING)_LEVEL|([A-Z][A-Z0-9]*_)*NUM_THREADS)$"


class RuntimeOptions(ApiModel):
    """Options of the engine that a tenant may set: no image, command or volume."""

    env: Annotated[
        list[EnvVar],
        Field(
            max_length=16,
            json_schema_extra=list_map("name")
            | validations(
                cel(
                    f"self.all(e, e.name.matches('{ENGINE_VARIABLE}'))",
                    "only TZ and variables that end in LOG_LEVEL, LOGGING_LEVEL or NUM_THREADS can be set here; others"
                    " belong into the AcceleratorResource",
                )
            ),
        ),
    ] = []
    """Variables of the engine: of its log levels, threads and time zone those that the cluster's policy allows."""
    prefix_caching: bool | None = None
    """Whether the engine keeps what it has computed of prompts for later ones that begin alike; as the engine is made,
    where absent. Engines that cannot be told are not used."""
    trust_remote_code: bool | None = None
    """True has code run that comes with the model (auto_map in its config), where an accelerator allows that with
    runtime.allowRemoteCode; others are not used then. The code is pinned and verified as the weights are."""


class ModelDeploymentSpec(ApiModel):
    """A model to serve. The smallest useful one has nothing but model.source."""

    model: ModelSource
    """The model: where it comes from, and what clients call it. All that is required."""
    policy: Policy = Policy()
    """What placement optimises when several accelerators could serve the model."""
    workload: Workload = Workload()
    """The load to expect of one replica, and of all clients; placement estimates with it, and limits nobody."""
    accelerators: AcceleratorSelector = AcceleratorSelector()
    """Which accelerators may be used; by default all. Vendors need not be named: the policy decides."""
    requirements: Requirements = Requirements()
    """What is needed of the accelerator and the compiled model, whatever it runs on."""
    replicas: Annotated[int, Field(ge=0, le=10000)] = 1
    """Serving pods. An autoscaler writes it through the scale subresource; at 0 it leaves it alone."""
    autoscaling: Autoscaling | None = None
    """Lets a HorizontalPodAutoscaler decide on the replicas; leave replicas out of what you apply again and again."""
    slo: Slo = Slo()
    """Service levels that the estimate must reach; an accelerator that misses one is not eligible."""
    build_profile: Name | None = None
    """BuildProfile to use; by default the best that fits."""
    runtime: RuntimeOptions = RuntimeOptions()
    """Options of the engine that a tenant may set: no image, command or volume."""
    rollout: Rollout = Rollout()
    """How serving pods are replaced when the placement, the artifact or the options of the engine change."""
    priority_class_name: SubdomainName | None = None
    """PriorityClass of the serving pods."""
    suspend: bool = False
    """True stops the serving pods and starts no Job. The artifact, the placement and the Service stay."""


class ModelFacts(ApiModel):
    """What the resolve step found out about the model."""

    source: Annotated[str, Field(max_length=2048)]
    """The source that these facts are about, as the spec has it."""
    revision: Annotated[str, Field(max_length=256)]
    """The revision that it was pinned to."""
    architecture: Line
    """Architecture from config.json, such as LlamaForCausalLM."""
    parameters: Annotated[int, Field(ge=0)]
    """Parameters of the model, all of them."""
    active_parameters: Annotated[int, Field(ge=0)]
    """Parameters that take part in computing one token."""
    weight_bytes: Annotated[int, Field(ge=0)]
    """Bytes of the weights, as they are stored."""
    dtype: DType
    """Number format that the weights are stored in."""
    layers: Annotated[int, Field(ge=1)]
    """Transformer layers; each keeps keys and values of every token."""
    heads: Annotated[int, Field(ge=1)]
    """Attention heads of a layer."""
    kv_heads: Annotated[int, Field(ge=1)]
    """Key and value heads of a layer; fewer than heads where they are shared."""
    head_dim: Annotated[int, Field(ge=1)]
    """Numbers in a key or value of one head."""
    max_sequence_length: Annotated[int, Field(ge=1)]
    """Longest sequence the model was made for."""
    config_digest: Digest
    """Digest of what matters of config.json."""
    tensors_digest: Digest
    """Digest of the names, shapes and number formats of the tensors."""
    weights_digest: Digest
    """Digest of the weights; they are verified by it whenever they are fetched."""
    scales_digest: Digest | None = None
    """Digest of the scales of its quantisation, where it has any."""
    remote_code: bool | None = None
    """True where it names code of its own (auto_map): what is built from it is for its namespace alone."""
    remote_code_digest: Digest | None = None
    """Digest of the files of that code; absent where not all of it is among the model's files, so that it cannot be
    pinned and is never run."""
    task: ModelTask | None = None
    """Embed for a model that computes embeddings; absent of one that generates text."""

    @property
    def embeds(self) -> bool:
        """True of a model that computes embeddings."""
        return self.task is ModelTask.EMBED


class ModelDeploymentStatus(ApiModel):
    """What is served where, why there, and if not, why not."""

    observed_generation: ObservedGeneration = 0
    """The generation of the spec that this status is about; -1 where the operator has not looked at it yet."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Base URL of the OpenAI API inside the cluster."""
    model: Annotated[ModelFacts | None, Field(json_schema_extra=MAP_ATOMIC)] = None
    """What is known of the model; pinned until spec.model changes."""
    placement: Annotated[Placement | None, Field(json_schema_extra=MAP_ATOMIC)] = None
    """Where it runs, and why there: all that was looked at, with figures or a reason."""
    artifact: Annotated[str, Field(max_length=63)] | None = None
    """BuildArtifact that the placement needs; of several the one with the most replicas."""
    artifact_namespace: Name | None = None
    """Namespace of that artifact, where the deployments of all namespaces share it."""
    classes: Annotated[list[ClassShare], Field(max_length=16, json_schema_extra=LIST_ATOMIC)] | None = None
    """Where the nodes have several versions, and each needs an artifact of its own: who got how many replicas."""
    variants: Annotated[list[VariantStatus], Field(max_length=16, json_schema_extra=list_map("name"))] = []
    """Serving pods by accelerator and artifact."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Serving pods, as the scale subresource reports them."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Serving pods that are ready: each generated a token."""
    selector: Annotated[str, Field(max_length=512)] = ""
    """Selector of the serving pods, for the scale subresource."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=CONDITIONS)] = []
    """Ready, ModelResolved, Placed, ArtifactReady, Available, Routed; DevicesHealthy once one was not; Reconciling or
    Stalled only while so."""


KIND = KindInfo(
    kind="ModelDeployment",
    plural="modeldeployments",
    short_names=("mdep",),
    namespaced=True,
    spec=ModelDeploymentSpec,
    status=ModelDeploymentStatus,
    name_pattern=SERVICE_NAME,
    selectable=(".spec.model.source", ".spec.policy.type", ".spec.buildProfile", ".status.placement.chosen"),
    scale=Scale(".spec.replicas", ".status.replicas", ".status.selector"),
    columns=(
        PrinterColumn("Model", ".spec.model.source"),
        PrinterColumn("Accelerator", ".status.placement.chosen"),
        PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
        PrinterColumn("Available", ".status.readyReplicas", "integer"),
        PrinterColumn("Replicas", ".status.replicas", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Policy", ".spec.policy.type", priority=1),
        PrinterColumn("Artifact", ".status.artifact", priority=1),
        PrinterColumn("URL", ".status.url", priority=1),
        PrinterColumn("Message", '.status.conditions[?(@.type=="Ready")].message', priority=1),
    ),
)
