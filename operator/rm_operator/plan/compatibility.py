"""Compatibility classes: which nodes of a kind of accelerator load a result, and how many results a mixed fleet takes.

A profile says which versions load what it makes. Where a result fits one version only, each version that nodes have is
a class of its own, with an artifact of its own. Which of them a deployment uses is decided in ``classes``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_api import names
from rm_api.kinds import AcceleratorResourceSpec, BuildArtifactSpec
from rm_api.kinds.accelerator_resource import NodeDevices, NodeVersions
from rm_api.kinds.build_profile import BuildProfileSpec, Compatibility, VersionAspect


@dataclass(frozen=True)
class NodeClass:
    """Versions that load a result; empty for any."""

    drivers: tuple[str, ...] = ()
    sdks: tuple[str, ...] = ()

    def admits(self, versions: NodeVersions) -> bool:
        """True if what is built for this class runs on nodes with ``versions``."""
        return _admits(self.drivers, versions.driver) and _admits(self.sdks, versions.sdk)


@dataclass(frozen=True)
class Room:
    """What there is of a class; None for any number.

    Replicas are counted, and not devices: those of one replica are all of one node.
    """

    nodes: int = 0
    most: int | None = None
    """Replicas that its nodes have devices for, healthy or not."""
    free: int | None = None
    """Replicas that there are devices for which are healthy, and which no pod has."""

    def __add__(self, other: "Room") -> "Room":
        return Room(self.nodes + other.nodes, _sum(self.most, other.most), _sum(self.free, other.free))


_MAX_LABEL = 63


def class_of(artifact: BuildArtifactSpec) -> NodeClass:
    """What an artifact was built for."""
    return NodeClass(tuple(artifact.drivers), tuple(artifact.sdks))


def label_value(version: str) -> str:
    """``version`` as the value of a label: what a label may not have becomes ``_``; empty if nothing is left."""
    return re.sub(r"[^-A-Za-z0-9_.]", "_", version)[:_MAX_LABEL].strip("-_.")


def matching(compatibility: Compatibility, versions: Iterable[NodeVersions]) -> list[NodeVersions]:
    """Those of ``versions`` that a profile can build for."""
    declared = NodeClass(tuple(compatibility.driver), tuple(compatibility.sdk))
    aspects = compatibility.one_artifact_per
    return [
        each
        for each in versions
        if declared.admits(each)
        # A result for a version that nobody knows cannot be made.
        and (VersionAspect.DRIVER not in aspects or each.driver)
        and (VersionAspect.SDK not in aspects or each.sdk)
    ]


def rooms(compatibility: Compatibility, versions: Iterable[NodeVersions], devices: int = 1) -> dict[NodeClass, Room]:
    """The classes to build for, with what there is of each for replicas of so many ``devices``.

    None where the nodes' versions decide and none fits. Classes whose nodes have devices, but none of them enough for
    a replica, are left out, unless there are only such.
    """
    aspects = compatibility.one_artifact_per
    if not aspects:
        return {NodeClass(tuple(compatibility.driver), tuple(compatibility.sdk)): Room()}
    found: dict[NodeClass, Room] = {}
    fitting = set()
    for each in matching(compatibility, versions):
        class_ = NodeClass(
            (each.driver,) if VersionAspect.DRIVER in aspects else tuple(compatibility.driver),
            (each.sdk,) if VersionAspect.SDK in aspects else tuple(compatibility.sdk),
        )
        room = _room(each, devices)
        found[class_] = found[class_] + room if class_ in found else room
        if room.most != 0 or not each.devices:
            fitting.add(class_)
    return {class_: room for class_, room in found.items() if class_ in fitting or not fitting}


def _room(versions: NodeVersions, devices: int) -> Room:
    if devices == 1:
        return Room(versions.nodes, versions.devices, versions.free)
    return Room(
        versions.nodes,
        None if versions.devices is None else _replicas(versions.devices_by_node, devices),
        None if versions.free is None else _replicas(versions.free_by_node, devices),
    )


def _replicas(nodes: Iterable[NodeDevices] | None, devices: int) -> int:
    return sum(each.devices // devices * each.nodes for each in nodes or ())


def commonest(rooms: Mapping[NodeClass, Room]) -> NodeClass | None:
    """The class of most nodes, of equals that of the newest versions; None where there is none."""
    return max(rooms, key=lambda each: (rooms[each].nodes, each.drivers, each.sdks), default=None)


def targeted(profile: BuildProfileSpec, chosen: NodeClass) -> BuildProfileSpec:
    """``profile`` for one class: what the compiler calls the target may name the class's versions."""
    text = profile.target.target_string
    if "$" not in text:
        return profile
    values = {
        "DRIVER": chosen.drivers[0] if len(chosen.drivers) == 1 else "",
        "SDK": chosen.sdks[0] if len(chosen.sdks) == 1 else "",
    }
    filled = names.expand(text, values).replace("$$", "$")
    return profile.model_copy(update={"target": profile.target.model_copy(update={"target_string": filled})})


def affinity(
    accelerator: str, spec: AcceleratorResourceSpec, versions: Sequence[NodeVersions], chosen: NodeClass
) -> dict[str, Any]:
    """Fields of a pod's spec that keep it on nodes of the class; none where no node says which versions it has."""
    ways = ways_to_say(accelerator, spec, versions, chosen)
    if not ways:
        return {}
    required = {"nodeSelectorTerms": [{"matchExpressions": way} for way in ways]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}


def ways_to_say(
    accelerator: str, spec: AcceleratorResourceSpec, versions: Sequence[NodeVersions], chosen: NodeClass
) -> list[list[dict[str, Any]]]:
    """Ways in which a node says that it is of the class, each as expressions of a node affinity that all must hold."""
    labels = spec.version_labels
    ways: list[list[dict[str, Any]]] = [[]]
    for wanted, known, theirs, ours in (
        (chosen.drivers, any(each.driver for each in versions), labels.driver, names.NODE_LABEL_DRIVER),
        (chosen.sdks, any(each.sdk for each in versions), labels.sdk, names.NODE_LABEL_SDK),
    ):
        if wanted and known:
            ways = [way + more for way in ways for more in _says(theirs, f"{ours}/{accelerator}", wanted)]
    return [] if ways == [[]] else ways


def _says(theirs: str | None, ours: str, wanted: Iterable[str]) -> list[list[dict[str, Any]]]:
    """Ways in which a node says that it has one of these versions: by the vendor's label, or by ours without that."""
    values = sorted(map(label_value, wanted))
    own = {"key": ours, "operator": "In", "values": values}
    if theirs is None:
        return [[own]]
    return [[{"key": theirs, "operator": "In", "values": values}], [{"key": theirs, "operator": "DoesNotExist"}, own]]


def said(versions: Iterable[NodeVersions]) -> str:
    """Versions for a person, the commonest first."""
    texts = []
    for each in versions:
        what = ", ".join(f"{name} {value}" for name, value in (("driver", each.driver), ("SDK", each.sdk)) if value)
        texts.append(f"{what or 'no known version'} on {each.nodes} node{'' if each.nodes == 1 else 's'}")
    return "; ".join(texts)


def label_of(class_: NodeClass) -> str:
    """A class for a person."""
    return _listed(class_.drivers, class_.sdks) or "any version"


def wanted(compatibility: Compatibility) -> str:
    """What a profile builds for, for a person."""
    return _listed(compatibility.driver, compatibility.sdk) or "a known version"


def _listed(drivers: Sequence[str], sdks: Sequence[str]) -> str:
    both = (("driver", drivers), ("SDK", sdks))
    return " and ".join(f"{name} {' or '.join(versions)}" for name, versions in both if versions)


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _admits(wanted: Sequence[str], version: str) -> bool:
    # What no node says is not held against it: the engine looks before it starts.
    return not wanted or not version or version in map(label_value, wanted)
