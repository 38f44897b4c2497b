"""A cluster in stores for tests of the fleet: objects come as a watch would tell, decisions one by one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from rm_api import names
from rm_api.kinds import BuildProfileSpec, ModelDeploymentSpec, ModelFacts
from rm_operator.controllers import INDEXES
from rm_operator.controllers.capacity import Owner
from rm_operator.controllers.fleet import Fleet
from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_ARTIFACTS,
    BUILD_PROFILES,
    DEVICE_CLASSES,
    JOBS,
    MODEL_DEPLOYMENTS,
    NODES,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    resource_of,
)
from rm_operator.kube.store import Store, Stores
from rm_operator.kube.trim_devices import trim_claim, trim_slice
from rm_operator.plan.model import to_timestamp
from rm_operator.plan.placement import AcceleratorView, PlacementRequest, PlacementResult, place

Object = dict[str, Any]
BY_CLASS = {DEVICE_CLASSES: None, RESOURCE_SLICES: trim_slice, RESOURCE_CLAIMS: trim_claim}
KINDS = (ACCELERATOR_RESOURCES, BUILD_ARTIFACTS, BUILD_PROFILES, JOBS, MODEL_DEPLOYMENTS, NODES, PODS, *BY_CLASS)
DIGEST = "sha256:" + "0" * 64
FACTS = ModelFacts(
    source="hf://a/b", revision="r", architecture="X", parameters=10**9, active_parameters=10**9,
    weight_bytes=2 * 10**9, dtype="bf16", layers=10, heads=20, kv_heads=4, head_dim=50, max_sequence_length=4096,
    config_digest=DIGEST, tensors_digest=DIGEST, weights_digest=DIGEST,
)  # fmt: skip
PROFILE = BuildProfileSpec.model_validate(
    {
        "target": {"type": "NPU", "vendor": "Red"},
        "steps": [{"name": "s", "image": "i", "command": ["c"]}],
        "output": {"format": "f"},
    }
).to_wire()


@dataclass
class Cluster:
    """Deployments are of namespace ``ns``; a decision is written into the status only when a test says so."""

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    woken: list[str] = field(default_factory=list)
    """Names of the deployments that were woken, in their order."""
    builds_woken: int = 0
    """How often those builds were woken that wait for a device."""
    version: int = 0

    def __post_init__(self) -> None:
        self.stores = Stores(
            [Store(resource, indexes=INDEXES.get(resource), transform=BY_CLASS.get(resource)) for resource in KINDS]
        )
        self.restart()
        self.put("BuildProfile", "red", PROFILE)

    def restart(self) -> None:
        """The operator starts anew, with nothing but what the cluster says."""
        for store in self.stores:
            store._subscribers.clear()
        self.fleet = Fleet(self.stores, self._wake, self._wake_builds)

    def _wake(self, owner: Owner) -> None:
        self.woken.append(owner[1])

    def _wake_builds(self) -> None:
        self.builds_woken += 1

    def drain(self) -> list[str]:
        """Who was woken since the last time."""
        woken, self.woken = self.woken, []
        return woken

    def put(
        self, kind: str, name: str, spec: Mapping[str, Any] | None = None, status: Any = None, **metadata: Any
    ) -> Object:
        """Creates an object or replaces it."""
        self.version += 1
        versions = {resource.kind: resource.api_version for resource in KINDS}
        obj: Object = {
            "apiVersion": versions[kind],
            "kind": kind,
            "metadata": {"name": name, "uid": f"{kind}-{name}", "resourceVersion": str(self.version), **metadata},
        }
        if spec is not None:
            obj["spec"] = dict(spec)
        if status is not None:
            obj["status"] = status
        self.stores[resource_of(obj)].upsert(obj)
        return obj

    def accelerator(self, name: str, healthy: int, bandwidth: int = 1000, ready: bool = True, **members: Any) -> Object:
        """A kind of NPU; the more bandwidth, the better."""
        total = members.pop("total", healthy)
        spec = {
            "type": "NPU", "vendor": "Red", "product": name, "resourceName": f"red.com/{name}",
            "runtime": {"plugin": "p", "image": "i"},
            "performance": {"bandwidthGBps": bandwidth, "tflops": [{"dtype": "bf16", "value": 1000}]},
        }  # fmt: skip
        word = ("True", "Advertised") if ready else ("False", "NoDevices")
        status = {
            "nodes": int(healthy > 0),
            "devices": {"healthy": healthy, "total": total, "allocated": 0},
            "conditions": [{"type": "DevicesAdvertised", "status": word[0], "reason": word[1], "message": "m"}],
        }
        return self.put("AcceleratorResource", name, {**spec, **members}, status)

    def deploy(self, name: str, **spec: Any) -> Object:
        """Creates a ModelDeployment, or changes its spec."""
        before = self.stores[MODEL_DEPLOYMENTS].get("ns", name)
        status = None if before is None else before.get("status")
        return self.put("ModelDeployment", name, {"model": {"source": "hf://a/b"}, **spec}, status, namespace="ns")

    def deployment(self, name: str) -> Object:
        """The ModelDeployment."""
        found = self.stores[MODEL_DEPLOYMENTS].get("ns", name)
        assert found is not None
        return dict(found)

    def decide(self, name: str) -> PlacementResult:
        """Places a deployment as a reconcile does; the status is not written."""
        obj = self.deployment(name)
        before = (obj.get("status") or {}).get("placement") or {}
        request = PlacementRequest(
            name,
            ModelDeploymentSpec.model_validate(obj["spec"]),
            FACTS,
            tuple(self.fleet.accelerators(obj, self.now)),
            self.fleet.profiles(),
            before.get("chosen"),
            "Latency",  # type: ignore[arg-type]
            "ns",
            self.fleet.led_for(obj, self.now),
        )
        result = place(request)
        self.later = self.fleet.settle(obj, result, self.now)
        return result

    def write(self, name: str, chosen: str | None, tensor: int = 1, **conditions: str) -> None:
        """Writes a status, with ``tensor`` devices for a replica.

        Conditions get ``now`` as the time of their last transition where they change.
        """
        obj = self.deployment(name)
        known = {entry["type"]: entry for entry in (obj.get("status") or {}).get("conditions") or []}
        stated = {"Placed": str(chosen is not None), **conditions}
        entries = [
            {
                "type": type_,
                "status": word,
                "lastTransitionTime": known[type_]["lastTransitionTime"]
                if known.get(type_, {}).get("status") == word
                else to_timestamp(self.now),
            }
            for type_, word in stated.items()
        ]
        placement: Object = {"policy": "Latency", **({"chosen": chosen} if chosen else {})}
        if chosen and tensor > 1:
            placement["tensorParallel"] = tensor
        status = {"placement": placement, "conditions": entries}
        if "artifact" in (obj.get("status") or {}):
            status["artifact"] = obj["status"]["artifact"]
        self.put("ModelDeployment", name, obj["spec"], status, namespace="ns")

    def place(self, name: str, **conditions: str) -> str | None:
        """Decides and writes the decision."""
        result = self.decide(name)
        self.write(name, result.chosen, result.devices_each, **conditions)
        return result.chosen

    def pod(
        self,
        name: str,
        accelerator: str,
        deployment: str | None = None,
        *,
        node: str = "n",
        devices: int = 1,
        phase: str = "Running",
    ) -> Object:
        """A pod that takes devices: a deployment's, or somebody else's."""
        label = {names.LABEL_DEPLOYMENT: deployment, names.LABEL_ACCELERATOR: accelerator} if deployment else {}
        container = {"name": "c", "resources": {"limits": {f"red.com/{accelerator}": str(devices)}}}
        spec = {"containers": [container], **({"nodeName": node} if node else {})}
        return self.put("Pod", name, spec, {"phase": phase}, namespace="ns", labels=label)

    def spoken_for(self, artifact: str, *users: str) -> dict[str, int]:
        """Devices that the build of an artifact cannot have; ``users`` are the deployments that wait for it."""
        return self.fleet.spoken_for(_artifact(artifact), [self.deployment(user) for user in users], self.now)

    def claim(self, artifact: str, accelerator: str | None, devices: int = 1) -> None:
        """A build is about to have a Job with devices, or none."""
        self.fleet.claim(_artifact(artifact), None if accelerator is None else (accelerator, devices), self.now)

    def job(self, artifact: str, accelerator: str, *, devices: int = 1, over: bool = False) -> Object:
        """The Job of a build, with a step on devices."""
        status = {"conditions": [{"type": "Failed", "status": "True"}]} if over else {}
        spec = {"template": {"spec": _taking(accelerator, devices, {})}}
        made = to_timestamp(self.now)
        return self.put(
            "Job", artifact, spec, status, namespace="ns", labels=_build(artifact, accelerator), creationTimestamp=made
        )

    def build_pod(self, artifact: str, accelerator: str, *, node: str = "n", devices: int = 1) -> Object:
        """The pod of that Job."""
        spec = _taking(accelerator, devices, {"nodeName": node} if node else {})
        labels = _build(artifact, accelerator)
        return self.put("Pod", f"{artifact}-pod", spec, {"phase": "Running"}, namespace="ns", labels=labels)

    def end_job(self, artifact: str) -> None:
        """A Job is gone."""
        self.stores[JOBS].remove("ns", artifact)

    def end(self, pod: str) -> None:
        """A pod is gone."""
        self.stores[PODS].remove("ns", pod)

    def remove(self, name: str) -> None:
        """A deployment is gone."""
        self.stores[MODEL_DEPLOYMENTS].remove("ns", name)

    def view(self, accelerator: str, deployment: str) -> AcceleratorView:
        """An accelerator as a deployment sees it."""
        views = self.fleet.accelerators(self.deployment(deployment), self.now)
        return next(view for view in views if view.name == accelerator)

    def free(self, accelerator: str) -> int | None:
        """Devices that a newcomer could have."""
        newcomer = {"metadata": {"name": "newcomer", "namespace": "ns"}}
        views = self.fleet.accelerators(newcomer, self.now)
        return next(view.free for view in views if view.name == accelerator)

    def wait(self, seconds: float) -> None:
        """Time goes by."""
        self.now += timedelta(seconds=seconds)


def _artifact(name: str) -> Object:
    return {"metadata": {"name": name, "namespace": "ns"}}


def _build(artifact: str, accelerator: str) -> dict[str, str]:
    return {
        names.LABEL_ROLE: names.ROLE_BUILD, names.LABEL_ARTIFACT: artifact, names.LABEL_ACCELERATOR: accelerator
    }  # fmt: skip


def _taking(accelerator: str, devices: int, further: Object) -> Object:
    step = {"name": "tune", "resources": {"limits": {f"red.com/{accelerator}": str(devices)}}}
    return {"initContainers": [step], "containers": [{"name": "push"}], **further}
