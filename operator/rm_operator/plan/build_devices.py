"""Where the steps of a build that need a device find one: on the kind of its target that has most to spare."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rm_api.kinds import AcceleratorResourceSpec, BuildArtifactSpec
from rm_api.kinds.accelerator_resource import ProvisioningMode

from rm_operator.plan.build_job import Devices
from rm_operator.plan.device_class import requested_resource
from rm_operator.plan.memo import Specs
from rm_operator.plan.model import Object, is_deleting, labels_of, name_of
from rm_operator.plan.placement.observed import observe


@dataclass(frozen=True)
class Found:
    """The device, or why there is none."""

    devices: Devices | None = None
    lacking: str = ""


def find(
    spec: BuildArtifactSpec, namespace: str, accelerators: Iterable[Object], nodes: Sequence[Object] | None = None
) -> Found:
    """A device for a stage of ``spec`` that needs one. ``nodes`` are those that are left, where some are not."""
    target = spec.target
    what = f"{target.vendor} {target.type}" + (f" {'/'.join(target.products)}" if target.products else "")
    kinds = [
        (name_of(obj), kind, _free(obj, kind))
        for obj in accelerators
        if not is_deleting(obj) and _is_target((kind := _spec_of(obj)), spec, namespace)
    ]
    if not kinds:
        return Found(lacking=f"no AcceleratorResource that namespace {namespace} may use is a {what}")
    open_ = [each for each in kinds if nodes is None or _is_on(each[1], nodes)]
    if not open_:
        return Found(lacking=f"every node with a {what} is one that could not run it")
    _, kind, free = min(open_, key=lambda each: (-each[2], each[0]))
    elastic = next((each for each in sorted(open_, key=lambda each: each[0]) if _is_elastic(each[1])), None)
    if free <= 0 and elastic is None:
        return Found(lacking=f"no device of {', '.join(sorted(each[0] for each in open_))} is free")
    if free <= 0 and elastic is not None:
        # Its pod is what makes an autoscaler add a node.
        kind = elastic[1]
    resource = requested_resource(kind)
    return Found(
        Devices(
            limits={resource: "1"} if resource else {},
            node_selector=kind.node_selector,
            tolerations=[toleration.to_wire() for toleration in kind.tolerations],
        )
    )


def _is_target(kind: AcceleratorResourceSpec, spec: BuildArtifactSpec, namespace: str) -> bool:
    target = spec.target
    return (
        (kind.type, kind.vendor) == (target.type, target.vendor)
        and (not target.products or kind.product in target.products)
        and (not kind.allowed_namespaces or namespace in kind.allowed_namespaces)
    )


def _free(obj: Object, kind: AcceleratorResourceSpec) -> float:
    """Devices that no pod has, by the status; without a limit where they are not counted."""
    status = obj.get("status") or {}
    seen = observe(kind, status)
    if not seen.ready:
        return 0
    if seen.healthy is None:
        return float("inf")
    return seen.healthy - int((status.get("devices") or {}).get("allocated", 0))


def _is_elastic(kind: AcceleratorResourceSpec) -> bool:
    return kind.provisioning.mode is ProvisioningMode.ELASTIC


def _is_on(kind: AcceleratorResourceSpec, nodes: Sequence[Object]) -> bool:
    wanted = kind.node_selector.items()
    return _is_elastic(kind) or any(wanted <= labels_of(node).items() for node in nodes)


_spec_of = Specs(AcceleratorResourceSpec, most=256)
