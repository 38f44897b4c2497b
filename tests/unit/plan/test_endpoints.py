"""Deployments on endpoints outside the cluster: nothing is resolved or built, and the pods relay."""

import json
from dataclasses import replace
from typing import Any

from chain import World
from endpoints import endpoint_plan, endpoint_view

READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def deployed(*views: Any, **spec: Any) -> World:
    world = World()
    world.accelerators = list(views)
    world.deploy(**spec)
    world.settle()
    return world


def test_nothing_is_resolved_or_built_and_relays_are_run() -> None:
    world = deployed(endpoint_view())
    assert [world.reason(condition=each) for each in ("ModelResolved", "Placed", "ArtifactReady")] == [
        "NotNeeded", "Placed", "NotNeeded",
    ]  # fmt: skip
    assert world.of("Job") == world.of("BuildArtifact") == world.of("ConfigMap") == []
    status = world.objects["ModelDeployment", "hello"]["status"]
    assert status["placement"]["chosen"] == "vendor"
    assert not {"model", "artifact", "artifactNamespace", "classes"} & status.keys()
    (found,) = world.of("Deployment")
    (engine,) = found["spec"]["template"]["spec"]["containers"]
    assert engine["command"][engine["command"].index("--") + 1 :] == [
        "rm-abstract", "relay", "--endpoint=http://remote-vendor.system.svc:8443", "--model=large-1",
        "--served-name=hello", "--port=8000",
    ]  # fmt: skip
    (token,) = [
        source["serviceAccountToken"]
        for volume in found["spec"]["template"]["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    ]
    assert token["audience"] == "rm-abstract-remote"
    assert "vendor-key" not in json.dumps(found), "of the key the tenant does not even have the name"
    world.start_pods()
    world.settle()
    assert world.reason() == "Serving" or world.condition("ModelDeployment", "hello", "Ready")["status"] == "True"
    (variant,) = world.objects["ModelDeployment", "hello"]["status"]["variants"]
    assert (variant["accelerator"], variant.get("artifact"), variant["active"]) == ("vendor", None, True)


def test_where_others_are_selected_the_model_is_resolved_as_ever() -> None:
    both = (World().accelerators[0], endpoint_view())
    assert len(deployed(*both).jobs("resolve")) == 1
    assert deployed(*both, accelerators={"types": ["REMOTE"]}).jobs("resolve") == []
    others = endpoint_view(allowedNamespaces=["other"])
    assert len(deployed(both[0], others).jobs("resolve")) == 1
    assert (
        deployed(
            replace(both[0], spec=both[0].spec.model_copy(update={"allowed_namespaces": ["other"]})), both[1]
        ).jobs("resolve")
        == []
    ), "it may not use the one that would need it"


def test_a_namespace_that_is_not_allowed_reads_so() -> None:
    for names in ([], ["other"]):
        world = deployed(endpoint_view(allowedNamespaces=names), accelerators={"types": ["REMOTE"]})
        assert world.jobs("resolve") == world.of("Deployment") == []
        assert world.reason(condition="Placed") == "NoEligibleAccelerator"
        assert "allowedNamespaces" in world.condition("ModelDeployment", "hello", "Placed")["message"]


def test_a_model_that_the_endpoint_does_not_serve() -> None:
    world = deployed(endpoint_view(), model={"source": "hf://org/other"})
    assert world.reason(condition="Placed") == "NoEligibleAccelerator"
    message = world.condition("ModelDeployment", "hello", "Placed")["message"]
    assert "does not serve hf://org/other; it serves oci://registry/model:1" in message


def test_one_that_is_not_ready_is_waited_for() -> None:
    world = deployed(replace(endpoint_view(), ready=False, reason="it refuses the key"))
    assert "it refuses the key" in world.condition("ModelDeployment", "hello", "Placed")["message"]
    assert world.of("Deployment") == []


def test_the_proxy_alone_has_the_key_and_lets_through_what_is_listed() -> None:
    plan = endpoint_plan([])
    deployment, service = plan.apply
    assert {each["metadata"]["namespace"] for each in plan.apply} == {"system"}
    assert {each["metadata"]["name"] for each in plan.apply} == {"remote-vendor"}
    pod = deployment["spec"]["template"]["spec"]
    (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert (secret["secretName"], [item["key"] for item in secret["items"]]) == ("vendor-key", ["key"])
    (container,) = pod["containers"]
    assert {"--namespace=ns", "--model=large-1", "--max-concurrency=64", "--timeout=600"} <= set(container["command"])
    assert not any(entry["name"] != "HOME" for entry in container["env"])
    assert deployment["spec"]["replicas"] == 1, "it counts for all"
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_when_the_endpoint_is_ready() -> None:
    def said(*statuses: dict[str, Any], **members: Any) -> tuple[str, str, str]:
        pods = [{"metadata": {"name": f"p-{number}"}, "status": each} for number, each in enumerate(statuses)]
        status = endpoint_plan(pods, **members).status
        assert status is not None
        by_type = {each["type"]: each for each in status["conditions"]}
        found = by_type["EndpointReady"]
        assert by_type["Ready"]["status"] == found["status"]
        return found["status"], found["reason"], found["message"]

    refused = {"message": json.dumps({"reason": "CredentialsRefused", "message": "no"})}
    crashed = {
        "containerStatuses": [
            {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": refused}}
        ]
    }
    assert said()[:2] == ("False", "ProxyNotReady")
    mounting = {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}
    assert "it needs the Secret of spec.remote.credentialsSecretRef, with key, in its" in said(mounting)[2]
    assert "vendor-key" not in said(mounting)[2], "tenants read it as the reason why they are not placed there"
    assert said(crashed) == ("False", "CredentialsRefused", "no")
    assert said(crashed, READY)[:2] == ("True", "Ready")
    assert "no namespace may use it" in said(READY, allowedNamespaces=[])[2]
    waiting = {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}
    assert "ErrImagePull: no such image" in said(waiting)[2]
