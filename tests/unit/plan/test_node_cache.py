"""Pods that fetch a model are told of the weights cache of their node, and show it their namespace; no others are."""

from dataclasses import replace
from typing import Any

import chain
import pytest
from chain import SETTINGS, World
from rm_api import names

Object = dict[str, Any]
HOST = "cache.system.svc:9011"


@pytest.fixture(params=["", HOST], ids=["without", "with"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(chain, "SETTINGS", replace(SETTINGS, node_cache=request.param))
    return str(request.param)


def told(pod: Object) -> list[str]:
    """Containers that know of it."""
    return [
        each["name"]
        for each in [*pod["initContainers"], *pod["containers"]]
        if {"name": names.ENV_NODE_CACHE, "value": HOST} in each["env"]
        and names.NODE_CACHE_DIR in {mount["mountPath"] for mount in each["volumeMounts"]}
    ]


def tokens(pod: Object) -> list[str]:
    """Audiences of the tokens that the pod has."""
    sources = [source for volume in pod["volumes"] for source in volume.get("projected", {}).get("sources", ())]
    return [source["serviceAccountToken"]["audience"] for source in sources]


def test_a_build(host: str) -> None:
    world = World()
    world.deploy()
    world.settle()
    world.resolve_model()
    world.settle()
    pod = world.jobs("build")[0]["spec"]["template"]["spec"]
    assert told(pod) == (["fetch"] if host else [])
    assert tokens(pod) == ([names.NODE_CACHE_AUDIENCE] if host else [])
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]


@pytest.mark.parametrize("beside", [False, True], ids=["weights in the artifact", "weights beside it"])
def test_serving_pods(host: str, beside: bool) -> None:
    world = World()
    if beside:
        spec = world.profiles[0].spec
        changed = type(spec).model_validate({**spec.to_wire(), "weightsInArtifact": False, "binds": "Structure"})
        world.profiles = [replace(world.profiles[0], spec=changed)]
    world.serve()
    (made,) = world.of("Deployment")
    pod = made["spec"]["template"]["spec"]
    assert told(pod) == (["fetch-model"] if host and beside else [])
    assert tokens(pod) == ([names.NODE_CACHE_AUDIENCE] if host and beside else [])
