"""Puts deployments, and what they need where there is no network, into a bundle."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rm_abstract.core.errors import BadInput
from rm_abstract.store import bundle
from rm_abstract.store.backend import Backends
from rm_abstract.store.bundle import Contents, Say
from rm_abstract.store.oci_layout import LayoutWriter, write_tar
from rm_abstract.store.reference import Reference
from rm_abstract.store.registry import Descriptor
from rm_api.kinds import BuildArtifactSpec, ModelFacts
from rm_api.names import artifact_repository

from rm_cli.artifact_list import state
from rm_cli.kubectl import CommandFailed, Kubectl, condition
from rm_cli.offline_objects import Object, images_of, key_of, model_reference, pinned_by_profiles, portable

DEPLOYMENTS = "modeldeployments.rm-abstract.io"
ARTIFACTS = "buildartifacts.rm-abstract.io"
PROFILES = "buildprofiles.rm-abstract.io"
ACCELERATORS = "acceleratorresources.rm-abstract.io"
_INSTALLATION = "app.kubernetes.io/name=rm-abstract"
_OURS = "app.kubernetes.io/managed-by=rm-abstract"


@dataclass
class Selection:
    """What is exported, as the cluster has it."""

    deployments: list[Object] = field(default_factory=list)
    artifacts: dict[tuple[str, str], Object] = field(default_factory=dict)
    profiles: dict[str, Object] = field(default_factory=dict)
    accelerators: dict[str, Object] = field(default_factory=dict)
    used: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Artifacts of each deployment, by namespace and name."""

    def objects(self) -> list[Object]:
        """All that is applied elsewhere, in the order in which it is."""
        return [portable(each) for each in (*self.accelerators.values(), *self.profiles.values(), *self.deployments)]


def select(kubectl: Kubectl, names: Sequence[str], *, weights: bool, say: Say) -> Selection:
    """What the deployments ``names`` of the namespace (without names, all of them) need. Raises BadInput."""
    everything = {each["metadata"]["name"]: each for each in kubectl.list(DEPLOYMENTS)}
    missing = [name for name in names if name not in everything]
    if missing or not everything:
        what = f"ModelDeployment {', '.join(missing)}" if missing else "ModelDeployment"
        raise BadInput(f"there is no {what} in namespace {kubectl.namespace}")
    known = _Cluster(kubectl)
    found = Selection()
    for name in names or sorted(everything):
        _add(found, everything[name], known, weights, say)
    return found


class _Cluster:
    """What deployments of a namespace may refer to."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._shared: set[str] = set()
        self.artifacts = {each["metadata"]["name"]: each for each in kubectl.list(ARTIFACTS)}
        self.profiles = {each["metadata"]["name"]: each for each in kubectl.list(PROFILES)}
        self.accelerators = {each["metadata"]["name"]: each for each in kubectl.list(ACCELERATORS)}

    def know_shared(self, namespace: str) -> None:
        """Look at the artifacts of a namespace that all share, too; its own ones come first."""
        if namespace in self._shared:
            return
        self._shared.add(namespace)
        there = replace(self._kubectl, namespace=namespace).list(ARTIFACTS)
        self.artifacts = {each["metadata"]["name"]: each for each in there} | self.artifacts


def _add(found: Selection, deployment: Object, known: _Cluster, weights: bool, say: Say) -> None:
    name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
    spec, status = deployment["spec"], deployment.get("status") or {}
    facts = status.get("model")
    if not facts or facts["source"] != spec["model"]["source"]:
        said = condition(deployment, "ModelResolved").get("message", "the operator has not looked at it yet")
        raise BadInput(f"{name}: it is not known yet what its model is: {said}")
    wanted = status.get("artifact")
    if shared := status.get("artifactNamespace"):
        known.know_shared(shared)
    used: list[str] = []
    others = [each["artifact"] for each in status.get("variants") or () if each.get("artifact")]
    for artifact in dict.fromkeys([*([wanted] if wanted else []), *others]):
        problem = _problem(known, artifact, facts)
        if problem is None:
            _add_artifact(found, artifact, known, used)
        elif artifact == wanted:
            raise BadInput(f"{name}: {problem}")
        else:
            say(f"{name}: left out: {problem}")
    held = [known.artifacts[each]["spec"].get("weightsInArtifact", True) for each in used]
    if not weights and not (held and all(held)):
        why = "an artifact of it has no weights in it" if held else "it has no artifact"
        raise BadInput(f"{name} cannot be exported without weights: {why}")
    profile = spec.get("buildProfile") or (status.get("placement") or {}).get("profile")
    while profile and profile not in found.profiles and profile in known.profiles:
        found.profiles[profile] = known.profiles[profile]
        profile = known.profiles[profile]["spec"].get("from")
    chosen = [
        (status.get("placement") or {}).get("chosen"),
        *(v.get("accelerator") for v in status.get("variants") or ()),
    ]
    for each in chosen:
        if each in known.accelerators:
            found.accelerators[each] = known.accelerators[each]
    found.deployments.append(deployment)
    found.used[namespace, name] = used


def _problem(known: _Cluster, name: str, facts: Mapping[str, Any]) -> str | None:
    """Why an artifact would be of no use elsewhere."""
    artifact = known.artifacts.get(name)
    if artifact is None:
        return f"artifact {name} does not exist"
    if state(artifact) != "Ready":
        said = condition(artifact, "Ready").get("message", "the operator has not looked at it yet")
        return f"artifact {name} is not ready: {said}; wait for it with rm-abstract artifacts watch {name}"
    spec = BuildArtifactSpec.model_validate(artifact["spec"])
    profile = known.profiles.get(spec.profile)
    if profile is None:
        return f"artifact {name}: its BuildProfile {spec.profile} does not exist any more"
    if key_of(profile, spec, ModelFacts.model_validate(facts)) != spec.key:
        return f"artifact {name}: BuildProfile {spec.profile} or the model is another one since it was built"
    return _problem(known, spec.base.name, facts) if spec.base else None


def _add_artifact(found: Selection, name: str, known: _Cluster, used: list[str]) -> None:
    artifact = known.artifacts[name]
    found.artifacts[artifact["metadata"]["namespace"], name] = artifact
    profile = artifact["spec"]["profile"]
    found.profiles[profile] = known.profiles[profile]
    used.append(name)
    if base := artifact["spec"].get("base"):
        _add_artifact(found, base["name"], known, used)


def merged(selections: Sequence[Selection]) -> Selection:
    """What several namespaces need, as one."""
    whole = Selection()
    for each in selections:
        whole.deployments += each.deployments
        whole.artifacts |= each.artifacts
        whole.profiles |= each.profiles
        whole.accelerators |= each.accelerators
        whole.used |= each.used
    return whole


def images(selection: Selection, kubectl: Kubectl, say: Say) -> list[bundle.Image]:
    """Images of the selection and of the installation; digests as far as profiles and pods of the cluster tell.

    Whoever may not see the installation gets what the selection itself says, and is told so.
    """
    everywhere = Kubectl(kubectl.cluster)

    def ask(kinds: str, selector: str) -> list[Object]:
        try:
            text = everywhere.run("get", kinds, "--all-namespaces", "-o", "json", "-l", selector)
        except CommandFailed as error:
            say(f"the list of images lacks what {kinds} would tell: {error}")
            return []
        return list(json.loads(text)["items"])

    workloads = [
        each
        for selector in (_INSTALLATION, _OURS)
        for each in ask("deployments.apps,daemonsets.apps", selector)
        if selector == _INSTALLATION or each["kind"] == "DaemonSet"
    ]
    pods = [each for selector in (_INSTALLATION, _OURS) for each in ask("pods", selector)]
    pinned = pinned_by_profiles(selection.profiles.values())
    return [
        replace(each, digest=each.digest or pinned.get(each.image))
        for each in images_of(selection.objects(), workloads, pods)
    ]


def write(
    selection: Selection, needed: list[bundle.Image], target: Path, *, weights: bool, registry: str | None, say: Say
) -> None:
    """Fill the directory ``target``, or make the tar of that name, with the selection.

    ``registry`` is how this machine reaches the store, where that is not the name that pods know it by.
    """
    is_tar = target.suffix == ".tar"
    directory = target.with_name(f"{target.name}.export") if is_tar else target
    with LayoutWriter(directory) as writer:
        contents, manifests = _content(selection, needed, writer, weights=weights, registry=registry, say=say)
        text = yaml.safe_dump_all(selection.objects(), sort_keys=False)
        bundle.finish(writer, contents, text, manifests)
        if is_tar:
            say(f"writing {target}")
            write_tar(directory, target)
            writer.remove()


def _content(
    selection: Selection, needed: list[bundle.Image], writer: LayoutWriter, *, weights: bool, registry: str | None,
    say: Say,
) -> tuple[Contents, list[Descriptor]]:  # fmt: skip
    listed: list[Descriptor] = []
    artifacts, models, deployments = [], {}, []
    with Backends() as backends:
        for (namespace, name), artifact in selection.artifacts.items():
            spec, location = artifact["spec"], artifact["status"]["location"]
            at = str(replace(Reference.parse(location), host=registry)) if registry else location
            manifest, size = bundle.add_artifact(backends, at, spec["key"], writer, say)
            listed.append(bundle.named(manifest, artifact_repository(namespace, name)))
            artifacts.append(bundle.Artifact(namespace, name, spec["key"], manifest.digest, size, spec))
    for deployment in selection.deployments:
        name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
        facts = deployment["status"]["model"]
        deployments.append(bundle.Deployment(namespace, name, facts, selection.used[namespace, name]))
        of = (facts["source"], facts["revision"])
        if weights and of not in models:
            manifest, size = bundle.add_model(*of, facts["weightsDigest"], writer, say)
            listed.append(bundle.named(manifest, model_reference(facts["source"], manifest.digest)))
            models[of] = bundle.Model(*of, manifest.digest, size)
    return Contents(version("rm-abstract"), list(models.values()), artifacts, deployments, needed), listed
