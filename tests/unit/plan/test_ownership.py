"""Who owns devices: two owners of one name on a node, two kinds that count the same nodes, and versions."""

import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from chain import SETTINGS
from rm_api import names
from rm_api.conditions import ConditionType, Reason
from rm_api.kinds import AcceleratorResourceSpec
from rm_operator.plan.conditions import Conditions
from rm_operator.plan.device_children import device_children
from rm_operator.plan.ownership import Ownership, Surroundings, examine, kept_off, state, versions

Object = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESOURCE = "acme.com/npu"
PLUGIN: Object = {"image": "acme/plugin:1"}


def kind(name: str = "npu", *, born: str = "2026-01-01T00:00:00Z", **spec: Any) -> Object:
    named = {} if "deviceClassName" in spec else {"resourceName": RESOURCE}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "AcceleratorResource",
        "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": born},
        "spec": {
            "type": "NPU",
            "vendor": "Acme",
            "product": "X1",
            **named,
            "runtime": {"plugin": "acme", "image": "acme/serve:1"},
            **spec,
        },
    }


def owned(name: str = "npu", **further: Any) -> Object:
    """One whose device plugin is ours."""
    return kind(name, devicePlugin=PLUGIN, **further)


def node(name: str, devices: int | str = 0, **labels: str) -> Object:
    amount = {RESOURCE: str(devices)}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": f"host-{name}", **labels}},
        "status": {"capacity": amount, "allocatable": amount},
    }


def found(accelerator: Object, nodes: list[Object], **around: Any) -> Ownership:
    spec = AcceleratorResourceSpec.model_validate(accelerator["spec"])
    selected = [each for each in nodes if spec.node_selector.items() <= each["metadata"]["labels"].items()]
    return examine(accelerator, spec, selected, Surroundings(**around))


def daemonset(*keep_off: str) -> Object:
    accelerator = owned()
    spec = AcceleratorResourceSpec.model_validate(accelerator["spec"])
    return device_children(accelerator, spec, SETTINGS, keep_off=keep_off)[-1]


LABELLED = node("a", 4, **{"driver.rm-abstract.io/npu": "1.2"})


@pytest.mark.parametrize(
    ("accelerator", "nodes", "around", "lost"),
    [
        (owned(), [node("a"), node("b")], {}, ""),
        (owned(), [node("a", 4), node("b")], {}, "a"),
        (owned(), [node("a", "2k"), node("b", 1)], {}, "ab"),
        (kind(), [node("a", 4)], {}, ""),
        (owned(nodeSelector={"zone": "1"}), [node("a", 4), node("b", 0, zone="1")], {}, ""),
        (owned(), [node("a", 4), node("b", 4)], {"ours": {"a"}}, "b"),
        (owned(), [LABELLED, node("b", 4)], {}, "b"),
        (owned(), [node("a", 4), node("b", 4)], {"daemonset": daemonset()}, ""),
        (owned(), [node("a", 4), node("b", 4), node("c", 4)], {"daemonset": daemonset("host-a", "host-b")}, "ab"),
        (owned(), [node("a"), node("b", 4)], {"daemonset": daemonset("host-a", "host-b")}, "b"),
        (owned(), [node("a"), node("b")], {"daemonset": daemonset("host-a", "host-b")}, ""),
    ],
    ids=[
        "nobody-there",
        "somebody-was-there-first",
        "on-all",
        "an-adopted-kind-wants-just-that",
        "on-nodes-of-others",
        "our-plugin-is-there",
        "our-plugin-was-there",
        "our-plugin-restarts-everywhere",
        "they-are-still-there",
        "one-has-gone",
        "all-have-gone",
    ],
)
def test_where_somebody_else_was_first_ours_keeps_off(
    accelerator: Object, nodes: list[Object], around: Object, lost: str
) -> None:
    result = found(accelerator, nodes, **around)
    assert result.lost == set(lost)
    assert result.keep_off == {f"host-{name}" for name in lost}
    assert result.reason == (Reason.RESOURCE_NAME_CONFLICT if lost else None)
    assert not result.unused
    assert all(f"node{'s' if len(lost) > 1 else ''} {', '.join(lost)}" in result.message for _ in lost)


def test_the_daemonset_says_what_it_keeps_off() -> None:
    assert kept_off(daemonset()) == frozenset()
    assert kept_off(daemonset("x", "y")) == {"x", "y"}


def test_a_report_of_another_owner_is_told_and_our_plugin_stays_to_see_the_end() -> None:
    nodes = [node(name, 4) for name in "abcde"]
    words = dict.fromkeys("dabc", "the kubelet has GPU-7 as acme.com/npu") | {"elsewhere": "x"}
    result = found(owned(), nodes, daemonset=daemonset(), reported=words)
    assert (result.reason, result.lost, result.keep_off) == (
        Reason.RESOURCE_NAME_CONFLICT,
        frozenset("abcd"),
        frozenset(),
    )
    assert "nodes a, b, c and 1 more" in result.message
    assert "GPU-7" in result.message
    assert found(owned(), nodes, daemonset=daemonset()) == Ownership()


OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
LEAVING = kind("other", born=OLD)
LEAVING["metadata"]["deletionTimestamp"] = NEW


@pytest.mark.parametrize(
    ("mine", "other", "shared"),
    [
        (kind(born=NEW), kind("other", born=OLD), "ab"),
        (owned(born=NEW), kind("other", born=OLD), "ab"),
        (kind(born=NEW), owned("other", born=OLD, nodeSelector={"zone": "1"}), "b"),
        (kind(born=NEW, nodeSelector={"disk": "ssd"}), kind("other", born=OLD, nodeSelector={"zone": "1"}), "b"),
        (kind(born=NEW, nodeSelector={"zone": "2"}), kind("other", born=OLD, nodeSelector={"zone": "1"}), ""),
        (kind(born=OLD), kind("other", born=NEW), ""),
        (kind("b", born=OLD), kind("a", born=OLD), "ab"),
        (kind("a", born=OLD), kind("b", born=OLD), ""),
        (kind(born=NEW), kind("other", born=OLD, resourceName="acme.com/other"), ""),
        (kind(born=NEW), LEAVING, ""),
        (kind(born=NEW, deviceClassName="npu"), kind("other", born=OLD, deviceClassName="npu"), "ab"),
        (kind(born=NEW, deviceClassName="npu"), kind("other", born=OLD, deviceClassName="gpu"), ""),
        (kind(born=NEW, deviceClassName="npu"), kind("other", born=OLD), ""),
        (kind(), kind(), ""),
        (kind(type="CPU", resourceName=None, born=NEW), kind("other", type="CPU", resourceName=None, born=OLD), ""),
    ],
    ids=[
        "adopted-twice",
        "adopted-and-owned",
        "owned-on-a-part",
        "labels-of-both",
        "disjoint",
        "the-older-one",
        "by-name-if-as-old",
        "by-name-the-first",
        "another-resource",
        "who-leaves-makes-room",
        "the-same-class",
        "another-class",
        "class-and-resource",
        "itself",
        "cpus-are-not-counted",
    ],
)
def test_of_two_kinds_that_count_the_same_devices_the_younger_is_not_used(
    mine: Object, other: Object, shared: str
) -> None:
    result = found(mine, [node("a"), node("b", zone="1", disk="ssd")], others=[mine, other])
    assert (result.unused, result.lost) == (bool(shared), frozenset(shared))
    assert result.reason == (Reason.NODE_CONFLICT if shared else None)
    assert (f"AcceleratorResource {other['metadata']['name']}" in result.message) is bool(shared)
    assert all(name in result.message for name in shared)


@pytest.mark.parametrize(
    ("accelerator", "nodes", "around", "lost", "keep_off"),
    [
        (kind(), [node("a", 4), node("b", 4)], {"by_class": {"a"}}, "a", ""),
        (kind(), [node("a")], {"by_class": {"a"}}, "", ""),
        (owned(), [node("a"), node("b")], {"by_class": {"a"}}, "a", "a"),
        (owned(), [node("a", 4)], {"by_class": {"a"}, "ours": {"a"}, "daemonset": daemonset()}, "a", ""),
        (owned(), [node("a")], {"by_class": {"a"}, "daemonset": daemonset("host-a")}, "a", "a"),
        (
            kind(deviceClassName="npu"),
            [node("a", 4), node("b")],
            {"by_class": {"a", "b"}, "extended": RESOURCE},
            "a",
            "",
        ),
        (kind(deviceClassName="npu"), [node("a", 4)], {"by_class": {"a"}}, "", ""),
    ],
    ids=[
        "adopted-and-a-class",
        "only-the-class",
        "ours-is-not-rolled-out-beside-a-driver",
        "ours-is-there-already",
        "and-keeps-off",
        "a-kind-of-the-class",
        "a-class-without-a-name",
    ],
)
def test_a_node_that_has_a_name_by_plugin_and_by_class_is_not_counted(
    accelerator: Object, nodes: list[Object], around: Object, lost: str, keep_off: str
) -> None:
    result = found(accelerator, nodes, **around)
    assert (result.lost, result.keep_off) == (frozenset(lost), frozenset(f"host-{name}" for name in keep_off))
    assert result.reason == (Reason.RESOURCE_NAME_CONFLICT if lost else None)
    assert ("DRA driver" in result.message) is bool(lost)


@pytest.mark.parametrize(
    ("conflict", "healthy", "advertised"),
    [
        (Ownership(), 4, "True"),
        (Ownership(Reason.RESOURCE_NAME_CONFLICT, "m", frozenset("a")), 4, "True"),
        (Ownership(Reason.RESOURCE_NAME_CONFLICT, "m", frozenset("a")), 0, "False"),
        (Ownership(Reason.NODE_CONFLICT, "m", unused=True), 4, "False"),
    ],
    ids=["none", "devices-elsewhere", "none-left", "unused"],
)
def test_a_conflict_is_stalled_and_what_is_left_is_used(conflict: Ownership, healthy: int, advertised: str) -> None:
    conditions = Conditions({"metadata": {"name": "npu"}}, NOW)
    reason = Reason.ADVERTISED if healthy else Reason.NO_DEVICES
    conditions.set(ConditionType.DEVICES_ADVERTISED, bool(healthy), reason, f"{healthy} of 8")
    conditions.set(ConditionType.READY, True, Reason.READY)
    conditions.set(ConditionType.RECONCILING, True, Reason.ROLLING_OUT)
    state(conditions, conflict)
    said = {entry["type"]: (entry["status"], entry["reason"]) for entry in conditions.to_list()}
    assert said["DevicesAdvertised"][0] == advertised
    if conflict.reason is None:
        assert said["Ready"] == ("True", "Ready")
        assert "Stalled" not in said
    else:
        assert said["Ready"] == ("False", conflict.reason)
        assert said["Stalled"] == ("True", conflict.reason)
        assert "Reconciling" not in said


@pytest.mark.parametrize(
    ("labels", "nodes", "seen"),
    [
        ({}, [node("a"), node("b")], []),
        ({}, [LABELLED, LABELLED, node("b")], [("1.2", "", "", 2)]),
        ({}, [node("a", **{"driver.rm-abstract.io/another": "1"})], []),
        (
            {"driver": "acme.com/driver", "firmware": "acme.com/fw"},
            [
                node("a", **{"acme.com/driver": "2.0", "acme.com/fw": "7"}),
                node("b", **{"acme.com/driver": "3.0"}),
                node("c", **{"acme.com/driver": "3.0"}),
            ],
            [("3.0", "", "", 2), ("2.0", "", "7", 1)],
        ),
        ({"driver": "acme.com/driver"}, [LABELLED], [("1.2", "", "", 1)]),
        ({"sdk": "acme.com/sdk"}, [node("a", **{"acme.com/sdk": "9"})], [("", "9", "", 1)]),
    ],
    ids=["none", "ours", "of-another-kind", "theirs", "theirs-is-not-there", "sdk"],
)
def test_versions_come_from_labels(labels: Object, nodes: list[Object], seen: list[tuple[str, str, str, int]]) -> None:
    spec = AcceleratorResourceSpec.model_validate(kind(versionLabels=labels)["spec"])
    made = versions("npu", spec, copy.deepcopy(nodes))
    assert [(each.driver, each.sdk, each.firmware, each.nodes) for each in made] == seen


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (None, {}),
        ({}, {"devices": 0, "free": 0}),
        ({"a": (1, 1), "b": (1, 0)}, {"devices": 2, "free": 1}),
        (
            {"a": (4, 3), "b": (2, 0), "c": (4, 1)},
            {
                "devices": 10,
                "free": 4,
                "devicesByNode": [{"devices": 4, "nodes": 2}, {"devices": 2, "nodes": 1}],
                "freeByNode": [{"devices": 3, "nodes": 1}, {"devices": 1, "nodes": 1}],
            },
        ),
        ({"a": (2, 1), "b": (2, 1)}, {"devices": 4, "free": 2, "devicesByNode": [{"devices": 2, "nodes": 2}]}),
    ],
)
def test_devices_are_told_by_version_and_by_node(there: dict[str, tuple[int, int]] | None, said: Object) -> None:
    spec = AcceleratorResourceSpec.model_validate(kind()["spec"])
    nodes = [node(name, **{"driver.rm-abstract.io/npu": "1.2"}) for name in ("a", "b", "c")]
    (made,) = versions("npu", spec, nodes, there)
    assert made.to_wire() == {"driver": "1.2", "sdk": "", "firmware": "", "nodes": 3, **said}


def test_of_many_versions_the_commonest_are_told() -> None:
    spec = AcceleratorResourceSpec.model_validate(kind()["spec"])
    nodes = [node(f"n{i}-{j}", **{"driver.rm-abstract.io/npu": f"{i}"}) for i in range(40) for j in range(i + 1)]
    made = versions("npu", spec, nodes)
    assert [each.nodes for each in made] == list(range(40, 8, -1))
    assert (made[0].driver, len(made)) == ("39", 32)
