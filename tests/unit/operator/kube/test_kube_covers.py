"""Is a live object as we applied it? Tables of what differs and of what does not."""

import copy
from decimal import Decimal
from typing import Any

import pytest
from rm_api.quantity import quantity
from rm_operator.kube.covers import covers, differences

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "d",
        "namespace": "ns",
        "labels": {"app": "x"},
        "annotations": {"note": "y"},
        "ownerReferences": [{"uid": "u", "kind": "ModelDeployment", "name": "m", "controller": True}],
    },
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "x"}},
        "template": {
            "metadata": {"labels": {"app": "x"}},
            "spec": {
                "automountServiceAccountToken": False,
                "hostNetwork": False,
                "containers": [
                    {
                        "name": "main",
                        "image": "i:1",
                        "args": ["--a", "1"],
                        "env": [{"name": "A", "value": "1"}, {"name": "EMPTY", "value": ""}],
                        "ports": [{"containerPort": 8000, "name": "http"}],
                        "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi", "vendor.com/npu": 1}},
                        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                        "securityContext": {"capabilities": {"drop": ["ALL"]}},
                    }
                ],
                "tolerations": [{"key": "k", "operator": "Exists"}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        },
    },
}
POD = ("spec", "template", "spec")
MAIN = (*POD, "containers", 0)


def at(obj: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        obj = obj[step]
    return obj


def changed(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The live object with ``value`` at ``path``."""
    live = copy.deepcopy(DEPLOYMENT)
    at(live, path[:-1])[path[-1]] = value
    return live


def without(path: tuple[str | int, ...]) -> dict[str, Any]:
    live = copy.deepcopy(DEPLOYMENT)
    del at(live, path[:-1])[path[-1]]
    return live


def test_an_object_covers_itself() -> None:
    assert covers(DEPLOYMENT, DEPLOYMENT)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("status",), {"replicas": 2}),
        (("metadata", "resourceVersion"), "7"),
        (("metadata", "labels", "theirs"), "z"),
        (("metadata", "annotations", "deployment.kubernetes.io/revision"), "1"),
        (("metadata", "finalizers"), ["theirs"]),
        (("spec", "progressDeadlineSeconds"), 600),
        ((*MAIN, "imagePullPolicy"), "Always"),
        ((*MAIN, "ports", 0, "protocol"), "TCP"),
        ((*MAIN, "resources", "limits", "cpu"), "1"),
        ((*MAIN, "resources", "limits", "memory"), "1Gi"),
        ((*MAIN, "resources", "limits", "vendor.com/npu"), "1"),
        ((*MAIN, "resources", "requests"), {"cpu": "1"}),
        ((*POD, "tolerations", 0, "effect"), "NoExecute"),
        ((*POD, "schedulerName"), "default-scheduler"),
    ],
)
def test_what_others_add_and_other_ways_to_write_it_do_not_matter(path: tuple[str | int, ...], value: Any) -> None:
    assert differences(changed(path, value), DEPLOYMENT) == ()


@pytest.mark.parametrize("path", [(*MAIN, "env", 1, "value"), (*POD, "hostNetwork")])
def test_what_the_server_leaves_out_is_there(path: tuple[str | int, ...]) -> None:
    assert differences(without(path), DEPLOYMENT) == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("metadata", "labels", "app"), "z"),
        (("metadata", "annotations", "note"), ""),
        (("spec", "replicas"), 3),
        (("spec", "replicas"), "2"),
        ((*MAIN, "image"), "i:2"),
        ((*MAIN, "args"), ["--a", "1", "--b"]),
        ((*MAIN, "args"), ["1", "--a"]),
        ((*MAIN, "env", 0, "value"), "2"),
        ((*MAIN, "ports", 0, "protocol"), "UDP"),
        ((*MAIN, "resources", "limits", "memory"), "1G"),
        ((*MAIN, "resources", "limits", "vendor.com/npu"), "2"),
        ((*MAIN, "securityContext", "capabilities", "drop"), []),
        ((*POD, "automountServiceAccountToken"), True),
        ((*POD, "hostNetwork"), True),
        ((*POD, "tolerations", 0, "key"), "other"),
        ((*POD, "tolerations"), [{"key": "k", "operator": "Exists"}, {"operator": "Exists"}]),
        ((*POD, "volumes", 0), {"name": "v", "hostPath": {"path": "/"}}),
    ],
)
def test_a_change_of_what_we_set_is_a_difference(path: tuple[str | int, ...], value: Any) -> None:
    found = differences(changed(path, value), DEPLOYMENT)
    assert found
    assert all(where[: len(path)] == path[: len(where)] for where, _ in found)


@pytest.mark.parametrize(
    "path",
    [
        ("metadata", "labels", "app"),
        ("metadata", "ownerReferences"),
        ("spec", "replicas"),
        (*MAIN, "args"),
        (*MAIN, "env", 0),
        (*MAIN, "securityContext"),
        (*MAIN, "volumeMounts"),
        (*POD, "automountServiceAccountToken"),
        (*POD, "containers", 0),
        (*POD, "volumes", 0, "emptyDir"),
    ],
)
def test_what_we_set_and_is_gone_is_a_difference(path: tuple[str | int, ...]) -> None:
    assert differences(without(path), DEPLOYMENT)


class TestListsOfNamedThings:
    def test_match_by_name_in_any_order_with_foreign_ones_between(self) -> None:
        live = copy.deepcopy(DEPLOYMENT)
        at(live, POD)["containers"].insert(0, {"name": "injected", "image": "sidecar"})
        at(live, (*POD, "containers", 1))["env"] = [
            {"name": "EMPTY"},
            {"name": "THEIRS", "value": "z"},
            {"name": "A", "value": "1"},
        ]
        assert differences(live, DEPLOYMENT) == ()

    def test_ports_of_services_are_named_by_port_and_protocol(self) -> None:
        ours = {"spec": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "targetPort": "dns"}]}}
        live = {
            "spec": {
                "ports": [
                    {"port": 53, "protocol": "TCP", "targetPort": "dns", "nodePort": 30000},
                    {"port": 53, "protocol": "UDP", "targetPort": 53},
                ]
            }
        }
        assert differences(live, ours) == ()

    def test_finalizers_are_a_set(self) -> None:
        assert covers({"metadata": {"finalizers": ["b", "a"]}}, {"metadata": {"finalizers": ["a"]}})
        assert not covers({"metadata": {"finalizers": ["b"]}}, {"metadata": {"finalizers": ["a"]}})


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_an_empty_value_is_covered_by_nothing_at_all(empty: object) -> None:
    assert covers({"spec": {}}, {"spec": {"labels": empty}})


def test_null_says_that_nothing_may_be_there() -> None:
    assert covers({"spec": {}}, {"spec": {"a": None}})
    assert not covers({"spec": {"a": 1}}, {"spec": {"a": None}})


@pytest.mark.parametrize(
    ("live", "ours"), [(True, 1), (1, True), ("1", 1), (0, False), ({"a": 1}, [1]), ([1], {"a": 1})]
)
def test_kinds_of_values_are_not_mixed_up(live: object, ours: object) -> None:
    assert not covers({"spec": {"x": live}}, {"spec": {"x": ours}})


def test_preconditions_are_no_part_of_it() -> None:
    assert covers(
        {"metadata": {"name": "a", "uid": "2"}}, {"metadata": {"name": "a", "uid": "1", "resourceVersion": "1"}}
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", "1"),
        (1, "1"),
        ("500m", "0.5"),
        ("1.5", "1.5"),
        ("1k", "1000"),
        ("1Ki", "1024"),
        ("1.5Gi", "1610612736"),
        ("1E", "1000000000000000000"),
        ("1e3", "1000"),
        ("2E2", "200"),
        ("100n", "1E-7"),
        ("-1", "-1"),
    ],
)
def test_quantities(text: str | int, value: str) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "x", "1Qi", "Gi", "1 Gi", "1GiB"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        quantity(text)
