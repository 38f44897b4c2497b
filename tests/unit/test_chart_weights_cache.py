"""The weights cache of nodes, as helm renders it, and what pods are told of it."""

from typing import Any

import pytest
from rm_api import names
from rm_operator.config import Config
from rm_operator.weights_cache.__main__ import parser
from test_chart import Refused, Render, render  # noqa: F401 - a fixture

Object = dict[str, Any]


def cached(render: Render, **values: Any) -> dict[str, Object]:  # noqa: F811
    """The objects of it, by kind."""
    objects = render(cache={"enabled": True, **values})
    return {obj["kind"]: obj for obj in objects if obj["metadata"]["name"] == "rma-weights-cache"}


def environment(objects: list[Object]) -> dict[str, str]:
    operator = next(obj for obj in objects if obj["kind"] == "Deployment" and obj["metadata"]["name"] == "rma-operator")
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: str(entry.get("value", "")) for entry in container["env"]}


def test_it_is_off_unless_asked_for(render: Render) -> None:  # noqa: F811
    objects = render()
    assert not [obj for obj in objects if "weights-cache" in obj["metadata"]["name"]]
    assert "RMA_NODE_CACHE" not in environment(objects)


def test_the_operator_tells_pods_where_the_service_is(render: Render) -> None:  # noqa: F811
    told = environment(render(cache={"enabled": True}, remote={"tls": {"enabled": False}}))
    config = Config.from_environment({**told, "RMA_STORE_CA_FILE": "", "RMA_STORE_TOKEN_AUDIENCE": "",
                                      "RMA_STORE_TOKEN_FILE": ""})  # fmt: skip
    service = cached(render)["Service"]
    (port,) = service["spec"]["ports"]
    assert config.node_cache == f"{service['metadata']['name']}.system.svc:{port['port']}"
    assert service["spec"]["internalTrafficPolicy"] == "Local"
    template = cached(render)["DaemonSet"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert container["ports"] == [{"name": port["targetPort"], "containerPort": names.NODE_CACHE_PORT}]


def test_the_process_understands_what_it_is_told(render: Render) -> None:  # noqa: F811
    made = cached(render, limitMiB=3, namespaceMiB=2, directory="/data/weights", nodeSelector={"disk": "large"})
    pod = made["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = parser().parse_args(container["command"][3:])
    assert (arguments.limit_bytes, arguments.namespace_bytes) == (3 << 20, 2 << 20)
    assert (arguments.port, arguments.audience) == (names.NODE_CACHE_PORT, names.NODE_CACHE_AUDIENCE)
    (mount,) = container["volumeMounts"]
    assert str(arguments.directory) == mount["mountPath"]
    (volume,) = pod["volumes"]
    assert volume["hostPath"] == {"path": "/data/weights", "type": "DirectoryOrCreate"}
    assert pod["nodeSelector"] == {"disk": "large"}


def test_it_may_ask_whose_a_token_is_and_nothing_else(render: Render) -> None:  # noqa: F811
    made = cached(render)
    (rule,) = made["ClusterRole"]["rules"]
    assert rule == {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    (container,) = made["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip


@pytest.mark.parametrize("values", [{"limitMiB": 0}, {"directory": "weights"}, {"directory": "/"}, {"share": 1}])
def test_values_that_make_no_sense(render: Render, values: Object) -> None:  # noqa: F811
    with pytest.raises(Refused):
        cached(render, **values)
