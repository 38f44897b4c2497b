"""Artifacts that nodes mount as image volumes: what pods are given then, and what is said where a node cannot."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import chain
import pytest
from chain import SETTINGS, World
from rm_api import names
from rm_operator.plan import image_volume
from rm_operator.plan.model import ImageVolumes, Settings, StoreConfig

Object = dict[str, Any]
NODES_REACH = "registry.example:5000"


def with_volumes(host: str = NODES_REACH, pull_secret: str = "", **store: Any) -> Settings:
    config = replace(SETTINGS.store, image_volumes=ImageVolumes(host, pull_secret), **store)
    return replace(SETTINGS, store=config)


def served(monkeypatch: pytest.MonkeyPatch, settings: Settings, **spec: Any) -> tuple[World, Object]:
    """A deployment that serves, and its pods' template."""
    monkeypatch.setattr(chain, "SETTINGS", settings)
    world = World()
    world.serve(**spec)
    (made,) = world.of("Deployment")
    return world, made["spec"]["template"]["spec"]


def image_of(world: World, host: str = NODES_REACH) -> str:
    location: str = world.of("BuildArtifact")[0]["status"]["location"]
    return f"{host}/{location.partition('/')[2]}"


def test_the_pod_sees_the_artifact_where_it_was_and_nothing_fetches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fetched = served(monkeypatch, SETTINGS)
    world, mounted = served(monkeypatch, with_volumes())
    assert "@sha256:" in image_of(world)
    volumes = {each["name"]: each for each in mounted["volumes"]}
    assert volumes.pop("artifact")["image"] == {"reference": image_of(world), "pullPolicy": "IfNotPresent"}
    before = {each["name"]: each for each in fetched["volumes"]}
    assert before.pop("artifact") == {"name": "artifact", "emptyDir": {}}
    assert volumes == before
    assert [each["name"] for each in fetched["initContainers"]] == ["launcher", "fetch"]
    assert [each["name"] for each in mounted["initContainers"]] == ["launcher"]
    # The engine is the same in all: directory, arguments, the key that the launcher checks.
    assert mounted["containers"] == fetched["containers"]
    (mount,) = [each for each in mounted["containers"][0]["volumeMounts"] if each["name"] == "artifact"]
    assert mount == {"name": "artifact", "mountPath": names.ARTIFACT_DIR, "readOnly": True}
    assert "imagePullSecrets" not in mounted


def test_a_private_store_is_for_nodes_that_have_the_namespaces_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    _, pod = served(monkeypatch, with_volumes(pull_secret="registry-login", token_audience="store"))
    assert pod["imagePullSecrets"] == [{"name": "registry-login"}]
    assert [each for each in pod["volumes"] if "projected" in each] == [], "the pod's token is for those who fetch"


def test_weights_that_are_not_in_the_artifact_are_fetched_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = chain.PROFILE.model_copy(update={"weights_in_artifact": False, "binds": "Structure"})
    monkeypatch.setattr(chain, "PROFILE", recipe)
    _, pod = served(monkeypatch, with_volumes())
    assert [each["name"] for each in pod["initContainers"]] == ["launcher", "fetch-model"]


@pytest.mark.parametrize(
    ("location", "reference"),
    [
        ("store:5000/artifacts/ns/b-1@sha256:00", "nodes:1/artifacts/ns/b-1@sha256:00"),
        ("elsewhere:5000/artifacts/ns/b-1@sha256:00", "elsewhere:5000/artifacts/ns/b-1@sha256:00"),
    ],
)
def test_only_the_store_itself_has_another_name_on_nodes(location: str, reference: str) -> None:
    store = StoreConfig("store:5000", plain_http=True)
    assert image_volume.reference(location, store, ImageVolumes("nodes:1")) == reference


def test_switched_on_or_told_otherwise_the_pods_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for settings in (SETTINGS, with_volumes(), with_volumes("other:1"), with_volumes(pull_secret="s")):
        world, _ = served(monkeypatch, settings)
        found.append(world.of("Deployment")[0]["metadata"]["name"])
    assert found[0] == "hello-3982181908", "by default they are those that clusters have"
    assert len(set(found)) == len(found)


def waiting(reason: str, message: str = "") -> Object:
    return {"name": "engine", "image": "acme/serve:1", "state": {"waiting": {"reason": reason, "message": message}}}


def said(monkeypatch: pytest.MonkeyPatch, settings: Settings, status: Object) -> tuple[str, str]:
    """Reason and message of a deployment whose engine is in a state, of which ARTIFACT stands for the reference."""
    monkeypatch.setattr(chain, "SETTINGS", settings)
    world = World()
    world.serve()
    status = deepcopy(status)
    state = status["state"]["waiting"]
    state["message"] = state["message"].replace("ARTIFACT", image_of(world))
    world.start_pods(ready=False, containerStatuses=[status])
    template = world.of("Deployment")[0]["spec"]["template"]["spec"]
    for pod in world.of("Pod"):
        pod["spec"] = deepcopy(template)
    world.settle()
    condition = world.condition("ModelDeployment", "hello", "Ready")
    return str(condition["reason"]), str(condition["message"])


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed"]
)
def test_a_node_that_cannot_take_the_artifact_is_told(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    # As kubelet 1.36 and containerd 2.2 word it, for the container that mounts it.
    text = 'failed to pull and unpack image "ARTIFACT": failed to resolve reference: dial tcp: connection refused'
    found, message = said(monkeypatch, with_volumes(), waiting(reason, text))
    assert found == "ImagePullFailed"
    assert f"its node cannot take the artifact {NODES_REACH}/artifacts/" in message
    assert "connection refused" in message


def test_the_engines_own_image_is_told_from_the_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'Back-off pulling image "acme/serve:1": ErrImagePull: not found'
    for settings in (SETTINGS, with_volumes()):
        found, message = said(monkeypatch, settings, waiting("ImagePullBackOff", text))
        assert found == "ImagePullFailed"
        assert "the image of engine cannot be pulled" in message


def test_a_node_that_cannot_mount_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "ImageVolumeMountFailed: failed to mount image volume component: no space left on device"
    found, message = said(monkeypatch, with_volumes(), waiting("CreateContainerError", text))
    assert found == "ImagePullFailed"
    assert "its node cannot mount the artifact" in message
    assert "no space left on device" in message


def test_a_runtime_that_does_not_know_image_volumes_may_be_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    status = waiting("CreateContainerError", 'failed to mkdir "": no such file or directory')
    found, message = said(monkeypatch, with_volumes(), status)
    assert found == "EngineFailed"
    assert "needs containerd 2.1 or CRI-O 1.31" in message
    _, message = said(monkeypatch, SETTINGS, status)
    assert "containerd" not in message
