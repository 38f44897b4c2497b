"""What is kept of nodes and of pods that are not ours: the facts that placement counts with, and nothing bulky."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from rm_api.names import DEVICE_CLASS_RESOURCE_PREFIX, LABEL_MANAGED_BY, MANAGED_BY, NODE_CONDITION_UNHEALTHY

from rm_operator.kube.contents import Fate, Transformed
from rm_operator.kube.documents import Document, Reader
from rm_operator.kube.resources import NODES, PODS


class _Resources(msgspec.Struct, gc=False):
    limits: dict[str, Any] | None = None


class _Container(msgspec.Struct, gc=False):
    name: str
    resources: _Resources | None = None
    restart_policy: str | None = msgspec.field(name="restartPolicy", default=None)


class _PodSpec(msgspec.Struct, gc=False):
    containers: Sequence[_Container] | None = None
    init_containers: Sequence[_Container] | None = msgspec.field(name="initContainers", default=None)
    node_name: str | None = msgspec.field(name="nodeName", default=None)


class _PodStatus(msgspec.Struct, gc=False):
    phase: str = ""


class _Condition(msgspec.Struct, gc=False):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = msgspec.field(name="lastTransitionTime", default=None)


class _NodeStatus(msgspec.Struct, gc=False):
    capacity: dict[str, Any] | None = None
    allocatable: dict[str, Any] | None = None
    conditions: Sequence[_Condition] | None = None


_pod_spec: Final = Reader(_PodSpec)
_pod_status: Final = Reader(_PodStatus)
_node_status: Final = Reader(_NodeStatus)


def trim_node(node: Document) -> Transformed:
    """A node's labels, the extended resources that it has, and the condition that we write.

    What a kubelet reports every few seconds is not among that, nor the list of images that it has pulled.
    """
    status = node.member("status", _node_status) or _NodeStatus()
    metadata = metadata_of(node)
    labels = node.metadata.get("labels")
    if labels:
        metadata["labels"] = labels
    kept: dict[str, Any] = {"capacity": _extended(status.capacity), "allocatable": _extended(status.allocatable)}
    for condition in status.conditions or ():
        if condition.type == NODE_CONDITION_UNHEALTHY:
            kept["conditions"] = [
                {
                    "type": condition.type,
                    "status": condition.status,
                    "reason": condition.reason,
                    "message": condition.message,
                    "lastTransitionTime": condition.last_transition_time or "",
                }
            ]
    return {"apiVersion": NODES.api_version, "kind": NODES.kind, "metadata": metadata, "status": kept}


def trim_pod(pod: Document) -> Transformed:
    """Our pods as they are; of others, those that hold extended resources, in the same shape but with nothing else.

    A foreign pod without extended resources takes no accelerator from anybody, and is not kept at all.
    """
    if (pod.metadata.get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY:
        return Fate.WHOLE
    spec = pod.member("spec", _pod_spec) or _PodSpec()
    containers = _holders(spec.containers or ())
    init_containers = _holders(spec.init_containers or ())
    if not containers and not init_containers:
        return Fate.DROPPED
    kept: dict[str, Any] = {"containers": containers}
    if init_containers:
        kept["initContainers"] = init_containers
    if spec.node_name is not None:
        kept["nodeName"] = spec.node_name
    status = pod.member("status", _pod_status) or _PodStatus()
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "metadata": metadata_of(pod),
        "spec": kept,
        "status": {"phase": status.phase},
    }


def is_extended(resource_name: str) -> bool:
    """True for names of devices such as ``vendor.com/npu``, false for what the kubelet itself accounts for."""
    if resource_name.startswith(DEVICE_CLASS_RESOURCE_PREFIX):
        return True
    domain, slash, _ = resource_name.partition("/")
    return bool(slash) and domain != "kubernetes.io" and not domain.endswith(".kubernetes.io")


def metadata_of(document: Document) -> dict[str, Any]:
    """What tells an object from others and one version of it from another."""
    namespace, name = document.key
    where = {"namespace": namespace} if namespace else {}
    return {**where, "name": name, "uid": document.uid, "resourceVersion": document.resource_version}


def _extended(amounts: dict[str, Any] | None) -> dict[str, Any]:
    return {name: amount for name, amount in (amounts or {}).items() if is_extended(name)}


def _holders(containers: Sequence[_Container]) -> list[dict[str, Any]]:
    """The containers that hold extended resources, with these alone."""
    found = []
    for container in containers:
        limits = container.resources.limits if container.resources is not None else None
        if extended := _extended(limits):
            # An init container that restarts holds its devices beside the others: that changes the sum.
            restart = {"restartPolicy": container.restart_policy} if container.restart_policy is not None else {}
            found.append({"name": container.name, "resources": {"limits": extended}, **restart})
    return found
