"""What somebody wants of devices, has of them or was promised: values, and how the cluster's objects tell them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from rm_api.conditions import ConditionType

from rm_operator.controllers.holders import Owner, holder_of
from rm_operator.controllers.indexes import resources_requested
from rm_operator.kube.client import Object
from rm_operator.plan.accelerator import requested
from rm_operator.plan.model import from_timestamp, namespace_of
from rm_operator.plan.replacement import is_marked

STALLED_SECONDS: Final = 300.0
IDLE_SECONDS: Final = 1800.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A promise. ``devices`` is 0 where nothing was free, and once the promise has ended."""

    accelerator: str
    devices: int
    until: float | None
    """Unix time at which it ends; None where it does not."""


@dataclass(slots=True)
class Account:
    """What one deployment or build has, by accelerator."""

    stored: Claim | None = None
    """By its status, or its Job."""
    assumed: Claim | None = None
    """By a decision that the status does not tell yet, or whose Job is not there. Until then it has both."""
    pods: dict[str, int] = field(default_factory=dict)
    """Devices that its pods hold or request."""
    asked: tuple[str, int] | None = None
    """Accelerator, and devices of the pods that are asked for there, while some are to take over from others."""

    def promised(self, accelerator: str) -> int:
        """Devices that it may have, whether or not there are pods for them."""
        devices = 0
        for claim in (self.stored, self.assumed):
            if claim is not None and claim.accelerator == accelerator and claim.devices > devices:
                devices = claim.devices
        return devices

    def demand(self, accelerator: str) -> int:
        """Devices that nobody else may have."""
        name, asked = self.asked or ("", 0)
        return max(self.promised(accelerator), self.pods.get(accelerator, 0), asked if name == accelerator else 0)

    def idle(self, accelerator: str) -> int:
        """Devices that it may have, and for which there are no pods."""
        return max(0, self.promised(accelerator) - self.pods.get(accelerator, 0))


@dataclass(frozen=True, slots=True)
class Use:
    """What one pod takes."""

    owner: Owner | None
    accelerator: str | None
    """None for pods that are not ours; these count by resource and node."""
    devices: Mapping[str, int]
    node: str
    sick: bool = False
    """True of a pod of ours whose device is not well: none that can be allocated is taken by it."""


def wanted_devices(deployment: Object, each: int) -> int:
    """Devices that a ModelDeployment wants, ``each`` for every replica; none while it is suspended."""
    spec = deployment["spec"]
    return 0 if spec.get("suspend") else int(spec.get("replicas", 1)) * each


def devices_each(deployment: Object) -> int:
    """Devices that a replica has where the deployment was placed last, as its status tells."""
    placement = (deployment.get("status") or {}).get("placement") or {}
    return int(placement.get("tensorParallel", 1)) * int(placement.get("pipelineParallel", 1))


def owner_of(deployment: Object) -> Owner:
    """The key of a ModelDeployment."""
    return namespace_of(deployment), deployment["metadata"]["name"]


def accelerator_of(deployment: Object) -> str | None:
    """The accelerator that a deployment's status says it is placed on."""
    chosen = ((deployment.get("status") or {}).get("placement") or {}).get("chosen")
    return None if chosen is None else str(chosen)


def use_of(pod: Object | None) -> Use | None:
    """What a pod takes; None where that is nothing."""
    if pod is None:
        return None
    devices = {resource: count for resource in resources_requested(pod) if (count := requested(pod, resource))}
    if not devices:
        return None
    node = (pod.get("spec") or {}).get("nodeName") or ""
    held = holder_of(pod)
    if held is not None:
        return Use(*held, devices, node, is_marked(pod))
    return Use(None, None, devices, node)


def devices_of(job: Object) -> int:
    """Devices that each pod of a Job requests."""
    pod = job["spec"]["template"]
    return sum(requested(pod, resource) for resource in resources_requested(pod))


def ends(deployment: Object, build_seconds: Callable[[Object], float]) -> float | None:
    """Unix time at which a promise to ``deployment`` ends if nothing moves; None where all is as its spec says."""
    conditions = {entry["type"]: entry for entry in (deployment.get("status") or {}).get("conditions") or []}
    if _is_true(conditions.get(ConditionType.READY)):
        return None
    if _is_true(conditions.get(ConditionType.STALLED)):
        return _since(conditions[ConditionType.STALLED]) + STALLED_SECONDS
    last = max(map(_since, conditions.values()), default=None)
    return None if last is None else last + IDLE_SECONDS + build_seconds(deployment)


def _is_true(condition: Mapping[str, str] | None) -> bool:
    return condition is not None and condition["status"] == "True"


def _since(condition: Mapping[str, str]) -> float:
    return from_timestamp(condition["lastTransitionTime"]).timestamp()
