"""BuildProfile: how a model is compiled for a target. Written by a vendor or a platform team."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, WithJsonSchema

from rm_api.accelerator_types import AcceleratorType
from rm_api.base import (
    CONDITIONS,
    LIST_ATOMIC,
    LIST_SET,
    UNSERVED,
    ApiModel,
    Condition,
    DecimalNumber,
    Image,
    Line,
    Name,
    ObservedGeneration,
    Quantity,
    Resources,
    SubdomainName,
    cel,
    list_map,
    unserved_values,
    validations,
)
from rm_api.build_steps import _KNOWN, Check, ExitCodeMapping, Flag, Probe, Step, VersionProbe, _only_known
from rm_api.crd import KindInfo, PrinterColumn
from rm_api.dtypes import DType
from rm_api.names import INPUT_FROM
from rm_api.tasks import ModelTask


class BuildInterface(StrEnum):
    """How the compiler is driven, in the images of the steps."""

    CLI = "CLI"
    """By command lines."""
    CONFIG_FILE = "ConfigFile"
    """By command lines that name a file, which is made from a template before the first step."""
    PYTHON = "Python"
    """By calling a function of a Python package: a step's command is module:function."""
    SHARED_LIBRARY = "SharedLibrary"
    """By rma_compile of rm_plugin.h: a step's command is the path of the library in the step's image."""
    WARMUP = "Warmup"
    """By starting an engine with an OpenAI API on port 8000, and asking for each bucket; its cache is the result."""


class Sharing(StrEnum):
    """Whose deployments use one and the same artifact."""

    NAMESPACE = "Namespace"
    """Those of one namespace."""
    CLUSTER = "Cluster"
    """Those of all namespaces, where nothing of a tenant's own goes into the build."""


class ConfigFormat(StrEnum):
    """What a compiler's configuration file is written in."""

    JSON = "JSON"
    YAML = "YAML"
    TOML = "TOML"
    INI = "INI"


class ConfigTemplate(ApiModel):
    """The file that a compiler reads what to do from."""

    format: ConfigFormat
    """What the file is written in: JSON, YAML, TOML or INI."""
    path: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_./-]*$")]
    """Where the file is put, under ${WORK}."""
    content: Annotated[str, Field(min_length=1, max_length=32768)]
    """The file. Texts in it may name variables as steps do; "${TP}" and others that are numbers become numbers."""


class BuildInput(ApiModel):
    """Something else that a build reads, such as calibration data or an architecture file."""

    name: Annotated[str, Field(min_length=1, max_length=31, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    """Its name; ${INPUT_name} is the directory that it is in."""
    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            json_schema_extra=validations(
                cel(
                    "self.matches('^(hf|oci|https|s3)://[^/\\\\s?#@]+/[^\\\\s?#]+$')",
                    "source must be hf://organisation/name, oci://registry/repository:tag, https://host/path or s3://bucket/prefix",
                )
            ),
        ),
    ]
    """Where it is fetched from: a file of https://, or all files of hf://, oci:// or s3://."""
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
    """SHA-256 of the file; of several, of the JSON [[name,digest],…], sorted and without spaces. Part of the key."""


class SecretRef(ApiModel):
    """A Secret in the namespace that the build runs in."""

    name: SubdomainName
    """Its name; the steps find its keys as files under /rma/secrets/name."""


class Binds(StrEnum):
    """What of a model a result depends on, beside its structure."""

    STRUCTURE = "Structure"
    """Nothing: models with the same config and tensors share it."""
    SCALES = "Scales"
    """The scales of its quantisation."""
    WEIGHTS = "Weights"
    """All of its weights."""


class Target(ApiModel):
    """What is compiled for: accelerators of this type and vendor."""

    type: Annotated[AcceleratorType, Field(json_schema_extra=unserved_values(AcceleratorType.REMOTE))]
    """Type of the accelerator: GPU, NPU, PIM, FPGA or CPU."""
    vendor: Line
    """Its vendor, as in the AcceleratorResource."""
    products: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Products the result runs on; empty means every product of the vendor."""
    target_string: Annotated[str, Field(max_length=256)] = ""
    """What the compiler calls the target; the variable TARGET. It may name ${DRIVER} and ${SDK}, see compatibility."""


class DTypeName(ApiModel):
    """What the tools call a number format."""

    dtype: DType
    """The number format."""
    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:+-]*$")]
    """What ${DTYPE} is for it, such as float16."""


class Supports(ApiModel):
    """Which models it can compile. An empty list means no restriction."""

    architectures: Annotated[list[Line], Field(max_length=256, json_schema_extra=LIST_SET)] = []
    """Names from a model's config.json, such as LlamaForCausalLM."""
    dtypes: Annotated[list[DType], Field(max_length=16, json_schema_extra=LIST_SET)] = []
    """Number formats it can compile to, the preferred one first."""
    tasks: Annotated[list[ModelTask], Field(max_length=2, json_schema_extra=LIST_SET)] = []
    """What the models are for: Generate, Embed. Here, an empty list means Generate alone."""


class Lora(ApiModel):
    """Room for LoRA adapters beside the model."""

    max_rank: Annotated[int, Field(ge=1, le=1024)]
    """Highest rank of an adapter."""
    max_adapters: Annotated[int, Field(ge=1, le=1024)]
    """Adapters at the same time."""


class Shapes(ApiModel):
    """Shape buckets that are compiled. A requirement is rounded up to the smallest bucket that covers it."""

    sequence: Annotated[
        list[Annotated[int, Field(ge=1, le=16777216)]], Field(max_length=32, json_schema_extra=LIST_SET)
    ] = []
    """Sequence lengths in tokens, prompt and answer together; empty means that the length is not compiled in."""
    batch: Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Batch sizes; empty means that the size is not compiled in."""
    prefill_chunk: Annotated[
        list[Annotated[int, Field(ge=1, le=16777216)]], Field(max_length=32, json_schema_extra=LIST_SET)
    ] = []
    """Tokens of a prompt that are computed in one pass: the smallest that takes a typical prompt at once, else the
    largest. Empty means that the number is not compiled in."""
    tensor_parallel: Annotated[
        list[Annotated[int, Field(ge=1, le=1024)]], Field(max_length=16, json_schema_extra=LIST_SET)
    ] = []
    """Devices that may compute one layer together. Empty means that the number is not compiled in: any power of two
    that the accelerator links and the model's heads can be divided by."""
    pipeline_parallel: Annotated[
        list[Annotated[int, Field(ge=1, le=1024)]], Field(max_length=16, json_schema_extra=LIST_SET)
    ] = []
    """Groups of devices of one node that may have the layers one after the other; empty means one."""
    lora: Annotated[list[Lora], Field(max_length=16, json_schema_extra=LIST_ATOMIC | UNSERVED)] = []
    """Ranks and numbers of LoRA adapters that are compiled in; empty means that adapters are not compiled in."""


class VersionAspect(StrEnum):
    """A version that nodes have."""

    DRIVER = "Driver"
    SDK = "Sdk"


class Compatibility(ApiModel):
    """Where the result runs. Pods are kept on such nodes, and an engine checks it before it is Ready."""

    driver: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Driver versions that load the result; empty means any."""
    sdk: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Versions of the vendor's runtime libraries on the node that load the result; empty means any."""
    one_artifact_per: Annotated[list[VersionAspect], Field(max_length=2, json_schema_extra=LIST_SET)] = []
    """Driver, Sdk or both, where a result fits one version only: each that nodes have then gets an artifact of its own,
    and target.targetString may name it as ${DRIVER} and ${SDK}."""


class Output(ApiModel):
    """What comes out, so that a runtime plugin knows what it is given."""

    format: Line
    """Name of the format, such as openvino-ir; the runtime plugin knows by it what it is given. An accelerator whose
    plugin is known not to serve it does not get it; a name that no plugin is known by, such as your own, is tried."""


class BuildProfileSpec(ApiModel):
    """How a model is compiled for a target: the steps, what they support, and what the result fits."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                f"self.steps.all(s, (s.command + (has(s.args) ? s.args : [])).all(a, {_only_known('a')}))",
                f"a step names a variable that does not exist; there are {_KNOWN}",
            ),
            cel(
                f"self.steps.all(s, !has(s.env) || s.env.all(e, !has(e.value) || {_only_known('e.value')}))",
                f"a step's environment names a variable that does not exist; there are {_KNOWN}",
            ),
            cel(
                f"self.steps.all(s, !has(s.outputs) || s.outputs.all(o, {_only_known('o')}))",
                f"a step's output names a variable that does not exist; there are {_KNOWN}",
            ),
            cel(
                f"!has(self.probe) || self.probe.command.all(a, {_only_known('a')})",
                f"the probe names a variable that does not exist; there are {_KNOWN}",
            ),
            cel(
                f"!has(self.check) || self.check.command.all(a, {_only_known('a')})",
                f"the check names a variable that does not exist; there are {_KNOWN}",
            ),
            cel(
                f"!has(self.configTemplate) || {_only_known('self.configTemplate.content')}",
                f"the template names a variable that does not exist; there are {_KNOWN}",
            ),
            cel(
                "(self.interface == 'ConfigFile') == has(self.configTemplate)",
                "configTemplate is for the interface ConfigFile, which needs it",
            ),
            cel(
                "!has(self.flags) || size(self.flags) == 0 || self.interface in ['Python', 'SharedLibrary']",
                "flags are for the interfaces Python and SharedLibrary; the others have command lines",
            ),
            cel(
                "self.interface != 'Warmup' || size(self.steps) == 1",
                "the interface Warmup has one step, which starts the engine",
            ),
            cel(
                f"!has(self.inputs) || self.inputs.all(i, i.name != '{INPUT_FROM}')",
                f"an input cannot be called {INPUT_FROM}: that is the other profile's artifact",
            ),
            cel(
                "!has(self.binds) || self.binds == 'Weights' || self.weightsInArtifact == false",
                "a result with the weights in it depends on them: set weightsInArtifact to false, or binds to Weights",
            ),
        )
    )

    target: Target
    """What is compiled for: accelerators of this type and vendor."""
    supports: Supports = Supports()
    """Which models it can compile; what is empty restricts nothing."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Decides between profiles that fit; the higher wins, then the name."""
    dtype_names: Annotated[list[DTypeName], Field(max_length=16, json_schema_extra=list_map("dtype"))] = []
    """What ${DTYPE} is in the build, where the tools call a number format something else than we do."""
    interface: BuildInterface = BuildInterface.CLI
    """How the compiler is driven. CLI: by the steps' command lines. ConfigFile: the same, with a file that is made from
    configTemplate. Python: a step's command is module:function. SharedLibrary: it is the path of a library that has
    rma_compile of rm_plugin.h. Warmup: it starts an engine with an OpenAI API on port 8000, which is asked for each
    bucket; its cache is the result."""
    config_template: ConfigTemplate | None = None
    """The compiler's configuration file, for the interface ConfigFile."""
    flags: Annotated[list[Flag], Field(max_length=64, json_schema_extra=list_map("name"))] = []
    """Options for the compiler, for the interfaces Python and SharedLibrary; they are part of the artifact's key."""
    inputs: Annotated[list[BuildInput], Field(max_length=16, json_schema_extra=list_map("name"))] = []
    """What else the build reads, such as calibration data."""
    from_profile: Annotated[Name | None, Field(alias="from")] = None
    """Another BuildProfile: its artifact of the same model is built first, and is in ${INPUT_from}."""
    check: Check | None = None
    """A dry run before anything is fetched that is large; where it fails, the model is placed elsewhere."""
    version_probe: VersionProbe | None = None
    """How the toolchain's version is found out; it counts for the artifact's key then, as do the images' digests."""
    binds: Binds = Binds.WEIGHTS
    """What the result depends on: the model's Structure, its Scales too, or all its Weights."""
    sharing: Sharing = Sharing.NAMESPACE
    """Who shares an artifact: the deployments of a Namespace, or of the whole Cluster. For the Cluster it is built in a
    namespace of its own, of models that anybody may read, without credentials and without code of the model's; what
    cannot be built so is built for its namespace, and the deployment's ArtifactReady says why."""
    weights_in_artifact: bool = True
    """False where the result has no weights in it: serving pods then fetch the model, too."""
    secret_refs: Annotated[list[SecretRef], Field(max_length=8, json_schema_extra=list_map("name"))] = []
    """Secrets that the steps need, such as licences, in the namespace of the build."""
    steps: Annotated[list[Step], Field(min_length=1, max_length=16, json_schema_extra=list_map("name"))]
    """The commands, in order. They share ${WORK}; the last ones leave the result in ${OUTPUT}."""
    probe: Probe | None = None
    """Check of the result, before it is pushed."""
    shapes: Shapes = Shapes()
    """Shape buckets that are compiled; a requirement is rounded up to the smallest that covers it."""
    compatibility: Compatibility = Compatibility()
    """Where the result runs; an engine checks it against the device before it is Ready."""
    output: Output
    """What comes out, so that a runtime plugin knows what it is given."""
    resources: Resources = Resources()
    """CPU and memory of a step that names none."""
    max_memory: Quantity | None = None
    """How far a step's memory may be doubled when it was not enough; without it, not at all."""
    scratch: Quantity = "20Gi"
    """Size limit of the build's working directory."""
    parallel_builds: Annotated[int, Field(ge=1, le=10000)] | None = None
    """Builds with this profile that may run at a time, in all namespaces; without it, any number."""
    timeout_seconds: Annotated[int, Field(ge=10, le=604800)] = 3600
    """Seconds that one attempt may take, all of its steps together."""
    exit_codes: Annotated[list[ExitCodeMapping], Field(max_length=64, json_schema_extra=list_map("code"))] = []
    """Meanings of the tools' exit codes; any other non-zero code is a ToolchainFailure."""


class PinnedImage(ApiModel):
    """What an image's name stood for."""

    image: Image
    """The name, as in the spec."""
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)]
    """What a container runtime pulled under that name, by content."""


class Probed(ApiModel):
    """What the versions and digests in a status are an answer to."""

    recipe: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", max_length=16)]
    """Hash of versionProbe and of the names of the images; where they have changed, the answer is of another recipe."""
    generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec for which it was last probed."""
    again: Annotated[str, Field(max_length=16)] = ""
    """Hash of the value that the annotation rm-abstract.io/probe-again had then; empty where there was none."""
    time: Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
    """When it was probed."""


class BuildProfileStatus(ApiModel):
    """Whether the profile can be used."""

    observed_generation: ObservedGeneration = 0
    """The generation of the spec that this status is about; -1 where the operator has not looked at it yet."""
    artifacts: Annotated[int, Field(ge=0)] = 0
    """Artifacts that were built with it and exist."""
    build_minutes: DecimalNumber | None = None
    """Minutes that builds with it took, of all artifacts that exist; those that failed are included."""
    versions: Annotated[dict[str, Annotated[str, Field(max_length=256)]], Field(max_length=32)] | None = None
    """Version of the toolchain, as probed."""
    images: Annotated[list[PinnedImage], Field(max_length=24, json_schema_extra=list_map("image"))] | None = None
    """What the names of its images stood for when the version was probed; where no digest is known, one is left out."""
    probed: Probed | None = None
    """What versions and images were found out for, and when."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=CONDITIONS)] = []
    """Ready, with a reason and what to do."""


KIND = KindInfo(
    kind="BuildProfile",
    plural="buildprofiles",
    short_names=("bprof",),
    namespaced=False,
    spec=BuildProfileSpec,
    status=BuildProfileStatus,
    selectable=(".spec.target.type", ".spec.target.vendor"),
    columns=(
        PrinterColumn("Target", ".spec.target.type"),
        PrinterColumn("Vendor", ".spec.target.vendor"),
        PrinterColumn("Format", ".spec.output.format"),
        PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
        PrinterColumn("Artifacts", ".status.artifacts", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Interface", ".spec.interface", priority=1),
        PrinterColumn("Products", ".spec.target.products", priority=1),
        PrinterColumn("Toolchain", ".status.versions", priority=1),
        PrinterColumn("Minutes", ".status.buildMinutes", priority=1),
        PrinterColumn("Message", '.status.conditions[?(@.type=="Ready")].message', priority=1),
    ),
)
