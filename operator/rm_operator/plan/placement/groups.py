"""How many devices one replica may have: what is compiled, what the model can be divided by, what one node has.

This is the one place that decides on tensor and pipeline parallel; from here the numbers go into the artifact's key,
the variables TP, PP and DEVICE_COUNT, the limits of pods, and the count of devices. All devices of a replica are of one
node: nothing here serves a replica from two.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from rm_api.kinds import AcceleratorResourceSpec
from rm_api.kinds.model_deployment import ModelFacts

from rm_operator.plan import compatibility
from rm_operator.plan.buckets import ONE_DEVICE, Group
from rm_operator.plan.device_class import requested_resource
from rm_operator.plan.placement.question import Question, listing
from rm_operator.plan.placement.request import AcceleratorView, ProfileView

_MOST: Final = 64
"""Devices of a replica for which nobody has to say what is compiled: nodes have no more."""


class Groups(NamedTuple):
    """Groups of devices, those with the fewest devices first, then those with the fewest stages."""

    compiled: tuple[Group, ...]
    """What the profile compiles."""
    divisible: tuple[Group, ...]
    """Those of them that the model can be divided by."""
    linked: tuple[Group, ...]
    """Those of these that the accelerator can link."""
    on_one_node: tuple[Group, ...]
    """Those of these that one node has the devices for."""


ONLY_ONE: Final = Groups((ONE_DEVICE,), (ONE_DEVICE,), (ONE_DEVICE,), (ONE_DEVICE,))
"""Where nothing is said of several devices: of most profiles on most accelerators."""


def of(question: Question, accelerator: AcceleratorView, profile: ProfileView) -> Groups:
    """The groups that may serve the model, as far as devices are there at all."""
    shapes, spec = profile.spec.shapes, accelerator.spec
    if not shapes.tensor_parallel and not shapes.pipeline_parallel and linkable(spec) == 1:
        return ONLY_ONE
    tensors = sorted(set(shapes.tensor_parallel)) or _powers(min(_MOST, linkable(spec) or _MOST))
    stages = sorted(set(shapes.pipeline_parallel)) or [1]
    every = sorted(
        (Group(tensor, stage) for tensor in tensors for stage in stages), key=lambda each: (each.devices, each.pipeline)
    )
    compiled = tuple(every)
    divisible = tuple(group for group in compiled if _divides(group, question.facts))
    linked = tuple(group for group in divisible if _links(group, spec))
    largest = largest_for(accelerator, profile)
    there = tuple(group for group in linked if largest is None or group.devices <= max(1, largest))
    return Groups(compiled, divisible, linked, there)


def largest_for(accelerator: AcceleratorView, profile: ProfileView) -> int | None:
    """Devices of the node that has most of them, of the nodes with a version that ``profile`` builds for.

    None where that is not known. Where no node has such a version, all count: that there is none is said elsewhere.
    """
    largest = accelerator.largest
    if largest is None or largest <= 1:
        return largest
    fitting = compatibility.matching(profile.spec.compatibility, accelerator.versions)
    if not fitting or any(each.devices is None for each in fitting):
        return largest
    return max((node.devices for each in fitting for node in each.devices_by_node or ()), default=1)


def most_by_version(accelerator: AcceleratorView) -> Sequence[tuple[str, str, int]]:
    """What ``largest_for`` rests on beside ``largest``: driver, SDK, and devices of the node that has most of them."""
    if accelerator.largest is None or accelerator.largest <= 1:
        return ()
    return [
        (each.driver, each.sdk, max((node.devices for node in each.devices_by_node or ()), default=1))
        for each in accelerator.versions
        if each.devices is not None
    ]


def linkable(spec: AcceleratorResourceSpec) -> int | None:
    """Most devices that compute one layer together, as far as the accelerator says; None for as many as there are.

    One, where nothing is said of how devices are linked: so an accelerator that says nothing serves as it always did.
    """
    if requested_resource(spec) is None:
        return 1
    declared = spec.capability.max_tensor_parallel
    if declared is not None:
        return declared
    return None if spec.performance.link_gbps else 1


def not_divisible(question: Question, found: Sequence[Groups]) -> str:
    """Why the model cannot be divided as it is compiled."""
    facts = question.facts
    return (
        f"its BuildProfiles compile for {_tensors(each.compiled for each in found)} devices to a layer and "
        f"{listing(group.pipeline for each in found for group in each.compiled)} stages: heads not divisible; "
        f"the model has {facts.heads} heads, {facts.kv_heads} of keys and values, and {facts.layers} layers"
    )


def not_linked(accelerator: AcceleratorView, found: Sequence[Groups]) -> str:
    """Why the accelerator links fewer devices than it is compiled for."""
    most = linkable(accelerator.spec)
    return (
        f"its BuildProfiles compile for {_tensors(each.divisible for each in found)} devices to a layer, it links "
        f"{most}; correct its capability.maxTensorParallel, or declare its performance.linkGBps"
    )


def on_no_node(accelerator: AcceleratorView, found: Sequence[Groups], profiles: Sequence[ProfileView]) -> str:
    """Why no node has as many devices as it is compiled for."""
    least = min(group.devices for each in found for group in each.linked)
    return f"a replica needs {least} devices of one node, and {most_on_node(accelerator, profiles)}"


def most_on_node(accelerator: AcceleratorView, profiles: Sequence[ProfileView]) -> str:
    """How many devices a node has that these profiles build for."""
    what = requested_resource(accelerator.spec) or "it"
    most = max(largest_for(accelerator, profile) or 0 for profile in profiles)
    fitting = " with a version that is built for" if most < (accelerator.largest or 0) else ""
    return f"no node{fitting} has more than {max(1, most)} of {what}"


def _divides(group: Group, facts: ModelFacts) -> bool:
    # A key and value head that is not divided may be on several devices.
    kv = facts.kv_heads % group.tensor == 0 or group.tensor % facts.kv_heads == 0
    return facts.heads % group.tensor == 0 and kv and group.pipeline <= facts.layers


def _links(group: Group, spec: AcceleratorResourceSpec) -> bool:
    most = linkable(spec)
    return (most is None or group.tensor <= most) and (group.pipeline == 1 or requested_resource(spec) is not None)


def _powers(most: int) -> list[int]:
    return [1 << exponent for exponent in range(most.bit_length())]


def _tensors(found: Iterable[Sequence[Group]]) -> str:
    return listing(group.tensor for groups in found for group in groups)
