"""AcceleratorResource: a kind of accelerator that the cluster has or can get; not a single device."""

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
    DecimalNumber,
    EnvVar,
    Image,
    LabelKey,
    LabelValue,
    Line,
    Word,
    cel,
    list_map,
    validations,
)
from rm_api.crd import KindInfo, PrinterColumn
from rm_api.dtypes import DType


class AcceleratorType(StrEnum):
    """What an accelerator is."""

    GPU = "GPU"
    NPU = "NPU"
    PIM = "PIM"
    FPGA = "FPGA"
    CPU = "CPU"


DEFAULT_PRIORITY: dict[AcceleratorType, int] = {
    AcceleratorType.NPU: 100,
    AcceleratorType.GPU: 75,
    AcceleratorType.PIM: 50,
    AcceleratorType.FPGA: 25,
    AcceleratorType.CPU: 0,
}


class Toleration(ApiModel):
    """A taint that pods on these nodes tolerate, as in a pod."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """The taint's key; empty with operator Exists tolerates everything."""
    operator: Annotated[str, Field(json_schema_extra={"enum": ["Exists", "Equal"]})] = "Equal"
    """Exists or Equal."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """The taint's value, for Equal."""
    effect: (
        Annotated[str, Field(json_schema_extra={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]})] | None
    ) = None
    """The taint's effect; absent means every effect."""


class DevicePlugin(ApiModel):
    """The device plugin that the operator rolls out on the nodes of this kind, as a DaemonSet in its own namespace."""

    image: Image
    """The plugin's image. It serves the kubelet's device plugin API v1beta1 and a report at :9010/rma/v1/report."""
    command: Annotated[list[Argument], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """Replaces the image's entry point."""
    args: Annotated[list[Argument], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """Arguments. The resource name is passed in the variable RMA_RESOURCE_NAME."""
    env: Annotated[list[EnvVar], Field(max_length=64, json_schema_extra=list_map("name"))] | None = None
    """Further variables."""
    config: Annotated[str, Field(max_length=65536)] | None = None
    """A configuration file for the plugin, YAML by convention, mounted as /etc/rma-device-plugin/config.yaml."""
    host_paths: Annotated[
        list[Annotated[str, Field(min_length=2, max_length=256, pattern=r"^/[^\s]*$")]],
        Field(max_length=8, json_schema_extra=LIST_SET),
    ] = []
    """Directories of the host that the plugin needs beside the kubelet's; mounted at the same path, made if absent."""


class Capability(ApiModel):
    """What the accelerator can do, whatever the model."""

    dtypes: Annotated[list[DType], Field(max_length=16, json_schema_extra=LIST_SET)] = []
    """Number formats it computes in; empty means not known, and any is tried."""
    max_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Most sequences in one batch."""
    max_sequence_length: Annotated[int, Field(ge=1, le=16777216)] | None = None
    """Longest sequence, prompt and answer together, in tokens."""


class Tflops(ApiModel):
    """Peak dense throughput for one number format."""

    dtype: DType
    """The number format."""
    value: DecimalNumber
    """10^12 operations per second of one device."""


class Efficiency(ApiModel):
    """Part of the peak that inference reaches."""

    compute: DecimalNumber | None = None
    """Of the compute peak, 0 to 1; 0.4 where nothing is declared."""
    bandwidth: DecimalNumber | None = None
    """Of the memory bandwidth, 0 to 1; 0.6 where nothing is declared."""


class Performance(ApiModel):
    """Figures of one device, from its data sheet; placement estimates with them."""

    memory_gib: Annotated[DecimalNumber | None, Field(alias="memoryGiB")] = None
    """Device memory in GiB."""
    bandwidth_gbps: Annotated[DecimalNumber | None, Field(alias="bandwidthGBps")] = None
    """Memory bandwidth in 10^9 bytes per second."""
    tflops: Annotated[list[Tflops], Field(max_length=16, json_schema_extra=list_map("dtype"))] = []
    """Peak compute by number format."""
    efficiency: Efficiency = Efficiency()
    """What of the peaks inference reaches."""


class Power(ApiModel):
    """Power draw of one device."""

    idle_watts: DecimalNumber
    """Watts when idle."""
    max_watts: DecimalNumber
    """Watts under full load."""


class Cost(ApiModel):
    """Price of one device."""

    per_hour: DecimalNumber
    """Price of one device for an hour."""
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$", min_length=3, max_length=3)] = "USD"
    """ISO 4217 code. Prices in different currencies are not compared."""


class Runtime(ApiModel):
    """How models are served on this kind of accelerator."""

    plugin: Word
    """The runtime plugin of the SDK that starts the engine, such as openvino."""
    image: Image
    """The engine's image, unmodified."""
    args: Annotated[list[Argument], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """Further arguments for the engine; ${NAME} refers to a variable of the workload contract."""
    env: Annotated[list[EnvVar], Field(max_length=64, json_schema_extra=list_map("name"))] | None = None
    """Variables for the engine; values may name variables of the workload contract."""


class AcceleratorResourceSpec(ApiModel):
    """A kind of accelerator: how its devices are requested, what they do and cost, how models are served on it."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "self.type == 'CPU' ? !has(self.resourceName) : has(self.resourceName)",
                "resourceName is required for every type but CPU, which has none",
            ),
            cel(
                "!has(self.devicePlugin) || has(self.resourceName)",
                "devicePlugin needs the resourceName that it is to advertise",
            ),
        )
    )

    type: AcceleratorType
    """GPU, NPU, PIM, FPGA or CPU."""
    vendor: Line
    """Who makes it."""
    product: Line
    """The product, as the vendor's tools call it."""
    tags: Annotated[list[Word], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Free words that deployments can select by."""
    attributes: Annotated[dict[str, Annotated[str, Field(max_length=256)]], Field(max_length=32)] = {}
    """Further facts, for people and for tools."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    """Decides between equal scores; the higher wins. By default NPU 100, GPU 75, PIM 50, FPGA 25, CPU 0."""
    resource_name: (
        Annotated[str, Field(min_length=3, max_length=317, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9][-A-Za-z0-9_.]*$")] | None
    ) = None
    """The extended resource that pods request, such as nvidia.com/gpu."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = {}
    """Labels of the nodes that have it; empty means every node."""
    tolerations: Annotated[list[Toleration], Field(max_length=16, json_schema_extra=LIST_ATOMIC)] = []
    """Taints that pods on these nodes tolerate."""
    device_plugin: DevicePlugin | None = None
    """The device plugin to roll out. Absent: the vendor's own is there, and capacity is read from the nodes."""
    capability: Capability = Capability()
    """What it can do."""
    performance: Performance = Performance()
    """How fast it is."""
    power: Power | None = None
    """What it draws."""
    cost: Cost | None = None
    """What it costs."""
    runtime: Runtime
    """How models are served on it."""


class DeviceCounts(ApiModel):
    """Devices of this kind, as the nodes advertise them."""

    total: Annotated[int, Field(ge=0)] = 0
    """Devices that the kubelets know."""
    healthy: Annotated[int, Field(ge=0)] = 0
    """Those of them that can be allocated."""
    allocated: Annotated[int, Field(ge=0)] = 0
    """Those that pods have been given."""


class AcceleratorResourceStatus(ApiModel):
    """What the cluster has of this kind."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this status is about."""
    nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes that match the selector; with a resource name, those that advertise it."""
    devices: DeviceCounts = DeviceCounts()
    """Devices on these nodes."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=CONDITIONS)] = []
    """Accepted state in the usual form."""


KIND = KindInfo(
    kind="AcceleratorResource",
    plural="acceleratorresources",
    short_names=("accel",),
    namespaced=False,
    spec=AcceleratorResourceSpec,
    status=AcceleratorResourceStatus,
    columns=(
        PrinterColumn("Type", ".spec.type"),
        PrinterColumn("Product", ".spec.product"),
        PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        PrinterColumn("Nodes", ".status.nodes", "integer"),
        PrinterColumn("Devices", ".status.devices.total", "integer"),
        PrinterColumn("Healthy", ".status.devices.healthy", "integer"),
        PrinterColumn("Allocated", ".status.devices.allocated", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Vendor", ".spec.vendor", priority=1),
        PrinterColumn("Resource", ".spec.resourceName", priority=1),
        PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
    ),
)
