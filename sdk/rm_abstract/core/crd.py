"""Resources, build profiles and artifacts as objects of the cluster, and back, without losing anything.

An object of the cluster says more than the SDK knows (images, node selectors, figures), and the SDK some things that
the object has no field for (a compiler's version, attributes that are no texts). The first stays what it was: it is
taken from ``base``. The second is kept in an annotation. So for every value and every manifest that fits it

    from_crd(to_crd(value, base)) == value
    to_crd(from_crd(manifest), manifest) == manifest        as the models write it

This module loads the models, and pydantic with them; nothing else of the SDK does.
"""

import base64
import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from rm_api.base import ApiModel
from rm_api.kinds.accelerator_resource import AcceleratorResourceSpec
from rm_api.kinds.build_artifact import BuildArtifactSpec, BuildArtifactStatus
from rm_api.kinds.build_profile import BuildProfileSpec
from rm_api.names import API_VERSION

from rm_abstract.core.errors import BadInput
from rm_abstract.core.resource import BuildArtifact, BuildProfile, BuildStep, Capability, Resource, ResourceType

ANNOTATION: Final = "rm-abstract.io/sdk"
"""JSON of what the SDK says of an object and the object has no field for."""

_MOST_ANNOTATION: Final = 200_000
_MOST_ATTRIBUTES, _LONGEST_ATTRIBUTE, _LONGEST_ATTRIBUTE_NAME = 32, 256, 63
_COMMAND: Final = 64
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TARGET: Final = "TARGET"
_KINDS: Final[Mapping[type, str]] = {
    Resource: "AcceleratorResource",
    BuildProfile: "BuildProfile",
    BuildArtifact: "BuildArtifact",
}

Value = Resource | BuildProfile | BuildArtifact
Manifest = dict[str, Any]
_ModelT = TypeVar("_ModelT", bound=ApiModel)


def to_crd(
    value: Value,
    base: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    capability: Capability | None = None,
    image: str = "",
) -> Manifest:
    """The manifest of an object that says what ``value`` does, and the rest as ``base`` does.

    A Resource becomes an AcceleratorResource, with its ``capability`` where given. ``base`` is a manifest of the same
    kind, whole or in parts: it must have what the kind requires and the SDK has no notion of, such as ``runtime``, or
    ``model`` of an artifact. ``name`` is the object's; without it the base's, the resource's id or the compiler's name.
    ``image`` is that of steps of which the base knows none.

    Raises BadInput where a part is lacking, or the value cannot be said: a HYBRID resource, a profile without steps.
    """
    kind = _KINDS[type(value)]
    manifest: Manifest = copy.deepcopy(dict(base or {}))
    if manifest.setdefault("kind", kind) != kind:
        raise BadInput(f"the base of a {kind} is a {manifest['kind']}")
    manifest["apiVersion"] = API_VERSION
    metadata, spec = manifest.setdefault("metadata", {}), manifest.setdefault("spec", {})
    annotations = metadata.get("annotations", {})
    before = _annotated(manifest)
    annotations.pop(ANNOTATION, None)
    _put_name(metadata, name, value)
    match value:
        case Resource():
            _put_resource(value, spec)
            if capability is not None:
                _put_capability(capability, spec)
            if "runtime" not in spec and value.type is not ResourceType.REMOTE:
                raise BadInput(f"this is no valid {kind}: runtime: Field required; it must be in the base")
            manifest["spec"] = _checked(AcceleratorResourceSpec, spec, kind)
        case BuildProfile():
            _put_profile(value, spec, image)
            manifest["spec"] = _checked(BuildProfileSpec, spec, kind)
        case BuildArtifact():
            _put_artifact(value, manifest)
            manifest["spec"] = _checked(BuildArtifactSpec, spec, kind)
            if "status" in manifest:
                manifest["status"] = _checked(BuildArtifactStatus, manifest["status"], kind)
    rest = _difference(value, _get(manifest))
    own = before.get("capability", {}) if capability is None else _difference(capability, _get_capability(manifest))
    rest |= {"capability": own} if own else {}
    if rest:
        metadata.setdefault("annotations", annotations)[ANNOTATION] = _annotation(rest)
    elif not annotations:
        metadata.pop("annotations", None)
    return manifest


def from_crd(manifest: Mapping[str, Any], *, path: Path | None = None) -> Value:
    """The Resource, BuildProfile or BuildArtifact that a manifest describes.

    ``path`` is where the artifact lies here, which no object of a cluster says. Raises BadInput where it is none of
    these kinds, or not valid.
    """
    value = _get(manifest)
    rest = {name: part for name, part in _annotated(manifest).items() if name != "capability"}
    try:
        value = replace(value, **rest)
    except TypeError as error:
        raise BadInput(f"the annotation {ANNOTATION} does not fit a {manifest.get('kind')}: {error}") from None
    return replace(value, path=path) if isinstance(value, BuildArtifact) and path is not None else value


def capability_from_crd(manifest: Mapping[str, Any]) -> Capability:
    """What an AcceleratorResource is capable of. Raises BadInput where it is none, or not valid."""
    own = _annotated(manifest).get("capability", {})
    try:
        return replace(_get_capability(manifest), **own)
    except TypeError as error:
        raise BadInput(f"the annotation {ANNOTATION} does not fit a capability: {error}") from None


# What objects say


def _get(manifest: Mapping[str, Any]) -> Value:
    kind = manifest.get("kind")
    spec = manifest.get("spec", {})
    name = str(manifest.get("metadata", {}).get("name", ""))
    match kind:
        case "AcceleratorResource":
            resource = _model(AcceleratorResourceSpec, spec, kind)
            about = {"vendor": resource.vendor, "product": resource.product}
            kind_of = ResourceType(resource.type.value)
            return Resource(name, kind_of, {**resource.attributes, **about}, tuple(resource.tags))
        case "BuildProfile":
            profile = _model(BuildProfileSpec, spec, kind)
            target = profile.target.target_string
            return BuildProfile(
                ResourceType(profile.target.type.value),
                name,
                tuple(BuildStep(step.name, (*step.command, *step.args), tuple(step.outputs)) for step in profile.steps),
                interface=profile.interface.value,
                flags={_TARGET: target} if target else {},
                output_format=profile.output.format,
                products=tuple(profile.target.products),
                drivers=tuple(profile.compatibility.driver),
            )
        case "BuildArtifact":
            artifact = _model(BuildArtifactSpec, spec, kind)
            status = _model(BuildArtifactStatus, manifest.get("status", {}), kind)
            return BuildArtifact(
                Path(),
                artifact.key,
                artifact.format,
                tuple(artifact.target.products),
                tuple(artifact.drivers),
                dict(status.versions or {}),
            )
        case _:
            raise BadInput(f"kind {kind} has no counterpart in the SDK; there are {', '.join(_KINDS.values())}")


def _get_capability(manifest: Mapping[str, Any]) -> Capability:
    if manifest.get("kind") != "AcceleratorResource":
        raise BadInput(f"an AcceleratorResource has a capability, but this is a {manifest.get('kind')}")
    known = _model(AcceleratorResourceSpec, manifest.get("spec", {}), "AcceleratorResource").capability
    return Capability(known.max_batch_size, known.max_sequence_length, tuple(dtype.value for dtype in known.dtypes))


# What the SDK says


def _put_name(metadata: dict[str, Any], name: str, value: Value) -> None:
    match value:
        case Resource():
            own = value.id
        case BuildProfile():
            own = value.compiler
        case BuildArtifact():
            own = _artifact_name(value.key)
    wanted = name or metadata.get("name") or own
    if not _NAME.fullmatch(wanted):
        raise BadInput(f"{wanted!r} is no name of an object in a cluster; give one of letters, digits and dashes")
    metadata["name"] = wanted


def _artifact_name(key: str) -> str:
    try:
        return f"a-{base64.b32encode(bytes.fromhex(key)).decode().lower()[:26]}"
    except ValueError:
        raise BadInput(f"the key {key!r} of an artifact of the cluster must be a SHA-256 in hexadecimal") from None


def _put_resource(resource: Resource, spec: dict[str, Any]) -> None:
    if resource.type is ResourceType.HYBRID:
        raise BadInput(f"{resource.id} is several resources as one; write an AcceleratorResource for each member")
    attributes = dict(resource.attributes)
    for name in ("vendor", "product"):
        value = attributes.pop(name, None)
        if not isinstance(value, str):
            raise BadInput(f"an AcceleratorResource needs the attribute {name} of {resource.id}, a text")
        spec[name] = value
    spec["type"] = resource.type.value
    spec["tags"] = _set(resource.tags, "tag")
    texts = {
        name: value
        for name, value in sorted(attributes.items())
        if isinstance(value, str) and len(value) <= _LONGEST_ATTRIBUTE and len(name) <= _LONGEST_ATTRIBUTE_NAME
    }
    spec["attributes"] = dict(list(texts.items())[:_MOST_ATTRIBUTES])


def _put_capability(capability: Capability, spec: dict[str, Any]) -> None:
    part = spec.setdefault("capability", {})
    part["dtypes"] = _set(capability.dtype, "number format")
    for name, value in (
        ("maxBatchSize", capability.max_batch_size),
        ("maxSequenceLength", capability.max_seq_len),
    ):
        part.pop(name, None)
        if value is not None:
            part[name] = value


def _put_profile(profile: BuildProfile, spec: dict[str, Any], image: str) -> None:
    if not profile.steps:
        raise BadInput(f"the profile of {profile.compiler} has no steps: a cluster runs commands, each in an image")
    _set([step.name for step in profile.steps], "step")
    known = {step.get("name"): step for step in spec.get("steps", [])}
    spec["steps"] = [_step(step, known.get(step.name, {"image": image} if image else {})) for step in profile.steps]
    target = spec.setdefault("target", {})
    target["type"] = profile.target_resource_type.value
    target["products"] = _set(profile.products, "product")
    text = profile.flags.get(_TARGET, "")
    target["targetString"] = text if isinstance(text, str) else ""
    spec["interface"] = str(profile.interface)
    spec["output"] = {**spec.get("output", {}), "format": profile.output_format}
    spec["compatibility"] = {**spec.get("compatibility", {}), "driver": _set(profile.drivers, "driver")}


def _step(step: BuildStep, known: Mapping[str, Any]) -> dict[str, Any]:
    words = list(step.command)
    command, arguments = list(known.get("command", [])), list(known.get("args", []))
    if command + arguments != words:
        command, arguments = words[:_COMMAND], words[_COMMAND:]
    parts = {"name": step.name, "command": command, "args": arguments, "outputs": _set(step.outputs, "output")}
    return {**known, **parts}


def _put_artifact(artifact: BuildArtifact, manifest: Manifest) -> None:
    spec = manifest["spec"]
    spec["key"] = artifact.key
    spec["format"] = artifact.format
    spec["drivers"] = _set(artifact.drivers, "driver")
    spec["target"] = {**spec.get("target", {}), "products": _set(artifact.products, "product")}
    status = manifest.get("status", {})
    if artifact.versions != (status.get("versions") or {}):
        status["versions"] = dict(artifact.versions)
        manifest["status"] = status


def _set(values: Sequence[str], what: str) -> list[str]:
    if len(set(values)) < len(values):
        raise BadInput(f"a {what} is there twice: {', '.join(values)}")
    return list(values)


# Between them


def _model(model: type[_ModelT], content: Any, kind: str) -> _ModelT:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        raise BadInput(f"this is no valid {kind}: {told}; what the SDK does not know must be in the base") from None


def _checked(model: type[ApiModel], content: Any, kind: str) -> dict[str, Any]:
    return _model(model, content, kind).to_wire()


def _difference(value: Any, derived: Any) -> dict[str, Any]:
    """The fields of ``value`` that ``derived``, which the object says, does not have, or has otherwise."""
    return {
        each.name: getattr(value, each.name)
        for each in fields(value)
        if each.name != "path" and getattr(value, each.name) != getattr(derived, each.name)
    }


def _annotation(content: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"what a cluster has no field for must be JSON: {error}") from None
    if json.loads(text) != _lists(content):
        raise BadInput("what a cluster has no field for must be JSON, whose names are texts")
    if len(text.encode()) > _MOST_ANNOTATION:
        raise BadInput(f"what a cluster has no field for is larger than the {_MOST_ANNOTATION} bytes that it may have")
    return text


def _lists(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _lists(value) for name, value in content.items()}
    return [_lists(value) for value in content] if isinstance(content, list | tuple) else content


def _annotated(manifest: Mapping[str, Any]) -> dict[str, Any]:
    text = (manifest.get("metadata", {}).get("annotations") or {}).get(ANNOTATION, "{}")
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BadInput(f"the annotation {ANNOTATION} is no JSON object")
    return content
