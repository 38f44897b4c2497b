"""What makes serving pods other pods, and what does not: a new operator or a field that nobody uses do not."""

import base64
import gzip
from dataclasses import replace
from typing import Any

import pytest
from chain import NPU, World
from rm_api.kinds import AcceleratorResourceSpec
from rm_operator.plan import remembered

Object = dict[str, Any]

FULL = AcceleratorResourceSpec.model_validate(
    {
        **NPU.to_wire(),
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "npu", "operator": "Exists", "effect": "NoSchedule"}],
        "runtime": {
            "plugin": "acme", "image": "acme/serve:1", "args": ["--fast"], "env": [{"name": "A", "value": "1"}],
        },
    }
)  # fmt: skip
OPTIONS = {
    "model": {"source": "oci://registry/model:1", "servedName": "llama"},
    "runtime": {"env": [{"name": "TZ", "value": "UTC"}]},
}


def variant(spec: AcceleratorResourceSpec = NPU, **deployment: Any) -> str:
    world = World()
    world.accelerators = [replace(world.accelerators[0], spec=spec)]
    world.serve(**deployment)
    (made,) = world.of("Deployment")
    return str(made["metadata"]["name"])


def test_names_that_clusters_have_already() -> None:
    """A change here restarts every serving pod at the next update of the operator."""
    assert variant() == "hello-3982181908"
    assert variant(FULL, **OPTIONS) == "hello-e43d404f69"


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 2},
        {"policy": {"type": "Throughput"}},
        {"accelerators": {"names": ["npu"]}},
        {"workload": {"requestsPerSecond": "2"}},
        {"rollout": {"strategy": "InPlace", "maxUnavailable": 1}},
        {"autoscaling": {"maxReplicas": 3, "metrics": [{"name": "queue", "averageValue": "5"}]}},
        {"suspend": False},
    ],
)
def test_what_is_not_about_the_pods_keeps_them(spec: Object) -> None:
    assert variant(**spec) == "hello-3982181908"


@pytest.mark.parametrize(
    ("accelerator", "spec"),
    [
        (NPU, {"priorityClassName": "important"}),
        (NPU, {"runtime": {"env": [{"name": "TZ", "value": "UTC"}]}}),
        (NPU, {"model": {"source": "oci://registry/model:1", "servedName": "llama"}}),
        (NPU.model_copy(update={"resource_name": "acme.com/other"}), {}),
        (NPU.model_copy(update={"node_selector": {"zone": "a"}}), {}),
    ],
)
def test_what_is_about_the_pods_makes_others(accelerator: AcceleratorResourceSpec, spec: Object) -> None:
    assert variant(accelerator, **spec) != "hello-3982181908"


@pytest.mark.parametrize("name", ["important", None])
def test_the_priority_class_is_the_pods(name: str | None) -> None:
    world = World()
    world.serve(**({"priorityClassName": name} if name else {}))
    (made,) = world.of("Deployment")
    assert made["spec"]["template"]["spec"].get("priorityClassName") == name


NO_JSON = base64.b64encode(gzip.compress(b"{")).decode()
A_LIST = base64.b64encode(gzip.compress(b"[]")).decode()
BOMB = base64.b64encode(gzip.compress(b" " * (1 << 24) + b"{}")).decode()


@pytest.mark.parametrize(
    "data",
    [
        None, {}, [], {"template": {}}, {"template": "x"}, {"template": {"spec": {}}}, {"gzip": 1}, {"gzip": ""},
        {"gzip": "no base64"}, {"gzip": "YQ=="}, {"gzip": "\u00e9"}, {"gzip": NO_JSON}, {"gzip": NO_JSON[:20]},
        {"gzip": A_LIST}, {"gzip": BOMB},
    ],
)  # fmt: skip
def test_a_remembered_template_that_is_none_is_rendered_again(data: object) -> None:
    world = World()
    world.serve()
    (revision,), (made,) = world.of("ControllerRevision"), world.of("Deployment")
    before = made["spec"]["template"]
    revision["data"] = data
    world.settle()
    assert world.of("Deployment")[0]["spec"]["template"] == before
    assert world.of("ControllerRevision")[0]["data"] == remembered.data_of(before)
    # Also where it is not the wanted one, and all that is known is what runs.
    world.of("ControllerRevision")[0]["data"] = data
    world.profiles = []
    world.settle()
    assert world.of("Deployment")[0]["spec"]["template"] == before
