"""BuildArtifact: a compiled model in the store. Only the operator writes it; it outlives its users."""

from typing import Annotated

from pydantic import ConfigDict, Field

from rm_api.base import (
    CONDITIONS,
    LIST_ATOMIC,
    LIST_SET,
    UNSERVED,
    ApiModel,
    Condition,
    DecimalNumber,
    Line,
    Name,
    ObservedGeneration,
    Quantity,
    cel,
    list_map,
    validations,
)
from rm_api.build_steps import Check, ExitCodeMapping, Flag, Probe, Step
from rm_api.crd import KindInfo, PrinterColumn
from rm_api.dtypes import DType
from rm_api.kinds.build_profile import BuildInterface, ConfigTemplate, Lora, PinnedImage, SecretRef, Target

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]


class ModelInput(ApiModel):
    """The model that is compiled, pinned."""

    source: Annotated[str, Field(min_length=1, max_length=2048)]
    """Where it is fetched from, as the ModelDeployment names it."""
    revision: Annotated[str, Field(max_length=256)]
    """The revision that is compiled: a commit or a digest."""
    credentials_secret: Name | None = None
    """Secret of the namespace with credentials for the source."""
    config_digest: Digest
    """Digest of what matters of its config.json."""
    tensors_digest: Digest
    """Digest of the names, shapes and number formats of its tensors."""
    weights_digest: Digest
    """Digest of its weights; what is fetched is verified by it."""
    scales_digest: Digest | None = None
    """Digest of the scales of its quantisation, where it has any."""
    code_digest: Digest | None = None
    """Digest of the code that comes with the model, where that may be run; it is not even fetched otherwise."""
    architecture: Line
    """Architecture from its config.json."""


class FetchedInput(ApiModel):
    """Something else that the build reads."""

    name: Annotated[str, Field(min_length=1, max_length=31, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    """Its name; ${INPUT_name} is the directory that it is in."""
    source: Annotated[str, Field(min_length=1, max_length=2048)]
    """Where it is fetched from."""
    digest: Digest
    """What it must be, as in the profile."""


class BaseArtifact(ApiModel):
    """An artifact that another one is built from."""

    name: Name
    """BuildArtifact whose result the build reads."""
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
    """Its key, which is part of the other's."""
    location: Annotated[str, Field(max_length=1024)]
    """Where it is in the store, with its digest."""
    namespace: Name | None = None
    """Its namespace, where it is one that all namespaces share and the other artifact is not."""


class Toolchain(ApiModel):
    """What the names in a recipe stood for."""

    versions: Annotated[dict[str, Annotated[str, Field(max_length=256)]], Field(max_length=32)] = {}
    """Versions of tools, as probed."""
    images: Annotated[list[PinnedImage], Field(max_length=24, json_schema_extra=list_map("image"))] = []
    """Images, with the digests that are run."""


class ShapeBucket(ApiModel):
    """The shapes that the artifact covers."""

    max_sequence_length: Annotated[int, Field(ge=1, le=16777216)] | None = None
    """Longest sequence in tokens; absent means that the length is not compiled in."""
    max_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Largest batch; absent means that the size is not compiled in."""
    prefill_chunk: Annotated[int, Field(ge=1, le=16777216)] | None = None
    """Tokens of a prompt that are computed in one pass; absent means that the number is not compiled in."""
    tensor_parallel: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Devices that compute one layer together; absent means one."""
    pipeline_parallel: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Groups of devices that have the layers one after the other; absent means one."""
    lora: Annotated[Lora | None, Field(json_schema_extra=UNSERVED)] = None
    """LoRA adapters that there is room for; absent means that adapters are not compiled in."""

    @property
    def devices(self) -> int:
        """Devices that one replica runs on."""
        return (self.tensor_parallel or 1) * (self.pipeline_parallel or 1)


class BuildArtifactSpec(ApiModel):
    """What makes this artifact what it is: the parts of the key that its name is the hash of, and how it is built."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel("self == oldSelf", "an artifact is what its name is the hash of; it cannot be changed"),
        )
    )

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]
    """SHA-256 of the canonical key, in hexadecimal; the name starts from the same hash."""
    key_schema: Annotated[int, Field(ge=1, le=1000000)]
    """Version of the canonical form that the key is the hash of."""
    model: ModelInput
    """The model that is compiled, pinned to what it was."""
    profile: Name
    """BuildProfile that the recipe was taken from."""
    target: Target
    """What is compiled for: type, vendor and products."""
    dtype: DType
    """Number format that is compiled to."""
    dtype_name: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """What the tools call it; absent where they say the same."""
    shape: ShapeBucket = ShapeBucket()
    """Shapes that it covers: any request up to these sizes."""
    drivers: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Driver versions that load it; empty means any."""
    sdks: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Versions of the vendor's runtime libraries that load it; empty means any."""
    format: Line
    """Format of the result, by which an engine knows it."""
    interface: BuildInterface = BuildInterface.CLI
    """How the compiler is driven, as in the profile: CLI, ConfigFile, Python, SharedLibrary or Warmup."""
    config_template: ConfigTemplate | None = None
    """The compiler's configuration file, for the interface ConfigFile."""
    flags: Annotated[list[Flag], Field(max_length=64, json_schema_extra=list_map("name"))] = []
    """Options for the compiler, for the interfaces Python and SharedLibrary."""
    inputs: Annotated[list[FetchedInput], Field(max_length=16, json_schema_extra=list_map("name"))] = []
    """What else the build reads."""
    base: BaseArtifact | None = None
    """The artifact that the build starts from."""
    check: Check | None = None
    """A dry run before anything is fetched that is large."""
    toolchain: Toolchain | None = None
    """Versions and images, where the profile has them probed."""
    weights_in_artifact: bool = True
    """False where serving pods fetch the model, too."""
    secret_refs: Annotated[list[SecretRef], Field(max_length=8, json_schema_extra=list_map("name"))] = []
    """Secrets of the namespace that the steps need."""
    steps: Annotated[list[Step], Field(min_length=1, max_length=16, json_schema_extra=list_map("name"))]
    """The commands, with the resources that apply."""
    probe: Probe | None = None
    """Check of the result that needs no device."""
    max_memory: Quantity | None = None
    """How far a step's memory may be doubled when it was not enough."""
    scratch: Quantity = "20Gi"
    """Size limit of the working directory."""
    timeout_seconds: Annotated[int, Field(ge=10, le=604800)] = 3600
    """Seconds that one attempt may take, all of its steps together."""
    exit_codes: Annotated[list[ExitCodeMapping], Field(max_length=64, json_schema_extra=list_map("code"))] = []
    """Meanings of the tools' exit codes."""


class EndedJob(ApiModel):
    """What the last Job came to whose end the status has taken up: each is taken up once, whatever happens."""

    attempt: Annotated[int, Field(ge=0)]
    """The attempt that it was of."""
    stage: Annotated[int, Field(ge=1)] = 1
    """Which of the attempt's Jobs it was, from 1."""
    outcome: Line
    """Succeeded, or the reason why it failed."""
    container: Annotated[str, Field(max_length=63)] | None = None
    """The container that failed, where one did."""
    message: Annotated[str, Field(max_length=2000)] = ""
    """What there is to say of it."""
    final: bool = False
    """True where the same would fail again: there is no further attempt."""


class UnexplainedFailure(ApiModel):
    """A failure that the compiler's exit code does not explain. It may be the node's; twice the same is not."""

    container: Annotated[str, Field(max_length=63)] = ""
    """Name of the container that failed."""
    exit_code: int | None = None
    """How it ended; absent where that is not known."""
    reason: Line
    """The reason that it gave."""


NodeName = Annotated[str, Field(min_length=1, max_length=253)]


class Verification(ApiModel):
    """A kind of device on which a pod served the artifact: it was loaded there, and a token was generated."""

    product: Annotated[str, Field(min_length=1, max_length=256)]
    """The device, as its driver names it."""
    driver: Annotated[str, Field(max_length=256)]
    """The driver's version; empty where there is none."""
    sdk: Annotated[str, Field(max_length=256)] = ""
    """Version of the vendor's runtime libraries, where the engine tells it."""
    at: Annotated[str, Field(max_length=64)]
    """When that was first seen."""
    start_seconds: Annotated[int, Field(ge=1)] | None = None
    """Seconds from an engine's start there to its first token, of the slowest that has told them."""


class BuildArtifactStatus(ApiModel):
    """Where the artifact is and how it came to be."""

    observed_generation: ObservedGeneration = 0
    """The generation of the spec that this status is about; -1 where the operator has not looked at it yet."""
    attempts: Annotated[int, Field(ge=0)] = 0
    """Attempts that were begun; written before the Job of an attempt is made."""
    failures: Annotated[int, Field(ge=0)] = 0
    """Attempts that failed, but for those in which a source or the store did not answer."""
    retry_at: Annotated[str, Field(max_length=64)] | None = None
    """When the next attempt is due, after a failure that may pass by itself."""
    ended: EndedJob | None = None
    """What the last Job came to."""
    unexplained: UnexplainedFailure | None = None
    """The last failure that nothing explains: the same once more, and there is no further attempt."""
    memory: Quantity | None = None
    """Memory of the steps, where what the profile gives them was not enough."""
    excluded_nodes: Annotated[list[NodeName], Field(max_length=16, json_schema_extra=LIST_SET)] | None = None
    """Nodes whose device or driver is not what the build needs; no attempt goes there again."""
    avoided_nodes: Annotated[list[NodeName], Field(max_length=16, json_schema_extra=LIST_SET)] | None = None
    """Nodes where an attempt failed without an explanation; the next goes elsewhere, if there is anywhere else."""
    stage: Annotated[str, Field(max_length=128)] | None = None
    """The container that is at work, after the number of its Job where there are several. Only while it is built."""
    started_at: Annotated[str, Field(max_length=64)] | None = None
    """When the attempt began. Only while it is built; then the artifact counts for the limits of parallel builds."""
    expected_seconds: Annotated[int, Field(ge=0)] | None = None
    """What builds with the same profile took; the median. Only while it is built, and where there were any."""
    spent_seconds: DecimalNumber | None = None
    """Seconds that containers of all attempts ran, failed ones included."""
    location: Annotated[str, Field(max_length=1024)] | None = None
    """Where it is in the store, with its digest."""
    digest: Digest | None = None
    """Digest of its manifest, read from the store."""
    size_bytes: Annotated[int, Field(ge=0)] | None = None
    """Bytes of its layers in the store."""
    build_seconds: DecimalNumber | None = None
    """Seconds that the Jobs took that led to the result."""
    stage_seconds: Annotated[dict[str, DecimalNumber], Field(max_length=64)] | None = None
    """Seconds that each container of these Jobs took."""
    versions: Annotated[dict[str, Annotated[str, Field(max_length=256)]], Field(max_length=32)] | None = None
    """Versions of the tools that made it, as probed."""
    log_tail: (
        Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=20, json_schema_extra=LIST_ATOMIC)]
        | None
    ) = None
    """The compiler's last lines, of a failed attempt."""
    verifications: (
        Annotated[list[Verification], Field(max_length=16, json_schema_extra=list_map("product", "driver"))] | None
    ) = None
    """What it has been seen to run on, the first first."""
    referrer_count: Annotated[int, Field(ge=0)] = 0
    """Deployments that use it, and artifacts that are being built from it."""
    last_used: Annotated[str, Field(max_length=64)] | None = None
    """When it was last used, as far as is written down: once a day while it is."""
    kept_because: Annotated[str, Field(max_length=1024)] | None = None
    """Why it is kept, and until when nobody has to use it."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=CONDITIONS)] = []
    """Ready and Built, with a reason and what to do; Reconciling or Stalled only while so."""


def _name_is_of_key() -> str:
    """CEL: the name is ``a-`` and the first 26 letters of the key's hash in base32.

    A letter holds five bits, so it begins in one hexadecimal digit and ends in the next; the shift depends on where.
    The API server bounds what a rule may cost, and texts put together have no bound: hence numbers.
    """

    def digit(position: str) -> str:
        return f"'0123456789abcdef'.indexOf(self.spec.key.charAt({position}))"

    letter = "'abcdefghijklmnopqrstuvwxyz234567'.indexOf(self.metadata.name.charAt(p + 2))"
    bits = f"({digit('p * 5 / 4')} * 16 + {digit('p * 5 / 4 + 1')}) / [8, 4, 2, 1][p * 5 % 4] % 32"
    return f"self.metadata.name.matches('^a-[a-z2-7]{{26}}$') && {list(range(26))}.all(p, {letter} == {bits})"


KIND = KindInfo(
    kind="BuildArtifact",
    plural="buildartifacts",
    short_names=("bart",),
    namespaced=True,
    spec=BuildArtifactSpec,
    status=BuildArtifactStatus,
    selectable=(".spec.profile",),
    name_pattern=None,
    rules=(
        cel(
            _name_is_of_key(),
            "the name is a- and 26 letters of the key's hash in base32; the operator writes artifacts",
        ),
    ),
    columns=(
        PrinterColumn("Model", ".spec.model.source"),
        PrinterColumn("Target", ".spec.target.type"),
        PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
        PrinterColumn("Stage", ".status.stage"),
        PrinterColumn("Elapsed", ".status.startedAt", "date"),
        PrinterColumn("Expected", ".status.expectedSeconds", "integer"),
        PrinterColumn("Attempts", ".status.attempts", "integer"),
        PrinterColumn("Users", ".status.referrerCount", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Profile", ".spec.profile", priority=1),
        PrinterColumn("Spent", ".status.spentSeconds", priority=1),
        PrinterColumn("Size", ".status.sizeBytes", "integer", priority=1),
        PrinterColumn("Kept", ".status.keptBecause", priority=1),
        PrinterColumn("Location", ".status.location", priority=1),
        PrinterColumn("Verified", ".status.verifications[0].product", priority=1),
        PrinterColumn("Message", '.status.conditions[?(@.type=="Ready")].message', priority=1),
    ),
)
