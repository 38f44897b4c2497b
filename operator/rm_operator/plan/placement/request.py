"""What placement is asked, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rm_api.conditions import Reason
from rm_api.dtypes import DType
from rm_api.kinds.accelerator_resource import AcceleratorResourceSpec, NodeVersions
from rm_api.kinds.build_artifact import ShapeBucket, Toolchain
from rm_api.kinds.build_profile import BuildProfileSpec
from rm_api.kinds.model_deployment import ModelDeploymentSpec, ModelFacts
from rm_api.placement import Candidate, PolicyType

from rm_operator.plan.buckets import Shape


@dataclass(frozen=True)
class AcceleratorView:
    """An AcceleratorResource with what the cluster has of it."""

    name: str
    spec: AcceleratorResourceSpec
    free: int | None = None
    """Devices that the deployment could have: what it has itself, and what no other one has or is promised.

    None where devices are not counted (CPU), or where there is no limit.
    """
    healthy: int | None = None
    """Devices that can be allocated, taken or not; None where devices are not counted."""
    nodes: int | None = None
    """Nodes that have it; None where that is not known."""
    ready: bool = True
    """False if it cannot take a new deployment, whatever its capacity."""
    reason: str = ""
    """Why it is not ready, for a person."""
    taken: bool = False
    """True of the current one if pods of others hold every device, and the deployment has none."""
    spare: int | None = None
    """Healthy devices that no pod has or waits for, and nobody was promised; None as with ``free``."""
    versions: tuple[NodeVersions, ...] = ()
    """Versions that its nodes have, the commonest first."""
    largest: int | None = None
    """Devices of the node that has most of them, healthy or not; None where that is not known."""
    roomiest: int | None = None
    """Devices that no pod has on the node that has most of those; None where that is not known."""


@dataclass(frozen=True)
class ProfileView:
    """A BuildProfile, and whether it can be used."""

    name: str
    spec: BuildProfileSpec
    usable: bool = True
    reason: str = ""
    """Why it is not usable, for a person."""
    awaited: bool = False
    """True if it is not usable only because its toolchain is still being probed: it is chosen as if it were, and what
    is to be built with it waits. Otherwise deployments would move away for as long as a probe takes, and back."""
    toolchain: Toolchain | None = None
    """Versions and images, where the profile has them probed."""


@dataclass(frozen=True)
class PlacementRequest:
    """Everything that a placement depends on. The order of accelerators and profiles does not matter."""

    deployment: str
    """Name of the ModelDeployment, for messages."""
    spec: ModelDeploymentSpec
    facts: ModelFacts
    accelerators: tuple[AcceleratorView, ...] = ()
    profiles: tuple[ProfileView, ...] = ()
    current: str | None = None
    """The accelerator that the deployment is placed on now."""
    current_policy: PolicyType | None = None
    """The policy by which that was chosen."""
    namespace: str = ""
    """Namespace of the deployment."""
    led_for: float = 0.0
    """Seconds for which one that is clearly better than the current accelerator has been known."""
    refused: tuple[tuple[str, str], ...] = ()
    """BuildProfiles whose compiler has refused the model, each with what it said."""


@dataclass(frozen=True)
class PlacementResult:
    """Where a deployment runs and why, or why nowhere. ``chosen``, ``profile`` … are None where it has no place."""

    shape: Shape
    """What the deployment needs."""
    reason: Reason
    """PLACED, NO_ACCELERATOR, NO_ELIGIBLE_ACCELERATOR, UNSUPPORTED_MODEL, REMOTE_CODE_NOT_ALLOWED, SLO_UNREACHABLE or
    PROFILE_NOT_FOUND."""
    message: str
    """One line for a person, with what to change where it has no place."""
    candidates: tuple[Candidate, ...] = ()
    """At most 16: the eligible ones, best first, then the others, nearest miss first. The chosen one is among them."""
    chosen: str | None = None
    """The AcceleratorResource."""
    profile: str | None = None
    """The BuildProfile; None also where an endpoint serves the model itself."""
    dtype: DType | None = None
    """Number format that it is compiled to and computes in."""
    bucket: ShapeBucket | None = None
    """Shapes that are compiled in: what is needed, rounded up to the profile's buckets."""
    waits_for: tuple[str, ...] = ()
    """Accelerators that would be chosen, but for a lack of free devices or because they are not ready."""
    leader: str | None = None
    """One that is clearly better than the chosen one, and will be chosen if it stays so."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """Devices that one replica would have, of the accelerators in ``waits_for`` and ``leader`` where it is not one."""

    @property
    def devices_each(self) -> int:
        """Devices that one replica has on the chosen accelerator."""
        return 1 if self.bucket is None else self.bucket.devices
