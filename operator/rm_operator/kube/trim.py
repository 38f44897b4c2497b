"""What is kept of nodes and of pods that are not ours: the facts that placement counts with, and nothing bulky."""

from collections.abc import Iterable, Mapping
from typing import Any

from rm_api.names import LABEL_MANAGED_BY, MANAGED_BY


def trim_node(node: dict[str, Any]) -> dict[str, Any]:
    """A node without the list of images that it has pulled, which is most of its size."""
    status = node.get("status", {})
    heavy = ("images", "volumesInUse", "volumesAttached")
    if any(name in status for name in heavy):
        node = {**node, "status": {name: value for name, value in status.items() if name not in heavy}}
    return node


def trim_pod(pod: dict[str, Any]) -> dict[str, Any] | None:
    """Our pods as they are; of others, those that hold extended resources, in the same shape but with nothing else.

    A foreign pod without extended resources takes no accelerator from anybody, and is not kept at all.
    """
    metadata = pod["metadata"]
    if (metadata.get("labels") or {}).get(LABEL_MANAGED_BY) == MANAGED_BY:
        return pod
    spec = pod.get("spec", {})
    containers = _holders(spec.get("containers") or ())
    init_containers = _holders(spec.get("initContainers") or ())
    if not containers and not init_containers:
        return None
    kept: dict[str, Any] = {"containers": containers}
    if init_containers:
        kept["initContainers"] = init_containers
    if "nodeName" in spec:
        kept["nodeName"] = spec["nodeName"]
    names = ("namespace", "name", "uid", "resourceVersion")
    return {
        "apiVersion": pod["apiVersion"],
        "kind": pod["kind"],
        "metadata": {name: metadata[name] for name in names if name in metadata},
        "spec": kept,
        "status": {"phase": pod.get("status", {}).get("phase", "")},
    }


def is_extended(resource_name: str) -> bool:
    """True for names of devices such as ``vendor.com/npu``, false for what the kubelet itself accounts for."""
    domain, slash, _ = resource_name.partition("/")
    return bool(slash) and domain != "kubernetes.io" and not domain.endswith(".kubernetes.io")


def _holders(containers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The containers that hold extended resources, with these alone."""
    found = []
    for container in containers:
        limits = (container.get("resources") or {}).get("limits") or {}
        if extended := {name: amount for name, amount in limits.items() if is_extended(name)}:
            # An init container that restarts holds its devices beside the others: that changes the sum.
            restart = {"restartPolicy": container["restartPolicy"]} if "restartPolicy" in container else {}
            found.append({"name": container["name"], "resources": {"limits": extended}, **restart})
    return found
