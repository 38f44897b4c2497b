"""What ``rm-abstract plan`` reads: ModelDeployments, accelerators, profiles and facts, from files or as objects."""

import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from rm_api.base import ApiModel
from rm_api.kinds import AcceleratorResourceSpec, BuildProfileSpec, ModelDeploymentSpec, ModelFacts
from rm_api.names import API_VERSION
from rm_api.placement import PolicyType
from rm_operator.plan.placement import AcceleratorView, ProfileView
from rm_operator.plan.placement.observed import observe
from rm_operator.plan.profile import view_of

Model = TypeVar("Model", bound=ApiModel)
_SUFFIXES = (".yaml", ".yml", ".json")
_NO_DIGEST = "sha256:" + "0" * 64
# Placement does not look at these; whoever writes facts by hand need not know them.
_UNNEEDED_FACTS = {
    "revision": "unknown", "configDigest": _NO_DIGEST, "tensorsDigest": _NO_DIGEST, "weightsDigest": _NO_DIGEST,
}  # fmt: skip


class BadInput(Exception):
    """Something that was given cannot be used; the message says where it is, and what to do."""


@dataclass(frozen=True)
class Deployment:
    """A ModelDeployment that is to be placed."""

    namespace: str
    name: str
    spec: ModelDeploymentSpec
    status: Mapping[str, Any]


@dataclass
class Input:
    """Everything that was read."""

    deployments: list[Deployment] = field(default_factory=list)
    accelerators: dict[str, AcceleratorView] = field(default_factory=dict)
    profiles: dict[str, ProfileView] = field(default_factory=dict)
    strict: bool = True
    """Refuse members that a kind does not have: in what people write they are mistakes; a cluster may be newer."""

    def add(self, obj: Any, where: str, namespace: str) -> None:
        """Takes one object; ``namespace`` is that of an object that names none. Raises BadInput."""
        if not isinstance(obj, Mapping):
            raise BadInput(f"{where} is no Kubernetes object, but {type(obj).__name__}")
        kind, metadata = obj.get("kind"), obj.get("metadata")
        if str(kind).endswith("List") and isinstance(obj.get("items"), list):
            for number, item in enumerate(obj["items"], 1):
                self.add(item, f"{where}, item {number}", namespace)
            return
        take = _TAKERS.get(str(kind))
        if take is None:
            raise BadInput(f"{where}: kind {kind} is not used here; there are {', '.join(_TAKERS)}")
        if obj.get("apiVersion") != API_VERSION:
            raise BadInput(f"{where}: apiVersion {obj.get('apiVersion')} is not {API_VERSION}")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        if not isinstance(name, str) or not name:
            raise BadInput(f"{where}: metadata.name is missing")
        if not isinstance(obj.get("spec"), Mapping):
            raise BadInput(f"{where} ({kind} {name}): spec is missing")
        take(self, obj, name, f"{where} ({kind} {name})", namespace)


def _take_deployment(taken: Input, obj: Mapping[str, Any], name: str, where: str, namespace: str) -> None:
    spec = _spec(ModelDeploymentSpec, obj["spec"], where, taken)
    if (spec.policy.type is PolicyType.WEIGHTED) != (spec.policy.weights is not None):
        raise BadInput(f"{where}: spec.policy: type Weighted needs weights, and the other types have none")
    own = obj["metadata"].get("namespace") or namespace
    taken.deployments.append(Deployment(own, name, spec, obj.get("status") or {}))


def _take_accelerator(taken: Input, obj: Mapping[str, Any], name: str, where: str, _: str) -> None:
    if name in taken.accelerators:
        raise BadInput(f"{where}: there is another AcceleratorResource of this name")
    spec = _spec(AcceleratorResourceSpec, obj["spec"], where, taken)
    status = obj.get("status")
    if not status:
        # Straight from a file, it is taken as it would be in a cluster that has enough of it.
        taken.accelerators[name] = AcceleratorView(name, spec)
        return
    seen = observe(spec, status)
    allocated = int((status.get("devices") or {}).get("allocated", 0))
    taken.accelerators[name] = AcceleratorView(
        name,
        spec,
        free=None if seen.most is None else seen.most - allocated,
        healthy=seen.healthy,
        nodes=seen.nodes,
        ready=seen.ready,
        reason=seen.reason,
        largest=seen.largest,
    )


def _take_profile(taken: Input, obj: Mapping[str, Any], name: str, where: str, _: str) -> None:
    if name in taken.profiles:
        raise BadInput(f"{where}: there is another BuildProfile of this name")
    _spec(BuildProfileSpec, obj["spec"], where, taken)
    taken.profiles[name] = view_of(obj)


_TAKERS: Mapping[str, Callable[[Input, Mapping[str, Any], str, str, str], None]] = {
    "ModelDeployment": _take_deployment,
    "AcceleratorResource": _take_accelerator,
    "BuildProfile": _take_profile,
}


def read(paths: Sequence[Path], namespace: str) -> Input:
    """All objects of the files, and of the YAML and JSON files of the directories. Raises BadInput."""
    taken = Input()
    for path in paths:
        for file in _files(path):
            documents = list(_documents(file))
            for number, document in enumerate(documents, 1):
                taken.add(document, f"{file}, document {number}" if len(documents) > 1 else str(file), namespace)
    return taken


def read_facts(path: Path, source: str) -> ModelFacts:
    """Facts of a model in YAML or JSON, as ``rm-abstract resolve`` reports them or by themselves. Raises BadInput."""
    documents = list(_documents(path))
    data = documents[0] if len(documents) == 1 else None
    if isinstance(data, dict) and isinstance(data.get("facts"), dict):
        data = data["facts"]
    if not isinstance(data, dict):
        raise BadInput(f"{path}: facts are one object, such as status.model of a ModelDeployment")
    return facts_of({**_UNNEEDED_FACTS, "source": source, **data}, str(path))


def resolve_facts(source: str, revision: str | None) -> ModelFacts:
    """Facts of the model at ``source``, which is asked; its weights are not read. Raises BadInput."""
    from rm_abstract.core.errors import WorkloadError
    from rm_abstract.sources import resolve_model

    try:
        facts = resolve_model(source, revision, digests=False)
    except WorkloadError as error:
        raise BadInput(f"it cannot be told what {source} is: {error}") from None
    return facts_of({**_UNNEEDED_FACTS, **facts}, source)


def facts_of(data: Mapping[str, Any], where: str) -> ModelFacts:
    """``data`` as facts. Raises BadInput."""
    return _valid(ModelFacts, data, where, "")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix in _SUFFIXES and each.is_file())
        if not found:
            raise BadInput(f"{path}: the directory has no file that ends with {', '.join(_SUFFIXES)}")
        return found
    return [path]


def _documents(file: Path) -> Iterator[Any]:
    try:
        text = file.read_text(encoding="utf-8")
        yield from (document for document in yaml.safe_load_all(text) if document is not None)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: {error}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None


def _spec(model: type[Model], data: Mapping[str, Any], where: str, taken: Input) -> Model:
    unknown = list(_unknown(model, data, "spec")) if taken.strict else []
    if unknown:
        raise BadInput(f"{where}: {'; '.join(unknown)}")
    return _valid(model, data, where, "spec.")


def _valid(model: type[Model], data: Mapping[str, Any], where: str, prefix: str) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        said = [f"{prefix}{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise BadInput(f"{where}: {'; '.join(said)}") from None


def _unknown(model: type[BaseModel], data: Any, path: str) -> Iterator[str]:
    """What an API server would drop in silence: members that the kind does not have."""
    if not isinstance(data, Mapping):
        return
    members = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    for name, value in data.items():
        if name not in members:
            yield f"{path}.{name}: there is no such field; there are {', '.join(sorted(members))}"
            continue
        nested = next(_models(members[name]), None)
        for place, each in _elements(value, f"{path}.{name}"):
            if nested is not None:
                yield from _unknown(nested, each, place)


def _elements(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, list):
        return [(f"{path}.{position}", each) for position, each in enumerate(value)]
    return [(path, value)]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models(argument)
