"""What a kind of accelerator can do, and what it costs, as its owner declares it."""

from typing import Annotated

from pydantic import ConfigDict, Field

from rm_api.base import (
    LIST_SET,
    ApiModel,
    DecimalNumber,
    Line,
    Word,
    cel,
    list_map,
    validations,
)
from rm_api.dtypes import DType


class Capability(ApiModel):
    """What the accelerator can do, whatever the model."""

    dtypes: Annotated[list[DType], Field(max_length=16, json_schema_extra=LIST_SET)] = []
    """Number formats it computes in; empty means not known, and any is tried."""
    max_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Most sequences that it computes in one batch."""
    max_sequence_length: Annotated[int, Field(ge=1, le=16777216)] | None = None
    """Longest sequence, prompt and answer together, in tokens."""
    max_tensor_parallel: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Most devices that compute one layer together; by default as many as a node has with linkGBps, 1 without it."""
    features: Annotated[list[Word], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """What else it can do, in words that deployments ask for with requirements.features, such as lora. Without any,
    what is known of runtime.plugin."""
    architectures: Annotated[list[Line], Field(max_length=512, json_schema_extra=LIST_SET)] = []
    """Models that its engine serves, as config.json names them, such as LlamaForCausalLM. Without any, those that
    runtime.plugin is known to serve; any, where that is not known either."""


class Tflops(ApiModel):
    """Peak dense throughput for one number format."""

    dtype: DType
    """The number format that the peak is for."""
    value: DecimalNumber
    """Peak of one device in 10^12 operations per second."""


_PART = validations(
    cel(
        "double(self) <= 1.0",
        "an efficiency is a part of the peak: at most 1, such as 0.4",
    )
)


class Efficiency(ApiModel):
    """Part of the peak that inference reaches."""

    compute: Annotated[DecimalNumber | None, Field(json_schema_extra=_PART)] = None
    """Of the compute peak, 0 to 1; 0.4 where nothing is declared."""
    bandwidth: Annotated[DecimalNumber | None, Field(json_schema_extra=_PART)] = None
    """Of the memory bandwidth, 0 to 1; 0.6 where nothing is declared."""


class Performance(ApiModel):
    """Figures of one device, from its data sheet; placement estimates with them."""

    memory_gib: Annotated[DecimalNumber | None, Field(alias="memoryGiB")] = None
    """Device memory in GiB; what does not fit 90 % of it is not placed there."""
    bandwidth_gbps: Annotated[DecimalNumber | None, Field(alias="bandwidthGBps")] = None
    """Memory bandwidth in 10^9 bytes per second."""
    tflops: Annotated[list[Tflops], Field(max_length=16, json_schema_extra=list_map("dtype"))] = []
    """Peak dense compute by number format."""
    efficiency: Efficiency = Efficiency()
    """What of the peaks inference reaches."""
    link_gbps: Annotated[DecimalNumber | None, Field(alias="linkGBps")] = None
    """Bandwidth of one device to the others of its node in 10^9 bytes per second. With it a replica may have several
    devices, where the model does not fit one or is too slow there."""


class Power(ApiModel):
    """Power draw of one device."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel("double(self.idleWatts) <= double(self.maxWatts)", "idleWatts is more than maxWatts"),
        )
    )

    idle_watts: DecimalNumber
    """Watts of one device when idle."""
    max_watts: DecimalNumber
    """Watts of one device under full load."""


class Cost(ApiModel):
    """Price of one device, or of an endpoint's tokens."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "has(self.perHour) || (has(self.perMillionInputTokens) && has(self.perMillionOutputTokens))",
                "cost has perHour, or for type REMOTE perMillionInputTokens and perMillionOutputTokens",
            ),
        )
    )

    per_hour: DecimalNumber | None = None
    """Price of one device for an hour. Required for every type but REMOTE, which has none."""
    per_million_input_tokens: DecimalNumber | None = None
    """Price of 10^6 tokens of prompts. For type REMOTE, which is compared by price only with both."""
    per_million_output_tokens: DecimalNumber | None = None
    """Price of 10^6 tokens of answers. For type REMOTE."""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$", min_length=3, max_length=3)] = "USD"
    """ISO 4217 code. Prices in different currencies are not compared."""
