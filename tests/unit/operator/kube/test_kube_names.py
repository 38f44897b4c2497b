"""Paths of resources, types of errors, and what is kept of pods and nodes."""

from typing import Any

import pytest
from rm_operator.kube import errors
from rm_operator.kube.contents import Fate
from rm_operator.kube.documents import Document, encode
from rm_operator.kube.errors import ApiError, error_from_status
from rm_operator.kube.resources import ALL, DEPLOYMENTS, MODEL_DEPLOYMENTS, NODES, PODS, Resource, resource_of
from rm_operator.kube.trim import is_extended, trim_node, trim_pod


@pytest.mark.parametrize(
    ("resource", "where", "path"),
    [
        (PODS, (), "/api/v1/pods"),
        (PODS, ("ns",), "/api/v1/namespaces/ns/pods"),
        (PODS, ("ns", "p"), "/api/v1/namespaces/ns/pods/p"),
        (PODS, ("ns", "p", "log"), "/api/v1/namespaces/ns/pods/p/log"),
        (NODES, (None, "n"), "/api/v1/nodes/n"),
        (NODES, ("ignored", "n"), "/api/v1/nodes/n"),
        (DEPLOYMENTS, ("ns", "d", "status"), "/apis/apps/v1/namespaces/ns/deployments/d/status"),
        (MODEL_DEPLOYMENTS, ("ns", "m"), "/apis/rm-abstract.io/v1alpha1/namespaces/ns/modeldeployments/m"),
    ],
)
def test_paths(resource: Resource, where: tuple[str | None, ...], path: str) -> None:
    assert resource.path(*where) == path


def test_an_object_of_a_namespaced_kind_needs_its_namespace() -> None:
    with pytest.raises(ValueError, match="Pod 'p' needs a namespace"):
        PODS.path(None, "p")


@pytest.mark.parametrize("resource", ALL, ids=lambda resource: resource.name)
def test_every_resource_is_found_by_its_objects(resource: Resource) -> None:
    assert resource_of({"apiVersion": resource.api_version, "kind": resource.kind}) is resource


# Messages and bodies as a kube-apiserver 1.36 sends them.
REFUSALS: list[tuple[int, dict[str, Any], type[ApiError]]] = [
    (400, {"reason": "BadRequest", "message": "strict decoding error"}, errors.Invalid),
    (401, {"reason": "Unauthorized"}, errors.Unauthorized),
    (
        403,
        {
            "reason": "Forbidden",
            "message": 'pods "p" is forbidden: User "u" cannot create resource "pods" in API group ""',
        },
        errors.Forbidden,
    ),
    (
        403,
        {"reason": "Forbidden", "message": 'pods "p" is forbidden: violates PodSecurity "restricted:latest"'},
        errors.Invalid,
    ),
    (403, {"reason": "Forbidden", "message": 'admission webhook "x" denied the request: no'}, errors.Invalid),
    (
        403,
        {"reason": "Forbidden", "message": 'pods "p" is forbidden: exceeded quota: q, requested: pods=1'},
        errors.QuotaExceeded,
    ),
    (
        403,
        {"reason": "Forbidden", "message": "…", "details": {"causes": [{"reason": "NamespaceTerminating"}]}},
        errors.NamespaceTerminating,
    ),
    (404, {"reason": "NotFound"}, errors.NotFound),
    (409, {"reason": "Conflict"}, errors.Conflict),
    (409, {"reason": "AlreadyExists"}, errors.AlreadyExists),
    (410, {"reason": "Expired"}, errors.Gone),
    (413, {"reason": "RequestEntityTooLarge"}, errors.Invalid),
    (422, {"reason": "Invalid", "message": "spec.x: Invalid value"}, errors.Invalid),
    (422, {"reason": "Invalid", "details": {"causes": [{"field": "metadata.uid"}]}}, errors.Conflict),
    (429, {"reason": "TooManyRequests"}, errors.TooManyRequests),
    (500, {"reason": "InternalError"}, errors.ServerError),
    (
        500,
        {"message": "failed to create typed patch object (ns/a; apps/v1, Kind=Job): .spec.x: field not …"},
        errors.Invalid,
    ),
    (503, {"reason": "ServiceUnavailable"}, errors.ServerError),
    (504, {"reason": "Timeout", "message": "Timeout: Too large resource version: 9, current: 1"}, errors.Gone),
    (504, {"reason": "Timeout", "message": "request did not complete"}, errors.ServerError),
]


@pytest.mark.parametrize(("code", "status", "expected"), REFUSALS)
def test_refusals_have_their_type(code: int, status: dict[str, Any], expected: type[ApiError]) -> None:
    found = error_from_status(code, status)
    assert type(found) is expected
    assert found.status == code


TERMINAL = {errors.Invalid, errors.NamespaceTerminating}


@pytest.mark.parametrize(("code", "status", "expected"), REFUSALS)
def test_only_what_the_same_request_cannot_pass_is_terminal(
    code: int, status: dict[str, Any], expected: type[ApiError]
) -> None:
    assert error_from_status(code, status).terminal == (expected in TERMINAL)


@pytest.mark.parametrize(
    ("details", "header", "seconds"),
    [
        ({}, None, None),
        ({"retryAfterSeconds": 3}, None, 3),
        ({"retryAfterSeconds": 3}, 5.0, 5),
        ({"retryAfterSeconds": 0}, None, None),
    ],
)
def test_the_wait_that_the_server_asks_for(
    details: dict[str, int], header: float | None, seconds: float | None
) -> None:
    found = error_from_status(429, {"reason": "TooManyRequests", "details": details}, retry_after=header)
    assert found.retry_after == seconds


def test_a_body_that_is_no_status_is_quoted() -> None:
    assert "Bad Gateway" in str(error_from_status(502, None, fallback="<h1>Bad Gateway</h1>"))


@pytest.mark.parametrize(
    ("name", "extended"),
    [
        ("vendor.com/npu", True),
        ("nvidia.com/gpu", True),
        ("cpu", False),
        ("memory", False),
        ("hugepages-2Mi", False),
        ("kubernetes.io/batch-cpu", False),
        ("attachable-volumes.kubernetes.io/x", False),
        ("requests.kubernetes.io/x", False),
    ],
)
def test_extended_resources(name: str, extended: bool) -> None:
    assert is_extended(name) == extended


def pod(*containers: dict[str, Any], ours: bool = False, **spec: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "rm-abstract" if ours else "Helm", "big": "x" * 50}
    metadata = {"namespace": "ns", "name": "p", "uid": "u", "resourceVersion": "7", "labels": labels}
    body = {"containers": list(containers), "nodeName": "n", "volumes": [{"name": "v"}], **spec}
    status = {"phase": "Running", "podIP": "10.0.0.1"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body, "status": status}


def document(obj: dict[str, Any]) -> Document:
    return Document.of(encode(obj))


def holder(name: str, **limits: str) -> dict[str, Any]:
    amounts = {key.replace("_", "/"): value for key, value in limits.items()}
    return {"name": name, "image": "i", "resources": {"limits": amounts, "requests": amounts}}


def test_our_pods_are_kept_as_they_are() -> None:
    ours = pod(holder("a"), ours=True)
    assert trim_pod(document(ours)) is Fate.WHOLE


def test_foreign_pods_without_devices_are_not_kept() -> None:
    assert trim_pod(document(pod(holder("a", cpu="1"), {"name": "b"}))) is Fate.DROPPED


def test_of_foreign_pods_with_devices_the_facts_are_kept_in_the_shape_of_a_pod() -> None:
    init = holder("i", npu_x="2") | {"restartPolicy": "Always"}
    given = pod(holder("a", cpu="1", npu_x="1"), holder("b", cpu="1"), initContainers=[init])
    found = trim_pod(document(given))
    assert found == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "ns", "name": "p", "uid": "u", "resourceVersion": "7"},
        "spec": {
            "nodeName": "n",
            "containers": [{"name": "a", "resources": {"limits": {"npu/x": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"limits": {"npu/x": "2"}}, "restartPolicy": "Always"}],
        },
        "status": {"phase": "Running"},
    }


@pytest.mark.parametrize(
    "odd",
    [
        {"spec": {"containers": None}},
        {"spec": {"containers": [{"name": "a", "resources": None}]}},
        {"spec": {"containers": [{"name": "a", "resources": {"limits": None}}]}},
        {"spec": {}},
        {},
    ],
)
def test_pods_that_say_little_are_read_too(odd: dict[str, Any]) -> None:
    metadata = {"namespace": "ns", "name": "p", "uid": "u", "resourceVersion": "7", "labels": None}
    assert trim_pod(document({"metadata": metadata, **odd})) is Fate.DROPPED


def test_of_nodes_labels_and_devices_are_kept() -> None:
    amounts = {"cpu": "1", "vendor.com/npu": "4", "attachable-volumes.kubernetes.io/x": "9"}
    status = {
        "images": [{"names": ["x"]}],
        "capacity": amounts,
        "allocatable": amounts,
        "conditions": [{"type": "x"}, {}],
    }
    metadata = {"name": "n", "uid": "u", "resourceVersion": "7"}
    node = {
        "metadata": {**metadata, "labels": {"a": "b"}, "annotations": {"x": "y"}},
        "spec": {"taints": []},
        "status": status,
    }
    assert trim_node(document(node)) == {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {**metadata, "labels": {"a": "b"}},
        "status": {"capacity": {"vendor.com/npu": "4"}, "allocatable": {"vendor.com/npu": "4"}},
    }


def test_of_a_nodes_conditions_only_ours_is_kept() -> None:
    ours = {"type": "rm-abstract.io/AcceleratorUnhealthy", "status": "True", "reason": "r", "message": "m"}
    when = {"lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}

    def kept(*conditions: dict[str, Any]) -> Any:
        metadata = {"name": "n", "uid": "u", "resourceVersion": "7"}
        trimmed = trim_node(document({"metadata": metadata, "status": {"conditions": [*conditions]}}))
        assert isinstance(trimmed, dict)
        return trimmed["status"].get("conditions")

    assert kept({"type": "Ready", "status": "True", **when}, {**ours, **when}) == [
        {**ours, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    ]
    assert kept({**ours, "lastTransitionTime": None}) == [{**ours, "lastTransitionTime": ""}]
    assert kept({"type": "Ready", "status": "True"}) is None


def test_a_node_that_has_reported_nothing_yet_is_kept() -> None:
    metadata = {"name": "n", "uid": "u", "resourceVersion": "7"}
    assert trim_node(document({"metadata": metadata})) == {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "status": {"capacity": {}, "allocatable": {}},
    }
