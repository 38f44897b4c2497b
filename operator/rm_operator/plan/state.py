"""What the steps of a deployment work on: the snapshot that they read, and the state that they fill in turn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rm_api import names
from rm_api.conditions import Reason
from rm_api.kinds import ModelDeploymentSpec
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan import serving
from rm_operator.plan.attempt import Attempt
from rm_operator.plan.compatibility import NodeClass
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.device_report import UnhealthyUse
from rm_operator.plan.model import Deletion, Object, Protection, Settings, labels_of, uid_of
from rm_operator.plan.placement import AcceleratorView, PlacementResult, ProfileView
from rm_operator.plan.serving_report import ServingReport


@dataclass(frozen=True)
class DeploymentSnapshot:
    """Everything that a decision about one ModelDeployment rests on."""

    deployment: Object
    sharers: tuple[tuple[str, str], ...]
    """Name and uid of the deployments of the namespace with the same source, this one included."""
    config_map: Object | None
    """The resolved facts of the source."""
    resolve_attempts: Sequence[Attempt]
    leftovers: Sequence[Object]
    """ConfigMaps and Jobs of sources that this deployment named before and nobody names now."""
    accelerators: Sequence[AcceleratorView]
    profiles: Sequence[ProfileView]
    artifacts: Mapping[str, Object]
    """BuildArtifacts of the namespace by name."""
    revisions: Mapping[str, Object]
    """Remembered pod templates by name."""
    variants: Sequence[Object]
    """Deployments (apps/v1) that serve or served this one."""
    pods: Sequence[Object]
    """Their pods."""
    service: Object | None
    """The Service of the deployment's name, whoever made it."""
    routed_pods: frozenset[str]
    """Names of pods that the Service's EndpointSlices still send requests to."""
    settings: Settings
    led_for: float = 0.0
    """Seconds for which a clearly better accelerator than the one in the status has been known."""
    autoscaler: Object | None = None
    """The HorizontalPodAutoscaler of the deployment's name, whoever made it."""
    unprotected: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    """AcceleratorResources and BuildProfiles that would vanish at once if they were deleted, by kind and name."""
    leaving: frozenset[tuple[str, str]] = frozenset()
    """Kind and name of those that are being deleted: whoever uses them may stay, and nobody comes."""
    sick: Mapping[str, UnhealthyUse] = field(default_factory=dict)
    """Devices that are not well, by the uid of the pod that has one."""
    used_outside: Mapping[str, str] = field(default_factory=dict)
    """Devices that something outside of Kubernetes uses and that a pod that is not ready has: in words, by its uid."""
    refused: Callable[[str], Sequence[Object]] = lambda _: ()
    """BuildArtifacts of the namespace, and shared ones, whose compiler does not take a model, by its config digest."""
    removals: int = 0
    """Pods that kubelets refused that may be deleted now."""
    shared_artifacts: Mapping[str, Object] = field(default_factory=dict)
    """BuildArtifacts that all namespaces share, by name."""
    reports: Mapping[str, ServingReport] = field(default_factory=dict)
    """What ready pods said of themselves, by their uid; of those that have not been asked yet there is none."""

    def artifact_at(self, namespace: str | None, name: str) -> Object | None:
        """The artifact of this name; ``namespace`` is that of those which all share, None for the deployment's own."""
        return (self.shared_artifacts if namespace else self.artifacts).get(name)

    def artifact_of(self, obj: Object) -> Object | None:
        """The artifact that a serving pod, or its Deployment, is labelled with."""
        label = labels_of(obj)
        return self.artifact_at(label.get(names.LABEL_ARTIFACT_NAMESPACE), label.get(names.LABEL_ARTIFACT, ""))

    def pods_of(self, variant: str) -> list[Object]:
        """Pods of one variant, by its label."""
        return [pod for pod in self.pods if labels_of(pod).get(names.LABEL_VARIANT) == variant]


@dataclass(frozen=True)
class Given:
    """What a class of nodes was given."""

    for_: NodeClass
    name: str
    """Its artifact, or the one that is built before it; empty where that is not known yet."""
    namespace: str | None
    """Where that is, if all namespaces share it."""
    artifact: Object | None
    replicas: int
    ready: bool
    """The artifact is in the store."""
    spare: int | None
    """Replicas that its devices suffice for that no pod has; None for any number."""


@dataclass
class State:
    """What one reconcile has decided so far. ``conditions`` are stated, and the lists grow."""

    snapshot: DeploymentSnapshot
    spec: ModelDeploymentSpec
    conditions: Conditions
    now: datetime
    facts: ModelFacts | None = None
    placement: PlacementResult | None = None
    shares: tuple[Given, ...] = ()
    """Classes of nodes, and what they were given; the one with the most replicas first. Empty where not decided."""
    variants: tuple[serving.AnyVariant, ...] = ()
    """What is to serve; none as long as that is not known."""
    apply: list[dict[str, Any]] = field(default_factory=list)
    delete: list[Deletion] = field(default_factory=list)
    protect: list[Protection] = field(default_factory=list)
    active: dict[str, bool] = field(default_factory=dict)
    """Whether the Service is to select a pod, by its uid, where that was decided."""
    refused: tuple[str, ...] = ()
    """Which nodes refuse its pods, and why."""
    replacing: tuple[str, int] | None = None
    """The accelerator, and the pods that are asked for there, while some are to take over from others."""
    fates: dict[str, str] = field(default_factory=dict)
    """What becomes of pods whose device is not well, by their uid, in words."""
    requeue_after: float | None = None
    lacking: tuple[Reason, str] | None = None
    """Why not all of the wanted pods serve, whatever serves meanwhile."""
    stalled: tuple[Reason, str] | None = None
    status_first: bool = False

    def select(self, pod: Object, *, active: bool) -> None:
        """The Service is to select the pod, or not to."""
        self.active[uid_of(pod)] = active

    def stall(self, reason: Reason, message: str) -> None:
        """It does not go on until somebody changes something; of several obstacles the first is told."""
        self.stalled = self.stalled or (reason, message)

    def requeue(self, seconds: float | None) -> None:
        """Look again after ``seconds`` at the latest."""
        if seconds is not None:
            self.requeue_after = seconds if self.requeue_after is None else min(seconds, self.requeue_after)
