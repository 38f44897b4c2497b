"""How the controllers look objects up: by owner, by label, by reference. Pure functions over one object."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rm_api import names
from rm_api.conditions import ConditionType, Reason

from rm_operator.kube.resources import (
    ACCELERATOR_RESOURCES,
    BUILD_ARTIFACTS,
    BUILD_PROFILES,
    CONFIGMAPS,
    CONTROLLERREVISIONS,
    CUSTOM,
    DAEMONSETS,
    DEPLOYMENTS,
    DEVICE_CLASSES,
    ENDPOINTSLICES,
    HORIZONTALPODAUTOSCALERS,
    JOBS,
    MODEL_DEPLOYMENTS,
    PODS,
    RESOURCE_CLAIMS,
    RESOURCE_SLICES,
    SERVICES,
    Resource,
)
from rm_operator.plan.artifact import in_build, is_ready, is_refused
from rm_operator.plan.device_class import allocated_in, extended_resource, implied_resource
from rm_operator.plan.model import is_deleting
from rm_operator.plan.resolve import written_source_hash
from rm_operator.runtime.queue import Key

Object = Mapping[str, Any]
IndexFunction = Callable[[Object], Iterable[str]]

_CLUSTER_SCOPED = {resource.kind for resource in CUSTOM if not resource.namespaced}
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


def scoped(namespace: str, value: str) -> str:
    """Index value of something that is unique within a namespace only."""
    return f"{namespace}/{value}"


def owner_uids(obj: Object) -> list[str]:
    """uids of an object's owners."""
    return [reference["uid"] for reference in obj["metadata"].get("ownerReferences") or []]


def owners_of(kind: str) -> Callable[[Object | None, Object | None], Iterable[Key]]:
    """Maps a change of a child to the keys of its owners of ``kind``."""

    def keys(old: Object | None, new: Object | None) -> Iterable[Key]:
        obj = new or old
        assert obj is not None
        # An owner is in the namespace of its child, or cluster-scoped: then its kind is, too.
        namespace = "" if kind in _CLUSTER_SCOPED else obj["metadata"].get("namespace", "")
        for reference in obj["metadata"].get("ownerReferences") or []:
            if reference["kind"] == kind:
                yield Key(kind, namespace, reference["name"])

    return keys


def label(key: str) -> IndexFunction:
    """Index by the value of a label, within the namespace."""

    def index(obj: Object) -> list[str]:
        value = (obj["metadata"].get("labels") or {}).get(key)
        return [scoped(obj["metadata"].get("namespace", ""), value)] if value else []

    return index


def _source(obj: Object) -> list[str]:
    # Whoever is being deleted shares nothing any more.
    return [] if is_deleting(obj) else [scoped(obj["metadata"]["namespace"], written_source_hash(obj["spec"]["model"]))]


def artifact_named(deployment: Object) -> tuple[str, str] | None:
    """Namespace and name of the artifact that a ModelDeployment's status names."""
    status = deployment.get("status") or {}
    name = status.get("artifact")
    return (status.get("artifactNamespace") or deployment["metadata"]["namespace"], name) if name else None


def artifacts_named(deployment: Object) -> tuple[tuple[str, str], ...]:
    """The same of all artifacts that its status names, one for each class of nodes."""
    shares = (deployment.get("status") or {}).get("classes") or []
    first = artifact_named(deployment)
    others = {
        (share.get("artifactNamespace") or deployment["metadata"]["namespace"], share["artifact"]) for share in shares
    }
    return tuple(sorted(others if first is None else {first, *others}))


def artifact_labelled(obj: Object) -> tuple[str, str] | None:
    """Namespace and name of the artifact of a serving pod, its Deployment, or a build's Job or pod."""
    metadata = obj["metadata"]
    label = metadata.get("labels") or {}
    name = label.get(names.LABEL_ARTIFACT)
    return (label.get(names.LABEL_ARTIFACT_NAMESPACE) or metadata.get("namespace", ""), name) if name else None


def artifact_based_on(artifact: Object) -> tuple[str, str] | None:
    """Namespace and name of the artifact that another one is built from."""
    base = artifact["spec"].get("base")
    return (base.get("namespace") or artifact["metadata"]["namespace"], base["name"]) if base else None


def _of_artifact(found: tuple[str, str] | None) -> list[str]:
    return [] if found is None else [scoped(*found)]


def _artifact(obj: Object) -> list[str]:
    return [scoped(*place) for place in artifacts_named(obj)]


def _labelled(obj: Object) -> list[str]:
    return _of_artifact(artifact_labelled(obj))


def accelerators_used(deployment: Object) -> list[str]:
    """Accelerators that a ModelDeployment is placed on, or that it still has pods on."""
    status = deployment.get("status") or {}
    chosen = (status.get("placement") or {}).get("chosen")
    used = {chosen, *(variant["accelerator"] for variant in status.get("variants") or [])}
    return sorted(used - {None, ""})


def profiles_used(deployment: Object) -> list[str]:
    """BuildProfiles that a ModelDeployment is placed with, or asks for."""
    placement = (deployment.get("status") or {}).get("placement") or {}
    return sorted({placement.get("profile"), deployment["spec"].get("buildProfile")} - {None, ""})


def _built_with(artifact: Object) -> list[str]:
    return [artifact["spec"]["profile"]] if is_ready(artifact) else []


def _in_build_with(artifact: Object) -> list[str]:
    return [artifact["spec"]["profile"]] if in_build(artifact) else []


def _refused(artifact: Object) -> list[str]:
    model = artifact["spec"]["model"]
    return [scoped(artifact["metadata"]["namespace"], model["configDigest"])] if is_refused(artifact) else []


def _ready(artifact: Object) -> list[str]:
    return [artifact["metadata"]["namespace"]] if is_ready(artifact) else []


def _base(artifact: Object) -> list[str]:
    return _of_artifact(artifact_based_on(artifact)) if in_build(artifact) else []


def _for_versions(artifact: Object) -> list[str]:
    return ["true"] if artifact["spec"].get("drivers") or artifact["spec"].get("sdks") else []


def _without_device(artifact: Object) -> list[str]:
    conditions = (artifact.get("status") or {}).get("conditions") or []
    idle = not (artifact.get("status") or {}).get("startedAt") and in_build(artifact)
    lacking = any(each["type"] == ConditionType.BUILT and each["reason"] == Reason.UNSCHEDULABLE for each in conditions)
    return ["true"] if idle and lacking else []


def _leaving(obj: Object) -> list[str]:
    return ["true"] if is_deleting(obj) else []


def _resource(accelerator: Object) -> list[str]:
    name = accelerator["spec"].get("resourceName")
    return [name] if name else []


def _class(accelerator: Object) -> list[str]:
    name = accelerator["spec"].get("deviceClassName")
    return [name] if name else []


def _any_class(accelerator: Object) -> list[str]:
    return ["true"] if accelerator["spec"].get("deviceClassName") else []


def _extended(device_class: Object) -> list[str]:
    name = extended_resource(device_class)
    return [name] if name else []


def _driver(resource_slice: Object) -> list[str]:
    return [resource_slice["spec"]["driver"]]


def _pool(resource_slice: Object) -> list[str]:
    spec = resource_slice["spec"]
    return [pool_of(spec["driver"], spec["pool"]["name"])]


def pool_of(driver: str, pool: str) -> str:
    """Index value of a pool of devices, which is unique for its driver."""
    return f"{driver}/{pool}"


def _drivers_allocated(claim: Object) -> list[str]:
    return sorted({each.driver for each in allocated_in(claim)})


def _pools_allocated(claim: Object) -> list[str]:
    return sorted({pool_of(each.driver, each.pool) for each in allocated_in(claim)})


def _claiming_pod(claim: Object) -> list[str]:
    namespace = claim["metadata"]["namespace"]
    return [scoped(namespace, owner["name"]) for owner in claim["metadata"].get("ownerReferences") or []]


def requested_as(accelerator: Object) -> str | None:
    """The extended resource that pods request for a device of an AcceleratorResource; None where they need none."""
    spec = accelerator["spec"]
    name, device_class = spec.get("resourceName"), spec.get("deviceClassName")
    return name or (implied_resource(device_class) if device_class else None)


def resources_requested(obj: Object) -> list[str]:
    """Extended resources that a pod requests."""
    spec = obj.get("spec") or {}
    containers = [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
    return sorted(
        {
            name
            for container in containers
            for name in ((container.get("resources") or {}).get("limits") or {})
            if "/" in name
        }
    )


def _serves(pod: Object) -> Iterable[str]:
    """The artifact that a pod serves."""
    role = (pod["metadata"].get("labels") or {}).get(names.LABEL_ROLE)
    return _labelled(pod) if role == names.ROLE_SERVE else []


INDEXES: Mapping[Resource, Mapping[str, IndexFunction]] = {
    MODEL_DEPLOYMENTS: {
        "source": _source,
        "artifact": _artifact,
        "accelerator": accelerators_used,
        "profile": profiles_used,
    },
    BUILD_ARTIFACTS: {
        "built": _built_with,
        "in build": _in_build_with,
        "refused": _refused,
        "no device": _without_device,
        "ready": _ready,
        "base": _base,
        "for versions": _for_versions,
    },
    ACCELERATOR_RESOURCES: {"leaving": _leaving, "resource": _resource, "class": _class, "any class": _any_class},
    BUILD_PROFILES: {"leaving": _leaving},
    CONFIGMAPS: {"owner": owner_uids, "model": label(names.LABEL_MODEL)},
    CONTROLLERREVISIONS: {"owner": owner_uids},
    DAEMONSETS: {"owner": owner_uids},
    DEPLOYMENTS: {"owner": owner_uids, "artifact": _labelled},
    DEVICE_CLASSES: {"owner": owner_uids, "extended": _extended},
    RESOURCE_SLICES: {"driver": _driver, "pool": _pool},
    RESOURCE_CLAIMS: {"driver": _drivers_allocated, "pool": _pools_allocated, "pod": _claiming_pod},
    HORIZONTALPODAUTOSCALERS: {},
    SERVICES: {"accelerator": label(names.LABEL_ACCELERATOR)},
    JOBS: {"owner": owner_uids, "model": label(names.LABEL_MODEL)},
    ENDPOINTSLICES: {"service": label(SERVICE_NAME_LABEL)},
    PODS: {
        "job": label(JOB_NAME_LABEL),
        "deployment": label(names.LABEL_DEPLOYMENT),
        "serves": _serves,
        "accelerator": label(names.LABEL_ACCELERATOR),
        "resource": resources_requested,
    },
}


def named_by(resource: Resource, obj: Object) -> set[tuple[str, str]]:
    """Artifacts, by namespace and name, that an object uses: a ModelDeployment, another artifact, or serving pods."""
    if resource is MODEL_DEPLOYMENTS:
        return set(artifacts_named(obj))
    found = artifact_based_on(obj) if resource is BUILD_ARTIFACTS else artifact_labelled(obj)
    return set() if found is None else {found}
