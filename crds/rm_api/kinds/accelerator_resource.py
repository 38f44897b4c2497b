"""AcceleratorResource: a kind of accelerator that the cluster has or can get; not a single device."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from rm_api.accelerator_types import AcceleratorType
from rm_api.base import (
    CONDITIONS,
    LIST_ATOMIC,
    LIST_SET,
    ApiModel,
    Argument,
    Condition,
    EnvVar,
    Image,
    LabelKey,
    LabelValue,
    Line,
    Name,
    ObservedGeneration,
    SubdomainName,
    Word,
    cel,
    list_map,
    validations,
)
from rm_api.capabilities import Capability, Cost, Performance, Power
from rm_api.crd import KindInfo, PrinterColumn
from rm_api.remote import Remote


class ProvisioningMode(StrEnum):
    """Whether nodes of this kind can appear on demand."""

    STATIC = "Static"
    ELASTIC = "Elastic"


class Toleration(ApiModel):
    """A taint that pods on these nodes tolerate, as in a pod."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "self.operator == 'Exists' ? !has(self.value) : has(self.key)",
                "a toleration with operator Equal, the default, needs a key; one with Exists has no value",
            ),
        )
    )

    key: Annotated[str, Field(max_length=317)] | None = None
    """The taint's key; empty with operator Exists tolerates everything."""
    operator: Annotated[str, Field(json_schema_extra={"enum": ["Exists", "Equal"]})] = "Equal"
    """Exists: any value of the key. Equal: the one that is given."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """The taint's value, for Equal."""
    effect: (
        Annotated[str, Field(json_schema_extra={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]})] | None
    ) = None
    """NoSchedule, PreferNoSchedule or NoExecute; absent means every effect."""


ResourceName = Annotated[str, Field(min_length=3, max_length=317, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9][-A-Za-z0-9_.]*$")]


class DevicePlugin(ApiModel):
    """The device plugin that the operator rolls out on the nodes of this kind, as a DaemonSet in its own namespace."""

    image: Image
    """The plugin's image. It serves the kubelet's device plugin API v1beta1 and a report at :9010/rma/v1/report."""
    command: Annotated[list[Argument], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """Replaces the image's entry point."""
    args: Annotated[list[Argument], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """Arguments. The resource name is passed in the variable RMA_RESOURCE_NAME."""
    env: Annotated[list[EnvVar], Field(max_length=64, json_schema_extra=list_map("name"))] | None = None
    """Further variables of the plugin's environment."""
    config: Annotated[str, Field(max_length=65536)] | None = None
    """A configuration file for the plugin, YAML by convention, mounted as /etc/rma-device-plugin/config.yaml."""
    host_paths: Annotated[
        list[Annotated[str, Field(min_length=2, max_length=256, pattern=r"^/[^\s]*$")]],
        Field(max_length=8, json_schema_extra=LIST_SET),
    ] = []
    """Directories of the host that the plugin needs beside the kubelet's; mounted at the same path, made if absent."""
    extended_resource_name: ResourceName | None = None
    """With deviceClassName: the extended resource by which ordinary pods get a device of the class, such as the name
    that a device plugin advertises on other nodes."""


class Observer(ApiModel):
    """A program that looks at the devices of a node whose device plugin is the vendor's own, and advertises nothing.

    It reads the kubelet's Pod Resources API, and with arguments that name a vendor module the devices themselves.
    """

    image: Image
    """The image of the device plugins. It serves the same report at :9010/rma/v1/report."""
    args: Annotated[list[Argument], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """Arguments after --observe, such as --vendor=nvidia; without them only what the kubelet knows is reported."""


class VersionLabels(ApiModel):
    """Node labels that carry versions. Those that the operator writes itself need not be named."""

    driver: LabelKey | None = None
    """The label with the driver's version."""
    sdk: LabelKey | None = None
    """The label with the version of the vendor's runtime libraries on the node."""
    firmware: LabelKey | None = None
    """The label with the devices' firmware version."""


class Provisioning(ApiModel):
    """Whether nodes of this kind are there, or come when pods ask for them."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "self.mode == 'Elastic' || (!has(self.maxDevices) && !has(self.expectedSeconds))",
                "maxDevices and expectedSeconds need mode Elastic; Static counts the devices that are there",
            ),
        )
    )

    mode: ProvisioningMode = ProvisioningMode.STATIC
    """Static: what the nodes advertise is all there is. Elastic: pods may wait for a node that an autoscaler adds."""
    max_devices: Annotated[int, Field(ge=1, le=1000000)] | None = None
    """Most devices that there can be, counting those that are there; without it there is no limit. For Elastic."""
    expected_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    """Seconds that a new node usually takes to be there. For Elastic."""


class Runtime(ApiModel):
    """How models are served on this kind of accelerator."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "has(self.plugin) || has(self.command)",
                "plugin, which knows how its engine is started, or command is required",
            ),
            cel(
                "!has(self.command) || !has(self.plugin)",
                "command takes the place of plugin; only one of the two can be given",
            ),
        )
    )

    plugin: Word | None = None
    """The runtime plugin of the SDK that starts the engine, such as openvino. This or command."""
    command: Annotated[list[Argument], Field(min_length=1, max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """Instead of plugin: program and arguments of the engine's own OpenAI server; ${NAME} refers to a variable of the
    workload contract, such as ${ARTIFACT_DIR}, ${SERVED_NAME} and ${PORT}."""
    image: Image
    """The engine's image, unmodified: the vendor's own."""
    args: Annotated[list[Argument], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """Further arguments for the engine; ${NAME} refers to a variable of the workload contract."""
    env: Annotated[list[EnvVar], Field(max_length=64, json_schema_extra=list_map("name"))] | None = None
    """Variables for the engine; values may name variables of the workload contract."""
    allow_remote_code: bool | None = None
    """True lets deployments that ask for it (runtime.trustRemoteCode) run code that comes with a model, on devices and
    nodes of this kind; not allowed where absent. A plugin is told so; command has to have its engine run the code."""


_LABEL_KEY = "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"


class AcceleratorResourceSpec(ApiModel):
    """A kind of accelerator: how its devices are requested, what they do and cost, how models are served on it."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            cel(
                "self.type == 'REMOTE' ? (has(self.remote) && !has(self.runtime) && !has(self.resourceName)"
                " && !has(self.deviceClassName) && (!has(self.cost) || !has(self.cost.perHour)))"
                " : (self.type == 'CPU' ? !has(self.resourceName) && !has(self.deviceClassName)"
                " : has(self.resourceName) != has(self.deviceClassName))",
                "exactly one of resourceName and deviceClassName is required for every type but CPU, which has none, "
                "and REMOTE, which has remote instead, and neither runtime nor cost.perHour",
            ),
            cel("!has(self.remote) || self.type == 'REMOTE'", "remote is for type REMOTE"),
            cel("has(self.runtime) || self.type == 'REMOTE'", "runtime is required for every type but REMOTE"),
            cel(
                "!has(self.devicePlugin) || has(self.resourceName) || has(self.deviceClassName)",
                "devicePlugin needs the resourceName or the deviceClassName that it is to advertise",
            ),
            cel(
                "!has(self.devicePlugin) || !has(self.devicePlugin.extendedResourceName) || has(self.deviceClassName)",
                "devicePlugin.extendedResourceName needs deviceClassName; with resourceName that is the name",
            ),
            cel(
                "!has(self.observer) || (!has(self.devicePlugin) && has(self.resourceName))",
                "observer is for a resourceName without devicePlugin, which reports by itself",
            ),
        )
    )

    type: AcceleratorType
    """What it is: GPU, NPU, PIM, FPGA, CPU or REMOTE. Decides on the order where figures are not known."""
    vendor: Line
    """Who makes it; BuildProfiles name it in target.vendor."""
    product: Line
    """The product, as the vendor's tools call it."""
    tags: Annotated[list[Word], Field(max_length=32, json_schema_extra=LIST_SET)] = []
    """Free words that deployments can select by."""
    attributes: Annotated[
        dict[str, Annotated[str, Field(max_length=256)]],
        Field(
            max_length=32,
            json_schema_extra=validations(
                cel("self.all(k, k.size() <= 63)", "an attribute's name has 63 characters at most")
            ),
        ),
    ] = {}
    """Further facts, for people and for tools."""
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    """Decides between equal scores; the higher wins. By default NPU 100, GPU 75, PIM 50, FPGA 25, CPU 0, REMOTE -25."""
    resource_name: ResourceName | None = None
    """The extended resource that pods request, such as nvidia.com/gpu. This or deviceClassName."""
    # Shorter than the names of other objects: it is the name of an extended resource, too.
    device_class_name: Annotated[SubdomainName, Field(max_length=63)] | None = None
    """The DeviceClass whose devices pods request, where a DRA driver serves them (Kubernetes 1.36 or newer)."""
    node_selector: Annotated[
        dict[LabelKey, LabelValue],
        Field(
            max_length=16,
            json_schema_extra=validations(
                cel(
                    f"self.all(k, k.matches('{_LABEL_KEY}'))",
                    "nodeSelector has a key that is no label, such as feature.node.kubernetes.io/pci-1200.present",
                )
            ),
        ),
    ] = {}
    """Labels of the nodes that have it; empty means every node."""
    tolerations: Annotated[list[Toleration], Field(max_length=16, json_schema_extra=LIST_ATOMIC)] = []
    """Taints that pods on these nodes tolerate."""
    device_plugin: DevicePlugin | None = None
    """The device plugin, or DRA driver, to roll out. Absent: the vendor's own is there, and its devices are counted."""
    observer: Observer | None = None
    """Without devicePlugin: a program that reports which pods have which devices, and how these are."""
    version_labels: VersionLabels = VersionLabels()
    """Node labels with versions, where the vendor's own tools write them."""
    capability: Capability = Capability()
    """What it can do, whatever the model; a deployment that needs more is not placed on it."""
    performance: Performance = Performance()
    """How fast one device is, from its data sheet. Without figures it ranks after those that have them."""
    power: Power | None = None
    """What one device draws; the policy Energy compares by it."""
    cost: Cost | None = None
    """What one device costs, or an endpoint's tokens; the policy Cost compares by it."""
    remote: Remote | None = None
    """The endpoint, for type REMOTE. The operator runs a proxy for it, which alone has its key."""
    provisioning: Provisioning = Provisioning()
    """Whether its devices are there, or come when pods ask for them."""
    allowed_namespaces: Annotated[list[Name], Field(max_length=256, json_schema_extra=LIST_SET)] = []
    """Namespaces whose deployments may use it; empty means all, and for type REMOTE none."""
    runtime: Runtime | None = None
    """How models are served on it: the engine's image and what it is started with. REMOTE has none, others need it."""

    @property
    def plugin(self) -> str | None:
        """The runtime plugin, where it has one."""
        return None if self.runtime is None else self.runtime.plugin


class DeviceCounts(ApiModel):
    """Devices of this kind, as the nodes advertise them."""

    total: Annotated[int, Field(ge=0)] = 0
    """Devices that the kubelets know, healthy or not."""
    healthy: Annotated[int, Field(ge=0)] = 0
    """Those of them that can be allocated."""
    allocated: Annotated[int, Field(ge=0)] = 0
    """Those that pods have been given."""
    used_out_of_band: Annotated[int, Field(ge=0)] = 0
    """Healthy ones that something outside of Kubernetes uses."""
    most_on_node: Annotated[int, Field(ge=0)] | None = None
    """Devices of the node that has most of them, healthy or not; absent where no node has more than one."""


class DeviceFailure(StrEnum):
    """What helps a device that is not well."""

    TRANSIENT = "Transient"
    NEEDS_RESET = "NeedsReset"
    DEAD = "Dead"
    UNKNOWN = "Unknown"


class UnhealthyDevice(ApiModel):
    """A device that must not be allocated."""

    node: Line
    """The node that has it."""
    device: Line
    """Its ID, as the kubelet knows it."""
    failure: DeviceFailure = DeviceFailure.UNKNOWN
    """Transient: it may recover by itself. NeedsReset: somebody has to reset it. Dead: it is to be replaced."""
    cause: Annotated[str, Field(max_length=512)] = ""
    """What the driver says."""
    pods: Annotated[list[Line], Field(max_length=16, json_schema_extra=LIST_SET)] = []
    """Pods that have it, as namespace/name."""


class NodeDevices(ApiModel):
    """Nodes that have the same number of devices."""

    devices: Annotated[int, Field(ge=1)]
    """Devices of each of them."""
    nodes: Annotated[int, Field(ge=1)]
    """How many such nodes there are."""


class NodeVersions(ApiModel):
    """Versions that nodes have, and how many of them."""

    driver: Annotated[str, Field(max_length=128)] = ""
    """The driver's version; empty if not known."""
    sdk: Annotated[str, Field(max_length=128)] = ""
    """The version of the vendor's runtime libraries; empty if not known."""
    firmware: Annotated[str, Field(max_length=128)] = ""
    """The devices' firmware; empty if not known."""
    nodes: Annotated[int, Field(ge=1)]
    """Nodes with just these versions."""
    devices: Annotated[int, Field(ge=0)] | None = None
    """Devices of these nodes, healthy or not; absent where devices are not counted."""
    free: Annotated[int, Field(ge=0)] | None = None
    """Healthy ones of them that no pod has."""
    devices_by_node: Annotated[list[NodeDevices], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """These nodes by their devices, as those of a replica are of one node; absent where none has more than one."""
    free_by_node: Annotated[list[NodeDevices], Field(max_length=64, json_schema_extra=LIST_ATOMIC)] | None = None
    """The same by the healthy ones that no pod has."""


class AcceleratorResourceStatus(ApiModel):
    """What the cluster has of this kind."""

    observed_generation: ObservedGeneration = 0
    """The generation of the spec that this status is about; -1 where the operator has not looked at it yet."""
    nodes: Annotated[int, Field(ge=0)] = 0
    """Nodes that match the selector; with a resource name, those that advertise it."""
    devices: DeviceCounts = DeviceCounts()
    """Devices that these nodes advertise."""
    versions: Annotated[list[NodeVersions], Field(max_length=32, json_schema_extra=LIST_ATOMIC)] = []
    """Versions that these nodes have, the commonest first."""
    unhealthy: Annotated[list[UnhealthyDevice], Field(max_length=32, json_schema_extra=LIST_ATOMIC)] = []
    """Devices that are not well, by node and ID; the first ones where there are many."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=CONDITIONS)] = []
    """Ready, DevicesAdvertised and DevicesHealthy, or for type REMOTE EndpointReady, with a reason; Reconciling or
    Stalled only while so."""


KIND = KindInfo(
    kind="AcceleratorResource",
    plural="acceleratorresources",
    short_names=("accel",),
    namespaced=False,
    spec=AcceleratorResourceSpec,
    status=AcceleratorResourceStatus,
    selectable=(".spec.type", ".spec.vendor"),
    columns=(
        PrinterColumn("Type", ".spec.type"),
        PrinterColumn("Product", ".spec.product"),
        PrinterColumn("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        PrinterColumn("Reason", '.status.conditions[?(@.type=="Ready")].reason'),
        PrinterColumn("Nodes", ".status.nodes", "integer"),
        PrinterColumn("Devices", ".status.devices.total", "integer"),
        PrinterColumn("Healthy", ".status.devices.healthy", "integer"),
        PrinterColumn("Allocated", ".status.devices.allocated", "integer"),
        PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        PrinterColumn("Vendor", ".spec.vendor", priority=1),
        PrinterColumn("Resource", ".spec.resourceName", priority=1),
        PrinterColumn("Class", ".spec.deviceClassName", priority=1),
        PrinterColumn("Message", '.status.conditions[?(@.type=="Ready")].message', priority=1),
    ),
)
