"""Where the steps of a build that need a device find one: on the kind of its target that has most to spare."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rm_api.kinds import AcceleratorResourceSpec, BuildArtifactSpec
from rm_api.kinds.accelerator_resource import NodeVersions, ProvisioningMode

from rm_operator.plan.build_job import Devices
from rm_operator.plan.compatibility import class_of, said, ways_to_say
from rm_operator.plan.device_class import requested_resource
from rm_operator.plan.memo import Specs
from rm_operator.plan.model import Object, is_deleting, labels_of, name_of
from rm_operator.plan.placement.observed import observe


@dataclass(frozen=True)
class Found:
    """The device, or why there is none."""

    devices: Devices | None = None
    lacking: str = ""


@dataclass(frozen=True)
class _Kind:
    name: str
    spec: AcceleratorResourceSpec
    versions: tuple[NodeVersions, ...]
    free: float
    """Devices that no pod has and nobody was promised; infinite where they are not counted."""

    @property
    def is_elastic(self) -> bool:
        return self.spec.provisioning.mode is ProvisioningMode.ELASTIC

    def is_on(self, nodes: Sequence[Object]) -> bool:
        wanted = self.spec.node_selector.items()
        return self.is_elastic or any(wanted <= labels_of(node).items() for node in nodes)


def find(
    spec: BuildArtifactSpec,
    namespace: str,
    accelerators: Iterable[Object],
    nodes: Sequence[Object] | None = None,
    spoken_for: Mapping[str, int] | None = None,
) -> Found:
    """A device for a stage of ``spec`` that needs one. ``nodes`` are those that are left, where some are not.

    ``spoken_for`` are devices that the stage cannot have, by accelerator, whether or not pods have them already.
    """
    target, for_ = spec.target, class_of(spec)
    what = f"{target.vendor} {target.type}" + (f" {' or '.join(target.products)}" if target.products else "")
    taken = spoken_for or {}
    kinds = [_kind(obj, taken) for obj in sorted(accelerators, key=name_of) if not is_deleting(obj)]
    kinds = [kind for kind in kinds if _is_target(kind.spec, spec) and _is_open(kind.spec, namespace)]
    if not kinds:
        return Found(lacking=f"no AcceleratorResource that namespace {namespace} may use is a {what}")
    fitting = [kind for kind in kinds if not kind.versions or any(map(for_.admits, kind.versions))]
    if not fitting:
        there = "; ".join(f"{kind.name} has {said(kind.versions)}" for kind in kinds)
        return Found(lacking=f"no {what} has driver {' or '.join(spec.drivers)} {' or '.join(spec.sdks)}: {there}")
    left = [kind for kind in fitting if nodes is None or kind.is_on(nodes)]
    if not left:
        return Found(lacking=f"every node with a {what} is one that could not run it")
    chosen = max(left, key=lambda kind: kind.free)
    needed = spec.shape.devices
    if chosen.free < needed:
        elastic = next((kind for kind in left if kind.is_elastic), None)
        if elastic is None:
            kinds_left = ", ".join(kind.name for kind in left)
            what = f"no device of {kinds_left} is free"
            return Found(lacking=what if needed == 1 else f"{needed} devices are needed: {what}, or too few")
        # Its pod is what makes an autoscaler add a node.
        chosen = elastic
    resource = requested_resource(chosen.spec)
    return Found(
        Devices(
            chosen.name,
            limits={resource: str(needed)} if resource else {},
            node_selector=chosen.spec.node_selector,
            tolerations=[toleration.to_wire() for toleration in chosen.spec.tolerations],
            announced=chosen.spec.device_plugin is not None and bool(resource),
            ways=ways_to_say(chosen.name, chosen.spec, chosen.versions, for_),
        )
    )


def versions(spec: BuildArtifactSpec, accelerators: Iterable[Object]) -> list[NodeVersions]:
    """Versions that nodes have of accelerators that ``spec`` is for."""
    kinds = (_kind(obj, {}) for obj in sorted(accelerators, key=name_of) if not is_deleting(obj))
    return [each for kind in kinds if _is_target(kind.spec, spec) for each in kind.versions]


def _kind(obj: Object, spoken_for: Mapping[str, int]) -> _Kind:
    spec, status = _spec_of(obj), obj.get("status") or {}
    seen = observe(spec, status)
    free = float("inf")
    if not seen.ready:
        free = 0
    elif seen.healthy is not None:
        allocated = int((status.get("devices") or {}).get("allocated", 0))
        free = seen.healthy - max(allocated, spoken_for.get(name_of(obj), 0))
    versions = tuple(NodeVersions.model_validate(each) for each in status.get("versions") or [])
    return _Kind(name_of(obj), spec, versions, free)


def _is_target(kind: AcceleratorResourceSpec, spec: BuildArtifactSpec) -> bool:
    target = spec.target
    same = (kind.type, kind.vendor) == (target.type, target.vendor)
    return same and (not target.products or kind.product in target.products)


def _is_open(kind: AcceleratorResourceSpec, namespace: str) -> bool:
    return not kind.allowed_namespaces or namespace in kind.allowed_namespaces


_spec_of = Specs(AcceleratorResourceSpec, most=256)
