"""Artifacts that the node's own container runtime takes from the store and mounts: image volumes.

The layers of an artifact hold its tree as it is, so the pod sees what an init container would have fetched, read-only.
The runtime compares all digests on the way, and a node that has an artifact takes it once for all of its pods.
"""

from collections.abc import Mapping
from typing import Any, Final

from rm_operator.plan.attempt import PULL_PROBLEMS
from rm_operator.plan.model import ImageVolumes, Object, StoreConfig

VOLUME: Final = "artifact"
SINCE: Final = (1, 35)
"""The first Kubernetes in which pods have image volumes without being told to."""
_CANNOT_CREATE: Final = frozenset({"CreateContainerError", "RunContainerError"})
_MOUNT_FAILED: Final = "ImageVolumeMountFailed"
"""How the message of a container runtime begins that knows image volumes and could not mount this one."""


def reference(location: str, store: StoreConfig, how: ImageVolumes) -> str:
    """The artifact at ``location`` as nodes name it, with its digest."""
    path = location.removeprefix(f"{store.host}/")
    return location if path == location else f"{how.host}/{path}"


def volume(image: str) -> dict[str, Any]:
    """The volume of a pod; its digest says what it is, so what the node has is as good as what the store has."""
    return {"name": VOLUME, "image": {"reference": image, "pullPolicy": "IfNotPresent"}}


def further(how: ImageVolumes) -> dict[str, Any]:
    """What else is in the spec of such a pod."""
    return {"imagePullSecrets": [{"name": how.pull_secret}]} if how.pull_secret else {}


def mounted(pod: Object) -> str:
    """The artifact that a pod mounts; empty where it mounts none in this way."""
    for each in (pod.get("spec") or {}).get("volumes") or ():
        if each.get("name") == VOLUME and each.get("image"):
            return str(each["image"].get("reference") or "")
    return ""


def problem(pod: Object, waiting: Mapping[str, Any]) -> str:
    """Why a container that waits does so for the artifact; empty where that is not the reason.

    A kubelet says it of the container that mounts the artifact, with the reasons that it has for the container's own
    image; then only the message names the one or the other.
    """
    image = mounted(pod)
    reason, said = waiting.get("reason"), str(waiting.get("message") or "")
    if not image:
        return ""
    if reason in PULL_PROBLEMS and image in said:
        return f"its node cannot take the artifact {image} from the store: {said}"
    if reason in _CANNOT_CREATE and _MOUNT_FAILED in said:
        return f"its node cannot mount the artifact {image}: {said}"
    return ""


def hint(pod: Object, waiting: Mapping[str, Any]) -> str:
    """What may be wrong besides, where a container with an artifact cannot be made, and nobody says that it is that."""
    if not mounted(pod) or waiting.get("reason") not in _CANNOT_CREATE:
        return ""
    return "; it mounts the artifact as an image volume, which needs containerd 2.1 or CRI-O 1.31 on the node"
