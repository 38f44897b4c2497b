"""What a build runs: steps, the check before them, and the probe of a compiler's versions."""

from typing import Annotated

from pydantic import Field

from rm_api.base import (
    LIST_ATOMIC,
    LIST_SET,
    ApiModel,
    Argument,
    EnvVar,
    Image,
    Name,
    Resources,
    cel,
    list_map,
    validations,
)
from rm_api.names import BUILD_VARIABLES, INPUT_VARIABLE_PREFIX


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
    requires_device: bool = False
    """True where it needs a device of the target. Such steps, and those that do not, run in Jobs of their own."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=64, json_schema_extra=LIST_ATOMIC)]
    """Program and first arguments, or what the interface says. ${NAME} is a variable of the contract, $$ a dollar."""
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


_KNOWN = ", ".join(sorted(BUILD_VARIABLES)) + " and INPUT_name for each input"


_VARIABLES = "|".join([*sorted(BUILD_VARIABLES), f"{INPUT_VARIABLE_PREFIX}[A-Za-z0-9_]+"])


_PATTERN = rf"^([^$]|[$][$]|[$][{{]({_VARIABLES})[}}]|[$][^${{])*[$]?$"


def _only_known(text: str) -> str:
    """CEL: ``text`` names no variable but those of the catalogue."""
    return f"{text}.matches('{_PATTERN}')"


class Check(ApiModel):
    """A dry run that tells in seconds whether the compiler takes a model."""

    image: Image
    """Image with the tool; it runs unmodified."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=64, json_schema_extra=LIST_ATOMIC)]
    """Program and arguments. ${MODEL_DIR} has all but the weights. It ends with 0 where the model can be compiled."""
    env: Annotated[
        list[StepVariable],
        Field(
            max_length=32,
            json_schema_extra=list_map("name")
            | validations(
                cel(
                    f"self.all(e, !has(e.value) || {_only_known('e.value')})",
                    f"the check's environment names a variable that does not exist; there are {_KNOWN}",
                )
            ),
        ),
    ] = []
    """Variables of its environment. Inputs that they, or the command, name as ${INPUT_name} are fetched before."""
    success_pattern: Annotated[str, Field(max_length=512)] | None = None
    """A regular expression (RE2) that a line of the log must match, for tools that end with 0 whatever happened."""
    failure_pattern: Annotated[str, Field(max_length=512)] | None = None
    """A regular expression (RE2) that no line of the log may match."""


class VersionProbe(ApiModel):
    """How the version of the toolchain is found out."""

    image: Image
    """Image with the tool; it runs unmodified."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=64, json_schema_extra=LIST_ATOMIC)]
    """Program and arguments."""
    pattern: Annotated[str, Field(min_length=1, max_length=512)] = r"([0-9]+(?:\.[0-9]+)+\S*)"
    """A regular expression (RE2); its first group, in the first line of the output that it matches, is the version."""


class ExitCodeMapping(ApiModel):
    """What an exit code of the vendor's tool means."""

    code: Annotated[int, Field(ge=1, le=255)]
    """Exit code of the vendor's tool."""
    meaning: Annotated[
        str, Field(json_schema_extra={"enum": ["BadInput", "UnsupportedModel", "ToolchainFailure", "Transient"]})
    ]
    """BadInput and UnsupportedModel blame the model, ToolchainFailure the tool; Transient is tried again."""


class Flag(ApiModel):
    """An option of a compiler that has no command line."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
    """What the compiler calls the option."""
    value: Argument = ""
    """Its value, as it is written here."""
