"""What all kinds have in common: the model base, numbers without floats, metadata, conditions."""

from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A part of an API object: camelCase on the wire, frozen, unknown members ignored (the API server prunes them)."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    def to_wire(self) -> dict[str, Any]:
        """The object as the API server takes it: camelCase, without members that are unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _schema(**keywords: Any) -> WithJsonSchema:
    return WithJsonSchema(keywords)


# A non-negative decimal number. The API has no floats (they do not survive round trips): 16, "16" and "1.5" are valid.
DecimalNumber = Annotated[
    Decimal,
    Field(ge=0),
    PlainSerializer(str, return_type=str),
    # The pattern holds for strings only, the bounds for integers only.
    _schema(
        **{
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "maximum": 999_999_999_999,
            "pattern": r"^[0-9]{1,12}(\.[0-9]{1,6})?$",
            "maxLength": 20,
        }
    ),
]

# A Kubernetes quantity such as 4Gi or 500m; whole numbers may be written without quotes.
Quantity = Annotated[
    str,
    Field(coerce_numbers_to_str=True),
    _schema(
        **{
            "x-kubernetes-int-or-string": True,
            "minimum": 0,
            "maximum": 999_999_999_999_999,
            "pattern": r"^[0-9]{1,15}(\.[0-9]{1,9})?([EPTGM]i?|Ki|k|m)?$",
            "maxLength": 20,
        }
    ),
]

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Word = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$")]
Line = Annotated[str, Field(min_length=1, max_length=256)]
Argument = Annotated[str, Field(max_length=1024)]
Image = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")]
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")]
# The name of an object outside our own kinds, which may have dots.
SubdomainName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]

# Marks a field that the models have, because what is pure can already work with it, and that the CRD leaves out,
# because nothing in the cluster would act on it: what is admitted has an effect.
UNSERVED: dict[str, Any] = {"x-rma-unserved": True}


def unserved_values(*values: str) -> dict[str, Any]:
    """Schema keyword of an enumeration: values that the CRD leaves out, for the reason that fields are ``UNSERVED``."""
    return {"x-rma-unserved-values": list(values)}


def positive(message: str) -> dict[str, Any]:
    """Schema keyword of a DecimalNumber or Quantity that may not be zero."""
    return validations(cel("type(self) == int ? self > 0 : self.matches('[1-9]')", message))


def list_map(*keys: str) -> dict[str, Any]:
    """Schema keywords of a list whose members are told apart by ``keys`` (server-side apply merges by them)."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


LIST_SET: dict[str, Any] = {"x-kubernetes-list-type": "set"}
LIST_ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
# A part that one writer has as a whole: who owns which of its members is not kept, which halves what a write costs.
MAP_ATOMIC: dict[str, Any] = {"x-kubernetes-map-type": "atomic"}


def cel(rule: str, message: str, *, field_path: str | None = None) -> dict[str, Any]:
    """One validation rule in CEL, as the API server evaluates it, with the sentence a refused user reads."""
    entry = {"rule": rule, "message": message}
    if field_path is not None:
        entry["fieldPath"] = field_path
    return entry


def validations(*rules: dict[str, Any]) -> dict[str, Any]:
    """Schema keyword that carries CEL rules."""
    return {"x-kubernetes-validations": list(rules)}


class EnvVar(ApiModel):
    """A variable of a container's environment."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name of the variable in the container's environment."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Its value; ${NAME} refers to a variable of the workload contract, $$ is a dollar."""


class Resources(ApiModel):
    """Compute resources of a container."""

    cpu: Quantity | None = None
    """CPU that is requested, such as 2 or 500m."""
    memory: Quantity | None = None
    """Memory that is requested and is also the limit, such as 8Gi."""


# The generation of the spec that a status is about. A status that nobody wrote yet has -1, see the CRD generator.
ObservedGeneration = Annotated[int, Field(ge=-1)]


class Condition(ApiModel):
    """One aspect of an object's state, after the Kubernetes API conventions."""

    type: Annotated[str, Field(max_length=63)]
    """The aspect that this is about, such as Ready."""
    status: Annotated[str, _schema(type="string", enum=["True", "False", "Unknown"])]
    """True, False or Unknown, of the aspect."""
    reason: Annotated[str, Field(min_length=1, max_length=63)]
    """Why the status is what it is, one CamelCase word of a closed vocabulary."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """The same for a person, with what to do where something is to be done."""
    last_transition_time: Annotated[str, _schema(type="string", format="date-time")]
    """When the status of this aspect last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this was said of."""


CONDITIONS: dict[str, Any] = list_map("type") | {"maxItems": 16}
