"""BuildProfile: how a model is compiled for a target. Written by a vendor or a platform team."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from rm_api.base import (
    CONDITIONS,
    LIST_ATOMIC,
    LIST_SET,
    ApiModel,
    Argument,
    Condition,
    EnvVar,
    Image,
    Line,
    Name,
    ObservedGeneration,
    Quantity,
    Resources,
    cel,
    list_map,
    validations,
)
from rm_api.crd import KindInfo, PrinterColumn
from rm_api.dtypes import DType
from rm_api.kinds.accelerator_resource import AcceleratorType
from rm_api.names import BUILD_VARIABLES


class BuildInterface(StrEnum):
    """How the compiler is driven. CLI: by the commands of the steps."""

    CLI = "CLI"


class Target(ApiModel):
    """What is compiled for: accelerators of this type and vendor."""

    type: AcceleratorType
    """Type of the accelerator: GPU, NPU, PIM, FPGA or CPU."""
    vendor: Line
    """Its vendor, as in the AcceleratorResource."""
    products: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Products the result runs on; empty means every product of the vendor."""
    target_string: Annotated[str, Field(max_length=256)] = ""
    """What the compiler calls the target; the variable TARGET."""


class Supports(ApiModel):
    """Which models it can compile. An empty list means no restriction."""

    architectures: Annotated[list[Line], Field(max_length=256, json_schema_extra=LIST_SET)] = []
    """Names from a model's config.json, such as LlamaForCausalLM."""
    dtypes: Annotated[list[DType], Field(max_length=16, json_schema_extra=LIST_SET)] = []
    """Number formats it can compile to, the preferred one first."""


class StepVariable(EnvVar):
    """A variable of a step's environment."""

    # Shorter than elsewhere: the API server bounds what checking it may cost.
    value: Argument = ""
    """Its value; ${NAME} refers to a variable of the workload contract, $$ is a dollar."""


class Step(ApiModel):
    """One command of the build, in an image of the vendor's choice, run by rma-launch without a shell."""

    name: Name
    """Name of the step, and of its container."""
    image: Image
    """Image with the tool; it runs unmodified, and is part of the artifact's key."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=64, json_schema_extra=LIST_ATOMIC)]
    """Program and first arguments. ${NAME} refers to a variable of the workload contract, $$ is a dollar."""
    args: Annotated[list[Argument], Field(max_length=256, json_schema_extra=LIST_ATOMIC)] = []
    """Further arguments, after those of the command; the same variables."""
    env: Annotated[list[StepVariable], Field(max_length=32, json_schema_extra=list_map("name"))] = []
    """Variables of the step's environment; they are part of the artifact's key."""
    resources: Resources = Resources()
    """CPU and memory of the step; the profile's where absent."""
    outputs: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=64, json_schema_extra=LIST_SET)
    ] = []
    """Files or directories that must exist, and not be empty, when the step has succeeded; globs are allowed."""
    success_pattern: Annotated[str, Field(max_length=512)] | None = None
    """A regular expression (RE2) that a line of the log must match, for tools that end with 0 whatever happened."""
    failure_pattern: Annotated[str, Field(max_length=512)] | None = None
    """A regular expression (RE2) that no line of the log may match."""


class Probe(ApiModel):
    """A cheap check of the result that needs no device."""

    image: Image
    """Image with the tool; it runs unmodified, and is part of the artifact's key."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=64, json_schema_extra=LIST_ATOMIC)]
    """Program and arguments; it must end with 0 where the artifact is whole."""


class Shapes(ApiModel):
    """Shape buckets that are compiled. A requirement is rounded up to the smallest bucket that covers it."""

    sequence: Annotated[
        list[Annotated[int, Field(ge=1, le=16777216)]], Field(max_length=32, json_schema_extra=LIST_SET)
    ] = []
    """Sequence lengths in tokens, prompt and answer together; empty means that the length is not compiled in."""
    batch: Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Batch sizes; empty means that the size is not compiled in."""


class Compatibility(ApiModel):
    """Where the result runs. Checked against the device before an engine is Ready."""

    driver: Annotated[list[Line], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Driver versions that load the result; empty means any."""


class Output(ApiModel):
    """What comes out, so that a runtime plugin knows what it is given."""

    format: Line
    """Name of the format, such as openvino-ir; the runtime plugin knows by it what it is given."""


class ExitCodeMapping(ApiModel):
    """What an exit code of the vendor's tool means."""

    code: Annotated[int, Field(ge=1, le=255)]
    """Exit code of the vendor's tool."""
    meaning: Annotated[
        str, Field(json_schema_extra={"enum": ["BadInput", "UnsupportedModel", "ToolchainFailure", "Transient"]})
    ]
    """BadInput and UnsupportedModel blame the model, ToolchainFailure the tool; Transient is tried again."""


_KNOWN = ", ".join(sorted(BUILD_VARIABLES))
_PATTERN = rf"^([^$]|[$][$]|[$][{{]({'|'.join(sorted(BUILD_VARIABLES))})[}}]|[$][^${{])*[$]?$"


def _only_known(text: str) -> str:
    """CEL: ``text`` names no variable but those of the catalogue."""
    return f"{text}.matches('{_PATTERN}')"


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
        )
    )

    target: Target
    """What is compiled for: accelerators of this type and vendor."""
    supports: Supports = Supports()
    """Which models it can compile; what is empty restricts nothing."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Decides between profiles that fit; the higher wins, then the name."""
    interface: BuildInterface = BuildInterface.CLI
    """How the compiler is driven. CLI: by the commands of the steps."""
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
    scratch: Quantity = "20Gi"
    """Size limit of the build's working directory."""
    timeout_seconds: Annotated[int, Field(ge=10, le=604800)] = 3600
    """Seconds that one attempt may take, all of its steps together."""
    exit_codes: Annotated[list[ExitCodeMapping], Field(max_length=64, json_schema_extra=list_map("code"))] = []
    """Meanings of the tools' exit codes; any other non-zero code is a ToolchainFailure."""


class BuildProfileStatus(ApiModel):
    """Whether the profile can be used."""

    observed_generation: ObservedGeneration = 0
    """The generation of the spec that this status is about; -1 where the operator has not looked at it yet."""
    artifacts: Annotated[int, Field(ge=0)] = 0
    """Artifacts that were built with it and exist."""
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
        PrinterColumn("Message", '.status.conditions[?(@.type=="Ready")].message', priority=1),
    ),
)
