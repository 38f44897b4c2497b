"""Brings a bundle into a cluster: content into its registry first, objects last, so that nothing is half there."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError
from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.store.backend import Backends
from rm_abstract.store.bundle import Bundle, Model, Say
from rm_api.kinds import BuildArtifactSpec, ModelFacts
from rm_api.names import (
    ARTIFACT_TAG,
    LABEL_MANAGED_BY,
    LABEL_MODEL,
    LABEL_ROLE,
    MANAGED_BY,
    ROLE_RESOLVE,
    artifact_repository,
)
from rm_operator.plan.resolve import FACTS_KEY, config_map_name, written_source_hash

from rm_cli.kubectl import CommandFailed, Kubectl
from rm_cli.offline_objects import Object, key_of, mirrored, model_reference, move_images, places

FIELD_MANAGER = "rm-abstract-import"
_OPERATORS = "app.kubernetes.io/name=rm-abstract,app.kubernetes.io/component=operator"
_KINDS = ("AcceleratorResource", "BuildProfile", "ModelDeployment")


@dataclass(frozen=True)
class Target:
    """Where a bundle goes."""

    registry: str
    """HOST of the artifact store as this machine reaches it."""
    store: str
    """HOST of the artifact store as pods reach it, and as the operator there was told."""
    models: str
    """HOST or HOST/PATH for models, as this machine reaches it."""
    models_for_pods: str
    """The same as pods reach it."""
    images: str | None
    """HOST or HOST/PATH of the images; None leaves their names as they are."""
    credentials: str | None
    """Secret by which pods read the models."""


@dataclass(frozen=True)
class Import:
    """What is to be done; made by ``prepare``, done by ``push`` and ``apply``."""

    bundle: Bundle
    target: Target
    objects: list[Object]
    """In the order in which they are applied."""

    @property
    def namespaces(self) -> list[str]:
        """Those of the deployments."""
        return sorted({each.namespace for each in self.bundle.contents.deployments})

    def copies(self) -> list[tuple[str, str]]:
        """Images that must be copied: from where, and to what name. Names that stay are served by a mirror."""
        counting: set[str] = set()
        others: set[str] = set()
        for obj in _written(self.bundle):
            for holder, _, counts in places(obj):
                (counting if counts else others).add(holder["image"])
        found = []
        for each in self.bundle.contents.images:
            known = f"{each.image}@{each.digest}" if each.digest and "@" not in each.image else each.image
            if self.target.images is None or each.image in counting:
                found.append((known, each.image))
            if self.target.images is not None and (each.image in others or each.image not in counting):
                found.append((known, mirrored(each.image, self.target.images)))
        return found


def prepare(bundle: Bundle, target: Target) -> Import:
    """Read the bundle, and make the objects as they will be applied. Raises ArtifactMismatch or BadInput."""
    objects = _written(bundle)
    if target.images is not None:
        registry = target.images
        move_images(objects, _without_clashes(lambda image: mirrored(image, registry)))
    models = {(each.source, each.revision): each for each in bundle.contents.models}
    facts = {(each.namespace, each.name): each.facts for each in bundle.contents.deployments}
    config_maps = []
    for obj in objects:
        if obj["kind"] != "ModelDeployment":
            continue
        known = facts.get((obj["metadata"]["namespace"], obj["metadata"]["name"]))
        if known is None:
            raise ArtifactMismatch(
                f"{bundle.layout.path} is damaged: it does not say what ModelDeployment {obj['metadata']['name']} is of"
            )
        found = models.get((known["source"], known["revision"]))
        if found is None:
            config_maps.append(_facts(obj, known))
        else:
            obj["spec"]["model"] = _at(obj["spec"]["model"], found, target)
    _check_keys(bundle, objects)
    ordered = sorted(objects, key=lambda obj: _KINDS.index(obj["kind"]))
    deployments = [each for each in ordered if each["kind"] == "ModelDeployment"]
    return Import(bundle, target, [*ordered[: -len(deployments)], *config_maps, *deployments])


def _written(bundle: Bundle) -> list[Object]:
    try:
        objects = [each for each in yaml.safe_load_all(bundle.objects) if each is not None]
        if not all(each["kind"] in _KINDS and each["metadata"]["name"] and each["spec"] for each in objects):
            raise TypeError("an object of another kind")
        if not any(each["kind"] == "ModelDeployment" for each in objects):
            raise TypeError("no ModelDeployment")
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ArtifactMismatch(f"{bundle.layout.path} is damaged: its objects cannot be read ({error})") from None
    return objects


def _at(model: Mapping[str, Any], found: Model, target: Target) -> Object:
    """``spec.model`` of a deployment whose model is in the registry now."""
    kept = {name: value for name, value in model.items() if name not in ("source", "revision", "credentialsSecretRef")}
    source = f"oci://{target.models_for_pods}/{model_reference(found.source, found.digest)}"
    further = {"credentialsSecretRef": target.credentials} if target.credentials else {}
    return {"source": source, "revision": found.digest, **further, **kept}


def _facts(deployment: Object, facts: Mapping[str, Any]) -> Object:
    """What a resolve Job would have found out, had it been able to reach the model: the operator goes by it."""
    hash_ = written_source_hash(deployment["spec"]["model"])
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_map_name(hash_),
            "namespace": deployment["metadata"]["namespace"],
            "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_ROLE: ROLE_RESOLVE, LABEL_MODEL: hash_},
        },
        "immutable": True,
        "data": {FACTS_KEY: json.dumps(_model_facts(facts).to_wire(), sort_keys=True, separators=(",", ":"))},
    }


def _model_facts(facts: Mapping[str, Any]) -> ModelFacts:
    try:
        return ModelFacts.model_validate(facts)
    except ValidationError as error:
        raise BadInput(f"the bundle tells of a model in a way that this version does not know: {error}") from None


def _without_clashes(move: Callable[[str], str]) -> Callable[[str], str]:
    taken: dict[str, str] = {}

    def moved(image: str) -> str:
        name = move(image)
        if taken.setdefault(name, image) != image:
            raise BadInput(f"{taken[name]} and {image} would both be {name}: use a registry of its own for one of them")
        return name

    return moved


def _check_keys(bundle: Bundle, objects: list[Object]) -> None:
    """Refuse what would be built anew: the operator finds an artifact by the key that it makes of these objects."""
    profiles = {each["metadata"]["name"]: each for each in objects if each["kind"] == "BuildProfile"}
    # A name is the hash of a key: whatever the namespace, it is of the same.
    artifacts = {each.name: each for each in bundle.contents.artifacts}
    for deployment in bundle.contents.deployments:
        for name in deployment.artifacts:
            artifact = artifacts.get(name)
            try:
                spec = BuildArtifactSpec.model_validate(artifact.spec if artifact else None)
                key = key_of(profiles[spec.profile], spec, _model_facts(deployment.facts))
            except (ValidationError, KeyError) as error:
                raise ArtifactMismatch(f"{bundle.layout.path} cannot be used: artifact {name}: {error}") from None
            if artifact is None or not spec.key == key == artifact.key:
                raise ArtifactMismatch(
                    f"artifact {name} has key {spec.key}, but an operator of this version would look for {key}: "
                    "import it with the version that made the bundle, or have it built there"
                )


def operator_store(kubectl: Kubectl, say: Say) -> str | None:
    """The store of the operator that runs in the cluster; None where none is found, or may be looked for."""
    try:
        text = kubectl.run("get", "deployments.apps", "--all-namespaces", "-o", "json", "-l", _OPERATORS)
    except CommandFailed as error:
        say(f"which store the operator there uses is not known: {error}")
        return None
    for deployment in json.loads(text)["items"]:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            for variable in container.get("env") or ():
                if variable["name"] == "RMA_STORE" and variable.get("value"):
                    return str(variable["value"])
    return None


def push(todo: Import, say: Say) -> int:
    """Push what the registries lack; how many manifests that were. Objects are not touched."""
    pushed = 0
    with Backends() as backends:
        for model in todo.bundle.contents.models:
            to = f"{todo.target.models}/{model_reference(model.source, model.digest)}"
            pushed += todo.bundle.push(model.digest, backends, to, say)
        for artifact in todo.bundle.contents.artifacts:
            repository = artifact_repository(artifact.namespace, artifact.name)
            to = f"{todo.target.registry}/{repository}:{ARTIFACT_TAG}"
            pushed += todo.bundle.push(artifact.digest, backends, to, say)
    return pushed


def check(todo: Import, kubectl: Kubectl, *, force: bool, dry_run: bool) -> None:
    """Ask the API server whether it would take the objects; CommandFailed with what it said.

    It can only tell of objects in namespaces that exist, so these are made before; in a dry run they are left out.
    """
    missing = {each for each in todo.namespaces if kubectl.get("namespace", each) is None}
    if missing and not dry_run:
        spaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": each}} for each in sorted(missing)]
        _apply(kubectl, spaces, force=False)
        missing = set()
    askable = [each for each in todo.objects if each["metadata"].get("namespace") not in missing]
    if askable:
        _apply(kubectl, askable, "--dry-run=server", force=force)


def apply(todo: Import, kubectl: Kubectl, *, force: bool) -> None:
    """Apply the objects, deployments last. CommandFailed with what the API server said."""
    for obj in todo.objects:
        _apply(kubectl, [obj], force=force)


def _apply(kubectl: Kubectl, objects: list[Object], *flags: str, force: bool) -> None:
    further = ("--force-conflicts",) if force else ()
    try:
        kubectl.run(
            "apply", "--server-side", f"--field-manager={FIELD_MANAGER}", *flags, *further, "-f", "-",
            stdin=yaml.safe_dump_all(objects),
        )  # fmt: skip
    except CommandFailed as error:
        if "conflict" not in str(error):
            raise
        raise CommandFailed(
            f"{error}\nAn object of that name is there and says otherwise. Give it another name there, or let the "
            "bundle's win with --force-conflicts"
        ) from None
