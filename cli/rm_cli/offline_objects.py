"""Objects and image names on their way from one cluster to another."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from rm_abstract.store.bundle import Image
from rm_api.kinds import BuildArtifactSpec, BuildProfileSpec, ModelFacts
from rm_api.names import GROUP
from rm_operator.plan.artifact_spec import artifact_spec

Object = dict[str, Any]

_ISAS = ("x86_64", "aarch64", "amd64", "arm64", "")
"""Instruction sets of hosts that operators put into keys; an artifact does not say which it was."""
_NOT_CARRIED = ("kubectl.kubernetes.io/", f"{GROUP}/", "meta.helm.sh/")
_DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})$")
_DOCKER_HUB = "docker.io"
_OURS = {"RMA_RUNTIME_IMAGE": "runtime", "RMA_LAUNCHER_IMAGE": "launcher"}


def portable(obj: Mapping[str, Any]) -> Object:
    """What somebody wrote of an object: nothing that a cluster added to it."""
    metadata = obj["metadata"]
    annotations = {
        name: value for name, value in (metadata.get("annotations") or {}).items() if not name.startswith(_NOT_CARRIED)
    }
    kept = {
        "name": metadata["name"],
        **({"namespace": metadata["namespace"]} if metadata.get("namespace") else {}),
        **({"labels": metadata["labels"]} if metadata.get("labels") else {}),
        **({"annotations": annotations} if annotations else {}),
    }
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": kept, "spec": deepcopy(obj["spec"])}


def key_of(profile: Mapping[str, Any], artifact: BuildArtifactSpec, facts: ModelFacts) -> str:
    """Key that an operator finds for the artifact with this profile: the artifact's own, if it would take it."""
    spec = BuildProfileSpec.model_validate(profile["spec"])
    versions = (tuple(artifact.drivers), tuple(artifact.sdks))
    keys = [
        artifact_spec(
            artifact.profile, spec, facts, artifact.dtype, artifact.shape, None, isa,
            artifact.base, artifact.toolchain, *versions, artifact.model.code_digest,
        ).key
        for isa in _ISAS
    ]  # fmt: skip
    return artifact.key if artifact.key in keys else keys[0]


def places(obj: Object) -> Iterator[tuple[Object, str, bool]]:
    """Every image that an object of ours names: what holds it, what it is for, and whether an artifact's key counts it.

    A name that the key counts cannot be another one elsewhere.
    """
    spec, of = obj["spec"], f"{obj['kind']} {obj['metadata']['name']}"
    if obj["kind"] == "AcceleratorResource":
        for part in ("runtime", "devicePlugin", "observer"):
            if (spec.get(part) or {}).get("image"):
                yield spec[part], f"{of}: {part}", False
    if obj["kind"] == "BuildProfile":
        probed = bool(spec.get("versionProbe"))
        for step in spec["steps"]:
            yield step, f"{of}: step {step['name']}", True
        for part in ("probe", "check", "versionProbe"):
            if spec.get(part):
                yield spec[part], f"{of}: {part}", probed


def move_images(objects: Iterable[Object], move: Callable[[str], str]) -> None:
    """Rename the images of objects, but for those that count for keys."""
    for obj in objects:
        for holder, _, counts in places(obj):
            if not counts:
                holder["image"] = move(holder["image"])


def mirrored(image: str, registry: str) -> str:
    """``image`` as it is called in ``registry`` (HOST or HOST/PATH): its path, tag and digest stay."""
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, path = first, rest
    else:
        host, path = _DOCKER_HUB, image
    if host == _DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return f"{registry.rstrip('/')}/{path}"


def model_reference(source: str, digest: str) -> str:
    """REPOSITORY:TAG that a model from ``source`` is kept under; the tag tells one revision from another."""
    scheme, _, location = source.partition("://")
    path = location.partition("@")[0]
    if scheme in ("oci", "https"):
        path = path.partition("/")[2]
    if scheme == "oci":
        path = re.sub(r":[^/]*$", "", path)
    parts = (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in path.split("/"))
    return f"models/{'/'.join(filter(None, parts))[:200].rstrip('/-') or 'model'}:{digest.removeprefix('sha256:')[:16]}"


def images_of(
    objects: Iterable[Object], installation: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]
) -> list[Image]:
    """The images that objects and the installation's workloads need, with the digests that pods tell of."""
    used: dict[str, list[str]] = defaultdict(list)
    digests: dict[str, str] = {}
    for obj in objects:
        for holder, what, _ in places(obj):
            used[holder["image"]].append(what)
    for workload in installation:
        of = f"{workload['kind']} {workload['metadata']['namespace']}/{workload['metadata']['name']}"
        pod = workload["spec"]["template"]["spec"]
        for container in (*(pod.get("initContainers") or ()), *pod["containers"]):
            used[container["image"]].append(f"{of}: {container['name']}")
            for variable in container.get("env") or ():
                if variable["name"] in _OURS and variable.get("value"):
                    used[variable["value"]].append(f"{of}: {_OURS[variable['name']]}")
    for pod in pods:
        digests.update(_seen(pod))
    for image in used:
        if pinned := _DIGEST.search(image):
            digests[image] = pinned[1]
    return [Image(image, digests.get(image), sorted(set(used[image]))) for image in sorted(used)]


def pinned_by_profiles(profiles: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Digests that the operator found when it probed the toolchains, by the image's name."""
    return {
        each["image"]: each["digest"]
        for profile in profiles
        for each in (profile.get("status") or {}).get("images") or ()
    }


def _seen(pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the names of a pod's images stood for. A container runtime that had no registry to ask does not know."""
    spec, status = pod["spec"], pod.get("status") or {}
    names = {each["name"]: each["image"] for each in (*(spec.get("initContainers") or ()), *spec["containers"])}
    for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        found = _DIGEST.search(each.get("imageID") or "")
        if found and each["name"] in names:
            yield names[each["name"]], found[1]
